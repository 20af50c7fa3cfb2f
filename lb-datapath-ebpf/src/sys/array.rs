//! Arrays: counters of each processor, and words that are mapped into the process.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya_obj::generated::{bpf_cmd, bpf_map_type};

use super::{
    address, address_mut, bpf,
    map::{ElementAttr, RawMap, map_info},
    raw,
};
use crate::crash;

/// A per-CPU array of counters.
#[derive(Debug)]
pub(crate) struct PerCpuCounters {
    fd: OwnedFd,
    cpus: usize,
}

impl PerCpuCounters {
    /// The counters in `map`, whose values must be of eight bytes. `cpus` is the number of processors that the system
    /// may ever have: the kernel hands out one value for each, whether it runs or not.
    pub(crate) fn new(fd: OwnedFd, cpus: usize) -> io::Result<Self> {
        let shape = map_info(fd.as_fd())?.shape;
        let expected = (bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32, 4, 8);
        if (shape.kind, shape.key_size, shape.value_size) != expected {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("expected per-CPU counters, found {shape}"),
            ));
        }
        Ok(Self { fd, cpus })
    }

    /// The sum of the counter at `key` over all processors.
    pub(crate) fn sum(&self, key: u32) -> io::Result<u64> {
        let mut values = vec![0_u64; self.cpus];
        let key = [key];
        let mut attr = ElementAttr {
            map: raw(&self.fd),
            key: address(&key),
            value: address_mut(&mut values),
            ..Default::default()
        };
        // SAFETY: the key has this map's size. The kernel writes one value of eight bytes for every processor that the
        // system may have (`bpf_percpu_array_copy`), and there is room for as many.
        // https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/arraymap.c
        unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
        Ok(values.into_iter().fold(0, u64::wrapping_add))
    }
}

/// An array map that is mapped into this process. Programs read the same memory.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/arraymap.c> (`array_map_mmap`)
#[derive(Debug)]
struct Mapping {
    start: NonNull<libc::c_void>,
    bytes: usize,
}

// SAFETY: the memory is shared with the kernel anyway, and it is touched through atomics only.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(map: &RawMap) -> io::Result<Self> {
        let bytes = map.shape().max_entries as usize * map.shape().value_size as usize;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice, of as many bytes as the map has.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, map.fd().as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrowed from it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
    }
}

/// An array map of words of eight bytes, of which a process and the programs exchange some.
#[derive(Debug)]
pub(crate) struct Longs(Mapping);

impl Longs {
    /// Maps the whole of `map`, which must have been created with `BPF_F_MMAPABLE`.
    pub(crate) fn map(map: &RawMap) -> io::Result<Self> {
        Mapping::new(map).map(Self)
    }

    /// All of them, as the kernel has them.
    pub(crate) fn all(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is that long, aligned to a page, and lives until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr().cast(), self.0.bytes / size_of::<AtomicU64>()) }
    }
}

/// The words of an array map.
#[derive(Debug)]
pub(crate) struct Words(Mapping);

impl Words {
    /// Maps the whole of `map`, which must have been created with `BPF_F_MMAPABLE`.
    pub(crate) fn map(map: &RawMap) -> io::Result<Self> {
        Mapping::new(map).map(Self)
    }

    /// Stores `words` from word `at` on; what lies past the end is not stored.
    pub(crate) fn store(&self, at: usize, words: impl IntoIterator<Item = u32>) {
        for (cell, word) in self.cells().iter().skip(at).zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
        crash::point();
    }

    /// Sets `bits` of word `at`; a word past the end has none.
    pub(crate) fn set_bits(&self, at: usize, bits: u32) {
        if let Some(cell) = self.cells().get(at) {
            cell.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Whether the words from word `at` on are these.
    pub(crate) fn hold(&self, at: usize, words: impl ExactSizeIterator<Item = u32>) -> bool {
        let end = at.saturating_add(words.len());
        let cells = self.cells().get(at..end);
        cells.is_some_and(|cells| cells.iter().zip(words).all(|(cell, word)| cell.load(Ordering::Relaxed) == word))
    }

    /// `len` words from word `at` on, fewer at the end.
    pub(crate) fn load(&self, at: usize, len: usize) -> Vec<u32> {
        self.cells().iter().skip(at).take(len).map(|cell| cell.load(Ordering::Relaxed)).collect()
    }

    fn cells(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is that long, aligned to a page, and lives until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr().cast(), self.0.bytes / size_of::<AtomicU32>()) }
    }
}
