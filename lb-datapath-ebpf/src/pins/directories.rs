//! Directories of pins.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use lb_core::drift::{Cause, Difference, Drift, DriftClass};
use lb_datapath_ebpf_abi::LAYOUT;

use crate::{
    crash,
    error::EbpfError,
    pins::ownership::{self, Part},
    sys,
};

/// How long a pin directory's lock may be held by another process before the datapath is refused.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// The directories of one datapath, locked for as long as the value lives.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    lock: File,
}

impl Pins {
    /// Makes the directories that are missing, and locks them.
    pub(crate) fn create(root: &Path) -> Result<Self, EbpfError> {
        if !root.is_absolute() || !nearest(root).is_some_and(|dir| sys::is_bpffs(dir).unwrap_or(false)) {
            return Err(EbpfError::NotBpffs { path: root.into() });
        }
        let pins = Self { root: root.into(), lock: made_and_locked(root)? };
        for dir in pins.below() {
            make(&dir)?;
        }
        Ok(pins)
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.layout().join("maps")
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.layout().join("links")
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.root.join(LAYOUT)
    }

    fn below(&self) -> [PathBuf; 3] {
        [self.layout(), self.maps(), self.links()]
    }

    /// Directories that have changed since they were made.
    pub(crate) fn check(&self) -> Vec<Drift> {
        let root = (!self.is_locked()).then(|| {
            let difference = if self.root.exists() {
                Difference::Wrong { expected: "the directory that is locked".into(), found: "another one".into() }
            } else {
                Difference::Missing
            };
            drift(&self.root, difference)
        });
        let below = self.below().into_iter().filter_map(|dir| match examine(&dir) {
            Ok(()) => None,
            Err(EbpfError::Directory { owner, user, mode, .. }) => {
                let text = |owner, mode| format!("mode {mode:o} and owner {owner}");
                let difference = Difference::Wrong { expected: text(user, 0o700), found: text(owner, mode) };
                Some(drift(&dir, difference).because(Cause::Edited))
            }
            Err(_) => Some(drift(&dir, Difference::Missing)),
        });
        root.into_iter().chain(below).collect()
    }

    /// Makes missing directories again and locks the new ones.
    ///
    /// # Errors
    /// When another process has locked them meanwhile.
    pub(crate) fn restore(&mut self) -> Result<(), EbpfError> {
        if !self.is_locked() {
            self.lock = made_and_locked(&self.root)?;
        }
        for dir in self.below() {
            let wrong = |error| matches!(error, EbpfError::Directory { .. });
            if make(&dir).is_err_and(wrong) && dir.is_dir() {
                fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(failed("changing", &dir))?;
                examine(&dir)?;
            }
        }
        Ok(())
    }

    /// Removes every pin of this layout.
    pub(crate) fn clear(&self) -> Result<(), EbpfError> {
        let mut stays = None;
        clear(&self.links(), Part::Links, &mut stays)?;
        clear(&self.maps(), Part::Maps, &mut stays)?;
        stays.map_or(Ok(()), Err)
    }

    /// Whether the directory at the path is still the one that is locked.
    fn is_locked(&self) -> bool {
        is_at(&self.lock, &self.root)
    }

    /// Removes every pin, of every layout, and the directories. Links go first, so that no program is left that finds
    /// its maps empty. Pins of others stay.
    ///
    /// # Errors
    /// When something is left.
    pub(crate) fn remove(&self) -> Result<(), EbpfError> {
        let mut stays = None;
        for layout in layouts(&self.root)? {
            for part in [Part::Links, Part::Maps] {
                let dir = layout.join(part.as_str());
                if dir.exists() {
                    clear(&dir, part, &mut stays)?;
                    remove_dir(&dir, &mut stays)?;
                }
            }
            remove_dir(&layout, &mut stays)?;
        }
        if let Some(error) = stays {
            return Err(error);
        }
        match fs::remove_dir(&self.root) {
            // Pins of others are in there.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => point(other).map_err(failed("removing", &self.root)),
        }
    }
}

/// Removes every pin below `root`, if it exists and nobody uses it.
pub(crate) fn remove(root: &Path) -> Result<(), EbpfError> {
    if !root.exists() {
        return Ok(());
    }
    if !sys::is_bpffs(root).map_err(failed("examining", root))? {
        return Err(EbpfError::NotBpffs { path: root.into() });
    }
    Pins { root: root.into(), lock: locked(root)? }.remove()
}

