//! The kernel as tests see it: maps that can be full, packets and sockets.

use core::cell::{Cell, RefCell};
use std::{
    boxed::Box,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    rc::Rc,
    vec::Vec,
};

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use lb_datapath_ebpf_abi::{
    Addr, AffinityKey, AffinityValue, BackendValue, CT_CUT, CtKey, CtValue, Errno, Facts, FragmentKey, FragmentValue,
    FrontendKey, FrontendValue, LOOKUP_HASH, MEMBER_DRAINS, MEMBER_TAKES, NodeValue, Pod, Port, PrefixBytes,
    ROLE_ACTIVE, Reason, SIDE_SEEN, SLOTS_PER_CHUNK, SlotChunk, SockCell, SockFlow, SockKey, SockPeer, SockSettings,
    TARGET_SET, from_octets, map_v4, octets,
};

use crate::{
    maps::{Change, Maps},
    protocol::{ICMP, ICMP_V6, SCTP, TCP, UDP},
    sock::{self, Bound, Closing, Failing, Hook, Sock, SockMaps},
    tc::{
        checksum::{finish, sum},
        client::mask,
        flow::{self, FlowMaps, Source, Table},
        header::Piece,
        limit::{Answer, Limits},
        packet::{Head, Packet},
        quote::Quote,
        skb::{RECOMPUTE, Refused, Skb, Unrouted},
        unfold::{Kind, unfold},
        work::Work,
    },
};

/// The frontend of most tests.
pub(crate) const VIP: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 96, 0, 1));
/// Its like for IPv6.
pub(crate) const VIP_V6: IpAddr = IpAddr::V6(core::net::Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1));
/// The node's address.
pub(crate) const NODE: [u8; 4] = [192, 0, 2, 1];
/// Verdict of a packet that went to its next hop.
pub(crate) const REDIRECTED: i32 = 7;
/// Verdict of a packet that went back to where it came from.
pub(crate) const SENT_BACK: i32 = 77;

/// Verdict of a packet that the node receives through the device that it would have left through.
pub(crate) const TURNED_IN: i32 = 78;
/// Verdict of an answer that the node receives through the device that leads to its source.
pub(crate) const RECEIVED: i32 = 79;

/// The cookie of the node's network namespace, in which sockets are made.
pub(crate) const HOST_NETNS: u64 = 5;
/// The node's IPv6 address.
pub(crate) const NODE_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const FIRST_PORT: u16 = 1024;

pub(crate) fn addr_of(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => map_v4(ip.octets()),
        IpAddr::V6(ip) => from_octets(ip.octets()),
    }
}

/// Where backend `id` listens.
pub(crate) fn backend(id: u32) -> (Addr, Port) {
    (map_v4([10, 244, 0, id as u8]), Port::new(8080))
}

/// The address of backend `id` of an IPv6 frontend.
pub(crate) fn backend_v6(id: u32) -> Addr {
    from_octets([0xfd, 0, 2, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, id as u8])
}

pub(crate) fn frontend_key(vip: IpAddr) -> FrontendKey {
    key_of(vip, TCP)
}

fn key_of(vip: IpAddr, protocol: u8) -> FrontendKey {
    FrontendKey { addr: addr_of(vip), port: Port::new(80), protocol, scope: 0, pad: 0 }
}

/// A node with an address of each family.
pub(crate) fn node() -> NodeValue {
    NodeValue {
        snat_v4: map_v4(NODE),
        snat_v6: from_octets(NODE_V6),
        has_v4: 1,
        has_v6: 1,
        nat_first: FIRST_PORT,
        nat_ports: 4,
        many_v4: 0,
        many_v6: 0,
        facts: Facts {
            name: [0; Facts::NAME],
            name_len: 0,
            has_name: 0,
            ips_len: 0,
            cidrs_len: 0,
            ips: [[0; 4]; Facts::IPS],
            cidrs: [PrefixBytes { addr: [0; 4], bits: 0 }; Facts::CIDRS],
        },
    }
}

type Flows = HashMap<CtKey, Rc<Cell<CtValue>>>;
type Once = Box<dyn FnOnce(&Fake)>;

/// The maps.
pub(crate) struct Fake {
    pub(crate) role: Cell<u32>,
    pub(crate) frontends: RefCell<HashMap<FrontendKey, FrontendValue>>,
    pub(crate) backends: RefCell<HashMap<u32, BackendValue>>,
    pub(crate) slots: RefCell<HashMap<u32, SlotChunk>>,
    /// Pairs of set and backend.
    pub(crate) members: RefCell<HashMap<(u32, u32), u8>>,
    pub(crate) turns: RefCell<HashMap<u32, u64>>,
    /// Connections by backend.
    pub(crate) loads: RefCell<HashMap<u32, i64>>,
    /// Backends by the cookies of sockets that count.
    pub(crate) sock_counts: RefCell<HashMap<u64, u32>>,
    pub(crate) affinity: RefCell<HashMap<AffinityKey, AffinityValue>>,
    /// `CT`.
    pub(crate) flows: RefCell<Flows>,
    /// `CT_LIVE`.
    pub(crate) live: RefCell<Flows>,
    /// How many entries `CT_LIVE` holds.
    pub(crate) live_room: Cell<usize>,
    pub(crate) limits: Cell<Limits>,
    pub(crate) fragments: RefCell<HashMap<FragmentKey, FragmentValue>>,
    pub(crate) peers: RefCell<HashMap<SockKey, SockPeer>>,
    /// `SOCK_CELLS`, as far as they were taken, by their index. `None`: there are none.
    pub(crate) cells: RefCell<Option<HashMap<u32, SockCell>>>,
    pub(crate) sock_flows: RefCell<HashMap<SockKey, Rc<Cell<SockFlow>>>>,
    pub(crate) settings: Cell<SockSettings>,
    /// Cookies of network namespaces whose sockets are left alone.
    pub(crate) skips: RefCell<HashSet<u64>>,
    pub(crate) node: Cell<Option<NodeValue>>,
    /// Number of ports of translated sources.
    pub(crate) ports: Cell<u16>,
    pub(crate) pods: RefCell<Vec<(Addr, u8)>>,
    /// What is behind the device of every packet.
    pub(crate) device: Cell<u8>,
    pub(crate) addresses: RefCell<HashMap<Addr, u8>>,
    /// Prefixes of sources: the frontend's id, the address and its bits.
    pub(crate) sources: RefCell<Vec<(u32, Addr, u32)>>,
    /// Addresses whose bits are not set in `FILTER`.
    pub(crate) strangers: RefCell<Vec<Addr>>,
    pub(crate) counts: RefCell<BTreeMap<Reason, u64>>,
    pub(crate) now: Cell<u64>,
    /// Every insertion fails.
    pub(crate) full: Cell<bool>,
    /// How many insertions into `CT` still work.
    pub(crate) room: Cell<Option<u32>>,
    pub(crate) frontend_reads: Cell<u32>,
    /// Random numbers that were asked for.
    pub(crate) rolls: Cell<u32>,
    dice: RefCell<VecDeque<u32>>,
    hook: RefCell<Option<Once>>,
}

