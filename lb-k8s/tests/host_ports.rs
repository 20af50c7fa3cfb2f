//! Host ports of pods become services of the node that the pods run on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use lb_core::{
    addr::{Family, FrontendKind},
    model::{Change, Model},
    name::{NodeName, ServiceName, SourceName},
    node::NodeFacts,
    service::{HostIps, ServiceType, TrafficPolicy},
};
use lb_k8s::{Instead, Manifests, Snapshot};

/// A node that follows manifests: source and model.
struct Node {
    manifests: Manifests,
    model: Model,
    /// Errors of the model, in order.
    errors: Vec<String>,
}

impl Node {
    fn new(manifests: &str) -> Self {
        let here = NodeName::new("here");
        let mut node = Self {
            manifests: Manifests::new(SourceName("manifests".into())).on_node(Some(here.clone())),
            model: Model::default(),
            errors: Vec::new(),
        };
        let ips = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
        let facts = NodeFacts { name: Some(here), ips, ..NodeFacts::default() };
        node.model.apply(Change::SetNode(facts)).unwrap();
        node.update(manifests);
        node
    }

    /// The changes of these manifests, in one word each.
    fn update(&mut self, manifests: &str) -> Vec<String> {
        let changes = self.manifests.update(Snapshot::parse("pods.yaml", manifests)).changes;
        assert!(self.manifests.report().rejected.is_none(), "{:?}", self.manifests.report());
        let told = changes.iter().filter_map(|change| match change {
            Change::UpsertService(service) => Some(format!("+{}", service.name.name())),
            Change::RemoveService(name) => Some(format!("-{}", name.name())),
            _ => None,
        });
        let told = told.collect();
        let errors = changes.into_iter().filter_map(|change| self.model.apply(change).err());
        self.errors = errors.map(|error| error.to_string()).collect();
        told
    }

    /// Who is behind each host port: the frontend and the backend.
    fn served(&self) -> BTreeMap<String, String> {
        let owners = self.model.owners().filter(|(_, owner)| owner.kind == FrontendKind::HostPort);
        let served = owners.map(|(addr, owner)| {
            let service = self.model.service(&owner.port.service).unwrap();
            let family = Family::of(addr.ip);
            let usable = self.model.selection(service, &service.ports[0], family, TrafficPolicy::Local).usable;
            let backends: Vec<String> = usable.iter().map(|usable| usable.addr.to_string()).collect();
            (addr.to_string(), backends.join(" "))
        });
        served.collect()
    }

    /// What was refused, by field.
    fn refused(&self) -> Vec<String> {
        let refused = self.manifests.report().refused.iter();
        refused.map(|refusal| format!("{}: {}", refusal.finding.field, refusal.finding.message)).collect()
    }
}

/// A pod of node `here` at 10.244.0.N, uid `uid-N`, with these ports.
fn pod(name: &str, number: u8, ports: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, uid: uid-{number}}}, spec: {{nodeName: here, \
         containers: [{{name: c, ports: [{ports}]}}]}}, status: {{phase: Running, podIP: 10.244.0.{number}, podIPs: \
         [{{ip: 10.244.0.{number}}}]}}}}\n"
    )
}

fn served(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(frontend, backend)| ((*frontend).to_owned(), (*backend).to_owned())).collect()
}

const PORT: &str = "{containerPort: 80, hostPort: 8080}";

#[test]
fn a_host_port_is_on_the_addresses_of_the_node_with_its_pod_behind_it() {
    let node = Node::new(&pod("web", 1, PORT));
    assert_eq!(
        node.served(),
        served(&[("192.0.2.1:8080/tcp", "10.244.0.1:80/tcp"), ("192.0.2.2:8080/tcp", "10.244.0.1:80/tcp")]),
        "the pod has no IPv6 address"
    );
    let service = node.manifests.services().next().unwrap();
    assert!(service.name.to_string().starts_with("default/web.host-port-8080-tcp."), "{}", service.name);
    assert_eq!((service.kind, service.host_ips), (ServiceType::HostPort, Some(HostIps::Every)));
    assert_eq!(node.manifests.service_origin(&service.name).unwrap().file.to_string(), "pods.yaml");
    assert_eq!((node.refused(), node.errors.len()), (vec![], 0));
}

