//! Service load balancing without I/O.
//!
//! This crate holds the model of services, endpoints and node facts. It decides which backend a flow reaches and
//! explains why, and it computes the ordered plans that bring a datapath from its present state to the desired one.
//!
//! It opens no socket, reads no clock and no file, draws no random number, and knows nothing about Kubernetes. Time,
//! changes and outcomes are arguments, plans are return values, and equal input leads to equal output.
//!
//! Every item is in the module of its subject: a [`plan::Plan`] carries [`plan::Op`]s, a [`model::Model`] takes
//! [`model::Change`]s, a [`datapath::Datapath`] has [`datapath::Capabilities`].
//!
//! ```
//! use lb_core::{
//!     addr::Protocol,
//!     datapath::Datapath,
//!     endpoint::{Endpoint, EndpointSlice, SlicePort},
//!     memory::MemoryDatapath,
//!     model::{Change, Model, Settings},
//!     name::{ServiceName, SliceName},
//!     reconciler::Reconciler,
//!     service::{Service, ServicePort},
//!     time::Instant,
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

pub mod addr;
pub mod affinity;
pub mod datapath;
pub mod decision;
pub mod desired;
pub mod drift;
pub mod endpoint;
pub mod error;
pub mod faulty;
pub mod flow_hash;
pub mod health;
pub mod id;
pub mod kernel;
pub mod maglev;
pub mod memory;
pub mod model;
pub mod name;
pub mod node;
pub mod plan;
pub mod reconciler;
pub mod selection;
pub mod service;
pub mod state;
pub mod table;
pub mod time;
pub mod topology;

// At the root as well, until everybody imports by module.
pub use addr::{BackendAddr, Family, FrontendAddr, FrontendKind, Protocol, Scope};
pub use affinity::{Affinity, AffinityRecord};
pub use datapath::{
    AffinityCapability, ApplyError, Atomicity, Capabilities, Counters, Datapath, DatapathError, ErrorKind, KernelUsage,
    Role, SocketCapability, SocketHash, Watcher,
};
pub use decision::{
    BackendQuery as Wanted, Because, Choice, Decision, Entry, FlowView, Forward, Packet, Slots, SourceRewrite, Step,
    Verdict, WhyNot, decide, why_not,
};
pub use desired::Desired;
pub use drift::{Cause, Difference, Drift, DriftClass, Expected, Inspection, compare as drift};
pub use endpoint::{AdminState, BackendState, Conditions, Endpoint, EndpointSlice, SlicePort};
pub use faulty::{Faults, Faulty};
pub use flow_hash::FLOW_SEED;
pub use health::{Health, HealthReport, HealthTable};
pub use id::{BackendId, FrontendId, Id, IdTable, IdsExhausted, SetId};
pub use kernel::{Backends, KernelAnswer, KernelVerdict};
pub use memory::MemoryDatapath;
pub use model::{Candidate, Change, Degraded, Model, ModelError, Owner, ServiceFrontend, Settings};
pub use name::{NodeName, ServiceName, ServicePortName, SliceName, SourceName, ZoneName};
pub use node::NodeFacts;
pub use plan::{Labels, Op, Plan, PlanId, Touched, diff, diff_touched};
pub use reconciler::{FrontendStatus, Reconciler};
pub use selection::{Reason, Rules, Selection, Usable, select};
pub use service::{Algorithm, DrainPolicy, Service, ServicePort, TrafficPolicy};
pub use state::{Answer, Backend, BackendSet, Dangling, Frontend, Lookup, State, Target};
pub use table::{BadTableSize, MAX_PLAIN_SLOTS, TableSize, TableSpec};
pub use time::Instant;
pub use topology::{Hints, Near, TrafficDistribution};

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
