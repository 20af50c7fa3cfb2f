//! What a node has for the datapath to attach to: devices, uplinks, a cgroup.
//!
//! Each function asks the kernel about the network or mount namespace of the calling thread.
//!
//! ```
//! use lb_datapath_ebpf::{EbpfConfig, discovery};
//!
//! let cgroup = discovery::cgroup()?.unwrap_or_else(|| "/sys/fs/cgroup".into());
//! let uplinks = discovery::uplinks()?;
//! let pods = discovery::devices()?.into_values().filter(|name| name.starts_with("veth"));
//! let config = EbpfConfig::new(cgroup).with_pod_devices(pods).with_uplink_devices(uplinks);
//! # assert!(config.pod_devices.iter().all(|name| name.starts_with("veth")));
//! # Ok::<(), std::io::Error>(())
//! ```

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use lb_netlink::{Protocol, Socket};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteType},
};

/// Where the cgroup hierarchy of version 2 is mounted, if it is: the sockets of every process are below it.
///
/// # Errors
/// When `/proc/self/mountinfo` cannot be read.
pub fn cgroup() -> io::Result<Option<PathBuf>> {
    Ok(mount_of(&fs::read_to_string("/proc/self/mountinfo")?, "cgroup2"))
}

/// Index and name of every network device.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn devices() -> io::Result<BTreeMap<u32, String>> {
    let answers = dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let named = answers.into_iter().filter_map(|answer| {
        let RouteNetlinkMessage::NewLink(link) = answer else { return None };
        let name = link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        })?;
        Some((link.header.index, name))
    });
    Ok(named.collect())
}

/// Names of the devices that have a default route, in order of name: those that lead out of the node.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn uplinks() -> io::Result<Vec<String>> {
    let devices = devices()?;
    let answers = dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) if is_default(&route) => Some(route),
        _ => None,
    });
    let mut names: Vec<String> =
        routes.flat_map(|route| outputs(&route)).filter_map(|index| devices.get(&index).cloned()).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// Mount point of the first file system of this type.
fn mount_of(mountinfo: &str, kind: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (source.split(' ').next()? == kind).then(|| point.replace("\\040", " ").into())
    })
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

fn outputs(route: &RouteMessage) -> Vec<u32> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    route.attributes.iter().flat_map(of).collect()
}

fn dump(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    Ok(Socket::open(Protocol::Route)?.dump_all(&request)?)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    fn route(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        (route.header.kind, route.attributes) = (kind, attributes);
        route
    }

    #[test]
    fn uplinks_are_the_outputs_of_unicast_default_routes() {
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop
        };
        let one = route(RouteType::Unicast, vec![RouteAttribute::Oif(2)]);
        let several = route(RouteType::Unicast, vec![RouteAttribute::MultiPath(vec![hop(2), hop(3)])]);
        assert_eq!((outputs(&one), outputs(&several)), (vec![2], vec![2, 3]));
        let mut narrow = one.clone();
        narrow.header.destination_prefix_length = 8;
        let blackhole = route(RouteType::BlackHole, Vec::new());
        assert_eq!([&one, &several, &narrow, &blackhole].map(is_default), [true, true, false, false]);
    }

    #[test]
    fn the_mount_is_found_in_a_hybrid_hierarchy() {
        let mounts = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_of(mounts, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_of(mounts, "bpf"), None);
    }
}
