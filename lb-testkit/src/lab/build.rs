//! From a description to a running lab.

use std::{
    net::IpAddr,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Instant,
};

use ipnet::IpNet;

use super::{
    Lab, Netns, NodeState, Offload, Origin, PodState, Privilege, cgroup,
    netlink::{Batch, wait_until_local},
    offload,
    owner::{Directories, LabId, sweep},
    spawn::Spawner,
    sysctl,
    topology::{self as plan, FAMILIES},
    wire::{self, LOOPBACK, VethEnd},
};
use crate::{
    error::LabError,
    worker::{MARK, Remote, can_be_worker},
};

/// Index of the only device beside the loopback in pods, clients and nodes; also the segment's bridge.
pub(super) const UPLINK_INDEX: u32 = 2;
/// Index of the first pod device in a node, and of the first bridge port in the segment.
pub(super) const FIRST_INDEX: u32 = 10;
/// Name of the uplink of nodes and of the device of pods and clients.
pub(super) const UPLINK: &str = "eth0";
const ROUTER_BEYOND: &str = "eth1";
const ROUTER_BEYOND_INDEX: u32 = 3;

/// Kinds of devices in MAC addresses.
const SEGMENT_MAC: u8 = 1;
const UPLINK_MAC: u8 = 2;
const HOST_MAC: u8 = 3;
const POD_MAC: u8 = 4;

/// A description of a lab. Made by [`Lab::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: Vec<String>,
    pods: Vec<PodSpec>,
    client_addresses: usize,
    offload: Offload,
}

/// A pod to be: a namespace behind a node, with servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Name, unique in the lab.
    pub name: String,
    /// Kubernetes namespace, as its server tells. Default `default`.
    pub namespace: String,
    /// Index of its node.
    pub node: usize,
    /// Ports of its HTTP server. Default: none.
    pub http: Vec<u16>,
    /// Ports of its UDP echo server. Default: none.
    pub udp: Vec<u16>,
}

impl PodSpec {
    /// A pod that serves nothing.
    #[must_use]
    pub fn new(name: impl Into<String>, node: usize) -> Self {
        Self { name: name.into(), namespace: "default".into(), node, http: Vec::new(), udp: Vec::new() }
    }

    /// Puts it into a Kubernetes namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Serves HTTP on `port` as well.
    #[must_use]
    pub fn http(mut self, port: u16) -> Self {
        self.http.push(port);
        self
    }

    /// Serves UDP echo on `port` as well.
    #[must_use]
    pub fn udp(mut self, port: u16) -> Self {
        self.udp.push(port);
        self
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self { nodes: Vec::new(), pods: Vec::new(), client_addresses: 1, offload: Offload::On }
    }
}

impl Builder {
    /// Port of the servers of [`pods_per_node`](Self::pods_per_node), HTTP and UDP.
    pub const POD_PORT: u16 = 8080;

    /// Adds `nodes` nodes, named `node-<index>`.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        let first = self.nodes.len();
        self.nodes.extend((first..first + nodes).map(|index| format!("node-{index}")));
        self
    }

    /// Adds a node of this name.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.nodes.push(name.into());
        self
    }

    /// Adds `pods` pods to every node that there is so far, named `pod-<node>-<index>`, that serve HTTP and UDP echo
    /// on [`POD_PORT`](Self::POD_PORT).
    #[must_use]
    pub fn pods_per_node(mut self, pods: usize) -> Self {
        for node in 0..self.nodes.len() {
            self.pods.extend((0..pods).map(|index| {
                PodSpec::new(format!("pod-{node}-{index}"), node).http(Self::POD_PORT).udp(Self::POD_PORT)
            }));
        }
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// How many addresses each outside client has, to be several clients with. Default 1.
    #[must_use]
    pub fn client_addresses(mut self, addresses: usize) -> Self {
        self.client_addresses = addresses.max(1);
        self
    }

    /// What devices do instead of the stack. Default [`Offload::On`].
    #[must_use]
    pub fn offload(mut self, offload: Offload) -> Self {
        self.offload = offload;
        self
    }

    /// Sweeps what dead owners left, then builds the lab; its servers answer when this returns.
    ///
    /// # Errors
    /// Without root (of the machine, and then without cgroup2, or of a user namespace), without
    /// [`run_if_worker`](crate::run_if_worker), or when the kernel refuses something; nothing of the lab stays then.
    pub fn build(self) -> Result<Lab, LabError> {
        let start = Instant::now();
        if !can_be_worker() {
            return Err(LabError::NoWorkers);
        }
        let pods_on = |node| self.pods.iter().filter(|pod| pod.node == node).count();
        plan::check(self.nodes.len(), (0..self.nodes.len()).map(pods_on).max().unwrap_or(0), self.client_addresses)?;
        sweep()?;
        let mut lab = Lab::bare(self.offload, self.client_addresses)?;
        for name in self.nodes {
            lab.start_node(name)?;
        }
        lab.wire_segment()?;
        lab.wire_nodes()?;
        lab.wire_outside()?;
        lab.settle_segment()?;
        lab.add_pods(self.pods)?;
        lab.build_time = start.elapsed();
        Ok(lab)
    }
}

