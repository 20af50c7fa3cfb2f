//! `lb agent`.

use std::io::{self, IsTerminal, Write};

use lb_agent::{
    agent::Agent,
    config::{ConfigError, LogLevel, Settings},
    source::ManifestDirectory,
};
use tracing_subscriber::filter::LevelFilter;

use crate::{
    cli::AgentArgs,
    exit::{Failure, Outcome, Verdict},
    signals,
};

pub(super) fn run(args: AgentArgs) -> Outcome {
    let file = args.config.as_deref().map(Settings::read).transpose().map_err(|error| Failure::chain(&error))?;
    let settings = args.settings.over(file.unwrap_or_default());
    let given = settings.clone();
    log_to_stderr(settings.log_level.unwrap_or_default());
    let manifests = settings.manifest_directory().map_err(failure)?;
    let config = settings.complete().map_err(failure)?;
    for setting in given.useless_for(config.datapath) {
        tracing::info!(setting, datapath = %config.datapath, "this datapath has no use for the setting");
    }
    signals::block();
    let agent = Agent::new(config).source(ManifestDirectory::new(manifests)).on_ready(say_ready);
    let stop = agent.stop();
    signals::watch(move |signal| stop.stop(signal))?;
    agent.run().map_err(|error| Failure::chain(&error))?;
    Ok(Verdict::Fine)
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

fn log_to_stderr(level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_ansi(colours)
        .with_target(false)
        // It would panic where nobody reads standard error.
        .log_internal_errors(false)
        .init();
}
