//! Kinds of datapaths: one [`Driver`] each, and the one list of those that are built in.
//!
//! The rest of the agent asks a driver and never matches on kinds. A datapath of your own needs a type that implements
//! [`Driver`] and a `static` of it, which goes into [`Config::datapath`](crate::config::Config::datapath); nothing
//! else has to know about it.
//!
//! ```
//! use lb_agent::driver::{Attachments, Driver, OpenDatapath};
//! use lb_core::{datapath::DatapathError, memory::MemoryDatapath};
//!
//! struct Notebook;
//!
//! impl Driver for Notebook {
//!     fn name(&self) -> &'static str {
//!         "notebook"
//!     }
//!
//!     fn about(&self) -> &'static str {
//!         "Writes everything down and carries nothing"
//!     }
//!
//!     fn open(&self, _: &Attachments) -> Result<Box<dyn OpenDatapath>, DatapathError> {
//!         Ok(Box::new(MemoryDatapath::default()))
//!     }
//! }
//!
//! static NOTEBOOK: Notebook = Notebook;
//! let kind: &'static dyn Driver = &NOTEBOOK;
//! assert_eq!(kind.to_string(), "notebook");
//! ```

mod ebpf;
mod iptables;
#[cfg(feature = "lab")]
pub mod lab;
mod memory;
mod nftables;