impl Lab {
    /// A lab without nodes: namespaces of the segment and outside, and their worker.
    fn bare(offload: Offload, client_addresses: usize) -> Result<Self, LabError> {
        let id = LabId::next()?;
        let directories = Directories::of(id)?;
        let spawner = Spawner::new();
        let outside = start_worker(&spawner, "outside", None)?;
        let netns = |name: &str, forwards| {
            let netns = Netns::create(name)?;
            sysctl::prepare(&netns, forwards).map(|()| netns)
        };
        Ok(Self {
            id,
            nodes: Vec::new(),
            pods: Vec::new(),
            outside: Some(outside),
            spawner: Some(spawner),
            segment: netns("segment", false)?,
            router: netns("router", true)?,
            client: netns("client", false)?,
            beyond: netns("beyond", false)?,
            directories,
            offload,
            client_addresses,
            build_time: std::time::Duration::ZERO,
        })
    }

    fn start_node(&mut self, name: String) -> Result<(), LabError> {
        let index = self.nodes.len();
        let cgroup = self.directories.cgroup.join(format!("node-{index}"));
        let has_cgroup = Privilege::current() != Privilege::UserNamespace;
        if has_cgroup {
            cgroup::create(&cgroup)?;
        }
        let netns = Netns::create(&name)?;
        sysctl::prepare(&netns, true)?;
        let spawner = self.spawner();
        let inside = start_worker(spawner, &name, has_cgroup.then_some(&*cgroup))?;
        let packets = start_worker(spawner, &format!("{name} (outside of its cgroup)"), None)?;
        self.nodes.push(NodeState { name, netns, cgroup, inside, packets, pods_made: 0 });
        Ok(())
    }

    /// The bridge and a port for every node, the router and the client.
    fn wire_segment(&self) -> Result<(), LabError> {
        let mut batch = Batch::default();
        batch.set_link("loopback up", wire::up(LOOPBACK));
        batch.new_link("bridge", wire::bridge("br0", UPLINK_INDEX));
        let mut far: Vec<(&str, &Netns)> = self.nodes.iter().map(|node| (node.name.as_str(), &node.netns)).collect();
        far.extend([("router", &self.router), ("client", &self.client)]);
        let mut ports = Vec::new();
        for (index, (name, netns)) in far.into_iter().enumerate() {
            let port = VethEnd {
                name: format!("port{index}"),
                index: FIRST_INDEX + index as u32,
                mac: plan::mac(SEGMENT_MAC, 0, index),
                netns: None,
            };
            let uplink = VethEnd {
                name: UPLINK.into(),
                index: UPLINK_INDEX,
                mac: plan::mac(UPLINK_MAC, 0, index),
                netns: Some(netns),
            };
            batch.new_link(format!("veth of {name}"), wire::veth(&port, &uplink, Some(UPLINK_INDEX)));
            ports.push(port.name);
        }
        batch.send(&self.segment)?;
        self.offload(&self.segment, &ports)
    }

    /// Addresses of the nodes, and routes to the other nodes' pods.
    fn wire_nodes(&self) -> Result<(), LabError> {
        for (index, node) in self.nodes.iter().enumerate() {
            let mut batch = devices_up();
            for family in FAMILIES {
                let ip = plan::node_ip(index, family);
                let net = with_prefix(ip, plan::segment(family));
                batch.address(format!("address {net}"), wire::address(UPLINK_INDEX, net));
                for other in (0..self.nodes.len()).filter(|&other| other != index) {
                    let (to, via) = (plan::pod_cidr(other, family), plan::node_ip(other, family));
                    batch.route(format!("route to {to} via {via}"), wire::route(to, Some(via), UPLINK_INDEX));
                }
                default_route(&mut batch, plan::router_ip(family));
            }
            batch.send(&node.netns)?;
            self.offload(&node.netns, &[UPLINK.into()])?;
        }
        Ok(())
    }

