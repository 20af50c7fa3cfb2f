//! Maps get other sizes while programs use them.
//!
//! The size of a map is fixed when it is made. So a start that is asked for another size makes a second map, pins it
//! beside the first one under the name `…_new`, and loads programs that use it. Then it copies the entries, puts the
//! programs into the links in place, waits until the last program of old has ended, copies what was written meanwhile,
//! and renames the pins.
//!
//! A process can die at any of these steps. As long as a pin `…_new` is there, both maps may be in use, each by some of
//! the programs. The next start goes on from there: it copies what the second map lacks, and so forth.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    thread,
};

use lb_datapath_ebpf_abi::{self as abi, Pod};

use crate::{
    config::Capacities,
    error::EbpfError,
    object::Object,
    pins::{
        directories::{Pins, failed, remove_file, rename},
        links::{self, NEW},
        sizes::KeptSize,
    },
    programs::Programs,
    state::{
        heap,
        layout::{CT_LIVE, FRAGMENTS, LAYOUTS, LOADS, Layout, SOCK_COUNTS},
        maps::open,
        sweep,
    },
    sys::{self, Page, RawMap, Shape, Words},
};

/// The path of the map called `name`: of the one that is about to replace it, if there is one.
pub(crate) fn path(maps: &Path, name: &str) -> PathBuf {
    let fresh = beside(maps, name);
    if exists(&fresh) { fresh } else { maps.join(name) }
}

