//! Maps.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::{bpf_cmd, bpf_map_type};

use super::{address, address_mut, bpf, bpf_fd, info, name, pin, raw};
use crate::crash;

/// Type, sizes and flags of a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KINDS: [(bpf_map_type, &str); 5] = [
            (bpf_map_type::BPF_MAP_TYPE_HASH, "hash map"),
            (bpf_map_type::BPF_MAP_TYPE_ARRAY, "array"),
            (bpf_map_type::BPF_MAP_TYPE_LRU_HASH, "LRU hash map"),
            (bpf_map_type::BPF_MAP_TYPE_LPM_TRIE, "LPM trie"),
            (bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY, "per-CPU array"),
        ];
        let Self { kind, key_size, value_size, max_entries, flags } = self;
        match KINDS.iter().find(|(known, _)| *known as u32 == *kind) {
            Some((_, name)) => f.write_str(name)?,
            None => write!(f, "map of type {kind}")?,
        }
        write!(f, ", key {key_size} bytes, value {value_size} bytes, {max_entries} entries, flags {flags:#x}")
    }
}

/// What the kernel says about a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) id: u32,
    /// At most 15 bytes of it.
    pub(crate) name: String,
    pub(crate) shape: Shape,
}

/// Keys and values of a map, one after the other, in buffers that are reused.
#[derive(Debug, Default)]
pub(crate) struct Page {
    keys: Vec<u8>,
    values: Vec<u8>,
    count: usize,
    sizes: (usize, usize),
}

impl Page {
    pub(crate) fn keys(&self) -> &[u8] {
        &self.keys[..self.count * self.sizes.0]
    }

    pub(crate) fn values(&self) -> &[u8] {
        &self.values[..self.count * self.sizes.1]
    }

    /// Elements.
    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    pub(crate) const fn key_size(&self) -> usize {
        self.sizes.0
    }

    /// Key and value of an element.
    pub(crate) fn get(&self, at: usize) -> Option<(&[u8], &[u8])> {
        let (key, value) = self.sizes;
        let in_range = at < self.count;
        in_range.then(|| (&self.keys[at * key..(at + 1) * key], &self.values[at * value..(at + 1) * value]))
    }

    /// Every element.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let (key, value) = self.sizes;
        self.keys().chunks_exact(key.max(1)).zip(self.values().chunks_exact(value.max(1)))
    }

    fn make_room(&mut self, elements: usize) {
        let (keys, values) = (elements * self.sizes.0, elements * self.sizes.1);
        self.keys.resize(keys.max(self.keys.len()), 0);
        self.values.resize(values.max(self.values.len()), 0);
    }

    fn room(&self) -> usize {
        (self.keys.len() / self.sizes.0.max(1)).min(self.values.len() / self.sizes.1.max(1))
    }
}

#[repr(C)]
#[derive(Default)]
pub(super) struct ElementAttr {
    pub(super) map: u32,
    pub(super) pad: u32,
    pub(super) key: u64,
    pub(super) value: u64,
    pub(super) flags: u64,
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
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// Elements that one part of a map has room for.
const PART: usize = 4096;

/// A map of the kernel's, and the sizes of its keys and values.
#[derive(Debug)]
pub(crate) struct RawMap {
    fd: OwnedFd,
    shape: Shape,
}

/// A batch stopped at this element.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) done: usize,
    pub(crate) cause: io::Error,
}