    /// Router, client on the segment, client beyond the router.
    fn wire_outside(&self) -> Result<(), LabError> {
        let mut batch = devices_up();
        let near = VethEnd {
            name: ROUTER_BEYOND.into(),
            index: ROUTER_BEYOND_INDEX,
            mac: plan::mac(UPLINK_MAC, 1, 0),
            netns: None,
        };
        let far = VethEnd {
            name: UPLINK.into(),
            index: UPLINK_INDEX,
            mac: plan::mac(UPLINK_MAC, 1, 1),
            netns: Some(&self.beyond),
        };
        batch.new_link("veth beyond the router", wire::veth(&near, &far, None));
        for family in FAMILIES {
            let near = with_prefix(plan::router_ip(family), plan::segment(family));
            batch.address(format!("address {near}"), wire::address(UPLINK_INDEX, near));
            let far = with_prefix(plan::router_beyond_ip(family), plan::beyond(family));
            batch.address(format!("address {far}"), wire::address(ROUTER_BEYOND_INDEX, far));
            self.routes_to_pods(&mut batch, family);
        }
        batch.send(&self.router)?;
        self.wire_client(&self.client, plan::segment, plan::router_ip, true)?;
        self.wire_client(&self.beyond, plan::beyond, plan::router_beyond_ip, false)?;
        self.offload(&self.router, &[UPLINK.into(), ROUTER_BEYOND.into()])
    }

    fn wire_client(
        &self,
        netns: &Netns,
        net: fn(lb_core::Family) -> IpNet,
        router: fn(lb_core::Family) -> IpAddr,
        on_segment: bool,
    ) -> Result<(), LabError> {
        let mut batch = devices_up();
        for family in FAMILIES {
            for index in 0..self.client_addresses {
                let ip = with_prefix(plan::client_ip(net(family), index), net(family));
                let address = if index == 0 { wire::address } else { wire::second_address };
                batch.address(format!("address {ip}"), address(UPLINK_INDEX, ip));
            }
            if on_segment {
                self.routes_to_pods(&mut batch, family);
            }
            default_route(&mut batch, router(family));
        }
        batch.send(netns)?;
        self.offload(netns, &[UPLINK.into()])
    }

    fn routes_to_pods(&self, batch: &mut Batch, family: lb_core::Family) {
        for node in 0..self.nodes.len() {
            let (to, via) = (plan::pod_cidr(node, family), plan::node_ip(node, family));
            batch.route(format!("route to {to} via {via}"), wire::route(to, Some(via), UPLINK_INDEX));
        }
    }

    /// Opens the ports of the bridge, which came up before their other ends, and waits for whatever else the kernel puts
    /// off.
    fn settle_segment(&self) -> Result<(), LabError> {
        let ports = (0..self.nodes.len() + 2).map(|index| FIRST_INDEX + index as u32);
        settle(&self.segment, ports.chain([UPLINK_INDEX]), &[])?;
        for (index, node) in self.nodes.iter().enumerate() {
            settle(&node.netns, [UPLINK_INDEX], &FAMILIES.map(|family| plan::node_ip(index, family)))?;
        }
        let router = [FAMILIES.map(plan::router_ip), FAMILIES.map(plan::router_beyond_ip)].concat();
        settle(&self.router, [UPLINK_INDEX, ROUTER_BEYOND_INDEX], &router)?;
        for origin in [Origin::Client, Origin::Beyond] {
            let client = self.client(origin);
            let netns = if origin == Origin::Client { &self.client } else { &self.beyond };
            settle(netns, [UPLINK_INDEX], &FAMILIES.map(|family| client.ips(family)).concat())?;
        }
        Ok(())
    }

    fn settle_pods(&self, first: usize) -> Result<(), LabError> {
        let pods = &self.pods[first..];
        for (index, node) in self.nodes.iter().enumerate() {
            let here = pods.iter().filter(|pod| pod.spec.node == index);
            settle(&node.netns, here.map(|pod| FIRST_INDEX + pod.index as u32), &[])?;
        }
        pods.iter().try_for_each(|pod| settle(&pod.netns, [UPLINK_INDEX], &pod.ips))
    }

