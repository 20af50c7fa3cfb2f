//! Who owns what a lab leaves in file systems, and the removal of what dead owners left.
//!
//! The name of every such directory says whose it is (process, its start time, its pid namespace), so that there is no
//! register that a crash could leave wrong.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
};

use super::{Privilege, cgroup};
use crate::error::{LabError, errno, system};

const PREFIX: &str = "lb-lab";
const BPF: &str = "/sys/fs/bpf";
pub(super) const RUN: &str = "/run";

/// Identity of a lab: unique on this machine as long as it runs. Displays as the name of its directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabId {
    pid_namespace: u64,
    pid: u32,
    started: u64,
    number: u32,
}

impl LabId {
    /// The next lab of this process.
    pub(crate) fn next() -> Result<Self, LabError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let started = start_time(pid).ok_or_else(|| io::Error::other("no start time in /proc/self/stat"));
        Ok(Self {
            pid_namespace: pid_namespace()?,
            pid,
            started: started.map_err(system("identifying this process"))?,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-');
        let id = Self {
            pid_namespace: parts.next()?.parse().ok()?,
            pid: parts.next()?.parse().ok()?,
            started: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(id)
    }

    fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

impl fmt::Display for LabId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-{}-{}-{}", self.pid_namespace, self.pid, self.started, self.number)
    }
}

/// The directories of a lab. They need not exist.
#[derive(Clone, Debug)]
pub(crate) struct Directories {
    pub(crate) cgroup: PathBuf,
    pub(crate) pins: PathBuf,
    pub(crate) run: PathBuf,
}

impl Directories {
    pub(crate) fn of(id: LabId) -> Result<Self, LabError> {
        let name = id.to_string();
        if Privilege::current() == Privilege::UserNamespace {
            let run = Path::new(RUN).join(&name);
            return Ok(Self { cgroup: run.join("no-cgroup"), pins: run.join("no-bpf"), run });
        }
        Ok(Self {
            cgroup: cgroup::mount_point()?.join(&name),
            pins: Path::new(BPF).join(&name),
            run: Path::new(RUN).join(&name),
        })
    }

    /// Removes what exists of them, with the processes in the cgroups.
    pub(crate) fn remove(&self) -> Result<(), LabError> {
        cgroup::remove(&self.cgroup)?;
        [&self.pins, &self.run].into_iter().try_for_each(|path| match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(system(format!("removing {}", path.display()))),
        })
    }
}

/// Removes what labs left whose owner is dead, and says which.
///
/// # Errors
/// When something stays.
pub fn sweep() -> Result<Vec<LabId>, LabError> {
    let _lock = lock(&parents()?[0])?;
    let mut dead = leftovers()?;
    dead.retain(|id| !id.is_alive());
    for &id in &dead {
        Directories::of(id)?.remove()?;
    }
    Ok(dead)
}

/// Every lab of this pid namespace of which something is left in a file system, living ones included.
///
/// # Errors
/// When the directories cannot be read.
pub fn leftovers() -> Result<Vec<LabId>, LabError> {
    let here = pid_namespace()?;
    let mut found = Vec::new();
    for parent in parents()? {
        let entries = fs::read_dir(&parent).map_err(system(format!("listing {}", parent.display())))?;
        let names = entries.filter_map(|entry| LabId::parse(entry.ok()?.file_name().to_str()?));
        found.extend(names.filter(|id| id.pid_namespace == here));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Where directories of labs are. In a user namespace there is neither a cgroup nor a BPF file system.
fn parents() -> Result<Vec<PathBuf>, LabError> {
    Ok(match Privilege::current() {
        Privilege::UserNamespace => vec![RUN.into()],
        Privilege::Root | Privilege::None => vec![cgroup::mount_point()?, BPF.into(), RUN.into()],
    })
}

/// Mounts the BPF file system at its usual place unless it is there, or cannot be.
pub(crate) fn mount_bpf() -> Result<(), LabError> {
    if Privilege::current() == Privilege::UserNamespace {
        return Ok(());
    }
    let directory = fs::File::open(BPF).map_err(system(format!("opening {BPF}")))?;
    let _lock =
        Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| errno(format!("locking {BPF}"))(error))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(system("reading /proc/self/mountinfo"))?;
    if cgroup::mount_of(&mounts, "bpf").is_some_and(|path| path == Path::new(BPF)) {
        return Ok(());
    }
    mount(Some("bpf"), BPF, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(errno(format!("mounting the BPF file system at {BPF}")))
}

/// Keeps other labs out while it is held.
fn lock(directory: &Path) -> Result<Flock<fs::File>, LabError> {
    let file = fs::File::open(directory).map_err(system(format!("opening {}", directory.display())))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| errno(format!("locking {}", directory.display()))(error))
}

fn pid_namespace() -> Result<u64, LabError> {
    let metadata = fs::metadata("/proc/self/ns/pid").map_err(system("reading /proc/self/ns/pid"))?;
    Ok(metadata.ino())
}

/// Start of a process in ticks since boot: with the pid, what tells it from later ones of the same number.
///
/// Field 22 of `/proc/<pid>/stat`; the second one, the name in brackets, may hold spaces and brackets.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_owner() {
        let id = LabId { pid_namespace: 4_026_531_836, pid: 17, started: 99, number: 2 };
        assert_eq!(LabId::parse(&id.to_string()), Some(id));
        for other in ["lb-lab", "lb-lab-1-2-3", "lb-lab-1-2-3-4-5", "lb-labs-1-2-3-4", "lb-lab-1-2-x-4"] {
            assert_eq!(LabId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn this_process_has_a_start_time_and_pid_0_none() {
        assert!(start_time(std::process::id()).is_some());
        assert_eq!(start_time(0), None);
    }
}