impl Fake {
    /// A node without services.
    pub(crate) fn new() -> Self {
        Self {
            role: Cell::new(ROLE_ACTIVE),
            frontends: RefCell::default(),
            backends: RefCell::default(),
            slots: RefCell::default(),
            members: RefCell::default(),
            turns: RefCell::default(),
            loads: RefCell::default(),
            sock_counts: RefCell::default(),
            affinity: RefCell::default(),
            flows: RefCell::default(),
            live: RefCell::default(),
            live_room: Cell::new(usize::MAX),
            limits: Cell::default(),
            fragments: RefCell::default(),
            peers: RefCell::default(),
            cells: RefCell::default(),
            sock_flows: RefCell::default(),
            settings: Cell::new(SockSettings::NONE),
            skips: RefCell::default(),
            node: Cell::new(Some(node())),
            ports: Cell::new(node().nat_ports),
            pods: RefCell::default(),
            device: Cell::new(0),
            addresses: RefCell::default(),
            sources: RefCell::default(),
            strangers: RefCell::default(),
            counts: RefCell::default(),
            now: Cell::new(0),
            full: Cell::new(false),
            room: Cell::new(None),
            frontend_reads: Cell::new(0),
            rolls: Cell::new(0),
            dice: RefCell::default(),
            hook: RefCell::default(),
        }
    }

    /// [`VIP`] over TCP and UDP, with these backends in set 1.
    pub(crate) fn serving(lookup: u8, backends: &[u32]) -> Self {
        Self::serving_at(VIP, lookup, backends)
    }

    pub(crate) fn serving_at(vip: IpAddr, lookup: u8, backends: &[u32]) -> Self {
        let fake = Self::new();
        fake.add_set(1, backends);
        for backend in fake.backends.borrow_mut().iter_mut().filter(|_| vip.is_ipv6()) {
            backend.1.addr = backend_v6(*backend.0);
        }
        let frontend = FrontendValue {
            id: 1,
            set: 0,
            first: 0,
            slots: 0,
            affinity_ns: 0,
            affinity: 0,
            prefix_v4: 32,
            prefix_v6: 128,
            lookup,
            target: TARGET_SET,
            flags: 0,
            leaves_sockets: 0,
            pad: 0,
        };
        fake.frontends.borrow_mut().extend([TCP, UDP].map(|protocol| (key_of(vip, protocol), frontend)));
        fake.point(vip, 1, backends.len() as u32);
        fake
    }

    /// The same for SCTP, whose backends have the port of the frontend.
    pub(crate) fn serving_sctp(vip: IpAddr, backends: &[u32]) -> Self {
        let fake = Self::serving_at(vip, LOOKUP_HASH, backends);
        fake.backends.borrow_mut().values_mut().for_each(|backend| backend.port = Port::new(80));
        let value = fake.frontend_at(vip);
        fake.frontends.borrow_mut().insert(key_of(vip, SCTP), value);
        fake
    }

    /// Changes the frontend of SCTP.
    pub(crate) fn change_sctp(&self, vip: IpAddr, change: impl Fn(&mut FrontendValue)) {
        change(self.frontends.borrow_mut().get_mut(&key_of(vip, SCTP)).unwrap());
    }

    /// Adds a set with these backends, one slot each.
    pub(crate) fn add_set(&self, set: u32, backends: &[u32]) {
        for &id in backends {
            let (addr, port) = backend(id);
            let value = BackendValue { addr, port, protocol: TCP, local: 1, host: 0, pad: [0; 3] };
            self.backends.borrow_mut().entry(id).or_insert(value);
        }
        for (index, ids) in (first(set)..).zip(backends.chunks(SLOTS_PER_CHUNK as usize)) {
            let chunk = core::array::from_fn(|slot| ids.get(slot).copied().unwrap_or(0));
            self.slots.borrow_mut().insert(index, chunk);
        }
        self.turns.borrow_mut().insert(set, 0);
    }

    /// Moves a frontend to a set with this many slots.
    pub(crate) fn point(&self, vip: IpAddr, set: u32, slots: u32) {
        self.change_frontend(vip, |frontend| {
            (frontend.set, frontend.first, frontend.slots) = (set, first(set), slots);
        });
    }

    pub(crate) fn change_frontend<T>(&self, vip: IpAddr, change: impl Fn(&mut FrontendValue) -> T) {
        for protocol in [TCP, UDP] {
            change(self.frontends.borrow_mut().get_mut(&key_of(vip, protocol)).unwrap());
        }
    }

    /// Gives the node these addresses.
    pub(crate) fn have_ips(&self, ips: &[Addr]) {
        let mut node = node();
        node.facts.ips[..ips.len()].copy_from_slice(ips);
        node.facts.ips_len = ips.len() as u32;
        self.node.set(Some(node));
    }

    /// Serves another address like [`VIP`].
    pub(crate) fn alias(&self, vip: IpAddr) {
        for protocol in [TCP, UDP] {
            let value = FrontendValue { id: 2, ..self.frontends.borrow()[&key_of(VIP, protocol)] };
            self.frontends.borrow_mut().insert(key_of(vip, protocol), value);
        }
    }

    pub(crate) fn frontend_at(&self, vip: IpAddr) -> FrontendValue {
        self.frontends.borrow()[&frontend_key(vip)]
    }

    /// Lists the members of a set.
    pub(crate) fn list(&self, set: u32, backends: &[u32]) {
        self.members.borrow_mut().extend(backends.iter().map(|&backend| ((set, backend), MEMBER_TAKES)));
    }

    /// Lists a backend of a set that takes no new flows.
    pub(crate) fn drain(&self, set: u32, backend: u32) {
        self.members.borrow_mut().insert((set, backend), MEMBER_DRAINS);
    }

    /// The next random numbers.
    pub(crate) fn dice(&self, numbers: impl IntoIterator<Item = u32>) {
        self.dice.borrow_mut().extend(numbers);
    }

    /// Runs `change` after the next time that a frontend is read.
    pub(crate) fn after_frontend_read(&self, change: impl FnOnce(&Self) + 'static) {
        *self.hook.borrow_mut() = Some(Box::new(change));
    }

    /// The destination of the packet has frontends at other ports only, which say this of its other ports.
    pub(crate) fn only_other_ports(&self, skb: &FakeSkb, flags: u8) {
        self.addresses.borrow_mut().insert(skb.packet().key.dst, flags);
        self.frontends.borrow_mut().clear();
    }

    /// Leaves no refusal to be answered now.
    pub(crate) fn use_up_answers(&self) {
        let mut limits = Limits::default();
        while limits.allow(Answer::Refusal, self.now.get()) {}
        self.limits.set(limits);
    }

