//! Links.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use aya_obj::generated::{
    bpf_attach_type, bpf_cmd,
    bpf_link_type::{BPF_LINK_TYPE_CGROUP, BPF_LINK_TYPE_TCX},
};

use super::{IfIndex, bpf, bpf_fd, info, raw};
use crate::crash;

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    /// Its program.
    pub(crate) prog: u32,
    /// Id of the cgroup, or index of the device; 0 if that is gone, or if the link was detached.
    pub(crate) target: u64,
    pub(crate) attach_type: u32,
}

impl LinkInfo {
    /// Whether it attaches a program to a cgroup.
    pub(crate) const fn is_cgroup(&self) -> bool {
        self.kind == BPF_LINK_TYPE_CGROUP as u32
    }

    /// Whether it attaches a program to a device.
    pub(crate) const fn is_tcx(&self) -> bool {
        self.kind == BPF_LINK_TYPE_TCX as u32
    }
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link: u32,
    prog: u32,
    flags: u32,
    old_prog: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkDetachAttr {
    link: u32,
}

/// What the kernel says about a link.
pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let [kind, _id, prog, _pad, a, b, c, ..] = info::<8>(fd)?;
    Ok(if kind == BPF_LINK_TYPE_CGROUP as u32 {
        LinkInfo { kind, prog, target: u64::from(a) | u64::from(b) << 32, attach_type: c }
    } else {
        LinkInfo { kind, prog, target: u64::from(a), attach_type: b }
    })
}

/// Attaches a program to a cgroup.
pub(crate) fn attach_cgroup(
    prog: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    attach(prog, raw(cgroup), attach_type)
}

/// Attaches a program to the ingress or egress of a device, behind those that are there.
pub(crate) fn attach_tcx(prog: BorrowedFd<'_>, device: IfIndex, attach_type: bpf_attach_type) -> io::Result<OwnedFd> {
    attach(prog, device.0, attach_type)
}

fn attach(prog: BorrowedFd<'_>, target: u32, attach_type: bpf_attach_type) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr { prog: raw(prog), target, attach_type: attach_type as u32, ..Default::default() };
    // SAFETY: the attributes hold no addresses.
    let link = unsafe { bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?;
    crash::point();
    Ok(link)
}

/// Replaces the program of a link: every packet meets either the old one or the new one.
pub(crate) fn update_link(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: raw(link), prog: raw(prog), ..LinkUpdateAttr::default() };
    // SAFETY: the attributes hold no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }?;
    crash::point();
    Ok(())
}

/// Detaches the program of a link before it returns. A link whose last descriptor or pin goes is detached later, by a
/// work queue: <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/syscall.c> (`bpf_link_put`).
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link: raw(link) };
    // SAFETY: the attributes hold no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }?;
    crash::point();
    Ok(())
}
