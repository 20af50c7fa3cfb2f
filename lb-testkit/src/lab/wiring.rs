//! Devices, addresses and routes of a lab.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Lab, Netns, Offload, Origin, PodState,
    netlink::{Batch, wait_until_local},
    offload,
    topology::{self as plan, FAMILIES},
    wire::{self, LOOPBACK, VethEnd},
};
use crate::error::LabError;

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

impl Lab {
    /// The bridge and a port for every node, the router and the client.
    pub(super) fn wire_segment(&self) -> Result<(), LabError> {
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
    pub(super) fn wire_nodes(&self) -> Result<(), LabError> {
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
    pub(super) fn wire_outside(&self) -> Result<(), LabError> {
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
        net: fn(lb_core::addr::Family) -> IpNet,
        router: fn(lb_core::addr::Family) -> IpAddr,
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

    fn routes_to_pods(&self, batch: &mut Batch, family: lb_core::addr::Family) {
        for node in 0..self.nodes.len() {
            let (to, via) = (plan::pod_cidr(node, family), plan::node_ip(node, family));
            batch.route(format!("route to {to} via {via}"), wire::route(to, Some(via), UPLINK_INDEX));
        }
    }

    /// Opens the ports of the bridge, which came up before their other ends, and waits for whatever else the kernel
    /// puts off.
    pub(super) fn settle_segment(&self) -> Result<(), LabError> {
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

    pub(super) fn settle_pods(&self, first: usize) -> Result<(), LabError> {
        let pods = &self.pods[first..];
        for (index, node) in self.nodes.iter().enumerate() {
            let here = pods.iter().filter(|pod| pod.spec.node == index);
            settle(&node.netns, here.map(|pod| FIRST_INDEX + pod.index as u32), &[])?;
        }
        pods.iter().try_for_each(|pod| settle(&pod.netns, [UPLINK_INDEX], &pod.ips))
    }

    pub(super) fn offload(&self, netns: &Netns, devices: &[String]) -> Result<(), LabError> {
        match self.offload {
            Offload::On => Ok(()),
            Offload::Off => offload::turn_off(netns, devices),
        }
    }
}

/// The node's end of a pod's veth has no address of its own, so that a source translated on the way to a pod is an
/// address of the uplink.
pub(super) fn host_side(batch: &mut Batch, pod: &PodState) {
    let index = FIRST_INDEX + pod.index as u32;
    let host = VethEnd { name: pod.device.clone(), index, mac: host_mac(pod), netns: None };
    let far = VethEnd { name: UPLINK.into(), index: UPLINK_INDEX, mac: pod_mac(pod), netns: Some(&pod.netns) };
    batch.new_link(format!("veth of {}", pod.spec.name), wire::veth(&host, &far, None));
    for ip in pod.ips {
        batch.route(format!("route to {ip}"), wire::route(ip.into(), None, index));
        batch.neighbour(format!("neighbour {ip}"), wire::neighbour(index, ip, pod_mac(pod)));
    }
}

pub(super) fn pod_side(pod: &PodState) -> Result<(), LabError> {
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
