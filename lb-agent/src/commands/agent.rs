//! `lb agent`.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::LevelFilter;

use crate::{
    agent,
    cli::AgentArgs,
    config::{ConfigError, LogLevel, Settings},
    exit::{Failure, Outcome, Verdict},
};

pub(super) fn run(args: AgentArgs) -> Outcome {
    let file = args.config.as_deref().map(Settings::read).transpose().map_err(|error| Failure::chain(&error))?;
    let settings = args.settings.over(file.unwrap_or_default());
    let given = settings.clone();
    log_to_stderr(settings.log_level.unwrap_or_default());
    let config = settings.complete().map_err(|error| match error {
        ConfigError::Missing(_) | ConfigError::NodeIp(..) | ConfigError::MaglevSeed(_) => {
            Failure::Usage(error.to_string())
        }
        error => Failure::chain(&error),
    })?;
    for setting in given.useless_for(config.datapath) {
        tracing::warn!(setting, datapath = %config.datapath, "this datapath has no use for the setting");
    }
    agent::run(&config).map_err(|error| Failure::chain(&error))?;
    Ok(Verdict::Fine)
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
