//! lb in a program that lives in tokio.
//!
//! `cargo run -p lb-examples --example tokio` needs no privilege. Services come and go at runtime, the datapath refuses
//! some of them for a while, another tool disturbs it, and the program stops without losing anything. To program a
//! kernel, hand [`start`] an `EbpfDatapath`, an `NftablesDatapath` or an `IptablesDatapath`.
//!
//! A `Datapath` blocks: it waits for the kernel, and no await point can interrupt it in the middle of a plan. So it
//! gets a thread of its own, and channels lead in and out.

use std::{
    error::Error,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::{ApplyError, Capabilities, Datapath, DatapathError, Role, Watcher},
    drift::Inspection,
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    faulty::{Faults, Faulty},
    memory::MemoryDatapath,
    model::{Change, Model, ModelError, Settings},
    name::{ServiceName, SliceName},
    node::NodeFacts,
    plan::Plan,
    reconciler::{FrontendStatus, Reconciler},
    service::{Service, ServicePort},
    state::{Answer, State},
    time::Instant,
};
use tokio::sync::{
    mpsc::{self as stream, error::TrySendError},
    oneshot,
};

/// One thread is enough for this runtime, since nothing below blocks it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    tokio::time::timeout(Duration::from_secs(20), serve()).await?
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let kernel = Kernel::default();
    // Half of the frontends are refused at first, the very first one among them.
    let faults = Faults { refused_frontends: 500, ..Faults::default() };
    let (balancer, mut events) = start(Box::new(Faulty::new(kernel.clone(), faults, 1)))?;

    let web = FrontendAddr::new("10.96.0.10".parse()?, 80, Protocol::Tcp);
    balancer.change(Change::UpsertService(service()?)).await?;
    balancer.change(Change::ReplaceEndpoints(endpoints()?)).await?;
    let mut refusals = 0;
    while let Some(event) = events.recv().await {
        println!("{event:?}");
        match event {
            Event::Status(addr, Some(FrontendStatus::Failed { .. })) if addr == web => refusals += 1,
            Event::Status(addr, Some(FrontendStatus::Done)) if addr == web => break,
            Event::Status(..) | Event::Repaired(_) => {}
        }
    }
    assert!(refusals > 0, "the datapath refused {web} at first, and the time-out tried it again");
    assert!(matches!(kernel.state().answer(&web, 0), Answer::Backends(backends) if backends.len() == 2));

    kernel.edit(|state| state.frontends.clear());
    while !matches!(events.recv().await.ok_or("the datapath's thread has ended")?, Event::Repaired(1..)) {}
    assert!(kernel.state().frontends.contains_key(&web), "what another tool removed is there again");

    balancer.change(Change::RemoveService(ServiceName::new("default", "web"))).await?;
    while events.recv().await.ok_or("the datapath's thread has ended")? != Event::Status(web, None) {}

    // A program would wait for `tokio::signal::ctrl_c` here. The kernel goes on serving what it holds.
    let mut datapath = balancer.stop().await?;
    assert!(datapath.observe()?.frontends.is_empty(), "the service is gone from the datapath");
    assert_eq!(events.recv().await, None, "the stream of events has ended");
    Ok(())
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

/// The async side: any task may have a reference.
struct Balancer {
    inbox: mpsc::Sender<Message>,
    thread: JoinHandle<Box<dyn Datapath>>,
}

/// What the thread of the datapath is told.
enum Message {
    /// The answer is the model's: it comes before the datapath has carried anything out.
    Change(Box<Change>, oneshot::Sender<Result<(), ModelError>>),
    /// Somebody else may have changed what the datapath holds.
    Suspicion(Inspection),
    Stop,
}

/// What the host hears.
#[derive(Debug, PartialEq)]
enum Event {
    /// A frontend has another status; `None` when it is gone.
    Status(FrontendAddr, Option<FrontendStatus>),
    /// So many differences were put right.
    Repaired(usize),
}

/// Events that wait for a host that is busy.
const WAITING_EVENTS: usize = 64;

