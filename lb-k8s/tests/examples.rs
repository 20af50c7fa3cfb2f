//! The manifests of the examples say what they are meant to say.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::PathBuf, time::Duration};

use lb_core::name::{NodeName, ServiceName};
use lb_ipam::{Allocator, Edit, MemoryLedger, Settings, Status, Timestamp};
use lb_k8s::{
    Snapshot,
    lab::{self, PlacedPod},
};

fn read(use_case: &str) -> Snapshot {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../lb-cli/manifests");
    let snapshot = Snapshot::read(&[root.join(use_case)]).unwrap();
    assert!(snapshot.allocating_report().is_clean(), "{:?}", snapshot.allocating_report());
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

/// What an allocator makes of the manifests of a use case: each service with its addresses, or why it has none.
fn allocated(use_case: &str) -> Vec<String> {
    let snapshot = read(&format!("lb-ipam/{use_case}"));
    let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
    snapshot.pools().for_each(|pool| allocator.handle_edit(Edit::UpsertPool(pool)));
    snapshot.requests().for_each(|request| allocator.handle_edit(Edit::UpsertService(request.clone())));
    let told = |(service, status): (ServiceName, Status)| {
        let addresses: Vec<_> = status.addresses.iter().map(ToString::to_string).collect();
        let reason = status.condition.map(|condition| condition.reason.into_owned()).unwrap_or_default();
        format!("{} {}", service.name(), if addresses.is_empty() { reason } else { addresses.join(",") })
    };
    allocator.reconcile(Timestamp::from_secs(1)).writes.into_iter().map(told).collect()
}

#[test]
fn use_cases_of_pools_give_what_their_comments_say() {
    assert_eq!(allocated("blue-pool"), ["echo-1 20.0.20.100"]);
    let dual_stack = "httpd-dual-stack 20.0.10.2,fd00:20:0:10::";
    assert_eq!(allocated("basic"), ["apache 20.0.10.0", "httpd 20.0.10.1", dual_stack]);
    assert_eq!(
        allocated("important-pool"),
        ["httpd 20.0.51.0", "payments 20.0.50.0", "pretender pool_selector_mismatch"]
    );
    assert_eq!(
        allocated("start-stop-range"),
        ["httpd-1 20.0.30.10", "httpd-2 20.0.30.11", "httpd-3 20.0.30.12", "httpd-4 out_of_ips"]
    );
    assert_eq!(allocated("no-first-last"), ["httpd-1 20.0.40.1", "httpd-2 20.0.40.2", "httpd-3 out_of_ips"]);
}

#[test]
fn the_blue_pool_has_a_hundred_addresses() {
    let pool = read("lb-ipam/blue-pool").pools().next().unwrap();
    assert_eq!((pool.name.as_str(), pool.blocks[0].to_string()), ("blue-pool", "20.0.20.100-20.0.20.199".into()));
}
