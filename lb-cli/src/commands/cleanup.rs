//! `lb cleanup`.

use std::{collections::BTreeSet, path::PathBuf};

use lb_agent::{
    api::{Client, ClientError},
    driver::{self, Setting},
    host::{
        owner::Owner,
        state_dir::{Record, StateDir, StateDirError, Used},
    },
};
use lb_core::datapath::ErrorKind;
use serde::Serialize;

use crate::{
    cli::CleanupArgs,
    exit::{Failure, Outcome, Verdict},
    output::{self, Table},
};

/// What became of one datapath.
#[derive(Debug, Serialize)]
struct Cleaned {
    datapath: String,
    /// Where it was pinned, if it has pins.
    pin_dir: Option<PathBuf>,
    /// `clean`, `skipped` (this machine cannot have any of it), `left` (somewhere else than `--pin-dir`) or `failed`.
    outcome: &'static str,
    /// Why it is not clean.
    detail: Option<String>,
}

pub(super) fn run(args: &CleanupArgs) -> Outcome {
    let _state_dir = if args.force { None } else { alone(args)? };
    let record = Record::read(&args.state_dir).map_err(|error| Failure::chain(&error))?;
    let (targets, left) = targets(args, &record);
    let mut cleaned: Vec<Cleaned> = targets.iter().map(|used| clean(args, used, &record)).collect();
    cleaned.extend(left.iter().map(|used| Cleaned::new(used, "left", Some(how_to_remove(used)))));
    output::write(args.ask.output, &cleaned, || table(&cleaned))?;
    let failed = cleaned.iter().any(|cleaned| cleaned.outcome == "failed");
    Ok(if failed { Verdict::Failed } else { Verdict::Fine })
}

/// What to clean up, and what of the same datapaths is left because `--pin-dir` names another place.
fn targets(args: &CleanupArgs, record: &Record) -> (BTreeSet<Used>, Vec<Used>) {
    let kinds = args.datapath.map_or_else(driver::carrying, |kind| vec![kind]);
    let (mut targets, mut left) = (BTreeSet::new(), Vec::new());
    for kind in kinds {
        if !kind.reads(Setting::PinDir) {
            targets.insert(Used::new(kind, None));
            continue;
        }
        let recorded = record.used.iter().filter(|used| used.kind() == Some(kind)).cloned();
        match &args.pin_dir {
            Some(path) => {
                let target = Used::new(kind, Some(path));
                left.extend(recorded.filter(|used| *used != target));
                targets.insert(target);
            }
            None => {
                let before = targets.len();
                targets.extend(recorded);
                if targets.len() == before {
                    targets.insert(Used::new(kind, None));
                }
            }
        }
    }
    (targets, left)
}

fn how_to_remove(used: &Used) -> String {
    format!("not asked for: run it with --pin-dir {}", used.pin_dir().display())
}

/// Makes sure that no agent runs, and that none starts meanwhile.
fn alone(args: &CleanupArgs) -> Result<Option<StateDir>, Failure> {
    match Client::new(&args.ask.socket).status() {
        Err(ClientError::NoAgent { .. }) => {}
        // Nobody knows whether there is one.
        Err(error @ ClientError::Denied { .. }) => return Err(error.into()),
        Err(error @ ClientError::Silent { .. }) => {
            return Err(Failure::Error(format!("{error}; end it first, or use --force")));
        }
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

fn clean(args: &CleanupArgs, used: &Used, record: &Record) -> Cleaned {
    let is_known = record.used.contains(used);
    // One that was used here is not one that this machine cannot have.
    let may_skip = args.datapath.is_none() && !is_known;
    match remove(args, used) {
        Ok(()) => match Record::forget(&args.state_dir, used) {
            Ok(()) => Cleaned::new(used, "clean", None),
            Err(error) => Cleaned::new(used, "failed", Some(lb_core::error::report(&error))),
        },
        Err((kind, error)) => {
            let skipped = may_skip && kind == Some(ErrorKind::Unsupported);
            Cleaned::new(used, if skipped { "skipped" } else { "failed" }, Some(error))
        }
    }
}

fn remove(args: &CleanupArgs, used: &Used) -> Result<(), (Option<ErrorKind>, String)> {
    let kind = used.kind().ok_or((None, "this program does not have that kind of datapath".to_owned()))?;
    let cleanup = || kind.cleanup(used.pin_dir());
    if args.force {
        return cleanup().map_err(|error| (Some(error.kind()), error.report()));
    }
    let _owner = Owner::claim(kind).map_err(|error| (None, lb_core::error::report(&error)))?;
    cleanup().map_err(|error| (Some(error.kind()), error.report()))
}

impl Cleaned {
    fn new(used: &Used, outcome: &'static str, detail: Option<String>) -> Self {
        Self { datapath: used.datapath.clone(), pin_dir: used.pin_dir.clone(), outcome, detail }
    }
}

fn table(cleaned: &[Cleaned]) -> String {
    let mut table = Table::new(["DATAPATH", "PIN DIRECTORY", "OUTCOME", "DETAIL"]);
    for Cleaned { datapath, pin_dir, outcome, detail } in cleaned {
        let pin_dir = pin_dir.as_ref().map(|path| path.display().to_string());
        table.row([
            datapath.clone(),
            pin_dir.unwrap_or_default(),
            (*outcome).into(),
            detail.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}
