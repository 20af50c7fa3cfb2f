//! Services as iptables rules, in the shape that those of kube-proxy have: the baseline of every comparison.
//!
//! [`IptablesDatapath`] runs `iptables-restore --noflush` and `iptables-save` of either [`Variant`], once per family
//! and plan. A packet meets, in order:
//!
//! | hook | chain | what happens |
//! |---|---|---|
//! | nat `PREROUTING`, `OUTPUT` | `LB-SERVICES` | one rule per frontend, walked one by one |
//! | | `LB-SVC-…` per frontend | asks `LB-MARK-SOURCE` to mark sources outside of the pods' prefixes; finds the backend of a known client (`recent`); draws one (`statistic`) |
//! | | `LB-SEP-…` per frontend and backend | marks a backend that is its own client; remembers the client; translates the destination |
//! | | `LB-MARK-REJECT`, `LB-MARK-DROP` | instead of the two above, for a frontend without backends: a mark |
//! | filter `INPUT`, `FORWARD`, `OUTPUT` | `LB-FILTER` | first packets only: refuses or drops what nat marked |
//! | filter `INPUT`, `FORWARD`, `OUTPUT` | `LB-INVALID…` | packets that conntrack can make nothing of: drops those of lb's flows |
//! | nat `POSTROUTING` | `LB-POSTROUTING` | translates marked sources to the node's, clears the mark |
//!
//! The costs are the shape's: a first packet walks as many rules as there are frontends before its own, and every plan
//! writes all of `LB-SERVICES`. The chains of a frontend are written only when it changes; those that it no longer
//! needs are deleted in the same restore.
//!
//! # One commit decides
//! nat's table is committed at once. Filter's rules act on marks and never change, those excepted that drop what belongs
//! to no connection. So a crash leaves each family
//! as before a plan or as after it. (kube-proxy refuses by a rule per address in filter, which a crash can leave
//! behind.) A frontend that `iptables-restore` refuses by its line fails alone, and the rest is restored at once
//! without it.
//!
//! # Refusal
//! TCP is refused by a reset, everything else by ICMP port unreachable. Resets have no rate limit; ICMP errors have
//! one (`net.ipv4.icmp_ratelimit`), which would make most of many refused connections wait for their time-out.
//! VIPs have a blackhole route for forwarded packets, so a routing rule for the mark of refused packets leads them
//! around it, to the filter. No default route is needed. A datagram that the node itself sends is redirected to port 0
//! of the node, since refusing it on its way out would fail the call that sends it (`EPERM`).
//!
//! # Silence
//! Forwarded packets are dropped. The node's own are dropped before they leave; a UDP socket of the node sees `EPERM`
//! over IPv6 and nothing over IPv4.
//!
//! # Affinity
//! The `recent` module keeps a list of clients per frontend and backend, `--mask` makes a prefix one client, and every
//! new flow renews the record. A record holds until *and including* the tick of the kernel's clock (1 to 10 ms) in
//! which its time-out ends. A list holds 100 clients unless the module `xt_recent` was loaded with another
//! `ip_list_tot`; beyond that the client that was away longest is forgotten early. The time-out goes up to 4,294,967 s.
//!
//! # What it reads back
//! Comments hold ids, slots, affinity, labels and the node's facts, so a new process [observes](Datapath::observe) what
//! an old one applied. A frontend that packets would not reach, or whose chain was changed by another program, is not
//! observed; the next plan writes it anew.
//!
//! # Namespaces and neighbours
//! A datapath belongs to the network namespace of the thread that opened it. Programs see the namespace of the thread
//! that starts them: a call from a thread in another one starts them on a thread of its own, which enters.
//! All legacy programs of a host share one lock file, whatever their namespace: see [`IptablesConfig::lock_file`]. Two
//! datapaths in one namespace need different variants, marks, tables and route protocols.
//!
//! Chains that do not begin with `LB-` are never touched; jumps to chains of lb go in front.

mod change;
mod check;
mod config;
mod counters;
#[cfg(test)]
mod fake;
mod host;
mod reject_path;
mod rules;
#[cfg(test)]
mod tests;
mod tools;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use lb_core::{
    addr::{Family, FrontendKind, Protocol},
    datapath::{
        AffinityCapability, ApplyError, Atomicity, Capabilities, Counters, Datapath, DatapathError, ErrorKind, Evicted,
        Eviction, Role, SocketCapability, Watcher,
    },
    decision::Packet,
    drift::{Drift, Expected, Inspection},
    kernel::KernelAnswer,
    plan::{Labels, Plan},
    service::Algorithm,
    state::State,
};

pub use self::config::{IptablesConfig, Variant};

use crate::{
    conntrack::{self, Allowed},
    crash,
    iptables::{
        change::{
            attempt::Attempt,
            cleanup::removal,
            effect::knows,
            lower::{Job, MAX_SLOTS, Style},
        },
        check::{
            drift::Findings,
            installed::{Installed, Tables, addresses},
            sizes::Sizes,
            watch::SharedSuspects,
        },
        counters::RuleCounters,
        host::{Host, Kernel},
        rules::{choice::MAX_RECENT_SECONDS, hooks::Hook, saved::SavedTable},
        tools::{Programs, ToolError, Tools, Version},
    },
    namespace::Namespace,
};