use std::{
    fmt,
    hash::{Hash, Hasher},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use lb_core::{
    datapath::{Capabilities, Datapath, DatapathError, ErrorKind},
    node::NodeFacts,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    config::{DestroySockets, pattern::Pattern, sockets::SocketService},
    host::{netfilter, state_dir::Used},
};

/// A kind of datapath: the value that a change of datapath changes. Two kinds are the same if their names are.
pub type DatapathKind = &'static dyn Driver;

/// Programs on sockets and devices.
pub const EBPF: DatapathKind = &ebpf::Ebpf;
/// One flat nftables ruleset; everything that grows is a map or set element.
pub const NFTABLES: DatapathKind = &nftables::Nftables;
/// Chains per service and endpoint, as kube-proxy writes them, through iptables-nft.
pub const IPTABLES_NFT: DatapathKind = &iptables::Iptables::NFT;
/// The same through iptables-legacy.
pub const IPTABLES_LEGACY: DatapathKind = &iptables::Iptables::LEGACY;
/// Remembers everything and carries nothing; needs no privilege.
pub const MEMORY: DatapathKind = &memory::Memory;

/// Every kind that is built in, in the order in which people read them.
pub const BUILT_IN: [DatapathKind; 5] = [EBPF, NFTABLES, IPTABLES_NFT, IPTABLES_LEGACY, MEMORY];

/// What the agent, the command line and the lab have to know about one kind of datapath.
///
/// A driver is a constant: it holds no state. What it opens does.
pub trait Driver: Sync {
    /// Its name on the command line, in files and in answers: lower case, words joined by `-`. It never changes, since
    /// state directories remember it.
    fn name(&self) -> &'static str;

    /// What it is, in one sentence without a full stop, for `--help`.
    fn about(&self) -> &'static str;

    /// Opens the datapath in the network namespace of this thread, and adopts what an earlier process installed.
    ///
    /// `attachments` has every [setting](Self::settings) that this driver names; the others are empty.
    ///
    /// # Errors
    /// When the kernel or the machine lacks something, or somebody else holds what is needed.
    fn open(&self, attachments: &Attachments) -> Result<Box<dyn OpenDatapath>, DatapathError>;

    /// What a datapath of this kind can do with these settings, without opening one, if the kernel and the privileges
    /// suffice; `None`, the default, if only an open one knows.
    fn capabilities(&self, attachments: &Attachments) -> Option<Capabilities> {
        let _ = attachments;
        None
    }

    /// Removes everything that this kind ever put into the kernel, in the network namespace of this thread. `pin_dir`
    /// is empty unless [`Setting::PinDir`] is one of its [settings](Self::settings). The default opens it and [cleans
    /// up](Datapath::cleanup).
    ///
    /// # Errors
    /// When something could not be removed.
    fn cleanup(&self, pin_dir: &Path) -> Result<(), DatapathError> {
        let attachments = Attachments::default().with_pin_dir(pin_dir);
        self.open(&attachments)?.datapath_mut().cleanup()
    }

    /// Objects of this kind in the kernel, in the network namespace of this thread, in the words of the tools that list
    /// them. `pin_dir` is as for [`cleanup`](Self::cleanup). They tell what a clean-up removed from what was never there.
    /// `None`, the default: nobody can tell.
    ///
    /// # Errors
    /// When the kernel does not say it.
    fn traces(&self, pin_dir: &Path) -> Result<Option<Vec<String>>, DatapathError> {
        let _ = pin_dir;
        Ok(None)
    }

    /// Datapaths of this kind in the network namespace of this thread that are none of `known`, each with what is known
    /// of it: those of other agents, or of agents that are gone. Default: none are looked for.
    ///
    /// # Errors
    /// When the kernel does not say it.
    fn unknown(&self, known: &[Used]) -> Result<Vec<String>, DatapathError> {
        let _ = known;
        Ok(Vec::new())
    }

    /// Directories in which something of this kind is pinned, in the BPF file systems that this process sees. Default:
    /// none, nothing of this kind is pinned.
    ///
    /// # Errors
    /// When they cannot be read.
    fn pin_dirs(&self) -> Result<Vec<PathBuf>, DatapathError> {
        Ok(Vec::new())
    }

    /// What about this machine keeps this kind from serving as it should: the type of a condition and its message. The
    /// agent asks when devices change, and every minute. Default: nothing.
    fn hindrances(&self, node: &NodeFacts) -> Vec<(&'static str, String)> {
        let _ = node;
        Vec::new()
    }

    /// Oldest Linux release, major and minor, on which it is known to work. A distribution may have backported what it
    /// needs, so this explains a failure and never prevents a start. `None`, the default: any that Rust runs on.
    fn minimum_kernel(&self) -> Option<(u32, u32)> {
        None
    }

    /// Settings that this kind reads, of those that not every kind does. Default: none.
    fn settings(&self) -> &'static [Setting] {
        &[]
    }

    /// Capabilities that its user needs, as an error message lists them. Default: `CAP_NET_ADMIN`.
    fn privileges(&self) -> &'static str {
        "CAP_NET_ADMIN"
    }

    /// Time from one full inspection to the next unless the user says otherwise. Choose it short where a
    /// [watcher](Datapath::watcher) cannot notice everything that others change. Default: one minute.
    fn drift_interval(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// What keeps two agents from writing the same objects. Default: [`Exclusion::NetworkNamespace`].
    fn exclusion(&self) -> Exclusion {
        Exclusion::NetworkNamespace
    }

    /// Whether it carries packets. One that carries none needs no clean-up and no address of the node.
    /// Default: yes.
    fn carries_packets(&self) -> bool {
        true
    }

    /// Whether established connections are in the kernel's connection tracking, so that they live on when another kind
    /// takes over of which this is true as well. Default: no, they end with the datapath that translates them.
    fn uses_conntrack(&self) -> bool {
        false
    }

    /// What `lb lab` has to know. The default fits a datapath that needs root and that nobody but the agent changes.
    #[cfg(feature = "lab")]
    fn lab(&self) -> lab::LabFacts {
        lab::LabFacts::default()
    }
}

