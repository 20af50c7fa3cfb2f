//! The maps in the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::discriminant,
    os::fd::BorrowedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use lb_core::{datapath::ErrorKind, id::BackendId};
use lb_datapath_ebpf_abi::{self as abi, Pod};

use crate::{
    error::EbpfError,
    state::{
        cells::Cells,
        convert::addr,
        filter::Filter,
        layout::{CT_LIVE, FILTER, LOADS, SOCK_CELLS, SOCK_COUNTS},
        lower::MAX_SLOTS,
        mirror::Mirror,
        ports::Ports,
        restore::claim,
        write::{Cause, Limits, Snapshot, Store, Write},
    },
    sys::{self, Devices, Framing, IfIndex, Longs, Page, RawMap, Words},
};

/// A hash map whose keys user space alone decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Frontends,
    Backends,
    Sets,
    Members,
    Turns,
}

impl Table {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Frontends, Self::Backends, Self::Sets, Self::Members, Self::Turns];

    /// The table that a write is to.
    const fn of(write: &Write) -> Option<Self> {
        Some(match write {
            Write::Backend(..) | Write::NoBackend(_) => Self::Backends,
            Write::Member(..) | Write::NoMember(_) => Self::Members,
            Write::Turns(_) | Write::NoTurns(_) => Self::Turns,
            Write::Set(..) | Write::NoSet(_) => Self::Sets,
            Write::Frontend(..) | Write::NoFrontend(_) => Self::Frontends,
            Write::Slots(..)
            | Write::Source(_)
            | Write::NoSource(_)
            | Write::Address(..)
            | Write::NoAddress(_)
            | Write::Device(..)
            | Write::NoDevice(_)
            | Write::Cidr(..)
            | Write::NoCidr(_)
            | Write::Node(_)
            | Write::Known(_) => return None,
        })
    }

    /// Name of the map.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Frontends => "FRONTENDS",
            Self::Backends => "BACKENDS",
            Self::Sets => "SETS",
            Self::Members => "MEMBERS",
            Self::Turns => "TURNS",
        }
    }
}

/// Most bytes of keys that are remembered as written. A table with more of them is compared as a whole.
const WRITTEN: usize = 1 << 16;

/// The maps that user space writes, and those that it reads.
#[derive(Debug)]
pub(crate) struct Maps {
    frontends: RawMap,
    backends: RawMap,
    sets: RawMap,
    members: RawMap,
    turns: RawMap,
    sources: RawMap,
    addresses: RawMap,
    devices: RawMap,
    node: RawMap,
    cidrs: RawMap,
    role: RawMap,
    new_flows: RawMap,
    live_flows: RawMap,
    affinity: RawMap,
    sock_peers: RawMap,
    sock_cells: Cells,
    sock_flows: RawMap,
    sock_counts: RawMap,
    loads: RawMap,
    chunks: u32,
    ports: Ports,
    slots: Words,
    filter: Filter,
    /// Keys written since they were last looked at, by table.
    written: [Vec<u8>; Table::ALL.len()],
    known_devices: BTreeMap<IfIndex, abi::DeviceValue>,
    network: Devices,
    origin: Instant,
}

