//! What the maps of flows say about a packet, copied into those of the dry run.

use std::{net::IpAddr, os::fd::AsFd, time::Duration};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    affinity::AffinityRecord,
    decision::{FlowView, Packet},
    time::Instant,
};
use lb_datapath_ebpf_abi::{self as abi, Pod};

use super::{
    device::running,
    packet::{ACK, SYN},
};
use crate::{
    error::EbpfError,
    programs::DryRun,
    state::{
        convert,
        maps::{Maps, Table, one},
    },
    sys::{self, IfIndex, RawMap, TestRun},
};

/// The entries of `CT`, `AFFINITY` and `TURNS` that a packet depends on.
pub(super) struct FlowRecords {
    flows: Vec<(abi::CtKey, abi::CtValue)>,
    affinity: Option<(abi::AffinityKey, abi::AffinityValue)>,
    turn: Option<(u32, u64)>,
}

impl FlowRecords {
    pub(super) fn of(maps: &Maps, packet: &Packet) -> Result<Self, EbpfError> {
        let mut records = Self { flows: Vec::new(), affinity: None, turn: None };
        let addr = |ip: IpAddr| convert::addr(ip).unwrap_or_default();
        let key = abi::CtKey {
            src: addr(packet.source),
            dst: addr(packet.destination),
            sport: abi::Port::new(packet.source_port),
            dport: abi::Port::new(packet.destination_port),
            protocol: packet.protocol.number(),
            pad: [0; 3],
        };
        if let Some(flow) = one::<abi::CtValue>(maps.flows(), "CT", &key)? {
            let back = flow.mirror(key.protocol);
            records.flows.push((key, flow));
            records.flows.extend(one(maps.flows(), "CT", &back)?.map(|value| (back, value)));
        }
        let frontend = FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol);
        let Ok(key) = convert::frontend_key(&frontend) else { return Ok(records) };
        let Some(value) = maps.one::<abi::FrontendValue>(Table::Frontends, &key)? else { return Ok(records) };
        if let Some(key) = client(&value, packet.source) {
            records.affinity = one(maps.affinity(), "AFFINITY", &key)?.map(|record| (key, record));
        }
        records.turn = maps.one::<u64>(Table::Turns, &value.set)?.map(|turn| (value.set, turn));
        Ok(records)
    }

    pub(super) fn steps(&self) -> Vec<String> {
        let flow = |(_, value): &(abi::CtKey, abi::CtValue)| {
            format!("CT: a flow to {}, port {}", convert::ip(value.dst), value.dport.number())
        };
        let record = |(_, record): &(abi::AffinityKey, abi::AffinityValue)| {
            format!("AFFINITY: a record of backend {}", record.backend)
        };
        self.flows.first().map(flow).into_iter().chain(self.affinity.as_ref().map(record)).collect()
    }

    /// Whether the packet is one of a backend to its client.
    pub(super) fn is_reply(&self) -> bool {
        self.flows.first().is_some_and(|(_, flow)| flow.flags & abi::CT_REPLY != 0)
    }

    /// The flow that the packet belongs to, if that is not over.
    fn established(&self) -> Option<&abi::CtValue> {
        let (key, flow) = self.flows.first()?;
        let last = self.flows.iter().map(|(_, flow)| flow.last_ns).max()?;
        let idle = sys::monotonic().saturating_sub(Duration::from_nanos(last));
        let over = if key.protocol == Protocol::Udp.number() {
            idle >= Duration::from_nanos(abi::UDP_IDLE_NS)
        } else {
            flow.flags & abi::CT_CLOSING != 0
        };
        (!over).then_some(flow)
    }

    /// A packet of an established connection, or one that asks for a new one.
    pub(super) fn tcp_flags(&self) -> u8 {
        if self.established().is_some() { ACK } else { SYN }
    }

    /// What a decision has to know. Points in time are those of the monotonic clock.
    pub(super) fn view(&self, maps: &Maps, packet: &Packet) -> Result<FlowView, EbpfError> {
        let established = self.established();
        let established =
            established.map(|flow| BackendAddr::new(convert::ip(flow.dst), flow.dport.number(), packet.protocol));
        let Some((_, record)) = self.affinity else { return Ok(FlowView { established, ..FlowView::default() }) };
        let backend = maps.one::<abi::BackendValue>(Table::Backends, &record.backend)?;
        let affinity = backend.and_then(|value| convert::backend(&value).ok()).map(|backend| AffinityRecord {
            backend: backend.addr,
            last_use: Instant::new(Duration::from_nanos(record.last_ns)),
        });
        Ok(FlowView { established, affinity, left: None })
    }

    /// Runs the copy of the program with a copy of what is known, and empties its tables.
    pub(super) fn run(&self, dry: &DryRun, frame: &[u8], device: IfIndex) -> Result<TestRun, EbpfError> {
        for (key, flow) in &self.flows {
            put(&dry.flows, key, flow)?;
        }
        if let Some((key, record)) = &self.affinity {
            put(&dry.affinity, key, record)?;
        }
        if let Some((set, turn)) = &self.turn {
            put(&dry.turns, set, turn)?;
        }
        let run = sys::test_run(dry.program.fd.as_fd(), frame, device).map_err(running);
        for table in [&dry.flows, &dry.affinity, &dry.turns] {
            empty(table)?;
        }
        run
    }
}

/// The client's key in `AFFINITY`, if the frontend has affinity.
fn client(frontend: &abi::FrontendValue, source: IpAddr) -> Option<abi::AffinityKey> {
    let affinity = convert::frontend(frontend).ok()?.affinity?;
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