fn beside(maps: &Path, name: &str) -> PathBuf {
    maps.join(format!("{name}{NEW}"))
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Loads the programs. Maps that have another size than `capacities` say get that one first, unless it is too small for
/// what they hold: those are returned.
pub(crate) fn load(
    pins: &Pins,
    object: &Object,
    capacities: &Capacities,
) -> Result<(Programs, Vec<KeptSize>), EbpfError> {
    let (maps, links) = (pins.maps(), pins.links());
    let resize = Resize::prepare(&maps, capacities)?;
    let programs = match Programs::load(object, &maps, capacities) {
        Ok(programs) => programs,
        Err(error) => {
            resize.abandon();
            return Err(error);
        }
    };
    if resize.maps.is_empty() {
        return Ok((programs, resize.kept));
    }
    let is_resumed = resize.is_resumed();
    let kept = resize.carry_out(|| links::switch(&links, &programs))?;
    // What an earlier process has begun may not be what is asked for now.
    if is_resumed { load(pins, object, capacities) } else { Ok((programs, kept)) }
}

/// Maps that get another size.
struct Resize {
    dir: PathBuf,
    maps: Vec<Resized>,
    kept: Vec<KeptSize>,
}

struct Resized {
    layout: &'static Layout,
    old: RawMap,
    new: RawMap,
    /// An earlier process has made the new map, and programs may use it already.
    resumed: bool,
    /// What was copied so far.
    copied: HashMap<Vec<u8>, Vec<u8>>,
}

impl Resize {
    /// Makes maps of the sizes that are asked for, without anything in them.
    fn prepare(dir: &Path, capacities: &Capacities) -> Result<Self, EbpfError> {
        let mut resize = Self { dir: dir.into(), maps: Vec::new(), kept: Vec::new() };
        for layout in &LAYOUTS {
            let Some(wanted) = (layout.capacity)(capacities) else { continue };
            match resize.add(layout, wanted) {
                Ok(()) => {}
                Err(error) => {
                    resize.abandon();
                    return Err(error);
                }
            }
        }
        Ok(resize)
    }

    fn add(&mut self, layout: &'static Layout, wanted: u32) -> Result<(), EbpfError> {
        let (path, fresh) = (self.dir.join(layout.name), beside(&self.dir, layout.name));
        if !exists(&path) {
            return Ok(());
        }
        let old = open(&path)?;
        if exists(&fresh) {
            let new = open(&fresh)?;
            self.maps.push(Resized { layout, old, new, resumed: true, copied: HashMap::new() });
            return Ok(());
        }
        let found = old.shape().max_entries;
        if found == wanted {
            return Ok(());
        }
        if wanted < found {
            let in_use = self.in_use(layout, &old).map_err(reading(layout.name))?;
            if u64::from(wanted) < in_use + spare(layout)? {
                let count = |entries: u64| entries * layout.elements_per_entry();
                let (found, wanted) = (count(found.into()), count(wanted.into()));
                self.kept.push(KeptSize { map: layout.name, found, wanted, in_use: count(in_use) });
                return Ok(());
            }
        }
        let shape = Shape { max_entries: wanted, ..old.shape() };
        let making = |source| EbpfError::Map { name: layout.name, what: "making", source };
        let new = RawMap::create(layout.name, shape).map_err(making)?;
        new.pin(&fresh).map_err(failed("pinning", &fresh))?;
        self.maps.push(Resized { layout, old, new, resumed: false, copied: HashMap::new() });
        Ok(())
    }

    /// Entries of a map that are needed.
    fn in_use(&self, layout: &Layout, map: &RawMap) -> io::Result<u64> {
        Ok(match layout.name {
            "SLOTS" => {
                let sets = RawMap::new(sys::open_pin(&self.dir.join("SETS"))?)?.dump()?;
                let ends = sets.iter().filter_map(|(_, value)| abi::SetValue::from_bytes(value));
                let ends = ends.map(|set| u64::from(set.first) + u64::from(set.slots.div_ceil(abi::SLOTS_PER_CHUNK)));
                ends.max().unwrap_or(0)
            }
            "SOURCES" => map.keys()?.len() as u64,
            "CT" => live(&map.dump()?).count() as u64,
            _ => map.dump()?.len() as u64,
        })
    }

    fn is_resumed(&self) -> bool {
        self.maps.iter().any(|map| map.resumed)
    }

    /// Removes the pins of maps that no program uses yet.
    fn abandon(self) {
        for map in self.maps.into_iter().filter(|map| !map.resumed) {
            // The error that led here says more than one about the clean-up.
            let _ = remove_file(&beside(&self.dir, map.layout.name));
        }
    }

    /// Copies, has `switch` put programs with the new maps in the place of the others, and copies the rest.
    fn carry_out(mut self, switch: impl FnOnce() -> Result<(), EbpfError>) -> Result<Vec<KeptSize>, EbpfError> {
        if let Err(error) = self.copy() {
            self.abandon();
            return Err(error);
        }
        switch()?;
        if sys::wait_for_readers().is_err() {
            thread::sleep(heap::GRACE);
        }
        self.copy_rest()?;
        for map in &self.maps {
            let fresh = beside(&self.dir, map.layout.name);
            rename(&fresh, &self.dir.join(map.layout.name)).map_err(failed("renaming", &fresh))?;
        }
        Ok(self.kept)
    }

    /// Maps that user space writes come first: the time between the two copies of the others is as short as it can be.
    fn copy(&mut self) -> Result<(), EbpfError> {
        let spills = self.spills()?;
        self.maps.sort_by_key(|map| map.is_programs());
        for map in &mut self.maps {
            let copied = if map.layout.name == "SLOTS" { map.copy_words() } else { map.copy(&spills, true) };
            copied.map_err(|source| EbpfError::Map { name: map.layout.name, what: "copying", source })?;
        }
        Ok(())
    }

    fn copy_rest(&mut self) -> Result<(), EbpfError> {
        let spills = self.spills()?;
        for map in self.maps.iter_mut().filter(|map| map.is_programs()) {
            let copied = map.copy(&spills, false);
            copied.map_err(|source| EbpfError::Map { name: map.layout.name, what: "copying", source })?;
        }
        Ok(())
    }

    /// Where established flows go for which there is no room.
    fn spills(&self) -> Result<RawMap, EbpfError> {
        open(&path(&self.dir, "CT"))
    }
}

impl Resized {
    /// Whether programs write it, and not user space.
    fn is_programs(&self) -> bool {
        ["CT", CT_LIVE, "AFFINITY", "SOCK_PEERS", "SOCK_FLOWS", SOCK_COUNTS, LOADS, FRAGMENTS]
            .contains(&self.layout.name)
    }

    fn copy_words(&self) -> io::Result<()> {
        let (from, to) = (Words::map(&self.old)?, Words::map(&self.new)?);
        let words = self.old.shape().max_entries.min(self.new.shape().max_entries) * abi::SLOTS_PER_CHUNK;
        to.store(0, from.load(0, words as usize));
        Ok(())
    }

    /// Copies what was not copied yet, or has changed in the old map since, and removes what has gone from there. What
    /// has changed in the new map stays.
    fn copy(&mut self, spills: &RawMap, first: bool) -> io::Result<()> {
        let before = std::mem::take(&mut self.copied);
        let found = self.entries(first)?;
        if first && !self.resumed && self.write_all(&found).is_ok() {
            self.copied = found.into_iter().collect();
            return Ok(());
        }
        let mut now = HashMap::with_capacity(found.len());
        for (key, value) in found {
            if before.get(&key) != Some(&value) {
                let there = self.new.lookup(&key)?;
                if let Some(value) = self.resolved(before.get(&key), there.as_deref(), &value) {
                    self.put(&key, &value, spills)?;
                }
            }
            now.insert(key, value);
        }
        for (key, value) in before.iter().filter(|(key, _)| !now.contains_key(*key)) {
            if self.new.lookup(key)?.as_ref() == Some(value) {
                self.new.remove(key)?;
            }
        }
        self.copied = now;
        Ok(())
    }

    /// What the new map gets for an entry that is `value` in the old one, was copied as `before`, and is `there` in the new
    /// one.
    fn resolved(&self, before: Option<&Vec<u8>>, there: Option<&[u8]>, value: &[u8]) -> Option<Vec<u8>> {
        match (before, there) {
            // Programs have removed it from there.
            (Some(_), None) => None,
            (None, None) => Some(value.into()),
            (Some(before), Some(there)) if before == there => Some(value.into()),
            (_, Some(there)) => newer(self.layout.name, there, value),
        }
    }

    fn put(&self, key: &[u8], value: &[u8], spills: &RawMap) -> io::Result<()> {
        match self.new.update(key, value).map_err(|stopped| stopped.cause) {
            Err(error) if self.layout.name == CT_LIVE && error.raw_os_error() == Some(libc::E2BIG) => {
                spills.update(key, value).map_err(|stopped| stopped.cause)
            }
            other => other,
        }
    }

    fn write_all(&self, entries: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let keys: Vec<u8> = entries.iter().flat_map(|(key, _)| key).copied().collect();
        let values: Vec<u8> = entries.iter().flat_map(|(_, value)| value).copied().collect();
        self.new.update(&keys, &values).map_err(|stopped| stopped.cause)
    }

    /// The entries of the old map: what was used least recently comes first, so that it is also evicted first.
    fn entries(&self, first: bool) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        if self.layout.name == "SOURCES" {
            return Ok(self.old.keys()?.into_iter().map(|key| (key, vec![1])).collect());
        }
        let page = self.old.dump()?;
        let owned = |(key, value): (&[u8], &[u8])| (key.to_vec(), value.to_vec());
        let mut found: Vec<_> = if first && self.layout.name == "CT" {
            live(&page).map(owned).collect()
        } else {
            page.iter().map(owned).collect()
        };
        if has_time(self.layout.name) {
            found.sort_by_key(|(_, value)| last_use(value));
        }
        Ok(found)
    }
}

