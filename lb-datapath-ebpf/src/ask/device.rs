//! Packets of pods and of uplinks: a copy of the attached program handles them.

use lb_core::{
    addr::BackendAddr,
    decision::{Entry, FlowView, Packet},
    kernel::{Backends, KernelAnswer, KernelVerdict},
};

use super::{
    answer,
    packet::{Parsed, Tuple, frame, parse},
    records::FlowRecords,
};
use crate::{
    datapath::Kernel,
    error::EbpfError,
    object::Object,
    pins::anchors::Anchors,
    programs::{DryRun, INGRESS},
    sys::TestRun,
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
        None => DryRun::load(&Object::new(&kernel.features), &anchors.pinned_maps()?)?,
    };
    let dry = kernel.dry.insert(dry);
    let method = format!("BPF_PROG_TEST_RUN of {INGRESS} (tag {:016x})", dry.program.info.tag);
    if dry.program.info.tag != kernel.programs.named(INGRESS).ok_or(EbpfError::NoProgram { name: INGRESS })?.info.tag {
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
    let Some(frame) = frame(packet, kernel.maps.network().hardware(name).map_err(running)?, flags) else {
        steps.push("its addresses are of different families".into());
        return Ok(answer(method, steps, flow, KernelVerdict::Pass));
    };
    let run = records.run(dry, &frame, device)?;
    let verdict = judge(packet, &run)?;
    steps.push(format!("verdict {}", verdict_name(run.verdict)));
    Ok(answer(method, steps, flow, verdict))
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
        (TCX_REDIRECT, Some(Parsed::Refusal)) => Ok(KernelVerdict::Reject),
        _ => Err(running(std::io::Error::other(format!("unexpected verdict {}", run.verdict)))),
    }
}
