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
    records::{Claim, FlowRecords},
    way::{self, Route, Way},
};
use crate::{
    KernelFeatures,
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
    let mut records = FlowRecords::of(&kernel.maps, packet)?;
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
    if records.gives_way(packet) && goes_on(packet, &verdict) {
        steps.push("a flow of a frontend has its addresses and ports: it gets another source".into());
        return Ok(answer(method, steps, flow, KernelVerdict::Pass));
    }
    let mut faults = Vec::new();
    let again = |left: &Tuple| match records.claim(&kernel.maps, packet, left)? {
        Some(claim) => Ok(Some((claim, records.run(dry, &frame, device)?))),
        None => Ok(None),
    };
    let run = apart(packet, run, again)?.tell(&mut steps, &mut faults);
    if let (TCX_REDIRECT, Some(Parsed::Flow(after))) = (run.verdict, parse(&run.packet)) {
        let route = way::route(after.destination).map_err(running)?;
        faults.extend(source_fault(&kernel.maps, kernel.features, packet, &after, route, &mut steps)?);
        let longest = way.mtu.min(LONGEST);
        if let Some(long) = long(packet, way.to, flags, longest) {
            let run = records.run(dry, &long, device)?;
            faults.extend(size_fault(longest, &run, route, &mut steps).map_err(running)?);
        }
    }
    Ok(KernelAnswer { faults, ..answer(method, steps, flow, verdict) })
}

/// Whether the packet goes where it was sent to.
fn goes_on(packet: &Packet, verdict: &KernelVerdict) -> bool {
    let to = BackendAddr::new(packet.destination, packet.destination_port, packet.protocol);
    matches!(verdict, KernelVerdict::Forward { backends: Backends::Took(backend), .. } if *backend == to)
}

/// How often the program is asked for ends that no other flow has. It tries 32 ports itself.
const ATTEMPTS: usize = 64;

/// What the program did once it knew which ends other flows have.
struct Apart {
    run: TestRun,
    steps: Vec<String>,
    fault: Option<String>,
}

impl Apart {
    fn tell(self, steps: &mut Vec<String>, faults: &mut Vec<String>) -> TestRun {
        steps.extend(self.steps);
        faults.extend(self.fault);
        self.run
    }
}

/// Asks `again` what has the ends that the packet left with, and what the program does once it knows of that, until no
/// other flow has them. A copy of the program does not know the flows that other packets have made.
fn apart(
    packet: &Packet,
    run: TestRun,
    mut again: impl FnMut(&Tuple) -> Result<Option<(Claim, TestRun)>, EbpfError>,
) -> Result<Apart, EbpfError> {
    let mut apart = Apart { run, steps: Vec::new(), fault: None };
    for attempt in 0..ATTEMPTS {
        let Some(Parsed::Flow(left)) = parse(&apart.run.packet) else { return Ok(apart) };
        if left == Tuple::of(packet) {
            return Ok(apart);
        }
        let Some((claim, run)) = again(&left)? else { return Ok(apart) };
        let says = format!("{} has the source {} to {}", claim.flow, left.source(), left.destination());
        if claim.was_known {
            apart.fault = Some(format!("source: {says} already, and the kernel gives it away"));
            return Ok(apart);
        }
        if attempt == 0 {
            apart.steps.push(format!("{says}: another one is looked for"));
        }
        apart.run = run;
    }
    apart.steps.push(format!("each of {ATTEMPTS} sources that were found has a flow: ports are scarce"));
    Ok(apart)
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
    features: KernelFeatures,
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
    let wrong = preferred.filter(|source| *source != after.source && features.routed_sources);
    Ok(wrong.map(|source| format!("source: the route to the backend says {source}, the kernel has {}", after.source)))
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
    let before = Tuple::of(packet);
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

#[cfg(test)]
mod tests {
    use lb_core::addr::Protocol;

    use super::*;

    fn packet(source_port: u16) -> Packet {
        Packet {
            entry: Entry::PodDevice,
            protocol: Protocol::Tcp,
            source: "10.244.0.2".parse().unwrap(),
            source_port,
            destination: "10.244.1.2".parse().unwrap(),
            destination_port: 8080,
        }
    }

    fn leaves_from(source_port: u16) -> TestRun {
        TestRun { verdict: TCX_REDIRECT, packet: frame(&packet(source_port), [2; 6], ACK).unwrap() }
    }

    /// Ports 1,000 and 1,001 have flows, and a program that knows of them takes the next port, or the same one again.
    fn asked(knows: bool) -> Apart {
        let mut seen = Vec::new();
        let again = |left: &Tuple| {
            let port = left.source_port;
            let claim = Claim { flow: "a closed flow", was_known: seen.contains(&port) };
            seen.push(port);
            Ok((port < 1002).then(|| (claim, leaves_from(port + u16::from(knows)))))
        };
        apart(&packet(40_000), leaves_from(1000), again).unwrap()
    }

    #[test]
    fn ends_that_other_flows_have_are_given_away_by_a_faulty_program_alone() {
        let [right, wrong] = [true, false].map(asked);
        let Some(Parsed::Flow(left)) = parse(&right.run.packet) else { panic!() };
        assert_eq!((left.source_port, right.fault), (1002, None));
        let says = "a closed flow has the source 10.244.0.2:1000 to 10.244.1.2:8080";
        assert_eq!(right.steps, [format!("{says}: another one is looked for")]);
        assert_eq!(wrong.fault, Some(format!("source: {says} already, and the kernel gives it away")));
    }
}
