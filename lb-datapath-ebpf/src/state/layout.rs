//! The type, sizes and capacity of each map.

use std::path::Path;

use aya_obj::generated::{
    BPF_F_MMAPABLE, BPF_F_NO_PREALLOC,
    bpf_map_type::{
        self, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE, BPF_MAP_TYPE_LRU_HASH,
        BPF_MAP_TYPE_PERCPU_ARRAY,
    },
};
use lb_datapath_ebpf_abi as abi;

use crate::{
    config::Capacities,
    error::EbpfError,
    sys::{MapInfo, Shape},
};

/// The type, sizes and capacity of a map.
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    kind: bpf_map_type,
    key: usize,
    value: usize,
    flags: u32,
    /// Number of elements that the programs ask for, where it is not a capacity.
    entries: u32,
    /// Number of elements; `None`: as the programs say.
    pub(crate) capacity: fn(&Capacities) -> Option<u32>,
}

/// A hash map that takes memory for the elements that it has.
const fn hash(name: &'static str, key: usize, value: usize, capacity: fn(&Capacities) -> Option<u32>) -> Layout {
    Layout { name, kind: BPF_MAP_TYPE_HASH, key, value, flags: BPF_F_NO_PREALLOC, entries: 1, capacity }
}

const fn lru(name: &'static str, key: usize, value: usize, capacity: fn(&Capacities) -> Option<u32>) -> Layout {
    Layout { name, kind: BPF_MAP_TYPE_LRU_HASH, key, value, flags: 0, entries: 0, capacity }
}

impl Layout {
    const fn with_entries(self, entries: u32) -> Self {
        Self { entries, ..self }
    }
}

const fn per_cpu(name: &'static str, value: usize, entries: u32) -> Layout {
    Layout { name, kind: BPF_MAP_TYPE_PERCPU_ARRAY, key: 4, value, flags: 0, entries, capacity: |_| None }
}

/// Every map of the object.
pub(crate) const LAYOUTS: [Layout; 26] = [
    hash("FRONTENDS", size_of::<abi::FrontendKey>(), size_of::<abi::FrontendValue>(), |c| Some(c.frontends)),
    hash("BACKENDS", 4, size_of::<abi::BackendValue>(), |c| Some(c.backends)),
    hash("SETS", 4, size_of::<abi::SetValue>(), |c| Some(c.sets)),
    hash("MEMBERS", size_of::<abi::MemberKey>(), 1, |c| Some(c.members)),
    hash("TURNS", 4, 8, |c| Some(c.sets)),
    hash(LOADS, size_of::<abi::LoadKey>(), 8, |c| Some(c.backends)),
    hash(SOCK_COUNTS, 8, 4, |c| Some(c.sockets)),
    hash("NODE", 4, size_of::<abi::NodeValue>(), |_| None),
    lru("AFFINITY", size_of::<abi::AffinityKey>(), size_of::<abi::AffinityValue>(), |c| Some(c.affinity)),
    lru("SOCK_PEERS", size_of::<abi::SockKey>(), size_of::<abi::SockPeer>(), |c| Some(c.sockets)),
    lru("SOCK_FLOWS", size_of::<abi::SockKey>(), size_of::<abi::SockFlow>(), |c| Some(c.sockets)),
    lru(FRAGMENTS, size_of::<abi::FragmentKey>(), size_of::<abi::FragmentValue>(), |c| Some(c.fragments)),
    Layout {
        name: SOCK_CELLS,
        kind: BPF_MAP_TYPE_ARRAY,
        key: 4,
        value: size_of::<abi::SockCell>(),
        flags: BPF_F_MMAPABLE,
        entries: abi::SOCK_CELLS,
        capacity: |_| None,
    },
    Layout {
        name: SOCK_SETTINGS,
        kind: BPF_MAP_TYPE_ARRAY,
        key: 4,
        value: size_of::<abi::SockSettings>(),
        flags: 0,
        entries: 1,
        capacity: |_| None,
    },
    Layout {
        name: SOCK_SKIPS,
        kind: BPF_MAP_TYPE_HASH,
        key: 8,
        value: 1,
        flags: BPF_F_NO_PREALLOC,
        entries: 4096,
        capacity: |_| None,
    },
    lru("CT", size_of::<abi::CtKey>(), size_of::<abi::CtValue>(), |c| Some(c.flows)),
    hash(CT_LIVE, size_of::<abi::CtKey>(), size_of::<abi::CtValue>(), |c| Some(c.flows)),
    Layout {
        name: "SLOTS",
        kind: BPF_MAP_TYPE_ARRAY,
        key: 4,
        value: size_of::<abi::SlotChunk>(),
        flags: BPF_F_MMAPABLE,
        entries: 0,
        capacity: |c| Some(c.slots.div_ceil(abi::SLOTS_PER_CHUNK)),
    },
    Layout {
        name: FILTER,
        kind: BPF_MAP_TYPE_ARRAY,
        key: 4,
        value: size_of::<abi::FilterPair>(),
        flags: BPF_F_MMAPABLE,
        entries: abi::FILTER_WORDS / 2,
        capacity: |_| None,
    },
    hash("ADDRESSES", size_of::<abi::Addr>(), 1, |c| Some(c.frontends)),
    Layout {
        name: "SOURCES",
        kind: BPF_MAP_TYPE_LPM_TRIE,
        key: size_of::<abi::SourceKey>(),
        value: 1,
        flags: BPF_F_NO_PREALLOC,
        entries: 0,
        capacity: |c| Some(c.sources),
    },
    hash("DEVICES", 4, size_of::<abi::DeviceValue>(), |_| None).with_entries(4096),
    Layout { name: "ROLE", kind: BPF_MAP_TYPE_ARRAY, key: 4, value: 4, flags: 0, entries: 1, capacity: |_| None },
    Layout {
        name: "CIDRS",
        kind: BPF_MAP_TYPE_LPM_TRIE,
        key: size_of::<abi::CidrKey>(),
        value: 1,
        flags: BPF_F_NO_PREALLOC,
        entries: 64,
        capacity: |_| None,
    },
    per_cpu(REASONS, 8, abi::Reason::ENTRIES),
    per_cpu(WORK, 8 * abi::WORK_WORDS, 1),
];

