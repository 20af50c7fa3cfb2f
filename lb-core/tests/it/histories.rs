//! The reconciler over random histories: what it promises whatever happens.

use std::collections::BTreeMap;

use core::time::Duration;

use lb_core::{
    addr::FrontendAddr,
    datapath::{ApplyError, Capabilities, Datapath, DatapathError, ErrorKind, Role},
    desired::Desired,
    faulty::{Faults, Faulty},
    memory::MemoryDatapath,
    model::{Change, Model},
    plan::Plan,
    reconciler::{FrontendStatus, Reconciler},
    state::{Answer, State},
    time::Instant,
};
use proptest::prelude::*;

use crate::{
    reconciler::{reconciler, run, settle},
    worlds::{history, settings, source},
};

/// What listeners were told, event by event.
#[derive(Default)]
struct Listener(BTreeMap<FrontendAddr, FrontendStatus>);

impl Listener {
    fn listen(&mut self, reconciler: &mut Reconciler) {
        while let Some((addr, status)) = reconciler.poll_event() {
            let before = match status.clone() {
                Some(status) => self.0.insert(addr, status),
                None => self.0.remove(&addr),
            };
            assert_ne!(before, status, "{addr}: told twice");
        }
    }

    /// Whether what was told is what is.
    fn is_up_to_date(&self, reconciler: &Reconciler) -> bool {
        let installed = reconciler.installed().into_iter().flat_map(|state| state.frontends.keys());
        let known = reconciler.desired().frontends.keys().chain(installed);
        known.map(|&addr| (addr, reconciler.status(&addr))).collect::<BTreeMap<_, _>>() == self.0
    }
}

/// Refuses one frontend, always.
struct Refusing {
    inner: MemoryDatapath,
    refused: FrontendAddr,
}

impl Datapath for Refusing {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        self.inner.observe()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        let ops = plan.ops.iter().filter(|op| op.frontend() != Some(self.refused)).cloned().collect();
        let rest = Plan { id: plan.id, ops };
        self.inner.apply(&rest)?;
        if rest.ops.len() == plan.ops.len() {
            return Ok(());
        }
        let failed = vec![(self.refused, DatapathError::new(ErrorKind::Capacity, "never this one"))];
        Err(ApplyError { applied: rest.ops.len(), failed, unknown: None })
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        self.inner.set_role(role)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.inner.cleanup()
    }
}

/// The state at the end of a history, without a reconciler. A reconciler refuses the end of a listing that it knows
/// nothing about.
fn wanted(history: &[Change]) -> State {
    let mut model = Model::new(settings(), Capabilities::all("memory"));
    let mut desired = Desired::default();
    for change in history.iter().filter(|change| !matches!(change, Change::InitDone(_))) {
        if let Ok(touched) = model.apply(change.clone()) {
            desired.update(&model, &touched).unwrap();
        }
    }
    desired.state().clone()
}

