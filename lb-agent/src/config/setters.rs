//! Chain setters of the settings.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use lb_core::{maglev::HashFamily, name::ZoneName};

use super::{
    Algorithm, Config, DestroySockets, DriftMode, LogLevel, Settings,
    maglev::MaglevHash,
    pattern::Pattern,
    period::Period,
    sockets::{PortRange, SocketLb, Switch},
};
use crate::driver::{Attachments, DatapathKind};

impl Settings {
    /// The same with another directory of [`manifests`](Self::manifests).
    #[must_use]
    pub fn with_manifests(mut self, directory: impl Into<PathBuf>) -> Self {
        self.manifests = Some(directory.into());
        self
    }

    /// The same with another [`datapath`](Self::datapath).
    #[must_use]
    pub const fn with_datapath(mut self, datapath: DatapathKind) -> Self {
        self.datapath = Some(datapath);
        self
    }

    /// The same with these devices as [`device`](Self::device), in place of those before.
    #[must_use]
    pub fn with_device(mut self, devices: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.device = devices.into_iter().map(Into::into).collect();
        self
    }

    /// The same with these patterns of devices as [`pod_device`](Self::pod_device), in place of those before.
    #[must_use]
    pub fn with_pod_device(mut self, patterns: impl IntoIterator<Item = Pattern>) -> Self {
        self.pod_device = patterns.into_iter().collect();
        self
    }

    /// The same with another [`node`](Self::node).
    #[must_use]
    pub fn with_node(mut self, name: impl Into<String>) -> Self {
        self.node = Some(name.into());
        self
    }

    /// The same with another [`zone`](Self::zone).
    #[must_use]
    pub fn with_zone(mut self, name: impl Into<String>) -> Self {
        self.zone = Some(name.into());
        self
    }

    /// The same with these addresses as [`node_ip`](Self::node_ip), in place of those before.
    #[must_use]
    pub fn with_node_ip(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        self.node_ip = ips.into_iter().collect();
        self
    }

    /// The same with these prefixes as [`cluster_cidr`](Self::cluster_cidr), in place of those before.
    #[must_use]
    pub fn with_cluster_cidr(mut self, prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        self.cluster_cidr = prefixes.into_iter().collect();
        self
    }

    /// The same with these prefixes as [`service_cidr`](Self::service_cidr), in place of those before.
    #[must_use]
    pub fn with_service_cidr(mut self, prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        self.service_cidr = prefixes.into_iter().collect();
        self
    }

    /// The same with another [`algorithm`](Self::algorithm).
    #[must_use]
    pub const fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = Some(algorithm);
        self
    }

    /// The same with these networks as [`node_port_addresses`](Self::node_port_addresses), in place of those before.
    #[must_use]
    pub fn with_node_port_addresses(mut self, networks: impl IntoIterator<Item = IpNet>) -> Self {
        self.node_port_addresses = networks.into_iter().collect();
        self
    }

    /// The same with or without [`answer_ping`](Self::answer_ping).
    #[must_use]
    pub const fn with_answer_ping(mut self, answer: bool) -> Self {
        self.answer_ping = Some(answer);
        self
    }

    /// The same with or without [`external_ips_of_node`](Self::external_ips_of_node).
    #[must_use]
    pub const fn with_external_ips_of_node(mut self, allow: bool) -> Self {
        self.external_ips_of_node = Some(allow);
        self
    }

    /// The same with another [`cgroup`](field@Self::cgroup).
    #[must_use]
    pub fn with_cgroup(mut self, cgroup: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(cgroup.into());
        self
    }

    /// The same with sockets [ended](Self::destroy_sockets) there.
    #[must_use]
    pub fn with_destroy_sockets(mut self, destroy_sockets: DestroySockets) -> Self {
        self.destroy_sockets = Some(destroy_sockets);
        self
    }

    /// The same with these sockets [balanced](Self::socket_lb).
    #[must_use]
    pub fn with_socket_lb(mut self, socket_lb: SocketLb) -> Self {
        self.socket_lb = Some(socket_lb);
        self
    }

    /// The same with the sockets of pods at these addresses [left alone](Self::socket_lb_except).
    #[must_use]
    pub fn with_socket_lb_except(mut self, prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        self.socket_lb_except = prefixes.into_iter().collect();
        self
    }

    /// The same with ports [guarded](Self::guard_ports) or not.
    #[must_use]
    pub fn with_guard_ports(mut self, guard_ports: Switch) -> Self {
        self.guard_ports = Some(guard_ports);
        self
    }

    /// The same with [node ports at loopback addresses](Self::loopback_node_ports) or not.
    #[must_use]
    pub fn with_loopback_node_ports(mut self, loopback_node_ports: Switch) -> Self {
        self.loopback_node_ports = Some(loopback_node_ports);
        self
    }

    /// The same with another [`node_port_range`](Self::node_port_range).
    #[must_use]
    pub fn with_node_port_range(mut self, node_port_range: PortRange) -> Self {
        self.node_port_range = Some(node_port_range);
        self
    }

    /// The same with another [`socket`](Self::socket).
    #[must_use]
    pub fn with_socket(mut self, socket: impl Into<PathBuf>) -> Self {
        self.socket = Some(socket.into());
        self
    }

    /// The same with another [`state_dir`](Self::state_dir).
    #[must_use]
    pub fn with_state_dir(mut self, state_dir: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(state_dir.into());
        self
    }

    /// The same with another [`pin_dir`](Self::pin_dir).
    #[must_use]
    pub fn with_pin_dir(mut self, pin_dir: impl Into<PathBuf>) -> Self {
        self.pin_dir = Some(pin_dir.into());
        self
    }

    /// The same with another [`drift`](Self::drift).
    #[must_use]
    pub const fn with_drift(mut self, drift: DriftMode) -> Self {
        self.drift = Some(drift);
        self
    }

    /// The same with another [`drift_interval`](Self::drift_interval).
    #[must_use]
    pub const fn with_drift_interval(mut self, drift_interval: Period) -> Self {
        self.drift_interval = Some(drift_interval);
        self
    }

    /// The same with another [`maglev_hash`](Self::maglev_hash).
    #[must_use]
    pub const fn with_maglev_hash(mut self, maglev_hash: MaglevHash) -> Self {
        self.maglev_hash = Some(maglev_hash);
        self
    }

    /// The same with another [`maglev_seed`](Self::maglev_seed).
    #[must_use]
    pub fn with_maglev_seed(mut self, maglev_seed: impl Into<String>) -> Self {
        self.maglev_seed = Some(maglev_seed.into());
        self
    }

    /// The same with these classes as [`load_balancer_class`](Self::load_balancer_class), in place of those before.
    #[must_use]
    pub fn with_load_balancer_class(mut self, classes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.load_balancer_class = classes.into_iter().map(Into::into).collect();
        self
    }

    /// The same with another [`log_level`](Self::log_level).
    #[must_use]
    pub const fn with_log_level(mut self, log_level: LogLevel) -> Self {
        self.log_level = Some(log_level);
        self
    }
}

