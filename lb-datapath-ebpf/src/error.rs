//! Why the datapath cannot be opened or changed.

use std::{io, path::PathBuf};

use lb_core::{DatapathError, ErrorKind};

use crate::{convert::Corrupt, sys::Shape};

/// Why the datapath cannot be opened, or a device attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EbpfError {
    #[error(
        "{path} is not in a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf`, or name another pin directory"
    )]
    NotBpffs { path: PathBuf },
    #[error("{path} belongs to user {owner} and has mode {mode:o}, expected user {user} and mode 700")]
    Directory { path: PathBuf, owner: u32, user: u32, mode: u32 },
    #[error("{path} is in use by another process; stop that, or name another pin directory")]
    Locked { path: PathBuf },
    #[error("{what} {path} failed")]
    Pin { path: PathBuf, what: &'static str, source: io::Error },
    #[error("map {path} is not one of ours: expected {expected:?}, found {found:?}; run `lb cleanup`")]
    ForeignMap { path: PathBuf, expected: Shape, found: Shape },
    #[error("{path} is not one of ours: {what}; remove it, or name another pin directory")]
    Foreign { path: PathBuf, what: String },
    #[error("{what} map {name} failed")]
    Map { name: &'static str, what: &'static str, source: io::Error },
    #[error("loading the eBPF object failed; Linux 6.6 or later is needed")]
    Load(#[source] Box<aya::EbpfError>),
    #[error("loading program {name} failed; Linux 6.6 or later is needed")]
    Program { name: &'static str, source: Box<aya::programs::ProgramError> },
    #[error("the eBPF object has no program {name}")]
    NoProgram { name: &'static str },
    #[error("examining program {name} failed")]
    Examine { name: &'static str, source: io::Error },
    #[error("the pin {path} was removed or replaced; repair it first")]
    Unpinned { path: PathBuf },
    #[error("running {name} on a packet failed")]
    TestRun { name: &'static str, source: io::Error },
    #[error("opening cgroup {path} failed; it must be a directory of the cgroup2 hierarchy")]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("attaching {program} to {target} failed")]
    Attach { program: &'static str, target: String, source: io::Error },
    #[error("repairing the maps failed: {0}")]
    Repair(String),
    #[error("device {name} not found in this network namespace")]
    NoDevice { name: String, source: io::Error },
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

impl EbpfError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotBpffs { .. } | Self::Directory { .. } | Self::NoDevice { .. } | Self::Cgroup { .. } => {
                ErrorKind::Invalid
            }
            Self::Locked { .. } | Self::Unpinned { .. } => ErrorKind::Busy,
            Self::Repair(_) => ErrorKind::System,
            Self::Load(_) | Self::Program { .. } | Self::NoProgram { .. } => ErrorKind::Unsupported,
            Self::ForeignMap { .. } | Self::Foreign { .. } | Self::Corrupt(_) => ErrorKind::Invalid,
            Self::Pin { source, .. }
            | Self::Examine { source, .. }
            | Self::TestRun { source, .. }
            | Self::Map { source, .. }
            | Self::Attach { source, .. } => of(source),
        }
    }
}

fn of(error: &io::Error) -> ErrorKind {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => ErrorKind::Permission,
        Some(libc::EOPNOTSUPP) => ErrorKind::Unsupported,
        _ => ErrorKind::System,
    }
}

impl From<EbpfError> for DatapathError {
    fn from(error: EbpfError) -> Self {
        let kind = match &error {
            EbpfError::Load(_) | EbpfError::Program { .. } if crate::sys::user() != 0 => ErrorKind::Permission,
            other => other.kind(),
        };
        let plain = Self::new(kind, error.to_string());
        if std::error::Error::source(&error).is_some() { plain.with_source(Below(error)) } else { plain }
    }
}

/// What lies below an error whose own message is told already.
#[derive(Debug)]
struct Below(EbpfError);

impl std::fmt::Display for Below {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::error::Error::source(&self.0).map_or(Ok(()), |source| write!(f, "{source}"))
    }
}

impl std::error::Error for Below {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0)?.source()
    }
}
