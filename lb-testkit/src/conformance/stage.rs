//! Where a case is played: a lab with a datapath on one of its nodes, or a datapath alone.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant as Clock},
};

use lb_core::{
    addr::BackendAddr,
    datapath::{ApplyError, Capabilities, Datapath, DatapathError, Evicted, Role},
    endpoint::EndpointSlice,
    memory::MemoryDatapath,
    model::{Change, Model, Settings},
    name::{NodeName, SliceName},
    node::NodeFacts,
    plan::Plan,
    reconciler::Reconciler,
    state::State,
    time::Instant,
};

use super::{Fault, Kind, NodeContext, Opener, Subject, Verdict, ensure, fate::Patience, service};
use crate::lab::{Lab, Node, Offload, Origin, topology};

/// How long a reconciler may take to settle, retries included.
const SETTLED: Duration = Duration::from_secs(60);
/// How many rounds a datapath without a clock may take.
const ROUNDS: usize = 10_000;

/// A datapath with its reconciler, and a lab around it if it carries packets.
pub struct Stage {
    subject: Subject,
    offload: Offload,
    /// Dropped before the lab whose kernel objects it holds.
    datapath: Box<dyn Datapath>,
    reconciler: Reconciler,
    lab: Option<Arc<Lab>>,
    /// Its node in the lab.
    node: usize,
    start: Clock,
    /// Time of a datapath without packets; it passes in [`Self::pass_time`] alone.
    virtual_time: Duration,
    plans: Vec<Plan>,
    /// Slices that the model has.
    slices: BTreeMap<SliceName, EndpointSlice>,
    pub(super) patience: Patience,
    /// The ways of datagrams from an address to a backend: whose, and to which frontend.
    pub(super) datagrams: BTreeMap<(SocketAddr, BackendAddr), Vec<(Origin, SocketAddr)>>,
}

impl Stage {
    /// A fresh lab with the datapath on node 0, to which all services are routed.
    pub(super) fn new(subject: &Subject, offload: Offload, nodes: usize) -> Result<Self, Fault> {
        let lab = match &subject.kind {
            Kind::Packets(_) => Some(Arc::new(build(offload, nodes)?)),
            Kind::State(_) => None,
        };
        Self::on(subject, offload, lab, 0)
    }

    /// Stages for the same subject on the other nodes of the lab.
    pub(super) fn others(&self) -> Result<Vec<Self>, Fault> {
        let on = |node| Self::on(&self.subject, self.offload, self.lab.clone(), node);
        (1..self.lab()?.nodes().len()).map(on).collect()
    }

    fn on(subject: &Subject, offload: Offload, lab: Option<Arc<Lab>>, node: usize) -> Result<Self, Fault> {
        let datapath = open(subject, lab.as_deref(), node)?;
        let reconciler = reconciler(datapath.capabilities(), facts(lab.as_deref(), node))?;
        Ok(Self {
            subject: subject.clone(),
            offload,
            datapath,
            reconciler,
            lab,
            node,
            start: Clock::now(),
            virtual_time: Duration::ZERO,
            plans: Vec::new(),
            slices: BTreeMap::new(),
            patience: Patience::default(),
            datagrams: BTreeMap::new(),
        })
    }

    /// Ends the case: closes the datapath and removes the lab.
    pub(super) fn close(self) -> Verdict {
        let Self { datapath, lab, .. } = self;
        drop(datapath);
        lab.and_then(Arc::into_inner).map_or(Ok(()), |lab| Ok(lab.close()?))
    }

    /// A second stage for the same subject, with a lab of its own that has two nodes.
    pub(super) fn another(&self) -> Result<Self, Fault> {
        Self::new(&self.subject, self.offload, 2)
    }

    /// The lab; for a datapath without packets, the case ends here.
    pub(super) fn lab(&self) -> Result<&Lab, Fault> {
        self.lab.as_deref().ok_or_else(|| Fault::Excluded("it carries no packets".into()))
    }

    /// The same lab, which outlives a change of this stage.
    pub(super) fn shared_lab(&self) -> Result<Arc<Lab>, Fault> {
        self.lab()?;
        self.lab.clone().ok_or_else(|| Fault::Excluded("it carries no packets".into()))
    }

    /// Plays with sockets that the lab holds meanwhile.
    pub(super) fn with_lab(&mut self, play: impl FnOnce(&mut Self, &Lab) -> Verdict) -> Verdict {
        self.lab()?;
        let lab = self.lab.clone();
        lab.map_or(Ok(()), |lab| play(self, &lab))
    }

