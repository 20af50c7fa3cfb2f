//! Cgroups of the second version, one per node.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{LabError, errno, system};

/// How long the processes of a cgroup may take to die.
const DEATH: Duration = Duration::from_secs(10);

/// Where the cgroup2 hierarchy is mounted.
///
/// # Errors
/// When it is not.
pub fn mount_point() -> Result<PathBuf, LabError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(system("reading /proc/self/mountinfo"))?;
    mount_of(&mounts, "cgroup2").ok_or(LabError::NoCgroup2)
}

/// Mount point of the first file system of this type.
pub(crate) fn mount_of(mountinfo: &str, kind: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        if source.split(' ').next()? != kind {
            return None;
        }
        mount.split(' ').nth(4).map(PathBuf::from)
    })
}

/// Makes a cgroup.
pub(crate) fn create(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(system(format!("creating cgroup {}", path.display())))
}

/// Kills every process in `path` and below and removes the cgroups. Fine if there are none.
pub(crate) fn remove(path: &Path) -> Result<(), LabError> {
    if !path.exists() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1").map_err(system(format!("killing cgroup {}", path.display())))?;
    wait_until_empty(path)?;
    remove_tree(path).map_err(system(format!("removing cgroup {}", path.display())))
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The kernel wakes a poll on `cgroup.events` when the last process leaves.
fn wait_until_empty(path: &Path) -> Result<(), LabError> {
    let events = path.join("cgroup.events");
    let action = || format!("watching {}", events.display());
    let deadline = Instant::now() + DEATH;
    let file = File::open(&events).map_err(system(action()))?;
    while fs::read_to_string(&events).map_err(system(action()))?.contains("populated 1") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LabError::Busy { path: path.into(), waited: DEATH });
        }
        let timeout = PollTimeout::try_from(left.min(Duration::from_millis(50))).unwrap_or(PollTimeout::ZERO);
        poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout).map_err(errno(action()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_a_hybrid_hierarchy() {
        let mounts = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_of(mounts, "cgroup2"), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_of(mounts, "bpf"), None);
    }
}
