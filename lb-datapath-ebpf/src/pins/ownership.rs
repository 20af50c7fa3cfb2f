//! Distinguishes pins of this crate from those of other programs, which are never used.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    error::EbpfError,
    pins::{
        directories::{Pins, entries, failed, remove_file},
        links::{NEW, detach, pinned_hook},
        missing::MissingPins,
    },
    programs::SOCKET_PROGRAMS,
    state::layout::{LAYOUTS, Layout},
    sys::{self, ObjectKind, ProgInfo},
};

/// A directory of pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Maps,
    Links,
}

impl Part {
    /// Its name.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Maps => "maps",
            Self::Links => "links",
        }
    }
}

/// What an earlier process left.
pub(crate) struct Left {
    /// Whether the maps can be used again: all that the services need are there.
    pub(crate) usable: bool,
    /// What is missing although that process had attached its programs.
    pub(crate) missing: Option<MissingPins>,
}

/// Looks at everything that is pinned.
///
/// # Errors
/// When anything there was pinned by another program.
pub(crate) fn check(pins: &Pins) -> Result<Left, EbpfError> {
    let parts = [Part::Maps, Part::Links].map(|part| pins.layout().join(part.as_str()));
    if let Some(path) = entries(&pins.layout())?.into_iter().find(|path| !parts.contains(path)) {
        return Err(unknown_name(&path));
    }
    let (mut ids, mut found) = (BTreeSet::new(), BTreeSet::new());
    for path in entries(&pins.maps())? {
        let layout = layout(&path)?;
        // One that is about to replace another is no substitute for it.
        if path.ends_with(layout.name) {
            found.insert(layout.name);
        }
        ids.insert(check_map(&path, object)?);
    }
    let complete = found.len() == LAYOUTS.len();
    let mut usable = LAYOUTS.iter().all(|layout| found.contains(layout.name) || !layout.is_needed());
    let links = entries(&pins.links())?;
    for path in &links {
        match check_link(path, usable.then_some(&ids)) {
            // The program counts in a map whose pin is gone, and no other process can find that map again.
            Err(EbpfError::Mixed { .. }) if !complete => usable = false,
            other => other?,
        }
    }
    Ok(Left { usable, missing: missing(pins, usable, &found, &links) })
}

/// A process attaches its programs last. Without links, its start was not finished, and nothing was served.
fn missing(pins: &Pins, usable: bool, maps: &BTreeSet<&str>, links: &[PathBuf]) -> Option<MissingPins> {
    let names = LAYOUTS.iter().map(|layout| layout.name).filter(|name| !maps.contains(name));
    let paths: Vec<PathBuf> = if usable {
        let attached =
            |name: &str| links.iter().any(|link| [name, &format!("{name}{NEW}")].iter().any(|n| link.ends_with(n)));
        let programs = SOCKET_PROGRAMS.iter().map(|(name, _)| *name).filter(|name| !attached(name));
        programs.map(|name| pins.links().join(name)).collect()
    } else {
        names.map(|name| pins.maps().join(name)).collect()
    };
    (!links.is_empty() && !paths.is_empty()).then(|| MissingPins::new(paths, !usable))
}

/// Removes what is pinned at `path`.
///
/// # Errors
/// [`EbpfError::Foreign`] or [`EbpfError::ForeignMap`] when another program pinned it: then it stays.
pub(crate) fn remove(path: &Path, part: Part) -> Result<(), EbpfError> {
    match part {
        Part::Maps => {
            check_map(path, of_kind)?;
            remove_file(path)
        }
        Part::Links => {
            check_link(path, None)?;
            unpin(path)
        }
    }
}

/// Detaches what is pinned at `path`, if anything is, and removes the pin.
///
/// Without the call the kernel detaches the link some time after its last pin and descriptor have gone, from a work
/// queue. Packets would be translated until then.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/syscall.c> (`bpf_link_put`)
pub(crate) fn unpin(path: &Path) -> Result<(), EbpfError> {
    match sys::open_pin(path) {
        Ok(link) => {
            detach(link.as_fd(), path).map_err(failed("detaching", path))?;
            remove_file(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("opening", path)(error)),
    }
}

/// The id of the map that is pinned at `path`.
fn check_map(path: &Path, open: fn(&Path, ObjectKind) -> Result<OwnedFd, EbpfError>) -> Result<u32, EbpfError> {
    let layout = layout(path)?;
    let fd = open(path, ObjectKind::Map)?;
    let info = sys::map_info(fd.as_fd()).map_err(failed("examining", path))?;
    layout.check(path, &info)?;
    Ok(info.id)
}

fn layout(path: &Path) -> Result<&'static Layout, EbpfError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.map(|name| name.strip_suffix(NEW).unwrap_or(name));
    LAYOUTS.iter().find(|layout| Some(layout.name) == name).ok_or_else(|| unknown_name(path))
}

