//! The agent: sources on one side, a datapath on the other, a reconciler between them.
//!
//! The thread that runs the agent owns the datapath. One polls the sources and allocates addresses, and each source
//! follows its input on a thread of its own. One serves the API, and others watch devices and drift. The reconciler can
//! be read while the datapath works, so that questions are answered meanwhile.

use std::{
    fmt, io,
    sync::{
        Arc, OnceLock,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};

use lb_core::{datapath::DatapathError, model::Change, name::SourceName};

use crate::{
    allocation::Allocation,
    api::{ListenError, Listener, answers::Answers},
    config::Config,
    driver::DatapathKind,
    engine::{Engine, Event, devices, surroundings::Surroundings},
    host::{
        owner::{Owner, OwnerError},
        state_dir::{StateDir, StateDirError, Used},
    },
    source::{Delivery, Source, SourceError, Sources},
};
pub use crate::{allocation::LedgerFileError, engine::devices::DeviceError};

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The state directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// Somebody else uses this kind of datapath in this network namespace.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The ledger of addresses cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerFileError),
    /// There is no socket to answer on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The datapath cannot be opened.
    #[error("opening datapath {kind} failed: {}", error.report())]
    Datapath {
        /// Its kind.
        kind: DatapathKind,
        /// Why.
        error: DatapathError,
    },
    /// The datapath was opened, and its first use was refused.
    #[error(
        "using datapath {kind} is not permitted: {}: run as root, or with {}",
        error.report(),
        kind.privileges()
    )]
    NotPermitted {
        /// Its kind.
        kind: DatapathKind,
        /// Why.
        error: DatapathError,
    },
    /// A source can never work.
    #[error("{}", lb_core::error::report(&**.0))]
    Source(SourceError),
    /// Devices cannot be followed.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// A thread cannot be started.
    #[error("starting a thread failed")]
    Thread(#[from] io::Error),
}

/// An agent that has not begun.
///
/// ```no_run
/// use lb_agent::{agent::Agent, config::Settings, driver, source::ManifestDirectory};
///
/// let settings = Settings::default().with_datapath(driver::NFTABLES);
/// let agent = Agent::new(settings.complete()?).source(ManifestDirectory::new("/etc/lb"));
/// let stop = agent.stop();
/// // From a signal handler's thread, say: stop.stop("SIGTERM");
/// agent.on_ready(|| println!("ready")).run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Agent {
    config: Config,
    sources: Vec<Box<dyn Source>>,
    kinds: Vec<DatapathKind>,
    on_ready: Box<dyn FnOnce() + Send>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    /// Set when it runs.
    running: Arc<OnceLock<Arc<Sources>>>,
}

/// Ends an agent from another thread.
#[derive(Clone)]
pub struct Stop(Sender<Event>);

impl Stop {
    /// Asks the agent to end; the datapath goes on working. `why` is logged, such as the name of a signal. An agent
    /// that has ended already is no error.
    pub fn stop(&self, why: impl Into<String>) {
        // Nobody listens when the agent is on its way out already.
        drop(self.0.send(Event::Stop(why.into())));
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stop")
    }
}

/// Changes an agent while it runs, from another thread.
#[derive(Clone)]
pub struct Reload {
    /// What the agent started with.
    config: Arc<Config>,
    running: Arc<OnceLock<Arc<Sources>>>,
    events: Sender<Event>,
}

impl Reload {
    /// Has every source look at everything once more. An agent that does not run yet will read everything anyway.
    pub fn sources(&self) {
        self.running.get().into_iter().for_each(|sources| sources.reload());
    }

