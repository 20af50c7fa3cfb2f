//! A node with the datapath, in a lab, whose program runs packets on demand.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

use aya::{EbpfLoader, programs::SchedClassifier};
use lb_core::{
    addr::BackendAddr,
    datapath::{Datapath, Role},
    decision::Entry,
    model::{Change, Model, Settings},
    node::NodeFacts,
    reconciler::Reconciler,
    time::Instant,
};
use lb_datapath_ebpf::{Capacities, EbpfConfig, EbpfDatapath, SocketBalancing};
use lb_testkit::lab::{Lab, Node};

use crate::{
    bpf::{Runner, Table, attached},
    routes::Routes,
};

/// The programs of packets, of those that come in and of those that leave, and the prefixes of the names of their links.
const PROGRAMS: [&str; 2] = ["lb_ingress", "lb_egress"];
/// Tables that the program fills with flows and clients.
const TABLES: [&str; 4] = ["CT", "CT_LIVE", "AFFINITY", "FRAGMENTS"];
/// Prefixes that the node has no way to: how its routes say so.
pub(crate) const NOWHERE: [(&str, &str); 4] = [
    ("blackhole", "10.244.66.0/24"),
    ("unreachable", "10.244.67.0/24"),
    ("prohibit", "fd00:10:244:66::/64"),
    ("unreachable", "fd00:10:244:67::/64"),
];

/// Prefixes of the link that the uplink is on.
const SEGMENTS: [&str; 2] = ["172.18.0.0/24", "fd00:172:18::/64"];

/// Prefixes of the node's pods.
const PODS: [&str; 2] = ["10.244.0.0/24", "fd00:10:244::/64"];

/// A device, and what packets do there: they come in through it, or the node itself sends them through it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    /// [`Entry::Socket`] for packets of the node itself.
    pub(crate) entry: Entry,
    pub(crate) index: u32,
    pub(crate) mac: [u8; 6],
}

impl Device {
    /// Whether packets leave through it.
    pub(crate) fn is_left(&self) -> bool {
        self.entry == Entry::Socket
    }
}

/// The node, its datapath, and the model of what that holds.
pub(crate) struct World {
    /// The uplink, then the devices of pods, then the same for packets of the node.
    pub(crate) devices: Vec<Device>,
    pub(crate) role: Role,
    /// Counts changes of services.
    pub(crate) version: u64,
    /// Every backend that services had since the tables were empty, with the last change after which none had it.
    pub(crate) backends: BTreeMap<BackendAddr, u64>,
    /// Of packets that come in, and of those that leave.
    pub(crate) runners: [Runner; 2],
    datapath: EbpfDatapath,
    pub(crate) reconciler: Reconciler,
    tables: Vec<Table>,
    facts: NodeFacts,
    _lab: Lab,
}

impl World {
    /// Builds it. If `object` names an eBPF object, its programs run packets instead of those that are attached, with the
    /// same maps.
    pub(crate) fn new(object: Option<PathBuf>) -> Self {
        let lab = Lab::builder().nodes(2).pods_per_node(2).build().unwrap();
        let node = lab.node(0);
        for (kind, prefix) in NOWHERE {
            route(node, &["add", kind, prefix]);
        }
        leave_few_ports(node);
        let pins = node.pin_dir().unwrap();
        let capacities =
            Capacities { slots: 65_536, sockets: 4_096, affinity: 16_384, flows: 65_536, ..Default::default() };
        let config = EbpfConfig::new(node.cgroup())
            .with_pin_dir(&pins)
            .with_capacities(capacities)
            .with_socket_balancing(SocketBalancing::Off)
            .with_pod_devices(node.pod_devices())
            .with_uplink_devices([node.uplink()]);
        let mut datapath = node.run(|| EbpfDatapath::open(config)).unwrap().unwrap();
        let settings = Settings::default().with_external_ips_of_node(true).with_answer_ping(true);
        let mut reconciler = Reconciler::new(Model::new(settings, datapath.capabilities()));
        reconciler.handle_observed(datapath.observe().unwrap());
        // A packet runs on a device of the namespace that the thread is in.
        node.netns().enter().unwrap();
        let maps = pins.join("v1/maps");
        let programs = match object {
            None => PROGRAMS.map(|name| attached(&pins.join("v1/links"), name).unwrap()),
            Some(path) => load(&path, &maps),
        };
        let mut world = Self {
            devices: devices(node),
            role: Role::Active,
            version: 0,
            backends: BTreeMap::new(),
            runners: programs.map(Runner::new),
            datapath,
            reconciler,
            tables: TABLES.map(|name| Table::open(&maps.join(name)).unwrap()).into(),
            facts: node.facts(),
            _lab: lab,
        };
        world.change([Change::SetNode(world.facts.clone())]);
        world
    }

