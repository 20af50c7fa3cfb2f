//! Single map writes, and the store that carries them out.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;
use lb_core::{
    datapath::{DatapathError, ErrorKind},
    id::BackendId,
};
use lb_datapath_ebpf_abi as abi;

use crate::{
    state::{convert::Inexpressible, ports::Ports},
    sys::IfIndex,
};

/// One write. Every write is atomic, except for [`Write::Slots`]: no frontend points to those slots yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    Backend(u32, abi::BackendValue),
    NoBackend(u32),
    /// The slots of a set, from this chunk on.
    Slots(u32, Arc<[BackendId]>),
    Member(abi::MemberKey, u8),
    NoMember(abi::MemberKey),
    Turns(u32),
    NoTurns(u32),
    Set(u32, abi::SetValue),
    NoSet(u32),
    Frontend(abi::FrontendKey, abi::FrontendValue),
    NoFrontend(abi::FrontendKey),
    /// A prefix of a frontend with source ranges.
    Source(abi::SourceKey),
    NoSource(abi::SourceKey),
    /// What an address with frontends says about the rest of its traffic.
    Address(abi::Addr, u8),
    NoAddress(abi::Addr),
    /// What is behind a device.
    Device(IfIndex, abi::DeviceValue),
    NoDevice(IfIndex),
    Cidr(abi::CidrKey, u8),
    NoCidr(abi::CidrKey),
    Node(Box<abi::NodeValue>),
    /// Sets the bit of an address in `FILTER`, which writes of frontends and backends do by themselves.
    Known(abi::Addr),
}

impl Write {
    /// The address whose packets programs have to look at from now on.
    pub(crate) const fn addr(&self) -> Option<abi::Addr> {
        match self {
            Self::Backend(_, backend) => Some(backend.addr),
            Self::Frontend(key, _) => Some(key.addr),
            Self::Known(addr) => Some(*addr),
            _ => None,
        }
    }
}

/// What carries out writes: the kernel, or a fake.
pub(crate) trait Store {
    /// Carries out every write, in order, and returns those that failed. Removing a missing entry is no failure.
    fn write(&mut self, writes: &[Write]) -> Vec<(usize, Cause)>;
    /// Now, on the monotonic clock.
    fn now(&self) -> Duration;
    /// Blocks until then.
    fn wait_until(&mut self, at: Duration);
}

/// Why a write failed; one cause can hold for many frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
}

impl Cause {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn capacity(map: &'static str, max: usize, option: &'static str) -> Self {
        Self::new(ErrorKind::Capacity, format!("map {map} is full: it holds {max}; raise `{option}` in the capacities"))
    }
}

impl From<Cause> for DatapathError {
    fn from(cause: Cause) -> Self {
        Self::new(cause.kind, cause.message)
    }
}

impl From<Inexpressible> for Cause {
    fn from(error: Inexpressible) -> Self {
        let kind = match error {
            Inexpressible::Timeout(_) => ErrorKind::Unsupported,
            Inexpressible::Mapped(_) | Inexpressible::Facts { .. } => ErrorKind::Invalid,
        };
        Self::new(kind, error.to_string())
    }
}

/// The content of the maps, read back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) frontends: Vec<(abi::FrontendKey, abi::FrontendValue)>,
    pub(crate) backends: Vec<(u32, abi::BackendValue)>,
    /// Sets with their slots.
    pub(crate) sets: Vec<(u32, abi::SetValue, Vec<u32>)>,
    /// Sets as frontends know them, where `SETS` says something else.
    pub(crate) claims: Vec<(u32, abi::SetValue, Vec<u32>)>,
    pub(crate) members: Vec<(abi::MemberKey, u8)>,
    pub(crate) turns: Vec<u32>,
    pub(crate) sources: Vec<abi::SourceKey>,
    pub(crate) addresses: Vec<(abi::Addr, u8)>,
    pub(crate) cidrs: Vec<abi::CidrKey>,
    pub(crate) node: Option<abi::NodeValue>,
}

/// Capacities of the maps, and the ports of translated sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) frontends: usize,
    pub(crate) backends: usize,
    pub(crate) sets: usize,
    pub(crate) members: usize,
    pub(crate) sources: usize,
    pub(crate) chunks: u32,
    /// Of translated sources.
    pub(crate) ports: Ports,
}

/// Keys of the trie for prefixes.
pub(crate) fn cidr_keys(cidrs: &[IpNet]) -> std::collections::BTreeMap<abi::CidrKey, u8> {
    cidrs.iter().map(crate::state::convert::cidr).collect()
}
