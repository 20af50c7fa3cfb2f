//! The manifests of the examples say what they are meant to say.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::PathBuf, time::Duration};

use lb_core::NodeName;
use lb_k8s::{
    Snapshot,
    lab::{self, PlacedPod},
};

fn read(use_case: &str) -> Snapshot {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/manifests");
    let snapshot = Snapshot::read(&[root.join(use_case)]).unwrap();
    assert!(snapshot.report().is_clean(), "{:?}", snapshot.report());
    snapshot
}

#[test]
fn every_use_case_has_servers_a_client_and_a_dual_stack_service() {
    for use_case in ["iptables-without-cilium", "kube-proxy-replacement", "session-affinity"] {
        let snapshot = read(use_case);
        let pods = lab::pods(snapshot.workloads()).unwrap();
        let names = |is_server| {
            let pods = pods.iter().filter(move |pod| pod.is_server() == is_server);
            pods.map(|pod| pod.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(names(true), ["httpd-0", "httpd-1", "httpd-2", "httpd-3"]);
        assert_eq!(names(false), ["netshoot-client"]);
        let service = snapshot.services().next().unwrap();
        assert_eq!((service.cluster_ips.len(), service.ports[0].port), (2, 80));
        assert_eq!(service.affinity.is_some(), use_case == "session-affinity");

        let placed = pods.into_iter().zip(1..).map(|(pod, number)| {
            let ips = vec![[10, 244, 0, number].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)].into()];
            PlacedPod { pod, node: NodeName::new("node-1"), ips }
        });
        let slices = lab::endpoint_slices(snapshot.templates(), &placed.collect::<Vec<_>>());
        let names: Vec<_> = slices.iter().map(|slice| slice.name.to_string()).collect();
        assert_eq!(names, ["default/httpd-ipv4", "default/httpd-ipv6"]);
        assert!(slices.iter().all(|slice| slice.ports[0].port == 80 && slice.endpoints.len() == 4));
    }
}

#[test]
fn affinity_lasts_a_minute() {
    let snapshot = read("session-affinity");
    let affinity = snapshot.services().next().unwrap().affinity.unwrap();
    assert_eq!(affinity.timeout, Duration::from_secs(60));
}
