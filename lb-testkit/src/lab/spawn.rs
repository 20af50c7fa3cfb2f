//! Child processes that start in a namespace and a cgroup and die with the lab.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command},
    sync::mpsc::{self, Sender},
    thread::{self, JoinHandle},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl::set_pdeathsig, signal::Signal},
};

use super::Netns;
use crate::error::{LabError, system};

type Job = Box<dyn FnOnce() + Send>;

/// The thread that every child of a lab is started from. The kernel kills a child that asked for it when the *thread*
/// that started it ends, so this one lives as long as the lab.
#[derive(Debug)]
pub(super) struct Spawner {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Spawner {
    pub(super) fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || inbox.into_iter().for_each(|job| job()));
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Starts `command` in a namespace (default: the owner's) and a cgroup (default: the owner's).
    pub(super) fn spawn(
        &self,
        mut command: Command,
        netns: Option<&Netns>,
        cgroup: Option<&Path>,
    ) -> Result<Child, LabError> {
        let action = format!("starting {:?}", command.get_program());
        let confinement = Confinement::new(netns, cgroup).map_err(system(action.clone()))?;
        // SAFETY: between fork and exec the closure makes system calls on descriptors opened before; it allocates
        // nothing and takes no lock. The errors that it makes are plain numbers.
        unsafe { command.pre_exec(move || confinement.enter()) };
        let (result, started) = mpsc::channel();
        let job = Box::new(move || {
            // The receiver waits below.
            let _ = result.send(command.spawn());
        });
        let gone = || io::Error::other("the spawner thread is gone");
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        let child = if sent { started.recv().unwrap_or_else(|_| Err(gone())) } else { Err(gone()) };
        child.map_err(system(action))
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

/// Namespace and cgroup that a child enters before its program runs.
struct Confinement {
    netns: Option<OwnedFd>,
    cgroup: Option<File>,
}

impl Confinement {
    fn new(netns: Option<&Netns>, cgroup: Option<&Path>) -> io::Result<Self> {
        let open = |path: &Path| fs::OpenOptions::new().write(true).open(path.join("cgroup.procs"));
        Ok(Self {
            netns: netns.map(|netns| netns.as_fd().try_clone_to_owned()).transpose()?,
            cgroup: cgroup.map(open).transpose()?,
        })
    }

    fn enter(&self) -> io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        if let Some(netns) = &self.netns {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(mut cgroup) = self.cgroup.as_ref() {
            cgroup.write_all(b"0")?;
        }
        Ok(())
    }
}
