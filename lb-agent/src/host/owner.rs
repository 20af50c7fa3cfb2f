//! Who may write the rules of a network namespace.
//!
//! Rules and routes have fixed names, so that two agents would undo each other's. An abstract socket is a lock that
//! belongs to a network namespace and goes with its holder. A kind whose driver says
//! [`Exclusion::Datapath`] needs none: the pin directory of eBPF is one.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

use crate::driver::{DatapathKind, Exclusion};

/// Why somebody may not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnerError {
    /// Another process has it.
    #[error(
        "another agent, or `lb cleanup`, uses datapath {kind} in this network namespace (it holds the abstract socket \
         @lb/{kind}): stop it first"
    )]
    InUse {
        /// The kind of datapath.
        kind: DatapathKind,
    },
    /// The system refuses.
    #[error("taking the abstract socket @lb/{kind} failed")]
    Io {
        /// The kind of datapath.
        kind: DatapathKind,
        /// What the system says.
        source: io::Error,
    },
}

/// The right to write the rules of one datapath in the network namespace of this thread, as long as this value lives.
#[derive(Debug)]
pub struct Owner {
    _socket: Option<UnixListener>,
}

impl Owner {
    /// Takes it, or says who has it.
    ///
    /// # Errors
    /// When another process has it, or the system refuses.
    pub fn claim(kind: DatapathKind) -> Result<Self, OwnerError> {
        match kind.exclusion() {
            Exclusion::NetworkNamespace => {}
            Exclusion::Datapath => return Ok(Self { _socket: None }),
        }
        let bound =
            SocketAddr::from_abstract_name(format!("lb/{kind}")).and_then(|name| UnixListener::bind_addr(&name));
        match bound {
            Ok(socket) => Ok(Self { _socket: Some(socket) }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(OwnerError::InUse { kind }),
            Err(source) => Err(OwnerError::Io { kind, source }),
        }
    }
}
