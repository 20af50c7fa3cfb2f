//! Where in the kernel a datapath is, so that nobody takes one place for another.
//!
//! Rules and routes belong to a network namespace, pins to a BPF file system, and both end with the boot. A process
//! sees one network namespace and the file systems that are mounted for it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use super::mounts;

/// Where a datapath was put.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Place {
    /// The boot of the machine (`/proc/sys/kernel/random/boot_id`); nothing in the kernel survives it.
    pub boot_id: String,
    /// Number of the network namespace: N in `net:[N]`, as `lsns` and `readlink /proc/PID/ns/net` print it.
    pub network_namespace: u64,
    /// Number of the device of the BPF file system with the pins, if there are pins.
    #[serde(default)]
    pub file_system: Option<u64>,
}

/// Where a place is for this process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Whereabouts {
    /// This thread sees it.
    Here,
    /// It does not exist any more, and neither does what was there.
    Gone(String),
    /// It is another network namespace, which this file leads to.
    Namespace(PathBuf),
    /// This process cannot see it, and why.
    Hidden(String),
}

impl Place {
    /// The place that this thread sees, with the file system of `pin_dir` if that is in a BPF file system.
    ///
    /// # Errors
    /// When `/proc` does not say it.
    pub fn here(pin_dir: Option<&Path>) -> io::Result<Self> {
        Ok(Self {
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().into(),
            network_namespace: fs::metadata("/proc/thread-self/ns/net")?.ino(),
            file_system: pin_dir.and_then(bpf_file_system),
        })
    }

    /// Where this place is for this thread; `pin_dir` if what was put there has pins.
    #[must_use]
    pub fn whereabouts(&self, pin_dir: Option<&Path>) -> Whereabouts {
        let here = match Self::here(pin_dir) {
            Ok(here) => here,
            Err(error) => return Whereabouts::Hidden(format!("/proc does not tell this process where it is: {error}")),
        };
        if here.boot_id != self.boot_id {
            return Whereabouts::Gone("the machine was started again since".into());
        }
        match pin_dir {
            Some(_) if here.file_system.is_some() && here.file_system == self.file_system => Whereabouts::Here,
            Some(pin_dir) if self.file_system.is_none() => Whereabouts::Hidden(unknown_pins(pin_dir)),
            Some(pin_dir) => Whereabouts::Hidden(hidden_pins(pin_dir)),
            None if here.network_namespace == self.network_namespace => Whereabouts::Here,
            None => find(self.network_namespace),
        }
    }
}

/// Why pins that were in `pin_dir` are not seen.
pub(crate) fn hidden_pins(pin_dir: &Path) -> String {
    format!("this process does not see the BPF file system that {} was in{}", pin_dir.display(), hint())
}

/// Why nobody knows whether there are pins in `pin_dir`, where none were ever seen.
fn unknown_pins(pin_dir: &Path) -> String {
    format!("nothing is known of {}: this process does not see the BPF file system there{}", pin_dir.display(), hint())
}

fn hint() -> String {
    mounts::hidden_sys().map(|hint| format!("; {hint}")).unwrap_or_default()
}

/// Number of the device of the BPF file system that `path` is in, or would be in if it were made.
pub(crate) fn bpf_file_system(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let kind = statfs(existing).ok()?.filesystem_type();
    if kind == BPF_FS_MAGIC { Some(fs::metadata(existing).ok()?.dev()) } else { None }
}