impl Maps {
    /// Opens the maps that are pinned in `dir`; translated sources get `ports`.
    pub(crate) fn open(dir: &Path, ports: Ports) -> Result<Self, EbpfError> {
        let open = |name: &str| open(&dir.join(name));
        let slots = open("SLOTS")?;
        let mapped =
            |map: &RawMap, name| Words::map(map).map_err(|source| EbpfError::Map { name, what: "mapping", source });
        let words = mapped(&slots, "SLOTS")?;
        let filter = Filter::new(mapped(&open(FILTER)?, FILTER)?);
        let cells = Longs::map(&open(SOCK_CELLS)?);
        let cells = cells.map_err(|source| EbpfError::Map { name: SOCK_CELLS, what: "mapping", source })?;
        Ok(Self {
            frontends: open("FRONTENDS")?,
            backends: open("BACKENDS")?,
            sets: open("SETS")?,
            members: open("MEMBERS")?,
            turns: open("TURNS")?,
            sources: open("SOURCES")?,
            addresses: open("ADDRESSES")?,
            devices: open("DEVICES")?,
            node: open("NODE")?,
            cidrs: open("CIDRS")?,
            role: open("ROLE")?,
            new_flows: open("CT")?,
            live_flows: open(CT_LIVE)?,
            affinity: open("AFFINITY")?,
            sock_peers: open("SOCK_PEERS")?,
            sock_cells: Cells::new(cells),
            sock_flows: open("SOCK_FLOWS")?,
            sock_counts: open(SOCK_COUNTS)?,
            loads: open(LOADS)?,
            chunks: slots.shape().max_entries,
            ports,
            slots: words,
            filter,
            written: Default::default(),
            known_devices: BTreeMap::new(),
            network: Devices::open().map_err(|source| EbpfError::Probe { what: "a socket", source })?,
            origin: Instant::now(),
        })
    }

    /// Capacities of the maps, and the ports of translated sources.
    pub(crate) fn limits(&self) -> Limits {
        let max = |map: &RawMap| map.shape().max_entries as usize;
        Limits {
            frontends: max(&self.frontends),
            backends: max(&self.backends),
            sets: max(&self.sets),
            members: max(&self.members),
            sources: max(&self.sources),
            chunks: self.chunks,
            ports: self.ports,
        }
    }

