//! The maps. User space creates them, with sizes of its choice, and pins them under these names.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::btf_map,
};
use lb_datapath_ebpf_abi::{
    Addr, AffinityKey, AffinityValue, BackendValue, FILTER_WORDS, FilterPair, FrontendKey, FrontendValue, LOAD_LANES,
    LoadKey, MEMBER_TAKES, MemberKey, ROLE_ACTIVE, ROLE_KEY, Reason, SetValue, SlotChunk, connections, filter_bit,
};
use lb_datapath_ebpf_programs::maps::{Change, Maps};

use super::{Kernel, skb::is_node};

/// Memory comes with the elements: user space decides how many there are.
pub(super) const LAZY: usize = BPF_F_NO_PREALLOC as usize;

/// Frontends. One write moves a frontend.
#[btf_map]
static FRONTENDS: HashMap<FrontendKey, FrontendValue, 65536, LAZY> = HashMap::new();

/// Backends by id.
#[btf_map]
static BACKENDS: HashMap<u32, BackendValue, 262144, LAZY> = HashMap::new();

/// The slots of all sets. User space allocates in it, and writes it through a memory mapping.
#[btf_map]
static SLOTS: Array<SlotChunk, 524288, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Which part of `SLOTS` a set has, by set id: for user space alone.
#[btf_map]
static SETS: HashMap<u32, SetValue, 65536, LAZY> = HashMap::new();

/// Which backend is in which set, and whether it takes new flows.
#[btf_map]
static MEMBERS: HashMap<MemberKey, u8, 262144, LAZY> = HashMap::new();

/// Flows counted by sets that take turns, by set id.
#[btf_map]
static TURNS: HashMap<u32, u64, 65536, LAZY> = HashMap::new();

/// Connections of backends that least connections choose from. Programs make the entries, and user space removes those
/// of backends that have none.
#[btf_map]
static LOADS: HashMap<LoadKey, u64, 262144, LAZY> = HashMap::new();

/// The backend that a client uses.
#[btf_map]
static AFFINITY: LruHashMap<AffinityKey, AffinityValue, 65536> = LruHashMap::new();

/// The role of the datapath.
#[btf_map]
static ROLE: Array<u32, 1> = Array::new();

/// Packets and calls that were stopped, by reason. Each processor counts for itself: programs on several of them would
/// otherwise fight for one cache line.
#[btf_map]
static REASONS: PerCpuArray<u64, { Reason::ENTRIES as usize }> = PerCpuArray::new();

/// One bit for each address that a frontend or a backend has. User space writes it through a memory mapping.
#[btf_map]
static FILTER: Array<FilterPair, { FILTER_WORDS as usize / 2 }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Addresses that have frontends.
#[btf_map]
static ADDRESSES: HashMap<Addr, u8, 65536, LAZY> = HashMap::new();

/// Who may use a frontend with source ranges, or who may not.
#[btf_map]
static SOURCES: LpmTrie<SourceData, u8, 65536> = LpmTrie::new();

/// What the kernel compares of a [`SourceKey`], after the number of bits.
#[repr(C)]
#[derive(Clone, Copy)]
struct SourceData {
    frontend: u32,
    addr: Addr,
}

impl Maps for Kernel {
    #[inline(always)]
    fn role(self) -> u32 {
        ROLE.get(ROLE_KEY).copied().unwrap_or(ROLE_ACTIVE)
    }

