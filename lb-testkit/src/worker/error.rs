//! Errors of sockets as [`Failure`]s.

use std::{io, time::Instant};

use crate::traffic::{Failure, FailureKind};

/// What a failed system call means for a request that began at `start`.
pub(super) fn failure(step: &str, error: &io::Error, start: Instant) -> Failure {
    Failure { kind: kind(error), detail: format!("{step}: {error}"), after: start.elapsed() }
}

/// A failure that no system call reported.
pub(super) fn other(kind: FailureKind, detail: impl Into<String>, start: Instant) -> Failure {
    Failure { kind, detail: detail.into(), after: start.elapsed() }
}

fn kind(error: &io::Error) -> FailureKind {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => FailureKind::Refused,
        // A blocking connect that hits its send time-out says EINPROGRESS.
        Some(libc::ETIMEDOUT | libc::EINPROGRESS | libc::EAGAIN) => FailureKind::Timeout,
        // A connect over a blackhole route says EINVAL.
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN | libc::EINVAL) => FailureKind::Unreachable,
        // A connected datagram socket that was ended has no destination.
        Some(libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED | libc::EDESTADDRREQ) => FailureKind::Reset,
        Some(libc::EPERM | libc::EACCES) => FailureKind::Denied,
        Some(libc::ENOBUFS) => FailureKind::NotTaken,
        Some(_) => FailureKind::Other,
        None if error.kind() == io::ErrorKind::TimedOut => FailureKind::Timeout,
        None => FailureKind::Other,
    }
}
