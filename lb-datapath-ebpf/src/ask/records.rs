//! What the maps of flows say about a packet, copied into those of the dry run.

use std::{net::IpAddr, os::fd::AsFd, time::Duration};

use lb_core::{
    addr::{BackendAddr, Protocol},
    affinity::AffinityRecord,
    decision::{FlowView, Packet},
    time::Instant,
};
use lb_datapath_ebpf_abi::{self as abi, Pod};

use super::{
    device::running,
    frontend_of,
    loads::Loads,
    packet::{ACK, SYN, Tuple},
};
use crate::{
    error::EbpfError,
    programs::DryRun,
    state::{
        convert,
        layout::CT_LIVE,
        maps::{Maps, Table, one},
    },
    sys::{self, IfIndex, RawMap, TestRun},
};

/// The entries of the tables of flows, of `AFFINITY`, of `TURNS` and of `LOADS` that a packet depends on.
pub(super) struct FlowRecords {
    flows: Vec<FlowRecord>,
    /// Entries of other flows for replies, which keep tuples from the packet's.
    held: Vec<FlowRecord>,
    loads: Loads,
    affinity: Option<(abi::AffinityKey, abi::AffinityValue)>,
    turn: Option<(u32, u64)>,
}

/// An entry of a table of flows.
struct FlowRecord {
    table: &'static str,
    key: abi::CtKey,
    value: abi::CtValue,
}

/// Another flow has the tuple.
pub(super) struct Claim {
    /// What it is, such as "a direct flow".
    pub(super) flow: &'static str,
    /// The program knew of it.
    pub(super) was_known: bool,
}

impl FlowRecord {
    /// Whether the tuple of this entry for replies is not free yet.
    fn holds(&self) -> bool {
        let silence = sys::monotonic().saturating_sub(Duration::from_nanos(self.value.last_ns));
        silence < Duration::from_nanos(self.value.lifetime(self.key.protocol))
    }

    /// Whether it translates answers to packets with the tuple of `client`.
    fn is_reply_to(&self, client: &abi::CtKey) -> bool {
        self.value.flags & abi::CT_DIRECT == 0 && self.value.mirror(client.protocol) == *client
    }

    fn name(&self) -> &'static str {
        match self.value.flags {
            flags if flags & abi::CT_DIRECT != 0 => "a direct flow",
            _ if self.value.is_closed() => "a closed flow, whose backend may be in TIME-WAIT,",
            _ => "a flow",
        }
    }

    fn of(maps: &Maps, key: abi::CtKey) -> Result<Option<Self>, EbpfError> {
        for (table, map) in maps.flows() {
            if let Some(value) = one(map, table, &key)? {
                return Ok(Some(Self { table, key, value }));
            }
        }
        Ok(None)
    }
}

impl FlowRecords {
    pub(super) fn of(maps: &Maps, packet: &Packet) -> Result<Self, EbpfError> {
        let mut records =
            Self { flows: Vec::new(), held: Vec::new(), loads: Loads::default(), affinity: None, turn: None };
        let key = key_of(packet.protocol, &Tuple::of(packet));
        if let Some(flow) = FlowRecord::of(maps, key)? {
            let back = flow.value.mirror(key.protocol);
            let is_direct = flow.value.flags & abi::CT_DIRECT != 0;
            records.flows.push(flow);
            if !is_direct {
                records.flows.extend(FlowRecord::of(maps, back)?);
            }
        } else {
            records.held.extend(FlowRecord::of(maps, key.mirror())?);
        }
        let Some((_, value)) = frontend_of(maps, packet)? else { return Ok(records) };
        if let Some(key) = client(&value, packet.source) {
            records.affinity = one(maps.affinity(), "AFFINITY", &key)?.map(|record| (key, record));
        }
        records.loads = Loads::of(maps, &value)?;
        records.turn = maps.one::<u64>(Table::Turns, &value.set)?.map(|turn| (value.set, turn));
        Ok(records)
    }

    pub(super) fn steps(&self) -> Vec<String> {
        let flow = |FlowRecord { table, value, .. }: &FlowRecord| {
            let kind = if value.flags & abi::CT_DIRECT != 0 { "an answer of a direct flow" } else { "a flow" };
            let end = if value.is_closed() { ", which is over" } else { "" };
            format!("{table}: {kind} to {}, port {}{end}", convert::ip(value.dst), value.dport.number())
        };
        let record = |(_, record): &(abi::AffinityKey, abi::AffinityValue)| {
            format!("AFFINITY: a record of backend {}", record.backend)
        };
        let records = self.flows.first().map(flow).into_iter().chain(self.affinity.as_ref().map(record));
        records.chain(self.loads.step()).collect()
    }

    /// Whether a flow of a frontend has the tuple of the packet, which is for no frontend itself.
    pub(super) fn gives_way(&self, packet: &Packet) -> bool {
        let key = key_of(packet.protocol, &Tuple::of(packet)).mirror();
        self.held.iter().any(|flow| flow.key == key && flow.value.flags & abi::CT_REPLY != 0)
    }