    /// Takes over from `config` what can change while the agent runs, which is the zone, and returns the names of the
    /// other settings that differ from those that the agent started with: they take effect at the next start.
    #[must_use]
    pub fn settings(&self, config: &Config) -> Vec<&'static str> {
        let zone = vec![Change::SetZone(config.zone.clone())];
        let source = SourceName("settings".into());
        let news = Delivery { source, changes: zone, report: None, conditions: Vec::new(), _accepted: None };
        // Nobody listens when the agent is on its way out already.
        drop(self.events.send(Event::News(news)));
        self.config.restart_for(config)
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Agent {
    /// An agent with these settings. Nothing is opened before [`run`](Self::run).
    #[must_use]
    pub fn new(config: Config) -> Self {
        let (events, inbox) = mpsc::channel();
        let kinds = vec![config.datapath];
        Self { config, sources: Vec::new(), kinds, on_ready: Box::new(|| {}), events, inbox, running: Arc::default() }
    }

    /// Adds a source. Of two objects with one name, the one of the source that was added first is served; of two
    /// services that claim one address, that of the source that was added first gets it. Without any source the agent
    /// serves nothing, and is ready at once.
    #[must_use]
    pub fn source(mut self, source: impl Source + 'static) -> Self {
        self.sources.push(Box::new(source));
        self
    }

    /// Makes a kind of datapath known that is not built in, and that earlier agents with the same state directory may
    /// have used: this agent then cleans up what they left. The kind that it runs itself is known.
    #[must_use]
    pub fn known_kind(mut self, kind: DatapathKind) -> Self {
        self.kinds.push(kind);
        self
    }

    /// Calls `on_ready` once, when the services of every source's first listing are in the datapath.
    #[must_use]
    pub fn on_ready(self, on_ready: impl FnOnce() + Send + 'static) -> Self {
        Self { on_ready: Box::new(on_ready), ..self }
    }

    /// A handle that ends it from another thread, before it begins as well.
    #[must_use]
    pub fn stop(&self) -> Stop {
        Stop(self.events.clone())
    }

    /// A handle that has it read its sources and settings again, from another thread.
    #[must_use]
    pub fn reload(&self) -> Reload {
        let config = Arc::new(self.config.clone());
        Reload { config, running: Arc::clone(&self.running), events: self.events.clone() }
    }

    /// Runs on this thread until it is [stopped](Stop::stop); the datapath goes on working afterwards.
    ///
    /// # Errors
    /// When it cannot start, or is never permitted to use the datapath. An agent that has become ready runs until it is
    /// stopped.
    pub fn run(self) -> Result<(), AgentError> {
        let Self { config, mut sources, kinds, on_ready, events, inbox, running } = self;
        sources.iter_mut().for_each(|source| source.set_node(&config.node));
        let named: Vec<(SourceName, String)> = sources.iter().map(|source| (source.name(), source.place())).collect();
        let mut state_dir = StateDir::claim(&config.state_dir)?;
        let _owner = Owner::claim(config.datapath)?;
        let sources = Arc::new(Sources::new(sources, Allocation::open(&config)?));
        let listener = Listener::bind(&config.socket)?;
        sources.start().map_err(AgentError::Source)?;
        // It is empty: an agent runs once.
        let _ = running.set(Arc::clone(&sources));
        let following = Following::begin(Arc::clone(&sources), events.clone(), inbox)?;
        let refused = |error| AgentError::Datapath { kind: config.datapath, error };
        let used = Used::of(&config);
        let (opened, remembered) = {
            let leaves_something = config.datapath.carries_packets();
            state_dir.open(&used, leaves_something, || config.datapath.open(&config.attachments).map_err(refused))?
        };
        let mut engine = Engine::new(&config, &named, opened, on_ready);
        engine.check_addresses();
        engine.look_around_when_ready(Surroundings::new(&config, used, state_dir, remembered, kinds));
        if config.datapath.carries_packets() {
            devices::watch(events.clone())?;
            engine.follow_devices();
            engine.follow_pods();
        }
        engine.watch_for_drift(&events)?;
        engine.answer_health_checks();
        let answers = Answers::new(engine.shared(), Arc::clone(&sources), events);
        listener.serve(move |request| answers.answer(request))?;
        tracing::info!(datapath = %config.datapath, socket = %config.socket.display(), "started");
        let ended = following.inbox.as_ref().map_or(Ok(()), |inbox| engine.run(inbox));
        // While the engine holds the state directory, so that nobody else has the ledger yet.
        drop(following);
        ended.map_err(|error| AgentError::NotPermitted { kind: config.datapath, error })
    }
}

/// The thread that follows the sources. Dropping this ends it: whoever starts the next agent in this process finds no
/// other one that writes the ledger.
struct Following {
    sources: Arc<Sources>,
    /// Dropped first: the thread may wait until its news is taken.
    inbox: Option<Receiver<Event>>,
    thread: Option<JoinHandle<()>>,
}

impl Following {
    fn begin(sources: Arc<Sources>, events: Sender<Event>, inbox: Receiver<Event>) -> io::Result<Self> {
        let thread = sources.follow(events)?;
        Ok(Self { sources, inbox: Some(inbox), thread: Some(thread) })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.inbox = None;
        self.sources.close();
        // A thread that panicked has said so.
        drop(self.thread.take().map(JoinHandle::join));
    }
}
