//! From a frontend to a backend.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use lb_datapath_ebpf_abi::{
    Addr, AffinityKey, AffinityValue, FrontendKey, FrontendValue, LOOKUP_HASH, LOOKUP_ROUND_ROBIN, MemberKey, Port,
    ROLE_ACTIVE, ROLE_KEY, TARGET_DROP, TARGET_SET,
};
use lb_flow_hash::slot;

use crate::maps::{AFFINITY, BACKENDS, FRONTENDS, MEMBERS, ROLE, SLOTS, TURNS};

/// Where a new flow goes.
pub(crate) enum Answer {
    /// The address is no frontend.
    NotAFrontend,
    /// Refused at once.
    Reject,
    /// Dropped silently.
    Drop,
    /// To this backend.
    Backend(Chosen),
}

/// The backend of a new flow.
pub(crate) struct Chosen {
    /// Its id.
    pub(crate) id: u32,
    /// The set that it comes from.
    pub(crate) set: u32,
    /// Where it listens.
    pub(crate) addr: Addr,
    /// Its port.
    pub(crate) port: Port,
}

/// What a choice needs to know of a flow.
pub(crate) trait Flow {
    /// Key of the client's affinity record at `frontend`.
    fn client(&self, frontend: &FrontendValue) -> AffinityKey;
    /// The hash by which a slot is picked: of the flow, under affinity of the client.
    fn hash(&self, frontend: &FrontendValue) -> u32;
}

/// The part that the datapath plays now.
#[inline(always)]
pub(crate) fn role() -> u32 {
    ROLE.get(ROLE_KEY).copied().unwrap_or(ROLE_ACTIVE)
}

/// Now, on the monotonic clock.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper takes no arguments and is allowed in every program type.
    unsafe { bpf_ktime_get_ns() }
}

/// 32 random bits.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: as above.
    unsafe { bpf_get_prandom_u32() }
}

/// A copy of the frontend at `key`.
#[inline(always)]
pub(crate) fn frontend(key: &FrontendKey) -> Option<FrontendValue> {
    // SAFETY: the value is copied out at once; an element that user space replaces meanwhile is another one.
    unsafe { FRONTENDS.get(key) }.copied()
}

/// Whether `backend` is in `set`. Known for sets of UDP backends and those under affinity.
#[inline(always)]
pub(crate) fn is_member(set: u32, backend: u32) -> bool {
    MEMBERS.get_ptr(MemberKey { set, backend }).is_some()
}

/// Chooses a backend for a new flow to the frontend at `key`.
///
/// A reader that finds its backend gone reads the frontend again: user space removes a backend only after the write that
/// moved every frontend away from it.
#[inline(always)]
pub(crate) fn choose(key: &FrontendKey, flow: &impl Flow) -> Answer {
    for _ in 0..2 {
        let Some(frontend) = frontend(key) else { return Answer::NotAFrontend };
        match frontend.target {
            TARGET_SET => {}
            TARGET_DROP => return Answer::Drop,
            _ => return Answer::Reject,
        }
        let Some(id) = backend_of(&frontend, flow) else { continue };
        // SAFETY: copied out at once, as above.
        if let Some(backend) = unsafe { BACKENDS.get(id) } {
            return Answer::Backend(Chosen { id, set: frontend.set, addr: backend.addr, port: backend.port });
        }
    }
    Answer::Reject
}

#[inline(always)]
fn backend_of(frontend: &FrontendValue, flow: &impl Flow) -> Option<u32> {
    if frontend.affinity == 0 {
        return pick(frontend, flow);
    }
    let (client, now) = (flow.client(frontend), now());
    let backend = match remembered(frontend, &client, now) {
        Some(backend) => backend,
        None => pick(frontend, flow)?,
    };
    let record = AffinityValue { last_ns: now, backend, pad: 0 };
    // A full table evicts its oldest record: the client may then get another backend, which is all that can be done.
    let _ = AFFINITY.insert(client, record, 0);
    Some(backend)
}

#[inline(always)]
fn remembered(frontend: &FrontendValue, client: &AffinityKey, now: u64) -> Option<u32> {
    // SAFETY: copied out at once; a torn record fails the check of membership or names a member.
    let record = unsafe { AFFINITY.get(client) }.copied()?;
    let holds = now.saturating_sub(record.last_ns) < frontend.affinity_ns;
    (holds && is_member(frontend.set, record.backend)).then_some(record.backend)
}

#[inline(always)]
fn pick(frontend: &FrontendValue, flow: &impl Flow) -> Option<u32> {
    let index = match frontend.lookup {
        LOOKUP_HASH => slot(flow.hash(frontend), frontend.slots),
        LOOKUP_ROUND_ROBIN => turn(frontend)?,
        _ => slot(random(), frontend.slots),
    };
    let chunk = SLOTS.get(frontend.first.wrapping_add(index >> 2))?;
    let [a, b, c, d] = *chunk;
    Some(match index & 3 {
        0 => a,
        1 => b,
        2 => c,
        _ => d,
    })
}

#[inline(always)]
fn turn(frontend: &FrontendValue) -> Option<u32> {
    let counter = TURNS.get_ptr_mut(frontend.set)?;
    // SAFETY: the pointer is to a live, aligned element, and every program touches it through atomics only.
    let count = unsafe { fetch_add(counter) };
    Some(count.checked_rem(frontend.slots as u64)? as u32)
}

/// Counts up and returns what it was. The library of this target hides read-modify-write operations, though the
/// instruction set has had them since version 3.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn fetch_add(counter: *mut u64) -> u64 {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: the caller's.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter, 1) }
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn fetch_add(counter: *mut u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(counter) }.fetch_add(1, core::sync::atomic::Ordering::SeqCst)
}
