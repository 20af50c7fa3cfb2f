//! Packets: written from their fields, read back from any bytes, and rewritten as a translation has to.
//!
//! What a datapath does to a packet is checked with this. So it shares no code with one: headers are those of
//! [`etherparse`], and every checksum is computed over the whole packet.
//!
//! * A [`Frame`] is written with lengths and checksums that are right. To make a malformed packet, change its bytes.
//! * A [`Reading`] takes what is there, and says what is wrong with it ([`Fault`], [`Check`]). No bytes make it panic.
//! * A [`Rewrite`] is what becomes of a frame whose addresses, ports and hop limit change, an [`ErrorRewrite`] what becomes
//!   of an ICMP error about such a frame.
//!
//! ```
//! use lb_testkit::packets::{Addresses, Check, Frame, Ip, Payload, Ports, Reading, Segment};
//!
//! let addresses = Addresses::V4 { source: [192, 0, 2, 1].into(), destination: [10, 96, 0, 1].into() };
//! let ports = Ports { source: 40_000, destination: 80 };
//! let payload = Payload::Tcp(Segment { flags: Segment::SYN, ..Segment::new(ports) });
//! let bytes = Frame::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], Ip::new(addresses, payload)).bytes();
//! let ip = Reading::of(&bytes).ip.expect("an IPv4 packet");
//! assert_eq!((ip.ports(), ip.checksum, ip.transport_checksum), (Some(ports), Check::Right, Check::Right));
//! assert!(ip.faults.is_empty());
//! ```

mod checksum;
mod read;
mod rewrite;
mod write;

pub use read::{Check, Fault, FragmentReading, IpReading, Reading, TcpReading, Transport};
pub use rewrite::{Endpoint, ErrorRewrite, Rewrite};
pub use write::{Addresses, Datagram, Extension, Fragment, Frame, Icmp, Ip, Payload, Ports, Segment};

/// IP protocol numbers.
pub mod protocol {
    /// Hop-by-hop options of IPv6.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP over IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// Routing header of IPv6.
    pub const ROUTING: u8 = 43;
    /// Fragment header of IPv6.
    pub const FRAGMENT: u8 = 44;
    /// ICMP over IPv6.
    pub const ICMP_V6: u8 = 58;
    /// Destination options of IPv6.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}
