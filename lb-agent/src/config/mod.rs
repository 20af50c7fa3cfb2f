//! Settings of the agent: flags over configuration file over defaults.

pub mod maglev;
mod network;
pub mod pattern;
pub mod period;
mod setters;
pub mod sockets;

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use ipnet::IpNet;
use lb_core::{
    addr::FrontendKind,
    datapath::Capabilities,
    maglev::HashFamily,
    name::{NodeName, ZoneName},
    node::NodeFacts,
};
use lb_datapath_ebpf::discovery;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use serde::Deserialize;

use crate::{
    config::{
        maglev::{BadSeed, MaglevHash},
        pattern::Pattern,
        period::Period,
        sockets::{PortRange, SocketLb, SocketService, Switch},
    },
    driver::{self, Attachments, DatapathKind, Setting},
    host::{mounts, netlink},
};

/// Default Unix socket of the agent.
pub const DEFAULT_SOCKET: &str = "/run/lb/lb.sock";
/// Default directory for the state that outlives the agent.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/lb";
/// Default directory for pinned eBPF objects.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/lb";
/// Default patterns for the devices of pods.
pub const DEFAULT_POD_DEVICES: [&str; 3] = ["veth*", "lxc*", "cali*"];

/// Settings as flags and as keys of the configuration file, which have the same names.
///
/// Later versions may add settings, so start with [`default`](Self::default), where nothing is set.
///
/// ```
/// use lb_agent::{config::Settings, driver};
///
/// let settings = Settings::default().with_datapath(driver::NFTABLES).with_device(["eth0"]);
/// assert_eq!(settings.device, ["eth0"]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[non_exhaustive]
pub struct Settings {
    /// Directory of Kubernetes manifests: Service, EndpointSlice and address pools as YAML or JSON. The agent watches
    /// it.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Datapath that carries the packets.
    #[arg(long, value_name = "KIND", value_parser = driver::parser())]
    #[serde(deserialize_with = "driver::deserialize")]
    pub datapath: Option<DatapathKind>,
    /// Device that leads out of the node; can be repeated [default: devices with a default route].
    #[arg(long, value_name = "DEV")]
    pub device: Vec<String>,
    /// Devices of pods, by name or with `*`; can be repeated. Devices that appear later are included. Only for ebpf
    /// [default: veth*, lxc*, cali*].
    #[arg(long, value_name = "PATTERN")]
    pub pod_device: Vec<Pattern>,
    /// Name of this node, compared with the node of endpoints [default: the host name in lower case].
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Zone of this node, compared with the zones of endpoints [default: none, so that no endpoint is preferred for its
    /// zone].
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// Address of this node, which has node ports; can be repeated. On ebpf, the source of a translated flow is the one
    /// that the route to its backend prefers, before Linux 6.7 the first one of its family [default: the addresses of the
    /// devices].
    #[arg(long, value_name = "IP")]
    pub node_ip: Vec<IpAddr>,
    /// Prefix of the pods, whose source addresses are kept; can be repeated [default: none, so that every source is
    /// translated].
    #[arg(long, value_name = "CIDR", value_parser = network::parse)]
    #[serde(deserialize_with = "network::deserialize")]
    pub cluster_cidr: Vec<IpNet>,
    /// Prefix of the cluster addresses of services, which no service gets from a pool; can be repeated [default: none, so
    /// that only addresses that services have are kept back].
    #[arg(long, value_name = "CIDR", value_parser = network::parse)]
    #[serde(deserialize_with = "network::deserialize")]
    pub service_cidr: Vec<IpNet>,
    /// Choice of a backend by services that name none: `least-connections` is the one of two random ones with fewer flows
    /// through this node [default: random].
    #[arg(long, value_name = "NAME", value_enum)]
    pub algorithm: Option<Algorithm>,
    /// Network whose node addresses have node ports; can be repeated [default: all that `--node-ip` has].
    #[arg(long, value_name = "CIDR", value_parser = network::parse)]
    #[serde(deserialize_with = "network::deserialize")]
    pub node_port_addresses: Vec<IpNet>,
    /// Answer pings of the addresses of services, but for those of the node itself [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub answer_ping: Option<bool>,
    /// Let services have addresses of this node as external addresses, and so take traffic that is meant for the node
    /// [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub external_ips_of_node: Option<bool>,
    /// Cgroup (version 2) whose sockets are load balanced. Only for ebpf [default: the root of the mounted hierarchy].
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Where sockets are ended whose backend left, so that they connect to another one at once. `all` includes the
    /// network namespaces of pods, which needs CAP_SYS_ADMIN and CAP_SYS_PTRACE. Elsewhere, a connected UDP client goes on
    /// sending to the backend that left, and drain policies have no effect. Only for ebpf [default: host].
    #[arg(long, value_name = "WHERE", value_enum)]
    pub destroy_sockets: Option<DestroySockets>,
    /// Which sockets are sent to a backend where they connect: those of all network namespaces, of the host's alone, or
    /// none. Packets of the others are translated at devices. With `off`, processes of the node do not reach frontends at
    /// addresses of the node itself. Only for ebpf [default: all].
    #[arg(long, value_name = "WHICH", value_enum)]
    pub socket_lb: Option<SocketLb>,
    /// Addresses of pods whose sockets are not sent to a backend where they connect, as pods with a proxy of a service mesh
    /// or a virtual machine need it; can be repeated. Their packets are translated at devices. It needs CAP_SYS_ADMIN and
    /// CAP_SYS_PTRACE. Only for ebpf [default: none].
    #[arg(long, value_name = "CIDR", value_parser = network::parse)]
    #[serde(deserialize_with = "network::deserialize")]
    pub socket_lb_except: Vec<IpNet>,
    /// Whether processes of the node are kept from binding a port of the node that is a frontend. With `off`, such a
    /// process waits for connections that never come. Only for ebpf [default: on].
    #[arg(long, value_name = "SWITCH", value_enum)]
    pub guard_ports: Option<Switch>,
    /// Whether processes of the node reach node ports at loopback addresses. With `off`, they need an address of the node.
    /// Only for ebpf [default: on].
    #[arg(long, value_name = "SWITCH", value_enum)]
    pub loopback_node_ports: Option<Switch>,
    /// Ports that are node ports, for guarded ports and loopback addresses. Only for ebpf [default: 30000-32767].
    #[arg(long, value_name = "FIRST-LAST")]
    pub node_port_range: Option<PortRange>,
    /// Unix socket for requests [default: /run/lb/lb.sock].
    #[arg(long, value_name = "PATH", env = "LB_SOCKET", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// Directory for the state that outlives the agent [default: /var/lib/lb].
    #[arg(long, value_name = "DIR", env = "LB_STATE_DIR", hide_env_values = true)]
    pub state_dir: Option<PathBuf>,
    /// Directory on a BPF file system where programs and maps are pinned. Only for ebpf [default: /sys/fs/bpf/lb].
    #[arg(long, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Reaction to a change of the datapath by another tool [default: repair].
    #[arg(long, value_name = "MODE", value_enum)]
    pub drift: Option<DriftMode>,
    /// Time between full inspections of the datapath, such as 500ms, 5s or 2m. An inspection is followed by a pause of
    /// at least 200 times the processor time that it took [default: 5s for ebpf, 10s for iptables-nft and
    /// iptables-legacy, 60s for nftables and memory].
    #[arg(long, value_name = "TIME")]
    pub drift_interval: Option<Period>,
    /// Kind of the Maglev tables; must be the same on all nodes [default: lb].
    #[arg(long, value_name = "WHOSE", value_enum)]
    pub maglev_hash: Option<MaglevHash>,
    /// Seed of the Maglev tables; must be the same on all nodes. For `cilium`, Cilium's maglev.hashSeed: base64 of 12
    /// bytes. For `lb`, base64 of 16 bytes. Keep a secret seed in the configuration file, because everybody who may
    /// list processes sees the flags [default: a public seed; for `cilium`, that of Cilium].
    #[arg(long, value_name = "BASE64")]
    pub maglev_seed: Option<String>,
    /// Load-balancer class whose services get addresses from pools; can be repeated [default: none, so that only
    /// services without a class do].
    #[arg(long, value_name = "CLASS", value_parser = NonEmptyStringValueParser::new())]
    pub load_balancer_class: Vec<String>,
    /// Level of the log on standard error [default: info].
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub log_level: Option<LogLevel>,
}

/// The network namespaces in which sockets are ended whose backend left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DestroySockets {
    /// In that of the agent, usually the host's.
    #[default]
    Host,
    /// In those of all processes of the cgroup as well.
    All,
    /// Nowhere.
    Off,
}

