//! Who may write the rules of a network namespace.
//!
//! Rules and routes have fixed names, so that two agents would undo each other's. An abstract socket is a lock that
//! belongs to a network namespace and goes with its holder. eBPF needs none: its pin directory is one.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

use crate::driver::DatapathKind;

/// Why somebody may not.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    #[error(
        "another agent, or `lb cleanup`, uses datapath {kind} in this network namespace (it holds the abstract socket \
         @lb/{kind}): end it first"
    )]
    Taken { kind: DatapathKind },
    #[error("taking the abstract socket @lb/{kind} failed")]
    Io { kind: DatapathKind, source: io::Error },
}

/// The right to write the rules of one datapath in the network namespace of this thread, as long as this value lives.
#[derive(Debug)]
pub struct Owner {
    _socket: Option<UnixListener>,
}

impl Owner {
    pub fn claim(kind: DatapathKind) -> Result<Self, OwnerError> {
        match kind {
            DatapathKind::Nftables | DatapathKind::IptablesNft | DatapathKind::IptablesLegacy => {}
            DatapathKind::Ebpf | DatapathKind::Memory => return Ok(Self { _socket: None }),
        }
        let bound =
            SocketAddr::from_abstract_name(format!("lb/{kind}")).and_then(|name| UnixListener::bind_addr(&name));
        match bound {
            Ok(socket) => Ok(Self { _socket: Some(socket) }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(OwnerError::Taken { kind }),
            Err(source) => Err(OwnerError::Io { kind, source }),
        }
    }
}
