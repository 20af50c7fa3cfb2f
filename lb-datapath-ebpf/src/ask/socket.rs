//! Packets of sockets: the kernel runs no program of sockets on demand, so their maps are read.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    decision::{FlowView, Packet},
    flow_hash::{self, FLOW_SEED},
    kernel::{Backends, KernelAnswer, KernelVerdict},
};
use lb_datapath_ebpf_abi as abi;

use super::{answer, frontend_of, is_of_node, loads::Loads, way};
use crate::{
    config::{EbpfConfig, SocketBalancing},
    datapath::Kernel,
    error::EbpfError,
    pins::anchors::Anchors,
    programs::INGRESS,
    state::{
        convert,
        maps::{Maps, Table, one},
    },
    sys,
};

/// Whether the packet is of a pod, and no hook of sockets sends its socket to a backend.
pub(super) fn is_left_to_its_device(maps: &Maps, config: &EbpfConfig, packet: &Packet) -> Result<bool, EbpfError> {
    let left = config.socket_balancing == SocketBalancing::Host || is_left_to_packets(maps, config, packet)?;
    Ok(left && !is_of_node(maps, packet)?)
}

/// Reads what the programs of sockets would read: the kernel does not run them on demand.
pub(super) fn at_socket(
    kernel: &Kernel,
    anchors: &Anchors,
    config: &EbpfConfig,
    packet: &Packet,
) -> Result<KernelAnswer, EbpfError> {
    let maps = &kernel.maps;
    let by_packets = is_left_to_packets(maps, config, packet)?;
    let hooks: &[&str] = match (packet.destination.is_ipv4(), packet.protocol) {
        // Packets of the node are translated where they leave it.
        _ if by_packets => &["lb_egress"],
        (true, Protocol::Udp) => &["lb_connect4", "lb_sendmsg4"],
        (true, _) => &["lb_connect4"],
        (false, Protocol::Udp) => &["lb_connect6", "lb_sendmsg6"],
        (false, _) => &["lb_connect6"],
    };
    let method = format!("look-up in the maps of {}, which the kernel does not run on demand", hooks.join(" and "));
    let mut steps = Vec::new();
    if let Some(step) = left_alone(kernel, packet, by_packets)? {
        return Ok(answer(method, vec![step], FlowView::default(), KernelVerdict::Pass));
    }
    let mut verdict = socket_verdict(maps, anchors, (hooks, packet, by_packets), &mut steps)?;
    if let (KernelVerdict::Forward { backends: Backends::MayTake(backends), .. }, false) = (&verdict, by_packets)
        && !may_use_any(maps, packet, backends.keys(), &mut steps)?
    {
        verdict = KernelVerdict::Reject;
    }
    let faults = match verdict {
        KernelVerdict::Forward { .. } => way_back(anchors, packet, by_packets),
        _ => Vec::new(),
    };
    Ok(KernelAnswer { faults, ..answer(method, steps, FlowView::default(), verdict) })
}

/// Whether the socket that sends from the packet's source may use one of `backends`. It may not while it knows all of
/// them under another virtual address: it could not tell their answers apart. Sockets of pods are not known by their
/// source.
fn may_use_any<'a>(
    maps: &Maps,
    packet: &Packet,
    backends: impl Iterator<Item = &'a BackendAddr>,
    steps: &mut Vec<String>,
) -> Result<bool, EbpfError> {
    let cookie = (packet.protocol == Protocol::Udp).then(|| way::datagram_socket(packet)).flatten();
    let Some(cookie) = cookie else { return Ok(true) };
    let mut any = false;
    for backend in backends {
        let known = known_as(maps, cookie, backend)?;
        match known.filter(|known| *known != SocketAddr::new(packet.destination, packet.destination_port)) {
            Some(known) => steps.push(format!("SOCK_PEERS: the socket talks to {backend} under {known} already")),
            None => any = true,
        }
    }
    if !any {
        steps.push("no backend is left that the socket could tell apart: refused with EADDRINUSE".into());
    }
    Ok(any)
}

