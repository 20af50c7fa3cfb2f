//! Network namespaces: those of the processes of a cgroup, and those that have a name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use crate::sys;

/// Other network namespaces than that of the calling thread.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    /// By device and inode.
    found: BTreeMap<(u64, u64), File>,
    seen: BTreeSet<(u64, u64)>,
    /// Tasks whose namespace could not be seen, and why the first one could not.
    pub(crate) hidden: Option<(u64, io::Error)>,
}

/// What of a cgroup is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tasks {
    /// Processes: the namespaces of their main threads.
    Processes,
    /// Every thread: some have namespaces of their own.
    Threads,
}

impl Tasks {
    const fn file(self) -> &'static str {
        match self {
            Self::Processes => "cgroup.procs",
            Self::Threads => "cgroup.threads",
        }
    }
}

impl Namespaces {
    /// None yet. That of the calling thread is never among them.
    ///
    /// # Errors
    /// When `/proc` does not say it.
    pub(crate) fn new() -> io::Result<Self> {
        let own = fs::metadata("/proc/thread-self/ns/net")?;
        Ok(Self { seen: [(own.dev(), own.ino())].into(), ..Self::default() })
    }

    /// Finds the namespaces of the tasks of `cgroup` and of all cgroups below it.
    pub(crate) fn find(&mut self, cgroup: &Path, tasks: Tasks) {
        let mut directories = vec![cgroup.to_path_buf()];
        while let Some(directory) = directories.pop() {
            directories.extend(below(&directory));
            // A cgroup that has gone meanwhile, or whose processes only the root of its threads lists.
            let Ok(list) = fs::read_to_string(directory.join(tasks.file())) else { continue };
            list.lines().for_each(|task| self.add(task));
        }
    }

    /// Finds the namespaces that are mounted in `directory`: one that a container runtime has made for a pod whose first
    /// process is yet to come is nowhere else. None if there is no such directory.
    pub(crate) fn find_named(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(file) = File::open(entry.path()) else { continue };
            let Ok(meta) = file.metadata() else { continue };
            if sys::is_network_namespace(file.as_fd()) && self.seen.insert((meta.dev(), meta.ino())) {
                self.found.insert((meta.dev(), meta.ino()), file);
            }
        }
    }

    fn add(&mut self, task: &str) {
        // A task of another PID namespace has no number here.
        if task == "0" {
            self.hide(io::Error::other("it is in another PID namespace, which this process does not see"));
            return;
        }
        let path = format!("/proc/{task}/ns/net");
        match fs::metadata(&path) {
            Ok(file) if !self.seen.insert((file.dev(), file.ino())) => {}
            Ok(file) => match File::open(&path) {
                Ok(opened) => drop(self.found.insert((file.dev(), file.ino()), opened)),
                Err(error) => self.hide(error),
            },
            Err(error) => self.hide(error),
        }
    }

    fn hide(&mut self, error: io::Error) {
        // It has ended meanwhile, and its sockets with it.
        if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) {
            return;
        }
        match &mut self.hidden {
            Some((count, _)) => *count += 1,
            hidden => *hidden = Some((1, error)),
        }
    }

    /// Takes out what was found since the last call.
    pub(crate) fn take(&mut self) -> Vec<File> {
        std::mem::take(&mut self.found).into_values().collect()
    }
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Calls `work` in a thread inside of each namespace. The calling thread stays where it is.
///
/// Returns how many could not be entered, and why the first one could not.
pub(crate) fn inside(namespaces: &[File], mut work: impl FnMut() + Send) -> Option<(u64, io::Error)> {
    let work = &mut work;
    let visit = move || {
        let mut refused: Option<(u64, io::Error)> = None;
        for namespace in namespaces {
            match (sys::enter_network_namespace(namespace.as_fd()), &mut refused) {
                (Ok(()), _) => work(),
                (Err(_), Some((count, _))) => *count += 1,
                (Err(error), refused) => *refused = Some((1, error)),
            }
        }
        refused
    };
    thread::scope(|scope| scope.spawn(visit).join().unwrap_or_else(|cause| std::panic::resume_unwind(cause)))
}

/// Whether this process may enter network namespaces.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub(crate) fn may_enter() -> io::Result<()> {
    let own = File::open("/proc/thread-self/ns/net")?;
    inside(&[own], || ()).map_or(Ok(()), |(_, error)| Err(error))
}
