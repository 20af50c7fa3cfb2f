//! Links: what keeps programs attached, pinned so that they outlive the process.
//!
//! A link is updated in place wherever it can be: detaching and attaching again loses packets and connections between the
//! two.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS;

use crate::{
    error::EbpfError,
    pin::failed,
    programs::{INGRESS, Programs, SOCKET_PROGRAMS},
    sys::{self, IfIndex, LinkInfo},
};

/// What programs are attached to.
#[derive(Debug)]
pub(crate) struct Links {
    dir: PathBuf,
    devices: BTreeMap<String, IfIndex>,
}

impl Links {
    pub(crate) const fn new(dir: PathBuf) -> Self {
        Self { dir, devices: BTreeMap::new() }
    }

    /// Attaches the socket programs to `cgroup`.
    pub(crate) fn attach_cgroup(&self, programs: &Programs, cgroup: &Path) -> Result<(), EbpfError> {
        let cannot_open = |source| EbpfError::Cgroup { path: cgroup.into(), source };
        let file = File::open(cgroup).map_err(cannot_open)?;
        // The id of a cgroup is its inode number.
        let id = file.metadata().map_err(cannot_open)?.ino();
        for ((name, attach_type), program) in SOCKET_PROGRAMS.iter().zip(programs.sockets()) {
            let wanted = LinkInfo { target: id, attach_type: *attach_type as u32 };
            let attached =
                self.attach(name, wanted, program, || sys::attach_cgroup(program, file.as_fd(), *attach_type));
            attached.map_err(attaching(name, &cgroup.display().to_string()))?;
        }
        Ok(())
    }

    /// Attaches the packet program to the ingress of the device called `name`.
    pub(crate) fn attach_device(&mut self, programs: &Programs, name: &str) -> Result<(), EbpfError> {
        let device = sys::device(name).map_err(|source| EbpfError::NoDevice { name: name.into(), source })?;
        let wanted = LinkInfo { target: device.0.into(), attach_type: BPF_TCX_INGRESS as u32 };
        let program = programs.ingress();
        let attached = self.attach(&pin_name(device), wanted, program, || sys::attach_tcx(program, device));
        attached.map_err(attaching(INGRESS, name))?;
        self.devices.insert(name.into(), device);
        Ok(())
    }

    /// Detaches the packet program from the device called `name`, which may be gone.
    pub(crate) fn detach_device(&mut self, name: &str) -> Result<(), EbpfError> {
        let device = self.devices.remove(name).or_else(|| sys::device(name).ok());
        device.map_or(Ok(()), |device| unpin(&self.dir.join(pin_name(device))))
    }

    /// Removes what is pinned for devices that are gone or that `keep` leaves out.
    pub(crate) fn sweep_devices(&self, keep: impl Fn(IfIndex) -> bool) -> Result<(), EbpfError> {
        for entry in fs::read_dir(&self.dir).map_err(failed("reading", &self.dir))? {
            let path = entry.map_err(failed("reading", &self.dir))?.path();
            let Some(device) = path.file_name().and_then(|name| pinned_device(name.to_str()?)) else { continue };
            let info = sys::open_pin(&path).and_then(|link| sys::link_info(link.as_fd()));
            let attached = info.map_err(failed("opening", &path))?.target == u64::from(device.0);
            if !attached || !keep(device) {
                unpin(&path)?;
            }
        }
        Ok(())
    }

    /// Removes what is pinned for devices that are gone or were not attached by this process.
    pub(crate) fn keep_attached_devices(&self) -> Result<(), EbpfError> {
        self.sweep_devices(|device| self.devices.values().any(|&attached| attached == device))
    }

    /// Puts `program` into the link that is pinned as `name`, if that leads to where it should; otherwise makes one,
    /// before the old one goes.
    fn attach(
        &self,
        name: &str,
        wanted: LinkInfo,
        program: BorrowedFd<'_>,
        create: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<()> {
        let path = self.dir.join(name);
        let old = path.exists().then(|| sys::open_pin(&path)).transpose()?;
        if let Some(old) = &old
            && sys::link_info(old.as_fd())? == wanted
        {
            return sys::update_link(old.as_fd(), program);
        }
        let link = create()?;
        let fresh = self.dir.join(format!("{name}_new"));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sys::pin(link.as_fd(), &fresh)?,
        }
        fs::rename(&fresh, &path)?;
        old.map_or(Ok(()), |old| detach(old.as_fd()))
    }
}

/// Detaches what is pinned at `path`, if anything is, and removes the pin.
///
/// The kernel would detach it by itself after the last pin and descriptor are gone, but some grace period later: packets
/// that come meanwhile would still be translated.
pub(crate) fn unpin(path: &Path) -> Result<(), EbpfError> {
    match sys::open_pin(path) {
        Ok(link) => {
            detach(link.as_fd()).map_err(failed("detaching", path))?;
            fs::remove_file(path).map_err(failed("removing", path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("opening", path)(error)),
    }
}

fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    match sys::detach_link(link) {
        // A device that is gone took its link along.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        other => other,
    }
}

/// By number: a BPF file system takes no dots, which names of devices may have.
fn pin_name(device: IfIndex) -> String {
    format!("{INGRESS}_{}", device.0)
}

fn pinned_device(name: &str) -> Option<IfIndex> {
    name.strip_prefix(INGRESS)?.strip_prefix('_')?.parse().ok().map(IfIndex)
}

fn attaching(program: &'static str, target: &str) -> impl FnOnce(io::Error) -> EbpfError {
    let target = target.into();
    move |source| EbpfError::Attach { program, target, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_says_its_device() {
        assert_eq!(pinned_device(&pin_name(IfIndex(17))), Some(IfIndex(17)));
        assert_eq!(pinned_device("lb_connect4"), None);
        assert_eq!(pinned_device("lb_ingress_17_new"), None);
    }
}
