//! `bpf(2)`: the program that runs packets, and the tables that it keeps.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_DELETE: i32 = 3;
const MAP_NEXT_KEY: i32 = 4;
const OBJ_GET: i32 = 7;
const PROG_TEST_RUN: i32 = 10;
const PROG_FD_BY_ID: i32 = 13;
const INFO: i32 = 15;

/// Words of `union bpf_attr` that the commands here use.
type Attributes = [u64; 16];

fn bpf(command: i32, attributes: &mut Attributes) -> io::Result<i32> {
    // SAFETY: the attributes are as long as is said, and addresses in them are those of buffers that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn object(command: i32, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the command makes a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attributes(words: &[u64]) -> Attributes {
    let mut attributes = [0; 16];
    attributes[..words.len()].copy_from_slice(words);
    attributes
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd() as u32
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    object(OBJ_GET, &mut attributes(&[path.as_ptr() as u64]))
}

/// The first words of what the kernel says about an object.
fn info(fd: &OwnedFd) -> io::Result<[u32; 6]> {
    let mut words = [0_u32; 6];
    let (size, at) = (size_of_val(&words) as u32, words.as_mut_ptr() as u64);
    bpf(INFO, &mut attributes(&[pair(raw(fd), size), at]))?;
    Ok(words)
}

/// The program behind the first link in `links` whose name begins with `name`.
pub(crate) fn attached(links: &Path, name: &str) -> io::Result<OwnedFd> {
    let mut paths = fs::read_dir(links)?.collect::<io::Result<Vec<_>>>()?;
    paths.sort_by_key(fs::DirEntry::file_name);
    let path = paths.iter().find(|entry| entry.file_name().as_bytes().starts_with(name.as_bytes()));
    let path = path.ok_or_else(|| io::Error::other(format!("no link of {name} in {}", links.display())))?;
    // `struct bpf_link_info`: type, id, program.
    let [_, _, program, ..] = info(&open(&path.path())?)?;
    object(PROG_FD_BY_ID, &mut attributes(&[program.into()]))
}

/// A program, and room for what it makes of a packet.
pub(crate) struct Runner {
    program: OwnedFd,
    out: Vec<u8>,
}

/// What a program did.
pub(crate) struct Outcome<'a> {
    pub(crate) verdict: i32,
    pub(crate) frame: &'a [u8],
}

impl Runner {
    pub(crate) fn new(program: OwnedFd) -> Self {
        Self { program, out: vec![0; 4096] }
    }

    /// Runs the program on `frame` as if it came in through the device with this index.
    pub(crate) fn run(&mut self, frame: &[u8], device: u32) -> io::Result<Outcome<'_>> {
        /// Words of `__sk_buff` up to `ifindex`, the only one that is not zero.
        const CONTEXT: usize = 11;
        let mut context = [0_u32; CONTEXT];
        context[CONTEXT - 1] = device;
        let (context_at, context_len) = (context.as_ptr() as u64, size_of_val(&context) as u32);
        let mut words = attributes(&[
            pair(raw(&self.program), 0),
            pair(frame.len() as u32, self.out.len() as u32),
            frame.as_ptr() as u64,
            self.out.as_mut_ptr() as u64,
            // Repeats and duration, then the size of the context.
            0,
            pair(context_len, 0),
            context_at,
        ]);
        bpf(PROG_TEST_RUN, &mut words)?;
        let [program_and_verdict, sizes, ..] = words;
        let len = (sizes >> 32) as usize;
        Ok(Outcome { verdict: (program_and_verdict >> 32) as i32, frame: &self.out[..len] })
    }
}

/// A table that is pinned.
pub(crate) struct Table {
    map: OwnedFd,
    key_size: usize,
}

impl Table {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let map = open(path)?;
        // `struct bpf_map_info`: type, id, size of keys.
        let [_, _, key_size, ..] = info(&map)?;
        Ok(Self { map, key_size: key_size as usize })
    }

    /// Keys of all entries. Nobody else changes the table.
    pub(crate) fn keys(&self) -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let next = vec![0_u8; self.key_size];
            let last = keys.last().map_or(0, |key| key.as_ptr() as u64);
            match bpf(MAP_NEXT_KEY, &mut attributes(&[raw(&self.map).into(), last, next.as_ptr() as u64])) {
                Ok(_) => keys.push(next),
                Err(_) => return keys,
            }
        }
    }

    /// Removes every entry.
    pub(crate) fn clear(&self) -> io::Result<()> {
        for key in self.keys() {
            bpf(MAP_DELETE, &mut attributes(&[raw(&self.map).into(), key.as_ptr() as u64]))?;
        }
        Ok(())
    }
}
