//! Programs by where they are attached.

use std::io;

use aya_obj::generated::{bpf_attach_type::BPF_TCX_INGRESS, bpf_cmd};

use super::{IfIndex, address_mut, bpf};

/// `struct bpf_attr` of `BPF_PROG_QUERY`, up to what tcx wants.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Most programs of a device that are asked for: the kernel takes no more (`BPF_MPROG_MAX`).
const MOST: usize = 64;

/// Ids of the programs that are attached to the ingress of a device of this thread's network namespace by tcx.
pub(crate) fn programs_of(device: IfIndex) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST];
    let mut attr = QueryAttr {
        target: device.0,
        attach_type: BPF_TCX_INGRESS as u32,
        prog_ids: address_mut(&mut ids),
        count: MOST as u32,
        ..QueryAttr::default()
    };
    // SAFETY: `ids` has room for `count` ids, and the other addresses are null.
    match unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) } {
        Ok(_) => Ok(ids[..(attr.count as usize).min(MOST)].to_vec()),
        // Nothing was ever attached to the device.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