/// The input of `iptables-restore --noflush` that installs one family of `state` where no rule of lb is installed.
///
/// What [`IptablesDatapath::apply`](Datapath::apply) writes for a first plan; pure, for tools that show or measure it.
#[must_use]
pub fn restore_input(config: &IptablesConfig, family: Family, state: &State, labels: &Labels) -> String {
    let job = Job {
        family,
        style: config.style(true),
        before: &State::default(),
        after: state,
        labels,
        dirty: &state.frontends.keys().copied().collect(),
        stray: &BTreeSet::new(),
        base: true,
        missing: &Hook::ALL.into_iter().collect(),
        behind: &BTreeSet::new(),
    };
    job.restore().into_text()
}

/// Services as iptables rules.
pub struct IptablesDatapath {
    config: IptablesConfig,
    style: Style,
    tools: Arc<dyn Tools>,
    host: Box<dyn Host>,
    /// The kernel's state; `None` until it has been read, and after a failure whose outcome is not known.
    installed: Option<Installed>,
    /// Frontends whose old flows are still to be forgotten.
    stale: Allowed,
    namespace: Namespace,
    /// Time-out of half-closed connections, until it is set.
    close_wait: Option<Duration>,
    /// Objects that a watcher noted.
    shared: SharedSuspects,
    /// To ask for the sizes of tables with, for iptables-legacy.
    sizes: Option<Sizes>,
    /// Findings of the last inspection that no repair has put right.
    found: Findings,
}

impl fmt::Debug for IptablesDatapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IptablesDatapath").field("config", &self.config).finish_non_exhaustive()
    }
}

impl IptablesDatapath {
    /// Opens the datapath in the network namespace of the calling thread. Changes nothing.
    ///
    /// # Errors
    /// When the programs of the variant are not installed, or the settings contradict each other.
    pub fn open(config: &IptablesConfig) -> Result<Self, DatapathError> {
        config.check()?;
        let namespace =
            |error| DatapathError::new(ErrorKind::System, "cannot tell the network namespace").with_source(error);
        let programs = Programs::open(config.variant, config.lock_file.clone()).map_err(namespace)?;
        let recent = programs.version()?.is_none_or(|version| version >= Version::WAITS);
        let programs = if recent { programs.waiting(config.lock_wait) } else { programs };
        let host = Kernel::open(config)?;
        let shared = SharedSuspects::default();
        let programs = Arc::new(programs.telling(shared.clone()));
        let here = Namespace::current().map_err(namespace)?;
        let mut datapath =
            Self::with(config.clone(), recent, Arc::clone(&programs) as Arc<dyn Tools>, Box::new(host), here);
        datapath.shared = shared;
        if config.variant == Variant::Legacy {
            programs.settle()?;
            let opening = |error| DatapathError::new(ErrorKind::System, "opening a socket failed").with_source(error);
            datapath.sizes = Some(Sizes::open(&config.families).map_err(opening)?);
        }
        Ok(datapath)
    }

    fn with(
        config: IptablesConfig,
        random_fully: bool,
        tools: Arc<dyn Tools>,
        host: Box<dyn Host>,
        namespace: Namespace,
    ) -> Self {
        let style = config.style(random_fully);
        let (shared, found) = (SharedSuspects::default(), Findings::default());
        let close_wait = config.close_wait;
        Self {
            config,
            style,
            tools,
            host,
            installed: None,
            stale: Allowed::new(),
            namespace,
            close_wait,
            shared,
            sizes: None,
            found,
        }
    }

    fn read(&mut self) -> Result<Installed, DatapathError> {
        let families = self.config.families.iter();
        let tables: Vec<Tables> = families.map(|&family| self.tables(family)).collect::<Result<_, _>>()?;
        let mut routed = self.host.vips()?;
        routed.extend(self.host.foreign(&addresses(&tables))?.now);
        Ok(Installed::read(&tables, routed, self.style))
    }

    fn tables(&self, family: Family) -> Result<Tables, ToolError> {
        let table = |name| Ok(SavedTable::parse(&self.tools.save(family, name)?));
        Ok(Tables { family, nat: table("nat")?, filter: table("filter")? })
    }

