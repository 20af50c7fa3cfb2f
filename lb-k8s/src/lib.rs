//! Turns Kubernetes manifests into changes of the model of [`lb_core`], and back.
//!
//! [`Snapshot`] is the content of some files at one moment: `Service` and `EndpointSlice` objects as the model knows
//! them. For an embedder that plays a cluster there are also `Namespace`, `Deployment`, `StatefulSet` and `Pod`.
//! [`Manifests`] holds the last good state and computes the changes when a newer snapshot arrives. [`lab`] is a small
//! controller of endpoints, and [`mod@write`] writes manifests. Pools of addresses, and the requests of services for
//! them, are for an allocator.
//!
//! ```
//! use lb_core::{model::Change, name::SourceName};
//! use lb_k8s::{Manifests, Snapshot};
//!
//! let mut manifests = Manifests::new(SourceName("manifests".into()));
//! let batch = manifests.update(Snapshot::parse("web.yaml", "
//! apiVersion: v1
//! kind: Service
//! metadata: { name: web }
//! spec:
//!   clusterIP: 10.96.0.10
//!   ports: [{ port: 80 }]
//!   loadBalancerSourceRange: [10.0.0.0/8]
//! "));
//! assert!(matches!(&batch.changes[1], Change::UpsertService(web) if web.ports[0].port == 80));
//! assert_eq!(
//!     batch.report.unsupported[0].to_string(),
//!     "web.yaml:8:28: document 1, Service default/web, field `spec.loadBalancerSourceRange`: there is no such \
//!      field, so that every source is let in: write `loadBalancerSourceRanges`",
//! );
//! ```
//!
//! # What it refuses to do
//!
//! This crate guesses nothing and allocates nothing. An address or node port that is not in the manifest does not
//! exist, unless the embedder [grants](Manifests::grant) addresses of [pools](#pools). It ignores nothing silently: the
//! [`Report`] lists every field that is not supported by file, document and field. It talks to no API server, watches
//! no directory, knows nothing of nodes but [the name of one](Manifests::on_node), and starts no pod.
//!
//! # Supported objects and fields
//!
//! | object | supported fields |
//! |---|---|
//! | `Service` | `clusterIP`, `clusterIPs`, `externalIPs`, `status.loadBalancer.ingress` with `ipMode: VIP`, ports with names and node ports, `loadBalancerSourceRanges`, `sessionAffinity` with its time-out, both traffic policies, `healthCheckNodePort`, `trafficDistribution`, the [annotations] |
//! | `EndpointSlice` | ports, the first address of each endpoint, `nodeName`, `zone`, hints for zones and nodes, conditions, the [annotations] for weight |
//! | workloads | names, labels, replicas, container ports with names, `nodeName`; of a `Pod` also readiness and deletion |
//! | `Pod` that runs on [this node](Manifests::on_node) | `hostPort`, `hostIP`, `protocol` and `containerPort` of its containers, `nodeName`, `hostNetwork`, uid, addresses, phase and deletion |
//! | `CiliumLoadBalancerIPPool` (cilium.io/v2, v2alpha1) | `blocks` or the older `cidrs`, with `cidr`, or `start` and `stop`; `allowFirstLastIPs`, `serviceSelector`, `disabled` |
//! | `IPAddressPool` (metallb.io/v1beta1) | `addresses`, `autoAssign`, `avoidBuggyIPs`, `serviceAllocation` with `priority`, `namespaces`, `namespaceSelectors` among the `Namespace` objects, and `serviceSelectors` |
//! | `IPPool` (lb/v1), the short form of lb | `blocks` and `avoid` as texts, `avoidZeroAnd255`, `allowFirstLastIPs`, `serviceSelector` or several `serviceSelectors`, `disabled`, `autoAssign`, `priority`, `quarantineSeconds`, `drainSeconds`, `namespaceQuota` |
//! | `Service` of type LoadBalancer, where somebody allocates | `loadBalancerIP`, `loadBalancerClass`, `ipFamilies`, `ipFamilyPolicy`, labels, age, selector, its status, the [annotations] of Cilium and MetalLB for addresses, sharing and pools |
//!
//! Headless and `ExternalName` services have no frontends. Objects with the label
//! `service.kubernetes.io/service-proxy-name` and kinds that are not in the table are skipped and listed.
//!
//! # Pools
//!
//! [`Batch::edits`] are for an [`Allocator`](lb_ipam::Allocator). Its answers go to [`Manifests::grant`], so that
//! services have their addresses, and to [`write::service_status`] and [`write::pool_status`]. Without
//! [`Manifests::allocating`], pools and requests for addresses are reported as not supported. [`Manifests::preview`]
//! computes the edits that a file would cause, for [`Allocator::plan`](lb_ipam::Allocator::plan).
//!
//! ```
//! use lb_core::name::SourceName;
//! use lb_ipam::{Allocator, MemoryLedger, Settings, Timestamp};
//! use lb_k8s::{Manifests, Snapshot};
//!
//! let mut manifests = Manifests::new(SourceName("manifests".into())).allocating();
//! let batch = manifests.update(Snapshot::parse("pool.yaml", "
//! apiVersion: cilium.io/v2
//! kind: CiliumLoadBalancerIPPool
//! metadata: { name: blue-pool }
//! spec: { blocks: [{ start: 20.0.20.100, stop: 20.0.20.199 }] }
//! ---
//! apiVersion: v1
//! kind: Service
//! metadata: { name: echo-1 }
//! spec: { type: LoadBalancer, clusterIP: 10.96.79.72, ports: [{ port: 8080 }] }
//! "));
//! let settings = Settings::default().with_reserved(lb_k8s::unservable());
//! let mut allocator = Allocator::new(settings, MemoryLedger::default());
//! batch.edits.into_iter().for_each(|edit| allocator.handle_edit(edit));
//! let outcome = allocator.reconcile(Timestamp::default());
//! let answers = outcome.writes.into_iter().map(|(service, status)| (service, Some(status.addresses)));
//! manifests.grant(answers); // the changes that this makes are for the model, as those of the batch
//! let echo = manifests.services().next().expect("it stands in pool.yaml");
//! assert_eq!(echo.load_balancer_ips[0].to_string(), "20.0.20.100");
//! ```
//!
//! # Watching
//!
//! [`Manifests::reload`] reads files and directories and opens only files that have changed since the last time.
//! [`Manifests::reload_files`] examines only the files that it is passed, so that it costs the same among ten files and
//! among ten thousand. The caller decides when to call them. The example `scale` measures both.
//!
//! # Hostile files
//!
//! Files of a directory are opened below it (`openat2`, `RESOLVE_BENEATH`): symbolic links are followed as far as they
//! stay inside, as those of a volume of the kubelet do. Only regular files are opened at all, and hard links only where
//! nobody but their owner can have put them. The [`limits`] bound the content of a file; the test `hostile` measures
//! the cost of refusing more.
//!
//! # Errors
//!
//! A [`Snapshot`] is read as a whole or not at all ([`SnapshotError`]). [`Manifests::reload`] rejects one for a limit and
//! for a directory that cannot be read, and the last good one stays. Any other file that cannot be read or parsed, and
//! any document that is no object, is listed ([`Report::unread`]) and costs only itself.
//!
//! An object that is invalid in itself, by a value or by the type of a field, is refused alone ([`Refusal`]) and stays
//! as it last was. No service loses an address over it: a pool that never was good is disabled, and a service that never
//! was good [keeps](lb_ipam::Edit::KeepService) its addresses. The model finds conflicts between objects of different
//! sources, and the allocator finds those between pools.
#![forbid(unsafe_code)]

pub mod annotations;
mod check;
pub mod conditions;
mod document;
mod error;
mod fields;
mod files;
mod host_ports;
mod kinds;
pub mod lab;
pub mod limits;
mod manifests;
mod pools;
mod report;
mod service;
mod slice;
mod snapshot;
mod text;
mod unservable;
mod workload;
pub mod write;

pub use error::SnapshotError;
pub use manifests::{Batch, Manifests, Preview};
pub use report::{Finding, Instead, ObjectRef, Origin, Position, Refusal, Report, Unlisted, Unread};
pub use service::{ServiceTemplate, TargetPort, TemplatePort};
pub use snapshot::Snapshot;
pub use unservable::unservable;
pub use workload::{ContainerPort, PodTemplate, Replicas, Workload};

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
