//! Network namespaces that only file descriptors hold.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    panic, thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{LabError, errno, system};

/// A network namespace without a name in the file system: it ends with the last process, socket and descriptor in it,
/// so that nothing of it outlives its owner, however the owner ends.
#[derive(Debug)]
pub struct Netns {
    name: String,
    fd: OwnedFd,
}

impl Netns {
    /// A new namespace; `name` is for messages only.
    ///
    /// # Errors
    /// Without the privilege to make one.
    pub fn create(name: &str) -> Result<Self, LabError> {
        let fd = thread::scope(|scope| join(scope.spawn(unshared)))
            .map_err(system(format!("creating network namespace `{name}`")))?;
        Ok(Self { name: name.into(), fd })
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `f` inside, on a thread of its own; its panic is passed on.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        thread::scope(|scope| {
            join(scope.spawn(|| {
                self.enter()?;
                Ok(f())
            }))
        })
    }

    /// Moves the calling thread inside, for good.
    ///
    /// # Errors
    /// Without the privilege to do so.
    pub fn enter(&self) -> Result<(), LabError> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(errno(format!("entering network namespace `{}`", self.name)))
    }

    /// A path under which this process and its descendants can open it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn unshared() -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
}
