//! What the kernel says about a packet.

pub(crate) mod packet;

use std::{collections::BTreeMap, net::IpAddr, os::fd::AsFd, time::Duration};

use lb_core::{
    AffinityRecord, BackendAddr, Backends, Entry, FlowView, FrontendAddr, Instant, KernelAnswer, KernelVerdict, Packet,
    Protocol,
};
use lb_datapath_ebpf_abi::{self as abi, Pod};

use crate::{
    ask::packet::{ACK, Parsed, SYN, Tuple, frame, parse},
    config::EbpfConfig,
    datapath::Kernel,
    error::EbpfError,
    pins::anchors::Anchors,
    programs::{DryRun, INGRESS},
    state::{
        convert,
        maps::{Maps, Table, one},
    },
    sys::{self, IfIndex, RawMap, TestRun},
};

const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;
const TCX_REDIRECT: i32 = 7;

/// Asks what becomes of `packet`.
pub(crate) fn ask(
    kernel: &mut Kernel,
    anchors: &Anchors,
    config: &EbpfConfig,
    packet: &Packet,
) -> Result<KernelAnswer, EbpfError> {
    match packet.entry {
        Entry::Socket => at_socket(&kernel.maps, anchors, packet),
        Entry::PodDevice => at_device(kernel, anchors, &config.pod_devices, packet),
        Entry::Uplink => at_device(kernel, anchors, &config.uplink_devices, packet),
    }
}

/// The answer of a kernel without our programs.
pub(crate) fn nothing_loaded() -> KernelAnswer {
    answer("nothing: no program is loaded", Vec::new(), FlowView::default(), KernelVerdict::Pass)
}

fn answer(method: impl Into<String>, steps: Vec<String>, flow: FlowView, verdict: KernelVerdict) -> KernelAnswer {
    KernelAnswer { method: method.into(), steps, flow, verdict }
}

/// Lets a copy of the attached program handle the packet.
fn at_device(
    kernel: &mut Kernel,
    anchors: &Anchors,
    names: &[String],
    packet: &Packet,
) -> Result<KernelAnswer, EbpfError> {
    let mut links = anchors.links_of(INGRESS).filter_map(|link| Some((link, link.device()?)));
    let attached = links.find(|(link, (name, _))| names.iter().any(|known| known == name) && link.is_attached());
    let Some((_, (name, device))) = attached else {
        if packet.entry == Entry::PodDevice && names.is_empty() {
            return Err(EbpfError::NoPodDevice);
        }
        let steps = vec![format!("{INGRESS} is attached to none of these devices: {}", names.join(" "))];
        return Ok(answer("links of the programs", steps, FlowView::default(), KernelVerdict::Pass));
    };
    let dry = match kernel.dry.take() {
        Some(dry) => dry,
        None => DryRun::load(&anchors.pinned_maps()?)?,
    };
    let dry = kernel.dry.insert(dry);
    let method = format!("BPF_PROG_TEST_RUN of {INGRESS} (tag {:016x})", dry.program.info.tag);
    if dry.program.info.tag != kernel.programs.ingress().info.tag {
        return Err(EbpfError::NoProgram { name: INGRESS });
    }
    let records = FlowRecords::of(&kernel.maps, packet)?;
    let mut steps = vec![format!("as if it came in through {name}")];
    steps.extend(records.steps());
    if records.is_reply() {
        steps.push("it is an answer of a backend: translated back".into());
        return Ok(answer(method, steps, FlowView::default(), KernelVerdict::Pass));
    }
    let (flow, flags) = (records.view(&kernel.maps, packet)?, records.tcp_flags());
    let Some(frame) = frame(packet, sys::hardware_address(name).map_err(running)?, flags) else {
        steps.push("its addresses are of different families".into());
        return Ok(answer(method, steps, flow, KernelVerdict::Pass));
    };
    let run = records.run(dry, &frame, device)?;
    let verdict = judge(packet, &run)?;
    steps.push(format!("verdict {}", verdict_name(run.verdict)));
    Ok(answer(method, steps, flow, verdict))
}

fn running(source: std::io::Error) -> EbpfError {
    EbpfError::TestRun { name: INGRESS, source }
}

const fn verdict_name(verdict: i32) -> &'static str {
    match verdict {
        TCX_NEXT => "TCX_NEXT",
        TCX_DROP => "TCX_DROP",
        TCX_REDIRECT => "TCX_REDIRECT",
        _ => "unknown",
    }
}

/// What became of a packet, by the verdict and by what came out.
fn judge(packet: &Packet, run: &TestRun) -> Result<KernelVerdict, EbpfError> {
    let before = Tuple {
        source: packet.source,
        source_port: packet.source_port,
        destination: packet.destination,
        destination_port: packet.destination_port,
    };
    match (run.verdict, parse(&run.packet)) {
        (TCX_DROP, _) => Ok(KernelVerdict::Drop),
        (TCX_NEXT, Some(Parsed::Flow(after))) if after == before => Ok(KernelVerdict::Pass),
        (TCX_NEXT | TCX_REDIRECT, Some(Parsed::Flow(after))) => {
            let backend = BackendAddr::new(after.destination, after.destination_port, packet.protocol);
            let translated = (after.source, after.source_port) != (before.source, before.source_port);
            Ok(KernelVerdict::Forward { backends: Backends::Took(backend), translated: Some(translated) })
        }
        (TCX_REDIRECT, Some(Parsed::Refusal)) => Ok(KernelVerdict::Reject),
        _ => Err(running(std::io::Error::other(format!("unexpected verdict {}", run.verdict)))),
    }
}

