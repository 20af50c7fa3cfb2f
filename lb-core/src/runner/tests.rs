//! The runner against datapaths in memory, in virtual time.

use alloc::{format, string::String, sync::Arc, vec};
use core::net::Ipv6Addr;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{
    addr::{Family, FrontendAddr, Protocol},
    datapath::{Capabilities, Role},
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    faulty::{Faults, Faulty},
    memory::MemoryDatapath,
    model::Settings,
    name::{ServiceName, SliceName},
    plan::Plan,
    reconciler::FrontendStatus,
    service::{DrainPolicy, Service, ServicePort},
    state::State,
};

fn at(ms: u64) -> Instant {
    Instant::new(Duration::from_millis(ms))
}

fn source() -> SourceName {
    SourceName("test".into())
}

fn node() -> NodeFacts {
    NodeFacts { ips: vec![[192, 0, 2, 1].into()], ..NodeFacts::default() }
}

fn runner(sources: impl IntoIterator<Item = SourceName>) -> Runner {
    Runner::new(Model::new(Settings::default(), Capabilities::all("memory")), node(), sources)
}

fn web(last: u8) -> [Change; 2] {
    let name = ServiceName::new("default", &format!("web-{last}"));
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    let slice = EndpointSlice {
        name: SliceName::new("default", &format!("web-{last}-1")),
        service: name.clone(),
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![Endpoint::new([10, 244, 0, last].into())],
    };
    let service = Service { cluster_ips: vec![[10, 96, 0, last].into()], ports: vec![port], ..Service::new(name) };
    [Change::UpsertService(service), Change::ReplaceEndpoints(slice)]
}

fn vip(last: u8) -> FrontendAddr {
    FrontendAddr::new([10, 96, 0, last].into(), 80, Protocol::Tcp)
}

fn take(runner: &mut Runner, changes: impl IntoIterator<Item = Change>) {
    changes.into_iter().for_each(|change| runner.handle_change(change).unwrap());
}

/// Everything that is said until nothing is due.
fn steps(runner: &mut Runner, datapath: &mut dyn Datapath, now: Instant) -> Vec<Event> {
    core::iter::from_fn(|| runner.step(datapath, now)).collect()
}

/// A runner that serves one service and has inspected once.
fn serving(mode: DriftMode) -> (Runner, MemoryDatapath) {
    let (mut runner, mut datapath) = (runner([]).with_drift(mode, INTERVAL), MemoryDatapath::default());
    take(&mut runner, web(1));
    steps(&mut runner, &mut datapath, at(0));
    (runner, datapath)
}

/// One difference for each frontend.
fn lose_frontends(state: &mut State) {
    state.frontends.clear();
    state.sets.clear();
}

#[test]
fn a_datapath_that_others_kept_from_being_observed_is_observed_soon_after_they_changed_something() {
    let faults = Faults { failed_observations: 1000, ..Faults::default() };
    let (mut runner, mut datapath) = (runner([]), Faulty::new(MemoryDatapath::default(), faults, 1));
    let mut now = at(0);
    while runner.poll_timeout().is_none_or(|due| due.since(now) < Duration::from_secs(10)) {
        now = runner.poll_timeout().unwrap_or(now);
        steps(&mut runner, &mut datapath, now);
    }
    runner.handle_suspicion(now);
    assert_eq!(runner.poll_timeout(), Some(now + Reconciler::MIN_RETRY_DELAY));
    let soon = now + Reconciler::MIN_RETRY_DELAY;
    steps(&mut runner, &mut MemoryDatapath::default(), soon);
    assert!(runner.is_ready());
}

#[test]
fn changes_are_carried_out_and_each_step_is_told() {
    let (mut runner, mut datapath) = (runner([source()]), MemoryDatapath::default());
    take(&mut runner, web(1));
    take(&mut runner, [Change::InitDone(source())]);
    let said: Vec<String> = steps(&mut runner, &mut datapath, at(0)).iter().map(Event::to_string).collect();
    assert_eq!(
        said,
        [
            "the datapath holds 0 frontends and 0 backends, which are adopted",
            "plan 1 applied: 4 operations: frontends +1 -0, sets +1 -0, backends +1 -0",
            "frontend 10.96.0.1:80/tcp is done",
            "every first listing is carried out",
            "inspected: 0 differences, none of them new",
        ]
    );
    assert!(runner.reconciler().is_settled() && runner.is_ready());
    assert_eq!(datapath.state(), runner.reconciler().desired());
    assert_eq!(runner.poll_timeout(), Some(at(60_000)));
}

