//! What can go wrong in a lab.

use std::{io, path::PathBuf, time::Duration};

/// Why the lab could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A system call failed.
    #[error("{action} failed (a lab needs root)")]
    System {
        /// What was tried, on which object.
        action: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("netlink request `{request}` in namespace `{namespace}` failed")]
    Netlink {
        /// The request in words.
        request: String,
        /// Name of the namespace, as in [`Netns::name`](crate::lab::Netns::name).
        namespace: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A lab without root needs namespaces that the kernel refuses.
    #[error("the kernel refuses user namespaces, which a lab without root needs ({why}); change that or run as root")]
    NoUserNamespace {
        /// The setting that forbids them.
        why: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is no cgroup2 hierarchy.
    #[error("no cgroup2 mount in /proc/self/mountinfo: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`")]
    NoCgroup2,
    /// Something that should have been removed still exists.
    #[error("`{path}` is still busy after {waited:?}")]
    Busy {
        /// The path that still exists.
        path: PathBuf,
        /// How long its end was awaited.
        waited: Duration,
    },
    /// The lab has no such node, pod or address.
    #[error("the lab has no {0}")]
    Unknown(String),
    /// The topology asks for more than its address plan holds.
    #[error("{what}: {wanted} are asked for, {most} fit")]
    TooMany {
        /// Of what there are too many.
        what: &'static str,
        /// How many were asked for.
        wanted: usize,
        /// How many there can be.
        most: usize,
    },
    /// This executable would not know that it is a worker when it is started as one.
    #[error("call lb_testkit::run_if_worker() first thing in main: workers are this executable, started again")]
    NoWorkers,
    /// A worker process ended early.
    #[error("worker `{worker}` ended early; if it panicked, the reason is on standard error")]
    WorkerGone {
        /// Which worker.
        worker: String,
    },
    /// A worker did not answer in time.
    #[error("worker `{worker}` gave no answer within {waited:?}")]
    WorkerSilent {
        /// Which worker.
        worker: String,
        /// How long an answer was awaited.
        waited: Duration,
    },
    /// A worker could not carry out its command.
    #[error("worker `{worker}`: {message}")]
    Worker {
        /// Which worker.
        worker: String,
        /// What it said.
        message: String,
    },
}

/// An error and everything below it, in one line.
#[must_use]
pub fn report(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// Turns the error of a system call into a [`LabError`] that says what was tried.
pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
    let action = action.into();
    move |source| LabError::System { action, source }
}

/// The same for `nix`' errors.
pub(crate) fn errno(action: impl Into<String>) -> impl FnOnce(nix::Error) -> LabError {
    let wrap = system(action);
    move |source| wrap(source.into())
}