/// How services that do not say choose a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// At random.
    #[default]
    Random,
    /// In turn.
    RoundRobin,
    /// By a hash of the flow.
    Maglev,
    /// The one of two random ones with fewer flows through this node.
    LeastConnections,
}

impl From<Algorithm> for lb_core::service::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Random => Self::Random,
            Algorithm::RoundRobin => Self::RoundRobin,
            Algorithm::Maglev => Self::Maglev,
            Algorithm::LeastConnections => Self::LeastConnections,
        }
    }
}

/// Reaction to a change of the datapath by another tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriftMode {
    /// Report the change and repair it.
    #[default]
    Repair,
    /// Report the change and leave it.
    Alert,
    /// Inspect only on `lb drift`, and leave the change.
    Off,
}

impl DriftMode {
    /// As the command line writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Alert => "alert",
            Self::Off => "off",
        }
    }
}

/// Level of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures that stop the agent.
    Error,
    /// Also problems that somebody should look at.
    Warn,
    /// Also events that an operator would notice.
    #[default]
    Info,
    /// Also every plan.
    Debug,
    /// Everything.
    Trace,
}

/// Why the agent cannot start with these settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading the configuration file {file} failed")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{file}: {message}")]
    Parse {
        /// The file.
        file: PathBuf,
        /// What the parser says.
        message: String,
    },
    /// A setting without a default is missing.
    #[error("{0} is not set: use the flag --{0}, or the key `{0}` in the file of --config")]
    Missing(&'static str),
    /// Not an address that a packet could come back to.
    #[error("--node-ip {0} is {1}: use an address of this node that other nodes can reach")]
    NodeIp(IpAddr, &'static str),
    /// Not a device of this network namespace.
    #[error(
        "--device {0} is not in this network namespace: name a device that `ip link` lists, or leave the setting out for \
         those with a default route"
    )]
    NoDevice(String),
    /// The kernel does not say which devices there are.
    #[error("listing devices failed, so that --device cannot be checked")]
    Devices {
        /// What the system says.
        source: io::Error,
    },
    /// Not a directory that means the same to every process.
    #[error("--{setting} {path} is relative: use an absolute path, which begins with /")]
    Relative {
        /// The setting.
        setting: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Not a seed of the hash.
    #[error(transparent)]
    MaglevSeed(#[from] BadSeed),
    /// Neither cgroups nor pins are seen.
    #[error("cgroup2 and BPF file systems are not visible: {0}")]
    HiddenSys(&'static str),
    /// Not a cgroup that programs could be attached to.
    #[error("cgroup {path} is not in a cgroup2 file system: set --cgroup to a directory of one")]
    NotCgroup2 {
        /// The directory.
        path: PathBuf,
    },
    /// A cgroup that cannot be examined.
    #[error("examining cgroup {path} failed")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel does not say what a default is made of.
    #[error("finding the default of {setting} failed: set it with --{setting}")]
    Default {
        /// The setting.
        setting: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// There is nothing that a default could be made of.
    #[error("{setting} is not set and has no default here: {why}; set it with --{setting}")]
    NoDefault {
        /// The setting.
        setting: &'static str,
        /// Why not.
        why: &'static str,
    },
}

/// Complete settings, of [`Settings::complete`] or of [`Config::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Datapath that carries the packets.
    pub datapath: DatapathKind,
    /// Facts about the node.
    pub node: NodeFacts,
    /// Zone of the node, if it has one.
    pub zone: Option<ZoneName>,
    /// Unix socket to answer on.
    pub socket: PathBuf,
    /// Directory for what must survive the agent.
    pub state_dir: PathBuf,
    /// What to do about drift.
    pub drift: DriftMode,
    /// Time from one full inspection to the next.
    pub drift_interval: Duration,
    /// What Maglev tables are made of.
    pub maglev: HashFamily,
    /// Load-balancer classes whose services get addresses from pools, besides those without a class.
    pub load_balancer_classes: Vec<String>,
    /// Devices that lead out of the node; the agent says when one of them is gone.
    pub uplinks: Vec<String>,
    /// Whether the addresses of the node are those of the uplinks, whatever they become. Otherwise they stay as
    /// [`node`](Self::node) has them.
    pub follow_addresses: bool,
    /// Prefixes of the cluster addresses of services, which no service gets from a pool.
    pub service_cidrs: Vec<IpNet>,
    /// Algorithm of services that name none.
    pub algorithm: lb_core::service::Algorithm,
    /// Networks whose node addresses have node ports; none for all of them.
    pub node_port_addresses: Vec<IpNet>,
    /// Whether the node answers pings of addresses of services.
    pub answer_ping: bool,
    /// Whether addresses of this node can be external addresses of services.
    pub external_ips_of_node: bool,
    /// Where the datapath attaches to this node; only what its driver [reads](crate::driver::Driver::settings).
    pub attachments: Attachments,
}

impl Config {
    /// Everything else at its default: drift is repaired, with the kind's own time between inspections, and Maglev
    /// tables have the public seed. There is no zone, no load-balancer class, no service CIDR and no attachment. A kind that attaches to
    /// the node needs [attachments](Self::with_attachments), too.
    ///
    /// ```
    /// use lb_agent::{config::{Config, DriftMode}, driver};
    /// use lb_core::node::NodeFacts;
    ///
    /// let node = NodeFacts::default();
    /// let config = Config::new(driver::MEMORY, node, "/run/lb/lb.sock", "/var/lib/lb").with_drift(DriftMode::Off);
    /// assert_eq!(config.drift, DriftMode::Off);
    /// ```
    #[must_use]
    pub fn new(
        datapath: DatapathKind,
        node: NodeFacts,
        socket: impl Into<PathBuf>,
        state_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            datapath,
            node,
            zone: None,
            socket: socket.into(),
            state_dir: state_dir.into(),
            drift: DriftMode::default(),
            drift_interval: datapath.drift_interval(),
            maglev: HashFamily::default(),
            load_balancer_classes: Vec::new(),
            uplinks: Vec::new(),
            follow_addresses: false,
            service_cidrs: Vec::new(),
            algorithm: lb_core::service::Algorithm::default(),
            node_port_addresses: Vec::new(),
            answer_ping: false,
            external_ips_of_node: false,
            attachments: Attachments::default(),
        }
    }
}

impl Config {
    /// Names of settings in which `other` differs and that an agent cannot change while it runs.
    pub(crate) fn restart_for(&self, other: &Self) -> Vec<&'static str> {
        let (node, attached) = (&self.node, &self.attachments);
        let (other_node, to) = (&other.node, &other.attachments);
        let differs = [
            ("datapath", self.datapath != other.datapath),
            ("device", self.uplinks != other.uplinks || attached.devices != to.devices),
            ("pod-device", attached.pod_devices != to.pod_devices),
            ("node", node.name != other_node.name),
            ("node-ip", self.follow_addresses != other.follow_addresses || self.has_other_addresses(other)),
            ("cluster-cidr", node.cluster_cidrs != other_node.cluster_cidrs),
            ("cgroup", attached.cgroup != to.cgroup),
            ("destroy-sockets", attached.destroy_sockets != to.destroy_sockets),
            ("socket-lb", attached.sockets.balanced != to.sockets.balanced),
            ("socket-lb-except", attached.sockets.except != to.sockets.except),
            ("guard-ports", attached.sockets.guard_ports != to.sockets.guard_ports),
            ("loopback-node-ports", attached.sockets.loopback_node_ports != to.sockets.loopback_node_ports),
            ("node-port-range", attached.sockets.node_ports != to.sockets.node_ports),
            ("socket", self.socket != other.socket),
            ("state-dir", self.state_dir != other.state_dir),
            ("pin-dir", attached.pin_dir != to.pin_dir),
            ("drift", self.drift != other.drift),
            ("drift-interval", self.drift_interval != other.drift_interval),
            ("maglev-hash or maglev-seed", self.maglev != other.maglev),
            ("algorithm", self.algorithm != other.algorithm),
            ("node-port-addresses", self.node_port_addresses != other.node_port_addresses),
            ("answer-ping", self.answer_ping != other.answer_ping),
            ("external-ips-of-node", self.external_ips_of_node != other.external_ips_of_node),
            ("load-balancer-class", self.load_balancer_classes != other.load_balancer_classes),
        ];
        differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }

    /// Whether addresses that do not change by themselves are others.
    fn has_other_addresses(&self, other: &Self) -> bool {
        !self.follow_addresses && self.node.ips != other.node.ips
    }
}

