//! Checksum and segmentation offload of veths.

use std::{io, mem, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Netns;
use crate::error::{LabError, system};

/// What the devices do instead of the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Offload {
    /// Checksums stay partial and segments large all the way, as veths have it by default: nobody ever computes or
    /// verifies a checksum.
    #[default]
    On,
    /// Senders compute real checksums, receivers verify them, and segments have the size of the MTU.
    Off,
}

/// The offloads with their `ETHTOOL_G…` commands of `linux/ethtool.h`; each `ETHTOOL_S…` is the next number.
const OFFLOADS: [(&str, u32); 6] = [
    ("rx-checksum", 0x14),
    ("tx-checksum", 0x16),
    ("scatter-gather", 0x18),
    ("tso", 0x1e),
    ("gso", 0x23),
    ("gro", 0x2b),
];

/// Turns every offload of `devices` in `netns` off.
pub(crate) fn turn_off(netns: &Netns, devices: &[String]) -> Result<(), LabError> {
    netns.run(|| devices.iter().try_for_each(|device| device_off(device)))?
}

/// Names of the offloads of `device` in `netns` that are on.
pub(crate) fn active(netns: &Netns, device: &str) -> Result<Vec<&'static str>, LabError> {
    let on = |&(name, query): &(&'static str, u32)| match ethtool(device, query, 0) {
        Ok(0) => None,
        Ok(_) => Some(Ok(name)),
        Err(error) => Some(Err(error)),
    };
    let names: io::Result<Vec<_>> = netns.run(|| OFFLOADS.iter().filter_map(on).collect())?;
    names.map_err(system(format!("reading offloads of device `{device}`")))
}

fn device_off(device: &str) -> Result<(), LabError> {
    OFFLOADS
        .iter()
        .try_for_each(|&(_, query)| ethtool(device, query + 1, 0).map(drop))
        .map_err(system(format!("turning offloads of device `{device}` off")))
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The value that the kernel leaves in `data`.
fn ethtool(device: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data };
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads a NUL-terminated name and, through `ifru_data`, an `ethtool_value`; both outlive the
    // call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
