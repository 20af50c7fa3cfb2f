//! A pinned object that the process holds open as well, so that removing the pin does not remove the object.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use lb_core::drift::{Cause, Difference, Drift, DriftClass};

use crate::{
    error::EbpfError,
    pins::{
        directories::{failed, remove_file, rename},
        links::NEW,
    },
    sys,
};

/// Permissions of a pin, before the process's umask.
const MODE: u32 = 0o600;

/// A pinned object.
#[derive(Debug)]
pub(crate) struct Anchor {
    path: PathBuf,
    fd: OwnedFd,
    /// Inode number of the pin. The BPF file system counts them up, so another pin at the same path has another one:
    /// <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/inode.c> (`bpf_get_inode`).
    inode: u64,
}

impl Anchor {
    /// Opens what is pinned at `path`.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let fd = sys::open_pin(&path)?;
        let inode = fs::symlink_metadata(&path)?.ino();
        Ok(Self { path, fd, inode })
    }

    /// Pins `fd` at `path`, and replaces a pin that is there.
    pub(crate) fn pin(fd: OwnedFd, path: PathBuf) -> io::Result<Self> {
        if fs::symlink_metadata(&path).is_ok() {
            return Fresh::pin(fd, path)?.take_place();
        }
        sys::pin(fd.as_fd(), &path)?;
        let inode = fs::symlink_metadata(&path)?.ino();
        Ok(Self { path, fd, inode })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How the pin differs from the one that was made.
    pub(crate) fn check(&self) -> Option<Drift> {
        let (difference, cause) = match fs::symlink_metadata(&self.path) {
            Err(_) => (Difference::Missing, Cause::Unpinned),
            Ok(found) if found.ino() != self.inode => {
                let (expected, found) = ("the pin that was made".into(), "another one".into());
                (Difference::Wrong { expected, found }, Cause::Edited)
            }
            Ok(found) if found.uid() != sys::user() || found.mode() & 0o7777 & !MODE != 0 => {
                let found = format!("mode {:o} and owner {}", found.mode() & 0o7777, found.uid());
                let expected = format!("mode {MODE:o} and owner {}", sys::user());
                (Difference::Wrong { expected, found }, Cause::Edited)
            }
            Ok(_) => return None,
        };
        Some(Drift::new(DriftClass::Pin, self.path.display(), difference).because(cause))
    }

    /// Pins the object again if its pin has changed.
    pub(crate) fn repair(&mut self) -> Result<(), EbpfError> {
        if self.check().is_none() {
            return Ok(());
        }
        let same = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if same {
            std::os::unix::fs::chown(&self.path, Some(sys::user()), None).map_err(failed("changing", &self.path))?;
            return fs::set_permissions(&self.path, Permissions::from_mode(MODE))
                .map_err(failed("changing", &self.path));
        }
        if self.path.is_dir() {
            fs::remove_dir(&self.path).map_err(failed("removing", &self.path))?;
        }
        let fd = self.fd.try_clone().map_err(failed("pinning", &self.path))?;
        *self = Self::pin(fd, self.path.clone()).map_err(failed("pinning", &self.path))?;
        Ok(())
    }

    /// Holds another object instead, which is not pinned yet.
    pub(crate) fn hold(&mut self, fd: OwnedFd) {
        (self.fd, self.inode) = (fd, 0);
    }

    /// Removes the pin, if it is there.
    pub(crate) fn unpin(&self) -> Result<(), EbpfError> {
        if fs::symlink_metadata(&self.path).is_err() {
            return Ok(());
        }
        remove_file(&self.path)
    }
}

/// An object that is pinned beside the one that it is about to replace.
#[derive(Debug)]
pub(crate) struct Fresh {
    beside: PathBuf,
    path: PathBuf,
    fd: OwnedFd,
}

impl Fresh {
    /// Pins `fd` beside what is pinned at `path`.
    pub(crate) fn pin(fd: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let beside = beside(&path);
        if fs::symlink_metadata(&beside).is_ok() {
            fs::remove_file(&beside)?;
        }
        sys::pin(fd.as_fd(), &beside)?;
        Ok(Self { beside, path, fd })
    }

    /// Puts it in the place of the other one.
    pub(crate) fn take_place(self) -> io::Result<Anchor> {
        rename(&self.beside, &self.path)?;
        let inode = fs::symlink_metadata(&self.path)?.ino();
        Ok(Anchor { path: self.path, fd: self.fd, inode })
    }

    /// Removes the pin; the other one stays.
    pub(crate) fn drop_pin(self) {
        // The error that led here says more than one about the clean-up.
        let _ = fs::remove_file(&self.beside);
    }
}

/// The path of a new pin that is about to replace the one at `path`.
fn beside(path: &Path) -> PathBuf {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(NEW);
    fresh.into()
}
