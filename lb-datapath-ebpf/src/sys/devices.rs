//! Network devices, asked with `ioctl(2)`.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::IfIndex;

/// The devices of the network namespace in which this was opened, wherever the calling thread is later.
#[derive(Debug)]
pub(crate) struct Devices(OwnedFd);

/// What a device is, as far as its packets show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hardware {
    /// Its type: `ARPHRD_…` of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/if_arp.h>.
    kind: u16,
    /// Its hardware address; zero if it has none, or one that is shorter than six bytes.
    pub(crate) address: [u8; 6],
}

/// What the packets of a device begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    Bare,
    /// Something else, of this type.
    Other(u16),
}

impl Hardware {
    /// What its packets begin with. Those types have no header of their own for which the kernel adds none and takes one
    /// off when a program redirects a packet there (`dev_is_mac_header_xmit` in
    /// <https://elixir.bootlin.com/linux/v6.18/source/include/linux/if_arp.h>), apart from those that carry no IP.
    pub(crate) const fn framing(self) -> Framing {
        const RAWIP: u16 = 519;
        const TUNNEL6: u16 = 769;
        const SIT: u16 = 776;
        const IPGRE: u16 = 778;
        const IP6GRE: u16 = 823;
        match self.kind {
            0 | libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Framing::Ethernet,
            libc::ARPHRD_NONE | libc::ARPHRD_TUNNEL | RAWIP | TUNNEL6 | SIT | IPGRE | IP6GRE => Framing::Bare,
            other => Framing::Other(other),
        }
    }
}

impl Devices {
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: a new socket, which takes no memory of ours.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(socket) }))
    }

    /// Type and hardware address of the device with this number.
    pub(crate) fn hardware_of(&self, device: IfIndex) -> io::Result<Hardware> {
        let mut request = empty();
        request.ifr_ifru.ifru_ifindex = device.0 as libc::c_int;
        // The answer is the name.
        self.ask(libc::SIOCGIFNAME as libc::c_ulong, &mut request)?;
        self.ask(libc::SIOCGIFHWADDR as libc::c_ulong, &mut request)?;
        // SAFETY: the call has succeeded, so that the union holds an address.
        let libc::sockaddr { sa_family, sa_data } = unsafe { request.ifr_ifru.ifru_hwaddr };
        Ok(Hardware { kind: sa_family, address: std::array::from_fn(|at| sa_data[at] as u8) })
    }

    fn ask(&self, question: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the request is one of a name or a number, and has room for the answer.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), question as _, std::ptr::from_mut(request)) } == 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }
}

fn empty() -> libc::ifreq {
    // SAFETY: zero bytes are a value of this type of integers, arrays, addresses and unions of them.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_an_address_and_what_is_none_has_not() {
        let devices = Devices::open().unwrap();
        let loopback = super::super::device("lo").unwrap();
        let found = devices.hardware_of(loopback).unwrap();
        assert_eq!(found, Hardware { kind: libc::ARPHRD_LOOPBACK, address: [0; 6] });
        assert_eq!(found.framing(), Framing::Ethernet);
        assert_eq!(devices.hardware_of(IfIndex(u32::MAX)).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn tunnels_of_ip_have_no_ethernet_header_and_other_links_are_named() {
        let framing = |kind| Hardware { kind, address: [0; 6] }.framing();
        for tunnel in [65534, 519, 768, 769, 776, 778, 823] {
            assert_eq!(framing(tunnel), Framing::Bare, "{tunnel}");
        }
        for other in [32, 512, 803] {
            assert_eq!(framing(other), Framing::Other(other), "InfiniBand, PPP, 802.11 with radiotap");
        }
    }
}
