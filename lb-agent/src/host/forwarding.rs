//! Whether the kernel forwards packets.

use std::{fs, path::Path};

use lb_core::kernel::Forwarding;

/// The settings of the network namespace of this thread.
pub(crate) fn read() -> Forwarding {
    read_below(Path::new("/proc/sys/net"))
}

/// A family whose setting cannot be read, such as one that the kernel lacks, is not known.
fn read_below(net: &Path) -> Forwarding {
    // The kernel asks the device that a packet of IPv4 came in through; the setting for all is written to each.
    let is_on = |all: bool| all || any_device_forwards(&net.join("ipv4/conf"));
    let (v4, v6) = global(net);
    Forwarding { v4: v4.map(is_on), v6 }
}

/// What the settings for all devices say: IPv4 and IPv6.
pub(super) fn global(net: &Path) -> (Option<bool>, Option<bool>) {
    (flag(&net.join("ipv4/ip_forward")), flag(&net.join("ipv6/conf/all/forwarding")))
}

fn any_device_forwards(conf: &Path) -> bool {
    let devices = fs::read_dir(conf).into_iter().flatten().flatten();
    let devices = devices.filter(|device| !["all", "default", "lo"].iter().any(|other| device.file_name() == *other));
    devices.map(|device| flag(&device.path().join("forwarding"))).any(|is_on| is_on == Some(true))
}

fn flag(path: &Path) -> Option<bool> {
    Some(fs::read_to_string(path).ok()?.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_for_each_family() {
        let directory = tempfile::tempdir().unwrap();
        let net = directory.path();
        assert_eq!(read_below(net), Forwarding::default());
        let write = |name: &str, value: &str| {
            let path = net.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        };
        write("ipv4/ip_forward", "0");
        write("ipv4/conf/lo/forwarding", "1");
        write("ipv4/conf/eth0/forwarding", "0");
        write("ipv6/conf/all/forwarding", "1");
        assert_eq!(read_below(net), Forwarding { v4: Some(false), v6: Some(true) });
        write("ipv4/conf/eth0/forwarding", "1");
        assert_eq!(read_below(net).v4, Some(true), "one device is enough not to be sure");
        write("ipv4/ip_forward", "1");
        write("ipv6/conf/all/forwarding", "0");
        assert_eq!(read_below(net), Forwarding { v4: Some(true), v6: Some(false) });
    }
}
