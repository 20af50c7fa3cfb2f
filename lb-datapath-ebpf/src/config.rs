//! The configuration of the datapath.

use std::{ops::RangeInclusive, path::PathBuf};

use lb_core::datapath::{SocketCapability, SocketHash, SocketOwners};

/// The configuration of [`EbpfDatapath`](crate::EbpfDatapath).
///
/// Later versions may add settings, so start with [`new`](Self::new).
///
/// ```
/// use lb_datapath_ebpf::EbpfConfig;
///
/// let config = EbpfConfig::new("/sys/fs/cgroup").with_pin_dir("/sys/fs/bpf/mine").with_uplink_devices(["eth0"]);
/// assert_eq!(config.uplink_devices, ["eth0"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EbpfConfig {
    /// Directory in a BPF file system under which maps and links are pinned, in `v1/maps` and `v1/links`. It is made
    /// with mode 0700 and belongs to one datapath; another process that opens it is refused. Default
    /// `/sys/fs/bpf/lb`.
    pub pin_dir: PathBuf,
    /// Directory of the cgroup2 hierarchy whose tasks' sockets are served, with all cgroups below it.
    pub cgroup: PathBuf,
    /// Devices of the pods on this node, in the network namespace of the thread that opens the datapath. What is
    /// pinned for a device that is in neither list is removed.
    pub pod_devices: Vec<String>,
    /// Devices that lead out of the node.
    pub uplink_devices: Vec<String>,
    /// Sizes of the maps.
    pub capacities: Capacities,
    /// Where sockets are ended whose backend left. Default: in the network namespace of the thread that asks for it.
    pub destroy_sockets: DestroySockets,
    /// Attach to devices by filters of a `clsact` qdisc even where the kernel has TCX. Default false: by TCX where there
    /// is TCX. A datapath that was opened the other way is taken over without a moment without a program.
    pub force_clsact: bool,
    /// Which sockets of the cgroup are sent to a backend where they state their destination. Packets of the others are
    /// translated at devices. Default: all.
    pub socket_balancing: SocketBalancing,
    /// Whether sockets of the node are kept from binding an address and a port of the node that are a frontend (`bind`
    /// fails with `EADDRINUSE`). Sockets that are bound already stay. Default: yes.
    #[doc(alias = "BPF_CGROUP_INET4_POST_BIND")]
    pub guard_ports: bool,
    /// Whether sockets of the node reach node ports at loopback addresses as well. Default: yes.
    pub loopback_node_ports: bool,
    /// Ports that are node ports where a frontend at an address of the node has them. They are looked for when a socket
    /// is bound to every address, and at loopback addresses. Default 30000–32767, the default of Kubernetes.
    pub node_ports: RangeInclusive<u16>,
}

/// The sockets of the cgroup that are sent to a backend where they state their destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketBalancing {
    /// Those of every network namespace.
    #[default]
    All,
    /// Those of the network namespace of the thread that opens the datapath, usually the host's. Pods are served by
    /// packets, through their devices: what stands between a pod's processes and its device, as a proxy in the pod or a
    /// virtual machine, sees virtual addresses.
    Host,
    /// None. Sockets that were sent to a backend before keep it, and hear the virtual address. Processes of the node
    /// reach services only as far as their packets leave through an attached device, so no frontend at an address of the
    /// node: services that have one are marked degraded.
    Off,
}

impl SocketBalancing {
    /// How a datapath with this setting translates traffic of sockets.
    #[must_use]
    pub const fn capability(self) -> SocketCapability {
        let whose = match self {
            Self::Off => return SocketCapability::Egress,
            Self::Host => SocketOwners::Node,
            Self::All => SocketOwners::All,
        };
        SocketCapability::Connect { hashes: SocketHash::SocketCookie, whose }
    }
}

/// The network namespaces in which sockets are ended (`SOCK_DESTROY`) that were connected to a backend which left.
///
/// Only a socket that a program of this datapath has sent to that backend is ended, never one that was connected to it
/// directly. The kernel needs `CONFIG_INET_DIAG_DESTROY`, `CONFIG_INET_TCP_DIAG` and `CONFIG_INET_UDP_DIAG`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DestroySockets {
    /// In none: a connected socket waits for its own time-out.
    Off,
    /// In that of the thread which uses the datapath: usually the host's.
    #[default]
    Host,
    /// In those of all processes of the cgroup, too. It needs `CAP_SYS_ADMIN` to enter them, and `CAP_SYS_PTRACE` and the
    /// host's PID namespace to see them. Drain policies are carried out only with this: see
    /// [`Capabilities::drain`](lb_core::datapath::Capabilities::drain).
    #[doc(alias = "setns")]
    All,
}

impl EbpfConfig {
    /// Everything at its default, for the sockets of `cgroup` and no device.
    #[must_use]
    pub fn new(cgroup: impl Into<PathBuf>) -> Self {
        Self {
            pin_dir: "/sys/fs/bpf/lb".into(),
            cgroup: cgroup.into(),
            pod_devices: Vec::new(),
            uplink_devices: Vec::new(),
            capacities: Capacities::default(),
            destroy_sockets: DestroySockets::default(),
            force_clsact: false,
            socket_balancing: SocketBalancing::default(),
            guard_ports: true,
            loopback_node_ports: true,
            node_ports: 30000..=32767,
        }
    }

