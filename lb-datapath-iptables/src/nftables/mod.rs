//! Services in one flat nftables ruleset: the number of rules is bounded, and everything that grows is an element.
//!
//! [`NftablesDatapath`] owns one table: `table` says how it looks and how it is encoded. `change` turns a plan into one
//! transaction. `check` reads the table back, inspects and repairs it, and answers for one packet. `docs/nftables.md`
//! shows all of it hook by hook.

mod change;
mod check;
mod config;
#[cfg(test)]
mod fake;
mod host;
mod socket;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

pub use self::config::NftablesConfig;

use lb_core::{
    addr::{Family, FrontendKind, Protocol},
    datapath::{
        AffinityCapability, ApplyError, Atomicity, Capabilities, Counters, Datapath, DatapathError, ErrorKind, Evicted,
        Eviction, KernelUsage, Role, SocketCapability, Watcher,
    },
    decision::Packet,
    drift::{Drift, Expected, Inspection},
    kernel::KernelAnswer,
    plan::Plan,
    service::Algorithm,
    state::State,
};

use crate::{
    conntrack,
    namespace::Namespace,
    nftables::{
        change::{draft::Draft, engine::Engine, errors::failure, lower::lower, mirror::Mirror},
        check::{ask::ask, watch::NetfilterWatcher},
        host::{Kernel, Table},
        socket::TableSocket,
        table::layout::{MAX_SLOTS, MAX_TIMEOUT, Set},
    },
};

/// Services in nftables.
///
/// The datapath works over netlink sockets that belong to the network namespace of the thread that called
/// [`open`](Self::open); later calls may come from any thread. No program is run.
///
/// The ruleset keeps working when the datapath is dropped.
pub struct NftablesDatapath {
    engine: Engine,
    namespace: Namespace,
    capabilities: Capabilities,
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
        let uplinks = config.uplinks()?;
        let opening = |error| failure("opening a netlink socket", error);
        let kernel = Kernel::open(config).map_err(opening)?;
        let counting = TableSocket::open(&config.table, config.affinity_records).map_err(opening)?;
        Ok(Self {
            namespace: Namespace::current().map_err(|error| namespace_error("opening the network namespace", error))?,
            capabilities: Self::usual_capabilities(config),
            engine: Engine::new(&config.table, uplinks, Box::new(kernel)),
            counters: Arc::new(TableCounters { table: Mutex::new(counting) }),
        })
    }
}

fn namespace_error(doing: &str, error: io::Error) -> DatapathError {
    DatapathError::new(ErrorKind::System, format!("{doing} failed")).with_source(error)
}

/// Number of operations on elements and chains that `plan` is lowered to, on an empty table: its cost before the kernel
/// sees it. Pure.
///
/// ```
/// use lb_core::plan::Plan;
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

impl NftablesDatapath {
    /// The capabilities of a datapath with this configuration. One that knows the devices that lead out of the node carries
    /// node ports and host ports as well.
    #[must_use]
    pub fn usual_capabilities(config: &NftablesConfig) -> Capabilities {
        let knows_uplinks = !config.uplink_devices.is_empty();
        let mut frontends = vec![FrontendKind::ClusterIp, FrontendKind::LoadBalancer, FrontendKind::ExternalIp];
        if knows_uplinks {
            frontends.extend([FrontendKind::NodePort, FrontendKind::HostPort]);
        }
        Capabilities::new("nftables")
            .with_algorithms([Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev])
            .with_protocols([Protocol::Tcp, Protocol::Udp])
            .with_families([Family::V4, Family::V6])
            .with_frontends(frontends)
            .with_uplinks(knows_uplinks)
            .with_other_ports(true)
            .with_drain(true)
            .with_evicts(true)
            .with_external_traffic_policy_local(knows_uplinks)
            .with_affinity(Some(AffinityCapability { prefixes: true, max_timeout: MAX_TIMEOUT }))
            .with_sockets(SocketCapability::Packets)
            .with_atomic(Atomicity::Plan)
            .with_roles([Role::Active])
            .with_needs_forwarding(true)
            .with_max_slots(MAX_SLOTS)
            // netfilter keeps a port below 512, below 1024 or above in its class.
            .with_translated_ports(1..=u16::MAX)
    }
}

impl Datapath for NftablesDatapath {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
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
        let Engine { table, host, suspects, .. } = &self.engine;
        let (own, route_filter) = (host.table_port().map_err(opening)?, host.route_filter().map_err(opening)?);
        let open = || NetfilterWatcher::open(table, own, route_filter, suspects.clone());
        let watcher = self.namespace.within(open).map_err(entering)?.map_err(opening)?;
        // The watcher gets no notification about changes from before it listened.
        suspects.lock().everything = true;
        Ok(Some(Box::new(watcher)))
    }

    /// The record of a client, if there is one, is dated by `CLOCK_MONOTONIC`.
    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        ask(&mut *self.engine.host, packet).map(Some)
    }

    fn evict(&mut self, evictions: &[Eviction]) -> Result<Evicted, DatapathError> {
        let ended = self
            .engine
            .host
            .end_flows(&conntrack::allowed(evictions))
            .map_err(|error| failure("deleting flows", error))?;
        Ok(Evicted { flows: ended as u64, ..Evicted::default() })
    }

    fn counters(&self) -> Option<Arc<dyn Counters>> {
        Some(Arc::clone(&self.counters) as Arc<dyn Counters>)
    }
}

/// Counts over a socket of its own, so it never waits for a change to end.
struct TableCounters {
    table: Mutex<TableSocket>,
}

impl Counters for TableCounters {
    fn usage(&self) -> Result<KernelUsage, DatapathError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut table).map_err(|error| failure("counting rules and elements", error))
    }
}

fn count(table: &mut TableSocket) -> lb_netlink::Result<KernelUsage> {
    if !matches!(table.find()?, Table::Ours(_)) {
        return Ok(KernelUsage::default());
    }
    let rules = table.rule_count()?;
    let mut elements = 0;
    for set in Set::ALL {
        elements += table.elements(set)?.len() as u64;
    }
    Ok(KernelUsage { rules, elements, bytes: None })
}