/// Entries that an LRU map has to have room for beyond those in use: it hands free ones out to processors in batches.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/bpf_lru_list.c> (`LOCAL_FREE_TARGET`)
fn spare(layout: &Layout) -> Result<u64, EbpfError> {
    const LOCAL_FREE_TARGET: u64 = 128;
    if !layout.evicts() {
        return Ok(0);
    }
    let unknown = |(_, source)| EbpfError::Map { name: layout.name, what: "counting the processors for", source };
    Ok(LOCAL_FREE_TARGET * aya::util::nr_cpus().map_err(unknown)? as u64)
}

/// The entries of flows that are not over.
fn live(page: &Page) -> impl Iterator<Item = (&[u8], &[u8])> {
    let now = sys::monotonic().as_nanos() as u64;
    let is_over = move |(key, value): &(&[u8], &[u8])| {
        let entry = abi::CtKey::from_bytes(key).zip(abi::CtValue::from_bytes(value));
        entry.is_some_and(|(key, value)| sweep::is_over(&key, &value, now))
    };
    page.iter().filter(move |entry| !is_over(entry))
}

/// Whether the values of the map called `name` begin with the time of their last use.
fn has_time(name: &str) -> bool {
    ["CT", CT_LIVE, "AFFINITY", "SOCK_FLOWS"].contains(&name)
}

