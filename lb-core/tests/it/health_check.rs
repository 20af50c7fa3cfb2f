//! What a node tells a load balancer that asks for endpoints.

use lb_core::{
    addr::Protocol,
    endpoint::{AdminState, Conditions, Endpoint, EndpointSlice, SlicePort},
    health::{Health, HealthReport},
    model::{Change, Model},
    name::{NodeName, ServiceName, SliceName, SourceName},
    node::NodeFacts,
    service::{Service, ServiceType, TrafficPolicy},
};

use crate::worlds::{backend, port, ready, slice, web};

const SERVING: Conditions = Conditions { ready: false, serving: true, terminating: true };

fn model(slices: impl IntoIterator<Item = EndpointSlice>) -> Model {
    let mut model = Model::default();
    let node = NodeFacts { name: Some(NodeName::new("here")), ..NodeFacts::default() };
    model.apply(Change::SetNode(node)).unwrap();
    let service = Service {
        kind: ServiceType::LoadBalancer,
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(32_000),
        ports: vec![port("http", Protocol::Tcp, 80), port("https", Protocol::Tcp, 443)],
        ..web("a", "10.96.0.1")
    };
    model.apply(Change::UpsertService(service)).unwrap();
    for slice in slices {
        model.apply(Change::ReplaceEndpoints(slice)).unwrap();
    }
    model
}

fn count(model: &Model) -> usize {
    model.ready_local_endpoints(model.service(&ServiceName::new("default", "a")).unwrap())
}

fn on(node: &str, endpoint: Endpoint) -> Endpoint {
    Endpoint { node: Some(NodeName::new(node)), ..endpoint }
}

fn here(address: &str) -> Endpoint {
    on("here", ready(address))
}

#[test]
fn endpoints_of_this_node_that_are_ready_count_once_however_many_ports_they_have() {
    let of_two_ports = |endpoints: Vec<Endpoint>| {
        let https = SlicePort { name: "https".into(), protocol: Protocol::Tcp, port: 8443 };
        let mut slice = slice("a", endpoints);
        slice.ports.push(https);
        slice
    };
    assert_eq!(count(&model([])), 0);
    assert_eq!(count(&model([slice("a", [on("there", ready("10.244.0.9"))])])), 0);
    let endpoints = vec![here("10.244.0.1"), here("10.244.0.2"), on("there", ready("10.244.0.9"))];
    assert_eq!(count(&model([of_two_ports(endpoints)])), 2);
}

#[test]
fn a_terminating_endpoint_does_not_count_although_it_serves() {
    let terminating = Endpoint { conditions: SERVING, ..here("10.244.0.1") };
    let mut model = model([slice("a", [terminating.clone()])]);
    let service = model.service(&ServiceName::new("default", "a")).unwrap().clone();
    let selection = model.selection(&service, &service.ports[0], lb_core::addr::Family::V4, TrafficPolicy::Local);
    assert_eq!((selection.usable.len(), count(&model)), (1, 0));
    model.apply(Change::ReplaceEndpoints(slice("a", [terminating, here("10.244.0.2")]))).unwrap();
    assert_eq!(count(&model), 1);
}

#[test]
fn a_ready_endpoint_that_gets_no_new_flows_does_not_count() {
    let maintained = Endpoint { admin: AdminState::Maintenance, ..here("10.244.0.1") };
    let weightless = Endpoint { weight: 0, ..here("10.244.0.2") };
    let mut model = model([slice("a", [maintained, weightless, here("10.244.0.3")])]);
    assert_eq!(count(&model), 1);
    let report =
        HealthReport { source: SourceName("prober".into()), backend: backend("10.244.0.3"), health: Health::Unhealthy };
    model.apply(Change::SetHealth(report)).unwrap();
    assert_eq!(count(&model), 0);
}

#[test]
fn a_pod_of_two_families_is_one_endpoint() {
    let v6 = EndpointSlice { name: SliceName::new("default", "a-6"), ..slice("a", [here("fd00::1"), here("fd00::2")]) };
    assert_eq!(count(&model([slice("a", [here("10.244.0.1")]), v6])), 2);
}
