//! Changes in the status of frontends that have not been reported yet.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::{addr::FrontendAddr, reconciler::FrontendStatus};

/// Frontends whose status may have changed since it was last reported. There is at most one entry per frontend, however
/// much happens between two polls, and even if nobody ever polls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    told: BTreeMap<FrontendAddr, FrontendStatus>,
    unsaid: BTreeSet<FrontendAddr>,
}

impl Events {
    /// The status of these frontends may have changed; `is_known` says whether there is such a frontend at all.
    pub(crate) fn touch(
        &mut self,
        frontends: impl IntoIterator<Item = FrontendAddr>,
        is_known: impl Fn(&FrontendAddr) -> bool,
    ) {
        for addr in frontends {
            if is_known(&addr) || self.told.contains_key(&addr) {
                self.unsaid.insert(addr);
            } else {
                self.unsaid.remove(&addr);
            }
        }
    }

    /// The next frontend whose status differs from the one reported last, in order of address; the status of a frontend
    /// that is gone is `None`.
    pub(crate) fn poll(
        &mut self,
        status: impl Fn(&FrontendAddr) -> Option<FrontendStatus>,
    ) -> Option<(FrontendAddr, Option<FrontendStatus>)> {
        while let Some(addr) = self.unsaid.pop_first() {
            let status = status(&addr);
            if self.told.get(&addr) == status.as_ref() {
                continue;
            }
            match status.clone() {
                Some(status) => self.told.insert(addr, status),
                None => self.told.remove(&addr),
            };
            return Some((addr, status));
        }
        None
    }
}
