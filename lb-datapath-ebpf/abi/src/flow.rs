//! Entries that programs write: flows of packets, affinity records.

use crate::{Addr, Pod, Port};

/// [`AffinityKey::kind`]: the client is a masked source address.
pub const CLIENT_ADDRESS: u8 = 0;
/// [`AffinityKey::kind`]: the client is the cookie of a network namespace.
pub const CLIENT_NETNS: u8 = 1;

/// [`CtValue::flags`]: translates replies.
pub const CT_REPLY: u8 = 1;
/// [`CtValue::flags`]: both sides have ended the connection, or one has reset it; a SYN on the same tuple is a new one.
pub const CT_CLOSED: u8 = 2;
/// [`CtValue::flags`]: user space has ended the flow. A TCP segment of either direction is answered with a reset, as long
/// as the entry is there. A UDP flow is over: the client's next datagram starts another one, and a datagram of the
/// backend is dropped. Set in both entries of a flow.
pub const CT_CUT: u8 = 4;
/// [`CtValue::flags`]: the flow is no frontend's, and nothing is translated. It has the entry for replies alone, which
/// keeps its tuple from the flows of frontends.
pub const CT_DIRECT: u8 = 8;
/// [`CtValue::flags`]: the flow counts as a connection of its backend in `LOADS` until it is closed. Set in both entries
/// of a flow.
pub const CT_COUNTED: u8 = 0x10;
/// [`CtValue::flags`]: the client is inside: a pod of this node, or the node itself.
pub const CT_INSIDE: u8 = 0x80;
/// [`CtValue::flags`]: the client is a process of this node.
pub const CT_OWN: u8 = 0x40;

/// [`CtValue::client`] and [`CtValue::server`]: this side has answered. Of a client, that is a packet after the first
/// answer of the backend.
pub const SIDE_SEEN: u8 = 1;
/// [`CtValue::client`] and [`CtValue::server`]: this side has sent a FIN, or for SCTP a SHUTDOWN or its acknowledgement.
pub const SIDE_FIN: u8 = 2;
/// [`CtValue::server`]: the backend's FIN came before the client's, so that the backend is the one in TIME-WAIT.
pub const SIDE_FIRST: u8 = 4;

/// A UDP flow that was answered ends after this much silence, in nanoseconds: conntrack's default time-out of a stream.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nf_conntrack_proto_udp.c> (`UDP_CT_REPLIED`)
pub const UDP_IDLE_NS: u64 = 120 * SECOND;
/// A UDP flow that was never answered ends after this much silence (`UDP_CT_UNREPLIED`).
pub const UDP_NEW_NS: u64 = 30 * SECOND;
/// A TCP flow that was not established yet is over after this much silence.
pub const TCP_NEW_NS: u64 = 60 * SECOND;
/// An established TCP flow loses its claim to its tuple after this much silence.
pub const TCP_IDLE_NS: u64 = 6 * HOUR;
/// A TCP flow that one side has ended loses its claim after this much silence: the other side may still send.
pub const TCP_HALF_CLOSED_NS: u64 = HOUR;
/// A closed TCP flow keeps its tuple for as long as the side that closed first stays in TIME-WAIT on Linux. RFC 9293
/// asks for twice the maximum segment lifetime.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/include/net/tcp.h> (`TCP_TIMEWAIT_LEN`)
pub const TCP_CLOSED_NS: u64 = 60 * SECOND;

/// An SCTP flow that was not established yet is over after this much silence: conntrack's default time-out.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nf_conntrack_proto_sctp.c> (`SCTP_CONNTRACK_COOKIE_WAIT`)
pub const SCTP_NEW_NS: u64 = 3 * SECOND;
/// An established SCTP flow loses its claim to its tuple after this much silence (`SCTP_CONNTRACK_ESTABLISHED`): its ends
/// send heartbeats every 30 seconds.
pub const SCTP_IDLE_NS: u64 = 210 * SECOND;
/// An SCTP flow that one side shuts down loses its claim after this much silence (`SCTP_CONNTRACK_SHUTDOWN_SENT`).
pub const SCTP_CLOSING_NS: u64 = 3 * SECOND;
/// A closed SCTP flow keeps its tuple for so long (`SCTP_CONNTRACK_CLOSED`). No side stays in a state like TIME-WAIT.
pub const SCTP_CLOSED_NS: u64 = 10 * SECOND;

