//! Links keep programs attached; they are pinned, so that they outlive the process. Where the kernel has no links for
//! devices, filters do, and their program is pinned in the place of a link.
//!
//! A link is updated in place wherever possible (`BPF_LINK_UPDATE`). Detaching and attaching again would lose the
//! packets and connections in between. The kernel swaps the program under the lock of the hook:
//! <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/cgroup.c> (`__cgroup_bpf_replace`) and
//! <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/tcx.c> (`tcx_link_update`).

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_attach_type;
use lb_core::drift::{Cause, Difference, Drift, DriftClass};

use crate::{
    error::EbpfError,
    features::DeviceHook,
    pins::{
        anchor::{Anchor, Fresh},
        clsact::{Clsact, Filter, Way},
        directories::{entries, failed, remove_file, rename},
    },
    programs::{DEVICE_PROGRAMS, EGRESS, Loaded, Programs, SOCKET_PROGRAMS},
    sys::{self, IfIndex, ObjectKind},
};

/// Suffix of the name of a pin that is about to replace another one.
pub(crate) const NEW: &str = "_new";

/// Where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AttachTarget {
    /// To a cgroup.
    Cgroup(PathBuf),
    /// To a device, by name and number: a device that comes back under its name has another number.
    Device(String, IfIndex),
}

/// How the programs of packets are attached to devices.
#[derive(Clone, Debug)]
pub(crate) enum Ingress {
    /// By links, which are pinned.
    Tcx,
    /// By filters, whose program is pinned.
    Clsact(Clsact),
}

impl Ingress {
    /// The way of attaching that `hook` names, in the network namespace of this thread.
    pub(crate) fn of(hook: DeviceHook) -> Result<Self, EbpfError> {
        match hook {
            DeviceHook::Tcx => Ok(Self::Tcx),
            DeviceHook::Clsact => Clsact::open().map(Self::Clsact).map_err(EbpfError::Filters),
        }
    }
}

/// A program that is attached.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) anchor: Anchor,
    pub(crate) program: &'static str,
    pub(crate) attached_to: AttachTarget,
    prog: u32,
    target: u64,
    /// What attaches it, unless it is a link that the anchor holds.
    filter: Option<(Clsact, Filter)>,
}

/// The program that is attached, and to what: 0 if to nothing.
struct Attached {
    prog: u32,
    target: u64,
}

impl Link {
    /// Attaches the programs of sockets to `cgroup`.
    pub(crate) fn to_cgroup(dir: &Path, programs: &Programs, cgroup: &Path) -> Result<Vec<Self>, EbpfError> {
        let hooks = SOCKET_PROGRAMS.iter().zip(programs.sockets());
        hooks.map(|((name, hook), program)| Self::to_hook(dir, (name, *hook), program, cgroup)).collect()
    }

