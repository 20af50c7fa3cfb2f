//! The programs: the embedded object, loaded.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{Ebpf, EbpfLoader, maps::Map, programs::Program};
use aya_obj::generated::bpf_attach_type::{self, *};

use crate::{
    config::Capacities,
    crash,
    error::{EbpfError, Refusal},
    object::Object,
    pins::resize,
    state::layout::{CT_LIVE, FRAGMENTS, LAYOUTS, LOADS, REASONS, WORK},
    sys::{self, ProgInfo, RawMap},
};

/// Programs of sockets: name, which is that of their pins as well, and where they are attached.
pub(crate) const SOCKET_PROGRAMS: [(&str, bpf_attach_type); 11] = [
    ("lb_connect4", BPF_CGROUP_INET4_CONNECT),
    ("lb_connect6", BPF_CGROUP_INET6_CONNECT),
    ("lb_sendmsg4", BPF_CGROUP_UDP4_SENDMSG),
    ("lb_sendmsg6", BPF_CGROUP_UDP6_SENDMSG),
    ("lb_recvmsg4", BPF_CGROUP_UDP4_RECVMSG),
    ("lb_recvmsg6", BPF_CGROUP_UDP6_RECVMSG),
    ("lb_getpeername4", BPF_CGROUP_INET4_GETPEERNAME),
    ("lb_getpeername6", BPF_CGROUP_INET6_GETPEERNAME),
    ("lb_post_bind4", BPF_CGROUP_INET4_POST_BIND),
    ("lb_post_bind6", BPF_CGROUP_INET6_POST_BIND),
    ("lb_sock_release", BPF_CGROUP_INET_SOCK_RELEASE),
];

/// The program of packets that come in through a device.
pub(crate) const INGRESS: &str = "lb_ingress";
/// The program of packets that leave through a device.
pub(crate) const EGRESS: &str = "lb_egress";

/// Programs of devices: name, with which their pins begin as well, and where they are attached.
pub(crate) const DEVICE_PROGRAMS: [(&str, bpf_attach_type); 2] = [(INGRESS, BPF_TCX_INGRESS), (EGRESS, BPF_TCX_EGRESS)];

/// The programs in the kernel. Links keep a program alive without this.
#[derive(Debug)]
pub(crate) struct Programs {
    sockets: Vec<Loaded>,
    devices: [Loaded; DEVICE_PROGRAMS.len()],
}

/// A program in the kernel.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) fd: OwnedFd,
    pub(crate) info: ProgInfo,
}

impl Programs {
    /// Loads the programs with the maps that are pinned in `maps`; those that are missing are made.
    pub(crate) fn load(object: &Object, maps: &Path, capacities: &Capacities) -> Result<Self, EbpfError> {
        let mut loader = EbpfLoader::new();
        for layout in &LAYOUTS {
            loader.map_pin_path(layout.name, resize::path(maps, layout.name));
            if let Some(entries) = (layout.capacity)(capacities) {
                loader.map_max_entries(layout.name, entries);
            }
        }
        let mut object = loader.load(object.bytes()).map_err(|error| EbpfError::Load(Refusal::of(&error)))?;
        crash::point();
        let names = SOCKET_PROGRAMS.iter().map(|(name, _)| name);
        let sockets = names.map(|name| load(&mut object, name)).collect::<Result<_, _>>()?;
        let [ingress, egress] = DEVICE_PROGRAMS.map(|(name, _)| load(&mut object, name));
        Ok(Self { sockets, devices: [ingress?, egress?] })
    }

    /// Programs of sockets, in the order of [`SOCKET_PROGRAMS`].
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Loaded> {
        self.sockets.iter()
    }

    /// Programs of devices, in the order of [`DEVICE_PROGRAMS`].
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Loaded> {
        self.devices.iter()
    }

    /// The program called `name`.
    pub(crate) fn named(&self, name: &str) -> Option<&Loaded> {
        let names = SOCKET_PROGRAMS.iter().chain(&DEVICE_PROGRAMS).map(|(program, _)| *program);
        names.zip(self.sockets().chain(self.devices())).find(|(program, _)| *program == name).map(|(_, loaded)| loaded)
    }
}

/// A second copy of the program of devices. It reads the same services, but writes flows, records and counters into
/// maps of its own, so that a run leaves no trace.
#[derive(Debug)]
pub(crate) struct DryRun {
    pub(crate) program: Loaded,
    pub(crate) new_flows: RawMap,
    pub(crate) live_flows: RawMap,
    pub(crate) affinity: RawMap,
    pub(crate) turns: RawMap,
    pub(crate) loads: RawMap,
}

impl DryRun {
    /// Maps that are not shared.
    const OWN: [&str; 10] =
        ["AFFINITY", "SOCK_PEERS", "SOCK_FLOWS", "CT", CT_LIVE, "TURNS", LOADS, FRAGMENTS, REASONS, WORK];
    /// Capacity of the maps that are not shared. One packet needs a few entries, but an LRU map that is as small as
    /// that evicts before it is full, since it hands free elements to processors in batches:
    /// <https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/bpf_lru_list.c> (`LOCAL_FREE_TARGET`).
    const ENTRIES: u32 = 1024;

    /// Loads it, with the services that are pinned in `maps`.
    pub(crate) fn load(object: &Object, maps: &Path) -> Result<Self, EbpfError> {
        let mut loader = EbpfLoader::new();
        for layout in &LAYOUTS {
            if Self::OWN.contains(&layout.name) {
                if (layout.capacity)(&Capacities::default()).is_some() {
                    loader.map_max_entries(layout.name, Self::ENTRIES);
                }
            } else {
                loader.map_pin_path(layout.name, maps.join(layout.name));
            }
        }
        let mut object = loader.load(object.bytes()).map_err(|error| EbpfError::Load(Refusal::of(&error)))?;
        let program = load(&mut object, INGRESS)?;
        let names = ["CT", CT_LIVE, "AFFINITY", "TURNS", LOADS];
        let [new, live, affinity, turns, loads] = names.map(|name| own(&object, name));
        Ok(Self { program, new_flows: new?, live_flows: live?, affinity: affinity?, turns: turns?, loads: loads? })
    }
}

fn own(object: &Ebpf, name: &'static str) -> Result<RawMap, EbpfError> {
    let missing = || EbpfError::Map { name, what: "making", source: io::ErrorKind::NotFound.into() };
    let data = match object.map(name).ok_or_else(missing)? {
        Map::HashMap(data) | Map::LruHashMap(data) => data,
        _ => return Err(missing()),
    };
    let fd = data.fd().as_fd().try_clone_to_owned();
    fd.and_then(RawMap::new).map_err(|source| EbpfError::Map { name, what: "opening", source })
}

fn load(object: &mut Ebpf, name: &'static str) -> Result<Loaded, EbpfError> {
    let program = object.program_mut(name).ok_or(EbpfError::NoProgram { name })?;
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(EbpfError::NoProgram { name }),
    };
    let fd = loaded.and_then(|()| Ok(program.fd()?.as_fd().try_clone_to_owned()?));
    let fd = fd.map_err(|error| EbpfError::Program { name, source: Refusal::of(&error) })?;
    let info = sys::prog_info(fd.as_fd()).map_err(|source| EbpfError::Examine { name, source })?;
    Ok(Loaded { fd, info })
}
