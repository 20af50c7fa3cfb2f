//! Carries plans out: routes first, then one transaction, then the removal of records and flows that it contradicts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{
    addr::FrontendAddr,
    datapath::{ApplyError, DatapathError, ErrorKind},
    plan::{Op, Plan},
    state::State,
};

use crate::nftables::{
    change::{
        affinity,
        draft::Draft,
        errors::{failure, foreign, is_conflict, kind, nothing_took, outdated, report},
        installed::Installed,
        lower::{Action, Lowered, Origin, Step, lower},
        mirror::Mirror,
    },
    check::{
        inspect::Finding,
        observe::{TableContents, observe},
        repair,
        suspects::SharedSuspects,
    },
    host::{Batch, CommitError, Host, Rebuild, Table},
    table::{
        elements::fixed_verdicts,
        layout::{Device, Element, Key, Note, VERSION, Value},
        userdata::MARKER,
    },
};

/// The datapath without its watcher.
pub(crate) struct Engine {
    pub(crate) host: Box<dyn Host>,
    /// The table's name, for messages.
    pub(crate) table: String,
    /// Devices that lead out of the node.
    pub(crate) uplinks: BTreeSet<Device>,
    pub(crate) installed: Option<Installed>,
    /// Objects that a watcher noted.
    pub(crate) suspects: SharedSuspects,
    /// Findings of the last inspection that no repair has put right.
    pub(crate) findings: Vec<Finding>,
}

/// How one attempt ended.
enum Outcome {
    Took,
    /// To be attempted again without these frontends.
    Without(Vec<(FrontendAddr, DatapathError)>),
    Failed(DatapathError),
}

impl Engine {
    pub(crate) fn new(table: &str, uplinks: BTreeSet<Device>, host: Box<dyn Host>) -> Self {
        let (suspects, findings) = (SharedSuspects::default(), Vec::new());
        Self { host, table: table.to_owned(), uplinks, installed: None, suspects, findings }
    }

    pub(crate) fn observe(&mut self) -> Result<State, DatapathError> {
        let reading = |error| failure("reading the table", error);
        if !self.host.is_supported().map_err(reading)? {
            return Err(outdated());
        }
        let found = observe(&mut *self.host).map_err(reading)?;
        let routed = self.host.routed_vips().map_err(|error| failure("reading routes", error))?;
        let (mirror, generation, salvaged, damaged) = match found {
            TableContents::Absent => (Mirror::default(), None, State::default(), None),
            TableContents::Foreign => return Err(self.not_ours()),
            TableContents::Damaged { state, handle } => (Mirror::default(), None, state, Some(handle)),
            TableContents::Ours { mirror, generation } => (*mirror, Some(generation), State::default(), None),
        };
        let state = if generation.is_some() { mirror.state.clone() } else { salvaged.clone() };
        self.installed =
            Some(Installed { mirror, generation, damaged, salvaged, routed: Some(routed), added: Vec::new() });
        Ok(state)
    }

