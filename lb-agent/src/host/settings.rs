//! Settings of the kernel for the devices that service traffic comes in through.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use super::{forwarding, netlink};
use crate::api::{Network, NetworkDevice};

/// The settings of the network namespace of this thread, and of those of these devices that there are.
pub(crate) fn read(names: &BTreeSet<String>) -> io::Result<Network> {
    let mtus = netlink::mtus()?;
    Ok(read_below(Path::new("/proc/sys/net"), &mtus, names))
}

fn read_below(net: &Path, mtus: &BTreeMap<String, u32>, names: &BTreeSet<String>) -> Network {
    let conf = |family: &str, device: &str, setting: &str| {
        fs::read_to_string(net.join(family).join("conf").join(device).join(setting)).ok()?.trim().parse::<u8>().ok()
    };
    let of_all = conf("ipv4", "all", "rp_filter");
    let present = mtus.iter().filter(|(name, _)| names.contains(*name));
    let devices = present.map(|(name, mtu)| NetworkDevice {
        name: name.clone(),
        mtu: *mtu,
        // The kernel takes the greater one (`IN_DEV_RPFILTER`).
        rp_filter: conf("ipv4", name, "rp_filter").max(of_all),
        ip_forward: conf("ipv4", name, "forwarding").map(|value| value != 0),
        ipv6_forwarding: conf("ipv6", name, "forwarding").map(|value| value != 0),
    });
    let devices = devices.collect();
    let (ip_forward, ipv6_forwarding) = forwarding::global(net);
    Network { ip_forward, ipv6_forwarding, reverse_path_drops: None, devices }
}

/// Packets that `rp_filter` has dropped in the network namespace of this thread.
pub(crate) fn reverse_path_drops() -> Option<u64> {
    counter(&fs::read_to_string("/proc/thread-self/net/netstat").ok()?, "TcpExt: ", "IPReversePathFilter")
}

/// A counter of `/proc/net/netstat`: a line with names, and one with values, for each group.
fn counter(netstat: &str, group: &str, name: &str) -> Option<u64> {
    let mut of_group = netstat.lines().filter_map(|line| line.strip_prefix(group));
    let (names, values) = (of_group.next()?, of_group.next()?);
    names.split(' ').zip(values.split(' ')).find(|(is, _)| *is == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_of_two_reverse_path_filters_counts_and_what_a_device_lacks_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        };
        write("ipv4/ip_forward", "1");
        for (device, value) in [("all", "1"), ("eth0", "2"), ("eth1", "0")] {
            write(&format!("ipv4/conf/{device}/rp_filter"), value);
        }
        write("ipv4/conf/eth0/forwarding", "0");
        write("ipv6/conf/eth1/forwarding", "1");
        let mtus = [("eth0", 1500), ("eth1", 1280), ("other", 9000)].map(|(name, mtu)| (name.to_owned(), mtu));
        let names = ["eth0", "eth1", "gone"].map(str::to_owned).into();
        let found = read_below(directory.path(), &mtus.into(), &names);
        let device = |name: &str, mtu, rp_filter, ip_forward, ipv6_forwarding| NetworkDevice {
            name: name.into(),
            mtu,
            rp_filter: Some(rp_filter),
            ip_forward,
            ipv6_forwarding,
        };
        let devices = vec![device("eth0", 1500, 2, Some(false), None), device("eth1", 1280, 1, None, Some(true))];
        let expected = Network { ip_forward: Some(true), ipv6_forwarding: None, reverse_path_drops: None, devices };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_counter_is_found_by_its_name_in_its_group() {
        let netstat = "TcpExt: A IPReversePathFilter B\nTcpExt: 1 42 3\nIpExt: A IPReversePathFilter\nIpExt: 7 8\n";
        assert_eq!(counter(netstat, "TcpExt: ", "IPReversePathFilter"), Some(42));
        assert_eq!(counter(netstat, "IpExt: ", "A"), Some(7));
        assert_eq!((counter(netstat, "TcpExt: ", "C"), counter("", "TcpExt: ", "A")), (None, None));
    }
}
