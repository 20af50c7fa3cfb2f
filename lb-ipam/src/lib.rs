//! Allocates addresses to services: load-balancer addresses from pools, cluster addresses from service CIDRs, and node
//! ports from a range.
//!
//! One [`Ledger`] records which service holds which address, and every change of it names the entry that it replaces. A
//! service keeps its address as long as it may. Restarts and edits without effect write nothing. The same pools and
//! services lead to the same addresses, in whatever order they arrive. A refusal is a sentence that names the rule and
//! the holder behind it. Memory grows with what is allocated: a pool of `::/0` costs as much as an empty one.
//!
//! This crate opens no socket, reads no clock and no file, draws no random number, and knows nothing about Kubernetes.
//!
//! ```
//! use lb_ipam::{Allocator, Edit, FamilyPolicy, MemoryLedger, Pool, Request, ServiceName, Settings, Timestamp};
//!
//! let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
//! allocator.handle_edit(Edit::UpsertPool(Pool::new("public", &["192.0.2.0/24"])));
//! allocator.handle_edit(Edit::UpsertPool(Pool::new("public-v6", &["2001:db8::/64"])));
//! let web = Request { family_policy: FamilyPolicy::RequireDualStack, ..Request::new("shop", "web") };
//! allocator.handle_edit(Edit::UpsertService(web));
//!
//! let outcome = allocator.reconcile(Timestamp::from_secs(1_800_000_000));
//! let (service, status) = &outcome.writes[0]; // to be written into the status of shop/web
//! assert_eq!(*service, ServiceName::new("shop", "web"));
//! assert_eq!(status.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.0", "2001:db8::"]);
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod allocator;
mod answer;
mod book;
mod cluster_ip;
mod ledger;
mod node_port;
mod pool;
mod range;
mod request;
mod settings;
mod time;

pub use allocator::{
    AddressReport, AddressState, Allocator, Edit, EditPlan, KeptFor, Move, Outcome, ReleaseCause, Released,
};
pub use answer::{
    Allocation, Answer, Cause, Condition, PoolRefusal, Reason, Refusal, RefusingPools, Requested, ReservedBy, Status,
};
pub use cluster_ip::{ClusterIpAllocator, ClusterIpError};
pub use ipnet::IpNet;
pub use lb_core::{
    addr::{Family, Protocol},
    name::ServiceName,
    service::TrafficPolicy,
};
pub use ledger::{Entry, Freed, Holders, Ledger, LedgerError, MemoryLedger};
pub use node_port::{NodePortAllocator, NodePortError, PortUse};
pub use pool::{
    Block, BlockProblem, Conflict, Counts, Expression, Operator, Pool, PoolName, PoolProblem, PoolStatus, PoolWarning,
    SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL, Selector, SelectorProblem,
};
pub use range::AddressRange;
pub use request::{FamilyPolicy, Namespaces, PoolChoice, Request, RequestedAddress, Sharing, SharingRule, may_share};
pub use settings::{Classes, Reservation, Settings, WhenSharingBreaks};
pub use time::Timestamp;