    pub(crate) fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        plan.check_known(Draft::knows)?;
        if self.installed.is_none() {
            self.observe().map_err(ApplyError::unknown)?;
        }
        let mut refused = BTreeMap::new();
        loop {
            match self.attempt(plan, &refused)? {
                Outcome::Took => return report(plan, refused),
                Outcome::Without(more) => {
                    let before = refused.len();
                    refused.extend(more);
                    if refused.len() == before {
                        return Err(nothing_took(plan, refused));
                    }
                }
                Outcome::Failed(cause) => {
                    for addr in plan.ops.iter().filter_map(Op::frontend) {
                        refused.entry(addr).or_insert_with(|| DatapathError::new(cause.kind(), cause.report()));
                    }
                    return Err(if refused.is_empty() {
                        ApplyError::unknown(cause)
                    } else {
                        nothing_took(plan, refused)
                    });
                }
            }
        }
    }

    pub(crate) fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.installed = None;
        let table = self.remove_table();
        self.host.remove_all_routes().map_err(|error| failure("removing routes", error))?;
        table
    }

    /// Removes the table of this datapath, and also one of this datapath that replaces it meanwhile.
    fn remove_table(&mut self) -> Result<(), DatapathError> {
        let removing = |error| failure("removing the table", error);
        loop {
            match self.host.table().map_err(removing)? {
                Table::Absent => return Ok(()),
                Table::Foreign => return Err(self.not_ours()),
                Table::Ours(handle) => self.host.remove_table(handle).map_err(removing)?,
            };
        }
    }

    /// Forgets everything, since a foreign table has the name.
    pub(crate) fn not_ours(&mut self) -> DatapathError {
        self.installed = None;
        let message = format!(
            "table inet {0} exists and is not owned by lb (no marker: a comment \"{MARKER}{VERSION}\"): have its owner give it \
             another name, or remove it with `nft delete table inet {0}`",
            self.table
        );
        DatapathError::new(ErrorKind::Busy, message)
    }

    fn attempt(&mut self, plan: &Plan, refused: &BTreeMap<FrontendAddr, DatapathError>) -> Result<Outcome, ApplyError> {
        let Some(installed) = &mut self.installed else { return Ok(Outcome::Took) };
        let mut draft = installed.draft(plan, refused);
        draft.uplinks = Some(self.uplinks.clone());
        let mut lowered = lower(&draft, &installed.mirror);
        if !lowered.refused.is_empty() {
            return Ok(Outcome::Without(std::mem::take(&mut lowered.refused)));
        }
        if !lowered.steps.is_empty() || installed.generation.is_none() {
            installed.add_missing(&lowered);
            match prepare(&mut *self.host, &installed.added, &lowered) {
                Ok(failed) if failed.is_empty() => {}
                Ok(failed) => {
                    installed.added.retain(|vip| !failed.iter().any(|(addr, _)| addr.ip == *vip));
                    return Ok(Outcome::Without(failed));
                }
                Err(error) => return Ok(Outcome::Failed(failure("adding routes", error))),
            }
            match commit(&mut *self.host, &self.suspects, installed, &draft, &lowered) {
                Ok(()) => {}
                Err(CommitError::Refused(refusals)) => return self.refused(refusals),
                Err(CommitError::Unknown(error)) => return Err(self.lost(failure("writing the table", error))),
            }
        }
        lowered.settle(&mut installed.mirror);
        draft.settle(&mut installed.mirror);
        installed.salvaged = State::default();
        self.follow_up(lowered).map(|()| Outcome::Took)
    }

    /// Finds the frontends that a transaction was refused for.
    fn refused(&mut self, refusals: Vec<(Origin, lb_netlink::Error)>) -> Result<Outcome, ApplyError> {
        let mut failed = BTreeMap::new();
        let mut shared = None;
        for (origin, error) in refusals {
            match origin {
                Origin::Generation if is_conflict(&error) => return Err(self.lost(foreign(error))),
                Origin::Generation | Origin::Shared => shared = shared.or(Some(failure("writing the table", error))),
                Origin::Frontend(addr) => {
                    let cause = || failure(&format!("writing frontend {addr}"), error);
                    failed.entry(addr).or_insert_with(cause);
                }
            }
        }
        Ok(match shared {
            Some(cause) if failed.is_empty() => Outcome::Failed(cause),
            _ => Outcome::Without(failed.into_iter().collect()),
        })
    }

    /// Does the work that has to follow the transaction. A failure here leaves new traffic right and old traffic wrong,
    /// so the next plan begins with an observation.
    fn follow_up(&mut self, lowered: Lowered) -> Result<(), ApplyError> {
        let swept = affinity::sweep(&mut *self.host, &lowered.sweeps);
        swept.map_err(|error| self.lost(failure("removing affinity records", error)))?;
        let flows = if lowered.flows.is_empty() { Ok(0) } else { self.host.forget_stale_flows(&lowered.flows) };
        flows.map_err(|error| self.lost(failure("deleting stale flows", error)))?;
        let Some(installed) = &mut self.installed else { return Ok(()) };
        let gone = installed.idle_routes(lowered.gone_vips);
        let left = self.host.remove_routes(&gone).map_err(|error| self.lost(failure("removing routes", error)))?;
        match left.into_iter().next() {
            Some((vip, error)) => Err(self.lost(failure(&format!("removing the routes of {vip}"), error))),
            None => Ok(()),
        }
    }

    /// Forgets the mirror, which may be wrong from here on.
    pub(crate) fn lost(&mut self, cause: DatapathError) -> ApplyError {
        self.installed = None;
        ApplyError::unknown(cause)
    }
}

