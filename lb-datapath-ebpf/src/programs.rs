//! The programs: the embedded object, loaded.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{Ebpf, EbpfLoader, programs::Program};
use aya_obj::generated::bpf_attach_type::{self, *};

use crate::{config::Capacities, error::EbpfError, maps::LAYOUTS};

/// Built by `cargo xtask build-ebpf` from `programs/`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("lb.bpf.o");

/// Programs of sockets: name, which is that of their pins as well, and where they are attached.
pub(crate) const SOCKET_PROGRAMS: [(&str, bpf_attach_type); 8] = [
    ("lb_connect4", BPF_CGROUP_INET4_CONNECT),
    ("lb_connect6", BPF_CGROUP_INET6_CONNECT),
    ("lb_sendmsg4", BPF_CGROUP_UDP4_SENDMSG),
    ("lb_sendmsg6", BPF_CGROUP_UDP6_SENDMSG),
    ("lb_recvmsg4", BPF_CGROUP_UDP4_RECVMSG),
    ("lb_recvmsg6", BPF_CGROUP_UDP6_RECVMSG),
    ("lb_getpeername4", BPF_CGROUP_INET4_GETPEERNAME),
    ("lb_getpeername6", BPF_CGROUP_INET6_GETPEERNAME),
];

/// The program of devices.
pub(crate) const INGRESS: &str = "lb_ingress";

/// The programs in the kernel. Links keep a program alive without this.
#[derive(Debug)]
pub(crate) struct Programs {
    sockets: Vec<OwnedFd>,
    ingress: OwnedFd,
}

impl Programs {
    /// Loads the programs with the maps that are pinned in `maps`; those that are missing are made.
    pub(crate) fn load(maps: &Path, capacities: &Capacities) -> Result<Self, EbpfError> {
        let mut loader = EbpfLoader::new();
        for layout in &LAYOUTS {
            loader.map_pin_path(layout.name, maps.join(layout.name));
            if let Some(entries) = (layout.capacity)(capacities) {
                loader.map_max_entries(layout.name, entries);
            }
        }
        let mut object = loader.load(OBJECT).map_err(|error| EbpfError::Load(Box::new(error)))?;
        let names = SOCKET_PROGRAMS.iter().map(|(name, _)| name);
        let sockets = names.map(|name| load(&mut object, name)).collect::<Result<_, _>>()?;
        Ok(Self { sockets, ingress: load(&mut object, INGRESS)? })
    }

    /// Programs of sockets, in the order of [`SOCKET_PROGRAMS`].
    pub(crate) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    pub(crate) fn ingress(&self) -> BorrowedFd<'_> {
        self.ingress.as_fd()
    }
}

fn load(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, EbpfError> {
    let program = object.program_mut(name).ok_or(EbpfError::NoProgram { name })?;
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(EbpfError::NoProgram { name }),
    };
    let fd = loaded.and_then(|()| Ok(program.fd()?.as_fd().try_clone_to_owned()?));
    fd.map_err(|source| EbpfError::Program { name, source: Box::new(source) })
}
