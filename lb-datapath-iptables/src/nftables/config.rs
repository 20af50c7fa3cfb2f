use std::collections::BTreeSet;

use lb_core::datapath::{DatapathError, ErrorKind};

use crate::nftables::table::layout::Device;

/// Names and numbers that a [`NftablesDatapath`](super::NftablesDatapath) uses in the kernel. Two that share a network
/// namespace need different ones; routes are told apart by `route_table`.
///
/// Later versions may add settings, so start with [`default`](Self::default).
///
/// ```
/// use lb_datapath_iptables::nftables::NftablesConfig;
///
/// let config = NftablesConfig::default().with_table("lb-2").with_route_table(300).with_rule_priority(300);
/// assert_eq!(config.table, "lb-2");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NftablesConfig {
    /// Name of the table, of family inet. Default `lb`. A table of this name that this datapath did not make is refused
    /// with [`ErrorKind::Busy`] and stays as it is.
    pub table: String,
    /// Routing table for the node's own packets to virtual addresses. Default 27746; 0 and 253..=255 are the kernel's.
    pub route_table: u32,
    /// Priority of the routing rule that leads there: above 0 (local) and below 32766 (main). Default 27746.
    pub rule_priority: u32,
    /// Most affinity records of a family. A client beyond that gets a backend without a record. Default 1,048,576; each
    /// takes about 150 bytes of the kernel's memory.
    pub affinity_records: u32,
    /// Names of the devices that lead out of the node; they need not exist. With any, the datapath tells pods of other nodes
    /// from its own, and carries node ports and host ports. Default: none.
    pub uplink_devices: Vec<String>,
}

impl Default for NftablesConfig {
    fn default() -> Self {
        Self {
            table: "lb".into(),
            route_table: 27_746,
            rule_priority: 27_746,
            affinity_records: 1 << 20,
            uplink_devices: Vec::new(),
        }
    }
}

impl NftablesConfig {
    /// The same with another [name of the table](Self::table).
    #[must_use]
    pub fn with_table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// The same with another [`route_table`](Self::route_table).
    #[must_use]
    pub const fn with_route_table(mut self, route_table: u32) -> Self {
        self.route_table = route_table;
        self
    }

    /// The same with another [`rule_priority`](Self::rule_priority).
    #[must_use]
    pub const fn with_rule_priority(mut self, rule_priority: u32) -> Self {
        self.rule_priority = rule_priority;
        self
    }

    /// The same with at most this many [`affinity_records`](Self::affinity_records) of a family.
    #[must_use]
    pub const fn with_affinity_records(mut self, affinity_records: u32) -> Self {
        self.affinity_records = affinity_records;
        self
    }

    /// The same with these [`uplink_devices`](Self::uplink_devices) in place of those before.
    #[must_use]
    pub fn with_uplink_devices(mut self, devices: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.uplink_devices = devices.into_iter().map(Into::into).collect();
        self
    }

    /// The devices that lead out of the node, by the names that the kernel compares.
    pub(crate) fn uplinks(&self) -> Result<BTreeSet<Device>, DatapathError> {
        let device = |name: &String| {
            let message = || format!("`{name}` is no name of a device: use 1 to 15 bytes without `/` and `:`");
            Device::new(name).ok_or_else(|| DatapathError::new(ErrorKind::Invalid, message()))
        };
        self.uplink_devices.iter().map(device).collect()
    }

    pub(crate) fn check(&self) -> Result<(), DatapathError> {
        let invalid = |message: String| Err(DatapathError::new(ErrorKind::Invalid, message));
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if self.table.is_empty() || self.table.len() > 127 || !self.table.chars().all(name) {
            return invalid(format!("`{}` is no table name: use 1 to 127 of letters, digits, `_` and `-`", self.table));
        }
        if matches!(self.route_table, 0 | 253..=255) {
            return invalid(format!("routing table {} is the kernel's own: use another number", self.route_table));
        }
        if !(1..32_766).contains(&self.rule_priority) {
            return invalid(format!("rule priority {} is not in 1..=32765", self.rule_priority));
        }
        if self.affinity_records == 0 {
            return invalid("affinity_records is 0: a client needs a record".into());
        }
        Ok(())
    }
}
