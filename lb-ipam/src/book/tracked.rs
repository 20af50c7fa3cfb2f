//! One service, and what it has.

use alloc::{sync::Arc, vec::Vec};
use core::net::IpAddr;

use lb_core::name::ServiceName;

use crate::{Answer, Request, Status, Timestamp, book::waiting::Turn};

/// Place of a service in the book.
pub(crate) type Slot = usize;

/// Why a service is looked at in the next reconcile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Staleness {
    /// It is not.
    #[default]
    Clean,
    /// Something around it changed.
    Touched,
    /// It changed itself.
    Changed,
}

/// Everything about one service.
#[derive(Clone, Debug)]
pub(crate) struct Tracked {
    pub(crate) name: ServiceName,
    /// `None` for a service that is in the ledger only.
    pub(crate) request: Option<Arc<Request>>,
    /// Whether it is there though its request cannot be read; it has none then.
    pub(crate) unreadable: bool,
    /// Addresses that it holds according to the ledger, in order.
    pub(crate) held: Vec<IpAddr>,
    /// Addresses that it was the last to hold, in order.
    pub(crate) left: Vec<IpAddr>,
    pub(crate) answer: Answer,
    /// Its status, as far as known.
    pub(crate) told: Status,
    /// Whether this allocator writes its status.
    pub(crate) managed: bool,
    /// Whether it was, and what it says has to go.
    pub(crate) withdrawn: bool,
    pub(crate) dirt: Staleness,
    /// Why the reconcile under way looks at it.
    pub(crate) was: Staleness,
    /// Place among the dirty services of the reconcile under way.
    pub(crate) rank: Option<usize>,
    /// Whether the reconcile under way took something from it.
    pub(crate) lost: bool,
}

impl Tracked {
    pub(crate) fn new(name: ServiceName) -> Self {
        Self {
            name,
            request: None,
            unreadable: false,
            held: Vec::new(),
            left: Vec::new(),
            answer: Answer::default(),
            told: Status::default(),
            managed: false,
            withdrawn: false,
            dirt: Staleness::Clean,
            was: Staleness::Clean,
            rank: None,
            lost: false,
        }
    }

    /// When the service was made; services that are gone come first.
    pub(crate) fn created(&self) -> Timestamp {
        self.request.as_ref().map_or_else(Timestamp::default, |request| request.created)
    }

    /// When it has its turn among those that wait.
    pub(crate) fn turn(&self) -> Turn {
        (self.created(), self.name.clone())
    }
}