/// Makes `root` if it is missing and locks it. The directory can be replaced between the two steps, so the lock is
/// taken again until it belongs to the directory at the path.
fn made_and_locked(root: &Path) -> Result<File, EbpfError> {
    loop {
        make(root)?;
        match locked(root) {
            Ok(lock) if is_at(&lock, root) => return Ok(lock),
            // The process that held the lock has removed the directory.
            Ok(_) => {}
            Err(EbpfError::Pin { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// The lock of a directory that exists.
///
/// The lock of a process that has just ended, or of a child between its fork and its exec, is gone in a moment, so a
/// lock that is held is asked for again for [`LOCK_WAIT`].
fn locked(root: &Path) -> Result<File, EbpfError> {
    let lock = File::open(root).map_err(failed("opening", root))?;
    let deadline = Instant::now() + LOCK_WAIT;
    while !sys::lock(&lock).map_err(failed("locking", root))? {
        if Instant::now() >= deadline {
            return Err(EbpfError::Locked { path: root.into() });
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(lock)
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    file.metadata().map(identity).ok() == fs::symlink_metadata(path).map(identity).ok()
}

fn drift(path: &Path, difference: Difference) -> Drift {
    Drift::new(DriftClass::Pin, path.display(), difference).because(Cause::Unpinned)
}

/// The first of `path` and its ancestors that exists.
fn nearest(path: &Path) -> Option<&Path> {
    path.ancestors().find(|dir| dir.exists())
}

/// Makes `dir` and those above it with mode 0700; one that exists must be like that.
fn make(dir: &Path) -> Result<(), EbpfError> {
    if fs::symlink_metadata(dir).is_err() {
        point(DirBuilder::new().recursive(true).mode(0o700).create(dir)).map_err(failed("making", dir))?;
    }
    examine(dir)
}

/// Whether `dir` is a directory that nobody but this user may enter.
fn examine(dir: &Path) -> Result<(), EbpfError> {
    let found = fs::symlink_metadata(dir).map_err(failed("examining", dir))?;
    if !found.is_dir() {
        return Err(EbpfError::Foreign { path: dir.into(), what: "it is not a directory".into() });
    }
    let (owner, mode, user) = (found.uid(), found.mode() & 0o7777, sys::user());
    if owner == user && mode == 0o700 {
        return Ok(());
    }
    Err(EbpfError::Directory { path: dir.into(), owner, user, mode })
}

/// `v1` and its like, the only directories that this crate makes.
fn layouts(root: &Path) -> Result<Vec<PathBuf>, EbpfError> {
    let is_layout = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('v'));
        name.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    Ok(entries(root)?.into_iter().filter(is_layout).collect())
}

/// Removes the pins of this crate from `dir`; the first one of another program goes into `stays`.
fn clear(dir: &Path, part: Part, stays: &mut Option<EbpfError>) -> Result<(), EbpfError> {
    for path in entries(dir)? {
        match ownership::remove(&path, part) {
            Err(foreign @ (EbpfError::Foreign { .. } | EbpfError::ForeignMap { .. })) => {
                stays.get_or_insert(foreign);
            }
            other => other?,
        }
    }
    Ok(())
}

fn remove_dir(dir: &Path, stays: &mut Option<EbpfError>) -> Result<(), EbpfError> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let unknown = entries(dir)?.into_iter().next();
            let foreign = |path| EbpfError::Foreign { path, what: "no pin of this datapath has that name".into() };
            if stays.is_none() {
                *stays = unknown.map(foreign);
            }
            Ok(())
        }
        other => point(other).map_err(failed("removing", dir)),
    }
}

pub(crate) fn remove_file(path: &Path) -> Result<(), EbpfError> {
    point(fs::remove_file(path)).map_err(failed("removing", path))
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    point(fs::rename(from, to))
}

/// What lies in `dir`.
pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>, EbpfError> {
    let found: io::Result<Vec<_>> = fs::read_dir(dir).and_then(|all| all.map(|entry| Ok(entry?.path())).collect());
    found.map_err(failed("reading", dir))
}

pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EbpfError {
    let path = path.into();
    move |source| EbpfError::Pin { path, what, source }
}

/// Passes the crash point that belongs to a change of the file system, if there was one.
fn point<T>(outcome: io::Result<T>) -> io::Result<T> {
    if outcome.is_ok() {
        crash::point();
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    #[ignore = "needs root: makes directories in a BPF file system"]
    fn of_fifty_double_starts_each_has_one_owner() {
        let rounds: Vec<_> = (0..50).map(|round| format!("/sys/fs/bpf/lbu{}x{round}", std::process::id())).collect();
        let start = Barrier::new(2 * rounds.len());
        let owners: Vec<usize> = thread::scope(|scope| {
            let spawn = |root: &String| {
                let (root, start) = (PathBuf::from(root), &start);
                scope.spawn(move || {
                    start.wait();
                    Pins::create(&root)
                })
            };
            let pairs: Vec<_> = rounds.iter().map(|root| [spawn(root), spawn(root)]).collect();
            let join = |pair: [thread::ScopedJoinHandle<'_, Result<Pins, EbpfError>>; 2]| {
                let outcomes = pair.map(|thread| thread.join().unwrap());
                let locked = |outcome: &&Result<Pins, _>| matches!(outcome, Err(EbpfError::Locked { .. }));
                assert_eq!(outcomes.iter().filter(locked).count(), 1, "{outcomes:?}");
                outcomes.iter().flatten().map(Pins::remove).filter(Result::is_ok).count()
            };
            pairs.into_iter().map(join).collect()
        });
        assert_eq!(owners, [1; 50]);
    }

    #[test]
    #[ignore = "needs root: makes directories in a BPF file system"]
    fn a_directory_that_was_made_anew_is_locked_anew() {
        let root = PathBuf::from(format!("/sys/fs/bpf/lbu{}", std::process::id()));
        let mut pins = Pins::create(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert!(matches!(&pins.check()[..], [Drift { difference: Difference::Missing, .. }, ..]));
        let other = Pins::create(&root).unwrap();
        assert!(matches!(pins.restore(), Err(EbpfError::Locked { .. })));
        drop(other);
        pins.restore().unwrap();
        assert_eq!(pins.check(), []);
        assert!(matches!(Pins::create(&root), Err(EbpfError::Locked { .. })));
        pins.remove().unwrap();
    }
}