#[test]
fn each_port_has_its_protocol_addresses_and_families() {
    let both = pod(
        "web",
        1,
        "{containerPort: 53, hostPort: 5353, protocol: UDP}, {containerPort: 80, hostPort: 8080, \
                   hostIP: 0.0.0.0}, {containerPort: 81, hostPort: 8081, hostIP: 192.0.2.2}, {containerPort: 82}, \
                   {containerPort: 83, hostPort: 8083, hostIP: '::'}",
    )
    .replace("podIPs: [", "podIPs: [{ip: 'fd00::1'}, ");
    let node = Node::new(&both);
    let everywhere = |port: &str, protocol: &str, target: &str| {
        [("192.0.2.1", "10.244.0.1"), ("192.0.2.2", "10.244.0.1"), ("[2001:db8::1]", "[fd00::1]")]
            .map(|(ip, pod)| (format!("{ip}:{port}/{protocol}"), format!("{pod}:{target}/{protocol}")))
    };
    let mut expected = BTreeMap::new();
    for (port, protocol, target) in [("5353", "udp", "53"), ("8080", "tcp", "80"), ("8083", "tcp", "83")] {
        expected.extend(everywhere(port, protocol, target));
    }
    expected.insert("192.0.2.2:8081/tcp".into(), "10.244.0.1:81/tcp".into());
    assert_eq!(node.served(), expected);
}

#[test]
fn pods_that_do_not_run_here_have_no_host_ports_here() {
    let web = pod("web", 1, PORT);
    for other in [
        web.replace("nodeName: here", "nodeName: there"),
        web.replace("nodeName: here", "nodeName: here, hostNetwork: true"),
        web.replace("phase: Running", "phase: Succeeded"),
        web.replace("phase: Running", "phase: Failed"),
        pod("web", 1, "{containerPort: 80}, {containerPort: 81, hostPort: 0}"),
        web.replace("podIP: 10.244.0.1, podIPs: [{ip: 10.244.0.1}]", "hostIP: 192.0.2.1"),
        web.replace("containers:", "initContainers:").replace("ports: [{c", "command: [x], ports: [{c"),
    ] {
        let node = Node::new(&other);
        assert_eq!((node.served(), node.manifests.services().count()), (BTreeMap::new(), 0), "{other}");
        assert_eq!(node.refused(), [""; 0], "{other}");
    }
    let sidecar =
        web.replace("containers: [{name: c,", "containers: [], initContainers: [{name: c, restartPolicy: Always,");
    assert_eq!(Node::new(&sidecar).served().len(), 2);
    let unplaced = web.replace("nodeName: here, ", "");
    assert_eq!(Node::new(&unplaced).served().len(), 2, "as an endpoint whose node is unknown");
}

#[test]
fn whoever_names_no_node_serves_no_host_ports_and_a_node_without_a_name_every_one() {
    let there = pod("web", 1, PORT).replace("nodeName: here", "nodeName: there");
    let upserts = |mut manifests: Manifests| {
        let changes = manifests.update(Snapshot::parse("pods.yaml", &there)).changes;
        changes.into_iter().filter(|change| matches!(change, Change::UpsertService(_))).count()
    };
    let manifests = || Manifests::new(SourceName("manifests".into()));
    assert_eq!((upserts(manifests()), upserts(manifests().on_node(None))), (0, 1));
}