fn last_use(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// What an entry becomes that is `there` already and has `other` as its value in the old map; nothing if it stays. A flow
/// keeps what either of the two knows of its state.
fn newer(name: &str, there: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    if !has_time(name) || there == other {
        return None;
    }
    let other_is_newer = last_use(other) > last_use(there);
    let flows = abi::CtValue::from_bytes(there).zip(abi::CtValue::from_bytes(other));
    match flows.filter(|_| ["CT", CT_LIVE].contains(&name)) {
        Some((there, other)) if is_same_flow(&there, &other) => {
            let merged = abi::CtValue {
                last_ns: there.last_ns.max(other.last_ns),
                flags: there.flags | other.flags,
                client: there.client | other.client,
                server: there.server | other.server,
                ..there
            };
            (merged != there).then(|| merged.bytes().to_vec())
        }
        _ => other_is_newer.then(|| other.to_vec()),
    }
}

fn is_same_flow(a: &abi::CtValue, b: &abi::CtValue) -> bool {
    let tuple = |flow: &abi::CtValue| (flow.src, flow.dst, flow.sport, flow.dport, flow.backend, flow.set);
    tuple(a) == tuple(b)
}

fn reading(name: &'static str) -> impl FnOnce(io::Error) -> EbpfError {
    move |source| EbpfError::Map { name, what: "reading", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_keeps_what_either_map_knows_of_its_state() {
        let there = abi::CtValue { last_ns: 7, server: abi::SIDE_SEEN, set: 1, ..abi::CtValue::EMPTY };
        let other = abi::CtValue { last_ns: 5, client: abi::SIDE_SEEN, flags: abi::CT_CLOSED, ..there };
        let merged = abi::CtValue { last_ns: 7, ..abi::CtValue { server: abi::SIDE_SEEN, ..other } };
        assert_eq!(newer("CT", there.bytes(), other.bytes()), Some(merged.bytes().to_vec()));
        assert_eq!(newer("CT", merged.bytes(), other.bytes()), None, "it is told nothing new");
        // Another flow from the same port is a flow of its own.
        let another = abi::CtValue { set: 2, ..other };
        assert_eq!(newer("CT", there.bytes(), another.bytes()), None);
        let later = abi::CtValue { last_ns: 8, ..another };
        assert_eq!(newer("CT", there.bytes(), later.bytes()), Some(later.bytes().to_vec()));
    }

    #[test]
    fn of_two_records_the_one_that_was_used_last_counts() {
        let record = |last_ns, backend| abi::AffinityValue { last_ns, backend, pad: 0 };
        let [old, new] = [record(1, 1), record(2, 2)];
        assert_eq!(newer("AFFINITY", old.bytes(), new.bytes()), Some(new.bytes().to_vec()));
        assert_eq!(newer("AFFINITY", new.bytes(), old.bytes()), None);
        assert_eq!(newer("SOCK_PEERS", &[1], &[2]), None, "which is older is not known");
    }
}
