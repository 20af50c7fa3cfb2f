//! Settings of a namespace's network stack.

use std::{fs, path::Path};

use super::Netns;
use crate::error::{LabError, system};

/// What every namespace gets, before its devices appear: addresses are usable at once, nothing is advertised or
/// redirected behind the lab's back, and a load generator does not run out of ports.
const COMMON: &[(&str, &str)] = &[
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/ip_local_port_range", "20000 65535"),
    ("ipv4/tcp_tw_reuse", "1"),
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/icmp_msgs_per_sec", "1000000"),
];

/// What a namespace that forwards gets as well.
const FORWARDING: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/forwarding", "1"),
    ("ipv4/conf/default/forwarding", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
];

/// Settings that a kernel may lack in namespaces other than the first; the lab works without them.
///
/// A user namespace does not have every group.
const OPTIONAL: &[&str] =
    &["ipv4/icmp_msgs_per_sec", "ipv4/icmp_ratelimit", "ipv4/tcp_tw_reuse", "ipv4/ping_group_range"];

/// Prepares a fresh namespace.
pub(crate) fn prepare(netns: &Netns, forwards: bool) -> Result<(), LabError> {
    let forwarding = if forwards { FORWARDING } else { &[] };
    netns.run(|| COMMON.iter().chain(forwarding).try_for_each(|&(name, value)| set(name, value)))?
}

fn set(name: &str, value: &str) -> Result<(), LabError> {
    let path = Path::new("/proc/sys/net").join(name);
    match fs::write(&path, value) {
        Err(_) if OPTIONAL.contains(&name) => Ok(()),
        result => result.map_err(system(format!("writing `{value}` to {}", path.display()))),
    }
}
