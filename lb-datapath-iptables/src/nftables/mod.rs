//! Services in one flat nftables ruleset: a bounded number of rules, everything that grows is an element.
//!
//! [`NftablesDatapath`] owns one table. The README of this crate shows it hook by hook.

mod change;
mod check;
mod kernel;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use lb_core::{
    AffinityCapability, Algorithm, ApplyError, Atomicity, BackendAddr, Capabilities, Counters, Datapath, DatapathError,
    Drift, ErrorKind, Expected, Family, FrontendKind, Inspection, KernelAnswer, KernelUsage, Packet, Plan, Protocol,
    Role, SocketCapability, State, Watcher,
};

use crate::{
    conntrack::{Allowed, Conntrack},
    namespace::Namespace,
    nftables::{
        change::{
            draft::Draft,
            engine::{Engine, Flows, Vips, failure},
            lower::lower,
            mirror::Mirror,
        },
        check::{ask::ask, watch::NetfilterWatcher},
        kernel::{Kernel, Netlink, Table},
        table::layout::{MAX_TIMEOUT, Set},
    },
    routes::{self, RouteFilter, RouteKind, Routes},
};

/// Marks the routes and rules of this backend (`RTPROT_*`).
const ROUTE_PROTOCOL: u8 = 0x6c;

/// Names and numbers that a [`NftablesDatapath`] uses in the kernel. Two that share a network namespace need different
/// ones; routes are told apart by `route_table`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftablesConfig {
    /// Name of the table, of family inet. Default `lb`. A table of this name that this datapath did not make is refused with
    /// [`ErrorKind::Busy`] and stays as it is.
    pub table: String,
    /// Routing table for the node's own packets to virtual addresses. Default 27746; 0 and 253..=255 are the kernel's.
    pub route_table: u32,
    /// Priority of the routing rule that leads there: above 0 (local) and below 32766 (main). Default 27746.
    pub rule_priority: u32,
    /// Most affinity records of a family. A client beyond that gets a backend without a record. Default 1,048,576; each
    /// takes about 150 bytes once it is there.
    pub affinity_records: u32,
}

impl Default for NftablesConfig {
    fn default() -> Self {
        Self { table: "lb".into(), route_table: 27_746, rule_priority: 27_746, affinity_records: 1 << 20 }
    }
}

impl NftablesConfig {
    fn check(&self) -> Result<(), DatapathError> {
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

/// Services in nftables.
///
/// Everything happens over netlink sockets that belong to the network namespace of the thread that called
/// [`open`](Self::open); later calls may come from any thread. No program is run.
///
/// What it wrote keeps working when it is dropped.
pub struct NftablesDatapath {
    engine: Engine,
    namespace: Namespace,
    counters: Arc<TableCounters>,
}

impl fmt::Debug for NftablesDatapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NftablesDatapath").finish_non_exhaustive()
    }
}

impl NftablesDatapath {
    /// A datapath in the network namespace of the calling thread. Writes nothing.
    ///
    /// # Errors
    /// When the configuration is not valid or the kernel lacks netfilter's netlink.
    pub fn open(config: &NftablesConfig) -> Result<Self, DatapathError> {
        config.check()?;
        let opening = |error| failure("opening a netlink socket", error);
        let kernel = Netlink::open(&config.table, config.affinity_records).map_err(opening)?;
        let counting = Netlink::open(&config.table, config.affinity_records).map_err(opening)?;
        let routes = Routes::open(config.route_table, config.rule_priority, ROUTE_PROTOCOL).map_err(opening)?;
        let flows = Conntrack::open().map_err(opening)?;
        Ok(Self {
            namespace: Namespace::current().map_err(|error| namespace_error("opening the network namespace", error))?,
            engine: Engine::new(&config.table, Box::new(kernel), Box::new(routes), Box::new(flows)),
            counters: Arc::new(TableCounters { kernel: Mutex::new(counting) }),
        })
    }
}

fn namespace_error(doing: &str, error: io::Error) -> DatapathError {
    DatapathError::new(ErrorKind::System, format!("{doing} failed")).with_source(error)
}

/// Operations on elements and chains that `plan` is lowered to, on an empty table: what it costs before the kernel sees
/// it. Pure.
///
/// ```
/// use lb_core::Plan;
/// use lb_datapath_iptables::nftables::operations;
///
/// assert_eq!(operations(&Plan::default()), 0);
/// ```
#[must_use]
pub fn operations(plan: &Plan) -> usize {
    let (mirror, mut draft) = (Mirror::default(), Draft::default());
    draft.add_plan(&mirror, plan, &BTreeMap::new());
    lower(&draft, &mirror).steps.len()
}

