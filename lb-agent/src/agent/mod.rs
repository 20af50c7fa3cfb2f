//! The agent: sources on one side, a datapath on the other, a reconciler between them.
//!
//! Few threads that block: this one owns the datapath; one watches the manifests and gives addresses, one the devices (eBPF only), one
//! waits for signals, one for changes that others make to the datapath, one answers on the socket. The reconciler can be
//! read while the datapath works, so that questions are answered meanwhile.

mod allocation;
mod answer;
mod devices;
mod drift;
mod engine;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod inspection;
mod leftovers;
#[cfg(test)]
mod maglev_tests;
mod manifests;
mod shared;
mod source;
mod state_dir;
#[cfg(any(test, fuzzing))]
mod testing;
mod view;
mod watch;

use std::{
    io,
    sync::{Arc, mpsc},
};

use lb_core::{Change, DatapathError};
use lb_k8s::Batch;

pub(crate) use self::state_dir::{Record, StateDir, StateDirError, Used};
use self::{
    allocation::{Allocation, LedgerFileError},
    answer::Answers,
    devices::DeviceError,
    engine::Agent,
    inspection::Question,
    leftovers::Leftovers,
    manifests::{Taken, WatchError},
    source::Source,
    watch::Alarm,
};
use crate::{
    api::Listener,
    config::Config,
    datapath,
    owner::{Owner, OwnerError},
    signals,
};

/// Something that happened.
enum Event {
    /// The manifests were read. Nothing more is read until this is taken.
    Manifests(Batch, Taken),
    /// What services get changed, though nothing was read.
    Changes(Vec<Change>, Taken),
    /// The manifest directory cannot be watched any more.
    WatchFailed(String),
    /// The manifest directory is gone, and why that is known, or it is there again.
    Directory(Option<String>),
    /// Devices came, went or changed.
    Devices,
    /// What is known of changes that others make to the datapath.
    Alarm(Alarm),
    /// Somebody asks what only the datapath knows.
    Question(Question),
    /// A signal says that it is time to go.
    Stop(&'static str),
}

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error(transparent)]
    Owner(#[from] OwnerError),
    #[error(transparent)]
    Ledger(#[from] LedgerFileError),
    #[error(transparent)]
    Listen(#[from] crate::api::ListenError),
    #[error("opening datapath {kind} failed: {}", error.report())]
    Datapath { kind: crate::DatapathKind, error: DatapathError },
    #[error(
        "datapath {kind} is not ours to use: {}: run as root, or with CAP_NET_ADMIN and, for ebpf, CAP_BPF",
        error.report()
    )]
    NotPermitted { kind: crate::DatapathKind, error: DatapathError },
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Devices(#[from] DeviceError),
    #[error("starting a thread failed")]
    Thread(#[from] io::Error),
}

/// Runs until a signal; the datapath goes on working afterwards.
pub(crate) fn run(config: &Config) -> Result<(), AgentError> {
    signals::block();
    let state_dir = StateDir::claim(&config.state_dir)?;
    let _owner = Owner::claim(config.datapath)?;
    let source = Arc::new(Source::new(Allocation::open(config)?));
    let listener = Listener::bind(&config.socket)?;
    let (events, inbox) = mpsc::channel();
    let stop = events.clone();
    // Nobody listens when the agent is on its way out already.
    signals::watch(move |signal| drop(stop.send(Event::Stop(signal))))?;
    manifests::watch(&config.manifests, Arc::clone(&source), events.clone())?;
    let refused = |error| AgentError::Datapath { kind: config.datapath, error };
    let (opened, left) = state_dir.open(&Used::of(config), || datapath::open(config).map_err(refused))?;
    let mut agent = Agent::new(config, opened);
    agent.check_addresses(config);
    agent.clean_up_when_ready(Leftovers::new(state_dir, config.socket.clone(), left));
    if config.ebpf.is_some() {
        devices::watch(events.clone())?;
        agent.follow_devices();
    }
    agent.watch_for_drift(&events)?;
    let answers = Answers::new(agent.shared(), source, events);
    listener.serve(move |request| answers.answer(request))?;
    tracing::info!(datapath = %config.datapath, socket = %config.socket.display(), "started");
    agent.run(&inbox).map_err(|error| AgentError::NotPermitted { kind: config.datapath, error })
}
