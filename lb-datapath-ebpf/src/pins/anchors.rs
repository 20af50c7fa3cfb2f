//! The pinned maps and links that keep services working without the process.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::{OsStr, OsString},
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lb_core::drift::{Cause, Difference, Drift, DriftClass};

use crate::{
    error::EbpfError,
    pins::{
        anchor::Anchor,
        directories::{Pins, entries, failed},
        links::{Ingress, Link, pinned_device},
        ownership::{Part, unpin},
    },
    programs::Programs,
    state::layout::LAYOUTS,
    sys::IfIndex,
};

/// What is pinned and attached, shared with the watchers. `None` when nothing is loaded.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedAnchors(Arc<Mutex<Option<Anchors>>>);

impl SharedAnchors {
    /// Locks them. A watcher waits meanwhile, so that it never reports a change that this process makes.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<Anchors>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is pinned and attached.
#[derive(Debug)]
pub(crate) struct Anchors {
    pub(crate) pins: Pins,
    maps: Vec<Anchor>,
    links: Vec<Link>,
    ingress: Ingress,
    repairs: u64,
}

impl Anchors {
    /// Opens the maps that are pinned. Devices will be attached to as `ingress` says.
    pub(crate) fn new(pins: Pins, ingress: Ingress) -> Result<Self, EbpfError> {
        let dir = pins.maps();
        let open = |path| Anchor::open(path).map_err(failed("opening", &dir));
        let maps = LAYOUTS.iter().map(|layout| open(dir.join(layout.name))).collect::<Result<_, _>>()?;
        Ok(Self { pins, maps, links: Vec::new(), ingress, repairs: 0 })
    }

    /// Attaches the programs of sockets to `cgroup`.
    pub(crate) fn attach_cgroup(&mut self, programs: &Programs, cgroup: &Path) -> Result<(), EbpfError> {
        self.links.extend(Link::to_cgroup(&self.pins.links(), programs, cgroup)?);
        Ok(())
    }

    /// Attaches the programs of packets to the device called `name`.
    pub(crate) fn attach_device(&mut self, programs: &Programs, name: &str) -> Result<(), EbpfError> {
        for link in Link::to_device(&self.pins.links(), programs, &self.ingress, name)? {
            self.links.retain(|known| known.device() != link.device() || known.program != link.program);
            self.links.push(link);
        }
        Ok(())
    }

    /// Detaches the programs of packets from the device called `name`, which may be gone.
    pub(crate) fn detach_device(&mut self, name: &str) -> Result<(), EbpfError> {
        self.remove_links(|link| link.device().is_some_and(|(device, _)| device == name))
    }

    /// Removes what is pinned for devices that are gone, or that this process did not attach to.
    pub(crate) fn keep_attached_devices(&mut self) -> Result<(), EbpfError> {
        self.remove_links(Link::is_gone)?;
        let kept = self.attached_devices();
        for path in entries(&self.pins.links())? {
            let device = path.file_name().and_then(|name| pinned_device(name.to_str()?));
            if device.is_some_and(|device| !kept.contains(&device)) {
                unpin(&path)?;
            }
        }
        Ok(())
    }

    /// Devices that this process attached to.
    pub(crate) fn attached_devices(&self) -> BTreeSet<IfIndex> {
        self.links.iter().filter_map(|link| Some(link.device()?.1)).collect()
    }

    fn remove_links(&mut self, which: impl Fn(&Link) -> bool) -> Result<(), EbpfError> {
        // A qdisc goes with the filter that it was made for, which is the first one of its device.
        for link in self.links.iter().rev().filter(|link| which(link)) {
            link.remove()?;
        }
        self.links.retain(|link| !which(link));
        Ok(())
    }

    /// Detaches and removes everything, and the directories.
    pub(crate) fn remove(mut self) -> Result<(), EbpfError> {
        self.remove_links(|_| true)?;
        self.pins.remove()
    }

    /// The directory of the maps, if they are all there.
    pub(crate) fn pinned_maps(&self) -> Result<PathBuf, EbpfError> {
        match self.maps.iter().find(|anchor| anchor.check().is_some()) {
            None => Ok(self.pins.maps()),
            Some(anchor) => Err(EbpfError::Unpinned { path: anchor.path().into() }),
        }
    }

