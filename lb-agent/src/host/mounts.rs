//! Where file systems are mounted.

use std::{fs, io, path::PathBuf};

/// Where the cgroup hierarchy of version 2 is mounted, if it is.
pub(crate) fn cgroup2() -> io::Result<Option<PathBuf>> {
    Ok(mount_of(&fs::read_to_string("/proc/self/mountinfo")?, "cgroup2"))
}

/// Mount point of the first file system of this type.
fn mount_of(mountinfo: &str, kind: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (source.split(' ').next()? == kind).then(|| point.replace("\\040", " ").into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_a_hybrid_hierarchy() {
        let mounts = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_of(mounts, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_of(mounts, "bpf"), None);
    }
}
