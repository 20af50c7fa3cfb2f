//! The expressions that rules are made of.

use lb_core::addr::Family;

use crate::{
    netfilter::{NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER},
    nftables::table::layout::Set,
};

/// A register of four bytes. Longer values take the ones behind it too.
pub(crate) type Register = u8;

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Loads the protocol of the network layer, as `NFPROTO_*`, one byte.
    NetworkProtocol { to: Register },
    /// Loads the protocol of the transport layer, one byte.
    TransportProtocol { to: Register },
    /// Loads bytes of the packet.
    Payload { layer: Layer, offset: u32, bytes: u32, to: Register },
    /// Loads a field of the connection, in its original direction.
    Conntrack { what: Conntrack, to: Register },
    /// Ends the rule unless the register is equal to `with` (or, with `not`, if it is).
    Compare { not: bool, register: Register, with: Vec<u8> },
    /// Clears the bits that are not in `mask`.
    Mask { register: Register, mask: Vec<u8> },
    /// Loads the bits of a number in host byte order that are in `mask`.
    Part { from: Register, mask: u32, to: Register },
    /// Copies up to 16 bytes.
    Copy { from: Register, bytes: usize, to: Register },
    /// Loads the packet's mark.
    Mark { to: Register },
    /// Loads the index of the device that the packet leaves through, 0 where the device is not known.
    OutputDevice { to: Register },
    /// Loads the name of the device that the packet came in through, 16 bytes; all zeros if it came in through none. After
    /// routing, kernels since 5.7 know it.
    InputDevice { to: Register },
    /// Loads four bytes.
    Load { bytes: [u8; 4], to: Register },
    /// Translates the destination to the node itself.
    Redirect { port: Register },
    /// The next number or a random one, from `first` on, below `first + modulus`.
    Number { random: bool, modulus: u32, first: u32, to: Register },
    /// `jhash` of `bytes` bytes, scaled to 0..`modulus`, plus `first`.
    Hash { from: Register, bytes: u32, modulus: u32, seed: u32, first: u32, to: Register },
    /// Ends the rule unless the key is in the set (or, with `not`, if it is).
    Member { set: Set, key: Register, not: bool },
    /// Loads the value of the key; ends the rule if there is none.
    Map { map: Set, key: Register, to: Register },
    /// Carries out the verdict of the key; ends the rule if the map has none.
    VerdictMap { map: Set, key: Register },
    /// Adds the key with this value, or renews its time-out and leaves its value alone. Ends the rule if the map is
    /// full.
    Update { map: Set, key: Register, value: Register, timeout_ms: u64 },
    /// Translates the destination.
    Dnat { family: Family, address: Register, port: Register },
    /// Translates the source, from a random free port.
    Masquerade,
    /// Answers with a TCP reset.
    Reset,
    /// Answers with ICMP or ICMPv6 port unreachable.
    Unreachable,
    /// Continues in a chain and does not come back.
    Goto(&'static str),
    /// Lets the packet pass, as far as this table is concerned.
    Accept,
    /// Drops the packet.
    Drop,
    /// Has the connection end by the time-outs of [`TIMEOUTS`](super::rules::TIMEOUTS), unless it is known already.
    Timeouts,
}

/// A header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// At the IP header.
    Network = NFT_PAYLOAD_NETWORK_HEADER as isize,
    /// At the TCP or UDP header.
    Transport = NFT_PAYLOAD_TRANSPORT_HEADER as isize,
}

/// A field of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conntrack {
    /// `IPS_*` bits.
    Status,
    /// [`INVALID`](crate::netfilter::NF_CT_STATE_INVALID), and other bits for a packet of a connection.
    State,
    /// Destination address before translation.
    OriginalDestination(Family),
    /// Destination port before translation.
    OriginalPort,
}
