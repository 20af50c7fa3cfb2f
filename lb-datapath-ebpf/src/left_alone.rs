//! Network namespaces whose sockets are left alone because of their addresses.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use ipnet::IpNet;
use lb_core::datapath::{DatapathError, ErrorKind};
use lb_netlink::{Protocol, Socket};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
};

use crate::{
    evict::namespaces::{Namespaces, Tasks, inside, may_enter},
    sys,
};

/// Where container runtimes and `ip netns` mount the network namespaces that they make.
const NAMED: &str = "/run/netns";

/// Network namespaces whose sockets are [left alone](crate::EbpfDatapath::leave_alone).
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct LeftAlone {
    /// How many there are.
    pub namespaces: usize,
    /// Why some namespaces could not be looked at, if there are any. Those that were left alone before stay so.
    pub hidden: Option<DatapathError>,
}

/// Namespaces with an address that is meant, and what was hidden.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// By cookie, with all of their addresses.
    pub(crate) meant: BTreeMap<u64, Vec<IpAddr>>,
    pub(crate) hidden: Option<DatapathError>,
}

/// Looks into the network namespaces of the tasks of `cgroup`, and into those that have a name, except that of the
/// calling thread.
pub(crate) fn look(cgroup: &Path, meant: &[IpNet]) -> Seen {
    let mut seen = Seen::default();
    if let Err(error) = may_enter() {
        let why = "network namespaces of pods cannot be entered, which needs CAP_SYS_ADMIN";
        seen.hidden = Some(DatapathError::new(ErrorKind::Permission, why).with_source(error));
        return seen;
    }
    let mut namespaces = match Namespaces::new() {
        Ok(namespaces) => namespaces,
        Err(error) => {
            seen.hidden = Some(hidden("the agent's own network namespace cannot be looked at".into(), error));
            return seen;
        }
    };
    namespaces.find(cgroup, Tasks::Processes);
    namespaces.find_named(Path::new(NAMED));
    let found = namespaces.take();
    let mut unread: Option<(u64, io::Error)> = namespaces.hidden;
    let refused = inside(&found, || match read(meant) {
        Ok(found) => seen.meant.extend(found),
        Err(error) => match &mut unread {
            Some((count, _)) => *count += 1,
            unread => *unread = Some((1, error)),
        },
    });
    seen.hidden = refused.or(unread).map(|(count, error)| {
        let namespaces = if count == 1 { "namespace" } else { "namespaces" };
        hidden(format!("{count} network {namespaces} of processes in the cgroup cannot be looked into"), error)
    });
    seen
}

fn hidden(what: String, error: io::Error) -> DatapathError {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Permission,
        _ => ErrorKind::System,
    };
    DatapathError::new(kind, what).with_source(error)
}

/// The cookie and the addresses of the calling thread's namespace, if one of them is meant.
fn read(meant: &[IpNet]) -> io::Result<Option<(u64, Vec<IpAddr>)>> {
    let answers =
        Socket::open(Protocol::Route)?.dump_all(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let is_meant = |ip: &IpAddr| meant.iter().any(|prefix| prefix.contains(ip));
    let addresses: Vec<IpAddr> = answers.iter().filter_map(address).filter(|ip| !ip.is_loopback()).collect();
    if !addresses.iter().any(is_meant) {
        return Ok(None);
    }
    let unsupported = || io::Error::new(io::ErrorKind::Unsupported, "this kernel has no SO_NETNS_COOKIE (Linux 5.14)");
    Ok(Some((sys::netns_cookie()?.ok_or_else(unsupported)?, addresses)))
}

/// The address of this host in an answer: on a point-to-point device, the other one is its peer's.
fn address(answer: &RouteNetlinkMessage) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}
