//! The directory for what must survive the agent.

use std::{
    collections::BTreeSet,
    fmt,
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

use crate::{
    config::{Config, DEFAULT_PIN_DIR},
    driver::{self, DatapathKind, Setting},
};

const RECORD: &str = "agent.json";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// Another agent holds it.
    #[error("another agent uses the state directory {directory}: stop that agent, or use another --state-dir")]
    InUse {
        /// The state directory.
        directory: PathBuf,
    },
    /// The system refuses.
    #[error("using {path} in the state directory failed (--state-dir sets another directory)")]
    Io {
        /// What could not be used.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A datapath that agents with this state directory put into the kernel and that nobody has cleaned up since.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Used {
    /// The name of its kind.
    pub datapath: String,
    /// Where it is pinned, if it has pins.
    pub pin_dir: Option<PathBuf>,
}

/// All of them, so that the next agent and `lb cleanup` find what was left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    /// All of them, each once.
    pub used: BTreeSet<Used>,
}

/// What may be in the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Set {
        used: BTreeSet<Used>,
    },
    /// An earlier version remembered the last one alone.
    One(Used),
}

impl Used {
    /// A datapath of `kind`; `pin_dir` is where it is pinned if it has pins, and by default the usual place.
    #[must_use]
    pub fn new(kind: DatapathKind, pin_dir: Option<&Path>) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let pin_dir = kind.reads(Setting::PinDir).then(|| absolute(pin_dir.unwrap_or(Path::new(DEFAULT_PIN_DIR))));
        Self { datapath: kind.name().into(), pin_dir }
    }

    /// The datapath of these settings.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self::new(config.datapath, Some(&config.attachments.pin_dir))
    }

    /// The kind, if it is built in.
    #[must_use]
    pub fn kind(&self) -> Option<DatapathKind> {
        self.kind_among(&[])
    }

    /// The kind, if it is one of these or built in.
    #[must_use]
    pub fn kind_among(&self, kinds: &[DatapathKind]) -> Option<DatapathKind> {
        let own = kinds.iter().copied().find(|kind| kind.name() == self.datapath);
        own.or_else(|| driver::find(&self.datapath))
    }

    /// With the place that an earlier version left out.
    fn explicit(self) -> Self {
        match self.kind() {
            Some(kind) => Self::new(kind, self.pin_dir.as_deref()),
            None => self,
        }
    }

    /// Where it is pinned; empty if it has no pins.
    #[must_use]
    pub fn pin_dir(&self) -> &Path {
        self.pin_dir.as_deref().unwrap_or(Path::new(""))
    }
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pin_dir {
            Some(pin_dir) => write!(f, "{} in {}", self.datapath, pin_dir.display()),
            None => f.write_str(&self.datapath),
        }
    }
}

impl Record {
    /// What agents with this state directory left. Nothing if there never was one.
    pub fn read(directory: &Path) -> Result<Self, StateDirError> {
        let path = directory.join(RECORD);
        let io = |source| StateDirError::Io { path: path.clone(), source };
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text.map_err(io)?,
        };
        let used = match serde_json::from_slice(&text).map_err(|error| io(error.into()))? {
            Stored::Set { used } => used,
            Stored::One(used) => [used].into(),
        };
        // One place has one name, so that a datapath is not taken for another one.
        Ok(Self { used: used.into_iter().map(Used::explicit).collect() })
    }

    /// Remembers that `used` is cleaned up.
    pub fn forget(directory: &Path, used: &Used) -> Result<(), StateDirError> {
        let mut record = Self::read(directory)?;
        if record.used.remove(used) { record.write(directory) } else { Ok(()) }
    }

    fn write(&self, directory: &Path) -> Result<(), StateDirError> {
        let path = directory.join(RECORD);
        // In one step, so that nobody reads half of it.
        let draft = path.with_extension("json.new");
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        let written = text.and_then(|text| fs::write(&draft, text)).and_then(|()| fs::rename(&draft, &path));
        written.map_err(|source| StateDirError::Io { path, source })
    }
}

/// A state directory that this process holds as long as this value lives.
#[derive(Debug)]
pub struct StateDir {
    _lock: Flock<File>,
    directory: PathBuf,
}

