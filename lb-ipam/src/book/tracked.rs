//! One service, and what it has.

use alloc::{sync::Arc, vec::Vec};
use core::net::IpAddr;

use lb_core::name::ServiceName;

use crate::{Answer, Request, Status, Timestamp, book::waiting::Turn};

/// Place of a service in the book.
pub(crate) type Slot = usize;

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
    /// The status to write once because this allocator no longer serves it.
    pub(crate) withdrawal: Option<Status>,
    /// Whether it is known to be somebody else's, so that nothing in its status is ours.
    pub(crate) left_alone: bool,
    /// Whether the next reconcile looks at it.
    pub(crate) is_dirty: bool,
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
            withdrawal: None,
            left_alone: false,
            is_dirty: false,
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