    /// Makes pods and starts their servers; they answer when this returns.
    pub(super) fn add_pods(&mut self, specs: Vec<PodSpec>) -> Result<(), LabError> {
        let first = self.pods.len();
        for spec in specs {
            let pod = self.new_pod(spec)?;
            self.pods.push(pod);
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let mut batch = Batch::default();
            let pods: Vec<&PodState> = self.pods[first..].iter().filter(|pod| pod.spec.node == index).collect();
            pods.iter().for_each(|pod| host_side(&mut batch, pod));
            batch.send(&node.netns)?;
            let devices: Vec<String> = pods.iter().map(|pod| pod.device.clone()).collect();
            self.offload(&node.netns, &devices)?;
        }
        for pod in &self.pods[first..] {
            pod_side(pod)?;
            self.offload(&pod.netns, &[UPLINK.into()])?;
        }
        self.settle_pods(first)?;
        self.serve(first..self.pods.len())
    }

    fn new_pod(&mut self, spec: PodSpec) -> Result<PodState, LabError> {
        let unknown = LabError::Unknown(format!("node {} for pod `{}`", spec.node, spec.name));
        let node = self.nodes.get_mut(spec.node).ok_or(unknown)?;
        let index = node.pods_made;
        plan::check(0, index + 1, 0)?;
        node.pods_made += 1;
        let netns = Netns::create(&spec.name)?;
        sysctl::prepare(&netns, false)?;
        let ips = FAMILIES.map(|family| plan::pod_ip(spec.node, index, family));
        Ok(PodState { device: format!("pod{index}"), index, ips, netns, spec })
    }

    fn offload(&self, netns: &Netns, devices: &[String]) -> Result<(), LabError> {
        match self.offload {
            Offload::On => Ok(()),
            Offload::Off => offload::turn_off(netns, devices),
        }
    }
}

/// The node's end of a pod's veth has no address of its own, so that a source translated on the way to a pod is an
/// address of the uplink.
fn host_side(batch: &mut Batch, pod: &PodState) {
    let index = FIRST_INDEX + pod.index as u32;
    let host = VethEnd { name: pod.device.clone(), index, mac: host_mac(pod), netns: None };
    let far = VethEnd { name: UPLINK.into(), index: UPLINK_INDEX, mac: pod_mac(pod), netns: Some(&pod.netns) };
    batch.new_link(format!("veth of {}", pod.spec.name), wire::veth(&host, &far, None));
    for ip in pod.ips {
        batch.route(format!("route to {ip}"), wire::route(ip.into(), None, index));
        batch.neighbour(format!("neighbour {ip}"), wire::neighbour(index, ip, pod_mac(pod)));
    }
}

fn pod_side(pod: &PodState) -> Result<(), LabError> {
    let mut batch = devices_up();
    for (family, ip) in FAMILIES.into_iter().zip(pod.ips) {
        let gateway = plan::pod_gateway(family);
        batch.address(format!("address {ip}"), wire::address(UPLINK_INDEX, ip.into()));
        batch.neighbour(format!("neighbour {gateway}"), wire::neighbour(UPLINK_INDEX, gateway, host_mac(pod)));
        default_route(&mut batch, gateway);
    }
    batch.send(&pod.netns)
}

fn settle(netns: &Netns, devices: impl IntoIterator<Item = u32>, ips: &[IpAddr]) -> Result<(), LabError> {
    let mut batch = Batch::default();
    devices.into_iter().for_each(|device| batch.settle(device));
    batch.send(netns)?;
    wait_until_local(netns, ips)
}

/// Begins the configuration of a namespace that has its uplink already.
fn devices_up() -> Batch {
    let mut batch = Batch::default();
    batch.set_link("loopback up", wire::up(LOOPBACK));
    batch.set_link("uplink up", wire::up(UPLINK_INDEX));
    batch
}

fn default_route(batch: &mut Batch, gateway: IpAddr) {
    let everywhere = match gateway {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    batch.route(format!("default route via {gateway}"), wire::route(everywhere, Some(gateway), UPLINK_INDEX));
}

fn host_mac(pod: &PodState) -> wire::Mac {
    plan::mac(HOST_MAC, pod.spec.node, pod.index)
}

fn pod_mac(pod: &PodState) -> wire::Mac {
    plan::mac(POD_MAC, pod.spec.node, pod.index)
}

/// `ip` with the length of the prefix that it is in.
fn with_prefix(ip: IpAddr, net: IpNet) -> IpNet {
    IpNet::new_assert(ip, net.prefix_len())
}

fn start_worker(spawner: &Spawner, name: &str, cgroup: Option<&std::path::Path>) -> Result<Remote, LabError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(MARK).stdin(Stdio::piped()).stdout(Stdio::piped());
    // A group of its own: what a terminal sends to the owner is for the owner to handle.
    command.process_group(0);
    Remote::new(name.into(), spawner.spawn(command, None, cgroup)?)
}
