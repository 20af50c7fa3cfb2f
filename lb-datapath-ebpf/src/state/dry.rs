//! Lowering without a kernel.

use std::time::Duration;

use lb_core::{datapath::ApplyError, plan::Plan};
use lb_datapath_ebpf_abi as abi;

use crate::{
    Capacities,
    state::{
        lower,
        mirror::Mirror,
        ports::Ports,
        write::{Cause, Limits, Store, Write},
    },
};

/// Map writes that `plan` is lowered to, on empty maps of these capacities: what it costs before the kernel sees it.
/// Pure.
///
/// ```
/// use lb_core::plan::Plan;
/// use lb_datapath_ebpf::{Capacities, map_writes};
///
/// assert_eq!(map_writes(&Plan::default(), &Capacities::default())?, 0);
/// # Ok::<(), lb_core::datapath::ApplyError>(())
/// ```
///
/// # Errors
/// When the plan does not fit, as [`apply`](lb_core::datapath::Datapath::apply) says it.
pub fn map_writes(plan: &Plan, capacities: &Capacities) -> Result<usize, ApplyError> {
    let limits = Limits {
        frontends: capacities.frontends as usize,
        backends: capacities.backends as usize,
        sets: capacities.sets as usize,
        members: capacities.members as usize,
        sources: capacities.sources as usize,
        chunks: capacities.slots / abi::SLOTS_PER_CHUNK,
        ports: Ports::default(),
    };
    let mut count = Count::default();
    lower::apply(&mut Mirror::new(limits), &mut count, plan)?;
    Ok(count.writes)
}

/// Counts writes instead of carrying them out; time passes when it is waited for.
#[derive(Default)]
struct Count {
    writes: usize,
    now: Duration,
}

impl Store for Count {
    fn write(&mut self, writes: &[Write]) -> Vec<(usize, Cause)> {
        self.writes += writes.len();
        Vec::new()
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn wait_until(&mut self, at: Duration) {
        self.now = self.now.max(at);
    }
}
