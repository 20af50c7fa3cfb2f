use std::{error, fmt, io, time::Duration};

use nix::libc;

/// Result of a conversation over netlink.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a conversation over netlink failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on the socket failed.
    #[error("{action} failed")]
    Socket {
        /// The system call, in words.
        action: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The kernel answered with an error.
    #[error(transparent)]
    Refused(#[from] KernelError),
    /// The requests were not sent, because no send buffer holds them. A datagram is never split: half a transaction
    /// would be a state that nobody asked for.
    #[error(
        "requests of {bytes} bytes do not fit into a send buffer of {limit} bytes: raise sysctl net.core.wmem_max to \
         {needed}, or run as root of the machine"
    )]
    TooLarge {
        /// Size of the requests.
        bytes: usize,
        /// Size of the largest datagram that the socket takes.
        limit: usize,
        /// Smallest value of `net.core.wmem_max` with which the requests fit.
        needed: usize,
    },
    /// The kernel took a part of a datagram.
    #[error("the kernel took {sent} of {bytes} bytes")]
    ShortSend {
        /// Bytes that the kernel took.
        sent: usize,
        /// Bytes of the datagram.
        bytes: usize,
    },
    /// The kernel dropped answers because the receive queue was full. What became of the requests is not known.
    #[error("the kernel dropped answers because the receive queue of the socket was full")]
    Overrun,
    /// The kernel neither refused the requests nor acknowledged the last one. What became of them is not known.
    #[error("the kernel did not acknowledge the requests")]
    NotAcknowledged,
    /// No answer came in time.
    #[error("the kernel did not answer within {timeout:?}")]
    TimedOut {
        /// How long the answer was awaited.
        timeout: Duration,
    },
    /// Others changed the objects of a dump while it was read, every time.
    #[error("the dump was interrupted by changes {attempts} times in a row")]
    DumpInterrupted {
        /// How often the dump was read.
        attempts: usize,
    },
    /// A [`Listener`](crate::Listener) could not join its multicast groups again after a pause.
    #[error("the kernel does not let the socket join its multicast groups again")]
    NotRejoined,
    /// A message cannot be decoded.
    #[error("message of type {kind} cannot be decoded")]
    Malformed {
        /// Type of the message.
        kind: u16,
        /// What is wrong with it.
        #[source]
        source: Box<dyn error::Error + Send + Sync>,
    },
}

impl Error {
    /// The number (`E…`) of the kernel's or the system call's error, if there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(refused) => Some(refused.errno()),
            Self::Socket { source, .. } => source.raw_os_error(),
            Self::Overrun => Some(libc::ENOBUFS),
            Self::TooLarge { .. }
            | Self::ShortSend { .. }
            | Self::NotAcknowledged
            | Self::TimedOut { .. }
            | Self::DumpInterrupted { .. }
            | Self::NotRejoined
            | Self::Malformed { .. } => None,
        }
    }

    pub(crate) fn socket(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Socket { action, source }
    }
}

/// Keeps the number of the error where there is one.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Socket { source, .. } => source,
            Error::Refused(refused) if refused.explanation.is_none() => refused.cause,
            Error::Refused(refused) => Self::new(refused.cause.kind(), refused),
            Error::TimedOut { .. } | Error::NotAcknowledged => Self::new(io::ErrorKind::TimedOut, error),
            Error::DumpInterrupted { .. } => Self::new(io::ErrorKind::Interrupted, error),
            Error::Malformed { .. } => Self::new(io::ErrorKind::InvalidData, error),
            Error::TooLarge { .. } | Error::ShortSend { .. } | Error::Overrun | Error::NotRejoined => {
                Self::other(error)
            }
        }
    }
}

/// An error that the kernel answered with.
#[derive(Debug)]
pub struct KernelError {
    cause: io::Error,
    explanation: Option<String>,
}

impl KernelError {
    /// The error with this number, without an explanation.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        Self { cause: io::Error::from_raw_os_error(errno), explanation: None }
    }

    pub(crate) fn explained(errno: i32, explanation: Option<String>) -> Self {
        Self { explanation, ..Self::from_errno(errno) }
    }

    /// The number (`E…`), positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.cause.raw_os_error().expect("the cause is made from a number")
    }

    /// The kernel's own words (`NLMSGERR_ATTR_MSG`), if it has any.
    #[must_use]
    pub fn explanation(&self) -> Option<&str> {
        self.explanation.as_deref()
    }
}

impl Clone for KernelError {
    fn clone(&self) -> Self {
        Self::explained(self.errno(), self.explanation.clone())
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.explanation {
            Some(explanation) => f.write_str(explanation),
            None => self.cause.fmt(f),
        }
    }
}

impl error::Error for KernelError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.explanation.as_ref().map(|_| &self.cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_keeps_the_number_and_the_explanation() {
        let plain = io::Error::from(Error::from(KernelError::from_errno(libc::EPERM)));
        assert_eq!(plain.raw_os_error(), Some(libc::EPERM));
        let refused = KernelError::explained(libc::ENODEV, Some("no such device".into()));
        assert_eq!(Error::from(refused).errno(), Some(libc::ENODEV));
        let refused = KernelError::explained(libc::ENOENT, Some("no such chain".into()));
        let explained = io::Error::from(Error::from(refused));
        assert_eq!((explained.kind(), explained.to_string()), (io::ErrorKind::NotFound, "no such chain".into()));
    }
}
