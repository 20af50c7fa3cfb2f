//! Asks the kernel what it does with a packet.

mod device;
pub(crate) mod packet;
mod records;
mod socket;

use lb_core::{
    decision::{Entry, FlowView, Packet},
    kernel::{KernelAnswer, KernelVerdict},
};

use self::{device::at_device, socket::at_socket};
use crate::{config::EbpfConfig, datapath::Kernel, error::EbpfError, pins::anchors::Anchors};

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

/// The answer of a kernel that has none of the programs.
pub(crate) fn nothing_loaded() -> KernelAnswer {
    answer("nothing: no program is loaded", Vec::new(), FlowView::default(), KernelVerdict::Pass)
}

fn answer(method: impl Into<String>, steps: Vec<String>, flow: FlowView, verdict: KernelVerdict) -> KernelAnswer {
    KernelAnswer { method: method.into(), steps, flow, verdict }
}