/// Starts the thread of the datapath.
///
/// It is not one of `spawn_blocking`: those are for work that ends, they are few, and a runtime that shuts down waits
/// for them.
fn start(mut datapath: Box<dyn Datapath>) -> Result<(Balancer, stream::Receiver<Event>), Box<dyn Error>> {
    let (inbox, messages) = mpsc::channel();
    let (events, stream) = stream::channel(WAITING_EVENTS);
    let alarm = datapath.watcher()?.map(|watcher| Alarm::start(watcher, inbox.clone())).transpose()?;
    let thread = thread::Builder::new().name("datapath".into()).spawn(move || {
        let datapath = Driver::new(datapath, events).run(&messages);
        drop(alarm);
        datapath
    })?;
    Ok((Balancer { inbox, thread }, stream))
}

impl Balancer {
    /// Hands a change over and waits for the model's answer. What becomes of it in the datapath is in the events.
    async fn change(&self, change: Change) -> Result<(), Box<dyn Error>> {
        let (answer, answered) = oneshot::channel();
        self.inbox.send(Message::Change(Box::new(change), answer))?;
        Ok(answered.await??)
    }

    /// Ends the thread after the plan that it is at, and returns the datapath.
    async fn stop(self) -> Result<Box<dyn Datapath>, Box<dyn Error>> {
        self.inbox.send(Message::Stop)?;
        // Joining blocks, for a short while: that is what `spawn_blocking` is for.
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        joined.map_err(|_| "the datapath's thread panicked".into())
    }
}

