//! The directory for what must survive the agent.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};

use crate::{config::Config, kind::DatapathKind};

const RECORD: &str = "agent.json";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDirError {
    #[error("another agent uses the state directory {directory}: end it, or use another --state-dir")]
    InUse { directory: PathBuf },
    #[error("using {path} in the state directory failed (use --state-dir for another place)")]
    Io { path: PathBuf, source: io::Error },
}

/// What the last agent used, so that `lb cleanup` finds what it left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) datapath: DatapathKind,
    pub(crate) pin_dir: Option<PathBuf>,
}

impl Record {
    pub(crate) fn of(config: &Config) -> Self {
        Self { datapath: config.datapath, pin_dir: config.ebpf.as_ref().map(|ebpf| ebpf.pin_dir.clone()) }
    }

    /// What the last agent with this state directory used. `None` if there was none, or none that left a record.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(RECORD)).ok()?).ok()
    }
}

/// A state directory that is ours as long as this value lives.
#[derive(Debug)]
pub(crate) struct StateDir {
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory if need be, takes it, and leaves `record` there.
    pub(crate) fn claim(directory: &Path, record: &Record) -> Result<Self, StateDirError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| StateDirError::Io { path: directory.into(), source })?;
        let state_dir = Self::lock(directory)?;
        let path = directory.join(RECORD);
        write(&path, record).map_err(|source| StateDirError::Io { path, source })?;
        Ok(state_dir)
    }

    /// Takes an existing directory.
    pub(crate) fn lock(directory: &Path) -> Result<Self, StateDirError> {
        let io = |source| StateDirError::Io { path: directory.into(), source };
        let file = File::open(directory).map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { _lock: lock }),
            Err((_, Errno::EWOULDBLOCK)) => Err(StateDirError::InUse { directory: directory.into() }),
            Err((_, error)) => Err(io(error.into())),
        }
    }
}

/// In one step, so that nobody reads half of it.
fn write(path: &Path, record: &Record) -> io::Result<()> {
    let draft = path.with_extension("json.new");
    fs::write(&draft, serde_json::to_vec_pretty(record)?)?;
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_owner_and_remembers_the_last() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        assert_eq!(Record::read(&directory), None);
        let record = Record { datapath: DatapathKind::Ebpf, pin_dir: Some("/p".into()) };
        let held = StateDir::claim(&directory, &record).unwrap();
        assert!(matches!(StateDir::claim(&directory, &record), Err(StateDirError::InUse { .. })));
        drop(held);
        assert_eq!(Record::read(&directory), Some(record));
        assert!(StateDir::lock(&directory).is_ok());
    }
}
