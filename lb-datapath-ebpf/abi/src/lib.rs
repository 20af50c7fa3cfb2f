//! Keys and values of every eBPF map, shared by the kernel side and the user side.
//!
//! Only integers and arrays of them, every byte of padding named, every size asserted: what one compiler writes another
//! one reads. Integers are in host byte order, except for addresses and ports, which are as they lie in a packet.
//! An address is always 16 bytes: an IPv4 address is its IPv4-mapped IPv6 address, so that both families, and IPv6
//! sockets that talk to IPv4 peers, take one code path. It is made of words, and keys are aligned to eight bytes: the
//! kernel side copies them in words, where it would copy byte arrays byte by byte.
//!
//! A change of any layout here needs another [`LAYOUT`], which is part of the path under which maps are pinned. A map
//! that is added needs none: user space makes it beside the maps of an earlier version.
#![no_std]

mod addr;
mod device;
mod filter;
mod flow;
mod load;
mod node;
mod pod;
mod reason;
mod service;
mod sock;

pub use addr::{Addr, Port, from_octets, is_loopback, is_martian, map_v4, octets, unmap_v4};
pub use device::{
    ADDRESS_ANSWERS_PING, ADDRESS_DROPS, ADDRESS_REJECTS, DEVICE_BARE, DEVICE_INSIDE, DEVICE_PORT, DeviceValue,
};
pub use filter::{FILTER_WORDS, FilterPair, filter_bit};
pub use flow::{
    AffinityKey, AffinityValue, CLIENT_ADDRESS, CLIENT_NETNS, CT_CLOSED, CT_COUNTED, CT_CUT, CT_DIRECT, CT_INSIDE,
    CT_OWN, CT_REPLY, CtKey, CtValue, FragmentKey, FragmentValue, SCTP_CLOSED_NS, SCTP_CLOSING_NS, SCTP_IDLE_NS,
    SCTP_NEW_NS, SIDE_FIN, SIDE_FIRST, SIDE_SEEN, TCP_CLOSED_NS, TCP_HALF_CLOSED_NS, TCP_IDLE_NS, TCP_NEW_NS,
    UDP_IDLE_NS, UDP_NEW_NS, WORK_WORDS,
};
pub use load::{LOAD_LANES, LoadKey, connections};
pub use node::{
    CidrKey, FAMILY_V4, FAMILY_V6, Facts, NODE_KEY, NodeValue, PrefixBytes, ROLE_ACTIVE, ROLE_DRAINING, ROLE_KEY,
    ROLE_STANDBY,
};
pub use pod::Pod;
pub use reason::{Errno, Reason, Verdict};
pub use service::{
    BackendValue, FRONTEND_ANSWERS_PING, FRONTEND_DENIES, FRONTEND_DROPS_OTHERS, FRONTEND_GUARDS_OUTSIDE,
    FRONTEND_KEEPS_SOURCE, FRONTEND_REJECTS_OTHERS, FRONTEND_SOURCES, FRONTEND_TRANSLATES_PODS, FrontendKey,
    FrontendValue, LOOKUP_HASH, LOOKUP_LEAST, LOOKUP_RANDOM, LOOKUP_ROUND_ROBIN, MEMBER_DRAINS, MEMBER_TAKES,
    MemberKey, SCOPE_ANY, SCOPE_INTERNAL, SLOTS_PER_CHUNK, SOURCES_DENIED, SetValue, SlotChunk, SourceKey, TARGET_DROP,
    TARGET_REJECT, TARGET_SET,
};
pub use sock::{
    BALANCE_ALL, BALANCE_HOST, BALANCE_OFF, LISTS_COUNTS, LISTS_SKIPS, SETTINGS_KEY, SOCK_CELLS, SockCell, SockFlow,
    SockKey, SockPeer, SockSettings,
};

/// Version of the layout, part of the pin path.
pub const LAYOUT: &str = "v1";

/// Initial value of every flow hash.
pub const FLOW_SEED: u32 = 0x6c62_0001;

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