/// Adds routes, and says which frontends cannot have theirs.
fn prepare(
    host: &mut dyn Host,
    missing: &[IpAddr],
    lowered: &Lowered,
) -> lb_netlink::Result<Vec<(FrontendAddr, DatapathError)>> {
    let mut failed = Vec::new();
    for (vip, error) in host.add_routes(missing)? {
        let kind = kind(&error);
        let message = format!("adding the routes of {vip}: {error}; is the loopback device up?");
        let Some(users) = lowered.new_vips.get(&vip) else { return Err(error) };
        failed.extend(users.iter().map(|&addr| (addr, DatapathError::new(kind, message.clone()))));
    }
    Ok(failed)
}

/// Carries the operations out; the table has the next generation then.
fn commit(
    host: &mut dyn Host,
    suspects: &SharedSuspects,
    installed: &mut Installed,
    draft: &Draft,
    lowered: &Lowered,
) -> Result<(), CommitError> {
    let reading = |error| CommitError::Refused(vec![(Origin::Shared, error)]);
    let stale = affinity::stale(host, &lowered.sweeps).map_err(reading)?;
    let kept = match installed.rebuild() {
        Some(Rebuild::Replace(_)) => repair::records(host, |record| installed.keeps(draft, record)).map_err(reading)?,
        Some(Rebuild::Add) | None => Vec::new(),
    };
    let next = installed.generation.unwrap_or_else(fresh_generation).wrapping_add(1);
    let first = frame(installed.generation, next);
    let mut batch = Batch {
        rebuild: installed.rebuild(),
        first: &first,
        steps: &lowered.steps,
        forget: &stale,
        records: &kept,
        merged: lowered.only_adds(),
    };
    let elements = lowered.steps.len() + kept.len();
    let mut send = |batch: &Batch<'_>| suspects.write(host, elements, |host| host.commit(batch));
    match send(&batch) {
        // Once more, in the form in which a refusal names a frontend.
        Err(CommitError::Refused(refused)) if batch.merged && !refused.iter().any(is_generation) => {
            batch.merged = false;
            send(&batch)?;
        }
        result => result?,
    }
    (installed.generation, installed.damaged) = (Some(next), None);
    Ok(())
}

fn is_generation((origin, _): &(Origin, lb_netlink::Error)) -> bool {
    *origin == Origin::Generation
}

/// The operations that every transaction begins with.
pub(crate) fn frame(now: Option<u32>, next: u32) -> Vec<Step> {
    let step = |origin, action| Step { origin, action };
    let note = |note, number| Element::new(Key::Note(note, number), Value::None);
    let generation = step(Origin::Generation, Action::Add(note(Note::Generation, next).comment("generation")));
    if let Some(now) = now {
        return vec![step(Origin::Generation, Action::Remove(Key::Note(Note::Generation, now))), generation];
    }
    let layout = note(Note::Layout, VERSION).comment("layout");
    let shared =
        std::iter::once(layout).chain(fixed_verdicts()).map(|element| step(Origin::Shared, Action::Add(element)));
    std::iter::once(generation).chain(shared).collect()
}

/// A number that another process, or this one for another table, did not start with.
fn fresh_generation() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    let [a, b, c, d, ..] = RandomState::new().hash_one(0).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
