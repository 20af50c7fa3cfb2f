//! The agent: sources on one side, a datapath on the other, a reconciler between them.
//!
//! Few threads that block: this one owns the datapath; one watches the manifests, one the devices (eBPF only), one
//! waits for signals, one answers on the socket. The reconciler is behind a lock that nobody holds while the datapath
//! works, so that questions are answered meanwhile.

mod devices;
mod engine;
mod leftovers;
mod manifests;
mod shared;
mod state_dir;
mod view;

use std::{io, sync::mpsc};

use lb_core::DatapathError;
use lb_k8s::Batch;

pub(crate) use self::state_dir::{Record, StateDir, StateDirError, Used};
use self::{devices::DeviceError, engine::Agent, leftovers::Leftovers, manifests::WatchError, shared::Shared};
use crate::{
    api::{Listener, Query, Reply},
    config::Config,
    datapath,
    owner::{Owner, OwnerError},
    signals,
};

/// Something that happened.
enum Event {
    /// The manifests were read.
    Manifests(Batch),
    /// The manifest directory cannot be watched any more.
    WatchFailed(String),
    /// The manifest directory is gone, and why that is known, or it is there again.
    Directory(Option<String>),
    /// Devices came, went or changed.
    Devices,
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
    let listener = Listener::bind(&config.socket)?;
    let (events, inbox) = mpsc::channel();
    let stop = events.clone();
    // Nobody listens when the agent is on its way out already.
    signals::watch(move |signal| drop(stop.send(Event::Stop(signal))))?;
    manifests::watch(&config.manifests, events.clone())?;
    let left = state_dir.begin(&Used::of(config))?;
    let opened = datapath::open(config).map_err(|error| AgentError::Datapath { kind: config.datapath, error })?;
    let mut agent = Agent::new(config, opened);
    agent.check_addresses(config);
    agent.clean_up_when_ready(Leftovers::new(state_dir, config.socket.clone(), left));
    if config.ebpf.is_some() {
        devices::watch(events)?;
        agent.follow_devices();
    }
    let shared = agent.shared();
    listener.serve(move |path, query| answer(&shared, path, query))?;
    tracing::info!(datapath = %config.datapath, socket = %config.socket.display(), "started");
    agent.run(&inbox).map_err(|error| AgentError::NotPermitted { kind: config.datapath, error })
}

fn answer(shared: &Shared, path: &str, query: &Query) -> Reply {
    match path {
        "/v1/services" => Reply::ok(&shared.services()),
        "/v1/backends" => Reply::ok(&shared.backends()),
        "/v1/status" => Reply::ok(&shared.status()),
        "/v1/explain" => {
            let part = |name| query.value(name).unwrap_or_default();
            match shared.explain(part("protocol"), part("source"), part("destination"), query.value("entry")) {
                Ok(explanation) => Reply::ok(&explanation),
                Err(error) => Reply::problem(400, error.to_string()),
            }
        }
        _ => Reply::problem(404, format!("there is no {path} here")),
    }
}
