//! Netlink, blocking and by hand: what nf_tables, conntrack and routes share.
//!
//! A socket belongs to the network namespace of the thread that opened it, for good; which thread uses it later does
//! not matter.

mod codec;
mod listen;
pub(crate) mod netfilter;
mod socket;

pub(crate) use codec::{Attributes, Writer, attributes, string, u16_be, u32_be, u64_be};
pub(crate) use listen::{Heard, Listener, Pause, wait};
pub(crate) use socket::{Message, Refusal, Socket, errno, is_too_large};