/// The entries of `CT`, `AFFINITY` and `TURNS` that a packet depends on.
struct FlowRecords {
    flows: Vec<(abi::CtKey, abi::CtValue)>,
    affinity: Option<(abi::AffinityKey, abi::AffinityValue)>,
    turn: Option<(u32, u64)>,
}

impl FlowRecords {
    fn of(maps: &Maps, packet: &Packet) -> Result<Self, EbpfError> {
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

    fn steps(&self) -> Vec<String> {
        let flow = |(_, value): &(abi::CtKey, abi::CtValue)| {
            format!("CT: a flow to {}, port {}", convert::ip(value.dst), value.dport.number())
        };
        let record = |(_, record): &(abi::AffinityKey, abi::AffinityValue)| {
            format!("AFFINITY: a record of backend {}", record.backend)
        };
        self.flows.first().map(flow).into_iter().chain(self.affinity.as_ref().map(record)).collect()
    }

    /// Whether the packet is one of a backend to its client.
    fn is_reply(&self) -> bool {
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
    fn tcp_flags(&self) -> u8 {
        if self.established().is_some() { ACK } else { SYN }
    }

    /// What a decision has to know. Points in time are those of the monotonic clock.
    fn view(&self, maps: &Maps, packet: &Packet) -> Result<FlowView, EbpfError> {
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
    fn run(&self, dry: &DryRun, frame: &[u8], device: IfIndex) -> Result<TestRun, EbpfError> {
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

/// Reads what the programs of sockets would read: the kernel does not run them on demand.
fn at_socket(maps: &Maps, anchors: &Anchors, packet: &Packet) -> Result<KernelAnswer, EbpfError> {
    let hooks: &[&str] = match (packet.destination.is_ipv4(), packet.protocol) {
        (true, Protocol::Udp) => &["lb_connect4", "lb_sendmsg4"],
        (true, _) => &["lb_connect4"],
        (false, Protocol::Udp) => &["lb_connect6", "lb_sendmsg6"],
        (false, _) => &["lb_connect6"],
    };
    let method = format!("look-up in the maps of {}, which the kernel does not run on demand", hooks.join(" and "));
    let mut steps = Vec::new();
    let verdict = socket_verdict(maps, anchors, (hooks, packet), &mut steps)?;
    Ok(answer(method, steps, FlowView::default(), verdict))
}

fn socket_verdict(
    maps: &Maps,
    anchors: &Anchors,
    (hooks, packet): (&[&str], &Packet),
    steps: &mut Vec<String>,
) -> Result<KernelVerdict, EbpfError> {
    if let Some(hook) = hooks.iter().find(|hook| !anchors.links_of(hook).any(|link| link.is_attached())) {
        steps.push(format!("{hook} is not attached to the cgroup"));
        return Ok(KernelVerdict::Pass);
    }
    if maps.role()? != abi::ROLE_ACTIVE {
        steps.push("ROLE: no new flows".into());
        return Ok(KernelVerdict::Pass);
    }
    let addr = FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol);
    let value = match convert::frontend_key(&addr) {
        Ok(key) => maps.one::<abi::FrontendValue>(Table::Frontends, &key)?,
        Err(_) => None,
    };
    let Some(value) = value else {
        steps.push(format!("FRONTENDS: no {addr}"));
        return Ok(KernelVerdict::Pass);
    };
    match value.target {
        abi::TARGET_SET => {}
        abi::TARGET_DROP => return Ok(KernelVerdict::Drop),
        _ => return Ok(KernelVerdict::Reject),
    }
    steps.push(format!("FRONTENDS: {addr} has {} slots from chunk {}", value.slots, value.first));
    if value.affinity != 0 {
        steps.push("AFFINITY: the client is a network namespace, whose record is not looked up".into());
    }
    let backends = slots(maps, &value, steps)?;
    if backends.is_empty() {
        return Ok(KernelVerdict::Reject);
    }
    Ok(KernelVerdict::Forward { backends: Backends::MayTake(backends), translated: Some(false) })
}

/// The backends in a frontend's slots.
fn slots(
    maps: &Maps,
    frontend: &abi::FrontendValue,
    steps: &mut Vec<String>,
) -> Result<BTreeMap<BackendAddr, u32>, EbpfError> {
    let mut ids: BTreeMap<u32, u32> = BTreeMap::new();
    for id in maps.slots(frontend.first, frontend.slots) {
        *ids.entry(id).or_default() += 1;
    }
    let mut backends = BTreeMap::new();
    for (id, slots) in ids {
        let value = maps.one::<abi::BackendValue>(Table::Backends, &id)?;
        match value.and_then(|value| convert::backend(&value).ok()) {
            Some(backend) => *backends.entry(backend.addr).or_default() += slots,
            None => steps.push(format!("BACKENDS: no backend {id}, which {slots} slots name: refused")),
        }
    }
    Ok(backends)
}