    pub(super) fn carries_packets(&self) -> bool {
        self.lab.is_some()
    }

    pub(super) fn capabilities(&self) -> &Capabilities {
        self.model().capabilities()
    }

    pub(super) fn model(&self) -> &Model {
        self.reconciler.model()
    }

    /// What the datapath should hold.
    pub(super) fn desired(&self) -> &State {
        self.reconciler.desired()
    }

    /// Plans applied so far.
    pub(super) fn plans(&self) -> &[Plan] {
        &self.plans
    }

    pub(super) fn now(&self) -> Instant {
        Instant::new(if self.lab.is_some() { self.start.elapsed() } else { self.virtual_time })
    }

    /// Takes changes in and brings the datapath there.
    pub(super) fn change(&mut self, changes: impl IntoIterator<Item = Change>) -> Verdict {
        for change in changes {
            match &change {
                Change::ReplaceEndpoints(slice) => drop(self.slices.insert(slice.name.clone(), slice.clone())),
                Change::RemoveEndpoints(name) => drop(self.slices.remove(name)),
                _ => {}
            }
            self.reconciler.handle_change(change)?;
        }
        self.settle()
    }

    /// Applies plans and ends flows until nothing is left to do now.
    pub(super) fn settle(&mut self) -> Verdict {
        let deadline = Clock::now() + SETTLED;
        for _ in 0..ROUNDS {
            ensure!(Clock::now() < deadline, "not settled after {SETTLED:?}");
            let now = self.now();
            if self.reconciler.wants_observation(now) {
                let observed =
                    self.on_node(|datapath| datapath.observe().and_then(|state| Ok((state, datapath.held_ids()?))))?;
                match observed {
                    Ok((state, held)) => self.reconciler.handle_observed_with(state, held),
                    Err(error) if self.carries_packets() => return Err(error.into()),
                    Err(_) => self.reconciler.handle_observe_failed(now),
                }
            } else if let Some(plan) = self.next_plan(now)? {
                let outcome = self.apply(&plan)?;
                self.check_outcome(&plan, &outcome)?;
                self.reconciler.handle_applied(plan.id, outcome, now);
                self.plans.push(plan);
            } else if let Some(evictions) = self.reconciler.poll_evictions(now) {
                let outcome = self.on_node(|datapath| datapath.evict(&evictions))?;
                self.check_evicted(&outcome)?;
                self.reconciler.handle_evicted(outcome.as_ref(), now);
            } else if let Some(at) = self.reconciler.evictions_wait_until().filter(|at| *at > now) {
                self.pass_time(at.since(now));
            } else if self.reconciler.is_settled() {
                return Ok(());
            } else {
                let (at, _) = self
                    .reconciler
                    .poll_timeout()
                    .ok_or_else(|| Fault::Failed("the reconciler is not settled and waits for nothing".into()))?;
                self.pass_time(at.since(now));
            }
        }
        Err(Fault::Failed(format!("not settled after {ROUNDS} rounds")))
    }

    fn next_plan(&mut self, now: Instant) -> Result<Option<Plan>, Fault> {
        self.reconciler.poll_plan(now).map_err(|error| Fault::Failed(error.to_string()))
    }

