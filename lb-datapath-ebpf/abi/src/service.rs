//! Entries that user space writes: frontends, sets, backends.

use crate::{Addr, Pod, Port};

/// Slots in one element of `SLOTS`. A set takes whole, consecutive elements.
pub const SLOTS_PER_CHUNK: u32 = 4;

/// One element of `SLOTS`: backend ids.
pub type SlotChunk = [u32; SLOTS_PER_CHUNK as usize];

/// [`FrontendValue::target`]: a backend of the set.
pub const TARGET_SET: u8 = 0;
/// [`FrontendValue::target`]: refused at once.
pub const TARGET_REJECT: u8 = 1;
/// [`FrontendValue::target`]: dropped silently.
pub const TARGET_DROP: u8 = 2;

/// [`FrontendValue::lookup`]: a slot at random.
pub const LOOKUP_RANDOM: u8 = 0;
/// [`FrontendValue::lookup`]: the next slot in turn.
pub const LOOKUP_ROUND_ROBIN: u8 = 1;
/// [`FrontendValue::lookup`]: the slot of the flow's hash.
pub const LOOKUP_HASH: u8 = 2;
/// [`FrontendValue::lookup`]: of two slots of the flow's hash, the one whose backend has fewer connections by `LOADS`.
pub const LOOKUP_LEAST: u8 = 3;

/// [`FrontendKey::scope`]: traffic from anywhere; from outside only, if there is a twin of [`SCOPE_INTERNAL`].
pub const SCOPE_ANY: u8 = 0;
/// [`FrontendKey::scope`]: traffic from this node's sockets and pods, which looks here first.
pub const SCOPE_INTERNAL: u8 = 1;

/// [`FrontendValue::flags`]: only some sources may use the frontend: those in `SOURCES`.
pub const FRONTEND_SOURCES: u8 = 1;
/// [`FrontendValue::flags`]: with [`FRONTEND_SOURCES`], those in `SOURCES` may not use it, and all others may.
pub const FRONTEND_DENIES: u8 = 2;
/// [`FrontendValue::flags`]: the source of traffic from outside stays as it is, since every backend is on this node.
pub const FRONTEND_KEEPS_SOURCE: u8 = 4;
/// [`FrontendValue::flags`]: with [`FRONTEND_SOURCES`], traffic of pods, on this node and others, is not checked.
pub const FRONTEND_GUARDS_OUTSIDE: u8 = 8;
/// [`FrontendValue::flags`]: packets to other ports of the address are refused. Programs do not read it: see `ADDRESSES`.
pub const FRONTEND_REJECTS_OTHERS: u8 = 16;
/// [`FrontendValue::flags`]: packets to other ports of the address are dropped. Programs do not read it: see `ADDRESSES`.
pub const FRONTEND_DROPS_OTHERS: u8 = 32;
/// [`FrontendValue::flags`]: the node answers ICMP echo requests to the address. Programs do not read it: see
/// `ADDRESSES`.
pub const FRONTEND_ANSWERS_PING: u8 = 64;
/// [`FrontendValue::flags`]: the source of a pod is translated, too, if its packets come in from outside: it is a pod of
/// another node, which its backend would answer past this one.
pub const FRONTEND_TRANSLATES_PODS: u8 = 128;

/// Key of `FRONTENDS`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// Virtual address.
    pub addr: Addr,
    /// Port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// `SCOPE_…`.
    pub scope: u8,
    /// Zero.
    pub pad: u32,
}

/// Value of `FRONTENDS`: everything that a new flow needs except the slot's content, so that one write moves a
/// frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendValue {
    /// Key of its affinity records.
    pub id: u32,
    /// The set that it points to; 0 if `target` is no set.
    pub set: u32,
    /// First element of `SLOTS` that belongs to the set.
    pub first: u32,
    /// Number of slots of the set.
    pub slots: u32,
    /// Time-out of affinity records, in nanoseconds.
    pub affinity_ns: u64,
    /// 1 if clients stick to their backend.
    pub affinity: u8,
    /// Bits of an IPv4 source that make a client.
    pub prefix_v4: u8,
    /// Bits of an IPv6 source that make a client.
    pub prefix_v6: u8,
    /// `LOOKUP_…`.
    pub lookup: u8,
    /// `TARGET_…`.
    pub target: u8,
    /// `FRONTEND_…`.
    pub flags: u8,
    /// 1 if sockets are left to their packets, but for those of the node to addresses of the node.
    pub leaves_sockets: u8,
    /// Zero.
    pub pad: u8,
}

/// Value of `BACKENDS`, whose key is the backend's id.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendValue {
    /// Where it listens.
    pub addr: Addr,
    /// Port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// 1 if it runs on this node.
    pub local: u8,
    /// 1 if its address is one of the node itself, so that the node receives its packets and answers them.
    pub host: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Value of `SETS`, whose key is the set's id: which part of `SLOTS` the set owns. Programs do not read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetValue {
    /// First element of `SLOTS`.
    pub first: u32,
    /// Number of slots.
    pub slots: u32,
    /// `LOOKUP_…`.
    pub lookup: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// [`SourceKey::frontend`]: sources that may not use the frontend, and not those that alone may use it. A frontend that
/// changes from one to the other has both kinds for a moment, and its flags say which of them count.
pub const SOURCES_DENIED: u32 = 1 << 31;

/// Key of `SOURCES`, a longest-prefix-match trie: a prefix of sources of one frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    /// Bits of the rest that count: 32 more than of `addr`, where an IPv4 prefix has 96 more than it is written with.
    pub bits: u32,
    /// The frontend's id, with [`SOURCES_DENIED`] if its prefixes are those that may not use it.
    pub frontend: u32,
    /// Address.
    pub addr: Addr,
}

/// Value of `MEMBERS`: the backend is in a slot of the set, so that it takes new flows.
pub const MEMBER_TAKES: u8 = 1;
/// Value of `MEMBERS`: the backend is draining, so that it only keeps the UDP flows that it has.
pub const MEMBER_DRAINS: u8 = 2;

/// Key of `MEMBERS`: this backend is in this set. Kept for sets of UDP backends and for those that a frontend with
/// affinity points to. The value is one of `MEMBER_…`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberKey {
    /// The set.
    pub set: u32,
    /// The backend.
    pub backend: u32,
}

const _: () = assert!(size_of::<FrontendKey>() == 24);
const _: () = assert!(size_of::<FrontendValue>() == 32);
const _: () = assert!(size_of::<BackendValue>() == 24);
const _: () = assert!(size_of::<SetValue>() == 12);
const _: () = assert!(size_of::<MemberKey>() == 8);
const _: () = assert!(size_of::<SlotChunk>() == 16);
const _: () = assert!(size_of::<SourceKey>() == 24);

// SAFETY: integers and arrays of them, the sum of whose sizes is the asserted size.
unsafe impl Pod for FrontendKey {}
// SAFETY: as above.
unsafe impl Pod for FrontendValue {}
// SAFETY: as above.
unsafe impl Pod for BackendValue {}
// SAFETY: as above.
unsafe impl Pod for SetValue {}
// SAFETY: as above.
unsafe impl Pod for MemberKey {}
// SAFETY: as above.
unsafe impl Pod for SourceKey {}