/// Connections of backends.
pub(crate) const LOADS: &str = "LOADS";
/// Sockets that count as connections.
pub(crate) const SOCK_COUNTS: &str = "SOCK_COUNTS";
/// Flows that are established.
pub(crate) const CT_LIVE: &str = "CT_LIVE";
/// Bits of addresses.
pub(crate) const FILTER: &str = "FILTER";
/// Ports of datagrams that come in fragments.
pub(crate) const FRAGMENTS: &str = "FRAGMENTS";
/// Room of each processor for what its program is at.
pub(crate) const WORK: &str = "WORK";
/// What TCP sockets were sent to, in elements of their own.
pub(crate) const SOCK_CELLS: &str = "SOCK_CELLS";
/// What the programs of sockets are told besides services.
pub(crate) const SOCK_SETTINGS: &str = "SOCK_SETTINGS";
/// Network namespaces whose sockets are left alone.
pub(crate) const SOCK_SKIPS: &str = "SOCK_SKIPS";
/// Counters of the programs, by reason.
pub(crate) const REASONS: &str = "REASONS";

impl Layout {
    /// Whether the services need what the map holds, and it cannot be had from other maps. One that they do not need
    /// may be missing in the pins of an earlier version, and is made beside the others.
    pub(crate) fn is_needed(&self) -> bool {
        let derived = [
            REASONS,
            FILTER,
            CT_LIVE,
            FRAGMENTS,
            WORK,
            "ADDRESSES",
            "SOURCES",
            "DEVICES",
            SOCK_CELLS,
            SOCK_SETTINGS,
            SOCK_SKIPS,
            LOADS,
            SOCK_COUNTS,
        ];
        !derived.contains(&self.name)
    }

    /// Whether its number of elements is a capacity.
    pub(crate) fn is_sized(&self) -> bool {
        (self.capacity)(&Capacities::default()).is_some()
    }

    /// Whether it makes room by dropping what was used least recently.
    pub(crate) fn evicts(&self) -> bool {
        self.kind as u32 == BPF_MAP_TYPE_LRU_HASH as u32
    }

    /// What people count, in an element of the map: `SLOTS` has several slots in each.
    pub(crate) fn elements_per_entry(&self) -> u64 {
        if self.name == "SLOTS" { u64::from(abi::SLOTS_PER_CHUNK) } else { 1 }
    }

    /// Whether a map that was found pinned can be used.
    pub(crate) fn check(&self, path: &Path, found: &MapInfo) -> Result<(), EbpfError> {
        let sized = self.is_sized();
        let expected = Shape {
            kind: self.kind as u32,
            key_size: self.key as u32,
            value_size: self.value as u32,
            max_entries: if sized { found.shape.max_entries } else { self.entries },
            flags: self.flags,
        };
        if found.name != self.name {
            let what = format!("it is a map called {}, expected {}", found.name.escape_debug(), self.name);
            return Err(EbpfError::Foreign { path: path.into(), what });
        }
        if found.shape == expected {
            return Ok(());
        }
        Err(EbpfError::ForeignMap { path: path.into(), expected, found: found.shape })
    }
}
