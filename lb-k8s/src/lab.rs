//! A small controller of endpoints for whoever plays a cluster: which pods there are, and the endpoint slices that
//! follow once they have addresses. Pure functions: starting pods, placing them and watching them is the caller's part.
//!
//! ```
//! use lb_core::name::NodeName;
//! use lb_k8s::{Snapshot, lab};
//!
//! let snapshot = Snapshot::parse("web.yaml", "
//! apiVersion: apps/v1
//! kind: Deployment
//! metadata: { name: web }
//! spec:
//!   replicas: 2
//!   selector: { matchLabels: { app: web } }
//!   template:
//!     metadata: { labels: { app: web } }
//!     spec: { containers: [{ name: web, ports: [{ name: http, containerPort: 8080 }] }] }
//! ---
//! apiVersion: v1
//! kind: Service
//! metadata: { name: web }
//! spec: { clusterIP: 10.96.0.10, selector: { app: web }, ports: [{ port: 80, targetPort: http }] }
//! ")?;
//! let pods = lab::pods(snapshot.workloads())?;
//! let placed = pods.into_iter().zip(1u8..).map(|(pod, n)| lab::PlacedPod {
//!     pod,
//!     node: NodeName::new("node-1"),
//!     ips: vec![[10, 244, 0, n].into()],
//! });
//! let slices = lab::endpoint_slices(snapshot.templates(), &placed.collect::<Vec<_>>());
//! assert_eq!(slices[0].ports[0].port, 8080);
//! assert_eq!(slices[0].endpoints[1].ip.to_string(), "10.244.0.2");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use lb_core::{
    addr::{Family, Protocol},
    endpoint::{Conditions, Endpoint, EndpointSlice, SlicePort},
    name::{NodeName, ServiceName, SliceName},
};

use crate::{
    ContainerPort, PodTemplate, Replicas, ServiceTemplate, TargetPort, TemplatePort, Workload, limits::MAX_ENDPOINTS,
};

/// A pod to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name: the workload's for a `Pod`, otherwise the workload's with a number behind it, such as `httpd-0`.
    pub name: String,
    /// The template of its workload.
    pub template: PodTemplate,
}

impl Pod {
    /// Whether it listens on anything; otherwise it is only a client.
    #[must_use]
    pub fn is_server(&self) -> bool {
        !self.template.ports.is_empty()
    }
}

/// A pod that runs somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedPod {
    /// The pod; whoever watches it changes [`PodTemplate::ready`] and [`PodTemplate::terminating`].
    pub pod: Pod,
    /// Its node.
    pub node: NodeName,
    /// Its addresses, one per family at most.
    pub ips: Vec<IpAddr>,
}

/// Two workloads want a pod of the same name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two workloads want pod {namespace}/{name}: rename one of them")]
pub struct PodTwice {
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The pods that `workloads` ask for, in their order.
///
/// # Errors
/// When two pods would have the same name.
pub fn pods<'a>(workloads: impl IntoIterator<Item = &'a Workload>) -> Result<Vec<Pod>, PodTwice> {
    let mut names = BTreeSet::new();
    let mut pods = Vec::new();
    for workload in workloads {
        for name in pod_names(workload) {
            let namespace = workload.namespace.clone();
            if !names.insert((namespace.clone(), name.clone())) {
                return Err(PodTwice { namespace, name });
            }
            pods.push(Pod { namespace, name, template: workload.pod.clone() });
        }
    }
    Ok(pods)
}

fn pod_names(workload: &Workload) -> Vec<String> {
    match workload.replicas {
        Replicas::Single => vec![workload.name.clone()],
        Replicas::Numbered { first, count } => {
            (first..first.saturating_add(count)).map(|number| format!("{}-{number}", workload.name)).collect()
        }
    }
}

/// The endpoint slices of services with selectors, in order of service and family.
///
/// One slice per service and family, called `web-ipv4` and `web-ipv6`. There are more, called `web-ipv4-1` and so on,
/// when a named port has different numbers in different pods, or there are more than [`MAX_ENDPOINTS`] of them. A
/// service that no pod serves has none.
#[must_use]
pub fn endpoint_slices<'a>(
    services: impl IntoIterator<Item = &'a ServiceTemplate>,
    pods: &[PlacedPod],
) -> Vec<EndpointSlice> {
    let mut services: Vec<_> = services.into_iter().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let mut slices = Vec::new();
    for service in services {
        let pods: Vec<_> = pods.iter().filter(|placed| is_selected(service, &placed.pod)).collect();
        for &family in &service.families {
            slices.extend(slices_of(service, family, &pods));
        }
    }
    slices
}

fn is_selected(service: &ServiceTemplate, pod: &Pod) -> bool {
    let labels = &pod.template.labels;
    pod.namespace == service.name.namespace()
        && service.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn slices_of(service: &ServiceTemplate, family: Family, pods: &[&PlacedPod]) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<Vec<PortKey>, Vec<Endpoint>> = BTreeMap::new();
    for placed in pods {
        let ports = resolve(service, &placed.pod);
        let ip = placed.ips.iter().copied().find(|&ip| Family::of(ip) == family);
        if let Some(ip) = ip.filter(|_| !ports.is_empty()) {
            groups.entry(ports).or_default().push(endpoint(service, placed, ip));
        }
    }
    let chunks = groups.iter().flat_map(|(ports, all)| all.chunks(MAX_ENDPOINTS).map(move |chunk| (ports, chunk)));
    let slices = chunks.enumerate().map(|(index, (ports, endpoints))| EndpointSlice {
        name: slice_name(&service.name, family, index),
        service: service.name.clone(),
        ports: ports.iter().map(PortKey::port).collect(),
        endpoints: endpoints.to_vec(),
    });
    slices.collect()
}

/// Name of a service's slice of a family, the `index`-th from 0.
pub(crate) fn slice_name(service: &ServiceName, family: Family, index: usize) -> SliceName {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let number = if index == 0 { String::new() } else { format!("-{index}") };
    SliceName::new(service.namespace(), &format!("{}-{family}{number}", service.name()))
}

/// A port of a slice, in an order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PortKey {
    name: Arc<str>,
    protocol: Protocol,
    port: u16,
}

impl PortKey {
    fn port(&self) -> SlicePort {
        SlicePort { name: Arc::clone(&self.name), protocol: self.protocol, port: self.port }
    }
}

/// The service's ports as this pod has them; a named one that the pod lacks is left out.
fn resolve(service: &ServiceTemplate, pod: &Pod) -> Vec<PortKey> {
    let resolved = service.ports.iter().filter_map(|port| {
        let number = target(port, &pod.template.ports)?;
        Some(PortKey { name: Arc::clone(&port.name), protocol: port.protocol, port: number })
    });
    resolved.collect()
}

fn target(port: &TemplatePort, of_pod: &[ContainerPort]) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let matches =
                |port_of_pod: &&ContainerPort| port_of_pod.name == **name && port_of_pod.protocol == port.protocol;
            of_pod.iter().find(matches).map(|port| port.port)
        }
    }
}

/// As the controller of Kubernetes states conditions: a terminating pod is not ready, but may serve.
fn endpoint(service: &ServiceTemplate, placed: &PlacedPod, ip: IpAddr) -> Endpoint {
    let PodTemplate { ready, terminating, .. } = placed.pod.template;
    Endpoint {
        node: Some(placed.node.clone()),
        conditions: Conditions {
            ready: service.publish_not_ready_addresses || (ready && !terminating),
            serving: ready,
            terminating,
        },
        ..Endpoint::new(ip)
    }
}