impl RawMap {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let shape = map_info(fd.as_fd())?.shape;
        Ok(Self { fd, shape })
    }

    /// Makes a map that nobody knows yet. At most 15 bytes of its name count.
    pub(crate) fn create(name: &str, shape: Shape) -> io::Result<Self> {
        let Shape { kind, key_size, value_size, max_entries, flags } = shape;
        let mut attr = CreateAttr { kind, key_size, value_size, max_entries, flags, ..CreateAttr::default() };
        attr.name.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
        // SAFETY: the attributes hold no addresses.
        let fd = unsafe { bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr) }?;
        Ok(Self { fd, shape })
    }

    /// Pins it at `path`, which must not exist.
    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(self.fd.as_fd(), path)
    }

    /// The same map, by a descriptor of its own.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, shape: self.shape })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) const fn shape(&self) -> Shape {
        self.shape
    }

    /// Writes `keys.len() / key_size` elements, in order.
    pub(crate) fn update(&self, keys: &[u8], values: &[u8]) -> Result<(), Stopped> {
        let count = self.count(keys);
        assert_eq!(values.len(), count * self.shape.value_size as usize, "one value per key");
        let mut attr = BatchAttr {
            keys: address(keys),
            values: address(values),
            count: count as u32,
            map: raw(&self.fd),
            ..BatchAttr::default()
        };
        // SAFETY: `keys` and `values` hold `count` elements of this map's sizes.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) };
        if has_no_batches(&result) {
            let values = values.chunks_exact(self.shape.value_size as usize);
            let elements = keys.chunks_exact(self.shape.key_size as usize).zip(values);
            return one_by_one(elements, |(key, value)| self.element(bpf_cmd::BPF_MAP_UPDATE_ELEM, key, value));
        }
        crash::point();
        stopped(result, attr.count, count)
    }

    /// Removes `keys.len() / key_size` elements, in order; stops at one that is not there.
    pub(crate) fn delete(&self, keys: &[u8]) -> Result<(), Stopped> {
        let count = self.count(keys);
        let mut attr =
            BatchAttr { keys: address(keys), count: count as u32, map: raw(&self.fd), ..BatchAttr::default() };
        // SAFETY: `keys` holds `count` keys of this map's size.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_BATCH, &mut attr) };
        if has_no_batches(&result) {
            let keys = keys.chunks_exact(self.shape.key_size as usize);
            return one_by_one(keys, |key| self.element(bpf_cmd::BPF_MAP_DELETE_ELEM, key, &[]));
        }
        crash::point();
        stopped(result, attr.count, count)
    }

    /// Writes or removes one element.
    fn element(&self, cmd: bpf_cmd, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut attr =
            ElementAttr { map: raw(&self.fd), key: address(key), value: address(value), ..Default::default() };
        // SAFETY: the key has this map's size, and so has the value, if one is written.
        unsafe { bpf(cmd, &mut attr) }?;
        crash::point();
        Ok(())
    }

    /// The value of one element.
    pub(crate) fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        assert_eq!(key.len(), self.shape.key_size as usize, "one key");
        let mut value = vec![0_u8; self.shape.value_size as usize];
        let value_at = address_mut(&mut value);
        let mut attr = ElementAttr { map: raw(&self.fd), key: address(key), value: value_at, ..Default::default() };
        // SAFETY: the key has this map's size, and the value has room for one.
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes one element; `false` if it is not there.
    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<bool> {
        assert_eq!(key.len(), self.shape.key_size as usize, "one key");
        let mut attr = ElementAttr { map: raw(&self.fd), key: address(key), ..Default::default() };
        // SAFETY: the key has this map's size.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) };
        crash::point();
        match result {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Hands every element of a hash map to `each`, some thousands at a time: what comes and goes meanwhile may be missing.
    /// Elements may be removed meanwhile.
    pub(crate) fn each(&self, each: &mut impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut page =
            Page { sizes: (self.shape.key_size as usize, self.shape.value_size as usize), ..Page::default() };
        page.make_room(PART);
        let mut position = None;
        loop {
            page.count = 0;
            let more = self.read_part(&mut page, &mut position)?;
            page.iter().try_for_each(|(key, value)| each(key, value))?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Every element of a hash map.
    pub(crate) fn dump(&self) -> io::Result<Page> {
        let mut page = Page::default();
        self.read(&mut page)?;
        Ok(page)
    }

    /// Every element of a hash map, into room that may have been used before.
    pub(crate) fn read(&self, page: &mut Page) -> io::Result<()> {
        const ROOM: usize = 1024;
        page.count = 0;
        page.sizes = (self.shape.key_size as usize, self.shape.value_size as usize);
        page.make_room(ROOM);
        let mut position = None;
        while self.read_part(page, &mut position)? {
            if page.room() - page.count < ROOM {
                page.make_room(2 * page.room());
            }
        }
        Ok(())
    }

    /// Adds to `page` as many elements as there is room for, from `position` on; `false` if they were the last ones.
    fn read_part(&self, page: &mut Page, position: &mut Option<u32>) -> io::Result<bool> {
        loop {
            let (key_size, value_size) = page.sizes;
            let (from, mut next) = ([position.unwrap_or(0)], [0_u32]);
            let mut attr = BatchAttr {
                in_batch: if position.is_some() { address(&from) } else { 0 },
                out_batch: address_mut(&mut next),
                keys: address_mut(&mut page.keys[page.count * key_size..]),
                values: address_mut(&mut page.values[page.count * value_size..]),
                count: (page.room() - page.count) as u32,
                map: raw(&self.fd),
                ..BatchAttr::default()
            };
            // SAFETY: keys and values have room for `count` elements, and a hash map's position is a `u32`.
            let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
            match result.as_ref().err().and_then(io::Error::raw_os_error) {
                // One bucket of the hash table holds more than there is room for; the kernel copies whole buckets.
                // https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/hashtab.c
                // (`__htab_map_lookup_and_delete_batch`)
                Some(libc::ENOSPC) => page.make_room(2 * page.room()),
                Some(libc::ENOENT) => {
                    page.count += attr.count as usize;
                    return Ok(false);
                }
                Some(_) => return result.map(|_| false),
                None => {
                    page.count += attr.count as usize;
                    *position = Some(next[0]);
                    return Ok(true);
                }
            }
        }
    }

    /// How many elements a map has: exact for a trie and up to 8,192, beyond that estimated from as many.
    ///
    /// The kernel hands elements of a hash map out bucket by bucket, and says in which it stopped. The hash spreads them
    /// evenly.
    pub(crate) fn estimate(&self) -> io::Result<u64> {
        const SAMPLE: usize = 8192;
        if self.shape.kind == bpf_map_type::BPF_MAP_TYPE_LPM_TRIE as u32 {
            return Ok(self.keys()?.len() as u64);
        }
        let room = |size: u32| vec![0_u8; SAMPLE * size as usize];
        let (mut keys, mut values) = (room(self.shape.key_size), room(self.shape.value_size));
        let mut next = [0_u32];
        let mut attr = BatchAttr {
            out_batch: address_mut(&mut next),
            keys: address_mut(&mut keys),
            values: address_mut(&mut values),
            count: SAMPLE as u32,
            map: raw(&self.fd),
            ..BatchAttr::default()
        };
        // SAFETY: keys and values have room for `count` elements. A hash map's position is a `u32`; that of other maps is a
        // key, which is a `u32` for arrays, and tries do not come here.
        // https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/syscall.c (`generic_map_lookup_batch`)
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => {
                // https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/hashtab.c (`htab_map_alloc`)
                let buckets = u64::from(self.shape.max_entries).next_power_of_two();
                let counted = u64::from(attr.count);
                let all = (counted * buckets).checked_div(u64::from(next[0])).unwrap_or(counted);
                Ok(all.min(self.shape.max_entries.into()))
            }
            // That was the last bucket.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(attr.count.into()),
            Err(error) => Err(error),
        }
    }

    /// Every key of a map that has no batch look-up with a number as its position, such as a trie.
    pub(crate) fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0_u8; self.shape.key_size as usize];
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
        let size = self.shape.key_size as usize;
        assert_eq!(keys.len() % size, 0, "whole keys");
        keys.len() / size
    }
}