impl Settings {
    /// Settings of a YAML file. Unknown keys are errors.
    ///
    /// # Errors
    /// When it cannot be read or is not understood.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.into(), source })?;
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let options = serde_saphyr::options! { with_snippet: false };
        serde_saphyr::from_str_with_options(&text, options)
            .map_err(|error| ConfigError::Parse { file: file.into(), message: error.to_string() })
    }

    /// These settings, with those of `below` where these say nothing. A list is taken whole from one of the two.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        fn list<T>(ours: Vec<T>, below: Vec<T>) -> Vec<T> {
            if ours.is_empty() { below } else { ours }
        }
        Self {
            manifests: self.manifests.or(below.manifests),
            datapath: self.datapath.or(below.datapath),
            device: list(self.device, below.device),
            pod_device: list(self.pod_device, below.pod_device),
            node: self.node.or(below.node),
            zone: self.zone.or(below.zone),
            node_ip: list(self.node_ip, below.node_ip),
            cluster_cidr: list(self.cluster_cidr, below.cluster_cidr),
            service_cidr: list(self.service_cidr, below.service_cidr),
            algorithm: self.algorithm.or(below.algorithm),
            node_port_addresses: list(self.node_port_addresses, below.node_port_addresses),
            answer_ping: self.answer_ping.or(below.answer_ping),
            external_ips_of_node: self.external_ips_of_node.or(below.external_ips_of_node),
            cgroup: self.cgroup.or(below.cgroup),
            destroy_sockets: self.destroy_sockets.or(below.destroy_sockets),
            socket_lb: self.socket_lb.or(below.socket_lb),
            socket_lb_except: list(self.socket_lb_except, below.socket_lb_except),
            guard_ports: self.guard_ports.or(below.guard_ports),
            loopback_node_ports: self.loopback_node_ports.or(below.loopback_node_ports),
            node_port_range: self.node_port_range.or(below.node_port_range),
            socket: self.socket.or(below.socket),
            state_dir: self.state_dir.or(below.state_dir),
            pin_dir: self.pin_dir.or(below.pin_dir),
            drift: self.drift.or(below.drift),
            drift_interval: self.drift_interval.or(below.drift_interval),
            maglev_hash: self.maglev_hash.or(below.maglev_hash),
            maglev_seed: self.maglev_seed.or(below.maglev_seed),
            load_balancer_class: list(self.load_balancer_class, below.load_balancer_class),
            log_level: self.log_level.or(below.log_level),
        }
    }

    /// The directory of manifests, for a [source](crate::source::ManifestDirectory): it has no default.
    ///
    /// # Errors
    /// When it is missing.
    pub fn manifest_directory(&self) -> Result<PathBuf, ConfigError> {
        self.manifests.clone().ok_or(ConfigError::Missing("manifests"))
    }

    /// Fills in the defaults, asking the kernel where they depend on the machine.
    ///
    /// # Errors
    /// When a setting without a default is missing or a default cannot be found.
    pub fn complete(self) -> Result<Config, ConfigError> {
        let datapath = self.datapath.ok_or(ConfigError::Missing("datapath"))?;
        let maglev = self.maglev_hash.unwrap_or_default().family(self.maglev_seed.as_deref())?;
        self.check_paths()?;
        let devices = self.uplinks(datapath)?;
        let node = self.node_facts(&devices)?;
        let attachments = self.attachments(datapath, devices.clone())?;
        let or = |path: Option<PathBuf>, default: &str| path.unwrap_or_else(|| default.into());
        Ok(Config {
            datapath,
            node,
            zone: self.zone.as_deref().map(ZoneName::new),
            socket: or(self.socket, DEFAULT_SOCKET),
            state_dir: or(self.state_dir, DEFAULT_STATE_DIR),
            drift: self.drift.unwrap_or_default(),
            drift_interval: self.drift_interval.map_or(datapath.drift_interval(), |period| period.0),
            maglev,
            load_balancer_classes: self.load_balancer_class,
            uplinks: devices,
            follow_addresses: self.node_ip.is_empty(),
            service_cidrs: self.service_cidr,
            algorithm: self.algorithm.unwrap_or_default().into(),
            node_port_addresses: self.node_port_addresses,
            answer_ping: self.answer_ping.unwrap_or_default(),
            external_ips_of_node: self.external_ips_of_node.unwrap_or_default(),
            attachments,
        })
    }

    /// Whatever the datapath: one that has no use for a path today may be followed by one that has.
    fn check_paths(&self) -> Result<(), ConfigError> {
        for (setting, path) in [("pin-dir", &self.pin_dir), ("cgroup", &self.cgroup)] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return Err(ConfigError::Relative { setting, path: path.clone() });
            }
        }
        Ok(())
    }

    /// Names of settings that are given and that `kind` has no use for.
    #[must_use]
    pub fn useless_for(&self, kind: DatapathKind) -> Vec<&'static str> {
        let lists = |given: bool, setting| given && !kind.reads(setting);
        let lacks = |given: bool, can: fn(&Capabilities) -> bool| {
            // With a device that leads out of the node a datapath can do the most.
            let attachments = Attachments { devices: vec!["uplink".into()], ..Attachments::default() };
            given && kind.capabilities(&attachments).is_some_and(|capabilities| !can(&capabilities))
        };
        let has_node_ports = |capabilities: &Capabilities| capabilities.frontends.contains(&FrontendKind::NodePort);
        let given = [
            ("device", !self.device.is_empty() && !kind.takes_devices() && !self.node_ip.is_empty()),
            ("pod-device", lists(!self.pod_device.is_empty(), Setting::PodDevice)),
            ("cgroup", lists(self.cgroup.is_some(), Setting::Cgroup)),
            ("destroy-sockets", lists(self.destroy_sockets.is_some(), Setting::DestroySockets)),
            ("socket-lb", lists(self.socket_lb.is_some(), Setting::Sockets)),
            ("socket-lb-except", lists(!self.socket_lb_except.is_empty(), Setting::Sockets)),
            ("guard-ports", lists(self.guard_ports.is_some(), Setting::Sockets)),
            ("loopback-node-ports", lists(self.loopback_node_ports.is_some(), Setting::Sockets)),
            ("node-port-range", lists(self.node_port_range.is_some(), Setting::Sockets)),
            ("pin-dir", lists(self.pin_dir.is_some(), Setting::PinDir)),
            ("maglev-hash", lists(self.maglev_hash.is_some(), Setting::Maglev)),
            ("node-port-addresses", lacks(!self.node_port_addresses.is_empty(), has_node_ports)),
            ("answer-ping", lacks(self.answer_ping == Some(true), |capabilities| capabilities.ping)),
            ("maglev-seed", lists(self.maglev_seed.is_some(), Setting::Maglev)),
        ];
        given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect()
    }

    /// Needed to attach to, and to find the node's addresses.
    fn uplinks(&self, datapath: DatapathKind) -> Result<Vec<String>, ConfigError> {
        if !self.device.is_empty() {
            return self.check_devices();
        }
        let needed = datapath.reads(Setting::Device) || self.node_ip.is_empty();
        let found = match netlink::uplinks() {
            Ok(found) => found,
            Err(_) if !needed => Vec::new(),
            Err(source) => return Err(ConfigError::Default { setting: "device", source }),
        };
        if found.is_empty() && datapath.reads(Setting::Device) {
            return Err(ConfigError::NoDefault { setting: "device", why: "no device has a default route" });
        }
        Ok(found)
    }

    /// On every datapath: one that does not attach to a device still takes the addresses of the node from it, and its
    /// operator may change the datapath.
    fn check_devices(&self) -> Result<Vec<String>, ConfigError> {
        let present = netlink::devices().map_err(|source| ConfigError::Devices { source })?;
        match self.device.iter().find(|device| !present.values().any(|name| name == *device)) {
            Some(unknown) => Err(ConfigError::NoDevice(unknown.clone())),
            None => Ok(self.device.clone()),
        }
    }

    fn node_facts(&self, devices: &[String]) -> Result<NodeFacts, ConfigError> {
        self.node_ip.iter().try_for_each(|&ip| check_node_ip(ip))?;
        let ips = if self.node_ip.is_empty() {
            netlink::addresses(devices).map_err(|source| ConfigError::Default { setting: "node-ip", source })?
        } else {
            self.node_ip.clone()
        };
        let name = match &self.node {
            Some(name) => name.clone(),
            None => host_name().map_err(|source| ConfigError::Default { setting: "node", source })?,
        };
        Ok(NodeFacts { name: Some(NodeName::new(&name)), ips, cluster_cidrs: self.cluster_cidr.clone() })
    }

    fn attachments(&self, kind: DatapathKind, devices: Vec<String>) -> Result<Attachments, ConfigError> {
        let mut attachments = Attachments::default();
        if kind.takes_devices() {
            attachments.devices = devices;
        }
        if kind.reads(Setting::PodDevice) {
            attachments.pod_devices = match &*self.pod_device {
                [] => DEFAULT_POD_DEVICES.map(Pattern::new).to_vec(),
                given => given.to_vec(),
            };
        }
        if kind.reads(Setting::Cgroup) {
            attachments.cgroup = self.cgroup()?;
        }
        if kind.reads(Setting::DestroySockets) {
            attachments.destroy_sockets = self.destroy_sockets.unwrap_or_default();
        }
        if kind.reads(Setting::Sockets) {
            attachments.sockets = self.socket_service();
        }
        if kind.reads(Setting::PinDir) {
            attachments.pin_dir = self.pin_dir.clone().unwrap_or_else(|| DEFAULT_PIN_DIR.into());
        }
        Ok(attachments)
    }

    /// How sockets are served: by the default where these settings say nothing.
    #[must_use]
    pub fn socket_service(&self) -> SocketService {
        SocketService {
            balanced: self.socket_lb.unwrap_or_default(),
            except: self.socket_lb_except.clone(),
            guard_ports: self.guard_ports.unwrap_or_default(),
            loopback_node_ports: self.loopback_node_ports.unwrap_or_default(),
            node_ports: self.node_port_range.clone().unwrap_or_default(),
        }
    }

    fn cgroup(&self) -> Result<PathBuf, ConfigError> {
        if let Some(hint) = mounts::hidden_sys() {
            return Err(ConfigError::HiddenSys(hint));
        }
        let cgroup = match &self.cgroup {
            Some(path) => path.clone(),
            None => discovery::cgroup()
                .map_err(|source| ConfigError::Default { setting: "cgroup", source })?
                .ok_or(ConfigError::NoDefault { setting: "cgroup", why: "no cgroup2 hierarchy is mounted" })?,
        };
        check_cgroup(&cgroup)?;
        Ok(cgroup)
    }
}

