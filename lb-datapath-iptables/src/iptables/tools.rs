//! The programs `iptables-restore` and `iptables-save`.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Duration,
};

use lb_core::{
    addr::Family,
    datapath::{DatapathError, ErrorKind},
};
use nix::{
    errno::Errno,
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::{Pid, getppid},
};

use crate::{
    iptables::{Variant, check::watch::SharedSuspects},
    namespace::Namespace,
};

/// Runs restores and saves.
pub(crate) trait Tools: Send + Sync {
    /// Runs `iptables-restore --noflush`.
    fn restore(&self, family: Family, input: &str) -> Result<(), ToolError>;

    /// Runs `iptables-save`.
    fn save(&self, family: Family, table: &str) -> Result<String, ToolError>;

    /// Lists one chain of nat, in the form of `iptables-save`; nothing if the chain does not exist.
    fn list(&self, family: Family, chain: &str) -> Result<String, ToolError>;
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error("cannot run `{program}`; is iptables installed?")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` failed ({status}): {stderr}")]
    Failed { program: String, status: String, busy: bool, stderr: String, line: Option<usize> },
}

impl ToolError {
    /// The line of the input that was refused, if the program names one.
    pub(crate) const fn line(&self) -> Option<usize> {
        match self {
            Self::Spawn { .. } => None,
            Self::Failed { line, .. } => *line,
        }
    }
}

impl From<ToolError> for DatapathError {
    fn from(error: ToolError) -> Self {
        let kind = match &error {
            ToolError::Spawn { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::Unsupported,
            ToolError::Spawn { .. } => ErrorKind::System,
            ToolError::Failed { stderr, .. } if is_denied(stderr) => ErrorKind::Permission,
            ToolError::Failed { busy: true, .. } => ErrorKind::Busy,
            ToolError::Failed { .. } => ErrorKind::System,
        };
        Self::new(kind, "netfilter rules could not be read or written").with_source(error)
    }
}

fn is_denied(stderr: &str) -> bool {
    stderr.contains("Permission denied") || stderr.contains("Operation not permitted")
}

/// The installed programs of one variant.
///
/// A child sees the network namespace of the thread that starts it.
#[derive(Debug)]
pub(crate) struct Programs {
    namespace: Namespace,
    variant: Variant,
    lock_wait: Option<Duration>,
    lock_file: Option<PathBuf>,
    started: SharedSuspects,
}

/// Version of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    /// The first one whose restore waits for the lock and whose `MASQUERADE` knows `--random-fully`.
    pub(crate) const WAITS: Self = Self(1, 6, 2);

    /// Reads `iptables v1.8.9 (nf_tables)`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let version = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
        let mut parts = version.split('.').map(str::parse);
        let mut next = || parts.next()?.ok();
        Some(Self(next()?, next()?, next().unwrap_or(0)))
    }
}

impl Programs {
    /// Those that work in the network namespace of the calling thread.
    pub(crate) fn open(variant: Variant, lock_file: Option<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            namespace: Namespace::current()?,
            variant,
            lock_wait: None,
            lock_file,
            started: SharedSuspects::default(),
        })
    }

    /// The same, telling `shared` of every process.
    pub(crate) fn telling(self, shared: SharedSuspects) -> Self {
        Self { started: shared, ..self }
    }

    /// The same, waiting for the lock that all users of iptables-legacy share.
    pub(crate) fn waiting(self, lock_wait: Duration) -> Self {
        Self { lock_wait: Some(lock_wait), ..self }
    }

    /// Waits for a restore of an earlier process that is in the kernel: it holds the lock until it ends.
    ///
    /// Whoever else holds the lock for longer than the wait only delays the first change.
    pub(crate) fn settle(&self) -> Result<(), ToolError> {
        match self.list(Family::V4, "OUTPUT") {
            Ok(_) | Err(ToolError::Failed { busy: true, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks for the version.
    pub(crate) fn version(&self) -> Result<Option<Version>, ToolError> {
        let program = self.program(Family::V4, "");
        let output = self.run(&program, ["--version".into()], None)?;
        Ok(Version::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn program(&self, family: Family, suffix: &str) -> String {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let variant = match self.variant {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        };
        format!("{base}-{variant}{suffix}")
    }

    fn run(
        &self,
        program: &str,
        args: impl IntoIterator<Item = OsString>,
        input: Option<&str>,
    ) -> Result<Output, ToolError> {
        let spawn = |source| ToolError::Spawn { program: program.to_owned(), source };
        let mut command = Command::new(program);
        command.args(args).env("LC_ALL", "C").stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        if let Some(lock_file) = &self.lock_file {
            command.env("XTABLES_LOCKFILE", lock_file);
        }
        end_with_us(&mut command);
        let output = self
            .namespace
            .within(|| feed(&mut command, input.unwrap_or_default(), &self.started))
            .flatten()
            .map_err(spawn)?;
        if output.status.success() { Ok(output) } else { Err(failure(program, &output)) }
    }
}

/// Has the kernel kill the program when the thread that starts it ends.
///
/// The program of a process that was killed would otherwise go on, and its rules would come after those that the next
/// start has read.
fn end_with_us(command: &mut Command) {
    let parent = Pid::this();
    let enter = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // A parent that has ended by now sends no signal.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls; it allocates nothing and takes no lock. The
    // errors that it makes are plain numbers.
    unsafe { command.pre_exec(enter) };
}

fn feed(command: &mut Command, input: &str, started: &SharedSuspects) -> io::Result<Output> {
    let mut child = command.spawn()?;
    // Before it gets its input, and so before it changes anything.
    started.started(child.id());
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading says why in its status: a broken pipe is not the error to report.
        stdin.write_all(input.as_bytes()).or_else(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })?;
    }
    child.wait_with_output()
}

/// Status of the programs when they cannot get the lock or the kernel was changed at the same time.
const RESOURCE_PROBLEM: i32 = 4;

fn failure(program: &str, output: &Output) -> ToolError {
    let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    ToolError::Failed {
        program: program.to_owned(),
        status: output.status.to_string(),
        busy: output.status.code() == Some(RESOURCE_PROBLEM),
        line: refused_line(&stderr),
        stderr,
    }
}

/// The number in `line 5 failed`, `line 5: RULE_APPEND failed` or `Error occurred at line: 5`.
fn refused_line(stderr: &str) -> Option<usize> {
    stderr.match_indices("line").find_map(|(index, found)| {
        let rest = stderr[index + found.len()..].trim_start_matches([':', ' ']);
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    })
}

impl Tools for Programs {
    fn restore(&self, family: Family, input: &str) -> Result<(), ToolError> {
        let wait = self.lock_wait.map(|wait| ["-w".into(), wait.as_secs().to_string().into()]);
        let args = std::iter::once("--noflush".into()).chain(wait.into_iter().flatten());
        self.run(&self.program(family, "-restore"), args, Some(input)).map(drop)
    }

    fn save(&self, family: Family, table: &str) -> Result<String, ToolError> {
        let output = self.run(&self.program(family, "-save"), ["-t".into(), table.into()], None)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn list(&self, family: Family, chain: &str) -> Result<String, ToolError> {
        const NO_SUCH_CHAIN: [&str; 3] = ["No chain/target/match by that name", "does not exist", "is incompatible"];
        let wait = self.lock_wait.map(|wait| ["-w".into(), wait.as_secs().to_string().into()]);
        let args = ["-t".into(), "nat".into(), "-S".into(), chain.into()];
        match self.run(&self.program(family, ""), args.into_iter().chain(wait.into_iter().flatten()), None) {
            Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Err(ToolError::Failed { stderr, .. }) if NO_SUCH_CHAIN.iter().any(|words| stderr.contains(words)) => {
                Ok(String::new())
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        assert_eq!(Version::parse("iptables v1.8.9 (nf_tables)\n"), Some(Version(1, 8, 9)));
        assert_eq!(Version::parse("iptables v1.6"), Some(Version(1, 6, 0)));
        assert_eq!(Version::parse("usage"), None);
        assert!(Version(1, 6, 1) < Version::WAITS && Version(1, 8, 0) > Version::WAITS);
    }

    #[test]
    fn the_refused_line_is_found_in_every_spelling() {
        for (stderr, line) in [
            ("iptables-restore: line 5 failed", Some(5)),
            ("iptables-nft-restore: line 12: RULE_APPEND failed (No such file or directory)", Some(12)),
            ("iptables-restore v1.8.9: Couldn't load target; Error occurred at line: 7; Try `-h'", Some(7)),
            ("command line broken", None),
        ] {
            assert_eq!(refused_line(stderr), line, "{stderr}");
        }
    }

    #[test]
    fn a_program_ends_with_the_thread_that_started_it() {
        let started = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            end_with_us(command.arg("1000"));
            command.spawn().unwrap()
        });
        let status = started.join().unwrap().wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{status}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let tools = Programs::open(Variant::Nft, None).unwrap();
        let error = tools.run("lb-no-such-program", [], None).unwrap_err();
        assert!(error.to_string().contains("`lb-no-such-program`"), "{error}");
        assert_eq!(DatapathError::from(error).kind(), ErrorKind::Unsupported);
    }
}
