//! Who holds how much memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::error::{Result, system};

const KIB: f64 = 1.0 / 1024.0;
const BYTE: f64 = KIB / 1024.0;
const PREFIX: &str = "lb-compare-";

/// Resident memory of a process, in MiB.
pub(super) fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(system(format!("reading {path}")))?;
    let kib = kib_of(&status, "VmRSS").ok_or_else(|| io::Error::other("no VmRSS: the process has ended"));
    Ok(kib.map_err(system(format!("reading {path}")))? * KIB)
}

/// Kernel memory that no cache can release, of the whole machine, in MiB. Other programs use it, too: only a difference
/// over a short time means something.
pub(super) fn kernel_total() -> Result<f64> {
    let meminfo = fs::read_to_string("/proc/meminfo").map_err(system("reading /proc/meminfo"))?;
    let fields = ["SUnreclaim", "VmallocUsed", "Percpu"];
    Ok(fields.iter().filter_map(|field| kib_of(&meminfo, field)).sum::<f64>() * KIB)
}

fn kib_of(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A control group that kernel memory is charged to. It is removed when this is dropped.
#[derive(Debug)]
pub(super) enum MemoryGroup {
    /// A group of its own in the hierarchy of the first version.
    Own(PathBuf),
    /// The node's group, in the hierarchy of the second version.
    Node(PathBuf),
}

impl MemoryGroup {
    /// A group for a program that runs in `node_cgroup`; `None` where memory is not accounted.
    pub(super) fn new(node_cgroup: &Path) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        if let Some(mount) = first_version(&mounts) {
            remove_leftovers(&mount);
            let path = mount.join(format!("{PREFIX}{}-{}", std::process::id(), file_name(node_cgroup)));
            fs::create_dir(&path).ok()?;
            return Some(Self::Own(path));
        }
        fs::write(node_cgroup.parent()?.join("cgroup.subtree_control"), "+memory").ok()?;
        Some(Self::Node(node_cgroup.into()))
    }

    /// Moves a process into it: what the kernel allocates for it from now on is charged here.
    pub(super) fn enter(&self, pid: u32) -> Result<()> {
        match self {
            Self::Own(path) => {
                let procs = path.join("cgroup.procs");
                fs::write(&procs, pid.to_string()).map_err(system(format!("writing {}", procs.display())))
            }
            Self::Node(_) => Ok(()),
        }
    }

    /// Kernel memory that is charged to it, in MiB.
    pub(super) fn kernel(&self) -> Option<f64> {
        let bytes: f64 = match self {
            Self::Own(path) => fs::read_to_string(path.join("memory.kmem.usage_in_bytes")).ok()?.trim().parse().ok()?,
            Self::Node(path) => {
                let stat = fs::read_to_string(path.join("memory.stat")).ok()?;
                stat.lines().find_map(|line| line.strip_prefix("kernel "))?.parse().ok()?
            }
        };
        Some(bytes * BYTE)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        if let Self::Own(path) = self {
            // One that still has a process is removed by the next comparison.
            let _ = fs::remove_dir(path);
        }
    }
}

/// Where memory is accounted in the hierarchy of the first version.
fn first_version(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let (kind, options) = source.split_once(' ')?;
        let accounts = kind == "cgroup" && options.rsplit(' ').next()?.split(',').any(|option| option == "memory");
        accounts.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Removes groups of processes that are gone; one that still has a process refuses.
fn remove_leftovers(mount: &Path) {
    let entries = fs::read_dir(mount).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = "VmHWM:\t  9000 kB\nVmRSS:\t  2048 kB\nRssAnon:\t 1 kB\n";
        assert_eq!(kib_of(status, "VmRSS"), Some(2048.0));
        assert_eq!(kib_of(status, "Vm"), None);
        assert_eq!(kib_of(status, "VmSwap"), None);
    }

    #[test]
    fn this_process_is_resident() {
        assert!(resident(std::process::id()).unwrap() > 0.5);
        assert!(resident(u32::MAX).is_err());
    }

    #[test]
    fn the_hierarchy_of_the_first_version_is_known_by_its_options() {
        let hybrid = "40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      42 31 0:39 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(first_version(hybrid), Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(first_version("42 31 0:39 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,memory_recursiveprot\n"), None);
    }
}
