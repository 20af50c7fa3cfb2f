//! System calls: the only unsafe code of the crate.
//!
//! `aya` parses, relocates and loads the object. Maps and links are used through `bpf(2)` directly: it has calls for many
//! elements at once, and for the update in place of both kinds of links.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd};

/// A network device as `bpf(2)` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct IfIndex(pub(crate) u32);

/// What the kernel says about a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// Id of the cgroup, or index of the device; 0 if that is gone.
    pub(crate) target: u64,
    pub(crate) attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

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

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link: u32,
    prog: u32,
    flags: u32,
    old_prog: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkDetachAttr {
    link: u32,
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

/// A map of the kernel's, and the sizes of its keys and values.
#[derive(Debug)]
pub(crate) struct RawMap {
    fd: OwnedFd,
    info: MapInfo,
}

/// A batch stopped at this element.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) done: usize,
    pub(crate) cause: io::Error,
}

impl RawMap {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        Ok(Self { fd, info })
    }

    pub(crate) const fn info(&self) -> MapInfo {
        self.info
    }

    /// Writes `keys.len() / key_size` elements, in order.
    pub(crate) fn update(&self, keys: &[u8], values: &[u8]) -> Result<(), Stopped> {
        let count = self.count(keys);
        assert_eq!(values.len(), count * self.info.value_size as usize, "one value per key");
        let mut attr = BatchAttr {
            keys: address(keys),
            values: address(values),
            count: count as u32,
            map: raw(&self.fd),
            ..BatchAttr::default()
        };
        // SAFETY: `keys` and `values` hold `count` elements of this map's sizes.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) };
        stopped(result, attr.count, count)
    }

    /// Removes `keys.len() / key_size` elements, in order; stops at one that is not there.
    pub(crate) fn delete(&self, keys: &[u8]) -> Result<(), Stopped> {
        let count = self.count(keys);
        let mut attr =
            BatchAttr { keys: address(keys), count: count as u32, map: raw(&self.fd), ..BatchAttr::default() };
        // SAFETY: `keys` holds `count` keys of this map's size.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_BATCH, &mut attr) };
        stopped(result, attr.count, count)
    }

    /// The value of one element.
    pub(crate) fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        assert_eq!(key.len(), self.info.key_size as usize, "one key");
        let mut value = vec![0_u8; self.info.value_size as usize];
        let value_at = address_mut(&mut value);
        let mut attr = ElementAttr { map: raw(&self.fd), key: address(key), value: value_at, ..Default::default() };
        // SAFETY: the key has this map's size, and the value has room for one.
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every element of a hash map, keys and values one after the other.
    pub(crate) fn dump(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let (key_size, value_size) = (self.info.key_size as usize, self.info.value_size as usize);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut token: Option<u32> = None;
        let mut room = 4096_usize;
        loop {
            let mut chunk = (vec![0_u8; room * key_size], vec![0_u8; room * value_size]);
            let (from, mut next) = ([token.unwrap_or(0)], [0_u32]);
            let mut attr = BatchAttr {
                in_batch: if token.is_some() { address(&from) } else { 0 },
                out_batch: address_mut(&mut next),
                keys: address_mut(&mut chunk.0),
                values: address_mut(&mut chunk.1),
                count: room as u32,
                map: raw(&self.fd),
                ..BatchAttr::default()
            };
            // SAFETY: both chunks have room for `count` elements, and a hash map's position is a `u32`.
            let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
            if errno == Some(libc::ENOSPC) {
                room *= 2;
                continue;
            }
            if errno.is_some_and(|errno| errno != libc::ENOENT) {
                result?;
            }
            let count = attr.count as usize;
            keys.extend_from_slice(&chunk.0[..count * key_size]);
            values.extend_from_slice(&chunk.1[..count * value_size]);
            if errno.is_some() {
                return Ok((keys, values));
            }
            token = Some(next[0]);
        }
    }

    /// Every key of a map whose positions are no numbers, such as a trie's.
    pub(crate) fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0_u8; self.info.key_size as usize];
            let mut attr = ElementAttr {
                map: raw(&self.fd),
                key: keys.last().map_or(0, |key| address(key)),
                value: address_mut(&mut next),
                ..Default::default()
            };
            // SAFETY: the key has this map's size or is missing, and there is room for the next one.
            match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    fn count(&self, keys: &[u8]) -> usize {
        let size = self.info.key_size as usize;
        assert_eq!(keys.len() % size, 0, "whole keys");
        keys.len() / size
    }
}