/// Scenario 21 of the host ports of Cilium: TCP and UDP, a pod that ends, one that takes over, one that moves.
#[test]
fn a_pod_that_ends_makes_room_for_another_one() {
    let both = "{containerPort: 80, hostPort: 4444}, {containerPort: 80, hostPort: 4444, protocol: UDP}";
    let (first, second) = (pod("first", 1, both), pod("second", 2, both));
    let mut node = Node::new(&first);
    let of = |pod: u8, port: u16| {
        let frontends = ["tcp", "udp"].into_iter().flat_map(move |protocol| {
            let at = move |ip| (format!("192.0.2.{ip}:{port}/{protocol}"), format!("10.244.0.{pod}:80/{protocol}"));
            [1, 2].map(at)
        });
        frontends.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(node.served(), of(1, 4444));
    let ended = first.replace("phase: Running", "phase: Succeeded");
    node.update(&ended);
    assert_eq!(node.served(), BTreeMap::new());
    node.update(&(ended.clone() + &second));
    assert_eq!(node.served(), of(2, 4444));
    assert_eq!(node.update(&second), [""; 0], "the deletion of the first one has no effect");
    assert_eq!(node.served(), of(2, 4444));
    node.update(&second.replace("hostPort: 4444", "hostPort: 5555"));
    assert_eq!((node.served(), node.errors.len()), (of(2, 5555), 0));
}

/// The kind of cilium/cilium#48455: the replacement claims what the pod of the same name still has.
#[test]
fn a_pod_that_comes_again_under_its_name_takes_its_host_port_over_in_one_update() {
    let mut node = Node::new(&pod("web", 1, PORT));
    let told = node.update(&pod("web", 2, PORT));
    assert!(told[0].starts_with("-web.") && told[1].starts_with("+web."), "{told:?}");
    assert_ne!(told[0][1..], told[1][1..], "it is another pod");
    assert_eq!(node.served().values().collect::<Vec<_>>(), ["10.244.0.2:80/tcp"; 2]);
    assert_eq!(node.errors, [""; 0]);
    let told = node.update(&pod("web", 3, PORT).replace("uid-3", "uid-2"));
    assert_eq!((told.len(), node.errors.len()), (0, 0), "a pod that gets another address is the same service");
    assert_eq!(node.served().values().collect::<Vec<_>>(), ["10.244.0.3:80/tcp"; 2]);
}

#[test]
fn of_two_pods_that_claim_one_host_port_the_first_keeps_it_and_the_second_is_named() {
    let (second, first) = (pod("a", 2, PORT), pod("b", 1, PORT));
    let mut node = Node::new(&first);
    node.update(&(first.clone() + &second));
    assert!(node.served().values().all(|backend| backend == "10.244.0.1:80/tcp"), "{:?}", node.served());
    assert_eq!(node.manifests.report().refused[0].finding.object.to_string(), "Pod default/a");
    assert_eq!(
        node.refused(),
        [
            "spec.containers[0].ports[0].hostPort: host port 8080/tcp is that of Pod default/b, which had it first: give \
          one of them another number"
        ]
    );
    node.update(&second);
    assert!(node.served().values().all(|backend| backend == "10.244.0.2:80/tcp"), "{:?}", node.served());
    assert_eq!((node.refused(), node.errors.len()), (vec![], 0));
}

#[test]
fn after_a_restart_the_pod_that_was_created_first_has_the_host_port() {
    let created = |name: &str, number: u8, year: u16| {
        pod(name, number, PORT).replace("uid:", &format!("creationTimestamp: '{year}-01-01T00:00:00Z', uid:"))
    };
    for (pods, winner) in [
        (created("a", 1, 2026) + &created("b", 2, 2025), "10.244.0.2:80/tcp"),
        (created("a", 1, 2025) + &created("b", 2, 2026), "10.244.0.1:80/tcp"),
        (pod("a", 1, PORT) + &created("b", 2, 2026), "10.244.0.2:80/tcp"),
    ] {
        let node = Node::new(&pods);
        assert!(node.served().values().all(|backend| backend == winner), "{:?}", node.served());
        assert_eq!((node.served().len(), node.refused().len(), node.errors.len()), (2, 1, 0));
    }
}

#[test]
fn host_ports_of_one_number_meet_only_at_one_address() {
    let with = |name: &str, number: u8, host_ip: &str| {
        pod(name, number, &format!("{{containerPort: 80, hostPort: 8080, hostIP: '{host_ip}'}}"))
    };
    let only_v6 = |name: &str| {
        with(name, 7, "")
            .replace("10.244.0.7", "fd00::7")
            .replace("podIP: fd00::7", "podIP: 'fd00::7'")
            .replace("{ip: fd00::7}", "{ip: 'fd00::7'}")
    };
    for (pods, refused) in [
        (with("a", 1, "192.0.2.1") + &with("b", 2, "192.0.2.2"), 0),
        (with("a", 1, "192.0.2.1") + &with("b", 2, "192.0.2.1"), 1),
        (with("a", 1, "192.0.2.1") + &with("b", 2, ""), 1),
        (with("a", 1, "") + &with("b", 2, "192.0.2.1"), 1),
        (with("a", 1, "") + &only_v6("b"), 0),
        (with("a", 1, "192.0.2.1") + &only_v6("b"), 0),
    ] {
        let node = Node::new(&pods);
        assert_eq!(
            (node.refused().len(), node.errors.len()),
            (refused, 0),
            "{pods} {:?} {:?}",
            node.refused(),
            node.errors
        );
    }
}

#[test]
fn a_terminating_pod_keeps_its_host_port_until_it_ends() {
    let web = pod("web", 1, PORT);
    let deleted = web.replace("uid: uid-1", "uid: uid-1, deletionTimestamp: '2026-01-01T00:00:00Z'");
    let mut node = Node::new(&web);
    node.update(&(deleted.clone() + &pod("other", 2, PORT)));
    assert!(node.served().values().all(|backend| backend == "10.244.0.1:80/tcp"), "{:?}", node.served());
    let name = node.manifests.services().find(|service| service.name.name().starts_with("web.")).unwrap().name.clone();
    let slice = node.manifests.endpoint_slices().find(|slice| slice.service == name).unwrap();
    let conditions = slice.endpoints[0].conditions;
    assert_eq!((conditions.ready, conditions.serving, conditions.terminating), (false, true, true));
    node.update(&(deleted.replace("phase: Running", "phase: Failed") + &pod("other", 2, PORT)));
    assert!(node.served().values().all(|backend| backend == "10.244.0.2:80/tcp"), "{:?}", node.served());
}

#[test]
fn a_node_port_comes_before_a_host_port_of_its_number_and_both_are_named() {
    let web =
        pod("web", 1, "{containerPort: 80, hostPort: 30080}, {containerPort: 80, hostPort: 30080, protocol: UDP}");
    let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: zoo}, spec: {type: NodePort, clusterIP: \
                   10.96.0.9, ports: [{port: 80, nodePort: 30080}]}}\n";
    let mut node = Node::new(&web);
    assert_eq!(node.served().len(), 4);
    node.update(&(web.clone() + service));
    let owner = |node: &Node| {
        let addr = lb_core::addr::FrontendAddr::new("192.0.2.1".parse().unwrap(), 30_080, lb_core::addr::Protocol::Tcp);
        node.model.owner(&addr).map(|owner| owner.kind)
    };
    assert_eq!((owner(&node), node.served().len()), (Some(FrontendKind::NodePort), 2), "UDP is another port");
    assert_eq!(node.errors, [""; 0]);
    let refusal = &node.manifests.report().refused[0];
    assert_eq!((refusal.finding.object.to_string(), refusal.instead), ("Pod default/web".to_owned(), Instead::Nothing));
    assert_eq!(
        node.refused(),
        [
            "spec.containers[0].ports[0].hostPort: host port 30080/tcp is also the node port of Service default/zoo, which \
          keeps it: give one of them another number"
        ]
    );
    // The service lets go of the number before the pod gets it, although its name comes later.
    node.update(&(web.clone() + &service.replace("30080", "30081")));
    assert_eq!((owner(&node), node.refused()), (Some(FrontendKind::HostPort), vec![]));
    assert_eq!(node.errors, [""; 0]);
    node.update(&(web.clone() + service));
    node.update(&web);
    assert_eq!((node.served().len(), node.refused()), (4, vec![]));
}