impl Datapath for NftablesDatapath {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("nftables")
            .with_algorithms([Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev])
            .with_protocols([Protocol::Tcp, Protocol::Udp])
            .with_families([Family::V4, Family::V6])
            .with_frontends([FrontendKind::ClusterIp, FrontendKind::LoadBalancer, FrontendKind::ExternalIp])
            .with_affinity(Some(AffinityCapability { prefixes: true, max_timeout: MAX_TIMEOUT }))
            .with_sockets(SocketCapability::Packets)
            .with_atomic(Atomicity::Plan)
            .with_roles([Role::Active])
            .with_max_slots(u32::MAX)
            // netfilter keeps a port below 512, below 1024 or above in its class.
            .with_translated_ports(1..=u16::MAX)
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        self.engine.observe()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        self.engine.apply(plan)
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        match role {
            Role::Active => Ok(()),
            Role::Standby | Role::Draining => Err(DatapathError::new(
                ErrorKind::Unsupported,
                format!("nftables datapath cannot be {role:?}: it takes traffic as soon as it holds a frontend"),
            )),
        }
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.engine.cleanup()
    }

    fn inspect(&mut self, expected: Expected<'_>, inspection: Inspection) -> Result<Vec<Drift>, DatapathError> {
        self.engine.inspect(expected, inspection)
    }

    fn repair(&mut self, expected: Expected<'_>, found: &[Drift]) -> Result<(), ApplyError> {
        self.engine.repair(expected, found)
    }

    fn watcher(&mut self) -> Result<Option<Box<dyn Watcher>>, DatapathError> {
        let opening = |error| failure("listening to changes of tables and routes", error);
        let entering = |error| namespace_error("entering the network namespace", error);
        let Engine { table, kernel, routes, suspects, .. } = &self.engine;
        let (own, route_filter) = (kernel.port().map_err(opening)?, routes.route_filter().map_err(opening)?);
        let open = || NetfilterWatcher::open(table, own, route_filter, suspects.clone());
        let watcher = self.namespace.within(open).map_err(entering)?.map_err(opening)?;
        // What happened before it listened was told to nobody.
        suspects.lock().everything = true;
        Ok(Some(Box::new(watcher)))
    }

    /// The record of a client, if there is one, is dated by `CLOCK_MONOTONIC`.
    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        let Engine { kernel, flows, .. } = &mut self.engine;
        ask(&mut **kernel, &mut **flows, packet).map(Some)
    }

    fn counters(&self) -> Option<Arc<dyn Counters>> {
        Some(Arc::clone(&self.counters) as Arc<dyn Counters>)
    }
}

/// Counts over a socket of its own, so that it can be asked at any time.
struct TableCounters {
    kernel: Mutex<Netlink>,
}

impl Counters for TableCounters {
    fn usage(&self) -> Result<KernelUsage, DatapathError> {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut *kernel).map_err(|error| failure("counting rules and elements", error))
    }
}

fn count(kernel: &mut dyn Kernel) -> lb_netlink::Result<KernelUsage> {
    if !matches!(kernel.table()?, Table::Ours(_)) {
        return Ok(KernelUsage::default());
    }
    let rules = kernel.rules()?;
    let mut elements = 0;
    for set in Set::ALL {
        elements += kernel.elements(set)?.len() as u64;
    }
    Ok(KernelUsage { rules, elements, bytes: None })
}

impl Vips for Routes {
    fn observe(&mut self) -> lb_netlink::Result<BTreeSet<IpAddr>> {
        Self::observe(self)
    }

    fn add(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        Self::add(self, vips)
    }

    fn remove(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        Self::remove(self, vips)
    }

    fn cleanup(&mut self) -> lb_netlink::Result<()> {
        Self::cleanup(self)
    }

    fn everything(&mut self) -> lb_netlink::Result<routes::InstalledRoutes> {
        Self::everything(self)
    }

    fn rules(&mut self) -> lb_netlink::Result<BTreeSet<Family>> {
        Self::rules(self)
    }

    fn mend(
        &mut self,
        missing: &[(RouteKind, IpAddr)],
        extra: &[(RouteKind, IpAddr)],
        rules: &[Family],
    ) -> lb_netlink::Result<()> {
        Self::mend(self, missing, extra, rules)
    }

    fn route_filter(&self) -> lb_netlink::Result<RouteFilter> {
        Self::route_filter(self)
    }
}

impl Flows for Conntrack {
    fn forget_stale(&mut self, allowed: &Allowed) -> lb_netlink::Result<usize> {
        Self::forget_stale(self, allowed)
    }

    fn backend_of(&mut self, packet: &Packet) -> lb_netlink::Result<Option<BackendAddr>> {
        Self::backend_of(self, packet)
    }
}