#[test]
fn flows_end_after_the_plan_and_when_they_have_drained() {
    let (mut runner, mut datapath) = serving(DriftMode::Off);
    let [Change::UpsertService(service), Change::ReplaceEndpoints(slice)] = web(1) else { panic!("as above") };
    let drain = DrainPolicy::For(Duration::from_secs(5));
    take(&mut runner, [Change::UpsertService(Service { drain, ..service })]);
    steps(&mut runner, &mut datapath, at(0));
    // What it had before this policy has its time as well.
    assert_eq!(runner.poll_timeout(), Some(at(5000)));
    steps(&mut runner, &mut datapath, at(5000));
    take(&mut runner, [Change::ReplaceEndpoints(EndpointSlice { endpoints: vec![], ..slice })]);
    let said: Vec<String> = steps(&mut runner, &mut datapath, at(6000)).iter().map(Event::to_string).collect();
    assert!(said.iter().all(|event| !event.contains("ended:")), "{said:?}");
    assert_eq!(runner.poll_timeout(), Some(at(11_000)));
    let said: Vec<String> = steps(&mut runner, &mut datapath, at(11_000)).iter().map(Event::to_string).collect();
    assert_eq!(said, ["ended: sockets 0, flows of packets 0"]);
    assert_eq!(runner.poll_timeout(), None);
}

#[test]
fn a_service_that_gets_its_address_after_all_is_told() {
    let (mut runner, mut datapath) = serving(DriftMode::Repair);
    let [Change::UpsertService(first), _] = web(1) else { panic!("a service comes first") };
    let second = Service { name: ServiceName::new("default", "second"), ..first.clone() };
    runner.handle_change(Change::UpsertService(second)).unwrap_err();
    runner.handle_change(Change::RemoveService(first.name)).unwrap();
    let said: Vec<String> = steps(&mut runner, &mut datapath, at(1)).iter().map(Event::to_string).collect();
    assert_eq!(said[0], "service default/second was refused and is served now");
}

#[test]
fn what_an_earlier_process_left_serves_until_every_source_has_listed_and_a_long_listing_is_said() {
    let (_, mut datapath) = serving(DriftMode::Repair);
    let mut next = runner([source()]);
    let first = steps(&mut next, &mut datapath, at(0));
    assert!(matches!(&first[..], [Event::Observed { frontends: 1, backends: 1 }, ..]), "{first:?}");
    assert_eq!(next.poll_timeout(), Some(at(10_000)));
    for now in [10_000, 20_000] {
        let said = steps(&mut next, &mut datapath, at(now));
        assert!(matches!(&said[..], [Event::Listing(sources)] if *sources == [source()]), "{said:?}");
    }
    assert!(datapath.state().frontends.contains_key(&vip(1)));
    take(&mut next, [Change::InitDone(source())]);
    steps(&mut next, &mut datapath, at(20_001));
    assert!(datapath.state().frontends.is_empty(), "no source has it");
}

#[test]
fn a_family_without_an_address_of_the_node_is_said_once_for_each_node() {
    let (mut runner, mut datapath) = (runner([]), MemoryDatapath::default());
    let mut missing = |changes: Vec<Change>| -> Vec<Family> {
        take(&mut runner, changes);
        let events = steps(&mut runner, &mut datapath, at(0)).into_iter();
        events.filter_map(|event| if let Event::NoNodeAddress(family) = event { Some(family) } else { None }).collect()
    };
    assert_eq!(missing(vec![]), []);
    assert_eq!(missing(web(1).into()), []);
    let [Change::UpsertService(six), _] = web(2) else { panic!("a service comes first") };
    let six = Service { cluster_ips: vec![Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 2).into()], ..six };
    assert_eq!(missing(vec![Change::UpsertService(six)]), [Family::V6], "the node has an IPv4 address alone");
    assert_eq!(missing(vec![]), []);
    assert_eq!(missing(vec![Change::SetNode(NodeFacts::default())]), [Family::V4, Family::V6]);
    assert_eq!(missing(vec![]), []);
    assert_eq!(missing(vec![Change::SetNode(node())]), [Family::V6]);
}