#[test]
fn a_host_port_that_cannot_be_served_is_named_and_the_others_are_served() {
    let node = Node::new(&pod(
        "web",
        1,
        "{containerPort: 80, hostPort: 1, hostIP: 127.0.0.1}, {containerPort: 80, hostPort: 2, hostIP: '::1'}, \
         {containerPort: 80, hostPort: 3, hostIP: eth0}, {containerPort: 80, hostPort: 4, hostIP: '2001:db8::1'}, \
         {containerPort: 80, hostPort: 70000}, {containerPort: 80, hostPort: 8080}, {containerPort: 81, hostPort: 8080}",
    ));
    assert_eq!(node.served().into_keys().collect::<Vec<_>>(), ["192.0.2.1:8080/tcp", "192.0.2.2:8080/tcp"]);
    let loopback = "is a loopback address: host ports are served only where others can reach them";
    assert_eq!(
        node.refused(),
        [
            format!("spec.containers[0].ports[0].hostIP: 127.0.0.1 {loopback}"),
            format!("spec.containers[0].ports[1].hostIP: ::1 {loopback}"),
            "spec.containers[0].ports[2].hostIP: \"eth0\" is not an IP address".to_owned(),
            "spec.containers[0].ports[3].hostIP: the pod has no IPv6 address".to_owned(),
            "spec.containers[0].ports[4].hostPort: 70000 is not a port, expected 1 to 65535".to_owned(),
            "spec.containers[0].ports[6].hostPort: 8080/tcp appears twice".to_owned(),
        ]
    );
}

