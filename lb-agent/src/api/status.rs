//! The agent as a whole.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Condition, DriftStatus};

/// The answer of `/v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Whether the first listing is complete and in the datapath. It never becomes false again.
    pub ready: bool,
    /// Whether every known change is in the datapath: no plan is due, under way or waiting for a retry.
    pub settled: bool,
    /// Facts about the node.
    pub node: Node,
    /// The datapath.
    pub datapath: Datapath,
    /// Settings of the kernel that service traffic depends on, if the datapath carries packets.
    #[serde(default)]
    pub network: Network,
    /// The first source of services, as long as there was only one.
    pub manifests: Manifests,
    /// Where services come from; of two objects with one name, the one of the first source is served.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Family of Maglev tables: `lb` or `cilium`.
    #[serde(default)]
    pub maglev_hash: String,
    /// Numbers of objects.
    pub counts: Counts,
    /// Addresses from pools.
    #[serde(default)]
    pub addresses: Addresses,
    /// Differences between the datapath and what it should hold.
    #[serde(default)]
    pub drift: DriftStatus,
    /// Problems, if any.
    pub conditions: Vec<Condition>,
}

/// Facts about the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name of the node.
    pub name: Option<String>,
    /// Its addresses; translated flows come from the first one of each family.
    pub ips: Vec<IpAddr>,
    /// Prefixes of the pods, whose addresses are kept.
    pub cluster_cidrs: Vec<String>,
}

/// The datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    /// `ebpf`, `nftables`, `iptables-nft`, `iptables-legacy` or `memory`.
    pub kind: String,
    /// Number of the last plan that was applied; 0 before the first.
    pub plan: u64,
    /// Time that applying the last plan took, in microseconds.
    pub apply_us: u64,
    /// Devices that programs are attached to, if the datapath has such.
    pub devices: Vec<String>,
    /// Objects in the kernel, if the datapath can count them.
    pub usage: Option<Usage>,
    /// How it does what depends on the kernel, such as `packets: tcx`, in words.
    #[serde(default)]
    pub facts: Vec<String>,
    /// Maps whose size is bounded.
    #[serde(default)]
    pub maps: Vec<MapUsage>,
}

/// Settings of the kernel that service traffic depends on. What cannot be read is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Whether IPv4 packets are forwarded (`net.ipv4.ip_forward`).
    pub ip_forward: Option<bool>,
    /// Whether IPv6 packets are forwarded (`net.ipv6.conf.all.forwarding`).
    pub ipv6_forwarding: Option<bool>,
    /// Packets that `rp_filter` has dropped since the network namespace was made, whatever they were for.
    pub reverse_path_drops: Option<u64>,
    /// Devices that programs are attached to and that lead out of the node.
    pub devices: Vec<NetworkDevice>,
}

/// Settings of the kernel for a device. What it lacks is `None`: a device whose MTU is below 1280 has no IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDevice {
    /// Its name.
    pub name: String,
    /// The longest IP packet that it sends, in bytes.
    pub mtu: u32,
    /// How the source of an IPv4 packet that comes in is checked: 0 not at all, 1 strictly (its route leads through
    /// this device), 2 loosely (it has a route). The greater of the device's setting and of that of all devices.
    pub rp_filter: Option<u8>,
    /// Whether IPv4 packets that come in through it are forwarded.
    pub ip_forward: Option<bool>,
    /// The same of IPv6.
    pub ipv6_forwarding: Option<bool>,
}

/// How full a map of a datapath is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUsage {
    /// Its name.
    pub name: String,
    /// Elements in it, estimated if it [evicts](Self::evicts).
    pub entries: u64,
    /// Most elements.
    pub capacity: u64,
    /// Whether a full map drops what was used least recently, and does not refuse more.
    pub evicts: bool,
}

/// Objects of a datapath in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Rules that packets may have to pass.
    pub rules: u64,
    /// Elements of maps and sets.
    pub elements: u64,
    /// Bytes, if the kernel counts them.
    pub bytes: Option<u64>,
}

/// A source of services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name, such as `manifests`.
    pub name: String,
    /// Where it is, such as the path of a directory.
    pub place: String,
    /// Whether its first listing is complete.
    pub listed: bool,
    /// How often it has been read, successfully or not.
    pub reads: u64,
    /// Why its newest state was rejected; what was read before stays in force.
    pub rejected: Option<String>,
    /// Files that cannot be read, and documents that are no objects; everything else is in force.
    #[serde(default)]
    pub unread: usize,
    /// Objects that are no service, endpoint slice or pool.
    pub skipped: usize,
    /// Fields that are set and not supported.
    pub unsupported: usize,
    /// Invalid objects.
    pub refused: usize,
}

/// The manifest directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifests {
    /// The directory.
    pub directory: String,
    /// How often it has been read, successfully or not.
    pub reads: u64,
    /// Whether the first listing is complete.
    pub listed: bool,
    /// Why the newest state of the directory was rejected; what was read before stays in force.
    pub rejected: Option<String>,
    /// Files that cannot be read, and documents that are no objects, with what is in force instead.
    #[serde(default)]
    pub unread: Vec<String>,
    /// Objects that are not for this agent.
    pub skipped: Vec<String>,
    /// Fields that are set and not supported.
    pub unsupported: Vec<String>,
    /// Invalid objects.
    pub refused: Vec<String>,
    /// Directory entries that are not read, with the reason.
    pub ignored_files: Vec<String>,
    /// How many more there are than those that are listed.
    #[serde(default)]
    pub unlisted: Unlisted,
}

/// Numbers of findings that are not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlisted {
    /// Files and documents that are not read.
    pub unread: usize,
    /// Objects that are skipped.
    pub skipped: usize,
    /// Fields that are not supported.
    pub unsupported: usize,
    /// Objects that are refused.
    pub refused: usize,
}

/// Addresses from pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Pools; without any, services have the addresses that their status names.
    pub pools: usize,
    /// Addresses that services hold.
    pub held: usize,
    /// Services that lack addresses.
    pub unsatisfied: usize,
}

/// Numbers of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Services that are served.
    pub services: usize,
    /// Frontends in the datapath.
    pub frontends: usize,
    /// Backend sets in the datapath.
    pub sets: usize,
    /// Backends in the datapath.
    pub backends: usize,
    /// Frontends that the datapath refused.
    pub failed: usize,
}