    /// The same with this [`socket_balancing`](Self::socket_balancing).
    #[must_use]
    pub const fn with_socket_balancing(mut self, socket_balancing: SocketBalancing) -> Self {
        self.socket_balancing = socket_balancing;
        self
    }

    /// The same with or without [`guard_ports`](Self::guard_ports).
    #[must_use]
    pub const fn with_guard_ports(mut self, guard_ports: bool) -> Self {
        self.guard_ports = guard_ports;
        self
    }

    /// The same with or without [`loopback_node_ports`](Self::loopback_node_ports).
    #[must_use]
    pub const fn with_loopback_node_ports(mut self, loopback_node_ports: bool) -> Self {
        self.loopback_node_ports = loopback_node_ports;
        self
    }

    /// The same with other [`node_ports`](Self::node_ports).
    #[must_use]
    pub fn with_node_ports(mut self, node_ports: RangeInclusive<u16>) -> Self {
        self.node_ports = node_ports;
        self
    }

    /// The same with another [`pin_dir`](Self::pin_dir).
    #[must_use]
    pub fn with_pin_dir(mut self, pin_dir: impl Into<PathBuf>) -> Self {
        self.pin_dir = pin_dir.into();
        self
    }

    /// The same with these [`pod_devices`](Self::pod_devices) in place of those before.
    #[must_use]
    pub fn with_pod_devices(mut self, devices: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.pod_devices = devices.into_iter().map(Into::into).collect();
        self
    }

    /// The same with these [`uplink_devices`](Self::uplink_devices) in place of those before.
    #[must_use]
    pub fn with_uplink_devices(mut self, devices: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.uplink_devices = devices.into_iter().map(Into::into).collect();
        self
    }

    /// The same with other [sizes of the maps](Self::capacities).
    #[must_use]
    pub const fn with_capacities(mut self, capacities: Capacities) -> Self {
        self.capacities = capacities;
        self
    }

    /// The same with sockets [ended](Self::destroy_sockets) in these network namespaces.
    #[must_use]
    pub const fn with_destroy_sockets(mut self, destroy_sockets: DestroySockets) -> Self {
        self.destroy_sockets = destroy_sockets;
        self
    }

    /// The same with another [`force_clsact`](Self::force_clsact).
    #[must_use]
    pub const fn with_force_clsact(mut self, force: bool) -> Self {
        self.force_clsact = force;
        self
    }

    pub(crate) fn forget_device(&mut self, name: &str) {
        self.pod_devices.retain(|known| known != name);
        self.uplink_devices.retain(|known| known != name);
    }
}

/// Sizes of the maps. Maps that are pinned already get them when the datapath is opened, with all that they have, and
/// established flows go on. One that has more than would fit keeps its size, which
/// [`kept_sizes`](crate::EbpfDatapath::kept_sizes) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Most frontends. Memory is taken as they come, about 120 bytes each. Default 65,536.
    pub frontends: u32,
    /// Most backends, and most counters of connections: up to eight for each backend of a service with least connections.
    /// Memory is taken as they come, about 90 bytes each. Default 262,144.
    pub backends: u32,
    /// Most backend sets. Memory is taken as they come. Default 65,536.
    pub sets: u32,
    /// Most backends in sets of UDP backends and sets under affinity, counted per set. Memory is taken as they come.
    /// Default 262,144.
    pub members: u32,
    /// Slots of all sets together: one per backend and unit of weight for random and round robin, the table's size for
    /// Maglev. Four bytes each, taken at once. Default 2,097,152.
    pub slots: u32,
    /// Most source ranges of all frontends together, counted per frontend. Memory is taken as they come, about 80 bytes
    /// each. Default 65,536.
    pub sources: u32,
    /// Clients that affinity remembers; beyond that the least recently used is forgotten. About 100 bytes each, taken at
    /// once. Default 65,536.
    pub affinity: u32,
    /// Pairs of socket and backend that are remembered, twice; beyond that the least recently used is forgotten, and a
    /// socket may see a backend's address. About 270 bytes each, taken at once. As many sockets can count for least
    /// connections; their memory is taken as they come. Default 65,536.
    pub sockets: u32,
    /// Directions of established flows of packets, two per flow, and again of flows that are new, closed or direct.
    /// Established flows take memory as they come; nothing is forgotten, and beyond that number a flow counts as new. Of
    /// new flows, the least recently used is forgotten; they take memory at once. About 160 bytes each. Default 131,072.
    pub flows: u32,
    /// Datagrams whose fragments are under way; beyond that the least recently used is forgotten, and the rest of its
    /// fragments is lost. About 110 bytes each, taken at once. Default 8,192.
    pub fragments: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            frontends: 65_536,
            backends: 262_144,
            sets: 65_536,
            members: 262_144,
            slots: 2_097_152,
            sources: 65_536,
            affinity: 65_536,
            sockets: 65_536,
            flows: 131_072,
            fragments: 8_192,
        }
    }
}