/// The virtual address under which a UDP socket uses a backend.
fn known_as(maps: &Maps, cookie: u64, backend: &BackendAddr) -> Result<Option<SocketAddr>, EbpfError> {
    let Ok(addr) = convert::addr(backend.ip) else { return Ok(None) };
    let of = |addr, port| abi::SockKey { cookie, addr, port, protocol: Protocol::Udp.number(), pad: [0; 5] };
    let port = abi::Port::new(backend.port);
    let Some(peer) = one::<abi::SockPeer>(maps.sock_peers(), "SOCK_PEERS", &of(addr, port))? else { return Ok(None) };
    let flow = one::<abi::SockFlow>(maps.sock_flows(), "SOCK_FLOWS", &of(peer.addr, peer.port))?;
    let silence = |flow: &abi::SockFlow| sys::monotonic().saturating_sub(Duration::from_nanos(flow.last_ns));
    let uses = |flow: abi::SockFlow| {
        (flow.backend_addr, flow.backend_port) == (addr, port)
            && silence(&flow) <= Duration::from_nanos(abi::UDP_IDLE_NS)
    };
    Ok(flow.is_some_and(uses).then(|| SocketAddr::new(convert::ip(peer.addr), peer.port.number())))
}

/// Programs that are missing on the way back, and for sockets of the other family: an IPv6 socket reaches an IPv4
/// frontend at its IPv4-mapped address.
fn way_back(anchors: &Anchors, packet: &Packet, by_packets: bool) -> Vec<String> {
    let is_attached = |hook: &str| anchors.links_of(hook).any(|link| link.is_attached());
    if by_packets {
        let fault = "lb_ingress is not attached to any device: answers come from the backend's address";
        return if is_attached(INGRESS) { Vec::new() } else { vec![fault.into()] };
    }
    let families: &[u8] = if packet.destination.is_ipv4() { &[4, 6] } else { &[6] };
    let mut faults = Vec::new();
    for &family in families {
        let mapped = family == 6 && packet.destination.is_ipv4();
        let sockets = if mapped { " an IPv6 socket that uses the IPv4-mapped address" } else { " a socket" };
        let is_udp = packet.protocol == Protocol::Udp;
        let roles = [
            ("lb_connect", mapped, "is not sent to a backend"),
            ("lb_sendmsg", mapped && is_udp, "is not sent to a backend"),
            ("lb_recvmsg", is_udp, "hears the backend's address in place of the frontend's"),
            ("lb_getpeername", true, "is told the backend's address as its peer"),
        ];
        for (name, _, consequence) in roles.into_iter().filter(|(_, matters, _)| *matters) {
            let hook = format!("{name}{family}");
            if !is_attached(&hook) {
                faults.push(format!("{hook} is not attached to the cgroup:{sockets} {consequence}"));
            }
        }
    }
    faults
}

/// Why the socket is not sent to a backend, if it is not. A socket has no namespace here, but the node's own have an
/// address of the node.
fn left_alone(kernel: &Kernel, packet: &Packet, by_packets: bool) -> Result<Option<String>, EbpfError> {
    let maps = &kernel.maps;
    if !by_packets && kernel.sockets.skips(packet.source) && !is_of_node(maps, packet)? {
        return Ok(Some(format!("SOCK_SKIPS: the sockets of the pod with {} are left to packets", packet.source)));
    }
    if !by_packets {
        return Ok(None);
    }
    let node = maps.node()?.and_then(|value| convert::node(&value).ok()).unwrap_or_default();
    let stays = node.ips.contains(&packet.destination) || packet.source == packet.destination;
    Ok(stays.then(|| format!("the node has {}: the packet leaves through no device", packet.destination)))
}

fn socket_verdict(
    maps: &Maps,
    anchors: &Anchors,
    (hooks, packet, by_packets): (&[&str], &Packet, bool),
    steps: &mut Vec<String>,
) -> Result<KernelVerdict, EbpfError> {
    if let Some(hook) = hooks.iter().find(|hook| !anchors.links_of(hook).any(|link| link.is_attached())) {
        let place = if by_packets { "any device" } else { "the cgroup" };
        steps.push(format!("{hook} is not attached to {place}"));
        return Ok(KernelVerdict::Pass);
    }
    if maps.role()? != abi::ROLE_ACTIVE {
        steps.push("ROLE: no new flows".into());
        return Ok(KernelVerdict::Pass);
    }
    let Some((addr, value)) = frontend_of(maps, packet)? else {
        let addr = FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol);
        steps.push(format!("FRONTENDS: no {addr}"));
        return other_port(maps, packet, steps);
    };
    if is_kept_out(maps, &value, packet)? {
        steps.push(format!("SOURCES: {} may not use {addr}, as its packets are told", packet.source));
        return Ok(KernelVerdict::Drop);
    }
    match value.target {
        abi::TARGET_SET => {}
        abi::TARGET_DROP => return Ok(KernelVerdict::Drop),
        _ => return Ok(KernelVerdict::Reject),
    }
    if value.leaves_sockets != 0 && by_packets {
        steps.push(format!("FRONTENDS: sockets are left alone at {addr}, since their packets say who the client is"));
    }
    steps.push(format!("FRONTENDS: {addr} has {} slots from chunk {}", value.slots, value.first));
    if value.affinity != 0 && !by_packets {
        steps.push("AFFINITY: the client is a network namespace, whose record is not looked up".into());
    }
    steps.extend(Loads::of(maps, &value)?.step());
    let all = maps.slots(value.first, value.slots);
    let backends = match hashed(&value, packet).filter(|_| by_packets) {
        Some(slots) => backends(maps, slots.into_iter().filter_map(|slot| all.get(slot as usize).copied()), steps)?,
        None => backends(maps, all, steps)?,
    };
    if backends.is_empty() {
        return Ok(KernelVerdict::Reject);
    }
    let translated = (!by_packets).then_some(false);
    Ok(KernelVerdict::Forward { backends: Backends::MayTake(backends), translated })
}

