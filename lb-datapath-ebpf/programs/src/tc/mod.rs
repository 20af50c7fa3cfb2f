//! Packets at the ingress of a device: one program for pods' devices and uplinks.

pub mod checksum;
pub mod client;
pub mod echo;
pub mod flow;
pub mod header;
pub mod icmp;
pub mod ingress;
pub mod limit;
pub mod packet;
pub mod quote;
pub mod reject;
pub mod reset;
pub mod rewrite;
pub mod sctp;
pub mod skb;
pub mod unfold;
pub mod work;
