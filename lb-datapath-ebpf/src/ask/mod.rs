//! Asks the kernel what it does with a packet.

mod device;
mod loads;
pub(crate) mod packet;
mod records;
mod socket;
mod way;

use lb_core::{
    addr::{FrontendAddr, Scope},
    decision::{Entry, FlowView, Packet},
    kernel::{KernelAnswer, KernelVerdict},
};

use lb_datapath_ebpf_abi as abi;

use self::{device::at_device, socket::at_socket};
use crate::{
    config::EbpfConfig,
    datapath::Kernel,
    error::EbpfError,
    pins::anchors::Anchors,
    state::{
        convert,
        maps::{Maps, Table},
    },
};

/// Asks what becomes of `packet`.
pub(crate) fn ask(
    kernel: &mut Kernel,
    anchors: &Anchors,
    config: &EbpfConfig,
    packet: &Packet,
) -> Result<KernelAnswer, EbpfError> {
    match packet.entry {
        // Its packets enter the node through the pod's device, as if nobody had seen the socket.
        Entry::Socket if socket::is_left_to_its_device(&kernel.maps, config, packet)? => {
            at_device(kernel, anchors, &config.pod_devices, &Packet { entry: Entry::PodDevice, ..*packet })
        }
        Entry::Socket => at_socket(kernel, anchors, config, packet),
        Entry::PodDevice => at_device(kernel, anchors, &config.pod_devices, packet),
        Entry::Uplink => at_device(kernel, anchors, &config.uplink_devices, packet),
    }
}

/// Whether the packet is one of the node itself, and not of a pod.
fn is_of_node(maps: &Maps, packet: &Packet) -> Result<bool, EbpfError> {
    let node = maps.node()?.and_then(|value| convert::node(&value).ok()).unwrap_or_default();
    Ok(packet.source.is_loopback() || node.ips.contains(&packet.source))
}

/// The frontend that a packet is for, as the programs find it: traffic from inside has the twin, if there is one.
fn frontend_of(maps: &Maps, packet: &Packet) -> Result<Option<(FrontendAddr, abi::FrontendValue)>, EbpfError> {
    let any = FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol);
    let inside = (packet.entry != Entry::Uplink).then_some(FrontendAddr { scope: Scope::Internal, ..any });
    for addr in inside.into_iter().chain([any]) {
        let Ok(key) = convert::frontend_key(&addr) else { return Ok(None) };
        if let Some(value) = maps.one(Table::Frontends, &key)? {
            return Ok(Some((addr, value)));
        }
    }
    Ok(None)
}

/// The answer of a kernel that has none of the programs.
pub(crate) fn nothing_loaded() -> KernelAnswer {
    answer("nothing: no program is loaded", Vec::new(), FlowView::default(), KernelVerdict::Pass)
}

fn answer(method: impl Into<String>, steps: Vec<String>, flow: FlowView, verdict: KernelVerdict) -> KernelAnswer {
    KernelAnswer { method: method.into(), steps, flow, verdict, faults: Vec::new() }
}
