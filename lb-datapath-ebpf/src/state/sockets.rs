//! What the programs of sockets are told besides services.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::Path,
};

use lb_core::drift::{Difference, Drift, DriftClass};
use lb_datapath_ebpf_abi::{self as abi, Pod};

use crate::{
    config::{EbpfConfig, SocketBalancing},
    error::EbpfError,
    state::{
        layout::{SOCK_SETTINGS, SOCK_SKIPS},
        maps::open,
    },
    sys::{self, RawMap},
};

/// The maps with the settings, and what was written into them.
#[derive(Debug)]
pub(crate) struct Sockets {
    settings: RawMap,
    skips: RawMap,
    expected: abi::SockSettings,
    skipped: BTreeSet<u64>,
    /// Addresses in those that were left alone because of their addresses.
    addresses: BTreeSet<IpAddr>,
}

impl Sockets {
    /// Opens the maps that are pinned in `dir`, and takes over the namespaces that are left alone.
    pub(crate) fn open(dir: &Path) -> Result<Self, EbpfError> {
        let (settings, skips) = (open(&dir.join(SOCK_SETTINGS))?, open(&dir.join(SOCK_SKIPS))?);
        let mut sockets = Self {
            settings,
            skips,
            expected: abi::SockSettings::NONE,
            skipped: BTreeSet::new(),
            addresses: BTreeSet::new(),
        };
        sockets.skipped = sockets.found()?;
        Ok(sockets)
    }

    /// Writes what the configuration says, for the network namespace of the calling thread as that of the node. Sockets may
    /// count as connections if that is so now.
    pub(crate) fn configure(&mut self, config: &EbpfConfig, counts: bool) -> Result<(), EbpfError> {
        let cookie = sys::netns_cookie().map_err(|source| EbpfError::Probe { what: "SO_NETNS_COOKIE", source })?;
        let host_netns = match config.socket_balancing {
            SocketBalancing::Host => cookie.ok_or(EbpfError::NoNamespace)?,
            // No namespace has this cookie.
            SocketBalancing::All | SocketBalancing::Off => cookie.unwrap_or(0),
        };
        let balance = match config.socket_balancing {
            SocketBalancing::All => abi::BALANCE_ALL,
            SocketBalancing::Host => abi::BALANCE_HOST,
            SocketBalancing::Off => abi::BALANCE_OFF,
        };
        self.expected = abi::SockSettings {
            host_netns,
            balance,
            guards_ports: u8::from(config.guard_ports),
            loopback: u8::from(config.loopback_node_ports),
            lists: if counts { abi::LISTS_COUNTS } else { 0 },
            first_node_port: *config.node_ports.start(),
            last_node_port: *config.node_ports.end(),
        };
        self.list_skips();
        self.write()
    }

    /// Leaves the sockets of the namespace with this cookie alone, or not any more.
    pub(crate) fn skip(&mut self, netns: u64, skips: bool) -> Result<(), EbpfError> {
        if skips {
            self.put(netns)?;
            self.skipped.insert(netns);
        } else {
            self.skips.remove(netns.bytes()).map_err(failed(SOCK_SKIPS, "removing from"))?;
            self.skipped.remove(&netns);
        }
        self.list_skips();
        self.write()
    }

    fn list_skips(&mut self) {
        let lists = self.expected.lists & !abi::LISTS_SKIPS;
        self.expected.lists = if self.skipped.is_empty() { lists } else { lists | abi::LISTS_SKIPS };
    }

    /// Has the programs look for each socket that ends among those that count as connections, before one of them may. That
    /// ends with a start which finds none.
    pub(crate) fn count(&mut self) -> Result<(), EbpfError> {
        if self.expected.lists & abi::LISTS_COUNTS != 0 {
            return Ok(());
        }
        self.expected.lists |= abi::LISTS_COUNTS;
        self.write()
    }

    /// Leaves the sockets of these namespaces, which have these addresses, alone, and of those before as well or not any
    /// more. Returns how many namespaces that are.
    pub(crate) fn skip_all(&mut self, wanted: BTreeMap<u64, Vec<IpAddr>>, keeps: bool) -> Result<usize, EbpfError> {
        if !keeps {
            self.addresses.clear();
        }
        self.addresses.extend(wanted.values().flatten());
        let wanted: BTreeSet<u64> = wanted.into_keys().collect();
        let before = self.skipped.clone();
        for netns in wanted.difference(&before) {
            self.skip(*netns, true)?;
        }
        for netns in before.difference(&wanted).filter(|_| !keeps) {
            self.skip(*netns, false)?;
        }
        Ok(self.skipped.len())
    }

    /// Whether sockets with this address are left alone because of an address of theirs.
    pub(crate) fn skips(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip)
    }

    /// What other tools have changed.
    pub(crate) fn check(&self) -> Result<Vec<Drift>, EbpfError> {
        let settings = self.settings.lookup(abi::SETTINGS_KEY.bytes()).map_err(failed(SOCK_SETTINGS, "reading"))?;
        let settings: Option<abi::SockSettings> = settings.as_deref().and_then(Pod::from_bytes);
        let differences = [
            (SOCK_SETTINGS, Difference::between(&Some(self.expected), &settings, |found| format!("{found:?}"))),
            (SOCK_SKIPS, Difference::between(&self.skipped, &self.found()?, |found| format!("{found:?}"))),
        ];
        let drift = |(name, difference): (&str, Option<Difference>)| {
            Some(Drift::new(DriftClass::MapEntry, format_args!("MAP {name}"), difference?))
        };
        Ok(differences.into_iter().filter_map(drift).collect())
    }

    /// Writes everything again.
    pub(crate) fn repair(&self) -> Result<(), EbpfError> {
        for netns in self.found()?.difference(&self.skipped) {
            self.skips.remove(netns.bytes()).map_err(failed(SOCK_SKIPS, "removing from"))?;
        }
        self.skipped.iter().try_for_each(|netns| self.put(*netns))?;
        self.write()
    }

    fn put(&self, netns: u64) -> Result<(), EbpfError> {
        self.skips.update(netns.bytes(), 1_u8.bytes()).map_err(|stopped| failed(SOCK_SKIPS, "writing")(stopped.cause))
    }

    fn write(&self) -> Result<(), EbpfError> {
        let written = self.settings.update(abi::SETTINGS_KEY.bytes(), self.expected.bytes());
        written.map_err(|stopped| failed(SOCK_SETTINGS, "writing")(stopped.cause))
    }

    fn found(&self) -> Result<BTreeSet<u64>, EbpfError> {
        let keys = self.skips.keys().map_err(failed(SOCK_SKIPS, "reading"))?;
        Ok(keys.iter().filter_map(|key| u64::from_bytes(key)).collect())
    }
}

fn failed(name: &'static str, what: &'static str) -> impl FnOnce(io::Error) -> EbpfError {
    move |source| EbpfError::Map { name, what, source }
}
