//! System calls: the only unsafe code of the crate.
//!
//! `aya` parses, relocates and loads the object. Maps and links are used through `bpf(2)` directly: the system call can
//! write many elements at once and update both kinds of links in place, and `aya` offers neither. The decision is in
//! `docs/decisions/0018-bpf-calls-by-hand.md`.

mod array;
mod devices;
mod link;
mod map;
mod os;
mod prog;
mod query;

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::bpf_cmd;

use crate::crash;

#[cfg(feature = "crash-points")]
pub(crate) use self::os::kill_self;
pub(crate) use self::{
    array::{Longs, PerCpuCounters, Words},
    devices::{Devices, Framing},
    link::{attach_cgroup, attach_tcx, detach_link, link_info, update_link},
    map::{MapInfo, Page, RawMap, Shape, Stopped, map_info},
    os::{
        IfIndex, device, enter_network_namespace, is_bpffs, is_network_namespace, lock, monotonic, netns_cookie, user,
        wait_for_readers,
    },
    prog::{Insn, ProgInfo, TestRun, load_classifier, load_connect4, map_by_id, prog_by_id, prog_info, test_run},
    query::{has_tcx, programs_of},
};

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// `bpf(2)`.
///
/// # Safety
/// Every address in `attr` points to as many bytes as the kernel reads or writes for `cmd`.
unsafe fn bpf<T>(cmd: bpf_cmd, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is valid for its size, which is passed along; the rest is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd as libc::c_int, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Like [`bpf`], for commands that return a new file descriptor.
///
/// # Safety
/// As for [`bpf`], and `cmd` returns a file descriptor.
unsafe fn bpf_fd<T>(cmd: bpf_cmd, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let fd = unsafe { bpf(cmd, attr) }?;
    // SAFETY: the kernel has just made this descriptor for us, with close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn address<T>(bytes: &[T]) -> u64 {
    bytes.as_ptr() as u64
}

fn address_mut<T>(room: &mut [T]) -> u64 {
    room.as_mut_ptr() as u64
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

/// The first words of an object's information; those that this kernel does not know are zero.
fn info<const N: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut words = [0_u32; N];
    query(fd, &mut words)?;
    Ok(words)
}

/// As [`info`], for what has to hold an address as well.
fn query(fd: BorrowedFd<'_>, words: &mut [u32]) -> io::Result<()> {
    let mut attr = InfoAttr { fd: raw(fd), len: size_of_val(words) as u32, info: words.as_mut_ptr() as u64 };
    // SAFETY: `words` has room for `len` bytes; the kernel writes no more than that. Addresses in `words` are the
    // caller's.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// The text in sixteen bytes that end in zeroes.
fn name(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The kind of object behind a descriptor of `bpf(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Map,
    Program,
    Link,
    Other,
}

impl ObjectKind {
    /// In words.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Map => "a map",
            Self::Program => "a program",
            Self::Link => "a link",
            Self::Other => "something else",
        }
    }
}

/// The kind of object behind `fd`, by the name of its anonymous inode in `/proc`: no command of `bpf(2)` says it.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/syscall.c> (`bpf_map_new_fd`, `bpf_link_new_fd`)
pub(crate) fn object_kind(fd: BorrowedFd<'_>) -> io::Result<ObjectKind> {
    let target = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let text = target.to_string_lossy();
    let is = |name: &str| text.trim_start_matches("anon_inode:").trim_matches(['[', ']']) == name;
    Ok(match () {
        () if is("bpf-map") => ObjectKind::Map,
        () if is("bpf-prog") => ObjectKind::Program,
        () if is("bpf_link") || is("bpf-link") => ObjectKind::Link,
        () => ObjectKind::Other,
    })
}

/// Pins `fd` at `path`, which must not exist, in a BPF file system.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    // SAFETY: the path is a string that ends in a zero byte.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }?;
    crash::point();
    Ok(())
}

/// Opens what is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, ..ObjectAttr::default() };
    // SAFETY: the path is a string that ends in a zero byte.
    unsafe { bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
