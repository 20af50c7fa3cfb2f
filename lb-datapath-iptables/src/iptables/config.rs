//! Settings.

use std::{path::PathBuf, time::Duration};

use lb_core::{
    addr::Family,
    datapath::{DatapathError, ErrorKind},
};

use crate::iptables::change::lower::Style;

/// Which of the two programs called iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// `iptables-nft`: rules live in nf_tables.
    Nft,
    /// `iptables-legacy`: rules live in the older x_tables, whose tables are replaced as a whole.
    Legacy,
}

impl Variant {
    /// The name of the datapath: `iptables-nft` or `iptables-legacy`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }
}

/// Settings of an [`IptablesDatapath`](super::IptablesDatapath).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IptablesConfig {
    /// Which programs to run. Default [`Variant::Nft`].
    pub variant: Variant,
    /// Families to program. Default both; leave IPv6 out on a host that has none.
    pub families: Vec<Family>,
    /// Bit of the packet mark that asks for source translation, cleared before the packet leaves. Default 0x4000,
    /// which is kube-proxy's.
    pub masquerade_mark: u32,
    /// Whole mark of packets that are refused. They carry no other mark, since they go nowhere. Default 0x6c620001.
    pub reject_mark: u32,
    /// Whole mark of packets that are dropped. Default 0x6c620002.
    pub drop_mark: u32,
    /// Routing table for VIPs, looked up for the node's own packets. Default 26976; 0 and 253..=255 are the kernel's.
    pub route_table: u32,
    /// Routing table that leads refused IPv6 packets to the rule that refuses them. Default 26977.
    pub reject_table: u32,
    /// Priority of the routing rules that lead to both tables, 1..=32765. Default 26976.
    pub rule_priority: u32,
    /// Protocol number (`RTPROT_*`) that marks routes and routing rules as those of lb. Default 105, which no other
    /// program uses.
    pub route_protocol: u8,
    /// How long to wait for the lock that all users of iptables-legacy share. Whole seconds. Default one minute.
    pub lock_wait: Duration,
    /// That lock's file. Default `/run/xtables.lock`, which programs in other network namespaces share: give each
    /// namespace its own if nobody else changes rules there.
    pub lock_file: Option<PathBuf>,
}

impl Default for IptablesConfig {
    fn default() -> Self {
        Self {
            variant: Variant::Nft,
            families: vec![Family::V4, Family::V6],
            masquerade_mark: 0x4000,
            reject_mark: 0x6c62_0001,
            drop_mark: 0x6c62_0002,
            route_table: 26976,
            reject_table: 26977,
            rule_priority: 26976,
            route_protocol: 105,
            lock_wait: Duration::from_secs(60),
            lock_file: None,
        }
    }
}

impl IptablesConfig {
    pub(crate) const fn style(&self, random_fully: bool) -> Style {
        let Self { masquerade_mark, reject_mark, drop_mark, .. } = *self;
        Style { masquerade_mark, reject_mark, drop_mark, random_fully }
    }

    pub(crate) fn check(&self) -> Result<(), DatapathError> {
        let invalid = |message: &str| Err(DatapathError::new(ErrorKind::Invalid, message));
        if self.families.is_empty() {
            return invalid("no family is switched on");
        }
        if !self.masquerade_mark.is_power_of_two() {
            return invalid("the masquerade mark must be one bit");
        }
        if self.reject_mark == self.drop_mark || [self.reject_mark, self.drop_mark].contains(&0) {
            return invalid("the marks of refused and of dropped packets must differ and not be 0");
        }
        if (self.reject_mark | self.drop_mark) & self.masquerade_mark != 0 {
            return invalid("the marks of refused and of dropped packets must not have the masquerade bit");
        }
        let tables = [self.route_table, self.reject_table];
        if self.route_table == self.reject_table || tables.iter().any(|table| matches!(table, 0 | 253..=255)) {
            return invalid("the routing tables must differ and not be the kernel's own (0, 253 to 255)");
        }
        if !(1..32_766).contains(&self.rule_priority) {
            return invalid("the priority of the routing rules must be 1 to 32765");
        }
        Ok(())
    }
}
