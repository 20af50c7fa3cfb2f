//! System calls other than `bpf(2)`.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
    time::Duration,
};

use super::c_path;

/// A network device as `bpf(2)` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct IfIndex(pub(crate) u32);

/// The device called `name` in the caller's network namespace.
pub(crate) fn device(name: &str) -> io::Result<IfIndex> {
    let name = CString::new(name)?;
    // SAFETY: the name is a string that ends in a zero byte.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(IfIndex(index)),
    }
}

/// Moves the calling thread into a network namespace.
pub(crate) fn enter_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes a descriptor and a flag, and changes nothing but where this thread is.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Whether a file is a network namespace: other namespaces and other files are mounted beside them.
pub(crate) fn is_network_namespace(file: BorrowedFd<'_>) -> bool {
    // SAFETY: the call takes a descriptor and a request without an argument.
    unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}

/// `_IO(NSIO, 0x3)` of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/nsfs.h>.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The cookie of the calling thread's network namespace, as programs see it; `None` on a kernel that does not tell.
pub(crate) fn netns_cookie() -> io::Result<Option<u64>> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)))?;
    let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    let to = (&raw mut cookie).cast();
    // SAFETY: the descriptor is a socket, and the kernel writes at most `len` bytes into `cookie`.
    if unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, to, &raw mut len) } == 0 {
        return Ok(Some(cookie));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        error => Err(error),
    }
}

/// Whether `path` lies in a BPF file system.
pub(crate) fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the path is a string that ends in a zero byte, and `stat` has room for the answer.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zero bytes are a value of this type of integers, and the call has succeeded.
    Ok(unsafe { stat.assume_init() }.f_type == libc::BPF_FS_MAGIC as libc::__fsword_t)
}

/// Waits until every program that runs now has ended.
pub(crate) fn wait_for_readers() -> io::Result<()> {
    // The call waits for a grace period of RCU, and programs run inside RCU read sections. The kernel refuses it on
    // systems with full dynamic ticks: https://elixir.bootlin.com/linux/v6.18/source/kernel/sched/membarrier.c
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The effective user id of this process.
pub(crate) fn user() -> u32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Takes the exclusive lock of an open file, for as long as the file is open; `false` if another process has it.
pub(crate) fn lock(file: impl AsFd) -> io::Result<bool> {
    // SAFETY: the descriptor is open.
    if unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
}

/// Now, on the clock that programs read with `bpf_ktime_get_ns`.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: there is room for the answer; the clock exists on every system, so that the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Ends this process as `kill -9` does.
#[cfg(feature = "crash-points")]
pub(crate) fn kill_self() -> ! {
    // SAFETY: the call touches no memory of ours.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    // Not reached: the signal is delivered before the call returns.
    std::process::abort()
}
