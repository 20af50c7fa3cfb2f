//! Settings.

use std::{path::PathBuf, time::Duration};

use lb_core::{
    addr::Family,
    datapath::{DatapathError, ErrorKind},
};

use crate::{conntrack::CLOSE_WAIT, iptables::change::lower::Style};

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
///
/// Later versions may add settings, so start with [`default`](Self::default).
///
/// ```
/// use lb_datapath_iptables::iptables::{IptablesConfig, Variant};
///
/// let config = IptablesConfig::default().with_variant(Variant::Legacy).with_lock_file("/run/lb/xtables.lock");
/// assert_eq!(config.variant, Variant::Legacy);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// How long conntrack remembers a connection of which one half is closed, at least: the sysctl
    /// `net.netfilter.nf_conntrack_tcp_timeout_close_wait` is raised to so many seconds with the first change, if it can
    /// be written. It is of the whole network namespace, and `cleanup` leaves it. Default one hour, which is
    /// kube-proxy's; the kernel's own is a minute. `None` leaves the sysctl alone.
    pub close_wait: Option<Duration>,
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
            close_wait: Some(CLOSE_WAIT),
            lock_wait: Duration::from_secs(60),
            lock_file: None,
        }
    }
}

impl IptablesConfig {
    /// The same with the programs of this [`variant`](Self::variant).
    #[must_use]
    pub const fn with_variant(mut self, variant: Variant) -> Self {
        self.variant = variant;
        self
    }

    /// The same with these [`families`](Self::families).
    #[must_use]
    pub fn with_families(mut self, families: impl Into<Vec<Family>>) -> Self {
        self.families = families.into();
        self
    }

    /// The same with another [`masquerade_mark`](Self::masquerade_mark).
    #[must_use]
    pub const fn with_masquerade_mark(mut self, masquerade_mark: u32) -> Self {
        self.masquerade_mark = masquerade_mark;
        self
    }

    /// The same with another [`reject_mark`](Self::reject_mark).
    #[must_use]
    pub const fn with_reject_mark(mut self, reject_mark: u32) -> Self {
        self.reject_mark = reject_mark;
        self
    }

    /// The same with another [`drop_mark`](Self::drop_mark).
    #[must_use]
    pub const fn with_drop_mark(mut self, drop_mark: u32) -> Self {
        self.drop_mark = drop_mark;
        self
    }

    /// The same with another [`route_table`](Self::route_table).
    #[must_use]
    pub const fn with_route_table(mut self, route_table: u32) -> Self {
        self.route_table = route_table;
        self
    }

    /// The same with another [`reject_table`](Self::reject_table).
    #[must_use]
    pub const fn with_reject_table(mut self, reject_table: u32) -> Self {
        self.reject_table = reject_table;
        self
    }

    /// The same with another [`rule_priority`](Self::rule_priority).
    #[must_use]
    pub const fn with_rule_priority(mut self, rule_priority: u32) -> Self {
        self.rule_priority = rule_priority;
        self
    }

    /// The same with another [`route_protocol`](Self::route_protocol).
    #[must_use]
    pub const fn with_route_protocol(mut self, route_protocol: u8) -> Self {
        self.route_protocol = route_protocol;
        self
    }

    /// The same with another [`close_wait`](Self::close_wait).
    #[must_use]
    pub const fn with_close_wait(mut self, close_wait: Option<Duration>) -> Self {
        self.close_wait = close_wait;
        self
    }

    /// The same with another [`lock_wait`](Self::lock_wait).
    #[must_use]
    pub const fn with_lock_wait(mut self, lock_wait: Duration) -> Self {
        self.lock_wait = lock_wait;
        self
    }

    /// The same with another [`lock_file`](Self::lock_file).
    #[must_use]
    pub fn with_lock_file(mut self, lock_file: impl Into<PathBuf>) -> Self {
        self.lock_file = Some(lock_file.into());
        self
    }

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
