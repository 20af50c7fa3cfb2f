//! The contract between the model and whatever carries packets.

mod capabilities;
mod error;

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::time::Duration;

pub use capabilities::{AffinityCapability, Atomicity, Capabilities, SocketCapability, SocketHash};
pub use error::{ApplyError, DatapathError, ErrorKind};

use crate::{
    decision::Packet,
    drift::{Drift, Expected, Inspection, compare},
    kernel::KernelAnswer,
    plan::{Plan, diff},
    state::State,
};

/// Something that can carry services: the kernel through eBPF, nftables or iptables, or [memory](crate::memory::MemoryDatapath).
///
/// Methods block, are idempotent and can be called through `Box<dyn Datapath>`.
pub trait Datapath: Send {
    /// What it can do. Constant for the life of the value.
    fn capabilities(&self) -> Capabilities;

    /// What it holds now, what an earlier process left there included.
    ///
    /// # Errors
    /// When it cannot be read.
    fn observe(&mut self) -> Result<State, DatapathError>;

    /// Carries out a plan, in its order. Applying a plan twice is applying it once.
    ///
    /// # Errors
    /// Says, per frontend, what did not take; everything else did.
    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError>;

    /// Tells it what part it plays beside another datapath on the same node.
    ///
    /// # Errors
    /// When it cannot take the role.
    fn set_role(&mut self, role: Role) -> Result<(), DatapathError>;

    /// Removes everything that this kind of datapath ever put into the kernel, for the same names and paths.
    ///
    /// # Errors
    /// When something is left.
    fn cleanup(&mut self) -> Result<(), DatapathError>;

    /// Compares what it holds with what it should hold: what plans put there and, below that, whatever it needs to work
    /// (programs, links, pins, chains, rules, routes). Empty when nothing differs.
    ///
    /// Unless a datapath knows better, it [observes](Self::observe) and [compares](drift).
    ///
    /// # Errors
    /// When it cannot be read.
    fn inspect(&mut self, expected: Expected<'_>, inspection: Inspection) -> Result<Vec<Drift>, DatapathError> {
        let _ = inspection;
        Ok(compare(expected.state, &self.observe()?))
    }

    /// Puts right what [`inspect`](Self::inspect) found, without a gap for what is right: flows that are established
    /// survive. Afterwards it holds what is expected.
    ///
    /// Unless a datapath knows better, it observes and carries out the difference.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply).
    fn repair(&mut self, expected: Expected<'_>, found: &[Drift]) -> Result<(), ApplyError> {
        let _ = found;
        let observed = self.observe().map_err(ApplyError::unknown)?;
        self.apply(&diff(&observed, expected.state, expected.labels))
    }

    /// Something that notices when others change what it holds, if there is such a thing; used from another thread.
    ///
    /// # Errors
    /// When it cannot be set up.
    fn watcher(&mut self) -> Result<Option<Box<dyn Watcher>>, DatapathError> {
        Ok(None)
    }

    /// Asks the kernel what becomes of a packet, without a trace, if it can be asked.
    ///
    /// # Errors
    /// When the kernel cannot be asked now.
    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        let _ = packet;
        Ok(None)
    }

    /// Counts of what it holds in the kernel, if it can count.
    fn counters(&self) -> Option<Arc<dyn Counters>> {
        None
    }
}

/// Notices when others change what a datapath holds.
pub trait Watcher: Send {
    /// Waits until something happened that deserves an [inspection](Datapath::inspect) of the
    /// [suspects](Inspection::Suspects), at most for `timeout`; says whether it did. What the datapath does itself is
    /// no such thing.
    ///
    /// # Errors
    /// When it cannot watch any more, or missed something: everything deserves an inspection then.
    fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError>;
}

/// What a datapath holds in the kernel, usable while [`Datapath::apply`] runs.
pub trait Counters: Send + Sync {
    /// Counts it now.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn usage(&self) -> Result<KernelUsage, DatapathError>;
}

/// What a datapath holds in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelUsage {
    /// Rules that packets may have to walk. 0 for eBPF.
    pub rules: u64,
    /// Elements of maps and sets.
    pub elements: u64,
    /// Bytes that the kernel reports for them, where it does.
    pub bytes: Option<u64>,
}

/// What a datapath does beside another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Holds state, takes no traffic.
    Standby,
    /// Takes new and established flows.
    #[default]
    Active,
    /// Takes established flows only.
    Draining,
}