    /// Assigns every port of the node's address, to every backend, to living flows of another client.
    pub(crate) fn take_every_port(&self) {
        let other = map_v4([192, 0, 2, 99]);
        for id in self.backends.borrow().keys() {
            let (addr, port) = backend(*id);
            for number in FIRST_PORT..FIRST_PORT + self.ports.get() {
                let (dst, dport) = (map_v4(NODE), Port::new(number));
                let key = CtKey { src: addr, sport: port, dst, dport, protocol: TCP, pad: [0; 3] };
                let sides = (SIDE_SEEN, SIDE_SEEN);
                let value =
                    CtValue { dst: other, last_ns: self.now.get(), client: sides.0, server: sides.1, ..CtValue::EMPTY };
                self.flows.borrow_mut().insert(key, Rc::new(Cell::new(value)));
            }
        }
    }

    /// Ends every flow, as user space does.
    pub(crate) fn cut_all(&self) {
        for table in [&self.flows, &self.live] {
            for entry in table.borrow().values() {
                entry.set(CtValue { flags: entry.get().flags | CT_CUT, ..entry.get() });
            }
        }
    }

    pub(crate) const fn table(&self, table: Table) -> &RefCell<Flows> {
        match table {
            Table::Live => &self.live,
            Table::Lru => &self.flows,
        }
    }

    fn has_room(&self) -> bool {
        match self.room.get() {
            _ if self.full.get() => false,
            None => true,
            Some(0) => false,
            Some(left) => {
                self.room.set(Some(left - 1));
                true
            }
        }
    }
}

/// Where the slots of a set begin.
fn first(set: u32) -> u32 {
    set * 100
}

impl Maps for &Fake {
    fn role(self) -> u32 {
        self.role.get()
    }

    fn frontend(self, key: &FrontendKey) -> Option<FrontendValue> {
        self.frontend_reads.set(self.frontend_reads.get() + 1);
        let found = self.frontends.borrow().get(key).copied();
        if let Some(hook) = self.hook.take() {
            hook(self);
        }
        found
    }

    fn knows(self, addr: Addr) -> bool {
        !self.strangers.borrow().contains(&addr)
    }

    fn address(self, addr: Addr) -> Option<u8> {
        self.addresses.borrow().get(&addr).copied()
    }

    fn has_source(self, frontend: u32, source: Addr) -> bool {
        let is_in = |addr, bits| mask(source, bits) == mask(addr, bits);
        self.sources.borrow().iter().any(|&(id, addr, bits)| id == frontend && is_in(addr, bits))
    }

    fn backend(self, id: u32) -> Option<BackendValue> {
        self.backends.borrow().get(&id).copied()
    }

    fn slots(self, index: u32) -> Option<SlotChunk> {
        self.slots.borrow().get(&index).copied()
    }

    fn takes_flows(self, set: u32, backend: u32) -> bool {
        self.members.borrow().get(&(set, backend)) == Some(&MEMBER_TAKES)
    }

    fn keeps_flows(self, set: u32, backend: u32) -> bool {
        self.members.borrow().contains_key(&(set, backend))
    }

    fn next_turn(self, set: u32) -> Option<u64> {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.get_mut(&set)?;
        *turn += 1;
        Some(*turn - 1)
    }

    fn load(self, backend: u32) -> u64 {
        self.loads.borrow().get(&backend).map_or(0, |load| u64::try_from(*load).unwrap_or(0))
    }

    fn change_load(self, backend: u32, change: Change) {
        *self.loads.borrow_mut().entry(backend).or_default() += match change {
            Change::Begins => 1,
            Change::Ends => -1,
        };
    }

    fn affinity(self, key: &AffinityKey) -> Option<AffinityValue> {
        self.affinity.borrow().get(key).copied()
    }

    fn remember(self, key: &AffinityKey, record: &AffinityValue) {
        if !self.full.get() {
            self.affinity.borrow_mut().insert(*key, *record);
        }
    }

    fn is_node(self, addr: Addr) -> bool {
        self.node.get().is_some_and(|node| node.facts.has_ip(addr))
    }

    fn count(self, reason: Reason) {
        *self.counts.borrow_mut().entry(reason).or_default() += 1;
    }

    fn now(self) -> u64 {
        self.now.get()
    }

    fn random(self) -> u32 {
        self.rolls.set(self.rolls.get() + 1);
        self.dice.borrow_mut().pop_front().unwrap_or_else(|| self.rolls.get().wrapping_mul(0x9e37_79b9))
    }
}

impl FlowMaps for &Fake {
    type Entry = Rc<Cell<CtValue>>;

    fn work<'a>(self) -> Option<&'a mut Work> {
        let packet = Packet {
            key: CtValue::EMPTY.mirror(0),
            is_v4: false,
            ttl: 0,
            flags: 0xff,
            is_later: true,
            is_own: false,
            start: 0,
            transport: 0,
            len: 0,
        };
        let datagram = FragmentKey { src: [1; 4], dst: [1; 4], id: 1, protocol: 1, pad: [0; 3] };
        let quote = Quote { sender: [1; 4], icmp: 1, ip: 1, transport: 1, end: 1 };
        // What the packet before has left.
        let to = CtValue {
            last_ns: u64::MAX,
            src: [9; 4],
            dst: [9; 4],
            sport: Port(9),
            dport: Port(9),
            backend: 9,
            set: 9,
            flags: 0xff,
            client: 0xff,
            server: 0xff,
            ..CtValue::EMPTY
        };
        let limits = self.limits.get();
        Some(Box::leak(Box::new(Work { packet, piece: Piece::First, datagram, to, quote, limits })))
    }

    fn flow(self, table: Table, key: &CtKey) -> Option<Self::Entry> {
        self.table(table).borrow().get(key).cloned()
    }

    fn add_flow(self, table: Table, key: &CtKey, value: &CtValue) -> bool {
        !self.table(table).borrow().contains_key(key) && FlowMaps::put_flow(self, table, key, value)
    }

    fn put_flow(self, table: Table, key: &CtKey, value: &CtValue) -> bool {
        let room = match table {
            Table::Lru => self.has_room(),
            Table::Live => self.live.borrow().len() < self.live_room.get() || self.live.borrow().contains_key(key),
        };
        if room {
            self.table(table).borrow_mut().insert(*key, Rc::new(Cell::new(*value)));
        }
        room
    }

    fn remove_flow(self, table: Table, key: &CtKey) {
        self.table(table).borrow_mut().remove(key);
    }

    fn fragment(self, key: &FragmentKey) -> Option<FragmentValue> {
        self.fragments.borrow().get(key).copied()
    }

    fn put_fragment(self, key: &FragmentKey, value: &FragmentValue) {
        self.fragments.borrow_mut().insert(*key, *value);
    }

    fn source(self, is_v4: bool) -> Option<Source> {
        let source = Source::of(&self.node.get()?, is_v4)?;
        Some(Source { ports: self.ports.get(), ..source })
    }

    fn kind_of_device(self, _: u32) -> u8 {
        self.device.get()
    }

