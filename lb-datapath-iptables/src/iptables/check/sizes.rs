//! The size of a table of iptables-legacy, which costs next to nothing to ask for.

use std::{collections::BTreeMap, io, os::fd::AsRawFd as _};

use lb_core::addr::Family;
use nix::libc;
use socket2::{Domain, Socket, Type};

/// Number of entries of a table and their size in bytes.
pub(crate) type Size = (u32, u32);

/// Sockets of one network namespace to ask with. Any kind will do.
#[derive(Debug)]
pub(crate) struct Sizes {
    sockets: BTreeMap<Family, Socket>,
}

impl Sizes {
    /// Asks in the network namespace of the calling thread.
    pub(crate) fn open(families: &[Family]) -> io::Result<Self> {
        let open = |&family| {
            let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
            Ok((family, Socket::new(domain, Type::DGRAM, None)?))
        };
        Ok(Self { sockets: families.iter().map(open).collect::<io::Result<_>>()? })
    }

    /// The size of a table.
    pub(crate) fn of(&self, family: Family, table: &str) -> io::Result<Size> {
        let socket = self.sockets.get(&family).ok_or(io::ErrorKind::Unsupported)?;
        let level = if family == Family::V4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
        let mut info = Info { name: [0; 32], ..Info::default() };
        info.name.iter_mut().zip(table.bytes().take(31)).for_each(|(to, byte)| *to = byte);
        let mut length = LENGTH;
        // SAFETY: `info` is a `struct ipt_getinfo`, laid out as the kernel has it and `length` bytes long; the kernel
        // reads its name and writes no more than `length` bytes to it. Both live through the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                level,
                GET_INFO,
                std::ptr::from_mut(&mut info).cast::<libc::c_void>(),
                &raw mut length,
            )
        };
        if result == 0 { Ok((info.entries, info.size)) } else { Err(io::Error::last_os_error()) }
    }
}

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
const LENGTH: libc::socklen_t = 84;

/// `struct ipt_getinfo`, and `struct ip6t_getinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

const _: () = assert!(size_of::<Info>() == LENGTH as usize);
