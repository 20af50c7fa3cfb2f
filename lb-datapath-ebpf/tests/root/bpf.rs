//! `bpf(2)` as other tools use it: what the datapath has to notice.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use lb_datapath_ebpf_abi::Pod;

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const MAP_NEXT_KEY: i32 = 4;
const PROG_LOAD: i32 = 5;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const TEST_RUN: i32 = 10;
const PROG_BY_ID: i32 = 13;
const INFO: i32 = 15;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;
const LINK_DETACH: i32 = 34;

/// Types of maps and programs.
pub(crate) const HASH: u32 = 1;
pub(crate) const ARRAY: u32 = 2;
pub(crate) const SCHED_CLS: u32 = 3;
pub(crate) const SOCK_ADDR: u32 = 18;
/// Attach types.
pub(crate) const CONNECT4: u32 = 10;
pub(crate) const CONNECT6: u32 = 11;
pub(crate) const TCX_INGRESS: u32 = 46;

fn bpf(cmd: i32, attr: &mut [u64; 16]) -> io::Result<i32> {
    // SAFETY: the attributes are as long as is said, and addresses in them are those of buffers that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn fd(cmd: i32, attr: &mut [u64; 16]) -> OwnedFd {
    let fd = bpf(cmd, attr).unwrap();
    // SAFETY: the command makes a descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn attr(words: &[u64]) -> [u64; 16] {
    let mut attr = [0; 16];
    attr[..words.len()].copy_from_slice(words);
    attr
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd() as u32
}

fn at(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    let path = c_path(path);
    fd(OBJ_GET, &mut attr(&[path.as_ptr() as u64]))
}

pub(crate) fn pin(object: &OwnedFd, path: &Path) {
    let path = c_path(path);
    bpf(OBJ_PIN, &mut attr(&[path.as_ptr() as u64, u64::from(raw(object))])).unwrap();
}

/// A map like those that the datapath makes, apart from what is asked for.
pub(crate) fn map(kind: u32, (key, value): (u32, u32), entries: u32, flags: u32, name: &str) -> OwnedFd {
    let mut words = [pair(kind, key), pair(value, entries), pair(flags, 0), 0, 0, 0];
    let mut text = [0_u8; 16];
    text[..name.len()].copy_from_slice(name.as_bytes());
    // The name starts at byte 28.
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let bytes = [&bytes[..28], &text, &bytes[44..]].concat();
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap());
    }
    fd(MAP_CREATE, &mut attr(&words))
}

/// A program that allows everything, under a name of its own.
pub(crate) fn program(kind: u32, attach_type: u32, name: &str) -> OwnedFd {
    // r0 = 1; exit
    let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let license = c"GPL";
    let mut attr = attr(&[pair(kind, 2), code.as_ptr() as u64, license.as_ptr() as u64]);
    let mut text = [0_u8; 16];
    text[..name.len()].copy_from_slice(name.as_bytes());
    let [low, high] = [&text[..8], &text[8..]].map(|half| u64::from_ne_bytes(half.try_into().unwrap()));
    // log (3 words: level and size, buffer, version and flags), then the name, then the index and the attach type.
    (attr[6], attr[7]) = (low, high);
    attr[8] = pair(0, attach_type);
    fd(PROG_LOAD, &mut attr)
}

pub(crate) fn attach(program: &OwnedFd, target: u32, attach_type: u32) -> OwnedFd {
    fd(LINK_CREATE, &mut attr(&[pair(raw(program), target), pair(attach_type, 0)]))
}

pub(crate) fn attach_to(program: &OwnedFd, target: &impl AsRawFd, attach_type: u32) -> OwnedFd {
    attach(program, target.as_raw_fd() as u32, attach_type)
}

pub(crate) fn replace(link: &OwnedFd, program: &OwnedFd) {
    bpf(LINK_UPDATE, &mut attr(&[pair(raw(link), raw(program))])).unwrap();
}

pub(crate) fn detach(link: &OwnedFd) {
    bpf(LINK_DETACH, &mut attr(&[u64::from(raw(link))])).unwrap();
}

/// Whether it is a link, and no map or program.
pub(crate) fn is_link(object: &OwnedFd) -> bool {
    let target = fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd())).unwrap();
    target.to_str().unwrap().contains("link")
}