    fn pod_family(self, addr: Addr) -> Option<u8> {
        self.pods.borrow().iter().find(|(pod, _)| *pod == addr).map(|(_, family)| *family)
    }
}

impl flow::Entry for Rc<Cell<CtValue>> {
    fn value(&self) -> CtValue {
        self.get()
    }

    fn is_reply_to(&self, key: &CtKey) -> bool {
        let CtValue { src, dst, sport, dport, .. } = self.get();
        (src, sport, dst, dport) == (key.dst, key.dport, key.src, key.sport)
    }

    fn touch(&self, now: u64) {
        self.set(CtValue { last_ns: now, ..self.get() });
    }

    fn add_flags(&self, flags: u8) {
        self.set(CtValue { flags: self.get().flags | flags, ..self.get() });
    }

    fn add_client(&self, sent: u8) {
        self.set(CtValue { client: self.get().client | sent, ..self.get() });
    }

    fn add_server(&self, sent: u8) {
        self.set(CtValue { server: self.get().server | sent, ..self.get() });
    }
}

impl SockMaps for &Fake {
    type Entry = Rc<Cell<SockFlow>>;
    type Cell = (Self, u32);

    fn settings(self) -> SockSettings {
        self.settings.get()
    }

    fn skips(self, netns: u64) -> bool {
        self.skips.borrow().contains(&netns)
    }

    fn node_ip(self, index: u32) -> Option<Addr> {
        let facts = self.node.get()?.facts;
        facts.ips[..facts.ips_len as usize].get(index as usize).copied()
    }

    fn cell(self, cookie: u64) -> Option<Self::Cell> {
        self.cells.borrow().is_some().then(|| (self, SockCell::index(cookie)))
    }

    fn peer(self, key: &SockKey) -> Option<SockPeer> {
        self.peers.borrow().get(key).copied()
    }

    fn put_peer(self, key: &SockKey, peer: &SockPeer) {
        if !self.full.get() {
            self.peers.borrow_mut().insert(*key, *peer);
        }
    }

    fn remove_peer(self, key: &SockKey) {
        self.peers.borrow_mut().remove(key);
    }

    fn counted(self, cookie: u64) -> Option<u32> {
        self.sock_counts.borrow().get(&cookie).copied()
    }

    fn put_counted(self, cookie: u64, backend: u32) -> bool {
        if !self.full.get() {
            self.sock_counts.borrow_mut().insert(cookie, backend);
        }
        !self.full.get()
    }

    fn remove_counted(self, cookie: u64) {
        self.sock_counts.borrow_mut().remove(&cookie);
    }

    fn flow(self, key: &SockKey) -> Option<Self::Entry> {
        self.sock_flows.borrow().get(key).cloned()
    }

    fn remove_flow(self, key: &SockKey) {
        self.sock_flows.borrow_mut().remove(key);
    }

    fn put_flow(self, key: &SockKey, flow: &SockFlow) {
        if !self.full.get() {
            self.sock_flows.borrow_mut().insert(*key, Rc::new(Cell::new(*flow)));
        }
    }
}

impl sock::Cell for (&Fake, u32) {
    fn take(self, cookie: u64) -> bool {
        let mut cells = self.0.cells.borrow_mut();
        let cell = cells.as_mut().unwrap().entry(self.1).or_insert(SockCell::FREE);
        if cell.key.cookie == 0 {
            cell.key.cookie = cookie;
        }
        cell.key.cookie == cookie
    }

    fn give_up(self, cookie: u64) -> bool {
        let mut cells = self.0.cells.borrow_mut();
        let cells = cells.as_mut().unwrap();
        let is_owner = cells.get(&self.1).is_some_and(|cell| cell.key.cookie == cookie);
        is_owner && cells.remove(&self.1).is_some()
    }

    fn peer(self, key: &SockKey) -> Option<SockPeer> {
        let cells = self.0.cells.borrow();
        cells.as_ref().unwrap().get(&self.1).filter(|cell| cell.key == *key).map(|cell| cell.peer)
    }

    fn put_peer(self, key: &SockKey, peer: &SockPeer) {
        let cell = SockCell { key: *key, peer: *peer, pad: 0 };
        self.0.cells.borrow_mut().as_mut().unwrap().insert(self.1, cell);
    }
}

impl sock::Entry for Rc<Cell<SockFlow>> {
    fn value(&self) -> SockFlow {
        self.get()
    }

    fn touch(&self, now: u64, set: u32) {
        self.set(SockFlow { last_ns: now, set, ..self.get() });
    }
}

/// A socket that states a peer.
pub(crate) struct FakeSock {
    hook: Hook,
    pub(crate) kind: Cell<(u32, u32)>,
    pub(crate) cookie: Cell<u64>,
    pub(crate) peer: Cell<(Addr, Port)>,
    pub(crate) netns: Cell<u64>,
    /// What an earlier `connect` left.
    pub(crate) connected: Cell<Option<(Addr, Port)>>,
    pub(crate) failed: Cell<Option<Errno>>,
}

impl FakeSock {
    /// A TCP socket that connects to port 80 of `vip`.
    pub(crate) fn new(hook: Hook, vip: IpAddr) -> Self {
        Self {
            hook,
            kind: Cell::new((1, TCP.into())),
            cookie: Cell::new(17),
            peer: Cell::new((addr_of(vip), Port::new(80))),
            netns: Cell::new(HOST_NETNS),
            connected: Cell::new(None),
            failed: Cell::new(None),
        }
    }
}

impl Closing for &FakeSock {
    fn kind(self) -> (u32, u32) {
        self.kind.get()
    }

    fn cookie(self) -> u64 {
        self.cookie.get()
    }

    fn connected_to(self) -> Option<(Addr, Port)> {
        self.connected.get()
    }
}

impl Sock for &FakeSock {
    fn hook(self) -> Hook {
        self.hook
    }

    fn kind(self) -> (u32, u32) {
        self.kind.get()
    }

    fn cookie(self) -> u64 {
        self.cookie.get()
    }

    fn netns_cookie(self) -> u64 {
        self.netns.get()
    }

    fn peer(self) -> (Addr, Port) {
        self.peer.get()
    }

    fn connected_to(self) -> Option<(Addr, Port)> {
        self.connected.get()
    }

    fn set_peer_v4(self, addr: [u8; 4], port: Port) {
        assert_eq!(self.hook, Hook::V4);
        self.peer.set((map_v4(addr), port));
    }

    fn set_peer_v6(self, addr: Addr, port: Port) {
        assert_eq!(self.hook, Hook::V6);
        self.peer.set((addr, port));
    }
}

impl Failing for &FakeSock {
    fn fail(self, errno: Errno) {
        self.failed.set(Some(errno));
    }
}

/// Bound to what is its peer in other hooks.
impl Bound for &FakeSock {
    fn kind(self) -> (u32, u32) {
        self.kind.get()
    }

    fn netns_cookie(self) -> u64 {
        self.netns.get()
    }