    fn to_hook(
        dir: &Path,
        (name, hook): (&'static str, bpf_attach_type),
        program: &Loaded,
        cgroup: &Path,
    ) -> Result<Self, EbpfError> {
        let (file, target) = open_cgroup(cgroup)?;
        let anchor =
            attach(dir.join(name), target, program, || sys::attach_cgroup(program.fd.as_fd(), file.as_fd(), hook))
                .map_err(attaching(name, &cgroup.display().to_string()))?;
        Ok(Self {
            anchor,
            program: name,
            attached_to: AttachTarget::Cgroup(cgroup.into()),
            prog: program.info.id,
            target,
            filter: None,
        })
    }

    /// Attaches the programs of packets to the device called `name`.
    pub(crate) fn to_device(
        dir: &Path,
        programs: &Programs,
        how: &Ingress,
        name: &str,
    ) -> Result<Vec<Self>, EbpfError> {
        let device = sys::device(name).map_err(no_device(name))?;
        let hooks = DEVICE_PROGRAMS.iter().zip(programs.devices());
        hooks.map(|(hook, program)| Self::to_device_hook(dir, (*hook, program), how, (name, device))).collect()
    }

    fn to_device_hook(
        dir: &Path,
        ((program_name, hook), program): ((&'static str, bpf_attach_type), &Loaded),
        how: &Ingress,
        (name, device): (&str, IfIndex),
    ) -> Result<Self, EbpfError> {
        let (target, path) = (device.0.into(), dir.join(pin_name(program_name, device)));
        let create = || sys::attach_tcx(program.fd.as_fd(), device, hook);
        let attached = match how {
            Ingress::Tcx => attach(path, target, program, create).map(|anchor| (anchor, None)),
            Ingress::Clsact(clsact) => attach_filter(path, way(program_name, device), program, clsact)
                .map(|(anchor, filter)| (anchor, Some((clsact.clone(), filter)))),
        };
        let (anchor, filter) = attached.map_err(|source| {
            if is_no_device(&source) { no_device(name)(source) } else { attaching(program_name, name)(source) }
        })?;
        let attached_to = AttachTarget::Device(name.into(), device);
        Ok(Self { anchor, program: program_name, attached_to, prog: program.info.id, target, filter })
    }

    /// The packets that it looks at, if it is attached to a device.
    fn way(&self) -> Option<Way> {
        self.device().map(|(_, device)| way(self.program, device))
    }

    /// Where its program is attached.
    fn hook(&self) -> Result<bpf_attach_type, EbpfError> {
        let hook = SOCKET_PROGRAMS.iter().chain(&DEVICE_PROGRAMS).find(|(name, _)| *name == self.program);
        hook.map(|(_, hook)| *hook).ok_or(EbpfError::NoProgram { name: self.program })
    }

    /// The device that it is attached to.
    pub(crate) fn device(&self) -> Option<(&str, IfIndex)> {
        match &self.attached_to {
            AttachTarget::Cgroup(_) => None,
            AttachTarget::Device(name, device) => Some((name, *device)),
        }
    }

    /// How the link differs from the one that was made: its pin, where it is attached, its program.
    pub(crate) fn check(&self) -> Result<Vec<Drift>, EbpfError> {
        let info = self.info()?;
        let pin = self.anchor.check();
        let link = (info.target != self.target).then(|| {
            let cause = if self.is_gone() { Cause::DeviceGone } else { Cause::Detached };
            Drift::new(DriftClass::Link, self.object(), Difference::Missing).because(cause)
        });
        let expected = || format!("program {}", self.prog);
        let program = (info.prog != self.prog).then(|| {
            let difference = Difference::Wrong { expected: expected(), found: program_name(info.prog) };
            Drift::new(DriftClass::Program, self.object(), difference)
        });
        Ok(pin.into_iter().chain(link).chain(program).collect())
    }

    /// Whether the program of this process is attached.
    pub(crate) fn is_attached(&self) -> bool {
        self.info().is_ok_and(|info| info.target == self.target && info.prog == self.prog)
    }

    /// Attaches the program again if it is not attached. The pin is repaired by [`Anchor::repair`].
    pub(crate) fn repair(&mut self, programs: &Programs) -> Result<(), EbpfError> {
        let info = self.info()?;
        let Some(program) = programs.named(self.program) else { return Ok(()) };
        let attached = if info.target != self.target {
            self.attach_again(program)
        } else if info.prog != self.prog {
            self.replace_program(program).map_err(attaching(self.program, &self.object()))
        } else {
            Ok(())
        };
        attached.map(|()| self.prog = program.info.id)
    }

    fn replace_program(&self, program: &Loaded) -> io::Result<()> {
        match (&self.filter, self.way()) {
            (Some((clsact, filter)), Some(way)) => clsact.replace(way, *filter, program.fd.as_fd()),
            _ => sys::update_link(self.anchor.fd(), program.fd.as_fd()),
        }
    }

    fn attach_again(&mut self, program: &Loaded) -> Result<(), EbpfError> {
        let (failed, hook) = (attaching(self.program, &self.object()), self.hook()?);
        let link = match &self.attached_to {
            AttachTarget::Cgroup(path) => {
                let (file, target) = open_cgroup(path)?;
                self.target = target;
                sys::attach_cgroup(program.fd.as_fd(), file.as_fd(), hook)
            }
            AttachTarget::Device(_, device) => match &mut self.filter {
                Some((clsact, filter)) => {
                    let way = way(self.program, *device);
                    *filter = clsact.attach(way, (program.fd.as_fd(), program.info.id)).map_err(failed)?;
                    return Ok(());
                }
                None => sys::attach_tcx(program.fd.as_fd(), *device, hook),
            },
        };
        link.map(|link| self.anchor.hold(link)).map_err(failed)
    }

    /// Whether it was detached because its device is not there any more.
    pub(crate) fn is_gone(&self) -> bool {
        let detached = || self.info().is_ok_and(|info| info.target != self.target);
        self.device().is_some_and(|(name, device)| detached() && sys::device(name).ok() != Some(device))
    }

    /// Detaches it and removes its pin.
    pub(crate) fn remove(&self) -> Result<(), EbpfError> {
        let detached = match (&self.filter, self.way()) {
            (Some((clsact, _)), Some(way)) => clsact.remove(way, self.prog),
            _ => detach_link(self.anchor.fd()),
        };
        detached.map_err(failed("detaching", self.anchor.path()))?;
        self.anchor.unpin()
    }

    fn info(&self) -> Result<Attached, EbpfError> {
        let attached = match (&self.filter, self.way()) {
            (Some((clsact, filter)), Some(way)) => clsact.find(way, filter.handle).map(|found| match found {
                Some(filter) => Attached { prog: filter.prog, target: self.target },
                None => Attached { prog: self.prog, target: 0 },
            }),
            _ => sys::link_info(self.anchor.fd()).map(|info| Attached { prog: info.prog, target: info.target }),
        };
        attached.map_err(failed("examining", self.anchor.path()))
    }

    /// Its name in reports.
    pub(crate) fn object(&self) -> String {
        match &self.attached_to {
            AttachTarget::Cgroup(_) => self.program.into(),
            AttachTarget::Device(name, _) => format!("{} of {name}", self.program),
        }
    }
}

/// Puts `program` into the link that is pinned at `path`, if that is attached to `target`. Otherwise a new link is made
/// before what is pinned there is detached.
fn attach(
    path: PathBuf,
    target: u64,
    program: &Loaded,
    create: impl FnOnce() -> io::Result<OwnedFd>,
) -> io::Result<Anchor> {
    let Some(old) = opened(&path)? else { return Anchor::pin(create()?, path) };
    if is_link(old.fd())? && sys::link_info(old.fd())?.target == target {
        sys::update_link(old.fd(), program.fd.as_fd())?;
        return Ok(old);
    }
    let anchor = Anchor::pin(create()?, path)?;
    detach(old.fd(), anchor.path())?;
    Ok(anchor)
}

/// Puts `program` into the filter whose program is pinned at `path`. Without such a filter, one is made before what is
/// pinned there is detached.
///
/// The program is pinned first, so that no filter is left that nobody knows.
fn attach_filter(path: PathBuf, way: Way, program: &Loaded, clsact: &Clsact) -> io::Result<(Anchor, Filter)> {
    let prog = (program.fd.as_fd(), program.info.id);
    let pin = || program.fd.try_clone();
    let Some(old) = opened(&path)? else {
        let anchor = Anchor::pin(pin()?, path)?;
        let made = clsact.attach(way, prog);
        if made.is_err() {
            // The first error says more than one about the clean-up.
            let _ = anchor.unpin();
        }
        return made.map(|filter| (anchor, filter));
    };
    let pinned = if is_link(old.fd())? { None } else { Some(sys::prog_info(old.fd())?.id) };
    let known = pinned.map_or(Ok(None), |pinned| clsact.of(way, pinned))?;
    if let Some(filter) = known.filter(|_| pinned == Some(prog.1)) {
        return Ok((old, filter));
    }
    let fresh = Fresh::pin(pin()?, path)?;
    let made = match known {
        Some(filter) => clsact.replace(way, filter, prog.0).map(|()| filter),
        None => clsact.attach(way, prog),
    };
    let filter = match made {
        Ok(filter) => filter,
        Err(error) => {
            fresh.drop_pin();
            return Err(error);
        }
    };
    let anchor = fresh.take_place()?;
    detach(old.fd(), anchor.path())?;
    Ok((anchor, filter))
}

fn opened(path: &Path) -> io::Result<Option<Anchor>> {
    fs::symlink_metadata(path).is_ok().then(|| Anchor::open(path.into())).transpose()
}

fn is_link(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(sys::object_kind(fd)? == ObjectKind::Link)
}

/// Finishes the replacement of links that a process began and did not live to finish.
pub(crate) fn finish(dir: &Path) -> Result<(), EbpfError> {
    for fresh in entries(dir)? {
        let name = fresh.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(NEW));
        let Some(path) = name.map(|name| dir.join(name)) else { continue };
        if !is_in_force(&fresh).map_err(failed("examining", &fresh))? {
            remove_file(&fresh)?;
            continue;
        }
        let old = sys::open_pin(&path).ok();
        rename(&fresh, &path).map_err(failed("renaming", &fresh))?;
        if let Some(old) = old {
            detach(old.as_fd(), &path).map_err(failed("detaching", &path))?;
        }
    }
    Ok(())
}

/// Puts `programs` into all that is pinned in `dir`, in place. What is attached to nothing any more is removed.
pub(crate) fn switch(dir: &Path, programs: &Programs) -> Result<(), EbpfError> {
    for path in entries(dir)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let program = pinned_hook(name).map_or(name, |((program, _), _)| program);
        let Some(program) = programs.named(program) else { continue };
        let switched = switch_one(&path, program).map_err(failed("replacing the program of", &path))?;
        if !switched {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// `false` if what is pinned at `path` is attached to nothing.
fn switch_one(path: &Path, program: &Loaded) -> io::Result<bool> {
    let pinned = sys::open_pin(path)?;
    if is_link(pinned.as_fd())? {
        return match sys::update_link(pinned.as_fd(), program.fd.as_fd()) {
            // A cgroup or a device that is gone took its link along.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
            other => other.map(|()| true),
        };
    }
    let (Some(way), clsact) = (way_of(path), Clsact::open()?) else { return Ok(false) };
    if clsact.of(way, sys::prog_info(pinned.as_fd())?.id)?.is_none() {
        return Ok(false);
    }
    attach_filter(path.into(), way, program, &clsact).map(|_| true)
}

/// The id of the program that is pinned, or whose link is.
pub(crate) fn program(pinned: BorrowedFd<'_>) -> io::Result<u32> {
    if is_link(pinned)? { Ok(sys::link_info(pinned)?.prog) } else { Ok(sys::prog_info(pinned)?.id) }
}

/// Whether what is pinned at `path` attaches a program: a link does, and a program if a filter runs it.
fn is_in_force(path: &Path) -> io::Result<bool> {
    let pinned = sys::open_pin(path)?;
    if is_link(pinned.as_fd())? {
        return Ok(true);
    }
    let Some(way) = way_of(path) else { return Ok(false) };
    let prog = sys::prog_info(pinned.as_fd())?.id;
    Ok(Clsact::open()?.of(way, prog)?.is_some())
}

/// Detaches what is, or was, pinned at `path`: a link, or the filter that runs a program.
pub(crate) fn detach(pinned: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    if is_link(pinned)? {
        return detach_link(pinned);
    }
    let Some(way) = way_of(path) else { return Ok(()) };
    Clsact::open()?.remove(way, sys::prog_info(pinned)?.id)
}

fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    match sys::detach_link(link) {
        // A device that is gone took its link along.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        other => other,
    }
}

/// The packets that the program looks at that is, or was, pinned at `path`.
fn way_of(path: &Path) -> Option<Way> {
    let name = path.file_name()?.to_str()?;
    let ((program, _), device) = pinned_hook(name.strip_suffix(NEW).unwrap_or(name))?;
    Some(way(program, device))
}

/// The packets that a program of devices looks at.
fn way(program: &str, device: IfIndex) -> Way {
    Way { device, leaves: program == EGRESS }
}

fn open_cgroup(path: &Path) -> Result<(File, u64), EbpfError> {
    let cannot_open = |source| EbpfError::Cgroup { path: path.into(), source };
    let file = File::open(path).map_err(cannot_open)?;
    // The id of a cgroup is its inode number.
    let id = file.metadata().map_err(cannot_open)?.ino();
    Ok((file, id))
}

fn is_no_device(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}

fn program_name(id: u32) -> String {
    let name = sys::prog_by_id(id).and_then(|fd| sys::prog_info(fd.as_fd())).map(|info| info.name);
    name.map_or_else(|_| format!("program {id}"), |name| format!("program {id} ({})", name.escape_debug()))
}

/// The pin is named after the number of the device: a BPF file system refuses dots, which names of devices may have.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/inode.c> (`bpf_lookup`)
fn pin_name(program: &str, device: IfIndex) -> String {
    format!("{program}_{}", device.0)
}

/// The device that the pin called `name` is for, if it is for one.
pub(crate) fn pinned_device(name: &str) -> Option<IfIndex> {
    Some(pinned_hook(name)?.1)
}

/// The program of the pin called `name`, where it is attached, and to which device.
pub(crate) fn pinned_hook(name: &str) -> Option<((&'static str, bpf_attach_type), IfIndex)> {
    DEVICE_PROGRAMS.into_iter().find_map(|hook| {
        let device = name.strip_prefix(hook.0)?.strip_prefix('_')?.parse().ok()?;
        Some((hook, IfIndex(device)))
    })
}

fn no_device(name: &str) -> impl FnOnce(io::Error) -> EbpfError + use<> {
    let name = name.into();
    move |source| EbpfError::NoDevice { name, source }
}

fn attaching(program: &'static str, target: &str) -> impl FnOnce(io::Error) -> EbpfError + use<> {
    let target = target.into();
    move |source| EbpfError::Attach { program, target, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_says_its_device() {
        for (program, hook) in DEVICE_PROGRAMS {
            assert_eq!(pinned_hook(&pin_name(program, IfIndex(17))), Some(((program, hook), IfIndex(17))));
        }
        assert_eq!(pinned_device("lb_connect4"), None);
        assert_eq!(pinned_device("lb_ingress_17_new"), None);
    }
}
