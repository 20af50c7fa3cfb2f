//! Packets of pods and of uplinks: a copy of the attached program handles them.

use std::io;

use lb_core::{
    addr::BackendAddr,
    decision::{Entry, FlowView, Packet},
    kernel::{Backends, KernelAnswer, KernelVerdict},
};

use super::{
    answer,
    packet::{ACK, ETHERNET, Parsed, Tuple, frame, frame_of, parse},
    records::FlowRecords,
    way::{self, Route, Way},
};
use crate::{
    datapath::Kernel,
    error::EbpfError,
    object::Object,
    pins::anchors::Anchors,
    programs::{DryRun, INGRESS},
    state::{convert, maps::Maps},
    sys::{IfIndex, TestRun},
};

const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;
const TCX_REDIRECT: i32 = 7;

/// Lets a copy of the attached program handle the packet.
pub(super) fn at_device(
    kernel: &mut Kernel,
    anchors: &Anchors,
    names: &[String],
    packet: &Packet,
) -> Result<KernelAnswer, EbpfError> {
    let links = anchors.links_of(INGRESS).filter_map(|link| Some((link, link.device()?)));
    let attached = links.filter(|(link, (name, _))| names.iter().any(|known| known == name) && link.is_attached());
    let attached: Vec<u32> = attached.map(|(_, (_, device))| device.0).collect();
    let Some(way) = Way::of(packet.source, &attached).map_err(running)? else {
        if packet.entry == Entry::PodDevice && names.is_empty() {
            return Err(EbpfError::NoPodDevice);
        }
        let steps = vec![format!("{INGRESS} is attached to none of these devices: {}", names.join(" "))];
        return Ok(answer("links of the programs", steps, FlowView::default(), KernelVerdict::Pass));
    };
    let dry = match kernel.dry.take() {
        Some(dry) => dry,
        None => DryRun::load(&Object::new(&kernel.features), &anchors.pinned_maps()?)?,
    };
    let dry = kernel.dry.insert(dry);
    let method = format!("BPF_PROG_TEST_RUN of {INGRESS} (tag {:016x})", dry.program.info.tag);
    if dry.program.info.tag != kernel.programs.named(INGRESS).ok_or(EbpfError::NoProgram { name: INGRESS })?.info.tag {
        return Err(EbpfError::NoProgram { name: INGRESS });
    }
    let records = FlowRecords::of(&kernel.maps, packet)?;
    let mut steps = vec![match &way.bridge {
        Some(bridge) => {
            format!("as if it came in through {}, a port of bridge {bridge}, to the bridge's address", way.name)
        }
        None => format!("as if it came in through {}", way.name),
    }];
    steps.extend(records.steps());
    if records.is_reply() {
        steps.push("it is an answer of a backend: translated back".into());
        return Ok(answer(method, steps, FlowView::default(), KernelVerdict::Pass));
    }
    let (mut flow, mut flags) = (records.view(&kernel.maps, packet)?, records.tcp_flags());
    if flow.established.is_none() && way::awaits(packet) == Some(true) {
        steps.push("a socket of the node is connected to the sender: it is an answer".into());
        (flow.direct, flags) = (true, ACK);
    }
    let Some(frame) = frame(packet, way.to, flags) else {
        steps.push("its addresses are of different families".into());
        return Ok(answer(method, steps, flow, KernelVerdict::Pass));
    };
    let device = IfIndex(way.index);
    let run = records.run(dry, &frame, device)?;
    let verdict = judge(packet, &run)?;
    steps.push(format!("verdict {}", verdict_name(run.verdict)));
    let mut faults = Vec::new();
    if let (TCX_REDIRECT, Some(Parsed::Flow(after))) = (run.verdict, parse(&run.packet)) {
        let route = way::route(after.destination).map_err(running)?;
        faults.extend(source_fault(&kernel.maps, packet, &after, route, &mut steps)?);
        let longest = way.mtu.min(LONGEST);
        if let Some(long) = long(packet, way.to, flags, longest) {
            let run = records.run(dry, &long, device)?;
            faults.extend(size_fault(longest, &run, route, &mut steps).map_err(running)?);
        }
    }
    Ok(KernelAnswer { faults, ..answer(method, steps, flow, verdict) })
}

/// The longest IP packet that a dry run takes: all of it has to lie in one page, beside what the kernel adds
/// (`bpf_test_init` in <https://elixir.bootlin.com/linux/v6.18/source/net/bpf/test_run.c>).
const LONGEST: u32 = 3500;

/// `packet` with so much payload that it has this length.
fn long(packet: &Packet, to: [u8; 6], flags: u8, longest: u32) -> Option<Vec<u8>> {
    let empty = frame(packet, to, flags)?.len() - ETHERNET;
    frame_of(packet, to, flags, u16::try_from(usize::try_from(longest).ok()?.checked_sub(empty)?).ok()?)
}

/// Says where a translated source comes from; a fault if the route to the backend prefers another address of the node.
fn source_fault(
    maps: &Maps,
    packet: &Packet,
    after: &Tuple,
    route: Route,
    steps: &mut Vec<String>,
) -> Result<Option<String>, EbpfError> {
    if after.source == packet.source {
        return Ok(None);
    }
    let node = maps.node()?.and_then(|value| convert::node(&value).ok()).unwrap_or_default();
    let preferred = route.source.filter(|source| node.ips.contains(source));
    steps.push(match preferred {
        Some(source) if source == after.source => format!("source {source}, as the route to the backend says"),
        _ => format!("source {}, port {}", after.source, after.source_port),
    });
    let wrong = preferred.filter(|source| *source != after.source && follows_routes());
    Ok(wrong.map(|source| format!("source: the route to the backend says {source}, the kernel has {}", after.source)))
}

/// Whether the kernel tells programs the source that a route prefers (`BPF_FIB_LOOKUP_SRC`, Linux 6.7).
fn follows_routes() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(7))
}

/// Says what comes back for a packet of `longest` bytes; a fault if it is sent on to a device that does not take it.
fn size_fault(longest: u32, run: &TestRun, route: Route, steps: &mut Vec<String>) -> io::Result<Option<String>> {
    match parse(&run.packet) {
        Some(Parsed::TooBig { from, mtu }) => {
            let kind = if from.is_ipv4() { "fragmentation needed" } else { "packet too big" };
            steps.push(format!("a packet of {longest} bytes is answered with \"{kind}\" by {from}: {mtu} bytes fit"));
            Ok(None)
        }
        Some(Parsed::Flow(_)) if run.verdict == TCX_REDIRECT => {
            let mtu = route.device.map(way::mtu).transpose()?.flatten();
            Ok(mtu.filter(|mtu| *mtu < longest).map(|mtu| {
                format!(
                    "size: a packet of {longest} bytes is sent on to a device whose MTU is {mtu}, and nobody is told"
                )
            }))
        }
        _ => Ok(None),
    }
}

pub(super) fn running(source: std::io::Error) -> EbpfError {
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

/// The verdict in the model's terms, from the program's verdict and the packet that came out.
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
        (TCX_REDIRECT, Some(Parsed::Refusal | Parsed::TooBig { .. })) => Ok(KernelVerdict::Reject),
        _ => Err(running(std::io::Error::other(format!("unexpected verdict {}", run.verdict)))),
    }
}