    fn bound_to(self) -> (Addr, Port) {
        self.peer.get()
    }
}

/// A packet of client 192.0.2.2 or 2001:db8::2 to [`VIP`] or [`VIP_V6`], from port 40000 to port 80.
pub(crate) struct FakeSkb {
    bytes: RefCell<Vec<u8>>,
    pub(crate) kind: Cell<(u32, u16)>,
    /// Bytes of payload in each segment.
    pub(crate) segment: Cell<u32>,
    /// What the routing table says.
    pub(crate) routes: Cell<Result<(), Unrouted>>,
    /// No store works.
    pub(crate) refuse_stores: Cell<bool>,
    /// The address that the routing table prefers for what leaves towards the backend.
    pub(crate) preferred: Cell<Option<Addr>>,
    /// A UDP socket of the node is connected to where the packet comes from.
    pub(crate) socket: Cell<bool>,
    pub(crate) came_in: Cell<bool>,
    pub(crate) tagged: Cell<bool>,
    /// A kernel older than 6.16, without `BPF_F_IPV6`.
    pub(crate) old_kernel: Cell<bool>,
    /// The sum of the whole IP packet, as the kernel knows it (`CHECKSUM_COMPLETE`).
    whole: Cell<u32>,
    /// Bytes before the IP header.
    start: Cell<usize>,
}

const IP: usize = 14;
/// Hardware addresses.
const TO: [u8; 6] = [2, 0x11, 0x12, 0x13, 0x14, 0x15];
const FROM: [u8; 6] = [2, 0x21, 0x22, 0x23, 0x24, 0x25];

impl FakeSkb {
    pub(crate) fn tcp_v4(flags: u8) -> Self {
        Self::v4(TCP, &tcp(flags))
    }

    pub(crate) fn udp_v4() -> Self {
        Self::v4(UDP, &udp(0))
    }

    pub(crate) fn tcp_v6(flags: u8) -> Self {
        Self::v6(TCP, &tcp(flags))
    }

    pub(crate) fn udp_v6() -> Self {
        Self::v6(UDP, &udp(0))
    }

    /// An SCTP packet whose first chunk is of this type, with 16 bytes behind that chunk's header.
    pub(crate) fn sctp_v4(chunk: u8) -> Self {
        Self::v4(SCTP, &sctp(chunk))
    }

    /// The same over IPv6.
    pub(crate) fn sctp_v6(chunk: u8) -> Self {
        Self::v6(SCTP, &sctp(chunk))
    }

    /// A datagram in two fragments, the first of which has 16 bytes of payload and the second `more`.
    pub(crate) fn fragments_v4(more: usize) -> [Self; 2] {
        Self::split_v4(&Self::v4(UDP, &udp(16 + more)).bytes())
    }

    /// An echo request from the client to the frontend, with this many bytes of payload.
    pub(crate) fn ping_v4(payload: usize) -> Self {
        let len = 28 + payload as u8;
        let ip = [0x45, 0, 0, len, 0, 0, 0x40, 0, 64, ICMP, 0, 0, 192, 0, 2, 2, 10, 96, 0, 1];
        Self::icmp(0x0800, &ip, &ping(8, payload))
    }

    /// The same over IPv6.
    pub(crate) fn ping_v6(payload: usize) -> Self {
        let ip = &Self::v6(UDP, &udp(payload)).bytes()[IP..IP + 40];
        let mut ip = ip.to_vec();
        ip[6] = ICMP_V6;
        Self::icmp(0x86dd, &ip, &ping(128, payload))
    }

    /// The packet in two fragments, the first of which has 24 bytes behind its IPv4 header.
    pub(crate) fn split_v4(whole: &[u8]) -> [Self; 2] {
        let at = IP + 20;
        let piece = |flags: [u8; 2], payload: &[u8]| {
            let mut ip = whole[IP..at].to_vec();
            (ip[3], ip[4], ip[5]) = (20 + payload.len() as u8, 0x12, 0x34);
            ip[6..8].copy_from_slice(&flags);
            Self::piece(0x0800, &ip, payload)
        };
        [piece([0x20, 0], &whole[at..at + 24]), piece([0, 3], &whole[at + 24..])]
    }

    /// The same over IPv6.
    pub(crate) fn fragments_v6(more: usize) -> [Self; 2] {
        Self::split_v6(&Self::v6(UDP, &udp(16 + more)).bytes())
    }

    /// The same as [`split_v4`](Self::split_v4).
    pub(crate) fn split_v6(whole: &[u8]) -> [Self; 2] {
        let at = IP + 40;
        let protocol = whole[IP + 6];
        let piece = |last: u8, payload: &[u8]| {
            let mut ip = whole[IP..at].to_vec();
            (ip[5], ip[6]) = (8 + payload.len() as u8, 44);
            ip.extend([protocol, 0, 0, last, 0x12, 0x34, 0x56, 0x78]);
            Self::piece(0x86dd, &ip, payload)
        };
        [piece(1, &whole[at..at + 24]), piece(24, &whole[at + 24..])]
    }

    /// The ICMP error of this type about the packet, from `sender`, which quotes `quoted` bytes of it.
    pub(crate) fn error(&self, sender: Addr, kind: u8, quoted: usize) -> Self {
        let bytes = self.bytes();
        let quote = &bytes[IP..IP + quoted];
        let payload = [&[kind, 0, 0, 0, 0, 0, 0x05, 0x78], quote].concat();
        let is_v4 = bytes[12] == 0x08;
        let mut ip = if is_v4 { bytes[IP..IP + 20].to_vec() } else { bytes[IP..IP + 40].to_vec() };
        if is_v4 {
            ip.copy_within(12..16, 16);
            ip[12..16].copy_from_slice(&octets(sender)[12..]);
            (ip[0], ip[3], ip[6], ip[8], ip[9]) = (0x45, (20 + payload.len()) as u8, 0, 64, 1);
        } else {
            ip.copy_within(8..24, 24);
            ip[8..24].copy_from_slice(&octets(sender));
            (ip[5], ip[6], ip[7]) = (payload.len() as u8, 58, 64);
        }
        Self::icmp(if is_v4 { 0x0800 } else { 0x86dd }, &ip, &payload)
    }

    /// An ICMP message with its checksums.
    fn icmp(protocol: u16, ip: &[u8], message: &[u8]) -> Self {
        let skb = Self::piece(protocol, ip, message);
        let at = IP + ip.len();
        let check = finish(sum(&words(&skb.covered_by_icmp(at)))).to_ne_bytes();
        skb.bytes.borrow_mut()[at + 2..at + 4].copy_from_slice(&check);
        skb
    }

    /// What the checksum of the ICMP message at `at` covers.
    fn covered_by_icmp(&self, at: usize) -> Vec<u8> {
        let bytes = self.bytes();
        if bytes[12] == 0x08 {
            return bytes[at..].to_vec();
        }
        let len = (bytes.len() - at) as u8;
        [&bytes[IP + 8..IP + 40], &[0, 0, 0, len, 0, 0, 0, 58], &bytes[at..]].concat()
    }

