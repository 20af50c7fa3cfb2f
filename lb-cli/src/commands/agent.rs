//! `lb agent`.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use lb_agent::{
    agent::{Agent, Reload},
    config::{ConfigError, LogLevel, Settings},
    source::ManifestDirectory,
};
use nix::sys::signal::Signal;
use tracing_subscriber::{Registry, filter::LevelFilter, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::{
    cli::AgentArgs,
    exit::{Failure, Outcome, Verdict},
    signals,
};

pub(super) fn run(args: AgentArgs) -> Outcome {
    let input = Input { flags: args.settings, file: args.config };
    let settings = input.read().map_err(|error| Failure::chain(&error))?;
    let given = settings.clone();
    let level = log_to_stderr(settings.log_level.unwrap_or_default());
    let manifests = settings.manifest_directory().map_err(failure)?;
    let config = settings.complete().map_err(failure)?;
    for setting in given.useless_for(config.datapath) {
        tracing::info!(setting, datapath = %config.datapath, "this datapath has no use for the setting");
    }
    signals::block();
    let agent = Agent::new(config).source(ManifestDirectory::new(&manifests)).on_ready(say_ready);
    let (stop, reload) = (agent.stop(), agent.reload());
    let reloader = Reloader { input, manifests, level, reload };
    signals::watch(move |signal| match signal {
        Signal::SIGHUP => reloader.reload(),
        signal => stop.stop(signal.as_str()),
    })?;
    agent.run().map_err(|error| Failure::chain(&error))?;
    Ok(Verdict::Fine)
}

/// Where settings come from.
struct Input {
    flags: Settings,
    file: Option<PathBuf>,
}

impl Input {
    fn read(&self) -> Result<Settings, ConfigError> {
        let file = self.file.as_deref().map(Settings::read).transpose()?;
        Ok(self.flags.clone().over(file.unwrap_or_default()))
    }
}

/// What a SIGHUP does.
struct Reloader {
    input: Input,
    manifests: PathBuf,
    level: reload::Handle<LevelFilter, Registry>,
    reload: Reload,
}

impl Reloader {
    fn reload(&self) {
        tracing::info!(why = Signal::SIGHUP.as_str(), "reading the manifests and the configuration again");
        self.reload.sources();
        if let Err(error) = self.settings() {
            let error = lb_core::error::report(&error);
            tracing::warn!(error, "the configuration has a mistake; the settings stay as they are");
        }
    }

    fn settings(&self) -> Result<(), ConfigError> {
        let settings = self.input.read()?;
        let (manifests, level) = (settings.manifest_directory()?, settings.log_level.unwrap_or_default());
        let config = settings.complete()?;
        let mut later = self.reload.settings(&config);
        later.extend((manifests != self.manifests).then_some("manifests"));
        if !later.is_empty() {
            let settings = later.join(", ");
            tracing::warn!(settings, "these settings differ from those in use, and take effect at the next start");
        }
        self.set_level(filter(level));
        Ok(())
    }

    /// Logs the change, too, unless both levels leave it out.
    fn set_level(&self, new: LevelFilter) {
        // The layer is gone when the process ends.
        let Some(old) = self.level.with_current(|level| *level).ok().filter(|old| *old != new) else { return };
        let log =
            || tracing::info!(%old, %new, why = "the configuration was read again", "the level of the log is changed");
        if old > new {
            log();
        }
        let _ = self.level.reload(new);
        if old < new {
            log();
        }
    }
}

fn failure(error: ConfigError) -> Failure {
    match error {
        ConfigError::Missing(_)
        | ConfigError::NodeIp(..)
        | ConfigError::MaglevSeed(_)
        | ConfigError::Relative { .. } => Failure::Usage(error.to_string()),
        error => Failure::chain(&error),
    }
}

/// Whoever closed standard output does not wait for this line.
fn say_ready() {
    let _ = writeln!(io::stdout(), "ready").and_then(|()| io::stdout().flush());
}

/// Returns what changes the level later.
fn log_to_stderr(level: LogLevel) -> reload::Handle<LevelFilter, Registry> {
    let (level, handle) = reload::Layer::new(filter(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        // It would panic where nobody reads standard error.
        .log_internal_errors(false);
    tracing_subscriber::registry().with(level).with(lines).init();
    handle
}

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