/// Whether the kernel writes only single elements of this type of map, as Linux 5.10 does for tries.
fn has_no_batches(result: &io::Result<i64>) -> bool {
    /// Of the kernel's own errors: <https://elixir.bootlin.com/linux/v6.18/source/include/linux/errno.h>.
    const ENOTSUPP: i32 = 524;
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(ENOTSUPP))
}

/// Calls `write` with every element, in order, up to the first that fails.
fn one_by_one<T>(elements: impl Iterator<Item = T>, mut write: impl FnMut(T) -> io::Result<()>) -> Result<(), Stopped> {
    for (done, element) in elements.enumerate() {
        write(element).map_err(|cause| Stopped { done, cause })?;
    }
    Ok(())
}

fn stopped(result: io::Result<i64>, done: u32, count: usize) -> Result<(), Stopped> {
    match result {
        Ok(_) => Ok(()),
        // The kernel writes the number of elements that it has done, unless it refused the call before it looked at
        // them: then the number that was passed is still there.
        // https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/syscall.c (`generic_map_update_batch`)
        Err(cause) => Err(Stopped { done: if done as usize >= count { 0 } else { done as usize }, cause }),
    }
}

pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let [kind, id, key_size, value_size, max_entries, flags, text @ ..] = info::<10>(fd)?;
    Ok(MapInfo { id, name: name(&text), shape: Shape { kind, key_size, value_size, max_entries, flags } })
}
