//! The host that the datapath acts on: one table of nf_tables, routes of virtual addresses, conntrack.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr},
    decision::Packet,
};

use crate::{
    conntrack::{Allowed, CLOSE_WAIT, Conntrack, raise_close_wait},
    namespace::Namespace,
    nftables::{
        NftablesConfig,
        change::lower::{Origin, Step},
        socket::TableSocket,
        table::{
            decode::{DecodedElement, RawElement},
            layout::{Element, Key, Set},
            rules::{Hook, Rule, has_timeouts, learn_timeouts},
            ruleset::Ruleset,
        },
    },
    routes::{Foreign, InstalledRoutes, RouteFilter, RouteKind, Routes},
};

/// Everything outside of this process that the datapath reads and changes. It decides nothing.
pub(crate) trait Host: Send {
    /// Carries out a batch, all of it or nothing.
    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError>;

    /// Puts objects of the table back as they should be, all of them or none.
    fn repair(&mut self, repair: &TableRepair) -> Result<(), CommitError>;

    /// The elements of a set; `None` stands for an element that this datapath did not write. Fails with `ENOENT` if
    /// there is no such set.
    fn elements(&mut self, set: Set) -> lb_netlink::Result<Vec<Option<DecodedElement>>>;

    /// The elements of a set, with the bytes of their keys. Fails with `ENOENT` if there is no such set.
    fn raw_elements(&mut self, set: Set) -> lb_netlink::Result<Vec<RawElement>>;

    /// The elements of `set` with these keys, as far as they exist. Fails with `ENOENT` if there is no such set.
    fn look_up(&mut self, set: Set, keys: &[Vec<u8>]) -> lb_netlink::Result<Vec<RawElement>>;

    /// Sets, chains and rules of the table.
    fn ruleset(&mut self) -> lb_netlink::Result<Ruleset>;

    /// Number of rules in the table.
    fn rule_count(&mut self) -> lb_netlink::Result<u64>;

    /// What exists under the table's name.
    fn table(&mut self) -> lb_netlink::Result<Table>;

    /// The table's family and name.
    fn table_name(&self) -> String;

    /// Removes the table with this handle; `false` if it is gone already.
    fn remove_table(&mut self, handle: u64) -> lb_netlink::Result<bool>;

    /// Number of transactions of anybody in the network namespace, counted from an arbitrary start.
    fn transactions(&mut self) -> lb_netlink::Result<u32>;

    /// Address of the socket that changes the table.
    fn table_port(&self) -> lb_netlink::Result<u32>;

    /// Whether the kernel has every message that this datapath sends.
    fn is_supported(&mut self) -> lb_netlink::Result<bool>;

    /// Addresses that have both routes.
    fn routed_vips(&mut self) -> lb_netlink::Result<BTreeSet<IpAddr>>;

    /// Adds the routes of addresses, those excepted that belong to somebody else; returns the addresses whose routes were
    /// refused.
    fn add_routes(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>>;

    /// Removes the routes of addresses; returns the addresses whose routes are left.
    fn remove_routes(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>>;

    /// Removes every route and routing rule of this datapath.
    fn remove_all_routes(&mut self) -> lb_netlink::Result<()>;

    /// Says which of `vips`, all addresses of the datapath, belong to somebody else.
    fn foreign(&mut self, vips: &BTreeSet<IpAddr>) -> lb_netlink::Result<Foreign>;

    /// Every route and routing rule of this datapath.
    fn routes(&mut self) -> lb_netlink::Result<InstalledRoutes>;

    /// Families whose routing rule exists.
    fn routing_rules(&mut self) -> lb_netlink::Result<BTreeSet<Family>>;

    /// Writes routes and routing rules that others removed, and removes routes that nothing needs.
    fn repair_routes(
        &mut self,
        missing: &[(RouteKind, IpAddr)],
        extra: &[(RouteKind, IpAddr)],
        rules: &[Family],
    ) -> lb_netlink::Result<()>;

    /// Distinguishes notifications about routes of this datapath from others.
    fn route_filter(&self) -> lb_netlink::Result<RouteFilter>;

    /// Deletes the flows that do not go where they are allowed to; returns their number.
    fn forget_stale_flows(&mut self, allowed: &Allowed) -> lb_netlink::Result<usize>;

    /// Deletes the flows that were translated and do not go where they are allowed to, established or not; returns their
    /// number.
    fn end_flows(&mut self, allowed: &Allowed) -> lb_netlink::Result<usize>;

    /// The backend of a packet's flow, if conntrack knows the flow.
    fn backend_of(&mut self, packet: &Packet) -> lb_netlink::Result<Option<BackendAddr>>;
}

/// What exists under the table's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Nothing.
    Absent,
    /// A table with the marker of this datapath. No other table ever has its handle.
    Ours(u64),
    /// A table without that marker.
    Foreign,
}

/// How a batch makes the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rebuild {
    /// No table exists. If one has appeared in the meantime, it is foreign: the kernel refuses the transaction.
    Add,
    /// In place of the datapath's own table with this handle.
    Replace(u64),
}

/// The contents of one transaction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Batch<'a> {
    /// How to make the table first, if at all.
    pub(crate) rebuild: Option<Rebuild>,
    /// Operations that come before all others.
    pub(crate) first: &'a [Step],
    /// Operations.
    pub(crate) steps: &'a [Step],
    /// Clients' records to remove, each for its frontend; a record may be gone already.
    pub(crate) forget: &'a [(FrontendAddr, Key)],
    /// Clients' records that a new table takes over from the one that it replaces.
    pub(crate) records: &'a [DecodedElement],
    /// Whether elements of one set share messages whomever they are for: the kernel takes that in much less time, but a
    /// refusal says nothing about who is to blame. Only for operations that add.
    pub(crate) merged: bool,
}

