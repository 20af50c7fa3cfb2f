//! The one place that knows every datapath.

mod kind;

use std::{collections::BTreeMap, path::Path};

use lb_core::{Datapath, DatapathError, ErrorKind, MemoryDatapath};
use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath};
use lb_datapath_iptables::{
    iptables::{IptablesConfig, IptablesDatapath, Variant},
    nftables::{NftablesConfig, NftablesDatapath},
};

pub use self::kind::DatapathKind;
use crate::{
    config::{Config, EbpfSettings},
    host::netlink,
};

/// An open datapath, and what goes beyond the common contract.
pub enum Installed {
    /// One that needs nothing but plans.
    Plain(Box<dyn Datapath>),
    /// One that is attached to devices.
    Ebpf(Box<OnDevices>),
}

/// The eBPF datapath and the devices that it is attached to.
pub struct OnDevices {
    datapath: EbpfDatapath,
    settings: EbpfSettings,
    /// By index: a device that comes back under its old name has another one.
    attached: BTreeMap<u32, String>,
}

/// Opens what the settings name, in the network namespace of this thread.
pub fn open(config: &Config) -> Result<Installed, DatapathError> {
    match (&config.ebpf, config.datapath) {
        (Some(settings), _) => Ok(Installed::Ebpf(Box::new(OnDevices::open(settings)?))),
        (None, kind) => open_plain(kind).map(Installed::Plain),
    }
}

/// Removes what this kind of datapath ever put into the kernel.
pub fn cleanup(kind: DatapathKind, pin_dir: &Path) -> Result<(), DatapathError> {
    match kind {
        DatapathKind::Ebpf => EbpfDatapath::remove(pin_dir),
        DatapathKind::Nftables | DatapathKind::IptablesNft | DatapathKind::IptablesLegacy | DatapathKind::Memory => {
            open_plain(kind)?.cleanup()
        }
    }
}

/// Opens a datapath that needs no settings.
fn open_plain(kind: DatapathKind) -> Result<Box<dyn Datapath>, DatapathError> {
    Ok(match kind {
        DatapathKind::Memory => Box::new(MemoryDatapath::default()),
        DatapathKind::Nftables => Box::new(NftablesDatapath::open(&NftablesConfig::default())?),
        DatapathKind::IptablesNft => Box::new(IptablesDatapath::open(&IptablesConfig::default())?),
        DatapathKind::IptablesLegacy => Box::new(IptablesDatapath::open(&legacy())?),
        DatapathKind::Ebpf => {
            return Err(DatapathError::new(ErrorKind::Invalid, "ebpf needs a cgroup, devices and a pin directory"));
        }
    })
}

/// With routes of its own, so that one variant of iptables can be cleaned up while the other serves.
fn legacy() -> IptablesConfig {
    IptablesConfig {
        variant: Variant::Legacy,
        route_table: 26978,
        reject_table: 26979,
        rule_priority: 26978,
        route_protocol: 106,
        ..IptablesConfig::default()
    }
}

impl Installed {
    pub fn datapath(&self) -> &dyn Datapath {
        match self {
            Self::Plain(datapath) => &**datapath,
            Self::Ebpf(on_devices) => &on_devices.datapath,
        }
    }

    pub fn datapath_mut(&mut self) -> &mut dyn Datapath {
        match self {
            Self::Plain(datapath) => &mut **datapath,
            Self::Ebpf(on_devices) => &mut on_devices.datapath,
        }
    }

    /// Attaches to devices that came and forgets those that went.
    ///
    /// # Errors
    /// Says of each device what failed; the others are as they should be.
    pub fn follow_devices(&mut self) -> Result<(), String> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Ebpf(on_devices) => on_devices.follow(),
        }
    }

    /// Devices that it is attached to.
    pub fn devices(&self) -> Vec<String> {
        match self {
            Self::Plain(_) => Vec::new(),
            Self::Ebpf(on_devices) => on_devices.attached.values().cloned().collect(),
        }
    }
}

impl OnDevices {
    fn open(settings: &EbpfSettings) -> Result<Self, DatapathError> {
        let attached = wanted(settings)?;
        let pod_devices = attached.values().filter(|name| !settings.devices.contains(name)).cloned().collect();
        let config = EbpfConfig {
            pin_dir: settings.pin_dir.clone(),
            pod_devices,
            uplink_devices: settings.devices.clone(),
            ..EbpfConfig::new(&settings.cgroup)
        };
        Ok(Self { datapath: EbpfDatapath::open(config)?, settings: settings.clone(), attached })
    }

    fn follow(&mut self) -> Result<(), String> {
        let wanted = wanted(&self.settings).map_err(|error| error.report())?;
        let mut problems = Vec::new();
        let gone: Vec<(u32, String)> =
            self.attached.iter().filter(|(index, name)| wanted.get(index) != Some(name)).map(owned).collect();
        for (index, name) in gone {
            match self.datapath.detach_device(&name) {
                Ok(()) => drop(self.attached.remove(&index)),
                Err(error) => problems.push(error.report()),
            }
        }
        let new: Vec<(u32, String)> =
            wanted.iter().filter(|(index, _)| !self.attached.contains_key(index)).map(owned).collect();
        for (index, name) in new {
            match self.datapath.attach_device(&name) {
                Ok(()) => {
                    tracing::info!(device = name, "attached");
                    self.attached.insert(index, name);
                }
                Err(error) => problems.push(error.report()),
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }
}

fn owned((index, name): (&u32, &String)) -> (u32, String) {
    (*index, name.clone())
}

/// Devices that there are and that are meant.
fn wanted(settings: &EbpfSettings) -> Result<BTreeMap<u32, String>, DatapathError> {
    let mut devices = netlink::devices()
        .map_err(|error| DatapathError::new(ErrorKind::System, "listing devices failed").with_source(error))?;
    let meant = |name: &str| {
        let named = settings.devices.iter().any(|device| device == name);
        named || (name != "lo" && settings.pod_devices.iter().any(|pattern| pattern.matches(name)))
    };
    devices.retain(|_, name| meant(name));
    Ok(devices)
}
