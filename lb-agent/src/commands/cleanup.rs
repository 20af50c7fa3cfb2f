//! `lb cleanup`.

use std::path::PathBuf;

use lb_core::ErrorKind;
use serde::Serialize;

use crate::{
    agent::{Record, StateDir, StateDirError},
    api::{Client, ClientError},
    cli::CleanupArgs,
    config::DEFAULT_PIN_DIR,
    datapath,
    exit::{Failure, Outcome, Verdict},
    kind::DatapathKind,
    output::{self, Table},
};

/// What became of one datapath.
#[derive(Debug, Serialize)]
struct Cleaned {
    datapath: DatapathKind,
    /// `clean`, `skipped` (this machine cannot have any of it) or `failed`.
    outcome: &'static str,
    /// Why it is not clean.
    detail: Option<String>,
}

pub(super) fn run(args: &CleanupArgs) -> Outcome {
    let _state_dir = if args.force { None } else { alone(args)? };
    let kinds = args.datapath.map_or_else(|| DatapathKind::KERNEL.to_vec(), |kind| vec![kind]);
    let pin_dir = pin_dir(args);
    let cleaned: Vec<Cleaned> = kinds.into_iter().map(|kind| clean(kind, &pin_dir, args.datapath.is_none())).collect();
    output::write(args.ask.output, &cleaned, || table(&cleaned))?;
    let failed = cleaned.iter().any(|cleaned| cleaned.outcome == "failed");
    Ok(if failed { Verdict::Failed } else { Verdict::Fine })
}

/// Makes sure that no agent runs, and that none starts meanwhile.
fn alone(args: &CleanupArgs) -> Result<Option<StateDir>, Failure> {
    match Client::new(&args.ask.socket).status() {
        Err(ClientError::NoAgent { .. }) => {}
        _ => {
            let socket = args.ask.socket.display();
            return Err(Failure::Error(format!("an agent answers on {socket}: stop it first, or use --force")));
        }
    }
    match StateDir::lock(&args.state_dir) {
        Ok(state_dir) => Ok(Some(state_dir)),
        Err(StateDirError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error @ StateDirError::InUse { .. }) => Err(Failure::Error(format!("{error}, or use --force"))),
        Err(error) => Err(Failure::chain(&error)),
    }
}

fn pin_dir(args: &CleanupArgs) -> PathBuf {
    let recorded = || Record::read(&args.state_dir).and_then(|record| record.pin_dir);
    args.pin_dir.clone().or_else(recorded).unwrap_or_else(|| DEFAULT_PIN_DIR.into())
}

fn clean(kind: DatapathKind, pin_dir: &std::path::Path, may_skip: bool) -> Cleaned {
    match datapath::cleanup(kind, pin_dir) {
        Ok(()) => Cleaned { datapath: kind, outcome: "clean", detail: None },
        Err(error) => {
            let skipped = may_skip && error.kind() == ErrorKind::Unsupported;
            let outcome = if skipped { "skipped" } else { "failed" };
            Cleaned { datapath: kind, outcome, detail: Some(error.report()) }
        }
    }
}

fn table(cleaned: &[Cleaned]) -> String {
    let mut table = Table::new(["DATAPATH", "OUTCOME", "DETAIL"]);
    for Cleaned { datapath, outcome, detail } in cleaned {
        table.row([datapath.to_string(), (*outcome).into(), detail.clone().unwrap_or_default()]);
    }
    table.to_string()
}