/// Watches the datapath on a thread of its own, since waiting blocks too.
struct Alarm {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long a watcher waits before it looks whether it should end. A stop takes as long at most.
const WATCH: Duration = Duration::from_millis(50);

impl Alarm {
    fn start(mut watcher: Box<dyn Watcher>, inbox: mpsc::Sender<Message>) -> Result<Self, Box<dyn Error>> {
        let ends = Arc::new(AtomicBool::new(false));
        let told_to_end = Arc::clone(&ends);
        let thread = thread::Builder::new().name("watcher".into()).spawn(move || {
            while !told_to_end.load(Ordering::Relaxed) {
                let inspection = match watcher.wait(WATCH) {
                    Ok(false) => continue,
                    Ok(true) => Inspection::Suspects,
                    // It missed something: everything deserves a look, but not in a loop that spins.
                    Err(_) => {
                        thread::sleep(WATCH);
                        Inspection::Everything
                    }
                };
                if inbox.send(Message::Suspicion(inspection)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { ends, thread: Some(thread) })
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A watcher that panicked has nothing left to end.
            drop(thread.join());
        }
    }
}

/// The blocking side: it owns the datapath and the reconciler, so neither needs a lock.
struct Driver {
    datapath: Box<dyn Datapath>,
    reconciler: Reconciler,
    events: stream::Sender<Event>,
    /// Differences that were put right and that the host has not heard of.
    repaired: usize,
    /// The clock that the reconciler is told.
    start: std::time::Instant,
    look_at: Instant,
}

/// Time between two looks at everything: a watcher does not see every change.
const LOOK: Duration = Duration::from_secs(60);
/// Shortest wait: a time-out that has passed must not make this thread spin.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// Longest wait while events are left that the host has no room for.
const FULL_WAIT: Duration = Duration::from_millis(20);

impl Driver {
    fn new(datapath: Box<dyn Datapath>, events: stream::Sender<Event>) -> Self {
        let mut reconciler = Reconciler::new(Model::new(Settings::default(), datapath.capabilities()));
        reconciler.handle_change(Change::SetNode(NodeFacts::default())).expect("facts claim no address");
        let start = std::time::Instant::now();
        Self { datapath, reconciler, events, repaired: 0, start, look_at: Instant::new(LOOK) }
    }

    fn run(mut self, messages: &mpsc::Receiver<Message>) -> Box<dyn Datapath> {
        loop {
            self.settle();
            let is_heard = self.tell();
            match messages.recv_timeout(self.patience(is_heard)) {
                // Nobody waits for the answer when the task that asked was cancelled.
                Ok(Message::Change(change, answer)) => drop(answer.send(self.reconciler.handle_change(*change))),
                Ok(Message::Suspicion(inspection)) => self.inspect(inspection),
                Err(RecvTimeoutError::Timeout) if self.now() >= self.look_at => self.inspect(Inspection::Everything),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return self.datapath,
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::new(self.start.elapsed())
    }

    /// Observes when the reconciler asks for it, and carries plans out until there is none.
    fn settle(&mut self) {
        if self.reconciler.wants_observation(self.now()) {
            match self.datapath.observe() {
                Ok(state) => self.reconciler.handle_observed(state),
                Err(_) => self.reconciler.handle_observe_failed(self.now()),
            }
        }
        while let Ok(Some(plan)) = self.reconciler.poll_plan(self.now()) {
            let outcome = self.datapath.apply(&plan);
            self.reconciler.handle_applied(plan.id, outcome, self.now());
        }
    }

    /// Hands over as many events as the host has room for; returns whether none is left.
    ///
    /// It never waits for the host: a slow one must not hold up the datapath. What has to wait stays in the reconciler,
    /// which keeps only the latest status of each frontend, so no queue grows.
    fn tell(&mut self) -> bool {
        loop {
            let room = match self.events.try_reserve() {
                Ok(room) => room,
                Err(TrySendError::Full(())) => return false,
                Err(TrySendError::Closed(())) => return true,
            };
            if self.repaired > 0 {
                room.send(Event::Repaired(std::mem::take(&mut self.repaired)));
            } else if let Some((addr, status)) = self.reconciler.poll_event() {
                room.send(Event::Status(addr, status));
            } else {
                return true;
            }
        }
    }

    /// How long to wait for a message: until the reconciler wants to try again, or until the next look.
    fn patience(&self, is_heard: bool) -> Duration {
        let retry_at = self.reconciler.poll_timeout().map(|(at, _why)| at);
        let due = retry_at.map_or(self.look_at, |at| at.min(self.look_at));
        let wait = due.since(self.now()).max(MIN_WAIT);
        if is_heard { wait } else { wait.min(FULL_WAIT) }
    }

    fn inspect(&mut self, inspection: Inspection) {
        if inspection == Inspection::Everything {
            self.look_at = self.now() + LOOK;
        }
        // Before the first observation nothing is expected.
        let Some(expected) = self.reconciler.expected() else { return };
        let Ok(found) = self.datapath.inspect(expected, inspection) else { return };
        if found.is_empty() {
            return;
        }
        let outcome = self.datapath.repair(expected, &found);
        if outcome.is_ok() {
            self.repaired += found.len();
        }
        self.reconciler.handle_repaired(outcome, self.now());
    }
}

/// Stands in for the kernel: this program changes it through a datapath, and another tool changes it too.
#[derive(Clone, Default)]
struct Kernel(Arc<Tables>);

/// The tables of the kernel, and a count by which a watcher notices that another tool changed them.
#[derive(Default)]
struct Tables {
    memory: Mutex<MemoryDatapath>,
    /// Edits by other tools.
    edits: Mutex<u64>,
    edited: Condvar,
}

impl Kernel {
    /// As another tool would.
    fn edit(&self, edit: impl FnOnce(&mut State)) {
        self.memory().disturb(edit);
        *self.0.edits.lock().expect("nobody panics with it") += 1;
        self.0.edited.notify_all();
    }

    fn state(&self) -> State {
        self.memory().state().clone()
    }

    fn memory(&self) -> MutexGuard<'_, MemoryDatapath> {
        self.0.memory.lock().expect("nobody panics with it")
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
        Ok(Some(Box::new(Edits { kernel: self.clone(), seen: 0 })))
    }
}

/// Notices edits, as a listener to the kernel's notifications does.
struct Edits {
    kernel: Kernel,
    seen: u64,
}

impl Watcher for Edits {
    fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError> {
        let edits = self.kernel.0.edits.lock().expect("nobody panics with it");
        let waited = self.kernel.0.edited.wait_timeout_while(edits, timeout, |edits| *edits == self.seen);
        let (edits, _) = waited.expect("nobody panics with it");
        let is_news = *edits != self.seen;
        self.seen = *edits;
        Ok(is_news)
    }
}
