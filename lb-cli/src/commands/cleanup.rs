//! `lb cleanup`.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use lb_agent::{
    api::{Client, ClientError},
    driver::{self, DatapathKind, Setting},
    host::{
        cleanup::{Cleaned, clean_up, is_within_reach},
        place::Whereabouts,
        state_dir::{Record, StateDir, StateDirError, Used},
    },
};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use crate::{
    cli::CleanupArgs,
    exit::{Failure, Outcome, Verdict},
    output::{self, Table},
};

/// What became of one datapath.
#[derive(Debug, Serialize)]
struct Line {
    datapath: String,
    /// Where it was pinned, if it has pins.
    pin_dir: Option<PathBuf>,
    /// Number of the network namespace, if that is known.
    network_namespace: Option<u64>,
    /// `removed`, `absent` (somebody looked, and nothing was there), `not-inspected` or `failed`.
    outcome: &'static str,
    /// What was removed, or why nothing was.
    detail: Option<String>,
    /// Whether that makes the command fail.
    #[serde(skip)]
    fails: bool,
}

pub(super) fn run(args: &CleanupArgs) -> Outcome {
    let _state_dir = if args.force { None } else { alone(args)? };
    let record = Record::read(&args.state_dir).map_err(|error| Failure::chain(&error))?;
    if record.used.is_empty() && args.pin_dir.is_none() {
        output::say(format_args!(
            "lb: {} records no datapath: if the agent had another --state-dir, or --pin-dir, name it",
            args.state_dir.display()
        ));
    }
    let kinds = args.datapath.map_or_else(driver::carrying, |kind| vec![kind]);
    let lines: Vec<Line> = kinds.into_iter().flat_map(|kind| of_kind(args, kind, &record)).collect();
    output::write(args.ask.output, &lines, || table(&lines))?;
    Ok(if lines.iter().any(|line| line.fails) { Verdict::Failed } else { Verdict::Fine })
}

/// Cleans up everything of one kind that is recorded or asked for, and names what else there is.
fn of_kind(args: &CleanupArgs, kind: DatapathKind, record: &Record) -> Vec<Line> {
    let recorded: Vec<&Used> = record.used.iter().filter(|used| used.kind() == Some(kind)).collect();
    let asked = |used: &Used| {
        args.pin_dir.as_ref().is_none_or(|_| used.pin_dir == Used::new(kind, args.pin_dir.as_deref()).pin_dir)
    };
    let mut lines = Vec::new();
    for &used in &recorded {
        lines.push(if asked(used) { clean_recorded(args, kind, used) } else { not_asked_for(used) });
    }
    if !kind.reads(Setting::PinDir) {
        let here = Used::here(kind, None);
        let is_recorded = recorded.iter().any(|used| used.place.is_none() || used.place == here.place);
        lines.extend((!is_recorded).then(|| clean_other(args, kind, &here, record)));
        return lines;
    }
    if !recorded.iter().any(|used| asked(used)) {
        let pin_dir = args.pin_dir.as_deref().or(args.usual_pin_dir.as_deref());
        lines.push(clean_other(args, kind, &Used::here(kind, pin_dir), record));
    }
    if args.pin_dir.is_none() {
        lines.extend(others(kind, &lines, record.used.is_empty()));
    }
    lines
}

/// Pins that are recorded beside those that were asked for. An agent that uses them left nothing.
fn not_asked_for(used: &Used) -> Line {
    if is_locked(used.pin_dir()) {
        return Line::new(used, "not-inspected", Some("not asked for, and an agent uses it".into()), false);
    }
    let why = format!("not asked for: run it with --pin-dir {}", used.pin_dir().display());
    Line::new(used, "not-inspected", Some(why), true)
}

/// Cleans up what is recorded, and forgets what is seen to be gone.
fn clean_recorded(args: &CleanupArgs, kind: DatapathKind, used: &Used) -> Line {
    let cleaned = clean_up(used, kind, args.force);
    let is_unseen = matches!(cleaned, Cleaned::NotInspected { .. });
    let may_forget = args.forget && is_unseen && !is_within_reach(used);
    let forget = cleaned.is_gone() || may_forget;
    if forget && let Err(error) = Record::forget(&args.state_dir, used) {
        return Line::new(used, "failed", Some(lb_core::error::report(&error)), true);
    }
    match cleaned {
        Cleaned::NotInspected { why, .. } if may_forget => {
            Line::new(used, "not-inspected", Some(format!("{why}; it is forgotten")), false)
        }
        Cleaned::NotInspected { why, namespace } => {
            let how = where_to_run(args, used, namespace.as_deref());
            let kept = if args.forget { "; it is not forgotten, because it can be inspected" } else { "" };
            Line::new(used, "not-inspected", Some(format!("{why}{kept}; {how}")), true)
        }
        cleaned => line(used, cleaned, true),
    }
}