/// Checks the link that is pinned at `path`; its program must use `maps`, if they are known.
fn check_link(path: &Path, maps: Option<&BTreeSet<u32>>) -> Result<(), EbpfError> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| unknown_name(path))?;
    let name = name.strip_suffix(NEW).unwrap_or(name);
    let foreign = |what: String| EbpfError::Foreign { path: path.into(), what };
    let socket = SOCKET_PROGRAMS.iter().find(|(program, _)| *program == name);
    let (device, (program, hook)) = match (socket, pinned_hook(name)) {
        (Some(hook), _) => (None, *hook),
        (None, Some((hook, device))) => (Some(device), hook),
        (None, None) => return Err(unknown_name(path)),
    };
    // The pinned program of a filter stands for it.
    if device.is_some()
        && sys::open_pin(path).and_then(|fd| sys::object_kind(fd.as_fd())).ok() == Some(ObjectKind::Program)
    {
        let fd = object(path, ObjectKind::Program)?;
        let found = sys::prog_info(fd.as_fd()).map_err(failed("examining", path))?;
        return check_program(&found, program, maps).map_err(foreign)?.map_or(Ok(()), |map| Err(mixed(path, map)));
    }
    let fd = object(path, ObjectKind::Link)?;
    let link = sys::link_info(fd.as_fd()).map_err(failed("examining", path))?;
    let of_kind = if device.is_some() { link.is_tcx() } else { link.is_cgroup() };
    if !of_kind || link.attach_type != hook as u32 {
        let what = format!("it is a link of kind {} and attach type {}", link.kind, link.attach_type);
        return Err(foreign(what));
    }
    if let Some(device) = device.filter(|device| link.target != 0 && link.target != u64::from(device.0)) {
        return Err(foreign(format!("it leads to device {}, expected {}", link.target, device.0)));
    }
    // Only a process with `CAP_SYS_ADMIN` may look at the program.
    let found = match sys::prog_by_id(link.prog).and_then(|fd| sys::prog_info(fd.as_fd())) {
        Ok(found) => found,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(()),
        Err(error) => return Err(foreign(format!("its program {} cannot be examined: {error}", link.prog))),
    };
    check_program(&found, program, maps).map_err(foreign)?.map_or(Ok(()), |map| Err(mixed(path, map)))
}

/// Checks the program of a link or filter. Returns a map that it uses and that is not among `maps`, if there is one.
fn check_program(found: &ProgInfo, expected: &str, maps: Option<&BTreeSet<u32>>) -> Result<Option<u32>, String> {
    if found.name != expected {
        return Err(format!("its program is {}, expected {expected}", found.name));
    }
    Ok(maps.and_then(|maps| found.maps.iter().find(|map| !maps.contains(map)).copied()))
}

/// The program of the link at `path` uses another map than those that are pinned.
fn mixed(path: &Path, map: u32) -> EbpfError {
    let found = sys::map_by_id(map).and_then(|fd| sys::map_info(fd.as_fd()));
    let map = found.map_or_else(|_| format!("map {map}"), |found| format!("map {map}, {}", found.name));
    EbpfError::Mixed { link: path.into(), map }
}

/// The object of this kind that is pinned at `path`, in a file that nobody but this user may open.
fn object(path: &Path, kind: ObjectKind) -> Result<OwnedFd, EbpfError> {
    let found = fs::symlink_metadata(path).map_err(failed("examining", path))?;
    let (owner, mode, user) = (found.uid(), found.mode() & 0o7777, sys::user());
    if found.is_file() && (owner != user || mode & !0o600 != 0) {
        let what = format!("owner {owner} and mode {mode:o}, expected owner {user} and mode 600");
        return Err(EbpfError::Foreign { path: path.into(), what });
    }
    of_kind(path, kind)
}

/// The object of this kind that is pinned at `path`, whoever may open it.
fn of_kind(path: &Path, kind: ObjectKind) -> Result<OwnedFd, EbpfError> {
    let foreign = |what: String| EbpfError::Foreign { path: path.into(), what };
    let found = fs::symlink_metadata(path).map_err(failed("examining", path))?;
    if !found.is_file() {
        return Err(foreign("it is not a pin".into()));
    }
    let fd = sys::open_pin(path).map_err(failed("opening", path))?;
    let is = sys::object_kind(fd.as_fd()).map_err(failed("examining", path))?;
    if is == kind { Ok(fd) } else { Err(foreign(format!("expected {}, found {}", kind.as_str(), is.as_str()))) }
}

fn unknown_name(path: &Path) -> EbpfError {
    EbpfError::Foreign { path: PathBuf::from(path), what: "no pin of this datapath has that name".into() }
}
