//! Directories of pins.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use lb_datapath_ebpf_abi::LAYOUT;

use crate::{error::EbpfError, links::unpin, sys};

/// How long a pin directory's lock may be held by somebody else before the datapath is refused.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// The directories of one datapath, locked for as long as the value lives.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    _lock: File,
}

impl Pins {
    /// Makes the directories that are missing, and locks them.
    pub(crate) fn create(root: &Path) -> Result<Self, EbpfError> {
        if !root.is_absolute() || !nearest(root).is_some_and(|dir| sys::is_bpffs(dir).unwrap_or(false)) {
            return Err(EbpfError::NotBpffs { path: root.into() });
        }
        make(root)?;
        let pins = Self::lock(root)?;
        make(&root.join(LAYOUT))?;
        make(&pins.maps())?;
        make(&pins.links())?;
        Ok(pins)
    }

    /// Locks directories that exist.
    ///
    /// The lock of a process that has just ended, or of a child between its fork and its exec, is gone in a moment, so a
    /// lock that is held is asked for again for [`LOCK_WAIT`].
    fn lock(root: &Path) -> Result<Self, EbpfError> {
        let lock = File::open(root).map_err(failed("opening", root))?;
        let deadline = Instant::now() + LOCK_WAIT;
        while !sys::lock(&lock).map_err(failed("locking", root))? {
            if Instant::now() >= deadline {
                return Err(EbpfError::Locked { path: root.into() });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { root: root.into(), _lock: lock })
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join(LAYOUT).join("maps")
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.root.join(LAYOUT).join("links")
    }

    /// Removes every pin, of every layout, and the directories. Links go first, so that no program is left that finds
    /// its maps empty.
    pub(crate) fn remove(self) -> Result<(), EbpfError> {
        for layout in layouts(&self.root)? {
            remove_dir(&layout.join("links"), unpin)?;
            remove_dir(&layout.join("maps"), remove_file)?;
            remove_dir(&layout, remove_file)?;
        }
        match fs::remove_dir(&self.root) {
            // Somebody else's pins are in there.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other.map_err(failed("removing", &self.root)),
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
    Pins::lock(root)?.remove()
}

/// The first of `path` and its ancestors that exists.
fn nearest(path: &Path) -> Option<&Path> {
    path.ancestors().find(|dir| dir.exists())
}

/// Makes `dir` and those above it with mode 0700; one that exists must be like that.
fn make(dir: &Path) -> Result<(), EbpfError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("making", dir))?;
    let found = fs::symlink_metadata(dir).map_err(failed("examining", dir))?;
    let (owner, mode, user) = (found.uid(), found.mode() & 0o7777, sys::user());
    if found.is_dir() && owner == user && mode == 0o700 {
        return Ok(());
    }
    Err(EbpfError::Directory { path: dir.into(), owner, user, mode })
}

/// `v1` and its like, the only directories that we make.
fn layouts(root: &Path) -> Result<Vec<PathBuf>, EbpfError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(failed("reading", root))? {
        let path = entry.map_err(failed("reading", root))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('v'));
        if name.is_some_and(|number| number.parse::<u32>().is_ok()) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Removes `dir`, if it exists, and each of its entries by `remove`.
fn remove_dir(dir: &Path, remove: fn(&Path) -> Result<(), EbpfError>) -> Result<(), EbpfError> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).map_err(failed("reading", dir))? {
        remove(&entry.map_err(failed("reading", dir))?.path())?;
    }
    fs::remove_dir(dir).map_err(failed("removing", dir))
}

fn remove_file(path: &Path) -> Result<(), EbpfError> {
    fs::remove_file(path).map_err(failed("removing", path))
}

pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EbpfError {
    let path = path.into();
    move |source| EbpfError::Pin { path, what, source }
}