fn where_to_run(args: &CleanupArgs, used: &Used, namespace: Option<&Path>) -> String {
    let pin_dir = used.pin_dir.as_ref().map(|path| format!(" --pin-dir {}", path.display())).unwrap_or_default();
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let (state_dir, socket) = (absolute(&args.state_dir), absolute(&args.ask.socket));
    let places = format!("--state-dir {} --socket {}", state_dir.display(), socket.display());
    let command = format!("lb cleanup --datapath {}{pin_dir} {places}", used.datapath);
    match namespace {
        Some(path) => format!("run `nsenter --net={} {command}`", path.display()),
        None if is_within_reach(used) => format!("run `{command}` where it can be inspected"),
        None => format!("run `{command}` where it is, or, if it is gone for good, with --forget"),
    }
}

/// Cleans up what is not recorded. That nobody can look at what was never used, such as for want of a program, is no
/// failure. If nothing at all is recorded, nobody knows what was used, and where this process sees too little it may be
/// there.
fn clean_other(args: &CleanupArgs, kind: DatapathKind, used: &Used, record: &Record) -> Line {
    let is_asked_for = args.datapath.is_some() || args.pin_dir.is_some();
    let may_be_left = record.used.is_empty() && matches!(used.whereabouts(), Whereabouts::Hidden(_));
    line(used, clean_up(used, kind, args.force), is_asked_for || may_be_left)
}

fn line(used: &Used, cleaned: Cleaned, must_be_seen: bool) -> Line {
    match cleaned {
        Cleaned::Removed(what) => Line::new(used, "removed", Some(what.join(", ")), false),
        Cleaned::Absent(why) => Line::new(used, "absent", why, false),
        Cleaned::NotInspected { why, .. } => Line::new(used, "not-inspected", Some(why), must_be_seen),
        Cleaned::Failed(why) => Line::new(used, "failed", Some(why), true),
        _ => Line::new(used, "failed", Some("this program does not know what became of it".into()), true),
    }
}

/// Pins that no record names: those of an agent with another state directory. If this one records nothing at all, it is
/// probably the wrong one.
fn others(kind: DatapathKind, lines: &[Line], is_unrecorded: bool) -> Vec<Line> {
    let is_known = |dir: &PathBuf| lines.iter().any(|line| line.pin_dir.as_ref() == Some(dir));
    let Ok(dirs) = kind.pin_dirs() else { return Vec::new() };
    let unknown = dirs.into_iter().filter(|dir| !is_known(dir));
    let described = unknown.map(|dir| {
        let used = Used::here(kind, Some(&dir));
        if is_locked(&dir) {
            let why = "another agent uses it".into();
            return Line::new(&used, "not-inspected", Some(why), false);
        }
        let why = format!("the state directory does not name it: run it with --pin-dir {}", dir.display());
        Line::new(&used, "not-inspected", Some(why), is_unrecorded)
    });
    described.collect()
}

/// Whether a process uses these pins.
fn is_locked(dir: &Path) -> bool {
    let file = File::open(dir).ok();
    file.is_some_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
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

impl Line {
    fn new(used: &Used, outcome: &'static str, detail: Option<String>, fails: bool) -> Self {
        let network_namespace = used.place.as_ref().map(|place| place.network_namespace);
        Self {
            datapath: used.datapath.clone(),
            pin_dir: used.pin_dir.clone(),
            network_namespace,
            outcome,
            detail,
            fails,
        }
    }

    /// Where it is, or was.
    fn place(&self) -> String {
        match (&self.pin_dir, self.network_namespace) {
            (Some(pin_dir), _) => pin_dir.display().to_string(),
            (None, Some(number)) => format!("net:[{number}]"),
            (None, None) => String::new(),
        }
    }
}

fn table(lines: &[Line]) -> String {
    let mut table = Table::new(["DATAPATH", "PLACE", "OUTCOME", "DETAIL"]);
    for line in lines {
        let detail = line.detail.clone().unwrap_or_default();
        table.row([line.datapath.clone(), line.place(), line.outcome.into(), detail]);
    }
    table.to_string()
}