/// Protocol numbers of flows; all others are TCP.
const UDP: u8 = 17;
const SCTP: u8 = 132;

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;

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
    /// When a packet last used it, monotonic clock; packets within a second of that may leave it. Packets of both
    /// directions write it in both entries.
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
    /// What the client has sent, in the entry for replies: `SIDE_…`. Packets of the client alone write it.
    pub client: u8,
    /// What the backend has sent, in the entry for replies. Packets of the backend alone write it.
    pub server: u8,
    /// Zero.
    pub pad: u8,
}

/// Key of `FRAGMENTS`: a datagram that came in fragments.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification: 16 bits of an IPv4 header, or 32 of an IPv6 fragment header.
    pub id: u32,
    /// IP protocol number; 0 for IPv6, whose fragments agree on the other fields alone (RFC 8200, section 4.5).
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Value of `FRAGMENTS`: what the first fragment says of the others.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentValue {
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Words of the only element of `WORK`: room of each processor for what its programs are at. Only programs read it, and
/// a part of it is free for later versions.
pub const WORK_WORDS: usize = 32;

/// A byte and three of padding, as one word: three bytes of their own would be a call of `memset`.
#[inline(always)]
const fn padded(byte: u8) -> [u8; 4] {
    (byte as u32).to_le_bytes()
}

impl FragmentKey {
    /// The datagram with this identification.
    #[inline(always)]
    #[must_use]
    pub const fn new(src: Addr, dst: Addr, id: u32, protocol: u8) -> Self {
        let [protocol, a, b, c] = padded(protocol);
        Self { src, dst, id, protocol, pad: [a, b, c] }
    }
}

impl CtKey {
    /// A tuple whose ports are 0.
    #[inline(always)]
    #[must_use]
    pub const fn without_ports(src: Addr, dst: Addr, protocol: u8) -> Self {
        let [protocol, a, b, c] = padded(protocol);
        Self { src, dst, sport: Port(0), dport: Port(0), protocol, pad: [a, b, c] }
    }

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
        client: 0,
        server: 0,
        pad: 0,
    };

    /// Whether the flow is over for good: closed, or cut.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.flags & (CT_CLOSED | CT_CUT) != 0
    }

    /// Whether packets went back and forth, and back again: nobody can do that from an address that is not its own.
    /// Packets of the client of a direct flow are not looked at.
    #[inline(always)]
    #[must_use]
    pub const fn is_established(&self) -> bool {
        self.server & SIDE_SEEN != 0 && (self.client & SIDE_SEEN != 0 || self.flags & CT_DIRECT != 0)
    }

    /// How much silence ends the claim of the flow with this entry for replies to its tuple, in nanoseconds, if it is one
    /// of this protocol.
    #[inline(always)]
    #[must_use]
    pub const fn lifetime(&self, protocol: u8) -> u64 {
        if protocol == UDP {
            return if self.server & SIDE_SEEN != 0 { UDP_IDLE_NS } else { UDP_NEW_NS };
        }
        let is_sctp = protocol == SCTP;
        if self.is_closed() {
            if is_sctp { SCTP_CLOSED_NS } else { TCP_CLOSED_NS }
        } else if !self.is_established() {
            if is_sctp { SCTP_NEW_NS } else { TCP_NEW_NS }
        } else if (self.client | self.server) & SIDE_FIN != 0 {
            if is_sctp { SCTP_CLOSING_NS } else { TCP_HALF_CLOSED_NS }
        } else if is_sctp {
            SCTP_IDLE_NS
        } else {
            TCP_IDLE_NS
        }
    }

    /// The key of the entry for packets in the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn mirror(&self, protocol: u8) -> CtKey {
        let [protocol, a, b, c] = padded(protocol);
        CtKey { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, protocol, pad: [a, b, c] }
    }
}

const _: () = assert!(size_of::<AffinityKey>() == 24);
const _: () = assert!(size_of::<AffinityValue>() == 16);
const _: () = assert!(size_of::<CtKey>() == 40);
const _: () = assert!(size_of::<CtValue>() == 56);
const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<FragmentValue>() == 8);

// SAFETY: integers and arrays of them, the sum of whose sizes is the asserted size.
unsafe impl Pod for AffinityKey {}
// SAFETY: as above.
unsafe impl Pod for AffinityValue {}
// SAFETY: as above.
unsafe impl Pod for CtKey {}
// SAFETY: as above.
unsafe impl Pod for CtValue {}
// SAFETY: as above.
unsafe impl Pod for FragmentKey {}
// SAFETY: as above.
unsafe impl Pod for FragmentValue {}
