//! Packets at the ingress of a device.

pub mod checksum;
pub mod client;
pub mod header;
pub mod icmp;
pub mod reset;