#[test]
fn whatever_fails_is_tried_again_at_the_time_out() {
    let faults =
        Faults { refused_frontends: 300, interrupted_plans: 300, failed_observations: 300, ..Faults::default() };
    for seed in 0..50 {
        let (mut runner, mut now) = (runner([]), at(0));
        let mut datapath = Faulty::new(MemoryDatapath::default(), faults, seed);
        (1..=9).for_each(|last| take(&mut runner, web(last)));
        for _ in 0..1000 {
            steps(&mut runner, &mut datapath, now);
            if runner.reconciler().is_settled() {
                break;
            }
            let next = runner.poll_timeout().unwrap();
            assert!(next > now, "seed {seed}: nothing is left to do, and yet it is due");
            now = next;
        }
        assert_eq!(datapath.inner().state(), runner.reconciler().desired(), "seed {seed}");
        assert_eq!(datapath.inner().state().frontends.len(), 9);
    }
}

#[test]
fn a_frontend_that_is_refused_is_told_with_the_cause_and_does_not_hold_up_readiness() {
    let always = Faults { refused_frontends: 1000, ..Faults::default() };
    let (mut runner, mut datapath) = (runner([]), Faulty::new(MemoryDatapath::default(), always, 1));
    take(&mut runner, web(1));
    let said = steps(&mut runner, &mut datapath, at(0));
    let refused = |event: &Event| {
        matches!(event, Event::Frontend(addr, Some(FrontendStatus::Failed { cause, .. }))
            if *addr == vip(1) && cause == "injected fault: frontend refused")
    };
    assert!(said.iter().any(refused) && runner.is_ready(), "{said:?}");
    assert_eq!(runner.poll_timeout(), Some(at(200)));
}

#[test]
fn what_others_change_is_found_and_repaired_after_an_alarm() {
    let (mut runner, mut datapath) = serving(DriftMode::Repair);
    let before = datapath.state().clone();
    datapath.disturb(lose_frontends);
    assert!(steps(&mut runner, &mut datapath, at(5)).is_empty(), "nobody has noticed");
    runner.handle_suspicion(at(5));
    let mut said = steps(&mut runner, &mut datapath, at(5));
    let Some(Event::Inspected(inspected)) = said.pop() else { panic!("{said:?}") };
    assert_eq!((inspected.inspection, inspected.new.len(), inspected.asked), (Inspection::Suspects, 1, false));
    assert_eq!((inspected.changed[0].outcome.clone(), datapath.state()), (DriftOutcome::Repaired, &before));
    assert_eq!((runner.drifts().open().count(), runner.poll_timeout()), (0, Some(at(1005))), "a full one follows");
}

#[test]
fn in_alert_nothing_is_touched_and_off_inspects_when_asked_alone() {
    for mode in [DriftMode::Alert, DriftMode::Off] {
        let (mut runner, mut datapath) = serving(mode);
        datapath.disturb(lose_frontends);
        runner.handle_suspicion(at(5));
        runner.handle_missed(at(5));
        assert_eq!(steps(&mut runner, &mut datapath, at(5)).is_empty(), mode == DriftMode::Off);
        runner.inspect_now();
        let mut said = steps(&mut runner, &mut datapath, at(6));
        let Some(Event::Inspected(inspected)) = said.pop() else { panic!("{said:?}") };
        assert!(inspected.asked && inspected.found.len() == 1, "{inspected:?}");
        assert!(datapath.state().frontends.is_empty());
        assert_eq!(runner.drifts().conditions(at(3005))[0].0, "Drift");
    }
}

#[test]
fn a_repair_that_fails_is_told_and_tried_again() {
    let (mut runner, datapath) = serving(DriftMode::Repair);
    let mut datapath = Stubborn { inner: datapath, inspections: Arc::default() };
    datapath.inner.disturb(lose_frontends);
    runner.inspect_now();
    let said = steps(&mut runner, &mut datapath, at(5));
    let Some(Event::Inspected(inspected)) = said.iter().find(|event| matches!(event, Event::Inspected(_))) else {
        panic!("{said:?}")
    };
    assert_eq!(inspected.changed[0].outcome, DriftOutcome::NotRepaired("no".into()));
    assert!(inspected.repair_error.is_some());
    assert!(matches!(runner.reconciler().status(&vip(1)), FrontendStatus::Failed { cause, .. } if cause == "no"));
    assert_eq!(runner.poll_timeout(), Some(at(205)), "the refused frontend, and then the repair");
}

