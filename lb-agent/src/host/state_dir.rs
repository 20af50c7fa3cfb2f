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
    host::place::{Place, Whereabouts, bpf_file_system, hidden_pins},
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
    /// Where in the kernel it was put; `None` if an earlier version did not record it.
    #[serde(default)]
    pub place: Option<Place>,
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
    /// A datapath of `kind` somewhere; `pin_dir` is where it is pinned if it has pins, and by default the usual place.
    #[must_use]
    pub fn new(kind: DatapathKind, pin_dir: Option<&Path>) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let pin_dir = kind.reads(Setting::PinDir).then(|| absolute(pin_dir.unwrap_or(Path::new(DEFAULT_PIN_DIR))));
        Self { datapath: kind.name().into(), pin_dir, place: None }
    }

    /// The same where this thread is.
    #[must_use]
    pub fn here(kind: DatapathKind, pin_dir: Option<&Path>) -> Self {
        let used = Self::new(kind, pin_dir);
        let place = Place::here(used.pin_dir.as_deref());
        if let Err(error) = &place {
            tracing::warn!(%error, "/proc does not tell the network namespace, so that the state directory cannot record it");
        }
        Self { place: place.ok(), ..used }
    }

    /// The datapath of these settings, where this thread is.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self::here(config.datapath, Some(&config.attachments.pin_dir))
    }

    /// Where it is for this thread. What an earlier version recorded may be here, which only a look can tell.
    #[must_use]
    pub fn whereabouts(&self) -> Whereabouts {
        match (&self.place, &self.pin_dir) {
            (Some(place), pin_dir) => place.whereabouts(pin_dir.as_deref()),
            (None, Some(pin_dir)) if bpf_file_system(pin_dir).is_none() => Whereabouts::Hidden(hidden_pins(pin_dir)),
            (None, _) => Whereabouts::Here,
        }
    }

    /// Whether opening `self` takes `other` over, or finds that nothing is left of it.
    fn replaces(&self, other: &Self) -> bool {
        let at = |used: &Self| used.place.as_ref().map(|place| place.boot_id.clone());
        let is_same_place = match (&self.place, &other.place) {
            // An earlier version had one place in mind.
            (_, None) | (None, _) => true,
            (Some(_), Some(_)) if at(self) != at(other) => true,
            (Some(here), Some(there)) if self.pin_dir.is_some() => here.file_system == there.file_system,
            (Some(here), Some(there)) => here.network_namespace == there.network_namespace,
        };
        (&self.datapath, &self.pin_dir) == (&other.datapath, &other.pin_dir) && is_same_place
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

    /// With the pin directory that an earlier version left out.
    fn explicit(self) -> Self {
        match self.kind() {
            Some(kind) => Self { place: self.place, ..Self::new(kind, self.pin_dir.as_deref()) },
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
        match (&self.pin_dir, &self.place) {
            (Some(pin_dir), _) => write!(f, "{} in {}", self.datapath, pin_dir.display()),
            (None, Some(place)) => {
                write!(f, "{} in network namespace net:[{}]", self.datapath, place.network_namespace)
            }
            (None, None) => f.write_str(&self.datapath),
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
    /// `None` as long as there is no room for the directory.
    lock: Option<Flock<File>>,
    directory: PathBuf,
}

impl StateDir {
    /// Makes the directory if need be and takes it. If the disk is full, the directory is made and taken when
    /// something is written to it.
    pub fn claim(directory: &Path) -> Result<Self, StateDirError> {
        match make(directory) {
            Err(error) if error.is_full() => Ok(Self { lock: None, directory: directory.into() }),
            made => made.and_then(|()| Self::lock(directory)),
        }
    }

    /// Takes an existing directory.
    pub fn lock(directory: &Path) -> Result<Self, StateDirError> {
        let io = |source| StateDirError::Io { path: directory.into(), source };
        let file = File::open(directory).map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { lock: Some(lock), directory: directory.into() }),
            Err((_, Errno::EWOULDBLOCK)) => Err(StateDirError::InUse { directory: directory.into() }),
            Err((_, error)) => Err(io(error.into())),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Has `used` opened, and says what else the directory remembers.
    ///
    /// It is remembered before that, so that a crash leaves nothing unknown. What is refused is forgotten again, unless
    /// it was ours before: it may be in use by an agent with another state directory, whose pins are not ours to clean
    /// up. A full disk is no reason not to serve.
    pub fn open<T, E: From<StateDirError>>(
        &mut self,
        used: &Used,
        leaves_something: bool,
        open: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Remembered), E> {
        let before = Record::read(&self.directory)?;
        let remembered = self.begin(used, leaves_something)?;
        let opened = open();
        if opened.is_err() && !before.used.iter().any(|known| used.replaces(known)) {
            self.withdraw(used);
        }
        Ok((opened?, remembered))
    }

    fn withdraw(&self, used: &Used) {
        // Why it was refused says more.
        if let Err(error) = Record::forget(&self.directory, used) {
            let error = lb_core::error::report(&error);
            tracing::warn!(datapath = %used, error, "a datapath that was refused is still recorded in the state directory");
        }
    }

    /// Remembers that `used` is about to be used, if it leaves something in the kernel.
    pub(crate) fn begin(&mut self, used: &Used, leaves_something: bool) -> Result<Remembered, StateDirError> {
        let record = Record::read(&self.directory)?;
        let others = record.used.into_iter().filter(|other| !used.replaces(other)).collect();
        let written = if leaves_something { self.remember(used) } else { Ok(()) };
        let unwritten = match written {
            Err(error) if error.is_full() => Some(error),
            written => written.map(|()| None)?,
        };
        Ok(Remembered { others, unwritten })
    }

    /// Records `used`, in place of what it takes over.
    ///
    /// # Errors
    /// When the directory cannot be written to, or another agent has taken it meanwhile.
    pub(crate) fn remember(&mut self, used: &Used) -> Result<(), StateDirError> {
        if self.lock.is_none() {
            make(&self.directory)?;
            *self = Self::lock(&self.directory)?;
        }
        let mut record = Record::read(&self.directory)?;
        let before = record.clone();
        record.used.retain(|known| !used.replaces(known));
        record.used.insert(used.clone());
        if record == before { Ok(()) } else { record.write(&self.directory) }
    }
}

/// What a state directory knew when a datapath was opened.
#[derive(Debug)]
#[non_exhaustive]
pub struct Remembered {
    /// Other datapaths that nobody has cleaned up.
    pub others: Vec<Used>,
    /// Why the one that was opened could not be recorded, if the disk is full.
    pub unwritten: Option<StateDirError>,
}

impl StateDirError {
    /// Whether there is no room on the disk, which may pass.
    fn is_full(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

fn make(directory: &Path) -> Result<(), StateDirError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| StateDirError::Io { path: directory.into(), source })
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
        let mut state_dir = StateDir::claim(parent.path()).unwrap();
        let mut others = |used: &Used, leaves| state_dir.begin(used, leaves).unwrap().others;
        let nftables = Used::here(driver::NFTABLES, None);
        assert_eq!(others(&ebpf("/a"), true), []);
        assert_eq!(others(&ebpf("/a"), true), []);
        assert_eq!(others(&ebpf("/b"), true), [ebpf("/a")]);
        assert_eq!(others(&nftables, true), [ebpf("/a"), ebpf("/b")]);
        Record::forget(parent.path(), &ebpf("/a")).unwrap();
        assert_eq!(others(&nftables, true), [ebpf("/b")]);
        let memory = Used::new(driver::MEMORY, None);
        assert_eq!(others(&memory, false), [ebpf("/b"), nftables.clone()]);
        assert_eq!(Record::read(parent.path()).unwrap().used, [ebpf("/b"), nftables].into());
    }

    #[test]
    fn what_is_refused_is_as_it_was_before() {
        let parent = tempfile::tempdir().unwrap();
        let mut state_dir = StateDir::claim(parent.path()).unwrap();
        let remembered = || Record::read(parent.path()).unwrap().used;
        let mut open = |used: &Used, succeeds: bool| {
            let opened = state_dir.open(used, true, || {
                assert!(remembered().contains(used), "a crash from here on must not leave it forgotten");
                if succeeds { Ok(()) } else { Err(StateDirError::InUse { directory: "/x".into() }) }
            });
            opened.map(|((), known)| known.others)
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
    fn the_same_datapath_of_another_namespace_is_another_one_and_one_of_another_boot_is_none() {
        let parent = tempfile::tempdir().unwrap();
        let mut state_dir = StateDir::claim(parent.path()).unwrap();
        let here = Used::here(driver::NFTABLES, None);
        let place = here.place.clone().unwrap();
        let moved = |place| Used { place: Some(place), ..here.clone() };
        let elsewhere = moved(Place { network_namespace: 7, ..place.clone() });
        let earlier = moved(Place { boot_id: "before".into(), ..place });
        assert_eq!(state_dir.begin(&earlier, true).unwrap().others, []);
        assert_eq!(state_dir.begin(&elsewhere, true).unwrap().others, []);
        assert_eq!(state_dir.begin(&here, true).unwrap().others, std::slice::from_ref(&elsewhere));
        assert_eq!(Record::read(parent.path()).unwrap().used, [here, elsewhere].into());
    }

    #[test]
    fn pins_are_the_same_whatever_the_network_namespace_of_the_agent() {
        let parent = tempfile::tempdir().unwrap();
        let mut state_dir = StateDir::claim(parent.path()).unwrap();
        let at = |network_namespace, file_system| Used {
            place: Some(Place { network_namespace, file_system: Some(file_system), ..Place::here(None).unwrap() }),
            ..ebpf("/pins")
        };
        assert_eq!(state_dir.begin(&at(1, 9), true).unwrap().others, []);
        assert_eq!(state_dir.begin(&at(2, 9), true).unwrap().others, []);
        assert_eq!(state_dir.begin(&at(2, 8), true).unwrap().others, [at(2, 9)]);
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