/// The number of the object that is pinned at `path`.
pub(crate) fn id(path: &Path) -> u32 {
    let (object, mut info) = (open(path), [0_u32; 2]);
    bpf(INFO, &mut attr(&[pair(raw(&object), 8), info.as_mut_ptr() as u64])).unwrap();
    info[1]
}

/// The program that is pinned, or whose link is.
pub(crate) fn program_at(path: &Path) -> OwnedFd {
    let pinned = open(path);
    if !is_link(&pinned) {
        return pinned;
    }
    let mut info = [0_u32; 3];
    bpf(INFO, &mut attr(&[pair(raw(&pinned), size_of_val(&info) as u32), info.as_mut_ptr() as u64])).unwrap();
    fd(PROG_BY_ID, &mut attr(&[info[2].into()]))
}

/// The name of a program, and how many instructions the verifier looked at; 0 if the kernel does not say it.
pub(crate) fn verified(program: &OwnedFd) -> (String, u32) {
    /// Words of `struct bpf_prog_info` up to the number, and where its name is.
    const WORDS: usize = 56;
    const NAME: usize = 16;
    const VERIFIED: usize = 54;
    let mut info = [0_u32; WORDS];
    bpf(INFO, &mut attr(&[pair(raw(program), size_of_val(&info) as u32), info.as_mut_ptr() as u64])).unwrap();
    let name: Vec<u8> =
        info[NAME..NAME + 4].iter().flat_map(|word| word.to_ne_bytes()).take_while(|b| *b > 0).collect();
    (String::from_utf8(name).unwrap(), info[VERIFIED])
}

/// Runs a program on a packet that comes in through a device of this thread's namespace: the verdict, and the packet.
pub(crate) fn test_run(program: &OwnedFd, packet: &[u8], device: u32) -> (i32, Vec<u8>) {
    // `__sk_buff` up to `ifindex`.
    let mut context = [0_u32; 11];
    context[10] = device;
    let mut out = vec![0_u8; packet.len() + 256];
    let mut attr = attr(&[
        raw(program).into(),
        pair(packet.len() as u32, out.len() as u32),
        at(packet),
        out.as_mut_ptr() as u64,
        0,
        pair(size_of_val(&context) as u32, 0),
        context.as_ptr() as u64,
    ]);
    bpf(TEST_RUN, &mut attr).unwrap();
    out.truncate((attr[1] >> 32) as usize);
    ((attr[0] >> 32) as i32, out)
}

/// A map that is pinned.
pub(crate) struct Map(OwnedFd);

impl Map {
    pub(crate) fn open(path: &Path) -> Self {
        Self(open(path))
    }

    pub(crate) fn get<V: Pod>(&self, key: &impl Pod) -> Option<V> {
        let value = vec![0_u8; size_of::<V>()];
        let found = bpf(MAP_LOOKUP, &mut attr(&[raw(&self.0).into(), at(key.bytes()), at(&value)]));
        found.ok().and_then(|_| V::from_bytes(&value))
    }

    pub(crate) fn put(&self, key: &impl Pod, value: &impl Pod) {
        bpf(MAP_UPDATE, &mut attr(&[raw(&self.0).into(), at(key.bytes()), at(value.bytes())])).unwrap();
    }

    pub(crate) fn remove(&self, key: &impl Pod) {
        bpf(MAP_DELETE, &mut attr(&[raw(&self.0).into(), at(key.bytes())])).unwrap();
    }

    /// The elements of an array.
    pub(crate) fn values<V: Pod>(&self) -> Vec<V> {
        self.keys::<u32>().iter().filter_map(|index| self.get(index)).collect()
    }

    pub(crate) fn keys<K: Pod>(&self) -> Vec<K> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let next = vec![0_u8; size_of::<K>()];
            let last = keys.last().map_or(0, |key| at(key.bytes()));
            if bpf(MAP_NEXT_KEY, &mut attr(&[raw(&self.0).into(), last, at(&next)])).is_err() {
                return keys;
            }
            keys.push(K::from_bytes(&next).unwrap());
        }
    }
}

/// Removes a directory of pins as `rm -rf` does.
pub(crate) fn remove_all(dir: &Path) {
    fs::remove_dir_all(dir).unwrap();
}