fn answers(state: &State, except: Option<FrontendAddr>) -> Vec<(FrontendAddr, Answer)> {
    let addrs = state.frontends.keys().filter(|addr| Some(**addr) != except);
    addrs.map(|addr| (*addr, state.answer(addr, 0x1234_5678))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn listeners_are_told_every_status_once_and_never_a_wrong_one(history in history(), seed in any::<u64>()) {
        let faults =
            Faults { refused_frontends: 200, interrupted_plans: 150, failed_observations: 150, ..Faults::default() };
        let mut datapath = Faulty::new(MemoryDatapath::default(), faults, seed);
        let mut reconciler = reconciler(&datapath);
        let mut listener = Listener::default();
        let mut now = Instant::default();
        for change in history {
            let _refused_by_the_model = reconciler.handle_change(change);
            run(&mut reconciler, &mut datapath, now);
            listener.listen(&mut reconciler);
            prop_assert!(listener.is_up_to_date(&reconciler));
            now = now + Duration::from_millis(150);
        }
        settle(&mut reconciler, &mut datapath, now);
        listener.listen(&mut reconciler);
        prop_assert!(listener.is_up_to_date(&reconciler));
        prop_assert!(listener.0.values().all(|status| *status == FrontendStatus::Done));
    }

    #[test]
    fn one_frontend_that_is_always_refused_holds_back_no_other(history in history(), pick in any::<prop::sample::Index>()) {
        let wanted = wanted(&history);
        let addrs: Vec<_> = wanted.frontends.keys().copied().collect();
        prop_assume!(!addrs.is_empty());
        let refused = addrs[pick.index(addrs.len())];
        let mut datapath = Refusing { inner: MemoryDatapath::default(), refused };
        let mut reconciler = reconciler(&datapath);
        for change in history {
            let _refused_by_the_model = reconciler.handle_change(change);
            run(&mut reconciler, &mut datapath, Instant::default());
        }
        prop_assert_eq!(answers(datapath.inner.state(), Some(refused)), answers(&wanted, Some(refused)));
        let is_failed = matches!(reconciler.status(&refused), FrontendStatus::Failed { .. });
        prop_assert!(is_failed && !datapath.inner.state().frontends.contains_key(&refused));
    }

    #[test]
    fn while_a_source_lists_nothing_changes_and_afterwards_everything_is_right(
        old in history(),
        new in history(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut datapath = MemoryDatapath::default();
        let mut before = reconciler(&datapath);
        old.into_iter().for_each(|change| drop(before.handle_change(change)));
        settle(&mut before, &mut datapath, Instant::default());
        let installed = datapath.state().clone();

        let mut after = reconciler(&datapath);
        let (first, second) = (source("first"), source("second"));
        let done = cut.index(new.len());
        for name in [&first, &second] {
            after.handle_change(Change::InitStart(name.clone())).unwrap();
        }
        for (n, change) in new.iter().enumerate() {
            let _refused_by_the_model = after.handle_change(change.clone());
            if n == done {
                after.handle_change(Change::InitDone(first.clone())).unwrap();
            }
            run(&mut after, &mut datapath, Instant::default());
            prop_assert_eq!(datapath.state(), &installed);
        }
        after.handle_change(Change::InitDone(second)).unwrap();
        settle(&mut after, &mut datapath, Instant::default());
        prop_assert_eq!(answers(datapath.state(), None), answers(&wanted(&new), None));
    }

    /// A process dies after any prefix of any plan; the next one, with faults of its own, converges. On the way no
    /// frontend that was there and is to stay is ever without an answer, and all keep their ids.
    #[test]
    fn after_a_crash_no_live_frontend_is_ever_empty(
        history in history(),
        stop in any::<prop::sample::Index>(),
        last in any::<prop::sample::Index>(),
    ) {
        let mut datapath = MemoryDatapath::default();
        let mut first = reconciler(&datapath);
        let lives = last.index(history.len()) + 1;
        for (n, change) in history[..lives].iter().enumerate() {
            let _refused_by_the_model = first.handle_change(change.clone());
            if n + 1 < lives {
                run(&mut first, &mut datapath, Instant::default());
                continue;
            }
            if first.wants_observation(Instant::default()) {
                first.handle_observed(datapath.observe().unwrap());
            }
            if let Some(mut plan) = first.poll_plan(Instant::default()).unwrap() {
                plan.ops.truncate(stop.index(plan.ops.len() + 1));
                datapath.apply(&plan).unwrap();
            }
        }
        let crashed = datapath.state().clone();
        let mut second = reconciler(&datapath);
        second.handle_observed(crashed.clone());
        history.iter().for_each(|change| drop(second.handle_change(change.clone())));
        while let Some(plan) = second.poll_plan(Instant::default()).unwrap() {
            for op in &plan.ops {
                datapath.apply(&Plan { id: plan.id, ops: vec![op.clone()] }).unwrap();
                let live = crashed.frontends.keys().filter(|addr| second.desired().frontends.contains_key(addr));
                for addr in live {
                    let answer = datapath.state().answer(addr, 7);
                    prop_assert!(!matches!(answer, Answer::Broken | Answer::NotAFrontend), "{addr}: {answer:?}");
                }
            }
            second.handle_applied(plan.id, Ok(()), Instant::default());
        }
        prop_assert_eq!(datapath.state(), second.desired());
        prop_assert_eq!(answers(datapath.state(), None), answers(&wanted(&history), None));
        for (addr, before) in &crashed.frontends {
            if let Some(after) = datapath.state().frontends.get(addr) {
                prop_assert_eq!(after.id, before.id, "{} got another id", addr);
            }
        }
        for (id, before) in &crashed.backends {
            if let Some((other, _)) = datapath.state().backends.iter().find(|(_, after)| after.addr == before.addr) {
                prop_assert_eq!(other, id, "{} got another id", before.addr);
            }
        }
    }
}
