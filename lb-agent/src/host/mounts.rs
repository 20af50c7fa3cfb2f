//! Where file systems are mounted.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where BPF file systems are mounted.
pub(crate) fn bpf() -> io::Result<Vec<PathBuf>> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = mounts(&mountinfo).filter(|mount| mount.kind == "bpf");
    Ok(mounts.map(|mount| mount.point).collect())
}

/// Where the namespace that `link` names is mounted for the process of this file `mountinfo`.
pub(crate) fn namespace_of(mountinfo: &Path, link: &str) -> Option<PathBuf> {
    // A process that has ended sees nothing.
    let mountinfo = fs::read_to_string(mountinfo).ok()?;
    mounts(&mountinfo).find(|mount| mount.kind == "nsfs" && mount.root == link).map(|mount| mount.point)
}

/// What to do where nothing is mounted below `/sys`, if this process sees it like that.
pub(crate) fn hidden_sys() -> Option<&'static str> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    is_bare(&mountinfo).then_some(
        "nothing is mounted below /sys here, as under `ip netns exec`, which hides /sys/fs/bpf and /sys/fs/cgroup: run \
         `nsenter --net=/run/netns/NAME lb …` in its place",
    )
}

/// Whether `/sys` is mounted and nothing below it is: `ip netns exec` mounts it anew.
fn is_bare(mountinfo: &str) -> bool {
    let has_sysfs = mounts(mountinfo).any(|mount| mount.kind == "sysfs" && mount.point == Path::new("/sys"));
    has_sysfs && !mounts(mountinfo).any(|mount| matches!(mount.kind, "bpf" | "cgroup2"))
}

/// One line of a `mountinfo`.
struct Mount<'a> {
    root: &'a str,
    point: PathBuf,
    kind: &'a str,
}

fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        Some(Mount { root, point: point.replace("\\040", " ").into(), kind: source.split(' ').next()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sys_with_nothing_below_is_told_from_one_that_is_complete() {
        let bare = "90 80 0:5 / / rw - ext4 /dev/vda rw\n91 90 0:25 / /sys rw,relatime - sysfs blue rw\n";
        assert!(is_bare(bare));
        assert!(!is_bare(&format!("{bare}92 91 0:30 / /sys/fs/bpf rw - bpf bpf rw\n")));
        assert!(!is_bare("41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"));
        assert!(!is_bare("90 80 0:5 / / rw - ext4 /dev/vda rw\n"), "no /sys is no sign of `ip netns exec`");
    }
}
