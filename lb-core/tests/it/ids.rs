//! Ids that flows of the datapath still have.

use crate::{
    reconciler::{reconciler, run, settle},
    worlds::{ready, slice, web},
};
use lb_core::{
    datapath::Datapath,
    faulty::{Faults, Faulty},
    id::{BackendId, FrontendId, HeldIds, MAX_ASSIGNED, SetId},
    memory::MemoryDatapath,
    model::Change,
    name::ServiceName,
    reconciler::Reconciler,
    state::{Frontend, State, Target},
    time::Instant,
};

fn serve(reconciler: &mut Reconciler, name: &str, vip: &str, backends: &[&str]) {
    reconciler.handle_change(Change::UpsertService(web(name, vip))).unwrap();
    let endpoints = backends.iter().map(|backend| ready(backend));
    reconciler.handle_change(Change::ReplaceEndpoints(slice(name, endpoints))).unwrap();
}

/// The ids of a state: of frontends, backends and sets.
fn ids(state: &State) -> [Vec<u32>; 3] {
    let mut frontends: Vec<_> = state.frontends.values().map(|frontend| frontend.id.get()).collect();
    frontends.sort_unstable();
    let (backends, sets) = (state.backends.keys(), state.sets.keys());
    [frontends, backends.map(|id| id.get()).collect(), sets.map(|id| id.get()).collect()]
}

#[test]
fn what_flows_hold_is_not_assigned_after_a_restart() {
    let mut datapath = MemoryDatapath::default();
    let mut reconciler = reconciler(&datapath);
    let held = HeldIds {
        frontends: [1, 2].into_iter().filter_map(FrontendId::new).collect(),
        backends: [2, 3].into_iter().filter_map(BackendId::new).collect(),
        sets: [1, 3].into_iter().filter_map(SetId::new).collect(),
    };
    reconciler.handle_observed_with(datapath.observe().unwrap(), held);
    serve(&mut reconciler, "a", "10.96.0.1", &["10.244.0.1", "10.244.0.2"]);
    serve(&mut reconciler, "b", "10.96.0.2", &["10.244.0.3"]);
    run(&mut reconciler, &mut datapath, Instant::default());
    assert_eq!(ids(datapath.state()), [vec![3, 4], vec![1, 4, 5], vec![2, 4]]);
}

#[test]
fn a_reconciler_at_the_end_of_all_ids_asks_the_datapath_which_ones_are_free() {
    let mut datapath = Faulty::new(MemoryDatapath::default(), Faults::default(), 0);
    let mut first = reconciler(&datapath);
    serve(&mut first, "a", "10.96.0.1", &[]);
    run(&mut first, &mut datapath, Instant::default());
    let mut state = datapath.observe().unwrap();
    let before_last = FrontendId::new(MAX_ASSIGNED - 1).unwrap();
    state.frontends.values_mut().for_each(|frontend| *frontend = Frontend::new(before_last, Target::Reject));
    let mut reconciler = reconciler(&datapath);
    reconciler.handle_observed(state);
    serve(&mut reconciler, "a", "10.96.0.1", &[]);
    serve(&mut reconciler, "b", "10.96.0.2", &[]);
    serve(&mut reconciler, "c", "10.96.0.3", &[]);
    // The frontend of `b` gets the last id. It is to be known what flows hold before that of `c` gets one.
    assert_eq!(reconciler.poll_plan(Instant::default()), Ok(None));
    assert!(reconciler.installed().is_none() && !reconciler.wants_observation(Instant::default()));
    let now = settle(&mut reconciler, &mut datapath, Instant::default());
    // The datapath still had 1 when it was asked.
    assert_eq!(ids(datapath.inner().state())[0], [2, MAX_ASSIGNED - 1, MAX_ASSIGNED]);
    reconciler.handle_change(Change::RemoveService(ServiceName::new("default", "b"))).unwrap();
    serve(&mut reconciler, "d", "10.96.0.4", &[]);
    settle(&mut reconciler, &mut datapath, now);
    assert_eq!(ids(datapath.inner().state())[0], [2, 3, MAX_ASSIGNED - 1], "and goes on from there");
}