    #[inline(always)]
    fn frontend(self, key: &FrontendKey) -> Option<FrontendValue> {
        // SAFETY: the value is copied out at once; an element that user space replaces meanwhile is another one.
        unsafe { FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn knows(self, addr: Addr) -> bool {
        let (word, bit) = filter_bit(addr);
        FILTER.get(word >> 1).is_some_and(|[even, odd]| (if word & 1 == 0 { even } else { odd }) & bit != 0)
    }

    #[inline(always)]
    fn address(self, addr: Addr) -> Option<u8> {
        // SAFETY: copied out at once; user space replaces the element as a whole.
        unsafe { ADDRESSES.get(addr) }.copied()
    }

    #[inline(always)]
    fn has_source(self, frontend: u32, source: Addr) -> bool {
        const BITS: u32 = 8 * size_of::<SourceData>() as u32;
        SOURCES.get(&Key::new(BITS, SourceData { frontend, addr: source })).is_some()
    }

    #[inline(always)]
    fn backend(self, id: u32) -> Option<BackendValue> {
        // SAFETY: copied out at once, as above.
        unsafe { BACKENDS.get(id) }.copied()
    }

    #[inline(always)]
    fn slots(self, index: u32) -> Option<SlotChunk> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn takes_flows(self, set: u32, backend: u32) -> bool {
        // SAFETY: copied out at once, as above.
        unsafe { MEMBERS.get(MemberKey { set, backend }) }.copied() == Some(MEMBER_TAKES)
    }

    #[inline(always)]
    fn keeps_flows(self, set: u32, backend: u32) -> bool {
        MEMBERS.get_ptr(MemberKey { set, backend }).is_some()
    }

    #[inline(always)]
    fn next_turn(self, set: u32) -> Option<u64> {
        let counter = TURNS.get_ptr_mut(set)?;
        // SAFETY: the pointer is to a live, aligned element, and every program touches it through atomics only.
        Some(unsafe { fetch_add(counter) })
    }

    #[inline(always)]
    fn load(self, backend: u32) -> u64 {
        load(backend)
    }

    #[inline(always)]
    fn change_load(self, backend: u32, change: Change) {
        match change {
            Change::Begins => change_load(backend, 1),
            Change::Ends => change_load(backend, u64::MAX),
        }
    }

    #[inline(always)]
    fn affinity(self, key: &AffinityKey) -> Option<AffinityValue> {
        // SAFETY: copied out at once; whoever asked checks what a record of two halves could say.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(self, key: &AffinityKey, record: &AffinityValue) {
        let _ = AFFINITY.insert(key, record, 0);
    }

    #[inline(always)]
    fn is_node(self, addr: Addr) -> bool {
        is_node(&addr)
    }

    #[inline(always)]
    fn count(self, reason: Reason) {
        count(reason.key());
    }

    #[inline(always)]
    fn now(self) -> u64 {
        // SAFETY: the helper takes no arguments and is allowed in every program type.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn random(self) -> u32 {
        // SAFETY: as above.
        unsafe { bpf_get_prandom_u32() }
    }
}

/// A function of its own: it is called from many places, none of which a packet that is forwarded comes by.
#[inline(never)]
fn count(key: u32) {
    if let Some(counter) = REASONS.get_ptr_mut(key) {
        // SAFETY: a live element of this processor, which no other program on it interrupts in the middle of the
        // addition; at worst a count is lost to a program that does.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// The sum of the counters of a backend.
#[inline(never)]
fn load(backend: u32) -> u64 {
    let mut sum = 0_u64;
    for lane in 0..LOAD_LANES {
        // SAFETY: copied out at once; a counter is written as a whole.
        if let Some(counter) = unsafe { LOADS.get(LoadKey { backend, lane }) } {
            sum = sum.wrapping_add(*counter);
        }
    }
    connections(sum)
}

/// Adds to this processor's counter of a backend, which is made if it is not there.
#[inline(never)]
fn change_load(backend: u32, by: u64) {
    // SAFETY: the helper takes no arguments and is allowed in every program type.
    let lane = unsafe { bpf_get_smp_processor_id() } & (LOAD_LANES - 1);
    let key = LoadKey { backend, lane };
    if LOADS.get_ptr_mut(key).is_none() {
        let _ = LOADS.insert(key, 0, BPF_NOEXIST as u64);
    }
    if let Some(counter) = LOADS.get_ptr_mut(key) {
        // SAFETY: the pointer is to a live, aligned element, and every program writes it through atomics only.
        unsafe { add(counter, by) };
    }
}

/// Adds to a counter that other processors may write as well.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn add(counter: *mut u64, by: u64) {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!("lock *(u64 *)({counter} + 0) += {by}", counter = in(reg) counter, by = in(reg) by);
    }
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn add(counter: *mut u64, by: u64) {
    // SAFETY: the caller's.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(counter) }.fetch_add(by, core::sync::atomic::Ordering::SeqCst);
}

/// Counts up and returns what it was.
///
/// The instruction set that the programs are compiled for has no addition that returns what was there. User space
/// makes it one that does before it loads the programs, if the kernel knows such an instruction, and finds it by the
/// move of a register to itself.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn fetch_add(counter: *mut u64) -> u64 {
    let mut value = 1_u64;
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!(
            "{value} = {value}",
            "lock *(u64 *)({counter} + 0) += {value}",
            counter = in(reg) counter,
            value = inout(reg) value,
        );
    }
    value
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn fetch_add(counter: *mut u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(counter) }.fetch_add(1, core::sync::atomic::Ordering::SeqCst)
}