    /// Every checksum of an error whose outer header has no options is right; returns the quote.
    pub(crate) fn assert_error(&self) -> Vec<u8> {
        let bytes = self.bytes();
        let at = if bytes[12] == 0x08 { IP + 20 } else { IP + 40 };
        assert_eq!(finish(sum(&words(&self.covered_by_icmp(at)))), 0, "ICMP");
        if bytes[12] == 0x08 {
            assert_eq!(finish(sum(&words(&bytes[IP..at]))), 0, "IPv4 header");
        }
        bytes[at + 8..].to_vec()
    }

    /// Source and destination in the IP header.
    pub(crate) fn addresses(&self) -> (Addr, Addr) {
        let head = Head::read(self, IP as u32).unwrap();
        (head.ip.src, head.ip.dst)
    }

    /// The datagram of two fragments that [`fragments_v4`](Self::fragments_v4) or its like made.
    pub(crate) fn join(first: &Self, second: &Self) -> Self {
        let (mut bytes, second) = (first.bytes(), second.bytes());
        let (at, protocol) = if bytes[12] == 0x08 { (IP + 20, 0x0800_u16) } else { (IP + 40, 0x86dd) };
        if protocol == 0x0800 {
            assert_eq!(bytes[IP + 12..at], second[IP + 12..at], "addresses");
            assert_eq!(finish(sum(&words(&second[IP..at]))), 0, "IPv4 header of the second fragment");
            bytes.extend(&second[at..]);
            (bytes[IP + 3], bytes[IP + 6]) = ((bytes.len() - IP) as u8, 0);
            bytes[IP + 10..IP + 12].fill(0);
            let check = finish(sum(&words(&bytes[IP..at]))).to_ne_bytes();
            bytes[IP + 10..IP + 12].copy_from_slice(&check);
        } else {
            assert_eq!(bytes[IP + 8..at], second[IP + 8..at], "addresses");
            let inner = bytes[at];
            bytes.drain(at..at + 8);
            bytes.extend(&second[at + 8..]);
            (bytes[IP + 5], bytes[IP + 6]) = ((bytes.len() - at) as u8, inner);
        }
        Self::of(protocol, bytes)
    }

    fn v4(protocol: u8, transport: &[u8]) -> Self {
        let len = 20 + transport.len() as u8;
        let ip = [0x45, 0, 0, len, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 2, 10, 96, 0, 1];
        Self::new(0x0800, &ip, transport)
    }

    fn v6(protocol: u8, transport: &[u8]) -> Self {
        let mut ip = [0; 40];
        (ip[0], ip[5], ip[6], ip[7]) = (0x60, transport.len() as u8, protocol, 64);
        ip[8..24].copy_from_slice(&NODE_V6);
        ip[23] = 2;
        ip[24..].copy_from_slice(&octets(addr_of(VIP_V6)));
        Self::new(0x86dd, &ip, transport)
    }

    fn new(protocol: u16, ip: &[u8], transport: &[u8]) -> Self {
        let skb = Self::of(protocol, [&ethernet(protocol)[..], ip, transport].concat());
        skb.fill_checksums();
        skb
    }

    /// A fragment, whose transport checksum is the datagram's.
    fn piece(protocol: u16, ip: &[u8], payload: &[u8]) -> Self {
        let skb = Self::of(protocol, [&ethernet(protocol)[..], ip, payload].concat());
        if protocol == 0x0800 {
            skb.fill_header_checksum(IP + 20);
        }
        skb
    }

    /// These bytes, as they are.
    fn of(protocol: u16, bytes: Vec<u8>) -> Self {
        Self {
            bytes: RefCell::new(bytes),
            kind: Cell::new((0, protocol.to_be())),
            segment: Cell::new(0),
            routes: Cell::new(Ok(())),
            refuse_stores: Cell::new(false),
            preferred: Cell::new(None),
            socket: Cell::new(false),
            came_in: Cell::new(true),
            tagged: Cell::new(false),
            old_kernel: Cell::new(false),
            whole: Cell::new(0),
            start: Cell::new(IP),
        }
    }

    /// The same packet as it comes through a device whose packets have no Ethernet header.
    pub(crate) fn bare(&self) -> Self {
        let bare = Self::of(u16::from_be(self.kind.get().1), self.bytes()[IP..].to_vec());
        bare.segment.set(self.segment.get());
        bare.routes.set(self.routes.get());
        bare.start.set(0);
        bare
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }

    /// Another packet with the same bytes.
    pub(crate) fn copy(&self) -> Self {
        Self::of(u16::from_be(self.kind.get().1), self.bytes())
    }

    /// Time to live, or hop limit.
    pub(crate) fn ttl(&self) -> u8 {
        Head::read(self, IP as u32).unwrap().ip.ttl
    }

    /// Sets the time to live of a packet without options.
    pub(crate) fn set_ttl(&self, ttl: u8) {
        if self.bytes()[12] == 0x08 {
            self.set_byte(IP + 8, ttl);
            self.fill_header_checksum(IP + 20);
        } else {
            self.set_byte(IP + 7, ttl);
        }
    }

    /// Takes one from the time to live, as a router does.
    pub(crate) fn count_down(&self) {
        let packet = self.packet();
        let at = if packet.is_v4 { IP + 8 } else { IP + 7 };
        self.set_byte(at, packet.ttl - 1);
        if packet.is_v4 {
            self.fill_header_checksum(packet.transport as usize);
        }
    }

    /// What the program reads, if it is TCP or UDP.
    pub(crate) fn unfold(&self, fake: &Fake) -> Option<Packet> {
        let work = fake.work()?;
        (unfold(fake, self, IP as u32, work) == Kind::Packet).then_some(work.packet)
    }

    pub(crate) fn packet(&self) -> Packet {
        self.unfold(&Fake::new()).unwrap()
    }

    pub(crate) fn set_byte(&self, at: usize, byte: u8) {
        self.bytes.borrow_mut()[at] = byte;
    }

    pub(crate) fn set_source_port(&self, port: u16) {
        let at = self.packet().transport as usize;
        self.bytes.borrow_mut()[at..at + 2].copy_from_slice(&port.to_be_bytes());
        self.fill_checksums();
    }

    /// Sets the type of the first chunk of an SCTP packet.
    pub(crate) fn set_chunk(&self, chunk: u8) {
        let at = self.packet().transport as usize;
        self.set_byte(at + 12, chunk);
        self.fill_checksums();
    }

    /// Sets the last byte of the source.
    pub(crate) fn set_last_of_source(&self, byte: u8) {
        let at = if self.packet().is_v4 { IP + 15 } else { IP + 23 };
        self.set_byte(at, byte);
        self.fill_checksums();
    }