/// Whether no hook of sockets sends the packet's socket to a backend, but its packets are translated: sockets are not
/// balanced, the kernel has no hook for SCTP, and a frontend may leave sockets alone, but for those of the node to an
/// address of the node.
fn is_left_to_packets(maps: &Maps, config: &EbpfConfig, packet: &Packet) -> Result<bool, EbpfError> {
    if packet.protocol == Protocol::Sctp || config.socket_balancing == SocketBalancing::Off {
        return Ok(true);
    }
    let Some((_, value)) = frontend_of(maps, packet)? else { return Ok(false) };
    let node = maps.node()?.and_then(|value| convert::node(&value).ok()).unwrap_or_default();
    let is_here = |ip: IpAddr| ip.is_loopback() || node.ips.contains(&ip);
    let stays = is_here(packet.source) && is_here(packet.destination);
    Ok(value.leaves_sockets != 0 && value.target == abi::TARGET_SET && !stays)
}

/// What the programs do for an address that has no frontend at this port.
fn other_port(maps: &Maps, packet: &Packet, steps: &mut Vec<String>) -> Result<KernelVerdict, EbpfError> {
    let Ok(addr) = convert::addr(packet.destination) else { return Ok(KernelVerdict::Pass) };
    let says = maps.addresses()?.get(&addr).copied().unwrap_or(0);
    let verdict = match says & (abi::ADDRESS_REJECTS | abi::ADDRESS_DROPS) {
        0 => return Ok(KernelVerdict::Pass),
        abi::ADDRESS_REJECTS => KernelVerdict::Reject,
        _ => KernelVerdict::Drop,
    };
    steps.push(format!("ADDRESSES: {} has frontends at other ports only", packet.destination));
    Ok(verdict)
}

/// Whether the source ranges of the frontend keep the packet's source out. A socket may have no source yet, so that its
/// packets are asked; those of the node itself are let in.
fn is_kept_out(maps: &Maps, frontend: &abi::FrontendValue, packet: &Packet) -> Result<bool, EbpfError> {
    let is = |flag| frontend.flags & flag != 0;
    if !is(abi::FRONTEND_SOURCES) || is(abi::FRONTEND_GUARDS_OUTSIDE) {
        return Ok(false);
    }
    let node = maps.node()?.and_then(|node| convert::node(&node).ok());
    if node.is_some_and(|node| node.ips.contains(&packet.source)) {
        return Ok(false);
    }
    let list = if is(abi::FRONTEND_DENIES) { frontend.id | abi::SOURCES_DENIED } else { frontend.id };
    let keys = maps.sources()?.into_iter().filter(|key| key.frontend == list);
    let listed = keys.filter_map(|key| convert::source(&key).ok()).any(|prefix| prefix.contains(&packet.source));
    Ok(listed == is(abi::FRONTEND_DENIES))
}

/// The slots of a packet, if its hash leads to some.
fn hashed(frontend: &abi::FrontendValue, packet: &Packet) -> Option<Vec<u32>> {
    let hash = match convert::affinity(frontend) {
        Some(affinity) => affinity.client_hash(packet.source),
        None => packet.flow_hash(),
    };
    match frontend.lookup {
        abi::LOOKUP_HASH => Some(vec![flow_hash::slot(hash, frontend.slots)]),
        abi::LOOKUP_LEAST => Some(flow_hash::two_slots(hash, FLOW_SEED, frontend.slots).into()),
        _ => None,
    }
}

/// The backends in these slots of a frontend.
fn backends(
    maps: &Maps,
    slots: impl IntoIterator<Item = u32>,
    steps: &mut Vec<String>,
) -> Result<BTreeMap<BackendAddr, u32>, EbpfError> {
    let mut ids: BTreeMap<u32, u32> = BTreeMap::new();
    for id in slots {
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