impl Config {
    /// The same with another [`zone`](Self::zone).
    #[must_use]
    pub fn with_zone(mut self, zone: ZoneName) -> Self {
        self.zone = Some(zone);
        self
    }

    /// The same with another [`drift`](Self::drift).
    #[must_use]
    pub const fn with_drift(mut self, drift: DriftMode) -> Self {
        self.drift = drift;
        self
    }

    /// The same with another [`drift_interval`](Self::drift_interval).
    #[must_use]
    pub const fn with_drift_interval(mut self, drift_interval: Duration) -> Self {
        self.drift_interval = drift_interval;
        self
    }

    /// The same with another [`maglev`](Self::maglev).
    #[must_use]
    pub const fn with_maglev(mut self, maglev: HashFamily) -> Self {
        self.maglev = maglev;
        self
    }

    /// The same with these [`load_balancer_classes`](Self::load_balancer_classes) in place of those before.
    #[must_use]
    pub fn with_load_balancer_classes(mut self, classes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.load_balancer_classes = classes.into_iter().map(Into::into).collect();
        self
    }

    /// The same with another [`follow_addresses`](Self::follow_addresses). It needs uplinks.
    #[must_use]
    pub const fn with_follow_addresses(mut self, follow_addresses: bool) -> Self {
        self.follow_addresses = follow_addresses;
        self
    }

    /// The same with these [`service_cidrs`](Self::service_cidrs) in place of those before.
    #[must_use]
    pub fn with_service_cidrs(mut self, prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        self.service_cidrs = prefixes.into_iter().collect();
        self
    }

    /// The same with another [`algorithm`](Self::algorithm).
    #[must_use]
    pub const fn with_algorithm(mut self, algorithm: lb_core::service::Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// The same with these [`node_port_addresses`](Self::node_port_addresses) in place of those before.
    #[must_use]
    pub fn with_node_port_addresses(mut self, networks: impl IntoIterator<Item = IpNet>) -> Self {
        self.node_port_addresses = networks.into_iter().collect();
        self
    }

    /// The same with or without [`answer_ping`](Self::answer_ping).
    #[must_use]
    pub const fn with_answer_ping(mut self, answer: bool) -> Self {
        self.answer_ping = answer;
        self
    }

    /// The same with or without [`external_ips_of_node`](Self::external_ips_of_node).
    #[must_use]
    pub const fn with_external_ips_of_node(mut self, allow: bool) -> Self {
        self.external_ips_of_node = allow;
        self
    }

    /// The same with another [`attachments`](Self::attachments).
    #[must_use]
    pub fn with_attachments(mut self, attachments: Attachments) -> Self {
        self.attachments = attachments;
        self
    }
}
