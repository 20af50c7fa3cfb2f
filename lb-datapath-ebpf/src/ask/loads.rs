//! Connections of the backends that least connections choose from.

use std::collections::BTreeSet;

use lb_core::addr::BackendAddr;
use lb_datapath_ebpf_abi as abi;

use crate::{
    error::EbpfError,
    state::{
        convert,
        maps::{Maps, Table},
    },
};

/// The counters of the backends in a frontend's slots, if they matter.
#[derive(Debug, Default)]
pub(super) struct Loads {
    backends: Vec<(BackendAddr, u64)>,
    /// What `LOADS` has of them.
    pub(super) counters: Vec<(abi::LoadKey, u64)>,
}

impl Loads {
    pub(super) fn of(maps: &Maps, frontend: &abi::FrontendValue) -> Result<Self, EbpfError> {
        let mut loads = Self::default();
        if frontend.target != abi::TARGET_SET || frontend.lookup != abi::LOOKUP_LEAST {
            return Ok(loads);
        }
        for id in maps.slots(frontend.first, frontend.slots).into_iter().collect::<BTreeSet<_>>() {
            let value = maps.one::<abi::BackendValue>(Table::Backends, &id)?;
            let Some(backend) = value.and_then(|value| convert::backend(&value).ok()) else { continue };
            let counters = maps.loads_of(id)?;
            let sum = counters.iter().fold(0_u64, |sum, (_, count)| sum.wrapping_add(*count));
            loads.backends.push((backend.addr, abi::connections(sum)));
            loads.counters.extend(counters);
        }
        Ok(loads)
    }

    /// What people are told. Of many backends, those with the fewest connections.
    pub(super) fn step(&self) -> Option<String> {
        const MOST: usize = 16;
        let mut backends = self.backends.clone();
        backends.sort_unstable_by_key(|(addr, connections)| (*connections, *addr));
        let shown = backends.iter().take(MOST);
        let mut shown: Vec<_> = shown.map(|(addr, connections)| format!("{addr} has {connections}")).collect();
        shown.extend(backends.len().checked_sub(MOST + 1).map(|more| format!("{} have as many or more", more + 1)));
        (!shown.is_empty()).then(|| format!("LOADS: connections through this node: {}", shown.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use lb_core::addr::Protocol;

    use super::*;

    #[test]
    fn those_with_the_fewest_connections_are_shown() {
        let backend = |n: u8| (BackendAddr::new([10, 0, 0, n].into(), 80, Protocol::Tcp), u64::from(20 - n));
        let step = |count| Loads { backends: (1..=count).map(backend).collect(), counters: Vec::new() }.step();
        assert_eq!(step(0), None);
        let two = "LOADS: connections through this node: 10.0.0.2:80/tcp has 18, 10.0.0.1:80/tcp has 19";
        assert_eq!(step(2).as_deref(), Some(two));
        let many = step(18).unwrap();
        assert!(many.contains("10.0.0.3:80/tcp has 17, 2 have as many or more"), "{many}");
        assert!(!many.contains("10.0.0.2:80"), "{many}");
        assert!(!step(16).unwrap().contains("more"));
    }
}