/// Objects of the table to put back as they should be.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableRepair {
    /// Operations that come before all others.
    pub(crate) first: Vec<Step>,
    /// Chains that get exactly these rules; a chain that does not exist is added.
    pub(crate) chains: Vec<ChainRepair>,
    /// Chains to remove, with their rules.
    pub(crate) chains_gone: Vec<String>,
    /// Sets to remove.
    pub(crate) sets_gone: Vec<String>,
    /// Sets to empty.
    pub(crate) emptied: Vec<Set>,
    /// Elements to remove, whoever added them; an element may be gone already.
    pub(crate) gone: Vec<(Set, Vec<u8>)>,
    /// Elements to add.
    pub(crate) added: Vec<Element>,
}

/// A chain to put back.
#[derive(Clone, Debug)]
pub(crate) struct ChainRepair {
    pub(crate) name: String,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
    /// Whether the chain exists.
    pub(crate) there: bool,
    /// Whether the chain that exists is of the wrong kind.
    pub(crate) wrong: bool,
}

/// Why a transaction failed.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// The kernel named the messages that it refused, and changed nothing.
    Refused(Vec<(Origin, lb_netlink::Error)>),
    /// The outcome is not known.
    Unknown(lb_netlink::Error),
}

impl From<CommitError> for lb_netlink::Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Unknown(error) => error,
            CommitError::Refused(refused) => {
                refused.into_iter().next().map_or(Self::NotAcknowledged, |(_, error)| error)
            }
        }
    }
}

/// The network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Kernel {
    table: TableSocket,
    routes: Routes,
    flows: Conntrack,
    namespace: Option<Namespace>,
}

impl Kernel {
    pub(crate) fn open(config: &NftablesConfig) -> lb_netlink::Result<Self> {
        Ok(Self {
            table: TableSocket::open(&config.table, config.affinity_records)?,
            routes: Routes::open(config.route_table, config.rule_priority, ROUTE_PROTOCOL)?,
            flows: Conntrack::open()?,
            namespace: Namespace::current().ok(),
        })
    }
}

/// Marks the routes and rules of this datapath (`RTPROT_*`).
const ROUTE_PROTOCOL: u8 = 0x6c;

impl Host for Kernel {
    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError> {
        self.table.commit(batch)?;
        if batch.rebuild.is_some() && !has_timeouts() {
            raise_close_wait(self.namespace.as_ref(), CLOSE_WAIT);
        }
        Ok(())
    }

    fn repair(&mut self, repair: &TableRepair) -> Result<(), CommitError> {
        self.table.repair(repair)
    }

    fn elements(&mut self, set: Set) -> lb_netlink::Result<Vec<Option<DecodedElement>>> {
        self.table.elements(set)
    }

    fn raw_elements(&mut self, set: Set) -> lb_netlink::Result<Vec<RawElement>> {
        self.table.raw_elements(set)
    }

    fn look_up(&mut self, set: Set, keys: &[Vec<u8>]) -> lb_netlink::Result<Vec<RawElement>> {
        self.table.look_up(set, keys)
    }

    fn ruleset(&mut self) -> lb_netlink::Result<Ruleset> {
        self.table.ruleset()
    }

    fn rule_count(&mut self) -> lb_netlink::Result<u64> {
        self.table.rule_count()
    }

    fn table(&mut self) -> lb_netlink::Result<Table> {
        self.table.find()
    }

    fn table_name(&self) -> String {
        self.table.name()
    }

    fn remove_table(&mut self, handle: u64) -> lb_netlink::Result<bool> {
        self.table.remove(handle)
    }

    fn transactions(&mut self) -> lb_netlink::Result<u32> {
        self.table.transactions()
    }

    fn table_port(&self) -> lb_netlink::Result<u32> {
        self.table.port()
    }

    fn is_supported(&mut self) -> lb_netlink::Result<bool> {
        let supported = self.table.is_supported()?;
        learn_timeouts(|| self.table.has_timeouts())?;
        Ok(supported)
    }

    fn routed_vips(&mut self) -> lb_netlink::Result<BTreeSet<IpAddr>> {
        self.routes.observe()
    }

    fn add_routes(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        self.routes.add(vips)
    }

    fn remove_routes(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        self.routes.remove(vips)
    }

    fn remove_all_routes(&mut self) -> lb_netlink::Result<()> {
        self.routes.cleanup()
    }

    fn foreign(&mut self, vips: &BTreeSet<IpAddr>) -> lb_netlink::Result<Foreign> {
        self.routes.foreign(vips)
    }

    fn routes(&mut self) -> lb_netlink::Result<InstalledRoutes> {
        self.routes.everything()
    }

    fn routing_rules(&mut self) -> lb_netlink::Result<BTreeSet<Family>> {
        self.routes.rules()
    }

    fn repair_routes(
        &mut self,
        missing: &[(RouteKind, IpAddr)],
        extra: &[(RouteKind, IpAddr)],
        rules: &[Family],
    ) -> lb_netlink::Result<()> {
        self.routes.repair(missing, extra, rules)
    }

    fn route_filter(&self) -> lb_netlink::Result<RouteFilter> {
        self.routes.filter()
    }

    fn forget_stale_flows(&mut self, allowed: &Allowed) -> lb_netlink::Result<usize> {
        self.flows.forget_stale(allowed)
    }

    fn end_flows(&mut self, allowed: &Allowed) -> lb_netlink::Result<usize> {
        self.flows.end(allowed)
    }

    fn backend_of(&mut self, packet: &Packet) -> lb_netlink::Result<Option<BackendAddr>> {
        self.flows.backend_of(packet)
    }
}
