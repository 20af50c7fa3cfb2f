//! The maps. User space creates them, with sizes of its choice, and pins them under these names.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap},
    macros::btf_map,
};
use lb_datapath_ebpf_abi::{
    Addr, AffinityKey, AffinityValue, BackendValue, CtKey, CtValue, FrontendKey, FrontendValue, MemberKey, NodeValue,
    SetValue, SlotChunk, SockFlow, SockKey, SockPeer,
};

const LAZY: usize = BPF_F_NO_PREALLOC as usize;

/// Frontends. One write moves a frontend.
#[btf_map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, FrontendValue, 65536, LAZY> = HashMap::new();

/// Backends by id.
#[btf_map]
pub(crate) static BACKENDS: HashMap<u32, BackendValue, 262144, LAZY> = HashMap::new();

/// The slots of all sets. User space allocates in it, and writes it through a memory mapping.
#[btf_map]
pub(crate) static SLOTS: Array<SlotChunk, 524288, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Which part of `SLOTS` a set has, by set id: for user space alone.
#[btf_map]
pub(crate) static SETS: HashMap<u32, SetValue, 65536, LAZY> = HashMap::new();

/// Which backend is in which set.
#[btf_map]
pub(crate) static MEMBERS: HashMap<MemberKey, u8, 262144, LAZY> = HashMap::new();

/// Flows counted by sets that take turns, by set id.
#[btf_map]
pub(crate) static TURNS: HashMap<u32, u64, 65536, LAZY> = HashMap::new();

/// Which backend a client was given.
#[btf_map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityValue, 65536> = LruHashMap::new();

/// The virtual address behind a socket's peer.
#[btf_map]
pub(crate) static SOCK_PEERS: LruHashMap<SockKey, SockPeer, 65536> = LruHashMap::new();

/// The backend of an unconnected UDP socket.
#[btf_map]
pub(crate) static SOCK_FLOWS: LruHashMap<SockKey, SockFlow, 65536> = LruHashMap::new();

/// Flows of packets, two entries each.
#[btf_map]
pub(crate) static CT: LruHashMap<CtKey, CtValue, 131072> = LruHashMap::new();

/// The node.
#[btf_map]
pub(crate) static NODE: HashMap<u32, NodeValue, 1, LAZY> = HashMap::new();

/// Prefixes of the pods.
#[btf_map]
pub(crate) static CIDRS: LpmTrie<Addr, u8, 64> = LpmTrie::new();

/// The part that the datapath plays.
#[btf_map]
pub(crate) static ROLE: Array<u32, 1> = Array::new();