    /// Only a datapath without packets, which may be made to fail, may fail.
    fn check_outcome(&self, plan: &Plan, outcome: &Result<(), ApplyError>) -> Verdict {
        match outcome {
            Err(error) if self.carries_packets() => Err(Fault::Failed(format!("applying {}: {error}", plan.summary()))),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// As [`check_outcome`](Self::check_outcome); and one that can cut flows leaves none.
    fn check_evicted(&self, outcome: &Result<Evicted, DatapathError>) -> Verdict {
        match outcome {
            Err(error) if self.carries_packets() => Err(Fault::Failed(format!("ending flows: {}", error.report()))),
            Ok(evicted) if self.capabilities().drain => {
                ensure!(evicted.remaining.is_empty(), "{evicted}");
                Ok(())
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    pub(super) fn apply(&mut self, plan: &Plan) -> Result<Result<(), ApplyError>, Fault> {
        self.on_node(|datapath| datapath.apply(plan))
    }

    /// What the datapath holds; one that is made to fail is asked again.
    pub(super) fn observe(&mut self) -> Result<State, Fault> {
        let mut last = None;
        for _ in 0..if self.carries_packets() { 1 } else { ROUNDS } {
            match self.on_node(|datapath| datapath.observe())? {
                Ok(state) => return Ok(state),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| Fault::Failed("never observed".into()), Fault::from))
    }

    pub(super) fn set_role(&mut self, role: Role) -> Verdict {
        self.on_node(|datapath| datapath.set_role(role))?.map_err(Fault::from)
    }

    pub(super) fn cleanup(&mut self) -> Verdict {
        self.on_node(|datapath| datapath.cleanup())?.map_err(Fault::from)
    }

    /// Ends the process, so to speak, and starts another: the datapath is opened again, and the reconciler learns
    /// everything anew. A datapath without packets has nothing outside of itself and stays open.
    pub(super) fn restart(&mut self) -> Verdict {
        let services: Vec<_> = self.model().services().cloned().map(Change::UpsertService).collect();
        let slices: Vec<_> = self.slices.values().cloned().map(Change::ReplaceEndpoints).collect();
        self.reopen()?;
        self.reconciler = reconciler(self.datapath.capabilities(), facts(self.lab.as_deref(), self.node))?;
        self.change(services.into_iter().chain(slices))
    }

    /// Replaces endpoints while no process runs: the next one finds them.
    pub(super) fn miss(&mut self, slice: EndpointSlice) {
        self.slices.insert(slice.name.clone(), slice);
    }

    /// Closes the datapath and opens it again, if it carries packets.
    pub(super) fn reopen(&mut self) -> Verdict {
        if let Some(lab) = &self.lab {
            // Two at once would be two processes at once.
            let closed = std::mem::replace(&mut self.datapath, Box::new(MemoryDatapath::default()));
            lab.node(self.node).run(|| drop(closed))?;
            self.datapath = open(&self.subject, Some(lab), self.node)?;
        }
        Ok(())
    }

    /// Lets time pass: really, if packets are carried.
    pub(super) fn pass_time(&mut self, time: Duration) {
        if self.lab.is_some() {
            // What is tested is what the passing of time does.
            thread::sleep(time);
        } else {
            self.virtual_time += time;
        }
    }

    fn on_node<T: Send>(&mut self, f: impl FnOnce(&mut dyn Datapath) -> T + Send) -> Result<T, Fault> {
        let datapath = &mut *self.datapath;
        match &self.lab {
            Some(lab) => Ok(lab.node(self.node).run(|| f(datapath))?),
            None => Ok(f(datapath)),
        }
    }
}

fn build(offload: Offload, nodes: usize) -> Result<Lab, Fault> {
    let builder = Lab::builder().nodes(nodes).client_addresses(4).offload(offload);
    let lab = service::pod_specs(nodes).fold(builder, |builder, pod| builder.pod(pod)).build()?;
    lab.route_services_via(0)?;
    Ok(lab)
}

fn open(subject: &Subject, lab: Option<&Lab>, node: usize) -> Result<Box<dyn Datapath>, Fault> {
    match (&subject.kind, lab) {
        (Kind::Packets(open), Some(lab)) => open_on(open.as_ref(), lab.node(node)),
        (Kind::State(open), _) => Ok(open()),
        (Kind::Packets(_), None) => Err(Fault::Failed("no lab to open the datapath in".into())),
    }
}

fn open_on(open: &Opener, node: Node<'_>) -> Result<Box<dyn Datapath>, Fault> {
    let context = NodeContext {
        pin_dir: node.pin_dir()?,
        cgroup: node.cgroup().into(),
        pod_devices: node.pod_devices(),
        uplink_devices: vec![node.uplink().into()],
        run_dir: node.run_dir()?,
        facts: node.facts(),
    };
    Ok(node.run(|| open(&context))??)
}

fn facts(lab: Option<&Lab>, node: usize) -> NodeFacts {
    match lab {
        Some(lab) => lab.node(node).facts(),
        None => NodeFacts {
            name: Some(NodeName::new("node-0")),
            ips: topology::FAMILIES.map(|family| topology::node_ip(0, family)).into(),
            cluster_cidrs: topology::FAMILIES.map(topology::cluster_cidr).into(),
        },
    }
}

fn reconciler(capabilities: Capabilities, facts: NodeFacts) -> Result<Reconciler, Fault> {
    let mut reconciler = Reconciler::new(Model::new(Settings::default(), capabilities));
    reconciler.handle_change(Change::SetNode(facts))?;
    reconciler.handle_change(Change::SetNetworks(topology::FAMILIES.map(topology::segment).into()))?;
    Ok(reconciler)
}