fn stopped(result: io::Result<i64>, done: u32, count: usize) -> Result<(), Stopped> {
    match result {
        Ok(_) => Ok(()),
        // The kernel counts what it did, unless it refused the call before it looked at the elements.
        Err(cause) => Err(Stopped { done: if done as usize >= count { 0 } else { done as usize }, cause }),
    }
}

fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let words = info::<6>(fd)?;
    let [kind, _id, key_size, value_size, max_entries, flags] = words;
    Ok(MapInfo { kind, key_size, value_size, max_entries, flags })
}

/// What the kernel says about a link.
pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let [kind, _id, _prog, _pad, a, b, c, ..] = info::<8>(fd)?;
    Ok(if kind == aya_obj::generated::bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        LinkInfo { target: u64::from(a) | u64::from(b) << 32, attach_type: c }
    } else {
        LinkInfo { target: u64::from(a), attach_type: b }
    })
}

/// The first `N` words of an object's information.
fn info<const N: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut words = [0_u32; N];
    let mut attr = InfoAttr { fd: raw(fd), len: (N * 4) as u32, info: words.as_mut_ptr() as u64 };
    // SAFETY: `words` has room for `len` bytes; the kernel writes no more than that.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(words)
}

/// Pins `fd` at `path`, which must not exist, in a BPF file system.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    // SAFETY: the path is a string that ends in a zero byte.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, ..ObjectAttr::default() };
    // SAFETY: the path is a string that ends in a zero byte.
    unsafe { bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr) }
}

/// Attaches a program to a cgroup.
pub(crate) fn attach_cgroup(
    prog: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    attach(prog, raw(cgroup), attach_type)
}

/// Attaches a program to the ingress of a device, behind those that are there.
pub(crate) fn attach_tcx(prog: BorrowedFd<'_>, device: IfIndex) -> io::Result<OwnedFd> {
    attach(prog, device.0, bpf_attach_type::BPF_TCX_INGRESS)
}

fn attach(prog: BorrowedFd<'_>, target: u32, attach_type: bpf_attach_type) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr { prog: raw(prog), target, attach_type: attach_type as u32, ..Default::default() };
    // SAFETY: the attributes hold no addresses.
    unsafe { bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// Replaces the program of a link; no packet sees neither or both.
pub(crate) fn update_link(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: raw(link), prog: raw(prog), ..LinkUpdateAttr::default() };
    // SAFETY: the attributes hold no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches the program of a link at once. A link whose last holder goes is detached only some time later.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link: raw(link) };
    // SAFETY: the attributes hold no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// The device called `name` in the caller's network namespace.
pub(crate) fn device(name: &str) -> io::Result<IfIndex> {
    let name = CString::new(name)?;
    // SAFETY: the name is a string that ends in a zero byte.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(IfIndex(index)),
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
    // A grace period of RCU, inside whose read sides programs run. Not offered on systems with full dynamic ticks.
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

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// The words of an array map, mapped into this process: programs see what is stored.
#[derive(Debug)]
pub(crate) struct Words {
    start: NonNull<AtomicU32>,
    len: usize,
    bytes: usize,
}

// SAFETY: the memory is shared with the kernel anyway, and it is touched through atomics only.
unsafe impl Send for Words {}

impl Words {
    /// Maps the whole of `map`, which must have been created with `BPF_F_MMAPABLE`.
    pub(crate) fn map(map: &RawMap) -> io::Result<Self> {
        let bytes = map.info.max_entries as usize * map.info.value_size as usize;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice, of as many bytes as the map has.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, map.fd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, len: bytes / 4, bytes })
    }

    /// Stores `words` from word `at` on; what lies past the end is not stored.
    pub(crate) fn store(&self, at: usize, words: impl IntoIterator<Item = u32>) {
        for (cell, word) in self.cells().iter().skip(at).zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
    }

    /// `len` words from word `at` on, fewer at the end.
    pub(crate) fn load(&self, at: usize, len: usize) -> Vec<u32> {
        self.cells().iter().skip(at).take(len).map(|cell| cell.load(Ordering::Relaxed)).collect()
    }

    fn cells(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is that long, aligned to a page, and lives until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrowed from it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