#[test]
fn a_pod_that_is_refused_keeps_its_host_port_and_one_without_host_ports_is_nobodys_business() {
    let mut node = Node::new(&pod("web", 1, PORT));
    node.update(&pod("web", 1, "{containerPort: 80, hostPort: 8080}, {containerPort: 0}"));
    assert_eq!(node.served().len(), 2);
    let refusal = &node.manifests.report().refused[0];
    assert_eq!((&*refusal.finding.object.name, refusal.instead), ("web", Instead::LastGood));
    assert_eq!(node.refused().len(), 1);
    node.update(&pod("web", 1, "{containerPort: 0}"));
    assert_eq!(node.refused(), [""; 0]);
    node.update(&pod("web", 1, "{containerPort: x, hostPort: 8080}"));
    assert_eq!(node.refused().len(), 1, "a type that does not fit is told as well");
}

#[test]
fn a_pod_whose_host_ports_are_served_or_refused_is_not_skipped() {
    let ports = "{containerPort: 80, hostPort: 8080}";
    let web = pod("web", 1, ports);
    let skipped = |node: &Node| -> Vec<String> {
        node.manifests.report().skipped.iter().map(|finding| finding.object.name.to_string()).collect()
    };
    let mut node = Node::new(&web);
    assert_eq!((node.served().len(), skipped(&node)), (2, vec![]));
    node.update(&(web.clone() + &pod("db", 2, "{containerPort: 80}")));
    assert_eq!(skipped(&node), ["db"], "one without host ports");
    let bad = pod("bad", 3, "{containerPort: 80, hostPort: 99999}");
    node.update(&(web.clone() + &bad));
    assert_eq!((node.refused().len(), skipped(&node)), (1, vec![]));

    let mut nobody = Manifests::new(SourceName("manifests".into()));
    nobody.update(Snapshot::parse("pods.yaml", &(web + &bad)));
    let report = nobody.report();
    let says = "no pods are started from manifests: their endpoints have to stand in an EndpointSlice";
    let told: Vec<&str> = report.skipped.iter().map(|finding| &*finding.message).collect();
    assert_eq!(told, [says, says], "nobody serves host ports there");
}

#[test]
fn names_of_host_ports_are_nobody_elses() {
    let node = Node::new(&pod("web", 1, PORT));
    let service = node.manifests.services().next().unwrap();
    assert!(lb_k8s::write::service(service).unwrap_err().to_string().contains("manifest of a pod"));
    let named = format!("{{apiVersion: v1, kind: Service, metadata: {{name: {}}}, spec: {{}}}}", service.name.name());
    assert!(!Snapshot::parse("x.yaml", &named).unwrap().report().refused.is_empty());
    assert_eq!(service.name, ServiceName::new("default", "web.host-port-8080-tcp.5a12f37b"), "it stays so for ever");
}
