//! lb in a program that lives in tokio.
//!
//! `cargo run -p lb-examples --example tokio` needs no privilege. Services come and go at runtime, the datapath refuses
//! some of them for a while, another tool disturbs it, and the program stops without losing anything. To program a
//! kernel, hand [`start`] an `EbpfDatapath`, an `NftablesDatapath` or an `IptablesDatapath`.
//!
//! A `Datapath` blocks: it waits for the kernel, and no await point can interrupt it in the middle of a plan. So the
//! runner has a thread of its own, and a channel of tokio carries its events.

use std::{
    error::Error,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    task::{Wake, Waker},
    time::Duration,
};

use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::{ApplyError, Capabilities, Datapath, DatapathError, Role, Watcher},
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    faulty::{Faults, Faulty},
    memory::MemoryDatapath,
    model::{Change, Model, Settings},
    name::{ServiceName, SliceName, SourceName},
    node::NodeFacts,
    plan::Plan,
    reconciler::FrontendStatus,
    runner::{DriftOutcome, Event, Handle, Runner},
    service::{Service, ServicePort},
    state::{Answer, State},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// One thread is enough for this runtime, since nothing below blocks it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    tokio::time::timeout(Duration::from_secs(20), serve()).await?
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let kernel = Kernel::default();
    // Half of the frontends are refused at first, the very first one among them.
    let faults = Faults { refused_frontends: 500, ..Faults::default() };
    let (handle, mut events) = start(Box::new(Faulty::new(kernel.clone(), faults, 3)))?;

    let web = FrontendAddr::new("10.96.0.10".parse()?, 80, Protocol::Tcp);
    // A change is handed over at once: nothing here waits for the datapath.
    handle.change(Change::UpsertService(service()?))?;
    handle.change(Change::ReplaceEndpoints(endpoints()?))?;
    handle.change(Change::InitDone(source()))?;
    let mut refusals = 0;
    while let Some(event) = events.recv().await {
        println!("{event}");
        match event {
            Event::Frontend(addr, Some(FrontendStatus::Failed { .. })) if addr == web => refusals += 1,
            Event::Frontend(addr, Some(FrontendStatus::Done)) if addr == web => break,
            _ => {}
        }
    }
    assert!(refusals > 0, "the datapath refused {web} at first, and the time-out tried it again");
    assert!(matches!(kernel.state().answer(&web, 0), Answer::Backends(backends) if backends.len() == 2));

    kernel.edit(|state| state.frontends.clear());
    while !is_repaired(&events.recv().await.ok_or("the datapath's thread has ended")?) {}
    assert!(kernel.state().frontends.contains_key(&web), "what another tool removed is there again");

    handle.change(Change::RemoveService(ServiceName::new("default", "web")))?;
    let is_gone = |event: &Event| matches!(event, Event::Frontend(addr, None) if *addr == web);
    while !is_gone(&events.recv().await.ok_or("the datapath's thread has ended")?) {}

    // A program would wait for `tokio::signal::ctrl_c` here. The kernel goes on serving what it holds.
    // Stopping blocks for as long as a plan takes: that is what `spawn_blocking` is for.
    let mut datapath = tokio::task::spawn_blocking(|| handle.stop()).await??;
    assert!(datapath.observe()?.frontends.is_empty(), "the service is gone from the datapath");
    while events.recv().await.is_some() {}
    Ok(())
}

/// Starts the thread of the datapath; events come in a channel of tokio.
fn start(datapath: Box<dyn Datapath>) -> Result<(Handle, UnboundedReceiver<Event>), Box<dyn Error>> {
    let node = NodeFacts { ips: vec!["192.0.2.1".parse()?], ..NodeFacts::default() };
    let model = Model::new(Settings::default(), datapath.capabilities());
    let runner = Runner::new(model, node, [source()]);
    // The thread must not wait for a task that is slow, so the channel has no bound.
    let (sender, events) = mpsc::unbounded_channel();
    let handle = runner.spawn(datapath, move |event| drop(sender.send(event)))?;
    Ok((handle, events))
}

fn is_repaired(event: &Event) -> bool {
    let Event::Inspected(inspected) = event else { return false };
    inspected.changed.iter().any(|record| record.outcome == DriftOutcome::Repaired)
}

fn source() -> SourceName {
    SourceName("tokio".into())
}

fn service() -> Result<Service, Box<dyn Error>> {
    let cluster_ips = vec!["10.96.0.10".parse()?];
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    Ok(Service { cluster_ips, ports: vec![port], ..Service::new(ServiceName::new("default", "web")) })
}

fn endpoints() -> Result<EndpointSlice, Box<dyn Error>> {
    Ok(EndpointSlice {
        name: SliceName::new("default", "web-1"),
        service: ServiceName::new("default", "web"),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![Endpoint::new("10.244.0.7".parse()?), Endpoint::new("10.244.0.8".parse()?)],
    })
}

/// Stands in for the kernel: this program changes it through a datapath, and another tool changes it too.
#[derive(Clone, Default)]
struct Kernel(Arc<Tables>);

/// The tables of the kernel, and what its watcher is told.
#[derive(Default)]
struct Tables {
    memory: Mutex<MemoryDatapath>,
    news: Mutex<News>,
    changed: Condvar,
}

#[derive(Default)]
struct News {
    /// Edits by other tools that the watcher has not seen.
    edits: u64,
    /// Whether the watcher is to end its wait.
    woken: bool,
}

impl Kernel {
    /// As another tool would.
    fn edit(&self, edit: impl FnOnce(&mut State)) {
        self.memory().disturb(edit);
        self.0.news().edits += 1;
        self.0.changed.notify_all();
    }

    fn state(&self) -> State {
        self.memory().state().clone()
    }

    fn memory(&self) -> MutexGuard<'_, MemoryDatapath> {
        self.0.memory.lock().expect("nobody panics with it")
    }
}

impl Tables {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().expect("nobody panics with it")
    }
}

impl Wake for Tables {
    fn wake(self: Arc<Self>) {
        self.news().woken = true;
        self.changed.notify_all();
    }
}

impl Datapath for Kernel {
    fn capabilities(&self) -> Capabilities {
        self.memory().capabilities()
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        self.memory().observe()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        self.memory().apply(plan)
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        self.memory().set_role(role)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.memory().cleanup()
    }

    fn watcher(&mut self) -> Result<Option<Box<dyn Watcher>>, DatapathError> {
        Ok(Some(Box::new(Edits(self.clone()))))
    }
}

/// Notices edits, as a listener to the kernel's notifications does.
struct Edits(Kernel);

impl Watcher for Edits {
    fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError> {
        let tables = &self.0.0;
        let is_quiet = |news: &mut News| news.edits == 0 && !news.woken;
        let waited = tables.changed.wait_timeout_while(tables.news(), timeout, is_quiet);
        let (mut news, _) = waited.expect("nobody panics with it");
        Ok(std::mem::take(&mut *news).edits > 0)
    }

    fn waker(&self) -> Option<Waker> {
        Some(Arc::clone(&self.0.0).into())
    }
}