/// A setting of the agent that not every kind of datapath reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Setting {
    /// Devices that lead out of the node: `--device`. Every kind may need them to find the node's addresses; this one
    /// attaches to them, so that it needs one.
    Device,
    /// Devices that lead out of the node, as far as there are any: `--device`. This kind tells packets from outside by them.
    Uplinks,
    /// Devices of pods: `--pod-device`.
    PodDevice,
    /// The cgroup whose sockets are balanced: `--cgroup`.
    Cgroup,
    /// Where sockets are ended whose backend left: `--destroy-sockets`.
    DestroySockets,
    /// How sockets are served: `--socket-lb`, `--socket-lb-except`, `--guard-ports`, `--loopback-node-ports` and `--node-port-range`.
    Sockets,
    /// Where objects are pinned: `--pin-dir`.
    PinDir,
    /// Maglev tables: `--maglev-hash` and `--maglev-seed`.
    Maglev,
}

/// What keeps two agents from writing the same objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exclusion {
    /// Objects have fixed names, so one agent per kind and network namespace: it holds the abstract socket `@lb/NAME`.
    NetworkNamespace,
    /// The datapath itself refuses a second one, or two do not disturb each other.
    Datapath,
}

/// Where a datapath attaches to this node.
///
/// Later versions may add places, so start with [`default`](Self::default), where all are empty, and sockets are ended in the agent's
/// network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attachments {
    /// Devices that lead out of the node.
    pub devices: Vec<String>,
    /// Devices of pods. Those that come later are meant, too.
    pub pod_devices: Vec<Pattern>,
    /// Cgroup (version 2) whose sockets are balanced.
    pub cgroup: PathBuf,
    /// Where sockets are ended whose backend left.
    pub destroy_sockets: DestroySockets,
    /// How sockets are served.
    pub sockets: SocketService,
    /// Directory on a BPF file system where programs and maps are pinned.
    pub pin_dir: PathBuf,
}

impl Attachments {
    /// The same with these [`devices`](Self::devices) in place of those before.
    #[must_use]
    pub fn with_devices(mut self, devices: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.devices = devices.into_iter().map(Into::into).collect();
        self
    }

    /// The same with these [`pod_devices`](Self::pod_devices) in place of those before.
    #[must_use]
    pub fn with_pod_devices(mut self, patterns: impl IntoIterator<Item = Pattern>) -> Self {
        self.pod_devices = patterns.into_iter().collect();
        self
    }

    /// The same with another [`cgroup`](Self::cgroup).
    #[must_use]
    pub fn with_cgroup(mut self, cgroup: impl Into<PathBuf>) -> Self {
        self.cgroup = cgroup.into();
        self
    }

    /// The same with sockets [ended](Self::destroy_sockets) there.
    #[must_use]
    pub const fn with_destroy_sockets(mut self, destroy_sockets: DestroySockets) -> Self {
        self.destroy_sockets = destroy_sockets;
        self
    }

    /// The same with sockets [served](Self::sockets) like that.
    #[must_use]
    pub fn with_sockets(mut self, sockets: SocketService) -> Self {
        self.sockets = sockets;
        self
    }

    /// The same with another [`pin_dir`](Self::pin_dir).
    #[must_use]
    pub fn with_pin_dir(mut self, pin_dir: impl Into<PathBuf>) -> Self {
        self.pin_dir = pin_dir.into();
        self
    }
}

/// A datapath that was opened, and what goes beyond the common contract. Every [`Datapath`] is one.
pub trait OpenDatapath: Send {
    /// The datapath, to ask.
    fn datapath(&self) -> &dyn Datapath;

    /// The datapath, to carry plans out.
    fn datapath_mut(&mut self) -> &mut dyn Datapath;

    /// Devices that it is attached to; `None`, the default, if it does not attach to devices.
    fn devices(&self) -> Option<Vec<String>> {
        None
    }

