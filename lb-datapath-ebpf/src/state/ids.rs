//! Ids that flows have, and records of clients: nobody else may get them.

use std::io;

use lb_core::id::{BackendId, FrontendId, HeldIds, SetId};
use lb_datapath_ebpf_abi::{self as abi, Pod};

use crate::{
    error::EbpfError,
    state::{layout::SOCK_COUNTS, maps::Maps},
    sys::RawMap,
};

/// The ids in all entries that programs write, those that are over included: a program looks at the time-out of the
/// frontend that it has at hand, which may be another one by then.
///
/// A flow that is established or closed meanwhile moves from one table to the other, and is found in one of three looks.
pub(crate) fn held(maps: &Maps) -> Result<HeldIds, EbpfError> {
    let mut held = HeldIds::default();
    let [live, new] = maps.flows();
    for (name, table) in [new, live, new] {
        each(table, name, |_: abi::CtKey, value: abi::CtValue| flow(&mut held, value.backend, value.set))?;
    }
    each(maps.sock_flows(), "SOCK_FLOWS", |_: abi::SockKey, value: abi::SockFlow| {
        flow(&mut held, value.backend, value.set);
    })?;
    each(maps.sock_counts(), SOCK_COUNTS, |_: u64, backend: u32| held.backends.extend(BackendId::new(backend)))?;
    each(maps.affinity(), "AFFINITY", |key: abi::AffinityKey, value: abi::AffinityValue| {
        held.frontends.extend(FrontendId::new(key.frontend));
        held.backends.extend(BackendId::new(value.backend));
    })?;
    Ok(held)
}

/// A flow that is no frontend's has neither.
fn flow(held: &mut HeldIds, backend: u32, set: u32) {
    held.backends.extend(BackendId::new(backend));
    held.sets.extend(SetId::new(set));
}

fn each<K: Pod, V: Pod>(map: &RawMap, name: &'static str, mut look: impl FnMut(K, V)) -> Result<(), EbpfError> {
    let mut read = |key: &[u8], value: &[u8]| {
        if let Some((key, value)) = K::from_bytes(key).zip(V::from_bytes(value)) {
            look(key, value);
        }
        io::Result::Ok(())
    };
    map.each(&mut read).map_err(|source| EbpfError::Map { name, what: "reading", source })
}