    /// Everything that the maps hold.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, EbpfError> {
        let node = self.node.lookup(abi::NODE_KEY.bytes()).map_err(reading("NODE"))?;
        let with_slots = |(id, value): (u32, abi::SetValue)| {
            let first = value.first as usize * abi::SLOTS_PER_CHUNK as usize;
            let slots = if value.slots <= MAX_SLOTS { value.slots as usize } else { 0 };
            (id, value, self.slots.load(first, slots))
        };
        let frontends: Vec<(abi::FrontendKey, abi::FrontendValue)> = elements(&self.frontends, "FRONTENDS")?;
        let sets: Vec<(u32, abi::SetValue)> = elements(&self.sets, "SETS")?;
        let known: BTreeMap<u32, abi::SetValue> = sets.iter().copied().collect();
        let claims = frontends.iter().filter_map(|(_, value)| claim(value));
        let claims = claims.filter(|(id, value)| known.get(id) != Some(value)).map(with_slots).collect();
        Ok(Snapshot {
            claims,
            frontends,
            backends: elements(&self.backends, "BACKENDS")?,
            sets: sets.into_iter().map(with_slots).collect(),
            members: elements(&self.members, "MEMBERS")?,
            turns: elements::<_, u64>(&self.turns, "TURNS")?.into_iter().map(|(key, _)| key).collect(),
            sources: self.sources()?,
            addresses: elements(&self.addresses, "ADDRESSES")?,
            cidrs: self.cidrs()?.into_keys().collect(),
            node: node.as_deref().and_then(Pod::from_bytes),
        })
    }

    /// Everything that a table holds, into room that may have been used before.
    pub(crate) fn read(&self, table: Table, page: &mut Page) -> Result<(), EbpfError> {
        self.table(table).read(page).map_err(reading(table.name()))
    }

    const fn table(&self, table: Table) -> &RawMap {
        match table {
            Table::Frontends => &self.frontends,
            Table::Backends => &self.backends,
            Table::Sets => &self.sets,
            Table::Members => &self.members,
            Table::Turns => &self.turns,
        }
    }

    /// Keys that were written to a table since [`forget_written`](Self::forget_written), one after the other.
    pub(crate) fn written(&self, table: Table) -> &[u8] {
        &self.written[table as usize]
    }

    /// Forgets the keys of a table, after they were found in the map.
    pub(crate) fn forget_written(&mut self, table: Table) {
        self.written[table as usize].clear();
    }

    /// One element of a table.
    pub(crate) fn one<V: Pod>(&self, table: Table, key: &impl Pod) -> Result<Option<V>, EbpfError> {
        one(self.table(table), table.name(), key)
    }

    /// The value of one element of a table, as it lies there.
    pub(crate) fn raw(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, EbpfError> {
        self.table(table).lookup(key).map_err(reading(table.name()))
    }

    /// The node's facts as the programs find them.
    pub(crate) fn node(&self) -> Result<Option<abi::NodeValue>, EbpfError> {
        one(&self.node, "NODE", &abi::NODE_KEY)
    }

    /// Prefixes of frontends with source ranges.
    pub(crate) fn sources(&self) -> Result<Vec<abi::SourceKey>, EbpfError> {
        let keys = self.sources.keys().map_err(reading("SOURCES"))?;
        Ok(keys.iter().filter_map(|key| abi::SourceKey::from_bytes(key)).collect())
    }

    /// What addresses with frontends say about the rest of their traffic.
    pub(crate) fn addresses(&self) -> Result<BTreeMap<abi::Addr, u8>, EbpfError> {
        Ok(elements(&self.addresses, "ADDRESSES")?.into_iter().collect())
    }

    /// Says what is behind a device that a program is about to be attached to: `DEVICE_…`.
    pub(crate) fn put_device(&mut self, name: &str, device: IfIndex, kind: u8) -> Result<(), EbpfError> {
        // A device that is gone meanwhile cannot be attached to.
        let hardware = self.network.hardware_of(device).unwrap_or_default();
        let bare = match hardware.framing() {
            Framing::Ethernet => 0,
            Framing::Bare => abi::DEVICE_BARE,
            Framing::Other(kind) => return Err(EbpfError::DeviceType { name: name.into(), kind }),
        };
        let value = abi::DeviceValue { kind: kind | bare, pad: 0, hardware: hardware.address };
        self.known_devices.insert(device, value);
        self.run_device(&Write::Device(device, value), "writing")
    }

    /// Forgets all devices but these, which programs are attached to.
    pub(crate) fn keep_devices(&mut self, kept: &BTreeSet<IfIndex>) -> Result<(), EbpfError> {
        self.known_devices.retain(|device, _| kept.contains(device));
        for device in self.devices()?.into_keys().filter(|device| !kept.contains(device)) {
            self.run_device(&Write::NoDevice(device), "removing from")?;
        }
        Ok(())
    }

    fn run_device(&mut self, write: &Write, what: &'static str) -> Result<(), EbpfError> {
        let failed = self.write(std::slice::from_ref(write)).into_iter().next();
        let source = |(_, cause): (usize, Cause)| io::Error::other(cause.message);
        failed.map_or(Ok(()), |failed| Err(EbpfError::Map { name: "DEVICES", what, source: source(failed) }))
    }

    /// What is behind each device, with the hardware address that it has now: that of a bridge changes with its ports.
    pub(crate) fn known_devices(&mut self) -> &BTreeMap<IfIndex, abi::DeviceValue> {
        for (device, value) in &mut self.known_devices {
            if let Ok(hardware) = self.network.hardware_of(*device) {
                value.hardware = hardware.address;
            }
        }
        &self.known_devices
    }

    /// What is behind each device, as the programs find it.
    pub(crate) fn devices(&self) -> Result<BTreeMap<IfIndex, abi::DeviceValue>, EbpfError> {
        let found: Vec<(u32, abi::DeviceValue)> = elements(&self.devices, "DEVICES")?;
        Ok(found.into_iter().map(|(device, value)| (IfIndex(device), value)).collect())
    }

    /// Prefixes with their families.
    pub(crate) fn cidrs(&self) -> Result<BTreeMap<abi::CidrKey, u8>, EbpfError> {
        let keys = self.cidrs.keys().map_err(reading("CIDRS"))?;
        let keys = keys.iter().filter_map(|key| abi::CidrKey::from_bytes(key));
        let found = keys.map(|key| Ok(Some(key).zip(one(&self.cidrs, "CIDRS", &key)?)));
        found.filter_map(Result::transpose).collect()
    }

    /// Slots from this chunk on.
    pub(crate) fn slots(&self, first: u32, slots: u32) -> Vec<u32> {
        self.slots.load(first as usize * abi::SLOTS_PER_CHUNK as usize, slots as usize)
    }

    /// Whether these are the slots from this chunk on.
    pub(crate) fn have_slots(&self, first: u32, slots: &[BackendId]) -> bool {
        let at = first as usize * abi::SLOTS_PER_CHUNK as usize;
        self.slots.hold(at, slots.iter().map(|id| id.get()))
    }

    /// Flows of packets, of both directions, in the order in which programs look them up: those that are established,
    /// and the others. Each table with its name.
    pub(crate) const fn flows(&self) -> [(&'static str, &RawMap); 2] {
        [(CT_LIVE, &self.live_flows), ("CT", &self.new_flows)]
    }

    /// Flows that are established.
    pub(crate) const fn live_flows(&self) -> &RawMap {
        &self.live_flows
    }

    /// The affinity records of clients.
    pub(crate) const fn affinity(&self) -> &RawMap {
        &self.affinity
    }

    /// The filter that packets pass first.
    pub(crate) const fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Sets the bits of all addresses in use. A filter that is new, beside tables of an earlier version, gets those of
    /// flows as well.
    pub(crate) fn fill_filter(&self, mirror: &Mirror) -> Result<(), EbpfError> {
        if self.filter.is_empty() {
            for (name, map) in self.flows() {
                let flows: Vec<(abi::CtKey, abi::CtValue)> = elements(map, name)?;
                flows.iter().flat_map(|(key, _)| [key.src, key.dst]).for_each(|addr| self.filter.add(addr));
            }
        }
        mirror.addresses().filter_map(|ip| addr(ip).ok()).for_each(|addr| self.filter.add(addr));
        Ok(())
    }

    /// The virtual addresses that TCP sockets connected to, as far as each has an element of its own.
    pub(crate) const fn sock_cells(&self) -> &Cells {
        &self.sock_cells
    }

    /// The virtual addresses that other sockets connected or sent to.
    pub(crate) const fn sock_peers(&self) -> &RawMap {
        &self.sock_peers
    }

    /// The backends of sockets that are not connected.
    pub(crate) const fn sock_flows(&self) -> &RawMap {
        &self.sock_flows
    }

    /// The backends of sockets that count as connections.
    pub(crate) const fn sock_counts(&self) -> &RawMap {
        &self.sock_counts
    }

    /// Counters of connections.
    pub(crate) const fn loads(&self) -> &RawMap {
        &self.loads
    }

    /// The counters of one backend that are there.
    pub(crate) fn loads_of(&self, backend: u32) -> Result<Vec<(abi::LoadKey, u64)>, EbpfError> {
        let keys = (0..abi::LOAD_LANES).map(|lane| abi::LoadKey { backend, lane });
        let found = keys.map(|key| Ok(Some(key).zip(one(&self.loads, LOADS, &key)?)));
        found.filter_map(Result::transpose).collect()
    }

    /// The role that the programs read.
    pub(crate) fn role(&self) -> Result<u32, EbpfError> {
        Ok(one(&self.role, "ROLE", &abi::ROLE_KEY)?.unwrap_or(abi::ROLE_ACTIVE))
    }

    /// Writes the role for the programs to read.
    pub(crate) fn set_role(&self, role: u32) -> Result<(), EbpfError> {
        let written = self.role.update(abi::ROLE_KEY.bytes(), role.bytes());
        written.map_err(|stopped| EbpfError::Map { name: "ROLE", what: "writing", source: stopped.cause })
    }

    fn put(&self, map: &RawMap, name: &'static str, elements: Encoded) -> Vec<(usize, Cause)> {
        let (key, value) = (map.shape().key_size as usize, map.shape().value_size as usize);
        each(
            &elements,
            |from| map.update(&elements.keys[from * key..], &elements.values[from * value..]),
            |error| Some(cause(name, "writing", error)),
        )
    }

    fn remove(&self, map: &RawMap, name: &'static str, elements: Encoded) -> Vec<(usize, Cause)> {
        let key = map.shape().key_size as usize;
        each(
            &elements,
            |from| map.delete(&elements.keys[from * key..]),
            |error| (error.raw_os_error() != Some(libc::ENOENT)).then(|| cause(name, "removing from", error)),
        )
    }

    /// Writes of one kind.
    fn run(&mut self, writes: &[Write]) -> Vec<(usize, Cause)> {
        // Programs have to look at the packets before the tables say anything about them.
        writes.iter().filter_map(Write::addr).for_each(|addr| self.filter.add(addr));
        let encoded = Encoded::new(writes);
        if let Some(table) = writes.first().and_then(Table::of) {
            let written = &mut self.written[table as usize];
            if written.len() < WRITTEN {
                written.extend_from_slice(&encoded.keys);
            }
        }
        match writes.first() {
            None => Vec::new(),
            Some(Write::Backend(..)) => self.put(&self.backends, "BACKENDS", encoded),
            Some(Write::NoBackend(_)) => self.remove(&self.backends, "BACKENDS", encoded),
            Some(Write::Member(..)) => self.put(&self.members, "MEMBERS", encoded),
            Some(Write::NoMember(_)) => self.remove(&self.members, "MEMBERS", encoded),
            Some(Write::Turns(_)) => self.put(&self.turns, "TURNS", encoded),
            Some(Write::NoTurns(_)) => self.remove(&self.turns, "TURNS", encoded),
            Some(Write::Set(..)) => self.put(&self.sets, "SETS", encoded),
            Some(Write::NoSet(_)) => self.remove(&self.sets, "SETS", encoded),
            Some(Write::Frontend(..)) => self.put(&self.frontends, "FRONTENDS", encoded),
            Some(Write::NoFrontend(_)) => self.remove(&self.frontends, "FRONTENDS", encoded),
            Some(Write::Source(_)) => self.put(&self.sources, "SOURCES", encoded),
            Some(Write::NoSource(_)) => self.remove(&self.sources, "SOURCES", encoded),
            Some(Write::Address(..)) => self.put(&self.addresses, "ADDRESSES", encoded),
            Some(Write::NoAddress(_)) => self.remove(&self.addresses, "ADDRESSES", encoded),
            Some(Write::Device(..)) => self.put(&self.devices, "DEVICES", encoded),
            Some(Write::NoDevice(_)) => self.remove(&self.devices, "DEVICES", encoded),
            Some(Write::Cidr(..)) => self.put(&self.cidrs, "CIDRS", encoded),
            Some(Write::NoCidr(_)) => self.remove(&self.cidrs, "CIDRS", encoded),
            Some(Write::Node(_)) => self.put(&self.node, "NODE", encoded),
            Some(Write::Known(_)) => Vec::new(),
            Some(Write::Slots(..)) => {
                self.fill(writes);
                Vec::new()
            }
        }
    }

    fn fill(&self, writes: &[Write]) {
        for write in writes {
            if let Write::Slots(first, slots) = write {
                let at = *first as usize * abi::SLOTS_PER_CHUNK as usize;
                self.slots.store(at, slots.iter().map(|id| id.get()));
            }
        }
    }
}

impl Store for Maps {
    fn write(&mut self, writes: &[Write]) -> Vec<(usize, Cause)> {
        let (mut failed, mut done) = (Vec::new(), 0);
        for run in writes.chunk_by(|a, b| discriminant(a) == discriminant(b)) {
            failed.extend(self.run(run).into_iter().map(|(at, cause)| (done + at, cause)));
            done += run.len();
        }
        failed
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wait_until(&mut self, at: Duration) {
        thread::sleep(at.saturating_sub(self.now()));
    }
}

/// Keys and values of writes, side by side.
struct Encoded {
    keys: Vec<u8>,
    values: Vec<u8>,
    count: usize,
}

impl Encoded {
    fn new(writes: &[Write]) -> Self {
        let mut encoded = Self { keys: Vec::new(), values: Vec::new(), count: writes.len() };
        for write in writes {
            encoded.push(write);
        }
        encoded
    }

    fn push(&mut self, write: &Write) {
        match write {
            Write::Backend(id, value) => self.element(id, value),
            Write::Member(key, value) => self.element(key, value),
            Write::Turns(id) => self.element(id, &0_u64),
            Write::Set(id, value) => self.element(id, value),
            Write::Frontend(key, value) => self.element(key, value),
            Write::Source(key) => self.element(key, &1_u8),
            Write::Address(addr, says) => self.element(addr, says),
            Write::Device(device, value) => self.element(&device.0, value),
            Write::NoDevice(device) => self.keys.extend_from_slice(device.0.bytes()),
            Write::Cidr(key, family) => self.element(key, family),
            Write::NoSource(key) => self.keys.extend_from_slice(key.bytes()),
            Write::NoAddress(addr) => self.keys.extend_from_slice(addr.bytes()),
            Write::Node(value) => self.element(&abi::NODE_KEY, &**value),
            Write::NoBackend(id) | Write::NoTurns(id) | Write::NoSet(id) => self.keys.extend_from_slice(id.bytes()),
            Write::NoMember(key) => self.keys.extend_from_slice(key.bytes()),
            Write::NoFrontend(key) => self.keys.extend_from_slice(key.bytes()),
            Write::NoCidr(key) => self.keys.extend_from_slice(key.bytes()),
            Write::Slots(..) | Write::Known(_) => {}
        }
    }

    fn element(&mut self, key: &impl Pod, value: &impl Pod) {
        self.keys.extend_from_slice(key.bytes());
        self.values.extend_from_slice(value.bytes());
    }
}

/// Calls `batch` with the first element that is left, until none is. An element that fails is skipped.
fn each(
    elements: &Encoded,
    batch: impl Fn(usize) -> Result<(), sys::Stopped>,
    judge: impl Fn(io::Error) -> Option<Cause>,
) -> Vec<(usize, Cause)> {
    let (mut failed, mut from) = (Vec::new(), 0);
    while from < elements.count {
        let Err(stopped) = batch(from) else { break };
        let at = from + stopped.done;
        failed.extend(judge(stopped.cause).map(|cause| (at, cause)));
        from = at + 1;
    }
    failed
}

fn cause(name: &'static str, what: &'static str, error: io::Error) -> Cause {
    let kind = match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOMEM | libc::ENOSPC) => ErrorKind::Capacity,
        Some(libc::EPERM | libc::EACCES) => ErrorKind::Permission,
        _ => ErrorKind::System,
    };
    Cause::new(kind, format!("{what} map {name} failed: {error}"))
}

fn elements<K: Pod, V: Pod>(map: &RawMap, name: &'static str) -> Result<Vec<(K, V)>, EbpfError> {
    let page = map.dump().map_err(reading(name))?;
    Ok(page.iter().filter_map(|(key, value)| K::from_bytes(key).zip(V::from_bytes(value))).collect())
}

/// One element of `map`.
pub(crate) fn one<V: Pod>(map: &RawMap, name: &'static str, key: &impl Pod) -> Result<Option<V>, EbpfError> {
    Ok(map.lookup(key.bytes()).map_err(reading(name))?.as_deref().and_then(V::from_bytes))
}

pub(crate) fn reading(name: &'static str) -> impl FnOnce(io::Error) -> EbpfError {
    move |source| EbpfError::Map { name, what: "reading", source }
}

pub(crate) fn open(path: &Path) -> Result<RawMap, EbpfError> {
    let failed = |source| EbpfError::Pin { path: path.into(), what: "opening", source };
    sys::open_pin(path).and_then(RawMap::new).map_err(failed)
}

/// Bytes of kernel memory that a map takes, as `/proc` says.
pub(crate) fn memory(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    Ok(text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok()))
}
