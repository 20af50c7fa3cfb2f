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

/// Whether the kernel has tcx. It looks at the hook that is asked for first, and then at the device, of which there is
/// none with this number.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/syscall.c> (`bpf_prog_query`)
pub(crate) fn has_tcx() -> io::Result<bool> {
    let mut attr = QueryAttr { attach_type: BPF_TCX_INGRESS as u32, ..QueryAttr::default() };
    // SAFETY: the addresses are null.
    let error = unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) }.err();
    match error.as_ref().and_then(io::Error::raw_os_error) {
        None | Some(libc::ENODEV) => Ok(true),
        Some(libc::EINVAL) => Ok(false),
        Some(_) => Err(error.unwrap_or_else(io::Error::last_os_error)),
    }
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