#[test]
fn nothing_is_inspected_while_the_state_is_unknown() {
    let (mut runner, datapath) = serving(DriftMode::Repair);
    let mut datapath = Stubborn { inner: datapath, inspections: Arc::default() };
    let unknown = ApplyError::unknown(DatapathError::new(ErrorKind::System, "no"));
    runner.reconciler.handle_repaired(Err(unknown), at(5));
    runner.inspect_now();
    let observe = runner.poll_task(at(5)).unwrap();
    assert!(matches!(observe.work, Work::Observe));
    let done = observe.carry_out(&runner, &mut datapath);
    assert_eq!(datapath.inspections.load(Ordering::Relaxed), 0);
    assert!(matches!(runner.handle_done(done, Duration::ZERO, at(5)), Some(Event::Observed { .. })));
    let said = steps(&mut runner, &mut datapath, at(5));
    assert!(matches!(said.last(), Some(Event::Inspected(inspected)) if inspected.asked), "{said:?}");
}

#[test]
fn plans_come_first_but_an_inspection_does_not_wait_for_ever() {
    let (mut runner, _) = serving(DriftMode::Repair);
    runner.handle_missed(at(1000));
    take(&mut runner, web(2));
    assert!(matches!(runner.poll_task(at(1049)).unwrap().work, Work::Apply(_)));
    assert!(matches!(runner.poll_task(at(1050)).unwrap().work, Work::Apply(_)), "it is under way");
    let plan = runner.poll_task(at(1050)).unwrap().carry_out(&runner, &mut MemoryDatapath::default());
    assert!(matches!(runner.handle_done(plan, Duration::ZERO, at(1050)), Some(Event::Applied { .. })));
    take(&mut runner, web(3));
    assert!(matches!(runner.poll_task(at(1050)).unwrap().work, Work::Inspect(_)));
}

#[test]
fn a_task_that_was_lost_comes_again() {
    let (mut runner, mut datapath) = serving(DriftMode::Repair);
    take(&mut runner, web(2));
    drop(runner.poll_task(at(5)));
    steps(&mut runner, &mut datapath, at(5));
    assert!(datapath.state().frontends.contains_key(&vip(2)));
}

#[test]
fn what_an_inspection_took_decides_when_the_next_one_comes() {
    let (mut runner, mut datapath) = serving(DriftMode::Repair);
    runner.inspect_now();
    let done = runner.poll_task(at(100)).unwrap().carry_out(&runner, &mut datapath);
    let event = runner.handle_done(done, Duration::from_secs(1), at(3100));
    assert!(matches!(event, Some(Event::Inspected(inspected)) if inspected.took == Duration::from_secs(3)));
    assert_eq!(runner.poll_timeout(), Some(at(203_100)), "half a per cent of a processor");
}

#[test]
fn what_was_never_permitted_is_told_apart() {
    let mut runner = runner([]);
    let said = runner.step(&mut Forbidden, at(0));
    assert!(matches!(said, Some(Event::NotPermitted(error)) if error.report() == "no"));
}

/// Refuses every repair.
struct Stubborn {
    inner: MemoryDatapath,
    inspections: Arc<AtomicUsize>,
}

impl Datapath for Stubborn {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        self.inner.observe()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        self.inner.apply(plan)
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        self.inner.set_role(role)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.inner.cleanup()
    }

    fn inspect(
        &mut self,
        expected: crate::drift::Expected<'_>,
        inspection: Inspection,
    ) -> Result<Vec<Drift>, DatapathError> {
        self.inspections.fetch_add(1, Ordering::Relaxed);
        self.inner.inspect(expected, inspection)
    }

    fn repair(&mut self, expected: crate::drift::Expected<'_>, _: &[Drift]) -> Result<(), ApplyError> {
        let no = || DatapathError::new(ErrorKind::System, "no");
        let failed = expected.state.frontends.keys().map(|&addr| (addr, no())).collect();
        Err(ApplyError { applied: 0, failed, unknown: None })
    }
}

struct Forbidden;

impl Datapath for Forbidden {
    fn capabilities(&self) -> Capabilities {
        Capabilities::all("forbidden")
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        Err(DatapathError::new(ErrorKind::Permission, "no"))
    }

    fn apply(&mut self, _: &Plan) -> Result<(), ApplyError> {
        Ok(())
    }

    fn set_role(&mut self, _: Role) -> Result<(), DatapathError> {
        Ok(())
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }
}

#[test]
fn the_end_of_a_listing_that_nobody_began_is_an_error() {
    let mut runner = runner([source()]);
    let error = runner.handle_change(Change::InitDone(SourceName("tset".into()))).unwrap_err().to_string();
    assert!(error.contains("source `tset`") && error.ends_with("the sources are `test`"), "{error}");
    assert!(runner.reconciler().is_listing());
}
