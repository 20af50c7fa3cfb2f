//! The contract between the model and whatever carries packets.

mod capabilities;
mod error;
mod eviction;

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::{task::Waker, time::Duration};

pub use capabilities::{AffinityCapability, Atomicity, Capabilities, SocketCapability, SocketHash, SocketOwners};
pub use error::{ApplyError, DatapathError, ErrorKind};
pub use eviction::{Evicted, Eviction, Remaining};

use crate::{
    decision::Packet,
    drift::{Drift, Expected, Inspection, compare},
    id::HeldIds,
    kernel::KernelAnswer,
    plan::{Plan, diff},
    state::State,
};

/// A datapath carries services: the kernel through eBPF, nftables or iptables, or
/// [memory](crate::memory::MemoryDatapath).
///
/// Methods block, are idempotent and can be called through `Box<dyn Datapath>`.
pub trait Datapath: Send {
    /// What the datapath can do. Constant for the life of the value.
    fn capabilities(&self) -> Capabilities;

    /// The state that the datapath holds now, including the remains of an earlier process.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn observe(&mut self) -> Result<State, DatapathError>;

    /// The ids that something below the [state](Self::observe) still has: the entry of a flow, the record of a client.
    /// They are not assigned to anything else. It is asked after each observation, which comes at the start and, at the
    /// latest, when two billion ids were assigned. A wrapper of a datapath has to pass it on.
    ///
    /// Default: none, for a datapath that knows flows by their addresses.
    ///
    /// # Errors
    /// When that cannot be read.
    fn held_ids(&mut self) -> Result<HeldIds, DatapathError> {
        Ok(HeldIds::default())
    }

    /// Carries out a plan, in its order. Applying a plan twice is applying it once.
    ///
    /// # Errors
    /// Names each frontend that could not be changed; everything else took effect.
    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError>;

    /// Sets the role of this datapath beside another one on the same node.
    ///
    /// # Errors
    /// When the datapath cannot take the role.
    fn set_role(&mut self, role: Role) -> Result<(), DatapathError>;

    /// Removes everything that this kind of datapath has put into the kernel under the same names and paths.
    ///
    /// # Errors
    /// When something could not be removed.
    fn cleanup(&mut self) -> Result<(), DatapathError>;

    /// Compares the datapath with the expected state: with the effect of its plans and, below that, with everything
    /// that it needs to work (programs, links, pins, chains, rules, routes). Empty if nothing differs.
    ///
    /// The default [observes](Self::observe) and [compares](compare).
    ///
    /// # Errors
    /// When it cannot be read.
    fn inspect(&mut self, expected: Expected<'_>, inspection: Inspection) -> Result<Vec<Drift>, DatapathError> {
        let _ = inspection;
        Ok(compare(expected.state, &self.observe()?))
    }

    /// Repairs what [`inspect`](Self::inspect) found, without a gap for anything that is right: established flows
    /// survive. Afterwards the datapath holds the expected state.
    ///
    /// The default observes and carries out the difference.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply).
    fn repair(&mut self, expected: Expected<'_>, found: &[Drift]) -> Result<(), ApplyError> {
        let _ = found;
        let observed = self.observe().map_err(ApplyError::unknown)?;
        self.apply(&diff(&observed, expected.state, expected.labels))
    }

    /// A watcher that notices when others change the datapath, if the datapath can be watched. It runs in another
    /// thread.
    ///
    /// # Errors
    /// When the watcher cannot be set up.
    fn watcher(&mut self) -> Result<Option<Box<dyn Watcher>>, DatapathError> {
        Ok(None)
    }

    /// Asks the kernel for the fate of a packet, without sending one; `None` if the kernel cannot be asked.
    ///
    /// # Errors
    /// When the question failed.
    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        let _ = packet;
        Ok(None)
    }

    /// Ends established flows, so that their clients notice at once and not by a time-out: a socket that was connected to
    /// a backend fails, and a client whose packets are translated is refused when it next sends. Ending flows twice is
    /// ending them once. A plan that keeps new flows off those backends was [applied](Self::apply) before.
    ///
    /// It is called if the [capabilities](Capabilities::evicts) say so, and may take some milliseconds.
    ///
    /// # Errors
    /// When which flows ended is not known, or none did. Flows that could not be ended are no error, but in
    /// [`Evicted::remaining`]. The default refuses.
    fn evict(&mut self, evictions: &[Eviction]) -> Result<Evicted, DatapathError> {
        let _ = evictions;
        Err(DatapathError::new(ErrorKind::Unsupported, "this datapath does not end established flows"))
    }

    /// What attaches it to devices that come and go, if it attaches to devices. Default: it does not.
    fn on_devices(&mut self) -> Option<&mut dyn Devices> {
        None
    }

    /// A counter of the objects in the kernel, if the datapath can count them.
    fn counters(&self) -> Option<Arc<dyn Counters>> {
        None
    }
}

/// Notices when others change a datapath.
pub trait Watcher: Send {
    /// Waits at most for `timeout` until something happens that calls for an [inspection](Datapath::inspect) of the
    /// [suspects](Inspection::Suspects). Returns whether it happened. Changes by the datapath itself do not count.
    ///
    /// # Errors
    /// When the watcher cannot watch any more or missed something: then everything has to be inspected.
    fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError>;

    /// What ends a wait from another thread: the present one, or the next if there is none. That wait returns `false`.
    /// `None`, the default, if nothing does: the watcher is then waited for in short turns.
    fn waker(&self) -> Option<Waker> {
        None
    }
}

/// Attaches a datapath to network devices. Those in its configuration are attached to when it is opened; a pod that comes
/// later brings a new one.
pub trait Devices {
    /// Attaches to the device called `name`, of a pod that has just come. Attaching twice is attaching once. What is left
    /// of devices that are gone is removed.
    ///
    /// # Errors
    /// When the device is not in the network namespace of the calling thread, or cannot be attached to.
    fn attach_device(&mut self, name: &str) -> Result<(), DatapathError>;

    /// Detaches from the device called `name`, which may be gone.
    ///
    /// # Errors
    /// When what keeps it attached cannot be removed.
    fn detach_device(&mut self, name: &str) -> Result<(), DatapathError>;
}

/// Counts the objects of a datapath in the kernel, also while [`Datapath::apply`] runs.
pub trait Counters: Send + Sync {
    /// The counts at this moment.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn usage(&self) -> Result<KernelUsage, DatapathError>;

    /// How full each of the maps is whose size is bounded. Default: none is.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn maps(&self) -> Result<Vec<MapUsage>, DatapathError> {
        Ok(Vec::new())
    }
}

/// How full a map of bounded size is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapUsage {
    /// Its name.
    pub name: String,
    /// Elements in it. Of a map that [evicts](Self::evicts) it is an estimate.
    pub entries: u64,
    /// Most elements.
    pub capacity: u64,
    /// Whether a full map makes room by dropping the element that was used least recently. Otherwise it refuses more:
    /// [`ErrorKind::Capacity`].
    pub evicts: bool,
}

impl MapUsage {
    /// How full it is, in percent, 0 to 100.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let percent = self.entries.saturating_mul(100).checked_div(self.capacity).unwrap_or(100);
        u8::try_from(percent.min(100)).unwrap_or(100)
    }
}

/// Counts of the objects of a datapath in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelUsage {
    /// Rules that packets may have to walk. 0 for eBPF.
    pub rules: u64,
    /// Elements of maps and sets.
    pub elements: u64,
    /// Bytes that the kernel reports for them, if it reports any.
    pub bytes: Option<u64>,
}

/// The role of a datapath beside another one.
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
