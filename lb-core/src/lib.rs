//! Service load balancing without I/O.
//!
//! The model of services, endpoints and node facts; which backend a flow gets and why; and the ordered plans that
//! bring a datapath from what it holds to what it should hold. What it refuses to do: open a socket, read a clock or a
//! file, draw a random number, know Kubernetes. Time, changes and outcomes come in as arguments, plans go out as
//! values, and equal input gives equal output.
//!
//! ```
//! use lb_core::{
//!     Change, Datapath, Endpoint, EndpointSlice, Instant, MemoryDatapath, Model, Protocol, Reconciler, Service,
//!     ServiceName, ServicePort, Settings, SliceName, SlicePort,
//! };
//!
//! let mut datapath: Box<dyn Datapath> = Box::new(MemoryDatapath::default()); // or eBPF, nftables, iptables
//! let mut reconciler = Reconciler::new(Model::new(Settings::default(), datapath.capabilities()));
//! reconciler.handle_observed(datapath.observe()?);
//!
//! let (name, tcp) = (ServiceName::new("default", "web"), Protocol::Tcp);
//! let port = ServicePort { name: "http".into(), protocol: tcp, port: 80, node_port: None };
//! let cluster_ips = vec!["10.96.0.10".parse()?];
//! reconciler.handle_change(Change::UpsertService(Service { cluster_ips, ports: vec![port], ..Service::new(name.clone()) }))?;
//! reconciler.handle_change(Change::ReplaceEndpoints(EndpointSlice {
//!     name: SliceName::new("default", "web-1"),
//!     service: name,
//!     ports: vec![SlicePort { name: "http".into(), protocol: tcp, port: 8080 }],
//!     endpoints: vec![Endpoint::new("10.244.0.7".parse()?)],
//! }))?;
//! let now = Instant::default();
//! while let Some(plan) = reconciler.poll_plan(now) {
//!     let outcome = datapath.apply(&plan);
//!     reconciler.handle_applied(plan.id, outcome, now);
//! }
//! assert_eq!(datapath.observe()?.frontends.len(), 1);
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod addr;
mod affinity;
mod change;
mod datapath;
mod decide;
mod desired;
mod drain;
mod drift;
mod endpoint;
mod events;
mod faulty;
mod frontend;
mod health;
mod id;
mod in_use;
mod kernel;
pub mod maglev;
mod memory;
mod model;
mod name;
mod node;
mod plan;
mod reconcile;
mod select;
mod service;
mod slots;
mod state;
mod time;
mod topology;
mod why_not;

pub use addr::{BackendAddr, Family, FrontendAddr, Protocol, Scope};
pub use affinity::AffinityRecord;
pub use change::Change;
pub use datapath::{
    AffinityCapability, ApplyError, Atomicity, Capabilities, Counters, Datapath, DatapathError, ErrorKind, KernelUsage,
    Role, SocketCapability, SocketHash, Watcher,
};
pub use decide::{Choice, Decision, Entry, FlowView, Forward, Packet, SourceRewrite, Step, Verdict, decide};
pub use desired::Desired;
pub use drain::DrainPolicy;
pub use drift::{Cause, Difference, Drift, DriftClass, Expected, Inspection, drift};
pub use endpoint::{AdminState, BackendState, Conditions, Endpoint, EndpointSlice, SlicePort};
pub use faulty::{Faults, Faulty};
pub use frontend::FrontendKind;
pub use health::{Health, HealthReport, HealthTable};
pub use id::{BackendId, FrontendId, Id, IdTable, IdsExhausted, SetId};
pub use kernel::{Backends, KernelAnswer, KernelVerdict};
pub use lb_flow_hash as flow_hash;
pub use memory::{Answer, MemoryDatapath};
pub use model::{Candidate, Degraded, FLOW_SEED, Model, ModelError, Owner, ServiceFrontend, Settings};
pub use name::{NodeName, ServiceName, ServicePortName, SliceName, SourceName, ZoneName};
pub use node::NodeFacts;
pub use plan::{Labels, Op, Plan, PlanId, Touched, diff, diff_touched};
pub use reconcile::{FrontendStatus, Reconciler};
pub use select::{Reason, Rules, Selection, Usable, select};
pub use service::{Affinity, Algorithm, BadTableSize, Service, ServicePort, TableSize, TrafficPolicy};
pub use slots::{MAX_PLAIN_SLOTS, TableSpec};
pub use state::{Backend, BackendSet, Dangling, Frontend, Lookup, State, Target};
pub use time::Instant;
pub use topology::{Hints, Near, TrafficDistribution};
pub use why_not::{Because, Slots, Wanted, WhyNot, why_not};
