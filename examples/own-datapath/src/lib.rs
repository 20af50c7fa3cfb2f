//! A kind of datapath that lb does not have: one that writes down every plan before it is carried out.
//!
//! [`Audited`] is the datapath, and wraps any other one. [`AuditedNftables`] and [`AuditedMemory`] are the drivers that
//! bring it into `lb_agent`; each is a constant that goes into `Config::datapath`. Nothing in lb knows of this crate.

use std::{fs::OpenOptions, io::Write, path::PathBuf};

use lb_agent::driver::{Attachments, Driver, Exclusion, OpenDatapath, Setting};
use lb_core::{
    datapath::{
        ApplyError, Capabilities, Counters, Datapath, DatapathError, Devices, ErrorKind, Evicted, Eviction, Role, Watcher,
    },
    decision::Packet,
    drift::{Drift, Expected, Inspection},
    id::HeldIds,
    kernel::KernelAnswer,
    memory::MemoryDatapath,
    plan::Plan,
    state::State,
};
use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};

/// Environment variable with the path of the audit log. Without it, nothing is written down.
pub const AUDIT_LOG: &str = "LB_AUDIT_LOG";

/// nftables, audited.
pub static AUDITED_NFTABLES: AuditedNftables = AuditedNftables;
/// Memory, audited: needs no privilege.
pub static AUDITED_MEMORY: AuditedMemory = AuditedMemory;

/// Driver of [`AUDITED_NFTABLES`].
pub struct AuditedNftables;

impl Driver for AuditedNftables {
    fn name(&self) -> &'static str {
        "nftables-audited"
    }

    fn about(&self) -> &'static str {
        "nftables, with a log of every plan"
    }

    fn open(&self, _: &Attachments) -> Result<Box<dyn OpenDatapath>, DatapathError> {
        Ok(Box::new(Audited::new("nftables-audited", NftablesDatapath::open(&table())?)))
    }

    fn settings(&self) -> &'static [Setting] {
        &[Setting::Maglev]
    }
}

/// A table and routes of its own. An agent that switches from `nftables` to this kind cleans up after the former once
/// this one serves; with the same names it would remove what serves.
#[must_use]
pub fn table() -> NftablesConfig {
    NftablesConfig::default().with_table("lb-audited").with_route_table(27_747).with_rule_priority(27_747)
}

/// Driver of [`AUDITED_MEMORY`].
pub struct AuditedMemory;

impl Driver for AuditedMemory {
    fn name(&self) -> &'static str {
        "memory-audited"
    }

    fn about(&self) -> &'static str {
        "Memory, with a log of every plan"
    }

    fn open(&self, _: &Attachments) -> Result<Box<dyn OpenDatapath>, DatapathError> {
        Ok(Box::new(Audited::new("memory-audited", MemoryDatapath::default())))
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::Datapath
    }

    fn carries_packets(&self) -> bool {
        false
    }
}

/// A datapath that writes down every plan before the one below carries it out. A plan that cannot be written down is
/// not carried out.
#[derive(Debug)]
pub struct Audited<D> {
    name: &'static str,
    below: D,
    log: Option<PathBuf>,
}

impl<D: Datapath> Audited<D> {
    /// Wraps a datapath; the log is where [`AUDIT_LOG`] says.
    pub fn new(name: &'static str, below: D) -> Self {
        Self { name, below, log: std::env::var_os(AUDIT_LOG).map(PathBuf::from) }
    }

    fn write_down(&self, plan: &Plan) -> Result<(), DatapathError> {
        let Some(path) = &self.log else { return Ok(()) };
        let line = format!("plan {}: {}\n", plan.id.0, plan.summary());
        let written = OpenOptions::new().create(true).append(true).open(path);
        written.and_then(|mut file| file.write_all(line.as_bytes())).map_err(|error| {
            let what = format!("writing the audit log {} failed: nothing was carried out", path.display());
            DatapathError::new(ErrorKind::System, what).with_source(error)
        })
    }
}

impl<D: Datapath> Datapath for Audited<D> {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.below.capabilities();
        capabilities.kind = self.name;
        capabilities
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        self.below.observe()
    }

    fn held_ids(&mut self) -> Result<HeldIds, DatapathError> {
        self.below.held_ids()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        // The reconciler observes again and retries later.
        self.write_down(plan).map_err(ApplyError::unknown)?;
        self.below.apply(plan)
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        self.below.set_role(role)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.below.cleanup()
    }

    fn inspect(&mut self, expected: Expected<'_>, inspection: Inspection) -> Result<Vec<Drift>, DatapathError> {
        self.below.inspect(expected, inspection)
    }

    fn repair(&mut self, expected: Expected<'_>, found: &[Drift]) -> Result<(), ApplyError> {
        self.below.repair(expected, found)
    }

    fn watcher(&mut self) -> Result<Option<Box<dyn Watcher>>, DatapathError> {
        self.below.watcher()
    }

    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        self.below.ask(packet)
    }

    fn evict(&mut self, evictions: &[Eviction]) -> Result<Evicted, DatapathError> {
        self.below.evict(evictions)
    }

    fn on_devices(&mut self) -> Option<&mut dyn Devices> {
        self.below.on_devices()
    }

    fn counters(&self) -> Option<std::sync::Arc<dyn Counters>> {
        self.below.counters()
    }
}