fn check_node_ip(ip: IpAddr) -> Result<(), ConfigError> {
    let why = match ip.to_canonical() {
        ip if ip.is_loopback() => "a loopback address",
        ip if ip.is_multicast() => "a multicast address",
        ip if ip.is_unspecified() => "the unspecified address",
        IpAddr::V4(ip) if ip.is_broadcast() => "the broadcast address",
        _ => return Ok(()),
    };
    Err(ConfigError::NodeIp(ip, why))
}

fn check_cgroup(path: &Path) -> Result<(), ConfigError> {
    let found = statfs(path).map_err(|error| ConfigError::Cgroup { path: path.into(), source: error.into() })?;
    if found.filesystem_type() == CGROUP2_SUPER_MAGIC {
        return Ok(());
    }
    Err(ConfigError::NotCgroup2 { path: path.into() })
}

/// As the kubelet takes it for a node's name: in lower case.
fn host_name() -> io::Result<String> {
    let name = nix::unistd::gethostname().map_err(io::Error::from)?;
    Ok(name.to_string_lossy().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Settings, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Settings::read(file.path())
    }

    #[test]
    fn keys_of_the_file_are_the_flags() {
        let settings = file(
            "manifests: /etc/lb\ndatapath: iptables-nft\ndevice: [eth0]\npod-device: ['veth*']\nnode: a\nzone: z\n\
             node-ip: [192.0.2.1, 'fd00::1']\ncluster-cidr: [10.244.0.0/16]\nservice-cidr: [10.96.0.0/12]\n\
             algorithm: least-connections\nnode-port-addresses: [192.0.2.0/24]\nanswer-ping: true\nexternal-ips-of-node: false\n\
             cgroup: /c\ndestroy-sockets: all\n\
             socket-lb: host\nsocket-lb-except: [10.244.7.0/24]\nguard-ports: off\nloopback-node-ports: off\nnode-port-range: 20000-29999\nsocket: /s\nstate-dir: /d\n\
             pin-dir: /p\nlog-level: debug\ndrift: alert\ndrift-interval: 2m\nmaglev-hash: cilium\n\
             maglev-seed: JLfvgnHc2kaSUFaI\n",
        )
        .unwrap();
        assert_eq!(settings.datapath, Some(driver::IPTABLES_NFT));
        assert_eq!((settings.node_ip.len(), settings.zone.as_deref()), (2, Some("z")));
        assert_eq!(settings.service_cidr, ["10.96.0.0/12".parse().unwrap()]);
        assert_eq!(settings.pin_dir, Some("/p".into()));
        assert_eq!(settings.algorithm, Some(Algorithm::LeastConnections));
        assert_eq!(settings.node_port_addresses, ["192.0.2.0/24".parse().unwrap()]);
        assert_eq!((settings.answer_ping, settings.external_ips_of_node), (Some(true), Some(false)));
        assert_eq!(settings.destroy_sockets, Some(DestroySockets::All));
        assert_eq!((settings.socket_lb, settings.guard_ports), (Some(SocketLb::Host), Some(Switch::Off)));
        assert_eq!(settings.socket_lb_except, ["10.244.7.0/24".parse().unwrap()]);
        assert_eq!(settings.node_port_range, Some(PortRange(20_000..=29_999)));
        let error = file("node-port-range: 30000\n").unwrap_err().to_string();
        assert!(error.contains("30000"), "{error}");
        assert_eq!((settings.drift, settings.drift_interval), (Some(DriftMode::Alert), "2m".parse().ok()));
        assert_eq!(settings.maglev_hash, Some(MaglevHash::Cilium));
        assert_eq!(settings.maglev_seed.as_deref(), Some("JLfvgnHc2kaSUFaI"));
        assert!(file("drift-interval: 5\n").is_err(), "a time has a unit");
        let error = file("maglev-hash: murmur\n").unwrap_err().to_string();
        assert!(error.contains("murmur") && error.contains("cilium"), "{error}");
    }

    #[test]
    fn the_example_has_every_setting_and_can_be_read_with_all_of_them() {
        let text = include_str!("../../../examples/lb.yaml");
        let example = file(text).unwrap();
        assert_eq!((example.datapath, example.cluster_cidr.len()), (Some(driver::EBPF), 2));
        let is_key = |line: &&str| line.trim_start_matches('#').starts_with(|c: char| c.is_ascii_lowercase());
        let lines: Vec<&str> = text.lines().filter(is_key).map(|line| line.trim_start_matches('#')).collect();
        file(&lines.join("\n")).unwrap();
        let mut keys: Vec<&str> = lines.iter().filter_map(|line| line.split(':').next()).collect();
        keys.sort_unstable();
        let command = Settings::augment_args(clap::Command::new("agent"));
        let mut flags: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        flags.sort_unstable();
        assert_eq!(keys, flags, "examples/lb.yaml has every setting");
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it_and_an_empty_file_is_none() {
        let error = file("datapth: ebpf\n").unwrap_err().to_string();
        assert!(error.contains("datapth"), "{error}");
        assert_eq!(file("# nothing\n\n").unwrap(), Settings::default());
    }

    #[test]
    fn flags_win_over_the_file_and_lists_are_not_mixed() {
        let below = file("datapath: ebpf\nnode: below\ndevice: [eth0, eth1]\nnode-ip: [192.0.2.1]\n").unwrap();
        let flags = Settings { datapath: Some(driver::MEMORY), device: vec!["eth2".into()], ..Settings::default() };
        let merged = flags.over(below);
        assert_eq!(merged.datapath, Some(driver::MEMORY));
        assert_eq!(merged.device, ["eth2"]);
        assert_eq!(merged.node.as_deref(), Some("below"));
        assert_eq!(merged.node_ip.len(), 1);
    }

    #[test]
    fn what_has_no_default_must_be_said() {
        let error = Settings::default().manifest_directory().unwrap_err().to_string();
        assert!(error.contains("--manifests"), "{error}");
        let settings = Settings { manifests: Some("/m".into()), ..Settings::default() };
        assert!(settings.complete().unwrap_err().to_string().contains("--datapath"));
    }

    #[test]
    fn defaults_are_filled_in() {
        let config = Settings {
            manifests: Some("/m".into()),
            datapath: Some(driver::MEMORY),
            node_ip: vec!["192.0.2.1".parse().unwrap()],
            ..Settings::default()
        }
        .complete()
        .unwrap();
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(config.state_dir, Path::new(DEFAULT_STATE_DIR));
        assert!(config.node.name.is_some());
        assert_eq!((config.attachments, config.maglev), (Attachments::default(), HashFamily::default()));
        assert_eq!((config.drift, config.drift_interval), (DriftMode::Repair, Duration::from_secs(60)));
    }

    #[test]
    fn what_a_datapath_has_no_use_for_is_checked_all_the_same() {
        for kind in driver::BUILT_IN {
            let settings =
                Settings::default().with_datapath(kind).with_node_ip(["192.0.2.1".parse::<IpAddr>().unwrap()]);
            let error = |settings: Settings| settings.complete().unwrap_err().to_string();
            let unknown = error(settings.clone().with_device(["lo", "no-such-dev"]));
            assert!(unknown.starts_with("--device no-such-dev is not in this network namespace"), "{kind}: {unknown}");
            let relative = error(settings.clone().with_device(["lo"]).with_pin_dir("lb"));
            assert!(relative.starts_with("--pin-dir lb is relative"), "{kind}: {relative}");
            let relative = error(settings.with_device(["lo"]).with_cgroup("lb"));
            assert!(relative.starts_with("--cgroup lb is relative"), "{kind}: {relative}");
        }
    }

    #[test]
    fn settings_without_use_are_named() {
        let settings = Settings { cgroup: Some("/c".into()), pin_dir: Some("/p".into()), ..Settings::default() };
        assert_eq!(settings.useless_for(driver::NFTABLES), ["cgroup", "pin-dir"]);
        let sockets = Settings::default()
            .with_socket_lb(SocketLb::Off)
            .with_socket_lb_except(["10.244.7.0/24".parse().unwrap()])
            .with_guard_ports(Switch::On)
            .with_loopback_node_ports(Switch::On)
            .with_node_port_range(PortRange::default());
        let useless = ["socket-lb", "socket-lb-except", "guard-ports", "loopback-node-ports", "node-port-range"];
        assert_eq!(sockets.useless_for(driver::NFTABLES), useless);
        assert!(sockets.useless_for(driver::EBPF).is_empty());
        assert!(settings.useless_for(driver::EBPF).is_empty());
        let settings = Settings { maglev_hash: Some(MaglevHash::Cilium), ..Settings::default() };
        assert_eq!(settings.useless_for(driver::IPTABLES_LEGACY), ["maglev-hash"]);
        assert!(settings.useless_for(driver::NFTABLES).is_empty());
        let settings = Settings {
            node_port_addresses: vec!["192.0.2.0/24".parse().unwrap()],
            answer_ping: Some(true),
            ..Settings::default()
        };
        assert_eq!(settings.useless_for(driver::NFTABLES), ["answer-ping"]);
        assert_eq!(settings.useless_for(driver::IPTABLES_NFT), ["node-port-addresses", "answer-ping"]);
        let device = Settings::default().with_device(["lo"]).with_node_ip(["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert!(device.useless_for(driver::NFTABLES).is_empty());
        assert_eq!(device.useless_for(driver::IPTABLES_NFT), ["device"]);
        assert!(settings.useless_for(driver::MEMORY).is_empty());
    }
}