    fn carry_out(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        plan.check_known(knows)?;
        let installed = match self.installed.take() {
            Some(installed) => installed,
            None => self.read().map_err(ApplyError::unknown)?,
        };
        let mut attempt = Attempt::new(&installed, plan, &self.config.families);
        match self.host.add_vips(&attempt.vips_needed()) {
            Ok(refused) => attempt.refuse_vips(refused),
            Err(error) => {
                let error = attempt.nothing_took(&error);
                self.installed = Some(installed);
                return Err(error);
            }
        }
        for &family in &self.config.families {
            crash::point();
            self.restore(&mut attempt, family).map_err(ApplyError::unknown)?;
        }
        if let Some(time) = self.close_wait.take() {
            // Not before the rules, which have the kernel load conntrack.
            self.host.raise_close_wait(time);
        }
        crash::point();
        self.stale.extend(attempt.stale_flows());
        self.host.forget_stale(&self.stale).map_err(ApplyError::unknown)?;
        self.stale.clear();
        self.host.remove_vips(&attempt.vips_left()).map_err(ApplyError::unknown)?;
        let (installed, report) = attempt.finish();
        self.installed = Some(installed);
        report
    }

    /// Restores one family, without the frontends that are refused one by one.
    fn restore(&self, attempt: &mut Attempt<'_>, family: Family) -> Result<(), DatapathError> {
        let mut culprits = 0;
        while attempt.touches(family) {
            let restore = attempt.job(family, self.style).restore();
            let Err(error) = self.tools.restore(family, restore.text()) else { break };
            let blamed = error.line().and_then(|line| restore.owner(line));
            match blamed.filter(|addr| culprits < MOST_CULPRITS && attempt.change.dirty.contains(addr)) {
                Some(addr) => attempt.refuse(addr, error.into()),
                None => return Err(error.into()),
            }
            culprits += 1;
        }
        Ok(())
    }
}

/// Each culprit costs a restore: with more than these something else is wrong.
const MOST_CULPRITS: usize = 16;

impl IptablesDatapath {
    /// The capabilities of a datapath with this configuration.
    #[must_use]
    pub fn capabilities_of(config: &IptablesConfig) -> Capabilities {
        let max_timeout = Duration::from_secs(MAX_RECENT_SECONDS);
        Capabilities::new(config.variant.as_str())
            .with_algorithms([Algorithm::Random])
            .with_protocols([Protocol::Tcp, Protocol::Udp])
            .with_families(config.families.clone())
            .with_frontends([FrontendKind::ClusterIp, FrontendKind::LoadBalancer, FrontendKind::ExternalIp])
            .with_affinity(Some(AffinityCapability { prefixes: true, max_timeout }))
            .with_sockets(SocketCapability::Packets)
            .with_atomic(Atomicity::Family)
            .with_roles([Role::Active])
            .with_drain(true)
            .with_evicts(true)
            .with_needs_forwarding(true)
            .with_max_slots(MAX_SLOTS)
            // netfilter keeps a port below 512, below 1024 or above in its class.
            .with_translated_ports(1..=u16::MAX)
    }
}

impl Datapath for IptablesDatapath {
    fn capabilities(&self) -> Capabilities {
        Self::capabilities_of(&self.config)
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        self.installed = None;
        let installed = self.read()?;
        let state = installed.state.clone();
        self.installed = Some(installed);
        Ok(state)
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        self.begin_change();
        let outcome = self.carry_out(plan);
        self.remember_sizes();
        outcome
    }

    fn inspect(&mut self, expected: Expected<'_>, inspection: Inspection) -> Result<Vec<Drift>, DatapathError> {
        self.look(expected, inspection)
    }

    fn repair(&mut self, expected: Expected<'_>, found: &[Drift]) -> Result<(), ApplyError> {
        self.put_right(expected, found)
    }

    fn evict(&mut self, evictions: &[Eviction]) -> Result<Evicted, DatapathError> {
        let flows = self.host.end_flows(&conntrack::allowed(evictions))? as u64;
        Ok(Evicted { flows, ..Evicted::default() })
    }

    /// The record of a client is not shown: the `recent` module does not say how old it is.
    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        self.question(packet).map(Some)
    }

    fn watcher(&mut self) -> Result<Option<Box<dyn Watcher>>, DatapathError> {
        let opening =
            |error| DatapathError::new(ErrorKind::System, "watching over rules and routes failed").with_source(error);
        let watcher = self.open_watcher().map_err(opening)?;
        // The watcher gets no notification about changes from before it watched.
        self.suspect_everything();
        Ok(Some(Box::new(watcher)))
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        match role {
            Role::Active => Ok(()),
            Role::Standby | Role::Draining => {
                let message = format!("{} can only be active, not {role:?}", self.config.variant.as_str());
                Err(DatapathError::new(ErrorKind::Unsupported, message))
            }
        }
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.installed = None;
        self.stale.clear();
        self.shared.lock().sizes.clear();
        for &family in &self.config.families {
            for table in ["nat", "filter"] {
                let removal = removal(table, &SavedTable::parse(&self.tools.save(family, table)?));
                if let Some(removal) = removal {
                    crash::point();
                    self.tools.restore(family, &removal)?;
                }
            }
        }
        self.host.cleanup()
    }

    fn counters(&self) -> Option<Arc<dyn Counters>> {
        Some(Arc::new(RuleCounters { tools: Arc::clone(&self.tools), families: self.config.families.clone() }))
    }
}
