//! Network devices, asked with `ioctl(2)`.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::IfIndex;

/// The devices of the network namespace in which this was opened, wherever the calling thread is later.
#[derive(Debug)]
pub(crate) struct Devices(OwnedFd);

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

    /// The hardware address of the device with this number.
    pub(crate) fn hardware_of(&self, device: IfIndex) -> io::Result<[u8; 6]> {
        let mut request = empty();
        request.ifr_ifru.ifru_ifindex = device.0 as libc::c_int;
        // The answer is the name.
        self.ask(libc::SIOCGIFNAME as libc::c_ulong, &mut request)?;
        self.ask(libc::SIOCGIFHWADDR as libc::c_ulong, &mut request)?;
        // SAFETY: the call has succeeded, so that the union holds an address.
        let data = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
        Ok(std::array::from_fn(|at| data[at] as u8))
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
        assert_eq!(devices.hardware_of(loopback).unwrap(), [0; 6]);
        assert_eq!(devices.hardware_of(IfIndex(u32::MAX)).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