    /// What the node knows of itself.
    pub(crate) const fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    pub(crate) fn routes(&self) -> Routes {
        let on_link = SEGMENTS.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let nowhere = NOWHERE.iter().map(|(_, prefix)| prefix.parse().unwrap()).collect();
        let pods = PODS.map(|prefix| prefix.parse().unwrap()).to_vec();
        Routes { local: self.facts.ips.clone(), nowhere, on_link, pods }
    }

    /// Changes services, in the model and in the kernel.
    pub(crate) fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.reconciler.handle_change(change).unwrap();
        }
        while let Some(plan) = self.reconciler.poll_plan(Instant::default()).unwrap() {
            let outcome = self.datapath.apply(&plan);
            assert!(outcome.is_ok(), "{outcome:?}");
            self.reconciler.handle_applied(plan.id, outcome, Instant::default());
        }
        self.version += 1;
        let state = self.datapath.observe().unwrap();
        let now: BTreeSet<BackendAddr> = state.backends.values().map(|backend| backend.addr).collect();
        for (backend, left) in &mut self.backends {
            if !now.contains(backend) {
                *left = self.version;
            }
        }
        for backend in now {
            self.backends.entry(backend).or_insert(0);
        }
    }

    pub(crate) fn set_role(&mut self, role: Role) {
        self.datapath.set_role(role).unwrap();
        self.role = role;
    }

    /// Forgets all flows and clients.
    pub(crate) fn clear(&mut self) {
        for table in &self.tables {
            table.clear().unwrap();
        }
        self.backends.clear();
        self.version += 1;
    }
}

/// Leaves about a thousand ports to translated sources, so that flows meet.
fn leave_few_ports(node: Node<'_>) {
    let write = || fs::write("/proc/sys/net/ipv4/ip_local_port_range", "2100 65000");
    node.run(write).unwrap().unwrap();
}

fn route(node: Node<'_>, args: &[&str]) {
    let output = node.run(|| Command::new("ip").arg("route").args(args).output()).unwrap().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn devices(node: Node<'_>) -> Vec<Device> {
    let uplink = (Entry::Uplink, node.uplink().to_owned());
    let pods = node.pod_devices().into_iter().map(|name| (Entry::PodDevice, name));
    let device = |(entry, name): (Entry, String)| {
        let shown = node.run(|| Command::new("ip").args(["-o", "link", "show", &name]).output()).unwrap().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let index = shown.split(':').next().unwrap().parse().unwrap();
        let mac = shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        Device { entry, index, mac: mac.try_into().unwrap() }
    };
    let into: Vec<Device> = [uplink].into_iter().chain(pods).map(device).collect();
    let out = into.iter().map(|device| Device { entry: Entry::Socket, ..*device });
    into.iter().copied().chain(out).collect()
}

/// The programs of the object at `path`, with the maps that are pinned in `maps`.
fn load(path: &Path, maps: &Path) -> [OwnedFd; 2] {
    let names = fs::read_dir(maps).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.collect();
    let mut loader = EbpfLoader::new();
    for name in &names {
        loader.map_pin_path(name, maps.join(name));
    }
    let mut object = loader.load_file(path).unwrap();
    PROGRAMS.map(|name| {
        let program: &mut SchedClassifier = object.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
        program.fd().unwrap().as_fd().try_clone_to_owned().unwrap()
    })
}
