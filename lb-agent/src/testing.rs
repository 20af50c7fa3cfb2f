//! What the tests of the agent stand on.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use lb_core::{
    datapath::{ApplyError, Capabilities, Datapath, DatapathError, ErrorKind, Role, Watcher},
    decision::Packet,
    drift::{Drift, Expected, Inspection},
    kernel::KernelAnswer,
    memory::MemoryDatapath,
    model::Change,
    name::SourceName,
    node::NodeFacts,
    plan::Plan,
    state::State,
};
use lb_k8s::{Manifests, Snapshot};

use crate::{
    allocation::Allocation,
    config::Config,
    driver,
    engine::Engine,
    source::{ManifestDirectory, Sources},
};

pub(crate) const WEB: &str = "\
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, labels: {kubernetes.io/service-name: web}},
 addressType: IPv4, ports: [{port: 8080, protocol: TCP}], endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]}
";

/// A memory datapath that others can change while an agent has it.
#[derive(Clone, Default)]
pub(crate) struct Kernel(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    memory: MemoryDatapath,
    /// Told of what others change, if somebody watches.
    watchers: Vec<Sender<()>>,
    inspections: Vec<Inspection>,
    fails: Fails,
}

/// What fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fails {
    pub(crate) inspections: bool,
    pub(crate) repairs: bool,
    pub(crate) questions: bool,
}

impl Kernel {
    /// Changes what is held, as another tool does.
    pub(crate) fn disturb(&self, change: impl FnOnce(&mut State)) {
        let mut inner = self.inner();
        inner.memory.disturb(change);
        inner.watchers.retain(|watcher| watcher.send(()).is_ok());
    }

    pub(crate) fn state(&self) -> State {
        self.inner().memory.state().clone()
    }

    pub(crate) fn inspections(&self) -> Vec<Inspection> {
        self.inner().inspections.clone()
    }

    pub(crate) fn set_fails(&self, fails: Fails) {
        self.inner().fails = fails;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no() -> DatapathError {
    DatapathError::new(ErrorKind::System, "no")
}

impl Datapath for Kernel {
    fn capabilities(&self) -> Capabilities {
        self.inner().memory.capabilities()
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        self.inner().memory.observe()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        self.inner().memory.apply(plan)
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        self.inner().memory.set_role(role)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.inner().memory.cleanup()
    }

    fn inspect(&mut self, expected: Expected<'_>, inspection: Inspection) -> Result<Vec<Drift>, DatapathError> {
        let mut inner = self.inner();
        inner.inspections.push(inspection);
        if inner.fails.inspections { Err(no()) } else { inner.memory.inspect(expected, inspection) }
    }

    fn repair(&mut self, expected: Expected<'_>, found: &[Drift]) -> Result<(), ApplyError> {
        let mut inner = self.inner();
        if !inner.fails.repairs {
            return inner.memory.repair(expected, found);
        }
        let failed = expected.state.frontends.keys().map(|&addr| (addr, no())).collect();
        Err(ApplyError { applied: 0, failed, unknown: None })
    }

    fn watcher(&mut self) -> Result<Option<Box<dyn Watcher>>, DatapathError> {
        let (sender, heard) = channel();
        self.inner().watchers.push(sender);
        Ok(Some(Box::new(Ear(heard))))
    }

    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        let mut inner = self.inner();
        if inner.fails.questions { Ok(None) } else { inner.memory.ask(packet) }
    }
}

struct Ear(Receiver<()>);

impl Watcher for Ear {
    fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError> {
        match self.0.recv_timeout(timeout) {
            Ok(()) => Ok(true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(no()),
        }
    }
}

/// An agent whose first listing is complete.
pub(crate) fn agent(config: &Config, datapath: impl Datapath + 'static) -> Engine {
    agent_of(WEB, config, datapath)
}

/// An agent whose first listing is complete and has this in it.
pub(crate) fn agent_of(manifests: &str, config: &Config, datapath: impl Datapath + 'static) -> Engine {
    let sources = [(SourceName("test".into()), "web.yaml".to_owned())];
    let agent = Engine::new(config, &sources, Box::new(datapath), Box::new(|| {}));
    agent.shared().take_changes(changes(manifests));
    agent
}

/// What reading `text` for the first time changes.
pub(crate) fn changes(text: &str) -> Vec<Change> {
    Manifests::new(SourceName("test".into())).update(Snapshot::parse("web.yaml", text)).changes
}

/// Sources and allocator of an agent that has read nothing.
pub(crate) fn sources(config: &Config) -> Arc<Sources> {
    let allocation = Allocation::open(config).expect("a ledger that is not there is empty");
    Arc::new(Sources::new(vec![Box::new(ManifestDirectory::new("/manifests"))], allocation))
}

pub(crate) fn config() -> Config {
    Config::new(driver::MEMORY, NodeFacts::default(), "/socket", "/state")
}

/// Types of the conditions of the agent as a whole.
pub(crate) fn conditions(agent: &Engine) -> Vec<String> {
    agent.shared().status().conditions.into_iter().map(|condition| condition.kind).collect()
}