/// Number of the process namespace in which every process of the machine has a number (`PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Looks for a network namespace: under the names that `ip netns` and Docker give, with all processes, in what they
/// hold open and in what is mounted for them.
fn find(number: u64) -> Whereabouts {
    let link = format!("net:[{number}]");
    let is_it = |path: &Path| fs::metadata(path).is_ok_and(|found| found.ino() == number);
    let named = ["/run/netns", "/var/run/netns", "/run/docker/netns"].into_iter().flat_map(entries);
    if let Some(path) = named.into_iter().find(|path| is_it(path) && is_namespace(path)) {
        return Whereabouts::Namespace(path);
    }
    let sees_all = fs::metadata("/proc/self/ns/pid").is_ok_and(|found| found.ino() == FIRST_PID_NAMESPACE);
    let mut sees_all = sees_all && nix::unistd::geteuid().is_root();
    for process in entries("/proc").into_iter().filter(|path| is_number(path)) {
        let threads = entries(process.join("task")).into_iter().map(|thread| thread.join("ns/net"));
        let files = entries(process.join("fd"));
        let mut links = std::iter::once(process.join("ns/net")).chain(threads).chain(files);
        if let Some(path) = links.find(|path| leads_to(path, &link, &mut sees_all)) {
            return Whereabouts::Namespace(path);
        }
        if let Some(mount) = mounts::namespace_of(&process.join("mountinfo"), &link) {
            return Whereabouts::Namespace(process.join("root").join(mount.strip_prefix("/").unwrap_or(&mount)));
        }
    }
    if sees_all {
        return Whereabouts::Gone(format!("network namespace {link} is gone: no process, file or mount holds it"));
    }
    Whereabouts::Hidden(format!("network namespace {link} is gone, or hidden from this process"))
}

fn entries(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn is_number(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// Whether a file is a namespace. Numbers of files repeat among file systems.
fn is_namespace(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    device(path) == device(Path::new("/proc/self/ns/net"))
}

/// Whether a link of `/proc` leads to a namespace. A process that has ended meanwhile is none to look at.
fn leads_to(path: &Path, link: &str, sees_all: &mut bool) -> bool {
    match fs::read_link(path) {
        Ok(target) => target.as_os_str() == link,
        Err(error) => {
            *sees_all &= error.kind() != io::ErrorKind::PermissionDenied;
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn what_was_put_here_is_here_and_ends_with_the_boot() {
        let place = Place::here(None).unwrap();
        assert_eq!(place.whereabouts(None), Whereabouts::Here);
        let earlier = Place { boot_id: "another".into(), ..place };
        let Whereabouts::Gone(why) = earlier.whereabouts(None) else { panic!("{earlier:?} is not gone") };
        assert!(why.contains("started again"), "{why}");
    }

    #[test]
    fn pins_are_not_taken_for_gone_where_their_file_system_is_not_seen() {
        let directory = tempfile::tempdir().unwrap();
        let pin_dir = directory.path().join("pins");
        let here = Place::here(Some(&pin_dir)).unwrap();
        assert_eq!(here.file_system, None, "a temporary directory is in no BPF file system");
        let place = Place { file_system: Some(7), ..here };
        let Whereabouts::Hidden(why) = place.whereabouts(Some(&pin_dir)) else { panic!("{place:?} is seen") };
        assert!(why.contains("pins was in"), "{why}");
        let never = Place { file_system: None, ..place };
        let Whereabouts::Hidden(why) = never.whereabouts(Some(&pin_dir)) else { panic!("{never:?} is seen") };
        assert!(why.starts_with(&format!("nothing is known of {}: ", pin_dir.display())), "{why}");
    }

    #[test]
    #[ignore = "needs root: makes network namespaces"]
    fn another_network_namespace_is_found_as_long_as_it_exists() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let other = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(Place::here(None).unwrap()).unwrap();
            let _ = ended.recv();
        });
        let place = told.recv().unwrap();
        let Whereabouts::Namespace(path) = place.whereabouts(None) else { panic!("{place:?} is not found") };
        assert_eq!(fs::metadata(&path).unwrap().ino(), place.network_namespace);
        drop(end);
        other.join().unwrap();
        let number = format!("net:[{}]", place.network_namespace);
        // Where some process may not be looked at, it may be the one that holds the namespace.
        let sees_all = fs::read_link("/proc/1/ns/net").is_ok();
        match place.whereabouts(None) {
            Whereabouts::Gone(why) if sees_all => assert!(why.contains(&number), "{why}"),
            Whereabouts::Hidden(why) if !sees_all => assert!(why.contains(&number), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
