//! Verdicts on health and the services that they touch.

use alloc::collections::BTreeSet;
use core::net::IpAddr;

use super::Model;
use crate::{
    addr::BackendAddr,
    health::HealthReport,
    name::{ServiceName, SliceName, SourceName},
};

impl Model {
    pub(super) fn set_health(&mut self, report: HealthReport) -> BTreeSet<ServiceName> {
        let backend = report.backend;
        let changed = self.health.set(report);
        self.touched_by(changed.then_some(backend))
    }

    pub(super) fn restore_health(&mut self, report: HealthReport) -> BTreeSet<ServiceName> {
        let backend = report.backend;
        let changed = self.health.restore(report);
        self.touched_by(changed.then_some(backend))
    }

    pub(super) fn forget_health(&mut self, source: &SourceName) -> BTreeSet<ServiceName> {
        let changed = self.health.forget(source);
        self.touched_by(changed)
    }

    /// The first listing of `source` is over: what it said in an earlier run and did not repeat is void.
    pub(super) fn confirm_health(&mut self, source: &SourceName) -> BTreeSet<ServiceName> {
        let changed = self.health.confirm(source);
        self.touched_by(changed)
    }

    /// Services that have an endpoint at the address of one of `backends`.
    fn touched_by(&mut self, backends: impl IntoIterator<Item = BackendAddr>) -> BTreeSet<ServiceName> {
        let mut touched = BTreeSet::new();
        for backend in backends {
            let first = (backend.ip, SliceName::new("", ""));
            let at = self.slices_at().range(first..).take_while(|(ip, _)| *ip == backend.ip);
            let names: BTreeSet<SliceName> = at.map(|(_, name)| name.clone()).collect();
            touched.extend(names.iter().filter_map(|name| self.slices.get(name)).map(|slice| slice.service.clone()));
        }
        touched
    }

    fn slices_at(&mut self) -> &BTreeSet<(IpAddr, SliceName)> {
        let slices = &self.slices;
        self.slices_at.get_or_insert_with(|| {
            let at = slices.iter().flat_map(|(name, slice)| slice.endpoints.iter().map(move |e| (e.ip, name.clone())));
            at.collect()
        })
    }
}