    /// The claim of another flow to the tuple that `packet` has left with. The next [run](Self::run) knows of it.
    pub(super) fn claim(&mut self, maps: &Maps, packet: &Packet, left: &Tuple) -> Result<Option<Claim>, EbpfError> {
        let (own, key) = (key_of(packet.protocol, &Tuple::of(packet)), key_of(packet.protocol, left).mirror());
        let Some(record) = FlowRecord::of(maps, key)? else { return Ok(None) };
        // A client that keeps its source knows when to use it again.
        let is_free = record.value.is_closed() && left.source() == Tuple::of(packet).source();
        if record.is_reply_to(&own) || is_free || !record.holds() {
            return Ok(None);
        }
        let claim = Claim { flow: record.name(), was_known: self.held.iter().any(|held| held.key == key) };
        self.held.push(record);
        Ok(Some(claim))
    }

    /// Whether the packet is one of a backend to its client.
    pub(super) fn is_reply(&self) -> bool {
        self.flows.first().is_some_and(|flow| flow.value.flags & abi::CT_REPLY != 0)
    }

    /// Whether the packet is one of a flow that is for no frontend.
    fn is_direct(&self) -> bool {
        self.flows.first().is_some_and(|flow| flow.value.flags & abi::CT_DIRECT != 0 && !flow.value.is_closed())
    }

    /// The flow that the packet belongs to, if that is not over.
    fn established(&self) -> Option<&abi::CtValue> {
        let own = self.flows.first()?;
        let is_udp = own.key.protocol == Protocol::Udp.number();
        let last = self.flows.iter().map(|flow| flow.value.last_ns).max()?;
        let idle = sys::monotonic().saturating_sub(Duration::from_nanos(last));
        let back = self.flows.iter().find(|flow| flow.value.flags & abi::CT_REPLY != 0);
        let silent = |back: &FlowRecord| is_udp && idle >= Duration::from_nanos(back.value.lifetime(own.key.protocol));
        let over = self.flows.iter().any(|flow| flow.value.is_closed()) || back.is_some_and(silent);
        let is_ours = own.value.flags & abi::CT_DIRECT == 0;
        (is_ours && !over).then_some(&own.value)
    }

    /// A packet of an established connection, or one that asks for a new one.
    pub(super) fn tcp_flags(&self) -> u8 {
        if self.established().is_some() || self.is_direct() { ACK } else { SYN }
    }

    /// What a decision has to know. Points in time are those of the monotonic clock.
    pub(super) fn view(&self, maps: &Maps, packet: &Packet) -> Result<FlowView, EbpfError> {
        let established = self.established();
        let established =
            established.map(|flow| BackendAddr::new(convert::ip(flow.dst), flow.dport.number(), packet.protocol));
        let direct = self.is_direct();
        let Some((_, record)) = self.affinity else {
            return Ok(FlowView { established, direct, ..FlowView::default() });
        };
        let backend = maps.one::<abi::BackendValue>(Table::Backends, &record.backend)?;
        let affinity = backend.and_then(|value| convert::backend(&value).ok()).map(|backend| AffinityRecord {
            backend: backend.addr,
            last_use: Instant::new(Duration::from_nanos(record.last_ns)),
        });
        Ok(FlowView { established, affinity, left: None, direct })
    }

    /// Runs the copy of the program with a copy of what is known, and empties its tables.
    pub(super) fn run(&self, dry: &DryRun, frame: &[u8], device: IfIndex) -> Result<TestRun, EbpfError> {
        for FlowRecord { table, key, value } in self.flows.iter().chain(&self.held) {
            put(if *table == CT_LIVE { &dry.live_flows } else { &dry.new_flows }, key, value)?;
        }
        if let Some((key, record)) = &self.affinity {
            put(&dry.affinity, key, record)?;
        }
        if let Some((set, turn)) = &self.turn {
            put(&dry.turns, set, turn)?;
        }
        for (key, count) in &self.loads.counters {
            put(&dry.loads, key, count)?;
        }
        let run = sys::test_run(dry.program.fd.as_fd(), frame, device).map_err(running);
        for table in [&dry.live_flows, &dry.new_flows, &dry.affinity, &dry.turns, &dry.loads] {
            empty(table)?;
        }
        run
    }
}

fn key_of(protocol: Protocol, tuple: &Tuple) -> abi::CtKey {
    let addr = |ip: IpAddr| convert::addr(ip).unwrap_or_default();
    abi::CtKey {
        src: addr(tuple.source),
        dst: addr(tuple.destination),
        sport: abi::Port::new(tuple.source_port),
        dport: abi::Port::new(tuple.destination_port),
        protocol: protocol.number(),
        pad: [0; 3],
    }
}

/// The client's key in `AFFINITY`, if the frontend has affinity.
fn client(frontend: &abi::FrontendValue, source: IpAddr) -> Option<abi::AffinityKey> {
    let affinity = convert::affinity(frontend)?;
    let client = convert::addr(affinity.client(source)).ok()?;
    // The prefix of an IPv6 address can read as an IPv4-mapped one only if it is one.
    Some(abi::AffinityKey { client, frontend: frontend.id, kind: abi::CLIENT_ADDRESS, pad: [0; 3] })
}

fn put(table: &RawMap, key: &impl Pod, value: &impl Pod) -> Result<(), EbpfError> {
    table.update(key.bytes(), value.bytes()).map_err(|stopped| running(stopped.cause))
}

fn empty(table: &RawMap) -> Result<(), EbpfError> {
    let page = table.dump().map_err(running)?;
    if page.keys().is_empty() { Ok(()) } else { table.delete(page.keys()).map_err(|stopped| running(stopped.cause)) }
}