    /// Sets the source of an IPv4 packet.
    pub(crate) fn set_source_of(&self, addr: Addr) {
        for (at, byte) in (IP + 12..).zip(&octets(addr)[12..]) {
            self.set_byte(at, *byte);
        }
        self.fill_checksums();
    }

    /// Fills the frame up with zeroes.
    pub(crate) fn pad(&self, len: usize) {
        self.bytes.borrow_mut().resize(len, 0);
    }

    pub(crate) fn truncate(&self, len: usize) {
        self.bytes.borrow_mut().truncate(len);
    }

    /// Adds an IPv6 extension header of this number, which is 8 bytes long and has this fourth byte, after the IPv6
    /// header.
    pub(crate) fn add_extension(&self, number: u8, last: u8) {
        let mut bytes = self.bytes();
        bytes.splice(IP + 40..IP + 40, [bytes[IP + 6], 0, 0, last, 0, 0, 0, 0]);
        (bytes[IP + 5], bytes[IP + 6]) = (bytes[IP + 5] + 8, number);
        self.bytes.replace(bytes);
    }

    /// Adds four bytes of options to the IPv4 header.
    pub(crate) fn add_ip_option(&self) {
        let mut bytes = self.bytes();
        bytes.splice(34..34, [1; 4]);
        (bytes[IP], bytes[IP + 3]) = (bytes[IP] + 1, bytes[IP + 3] + 4);
        let end = IP + 4 * (bytes[IP] & 0x0f) as usize;
        self.bytes.replace(bytes);
        self.fill_header_checksum(end);
    }

    /// Becomes what the receiver answers: addresses and ports change places, and flags become ACK.
    pub(crate) fn answer(&self) {
        let packet = self.packet();
        let key = packet.key.mirror();
        let at = packet.transport as usize;
        let mut bytes = self.bytes();
        if packet.is_v4 {
            bytes[IP + 12..IP + 16].copy_from_slice(&octets(key.src)[12..]);
            bytes[IP + 16..IP + 20].copy_from_slice(&octets(key.dst)[12..]);
        } else {
            bytes[IP + 8..IP + 24].copy_from_slice(&octets(key.src));
            bytes[IP + 24..IP + 40].copy_from_slice(&octets(key.dst));
        }
        bytes[at..at + 2].copy_from_slice(&key.sport.number().to_be_bytes());
        bytes[at + 2..at + 4].copy_from_slice(&key.dport.number().to_be_bytes());
        match packet.key.protocol {
            TCP => bytes[at + 13] = crate::tc::header::ACK,
            SCTP => bytes[at + 12] = COOKIE_ACK,
            _ => {}
        }
        self.bytes.replace(bytes);
        self.fill_checksums();
    }

    /// Becomes a fragment of the answer to a datagram with this tuple: addresses and ports change places, which leaves
    /// the datagram's checksum as it is.
    pub(crate) fn answer_fragment(&self, asked: CtKey) {
        let (is_v4, key) = (self.bytes()[12] == 0x08, asked.mirror());
        let mut bytes = self.bytes();
        let at = if is_v4 { IP + 20 } else { IP + 48 };
        let is_first = if is_v4 { bytes[IP + 6] == 0x20 } else { bytes[IP + 43] == 1 };
        if is_v4 {
            bytes[IP + 12..IP + 16].copy_from_slice(&octets(key.src)[12..]);
            bytes[IP + 16..IP + 20].copy_from_slice(&octets(key.dst)[12..]);
        } else {
            bytes[IP + 8..IP + 24].copy_from_slice(&octets(key.src));
            bytes[IP + 24..IP + 40].copy_from_slice(&octets(key.dst));
        }
        if is_first {
            bytes[at..at + 2].copy_from_slice(&key.sport.number().to_be_bytes());
            bytes[at + 2..at + 4].copy_from_slice(&key.dport.number().to_be_bytes());
        }
        self.bytes.replace(bytes);
    }

    /// Every checksum of the packet covers what it should.
    pub(crate) fn assert_checksums(&self) {
        let (bytes, packet) = (self.bytes(), self.packet());
        let at = packet.transport as usize;
        if packet.is_v4 {
            assert_eq!(finish(sum(&words(&bytes[IP..at]))), 0, "IPv4 header");
        }
        if packet.is_sctp() {
            let mut blank = bytes[at..].to_vec();
            blank[8..12].fill(0);
            assert_eq!(bytes[at + 8..at + 12], crc32c(&blank).to_le_bytes(), "SCTP");
            return;
        }
        assert_eq!(finish(sum(&words(&pseudo(&bytes, &packet)))), 0, "transport header");
    }

    /// A device sums the packet up.
    pub(crate) fn compute_whole(&self) {
        self.whole.set(u32::from(!self.whole_check()));
    }

    /// The sum that the kernel knows is that of the packet.
    pub(crate) fn assert_whole(&self) {
        assert_eq!(finish(self.whole.get()) % 0xffff, self.whole_check() % 0xffff, "sum of the packet");
    }

    /// The checksum of the IP packet.
    fn whole_check(&self) -> u16 {
        finish(sum(&words(&self.bytes()[self.start.get()..])))
    }

    fn fill_checksums(&self) {
        let packet = self.packet();
        let at = packet.transport as usize;
        let check = at + if packet.is_udp() { 6 } else { 16 };
        if packet.is_v4 {
            self.fill_header_checksum(at);
        }
        let mut bytes = self.bytes();
        if packet.is_sctp() {
            bytes[at + 8..at + 12].fill(0);
            let sum = crc32c(&bytes[at..]).to_le_bytes();
            bytes[at + 8..at + 12].copy_from_slice(&sum);
            self.bytes.replace(bytes);
            return;
        }
        bytes[check..check + 2].fill(0);
        let sum = finish(sum(&words(&pseudo(&bytes, &packet)))).to_ne_bytes();
        bytes[check..check + 2].copy_from_slice(&sum);
        self.bytes.replace(bytes);
    }

    /// Fills in the checksum of an IPv4 header that ends at `end`.
    fn fill_header_checksum(&self, end: usize) {
        let mut bytes = self.bytes.borrow_mut();
        bytes[IP + 10..IP + 12].fill(0);
        let check = finish(sum(&words(&bytes[IP..end]))).to_ne_bytes();
        bytes[IP + 10..IP + 12].copy_from_slice(&check);
    }

    fn replace(&self, at: u32, difference: u32) -> Result<(), Refused> {
        let mut bytes = self.bytes.borrow_mut();
        let field = bytes.get_mut(at as usize..at as usize + 2).ok_or(Refused)?;
        let before = u16::from_ne_bytes([field[0], field[1]]);
        let after = finish(u32::from(!before) + difference);
        field.copy_from_slice(&after.to_ne_bytes());
        Ok(())
    }
}

/// Type of a chunk.
const COOKIE_ACK: u8 = 11;

