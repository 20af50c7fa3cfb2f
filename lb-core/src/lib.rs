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
//! A [`runner::Runner`] brings a datapath to what the model wants, and keeps it there. The feature `std` adds a thread
//! for it and nothing else.
//!
//! ```
//! use lb_core::{
//!     addr::Protocol,
//!     datapath::Datapath,
//!     endpoint::{Endpoint, EndpointSlice, SlicePort},
//!     memory::MemoryDatapath,
//!     model::{Change, Model, Settings},
//!     name::{ServiceName, SliceName, SourceName},
//!     node::NodeFacts,
//!     runner::Runner,
//!     service::{Service, ServicePort},
//!     time::Instant,
//! };
//!
//! let mut datapath: Box<dyn Datapath> = Box::new(MemoryDatapath::default()); // or eBPF, nftables, iptables
//! let node = NodeFacts { ips: vec!["192.0.2.1".parse()?], ..NodeFacts::default() };
//! let source = SourceName("embedder".into());
//! let model = Model::new(Settings::default(), datapath.capabilities());
//! let mut runner = Runner::new(model, node, [source.clone()]);
//!
//! let (name, tcp) = (ServiceName::new("default", "web"), Protocol::Tcp);
//! let port = ServicePort { name: "http".into(), protocol: tcp, port: 80, node_port: None };
//! let cluster_ips = vec!["10.96.0.10".parse()?];
//! runner.handle_change(Change::UpsertService(Service { cluster_ips, ports: vec![port], ..Service::new(name.clone()) }))?;
//! runner.handle_change(Change::ReplaceEndpoints(EndpointSlice {
//!     name: SliceName::new("default", "web-1"),
//!     service: name,
//!     ports: vec![SlicePort { name: "http".into(), protocol: tcp, port: 8080 }],
//!     endpoints: vec![Endpoint::new("10.244.0.7".parse()?)],
//! }))?;
//! runner.handle_change(Change::InitDone(source))?;
//! while let Some(event) = runner.step(&mut *datapath, Instant::default()) {
//!     println!("{event}");
//! }
//! assert_eq!(datapath.observe()?.frontends.len(), 1);
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

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
pub mod runner;
pub mod selection;
pub mod service;
pub mod sources;
pub mod state;
pub mod table;
pub mod time;
pub mod topology;

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
