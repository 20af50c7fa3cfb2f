//! Where services come from.
//!
//! A [`Source`] has a first listing, says what changes, and receives the addresses that its services were granted. A
//! directory of manifests is one ([`ManifestDirectory`]); a Kubernetes API or a stream of your own is another. An agent
//! has any number of them, in an order: of two objects with one name, the one of the first source is served, and the
//! condition `Shadowed` names the others. Of two services that claim one address, that of the first source gets it.
//! Endpoint slices join the service of their name, whichever source either comes from.
//!
//! ```
//! use std::sync::mpsc::{Receiver, TryRecvError};
//!
//! use lb_agent::source::{Grant, News, Source, SourceError, Waker};
//! use lb_core::{model::Change, name::SourceName, service::Service};
//!
//! /// Services that another part of the program sends; whoever sends wakes the source.
//! struct Stream {
//!     services: Receiver<Service>,
//!     is_listed: bool,
//! }
//!
//! impl Source for Stream {
//!     fn name(&self) -> SourceName {
//!         SourceName("stream".into())
//!     }
//!
//!     fn start(&mut self, _: Waker) -> Result<(), SourceError> {
//!         Ok(())
//!     }
//!
//!     fn poll(&mut self) -> News {
//!         let mut changes: Vec<Change> = self.services.try_iter().map(Change::UpsertService).collect();
//!         if !std::mem::replace(&mut self.is_listed, true) {
//!             changes.push(Change::InitDone(self.name()));
//!         }
//!         News::default().with_changes(changes)
//!     }
//!
//!     fn grant(&mut self, _: &[Grant]) -> Vec<Change> {
//!         Vec::new() // No service of this source asks for an address.
//!     }
//! }
//! ```

pub(crate) mod directory;
mod listing;
mod precedence;
mod sources;
mod unread;
mod waker;

use std::{net::IpAddr, sync::Arc};

use lb_core::{
    model::Change,
    name::{ServiceName, SourceName},
    node::NodeFacts,
};
use lb_ipam::{Edit, Status};
use lb_k8s::Report;

pub(crate) use self::sources::{Delivery, Sources};
pub use self::{
    directory::{ManifestDirectory, WatchError},
    waker::Waker,
};

/// Why a source cannot start.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// A source of services, endpoints and pools of addresses.
///
/// One thread of the agent owns every source and calls all methods. None of them may wait for anything but a disk.
pub trait Source: Send {
    /// Its name, which never changes: its first listing, its services and its conditions are known by it.
    fn name(&self) -> SourceName;

    /// The node that the agent is for, for a source whose objects are about nodes, such as the host ports of pods. Called
    /// once, before everything else. Default: does nothing.
    fn set_node(&mut self, node: &NodeFacts) {
        let _ = node;
    }

    /// Begins to follow whatever it follows, on threads of its own. Called once, before everything that follows here.
    ///
    /// It [wakes](Waker::wake) the agent whenever [`poll`](Self::poll) would have something new.
    ///
    /// # Errors
    /// When it can never work, such as for want of the directory. The agent does not start then. A server that does not
    /// answer now is no error: the source says so by a condition and goes on trying.
    fn start(&mut self, waker: Waker) -> Result<(), SourceError>;

    /// What changed since the last call. Called once after [`start`](Self::start) and then after each wake; an answer
    /// without anything in it is fine.
    ///
    /// Changes come in an order in which the model takes them without a conflict over an address. The last change of
    /// the first listing is [`Change::InitDone`] with its [name](Self::name); until every source has said it, nothing
    /// is programmed. The agent itself says [`Change::InitStart`]. There is no second listing: a source that has to
    /// list anew, after it lost its server, say, compares with what it said before and says the difference.
    fn poll(&mut self) -> News;

    /// Somebody asks to look at everything once more, because a change may have gone unnoticed: the next
    /// [`poll`](Self::poll) says what differs. Default: does nothing, for a source that notices every change.
    fn reload(&mut self) {}

