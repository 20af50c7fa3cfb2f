//! Pools: the addresses that can be allocated.

mod block;
pub(crate) mod catalog;
mod directory;
pub(crate) mod selector;
mod status;
mod usable;

use alloc::{collections::BTreeMap, string::String, sync::Arc, vec::Vec};
use core::{fmt, time::Duration};

pub use block::{Block, BlockProblem};
use lb_core::name::ServiceName;
pub use selector::{Expression, Operator, SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL, Selector, SelectorProblem};
pub(crate) use status::Covered;
pub use status::{Conflict, Counts, PoolProblem, PoolStatus, PoolWarning};

use crate::Timestamp;

/// Name of a pool. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(Arc<str>);

impl PoolName {
    /// A pool called `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PoolName {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pool as its source describes it. It may be invalid: see [`PoolStatus`](crate::PoolStatus).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Identity.
    pub name: PoolName,
    /// When it was made: of two pools that overlap, the older one stays in service.
    pub created: Timestamp,
    /// Its addresses, of both families and in any order. At most [`MAX_BLOCKS`](Self::MAX_BLOCKS).
    pub blocks: Vec<Block>,
    /// Whether the first and last address of a [`Block::Cidr`] are allocated. Networks of one or two addresses always
    /// are. Default: yes. A service that holds such an address when this becomes `false` keeps it.
    pub allow_first_last: bool,
    /// The services that may have its addresses: those that any of these selectors matches. Default: no selector, which
    /// means all services.
    pub selectors: Vec<Selector>,
    /// Allocates no new addresses; holders keep theirs. The addresses are still its own, so a newer pool that overlaps
    /// it is out of service. Default: no.
    pub disabled: bool,
    /// Why its source refused it, if it did. The pool is then out of service and other pools may overlap it. Holders of
    /// its addresses keep them, whatever the selectors match. Without blocks, nobody knows which addresses it has.
    /// Default: not refused.
    pub refused: Option<String>,
    /// Whether services that ask for no particular address get one from here. Default: yes.
    pub auto_assign: bool,
    /// Pools with a lower number are asked first, and those without one last. Of two with the same number one that
    /// selects comes before one that is for everybody, then the older one, and then the name decides. Default: none.
    pub priority: Option<u32>,
    /// How long a released address is quarantined, unless the pool is otherwise full. Default:
    /// [`DEFAULT_QUARANTINE`](Self::DEFAULT_QUARANTINE).
    pub quarantine: Duration,
    /// How long an address that a living service had to leave is allocated to nobody, before its quarantine begins.
    /// Default: no time.
    pub drain: Duration,
    /// How many addresses the services of one namespace may hold together; an address that several of them share
    /// counts once. Lowering it takes nothing away. Default: any number.
    pub namespace_quota: Option<u64>,
    /// Addresses that are never allocated; a service that holds one moves. Default: none.
    pub avoid: Vec<Block>,
    /// Also avoids IPv4 addresses that end in .0 or .255, which some clients take for broadcasts. Default: no.
    pub avoid_zero_and_255: bool,
}

impl Pool {
    /// Most blocks of a pool, and most entries of its list of avoided ones.
    pub const MAX_BLOCKS: usize = 4096;
    /// Most overlapping pools in which an address is looked up: the one in service first, then in the order in which
    /// pools are asked. Only the holder of an address in that many pools can notice the limit.
    pub const MAX_OVERLAPPING: usize = 16;
    /// Default quarantine: longer than neighbour caches, most DNS records and most connections.
    pub const DEFAULT_QUARANTINE: Duration = Duration::from_secs(300);

    /// A pool of `blocks`, each as [`Block::parse`] reads it, everything else at its default.
    #[must_use]
    pub fn new(name: &str, blocks: &[&str]) -> Self {
        Self {
            name: PoolName::new(name),
            created: Timestamp::default(),
            blocks: blocks.iter().map(|block| Block::parse(block)).collect(),
            allow_first_last: true,
            selectors: Vec::new(),
            disabled: false,
            refused: None,
            auto_assign: true,
            priority: None,
            quarantine: Self::DEFAULT_QUARANTINE,
            drain: Duration::ZERO,
            namespace_quota: None,
            avoid: Vec::new(),
            avoid_zero_and_255: false,
        }
    }

    /// Whether the pool is for `service` with `labels`, as far as its selectors say.
    #[must_use]
    pub fn selects(&self, service: &ServiceName, labels: &BTreeMap<String, String>) -> bool {
        self.selectors.is_empty() || self.selectors.iter().any(|selector| selector.matches(service, labels))
    }

    /// Whether it selects nobody in particular.
    pub(crate) fn is_for_everybody(&self) -> bool {
        self.selectors.is_empty() || self.selectors.contains(&Selector::default())
    }
}
