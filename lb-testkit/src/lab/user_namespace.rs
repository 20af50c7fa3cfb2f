//! A lab without root: in namespaces of its own, where the caller is root.

use std::{convert::Infallible, env, fs, io, os::unix::process::CommandExt, process::Command};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};

use super::owner::RUN;
use crate::error::LabError;

/// Tells a process that it was started inside.
const MARK: &str = "LB_LAB_USER_NAMESPACE";

/// What the kernel lets this process do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Everything: root of the machine.
    Root,
    /// Root of the namespaces that [`enter_user_namespace`] made: links, routes, nftables and iptables there, but no
    /// BPF, no cgroups, and no more than `net.core.wmem_max` of socket buffer.
    UserNamespace,
    /// Nothing that a lab needs, until it calls [`enter_user_namespace`].
    None,
}

impl Privilege {
    /// Of this process.
    #[must_use]
    pub fn current() -> Self {
        match (geteuid().is_root(), env::var_os(MARK).is_some()) {
            (true, true) => Self::UserNamespace,
            (true, false) if owns_every_user() => Self::Root,
            _ => Self::None,
        }
    }
}

/// Whether this is the user namespace of the machine: in any other, root is somebody's guest.
fn owns_every_user() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Starts this program again with the same arguments as root of new user, mount, network and cgroup namespaces, with a
/// `/run` of its own. Everything in them ends with its last process.
///
/// Call it while there is only one thread.
///
/// # Errors
/// Always: it does not return when it succeeds.
pub fn enter_user_namespace() -> Result<Infallible, LabError> {
    let (user, group) = (geteuid(), getegid());
    let all =
        CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWCGROUP;
    unshare(all).map_err(|error| refused(error.into()))?;
    // The kernel lets nobody map a group who could still leave one.
    let maps =
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {user} 1")), ("gid_map", format!("0 {group} 1"))];
    maps.iter().try_for_each(|(file, text)| fs::write(format!("/proc/self/{file}"), text)).map_err(refused)?;
    mount(Some("tmpfs"), RUN, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .map_err(|error| refused(error.into()))?;
    // Only a program that was started inside owns its files below /proc, by which workers find namespaces.
    let mut command = Command::new("/proc/self/exe");
    let mut arguments = env::args_os();
    command.arg0(arguments.next().unwrap_or_default()).args(arguments).env(MARK, "1");
    Err(refused(command.exec()))
}

fn refused(source: io::Error) -> LabError {
    let setting = |(name, refuses): &(&str, &str)| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let value = fs::read_to_string(path).ok()?;
        (value.trim() == *refuses).then(|| format!("sysctl {name} is {refuses}"))
    };
    let why = SETTINGS.iter().find_map(setting);
    let why = why.unwrap_or_else(|| "no sysctl says so: a security module or a container's seccomp profile may".into());
    LabError::NoUserNamespace { why, source }
}

/// Settings that forbid the namespaces, with the value that does.
const SETTINGS: [(&str, &str); 6] = [
    ("kernel.unprivileged_userns_clone", "0"),
    ("user.max_user_namespaces", "0"),
    ("user.max_mnt_namespaces", "0"),
    ("user.max_net_namespaces", "0"),
    ("user.max_cgroup_namespaces", "0"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1"),
];