    /// A descriptor of the map called `name`.
    pub(crate) fn map(&self, name: &str) -> Result<Option<OwnedFd>, EbpfError> {
        let anchor = self.maps.iter().find(|anchor| anchor.path().file_name().is_some_and(|found| found == name));
        let fd = |anchor: &Anchor| anchor.fd().try_clone_to_owned().map_err(failed("opening", anchor.path()));
        anchor.map(fd).transpose()
    }

    /// Descriptors of all maps.
    pub(crate) fn maps(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.maps.iter().map(|anchor| anchor.fd().try_clone_to_owned()).collect()
    }

    /// The links of this program.
    pub(crate) fn links_of(&self, program: &str) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |link| link.program == program)
    }

    /// Differences from what this process made. Costs two system calls per link and one per map.
    pub(crate) fn check(&self) -> Result<Vec<Drift>, EbpfError> {
        let mut drifts = self.pins.check();
        drifts.extend(self.maps.iter().filter_map(Anchor::check));
        for link in &self.links {
            drifts.extend(link.check()?);
        }
        drifts.extend(
            self.unknown_files()
                .into_iter()
                .map(|path| Drift::new(DriftClass::Pin, path.display(), Difference::Extra).because(Cause::Edited)),
        );
        Ok(summary(drifts, self.maps.len() + self.links.len()))
    }

    /// Number of repairs so far.
    pub(crate) const fn repairs(&self) -> u64 {
        self.repairs
    }

    /// Makes pins and links again as they were. Links come first, because traffic waits for them.
    ///
    /// Returns the devices that are gone, after their links have been removed.
    pub(crate) fn repair(&mut self, programs: &Programs) -> Result<Vec<String>, EbpfError> {
        self.repairs += 1;
        let restored = self.pins.restore();
        let gone: Vec<String> =
            self.links.iter().filter(|link| link.is_gone()).filter_map(|link| Some(link.device()?.0.into())).collect();
        for name in &gone {
            self.detach_device(name)?;
        }
        for link in &mut self.links {
            link.repair(programs)?;
        }
        restored?;
        for anchor in self.maps.iter_mut().chain(self.links.iter_mut().map(|link| &mut link.anchor)) {
            anchor.repair()?;
        }
        for path in self.unknown_files() {
            let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
            removed.map_err(failed("removing", &path))?;
        }
        Ok(gone)
    }

    /// Files in the directories that this process did not put there.
    fn unknown_files(&self) -> Vec<PathBuf> {
        let names = |anchor: &'_ Anchor| anchor.path().file_name().map(OsStr::to_owned);
        let maps: HashSet<_> = self.maps.iter().filter_map(names).collect();
        let links: HashSet<_> = self.links.iter().filter_map(|link| names(&link.anchor)).collect();
        let parts = [Part::Maps, Part::Links].map(|part| part.as_str().into()).into();
        let dirs = [(self.pins.maps(), maps), (self.pins.links(), links), (self.pins.layout(), parts)];
        dirs.iter().flat_map(|(dir, known)| files_but(dir, known)).collect()
    }
}

/// Files in `dir` under other names than those that are `known`; none if there is no such directory.
fn files_but(dir: &Path, known: &HashSet<OsString>) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(dir) else { return Vec::new() };
    found.flatten().filter(|entry| !known.contains(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// Reports the directory alone when it is gone with all of its `pins`.
fn summary(mut drifts: Vec<Drift>, pins: usize) -> Vec<Drift> {
    let unpinned = |drift: &Drift| drift.class == DriftClass::Pin && drift.cause == Cause::Unpinned;
    if drifts.iter().filter(|drift| unpinned(drift)).count() > pins {
        // Directories come first, and the one that holds the others before them.
        let first = drifts.iter().find(|drift| unpinned(drift)).cloned();
        drifts.retain(|drift| !unpinned(drift));
        drifts.extend(first);
    }
    drifts
}
