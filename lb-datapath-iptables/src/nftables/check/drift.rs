//! Inspection and repair.

use std::collections::BTreeSet;

use lb_core::{
    datapath::{ApplyError, DatapathError},
    drift::{Cause, Drift, Expected, Inspection},
    plan::diff,
    state::State,
};

use crate::{
    crash,
    nftables::{
        change::{
            engine::{Engine, frame},
            errors::{failure, foreign, is_conflict},
            installed::Installed,
            lower::Origin,
        },
        check::{
            expected::ExpectedTable,
            inspect::{Finding, Object, look},
            repair::RepairPlan,
            suspects::Suspects,
        },
        host::{CommitError, Table},
        table::layout::{Element, Key, Note, Set, Value},
    },
};

impl Engine {
    /// Compares the suspects, or everything, with the expected state.
    pub(crate) fn inspect(
        &mut self,
        expected: Expected<'_>,
        inspection: Inspection,
    ) -> Result<Vec<Drift>, DatapathError> {
        let mut suspects = self.suspects.take(inspection);
        if !suspects.everything {
            self.findings.iter().for_each(|finding| finding.suspect(&mut suspects));
        }
        match self.look(expected, &suspects) {
            Ok(findings) => {
                self.findings = findings;
                Ok(self.findings.iter().map(|finding| finding.drift.clone()).collect())
            }
            Err(error) => {
                *self.suspects.lock() = Suspects::everything();
                Err(error)
            }
        }
    }

    /// Puts back objects that are wrong, and carries out what plans have left undone.
    pub(crate) fn repair(&mut self, expected: Expected<'_>, found: &[Drift]) -> Result<(), ApplyError> {
        if !self.knows(found) {
            self.inspect(expected, Inspection::Everything).map_err(ApplyError::unknown)?;
        }
        let findings = std::mem::take(&mut self.findings);
        if let Err(error) = self.put_back(expected, &findings) {
            *self.suspects.lock() = Suspects::everything();
            return Err(error);
        }
        match &self.installed {
            Some(installed) if installed.mirror.state == *expected.state => Ok(()),
            Some(installed) if installed.generation.is_some() => {
                let plan = diff(&installed.mirror.state, expected.state, expected.labels);
                self.apply(&plan)
            }
            Some(_) | None => self.catch_up(expected),
        }
    }

    /// For a process that did not write the table, or does not know how its last plan ended.
    fn catch_up(&mut self, expected: Expected<'_>) -> Result<(), ApplyError> {
        let found = self.observe().map_err(ApplyError::unknown)?;
        self.apply(&diff(&found, expected.state, expected.labels))
    }

    /// Whether the last inspection found all of `found`.
    fn knows(&self, found: &[Drift]) -> bool {
        let installed: BTreeSet<&Drift> = self.findings.iter().map(|finding| &finding.drift).collect();
        found.iter().all(|drift| installed.contains(drift))
    }

    fn look(&mut self, expected: Expected<'_>, suspects: &Suspects) -> Result<Vec<Finding>, DatapathError> {
        let wanted = ExpectedTable::new(expected, self.generation(), &self.uplinks);
        let mut found = look(&mut *self.host, &wanted, suspects)
            .map_err(|error| failure("comparing the table and the routes with what they should be", error))?;
        // An earlier process knew other uplinks, and no plan was carried out since.
        if self.installed.as_ref().is_some_and(|installed| installed.mirror.uplinks != self.uplinks) {
            let of_uplinks = |finding: &&mut Finding| matches!(finding.object, Object::Element(Set::Uplinks, _));
            found.iter_mut().filter(of_uplinks).for_each(|finding| finding.drift.cause = Cause::Reconfigured);
        }
        Ok(found)
    }

    fn generation(&self) -> Option<u32> {
        self.installed.as_ref().and_then(|installed| installed.generation)
    }

    fn put_back(&mut self, expected: Expected<'_>, findings: &[Finding]) -> Result<(), ApplyError> {
        let wanted = ExpectedTable::new(expected, self.generation(), &self.uplinks);
        let mut remedy = RepairPlan::new(&wanted, findings);
        let RepairPlan { missing_routes, extra_routes, routing_rules, .. } = &remedy;
        let routes = self.host.repair_routes(missing_routes, extra_routes, routing_rules);
        routes
            .map_err(|error| ApplyError::unknown(failure("putting routes back; is the loopback device up?", error)))?;
        if !remedy.table && !remedy.writes() {
            return Ok(());
        }
        let Some(now) = self.generation().filter(|_| !remedy.table) else { return self.make_anew(expected) };
        let flows = remedy.flows(&wanted);
        let next = now.wrapping_add(1);
        if remedy.notes {
            let generation = Element::new(Key::Note(Note::Generation, next), Value::None).comment("generation");
            remedy.mend.added.push(generation);
        } else {
            remedy.mend.first = frame(Some(now), next);
        }
        crash::point();
        let elements = remedy.mend.gone.len() + remedy.mend.added.len();
        match self.suspects.write(&mut *self.host, elements, |host| host.repair(&remedy.mend)) {
            Ok(()) => {
                if let Some(installed) = &mut self.installed {
                    installed.generation = Some(next);
                    if remedy.mend.emptied.contains(&Set::Uplinks) {
                        installed.mirror.uplinks.clone_from(&self.uplinks);
                    }
                }
                let forgotten = if flows.is_empty() { Ok(0) } else { self.host.forget_stale_flows(&flows) };
                forgotten.map(drop).map_err(|error| ApplyError::unknown(failure("deleting stale flows", error)))
            }
            Err(CommitError::Unknown(error)) => Err(self.lost(failure("repairing the table", error))),
            Err(CommitError::Refused(refused)) => {
                for (origin, error) in refused {
                    if origin == Origin::Generation && is_conflict(&error) {
                        return Err(self.lost(foreign(error)));
                    }
                }
                self.make_anew(expected)
            }
        }
    }

    /// Makes the whole table anew, in one transaction with the removal of the old one.
    fn make_anew(&mut self, expected: Expected<'_>) -> Result<(), ApplyError> {
        let table = self.host.table();
        let damaged = match table.map_err(|error| ApplyError::unknown(failure("reading the table", error)))? {
            Table::Absent => None,
            Table::Ours(handle) => Some(handle),
            Table::Foreign => return Err(ApplyError::unknown(self.not_ours())),
        };
        let routed = self.host.routed_vips();
        let routed = routed.map_err(|error| ApplyError::unknown(failure("reading routes", error)))?;
        let mut installed = Installed::nothing(routed);
        (installed.damaged, installed.salvaged) = (damaged, expected.state.clone());
        self.installed = Some(installed);
        self.apply(&diff(&State::default(), expected.state, expected.labels))
    }
}
