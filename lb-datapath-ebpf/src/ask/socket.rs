//! Packets of sockets: the kernel runs no program of sockets on demand, so their maps are read.

use std::collections::BTreeMap;

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    decision::{FlowView, Packet},
    kernel::{Backends, KernelAnswer, KernelVerdict},
};
use lb_datapath_ebpf_abi as abi;

use super::answer;
use crate::{
    error::EbpfError,
    pins::anchors::Anchors,
    state::{
        convert,
        maps::{Maps, Table},
    },
};

/// Reads what the programs of sockets would read: the kernel does not run them on demand.
pub(super) fn at_socket(maps: &Maps, anchors: &Anchors, packet: &Packet) -> Result<KernelAnswer, EbpfError> {
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
