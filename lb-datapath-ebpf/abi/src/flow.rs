//! Entries that programs write: flows of packets, affinity records.

use crate::{Addr, Pod, Port};

/// [`AffinityKey::kind`]: the client is a masked source address.
pub const CLIENT_ADDRESS: u8 = 0;
/// [`AffinityKey::kind`]: the client is the cookie of a network namespace.
pub const CLIENT_NETNS: u8 = 1;

/// [`CtValue::flags`]: translates replies.
pub const CT_REPLY: u8 = 1;
/// [`CtValue::flags`]: a FIN or RST was seen; a SYN on the same tuple is a new connection.
pub const CT_CLOSING: u8 = 2;
/// [`CtValue::flags`]: user space has ended the flow. A TCP segment of either direction is answered with a reset, as long
/// as the entry is there. A UDP flow is over: the client's next datagram starts another one, and a datagram of the
/// backend is dropped. Set in both entries of a flow.
pub const CT_CUT: u8 = 4;

/// A UDP flow ends after this much silence, in nanoseconds: conntrack's default time-out of an assured stream.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nf_conntrack_proto_udp.c> (`UDP_CT_REPLIED`)
pub const UDP_IDLE_NS: u64 = 120_000_000_000;

/// Key of `AFFINITY`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// Masked source address, or a cookie in the first eight bytes.
    pub client: Addr,
    /// The frontend's id.
    pub frontend: u32,
    /// `CLIENT_…`.
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityValue {
    /// When a new flow last used it, monotonic clock.
    pub last_ns: u64,
    /// The backend's id.
    pub backend: u32,
    /// Zero.
    pub pad: u32,
}

/// Key of `CT`: a packet's tuple, of either direction.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CtKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Value of `CT`: the tuple that the packet gets.
///
/// A flow has two entries. The key of the reply's is the mirror image of the tuple in the other one's value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtValue {
    /// When a packet last used it, monotonic clock. A reply's entry is touched by packets of both directions.
    pub last_ns: u64,
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// The backend's id.
    pub backend: u32,
    /// The set that it was chosen from.
    pub set: u32,
    /// `CT_…`.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl CtKey {
    /// The tuple of a packet in the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn mirror(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self }
    }
}

impl CtValue {
    /// All zero.
    pub const EMPTY: Self = Self {
        last_ns: 0,
        src: [0; 4],
        dst: [0; 4],
        sport: Port(0),
        dport: Port(0),
        backend: 0,
        set: 0,
        flags: 0,
        pad: [0; 3],
    };

    /// The key of the entry for packets in the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn mirror(&self, protocol: u8) -> CtKey {
        CtKey { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, protocol, pad: [0; 3] }
    }
}

const _: () = assert!(size_of::<AffinityKey>() == 24);
const _: () = assert!(size_of::<AffinityValue>() == 16);
const _: () = assert!(size_of::<CtKey>() == 40);
const _: () = assert!(size_of::<CtValue>() == 56);

// SAFETY: integers and arrays of them, the sum of whose sizes is the asserted size.
unsafe impl Pod for AffinityKey {}
// SAFETY: as above.
unsafe impl Pod for AffinityValue {}
// SAFETY: as above.
unsafe impl Pod for CtKey {}
// SAFETY: as above.
unsafe impl Pod for CtValue {}