    /// Services of this source get these addresses in place of those that their statuses name. Returns the changes that
    /// this makes, in the same order as those of [`poll`](Self::poll). A service that it does not have is passed over.
    ///
    /// What is granted is in the ledger already. A source keeps it in mind: a service that changes later has the same
    /// addresses until it is granted others.
    fn grant(&mut self, grants: &[Grant]) -> Vec<Change>;

    /// What its services have of pools, to be written back to where they come from. Each status is said once: a source
    /// that cannot write it keeps it and tries again. Default: it is written nowhere, as for a directory.
    fn publish(&mut self, statuses: &[(ServiceName, Status)]) {
        let _ = statuses;
    }

    /// What the text of manifests would change if they joined this source; `None`, the default, if it holds no
    /// manifests.
    ///
    /// # Errors
    /// When they would be rejected as a whole, and why.
    fn preview(&self, file: &str, text: &str) -> Option<Result<Preview, String>> {
        let _ = (file, text);
        None
    }

    /// Where it is, as a user would write it, such as a path or an address. Default: nowhere in particular.
    fn place(&self) -> String {
        String::new()
    }
}

/// What is new at a source.
///
/// Later versions may add kinds of news, so start with [`default`](Self::default): nothing is new.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct News {
    /// Changes of services and endpoints.
    pub changes: Vec<Change>,
    /// Changes of pools and of what services ask of them, for an [`Allocator`](lb_ipam::Allocator).
    pub edits: Vec<Edit>,
    /// What was not taken over, and why; `None` if it is as it was.
    pub report: Option<Arc<Report>>,
    /// Conditions of the source that begin, or, without a message, end. Types are in `CamelCase`.
    pub conditions: Vec<(&'static str, Option<String>)>,
}

impl News {
    /// The same with these [`changes`](Self::changes) in place of those before.
    #[must_use]
    pub fn with_changes(mut self, changes: impl Into<Vec<Change>>) -> Self {
        self.changes = changes.into();
        self
    }

    /// The same with these [`edits`](Self::edits) in place of those before.
    #[must_use]
    pub fn with_edits(mut self, edits: impl Into<Vec<Edit>>) -> Self {
        self.edits = edits.into();
        self
    }

    /// The same with another [`report`](Self::report).
    #[must_use]
    pub fn with_report(mut self, report: Arc<Report>) -> Self {
        self.report = Some(report);
        self
    }

    /// The same with these [`conditions`](Self::conditions) in place of those before.
    #[must_use]
    pub fn with_conditions(mut self, conditions: impl Into<Vec<(&'static str, Option<String>)>>) -> Self {
        self.conditions = conditions.into();
        self
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.edits.is_empty() && self.report.is_none() && self.conditions.is_empty()
    }
}

/// Addresses that a service has of pools.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// The service.
    pub service: ServiceName,
    /// All of its addresses, or `None` for those that its status names.
    pub addresses: Option<Vec<IpAddr>>,
}

impl Grant {
    /// The addresses that the status of the service names.
    #[must_use]
    pub const fn new(service: ServiceName) -> Self {
        Self { service, addresses: None }
    }

    /// The same with these [`addresses`](Self::addresses) in place of those of the status.
    #[must_use]
    pub fn with_addresses(mut self, addresses: impl Into<Vec<IpAddr>>) -> Self {
        self.addresses = Some(addresses.into());
        self
    }
}

/// What would change if manifests joined a source.
///
/// Later versions may add to it, so start with [`default`](Self::default): nothing would change.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Preview {
    /// Changes of pools and requests.
    pub edits: Vec<Edit>,
    /// What would not be taken over, and why.
    pub report: Report,
}

impl Preview {
    /// The same with these [`edits`](Self::edits) in place of those before.
    #[must_use]
    pub fn with_edits(mut self, edits: impl Into<Vec<Edit>>) -> Self {
        self.edits = edits.into();
        self
    }

    /// The same with another [`report`](Self::report).
    #[must_use]
    pub fn with_report(mut self, report: Report) -> Self {
        self.report = report;
        self
    }
}
