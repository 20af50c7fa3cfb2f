//! The contract between the model and whatever carries packets.

use alloc::{
    boxed::Box,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::{error::Error, fmt, ops::RangeInclusive, time::Duration};

use crate::{
    Algorithm, Drift, Expected, Family, FrontendAddr, FrontendKind, Inspection, KernelAnswer, Packet, Plan, Protocol,
    State, diff, drift,
};

/// Something that can carry services: the kernel through eBPF, nftables or iptables, or [memory](crate::MemoryDatapath).
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
        Ok(drift(expected.state, &self.observe()?))
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

/// What a datapath can do. A service that asks for more keeps serving with less and is marked
/// [degraded](crate::Degraded).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Its name: `ebpf`, `nftables`, `iptables-nft`, `iptables-legacy`, `memory`.
    pub kind: &'static str,
    /// Algorithms that it can run. Random is in every one.
    pub algorithms: Vec<Algorithm>,
    /// Protocols that it forwards.
    pub protocols: Vec<Protocol>,
    /// Families that it forwards.
    pub families: Vec<Family>,
    /// Kinds of frontends that it carries.
    pub frontends: Vec<FrontendKind>,
    /// Whether it can keep external traffic on this node's backends, source kept.
    pub external_traffic_policy_local: bool,
    /// Affinity, if it has any.
    pub affinity: Option<AffinityCapability>,
    /// How it translates traffic of the node's own sockets.
    pub sockets: SocketCapability,
    /// What a crash in the middle of a plan leaves.
    pub atomic: Atomicity,
    /// Roles that it can take.
    pub roles: Vec<Role>,
    /// Whether it can cut the established flows of a backend that takes no new ones, as a
    /// [drain policy](crate::DrainPolicy) may ask.
    pub drain: bool,
    /// Most slots that one backend set may have.
    pub max_slots: u32,
    /// Ports that a translated source may get.
    pub translated_ports: RangeInclusive<u16>,
}

impl Capabilities {
    /// Everything that a model can ask for.
    #[must_use]
    pub fn all(kind: &'static str) -> Self {
        Self {
            kind,
            algorithms: Vec::from([Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev]),
            protocols: Vec::from([Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
            families: Vec::from([Family::V4, Family::V6]),
            frontends: Vec::from([
                FrontendKind::ClusterIp,
                FrontendKind::LoadBalancer,
                FrontendKind::ExternalIp,
                FrontendKind::NodePort,
            ]),
            external_traffic_policy_local: true,
            affinity: Some(AffinityCapability { prefixes: true, max_timeout: Duration::MAX }),
            sockets: SocketCapability::Packets,
            atomic: Atomicity::Plan,
            roles: Vec::from([Role::Standby, Role::Active, Role::Draining]),
            drain: true,
            max_slots: u32::MAX,
            translated_ports: 1..=u16::MAX,
        }
    }
}

/// What affinity a datapath has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityCapability {
    /// Whether a client can be a prefix rather than one address.
    pub prefixes: bool,
    /// Longest time-out that it can hold; a longer one is cut.
    pub max_timeout: Duration,
}

/// How a datapath translates traffic of sockets on its own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketCapability {
    /// As packets, like everybody else's: the flow hash sees the source port, a translated source applies.
    Packets,
    /// At `connect` and `sendmsg`: there is no source address or port yet. Maglev hashes what `hashes` says, a client
    /// of affinity is a network namespace, and a source is never translated.
    Connect {
        /// What the hash of a Maglev choice covers.
        hashes: SocketHash,
    },
}

/// What Maglev hashes at a socket hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketHash {
    /// The socket's cookie: a socket stays with its backend, two sockets of one client are independent.
    SocketCookie,
}

/// What a crash in the middle of a plan leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomicity {
    /// The whole plan or nothing of it.
    Plan,
    /// The whole plan or nothing of it, for each family on its own.
    Family,
    /// Each frontend as before or as after.
    Frontend,
}

/// What of a plan did not take.
#[derive(Debug)]
pub struct ApplyError {
    /// Operations that took.
    pub applied: usize,
    /// Frontends that are as they were before, and why.
    pub failed: Vec<(FrontendAddr, DatapathError)>,
    /// Set when the datapath does not know what it holds now: observe before the next plan.
    pub unknown: Option<DatapathError>,
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations took", self.applied)?;
        if let Some((addr, cause)) = self.failed.first() {
            write!(f, ", {} frontends did not, the first {addr}: {}", self.failed.len(), cause.report())?;
        }
        if let Some(cause) = &self.unknown {
            write!(f, ", what the datapath holds is unknown: {}", cause.report())?;
        }
        Ok(())
    }
}

impl Error for ApplyError {}

impl ApplyError {
    /// Nothing is known to have taken.
    #[must_use]
    pub fn unknown(cause: DatapathError) -> Self {
        Self { applied: 0, failed: Vec::new(), unknown: Some(cause) }
    }
}

/// Why a datapath could not do something. Open-ended: ask [`kind`](Self::kind).
#[derive(Debug)]
pub struct DatapathError {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Class of a [`DatapathError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The process lacks a privilege.
    Permission,
    /// The kernel or a tool lacks something.
    Unsupported,
    /// A table is full.
    Capacity,
    /// Somebody else holds it, or changed it at the same time.
    Busy,
    /// The request itself is wrong.
    Invalid,
    /// The kernel or a tool failed otherwise.
    System,
}

impl DatapathError {
    /// The message and every cause below it, in one line.
    #[must_use]
    pub fn report(&self) -> String {
        let mut line = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }

    /// An error with a message that says what failed, on what, and what would help.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same, caused by `source`.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Its class.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Busy | ErrorKind::Capacity | ErrorKind::System)
    }
}

impl fmt::Display for DatapathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for DatapathError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