impl StateDir {
    /// Makes the directory if need be and takes it.
    pub fn claim(directory: &Path) -> Result<Self, StateDirError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| StateDirError::Io { path: directory.into(), source })?;
        Self::lock(directory)
    }

    /// Takes an existing directory.
    pub fn lock(directory: &Path) -> Result<Self, StateDirError> {
        let io = |source| StateDirError::Io { path: directory.into(), source };
        let file = File::open(directory).map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { _lock: lock, directory: directory.into() }),
            Err((_, Errno::EWOULDBLOCK)) => Err(StateDirError::InUse { directory: directory.into() }),
            Err((_, error)) => Err(io(error.into())),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Has `used` opened, and returns the other datapaths that were left.
    ///
    /// It is remembered before that, so that a crash leaves nothing unknown. What is refused is forgotten again, unless
    /// it was ours before: it may be in use by an agent with another state directory, whose pins are not ours to clean
    /// up.
    pub fn open<T, E: From<StateDirError>>(
        &self,
        used: &Used,
        leaves_something: bool,
        open: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Vec<Used>), E> {
        let before = Record::read(&self.directory)?;
        let others = self.begin(used, leaves_something)?;
        let opened = open();
        if opened.is_err() && !before.used.contains(used) {
            self.withdraw(used);
        }
        Ok((opened?, others))
    }

    fn withdraw(&self, used: &Used) {
        // Why it was refused says more.
        if let Err(error) = Record::forget(&self.directory, used) {
            let error = lb_core::error::report(&error);
            tracing::warn!(datapath = %used, error, "a datapath that was refused is still recorded in the state directory");
        }
    }

    /// Remembers that `used` is about to be used, if it leaves something in the kernel, and returns the others that
    /// were left.
    pub(crate) fn begin(&self, used: &Used, leaves_something: bool) -> Result<Vec<Used>, StateDirError> {
        let mut record = Record::read(&self.directory)?;
        let others = record.used.iter().filter(|other| *other != used).cloned().collect();
        if leaves_something && record.used.insert(used.clone()) {
            record.write(&self.directory)?;
        }
        Ok(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ebpf(pin_dir: &str) -> Used {
        Used::new(driver::EBPF, Some(Path::new(pin_dir)))
    }

    #[test]
    fn a_state_directory_has_one_owner() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        let held = StateDir::claim(&directory).unwrap();
        assert!(matches!(StateDir::claim(&directory), Err(StateDirError::InUse { .. })));
        drop(held);
        assert!(StateDir::lock(&directory).is_ok());
    }

    #[test]
    fn every_datapath_is_remembered_until_it_is_cleaned_up() {
        let parent = tempfile::tempdir().unwrap();
        let state_dir = StateDir::claim(parent.path()).unwrap();
        let nftables = Used::new(driver::NFTABLES, None);
        assert_eq!(state_dir.begin(&ebpf("/a"), true).unwrap(), []);
        assert_eq!(state_dir.begin(&ebpf("/a"), true).unwrap(), []);
        assert_eq!(state_dir.begin(&ebpf("/b"), true).unwrap(), [ebpf("/a")]);
        assert_eq!(state_dir.begin(&nftables, true).unwrap(), [ebpf("/a"), ebpf("/b")]);
        Record::forget(parent.path(), &ebpf("/a")).unwrap();
        assert_eq!(state_dir.begin(&nftables, true).unwrap(), [ebpf("/b")]);
        let memory = Used::new(driver::MEMORY, None);
        assert_eq!(state_dir.begin(&memory, false).unwrap(), [ebpf("/b"), nftables.clone()]);
        assert_eq!(Record::read(parent.path()).unwrap().used, [ebpf("/b"), nftables].into());
    }

    #[test]
    fn what_is_refused_is_as_it_was_before() {
        let parent = tempfile::tempdir().unwrap();
        let state_dir = StateDir::claim(parent.path()).unwrap();
        let remembered = || Record::read(parent.path()).unwrap().used;
        let open = |used: &Used, succeeds: bool| {
            let opened = state_dir.open(used, true, || {
                assert!(remembered().contains(used), "a crash from here on must not leave it forgotten");
                if succeeds { Ok(()) } else { Err(StateDirError::InUse { directory: "/x".into() }) }
            });
            opened.map(|((), others)| others)
        };
        assert!(matches!(open(&ebpf("/theirs"), false), Err(StateDirError::InUse { .. })));
        assert_eq!(remembered(), [].into());
        assert_eq!(open(&ebpf("/ours"), true).unwrap(), []);
        assert!(open(&ebpf("/ours"), false).is_err());
        assert!(open(&ebpf("/theirs"), false).is_err());
        assert_eq!(remembered(), [ebpf("/ours")].into());
        assert_eq!(open(&ebpf("/other"), true).unwrap(), [ebpf("/ours")]);
    }

    #[test]
    fn what_an_earlier_version_remembered_is_understood() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), Record::default());
        let put = |text: &str| fs::write(directory.path().join(RECORD), text).unwrap();
        put(r#"{"datapath": "ebpf", "pin_dir": null}"#);
        let record = Record::read(directory.path()).unwrap();
        assert_eq!(record.used, [ebpf(DEFAULT_PIN_DIR)].into());
        put("{");
        let error = Record::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("agent.json"), "{error}");
    }
}