/// Verification tag 0x01020304, and a chunk of this type whose first word is 0x0a0b0c0d: the tag that the sender of an INIT
/// has chosen.
fn sctp(chunk: u8) -> [u8; 32] {
    let mut packet = [0; 32];
    packet[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
    packet[4..8].copy_from_slice(&[1, 2, 3, 4]);
    packet[12..16].copy_from_slice(&[chunk, 0, 0, 20]);
    packet[16..20].copy_from_slice(&[0x0a, 0x0b, 0x0c, 0x0d]);
    packet
}

/// CRC32c, one byte after the other.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 })
    })
}

/// An echo message of this type, number 7 of sender 9.
fn ping(kind: u8, payload: usize) -> Vec<u8> {
    [kind, 0, 0, 0, 0, 9, 0, 7].into_iter().chain((0..payload).map(|i| i as u8)).collect()
}

fn tcp(flags: u8) -> [u8; 20] {
    [0x9c, 0x40, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]
}

fn ethernet(protocol: u16) -> Vec<u8> {
    let [high, low] = protocol.to_be_bytes();
    [&TO[..], &FROM, &[high, low]].concat()
}

/// A datagram with this many bytes of payload.
fn udp(payload: usize) -> Vec<u8> {
    let header = [0x9c, 0x40, 0, 80, 0, 8 + payload as u8, 0, 0];
    header.into_iter().chain((0..payload).map(|i| i as u8)).collect()
}

/// The pseudo header and what follows the IP header.
fn pseudo(bytes: &[u8], packet: &Packet) -> Vec<u8> {
    let at = packet.transport as usize;
    let payload = &bytes[at..];
    let addresses = if packet.is_v4 { &bytes[IP + 12..IP + 20] } else { &bytes[IP + 8..IP + 40] };
    let tail = [0, packet.key.protocol, 0, payload.len() as u8];
    [addresses, &tail, payload].concat()
}

/// Bytes as words, filled up with zeroes.
fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |chunk: &[u8]| u32::from_ne_bytes(core::array::from_fn(|i| chunk.get(i).copied().unwrap_or(0)));
    bytes.chunks(4).map(word).collect()
}

impl Skb for &FakeSkb {
    type Hop = ();

    fn dress(self) -> Result<(), Refused> {
        assert_eq!(self.start.replace(IP), 0, "it has a header");
        self.bytes.borrow_mut().splice(..0, [0; IP]);
        if self.refuse_stores.get() { Err(Refused) } else { Ok(()) }
    }

    fn kind(self) -> (u32, u16) {
        self.kind.get()
    }

    fn device(self) -> u32 {
        1
    }

    fn came_in(self) -> bool {
        self.came_in.get()
    }

    fn is_tagged(self) -> bool {
        self.tagged.get()
    }

    fn size(self) -> u32 {
        self.bytes.borrow().len() as u32
    }

    fn segment(self) -> u32 {
        self.segment.get()
    }

    fn load<T: Pod>(self, offset: u32) -> Option<T> {
        let at = offset as usize;
        self.bytes.borrow().get(at..at + size_of::<T>()).and_then(T::from_bytes)
    }

    fn prepare(self) {}

    fn load_far<T: Pod>(self, offset: u32) -> Option<T> {
        self.load(offset)
    }

    fn load_part<const N: usize>(self, offset: u32, words: &mut [u32; N], len: u32) -> Result<(), Refused> {
        let bytes = self.bytes();
        let part = bytes.get(offset as usize..(offset + len) as usize).ok_or(Refused)?;
        for (word, chunk) in words.iter_mut().zip(part.chunks(4)) {
            *word = u32::from_ne_bytes(core::array::from_fn(|i| chunk.get(i).copied().unwrap_or(0)));
        }
        Ok(())
    }

    fn store_part<const N: usize>(self, offset: u32, words: &[u32; N], len: u32) -> Result<(), Refused> {
        if self.refuse_stores.get() {
            return Err(Refused);
        }
        let mut bytes = self.bytes.borrow_mut();
        let part = bytes.get_mut(offset as usize..(offset + len) as usize).ok_or(Refused)?;
        part.copy_from_slice(&words.bytes()[..len as usize]);
        Ok(())
    }

    fn store<T: Pod>(self, offset: u32, value: &T, flags: u64) -> Result<(), Refused> {
        if self.refuse_stores.get() {
            return Err(Refused);
        }
        let (at, value) = (offset as usize, value.bytes());
        let before = self.whole_check();
        self.bytes.borrow_mut().get_mut(at..at + value.len()).ok_or(Refused)?.copy_from_slice(value);
        if flags & RECOMPUTE != 0 {
            self.replace_whole(u32::from(before) + u32::from(!self.whole_check()));
        }
        Ok(())
    }

    fn replace_l4(self, offset: u32, difference: u32, flags: u64) -> Result<(), Refused> {
        let [pseudo, zero, v6] = [BPF_F_PSEUDO_HDR as u64, BPF_F_MARK_MANGLED_0 as u64, 1 << 7];
        let known = pseudo | zero | if self.old_kernel.get() { 0 } else { v6 };
        if flags & !known != 0 {
            return Err(Refused);
        }
        let is_zero = || self.load::<[u8; 2]>(offset).ok_or(Refused).map(|check| check == [0; 2]);
        if flags & zero != 0 && is_zero()? {
            return Ok(());
        }
        self.replace(offset, difference)?;
        // The addresses of IPv4 are in two checksums, of which the sum of the whole knows one (`csum_replace4`).
        if flags & pseudo != 0 && flags & v6 == 0 {
            self.replace_whole(u32::from(finish(difference)));
        }
        if flags & zero != 0 && is_zero()? {
            self.store(offset, &[0xff_u8; 2], 0)?;
        }
        Ok(())
    }

    fn replace_whole(self, difference: u32) {
        self.whole.set(u32::from(!finish(self.whole.get() + difference)));
    }

    fn resize(self, len: u32) -> Result<(), Refused> {
        let mut bytes = self.bytes.borrow_mut();
        bytes.clear();
        // Whoever resizes writes every byte but those of the Ethernet header.
        if self.start.get() != 0 {
            bytes.extend(TO.into_iter().chain(FROM));
            bytes.extend(u16::from_be(self.kind.get().1).to_be_bytes());
        }
        bytes.resize(len as usize, 0xaa);
        Ok(())
    }

    fn preferred_source(self, _: &Packet, _: &CtValue, source: &mut Addr) -> bool {
        self.preferred.get().map(|preferred| *source = preferred).is_some()
    }

    fn route(self, _: &Packet, _: &CtValue, (): &mut Self::Hop) -> Result<(), Unrouted> {
        self.routes.get()
    }

    fn has_socket(self, packet: &Packet) -> bool {
        assert!(packet.is_udp());
        self.socket.get()
    }

    fn redirect(self, (): &Self::Hop) -> i32 {
        REDIRECTED
    }

    fn turn_in(self) -> i32 {
        TURNED_IN
    }

    fn receive(self, _: &Packet, _: &CtValue) -> i32 {
        RECEIVED
    }

    fn send_back(self) -> i32 {
        SENT_BACK
    }
}