    /// How this datapath does what depends on the kernel, as it was found when it was opened: one short line for each
    /// fact, for people. Default: there is nothing to say.
    fn facts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Attaches to devices that came and forgets those that went. Default: does nothing.
    ///
    /// # Errors
    /// Says of each device what failed; the others are as they should be.
    fn follow_devices(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Leaves the sockets of pods alone whose addresses [`SocketService::except`] has. The agent asks for it when devices
    /// change, and [once in a while](Self::follows_pods). Default: does nothing.
    ///
    /// # Errors
    /// Says why some pods are not left alone that should be.
    fn follow_pods(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Whether there is anything to [follow pods](Self::follow_pods) for. Default: no.
    fn follows_pods(&self) -> bool {
        false
    }
}

impl<D: Datapath> OpenDatapath for D {
    fn datapath(&self) -> &dyn Datapath {
        self
    }

    fn datapath_mut(&mut self) -> &mut dyn Datapath {
        self
    }
}

/// The built-in kind of this name.
#[must_use]
pub fn find(name: &str) -> Option<DatapathKind> {
    BUILT_IN.into_iter().find(|kind| kind.name() == name)
}

/// Built-in kinds that carry packets.
#[must_use]
pub fn carrying() -> Vec<DatapathKind> {
    BUILT_IN.into_iter().filter(|kind| kind.carries_packets()).collect()
}

/// Why something about a kind could not be found out.
fn unseen(what: &'static str) -> impl Fn(io::Error) -> DatapathError {
    move |error| {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let kind = if denied { ErrorKind::Permission } else { ErrorKind::System };
        DatapathError::new(kind, format!("{what} failed")).with_source(error)
    }
}

/// The routes of a routing table and the routing rules that lead to `tables`, as traces.
fn route_traces(table: u32, tables: &[u32]) -> Result<Vec<String>, DatapathError> {
    let (routes, rules) = netfilter::routes(table, tables).map_err(unseen("listing routes"))?;
    let some = |count: usize, what| (count > 0).then(|| counted(count, what));
    Ok([some(routes, "route"), some(rules, "routing rule")].into_iter().flatten().collect())
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Reads the name of a built-in kind from the command line.
#[must_use]
pub fn parser() -> impl TypedValueParser<Value = DatapathKind> {
    let names = BUILT_IN.map(|kind| PossibleValue::new(kind.name()).help(kind.about()));
    PossibleValuesParser::new(names)
        .map(|name| find(&name).expect("the parser accepts no other name than those of BUILT_IN"))
}

/// Reads the name of a built-in kind from a file.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DatapathKind>, D::Error> {
    let Some(name) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let unknown = || {
        let names: Vec<&str> = BUILT_IN.iter().map(|kind| kind.name()).collect();
        de::Error::custom(format_args!("unknown datapath `{name}`, expected one of {}", names.join(", ")))
    };
    find(&name).ok_or_else(unknown).map(Some)
}

impl dyn Driver {
    /// Whether this kind reads a setting.
    #[must_use]
    pub fn reads(&self, setting: Setting) -> bool {
        self.settings().contains(&setting)
    }

    /// Whether this kind has a use for the devices that lead out of the node: it attaches to them, or tells packets by them.
    #[must_use]
    pub fn takes_devices(&self) -> bool {
        self.reads(Setting::Device) || self.reads(Setting::Uplinks)
    }
}

impl fmt::Display for dyn Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for dyn Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for dyn Driver {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn Driver {}

impl PartialOrd for dyn Driver {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Driver {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.name().cmp(other.name())
    }
}

impl Hash for dyn Driver {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl Serialize for dyn Driver {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name_and_by_no_other() {
        let names: BTreeSet<&str> = BUILT_IN.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), BUILT_IN.len());
        for kind in BUILT_IN {
            assert_eq!(find(kind.name()), Some(kind));
            assert!(!kind.about().is_empty() && !kind.about().ends_with('.'), "{kind}");
        }
        assert_eq!(find("ipvs"), None);
        assert_eq!(carrying(), [EBPF, NFTABLES, IPTABLES_NFT, IPTABLES_LEGACY]);
    }

    #[test]
    fn a_kind_that_keeps_pins_excludes_others_by_them() {
        for kind in BUILT_IN.into_iter().filter(|kind| kind.reads(Setting::PinDir)) {
            assert_eq!(kind.exclusion(), Exclusion::Datapath, "{kind}");
        }
    }
}
