//! What the status of services and pools says, and that it is read back as it was written.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use lb_ipam::{
    Allocator, Block, Condition, Counts, Edit, MemoryLedger, Pool, PoolName, PoolProblem, PoolStatus, PoolWarning,
    Request, RequestedAddress, Settings, Status, Timestamp,
};
use lb_k8s::{Snapshot, limits, write};
use serde_json::{Value, json};

const SINCE: Timestamp = Timestamp::from_millis(1_795_272_540_999);
const TIME: &str = "2026-11-21T14:49:00Z";

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({ "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": TIME })
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A service with this status, read again.
fn read_back(status: &Status) -> Status {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
        "status": write::service_status(status, SINCE),
    });
    let snapshot = Snapshot::parse("web.json", &service.to_string()).unwrap();
    assert!(snapshot.report().is_clean(), "{:?}", snapshot.report());
    snapshot.requests().next().unwrap().published.clone()
}

#[test]
fn services_say_whether_they_are_satisfied() {
    let status = |satisfied: bool, reason: &str, message: &str, addresses: &[&str]| Status {
        addresses: ips(addresses),
        condition: Some(Condition { satisfied, reason: reason.to_owned().into(), message: message.into() }),
    };
    for (status, conditions, ingress) in [
        (Status::default(), json!([]), json!([])),
        (
            status(true, "satisfied", "", &["10.0.0.5", "2001:db8::5"]),
            json!([condition("cilium.io/IPAMRequestSatisfied", "True", "satisfied", "")]),
            json!([{ "ip": "10.0.0.5", "ipMode": "VIP" }, { "ip": "2001:db8::5", "ipMode": "VIP" }]),
        ),
        (
            status(false, "no_pool", "no \"pool\"", &[]),
            json!([condition("cilium.io/IPAMRequestSatisfied", "False", "no_pool", "no \"pool\"")]),
            json!([]),
        ),
    ] {
        let written = serde_json::to_value(write::service_status(&status, SINCE)).unwrap();
        assert_eq!(written, json!({ "loadBalancer": { "ingress": ingress }, "conditions": conditions }));
        assert_eq!(read_back(&status), status);
    }
}

#[test]
fn pools_count_their_addresses() {
    let counts = Counts {
        total: 1 << 100,
        used: 3,
        free: 200,
        quarantined: 10,
        draining: 7,
        conflict: 1,
        reserved: 2,
        available: 210,
    };
    let status = PoolStatus {
        name: PoolName::new("a"),
        problem: None,
        warnings: vec![],
        counts,
        ipv4: counts,
        ipv6: Counts::default(),
    };
    assert_eq!(
        serde_json::to_value(write::pool_status(&status, SINCE)).unwrap(),
        json!({ "conditions": [
            condition("cilium.io/PoolConflict", "False", "resolved", ""),
            condition("cilium.io/IPsTotal", "Unknown", "noreason", "1267650600228229401496703205376"),
            condition("cilium.io/IPsAvailable", "Unknown", "noreason", "210"),
            condition("cilium.io/IPsUsed", "Unknown", "noreason", "3"),
        ]})
    );
}

#[test]
fn pools_say_what_is_wrong() {
    let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
    for (pool, created) in [
        (Pool::new("older", &["10.0.0.0/24"]), 1),
        (Pool::new("younger", &["10.0.0.64/28"]), 2),
        (Pool::new("broken", &["10.1.0.9-10.1.0.1"]), 3),
        (Pool::new("empty", &[]), 4),
    ] {
        allocator.handle_edit(Edit::UpsertPool(Pool { created: Timestamp::from_secs(created), ..pool }));
    }
    let _ = allocator.reconcile(SINCE);
    let first_and_last = |name: &str| {
        let status = allocator.pool(&PoolName::new(name)).unwrap();
        let conditions = write::pool_status(&status, SINCE).conditions;
        let said = |condition: &write::Condition| {
            format!("{} {} {}: {}", condition.kind, condition.status, condition.reason, condition.message)
        };
        (said(&conditions[0]), conditions.get(4).map(said))
    };
    let fine = "cilium.io/PoolConflict False resolved: ";
    assert_eq!(first_and_last("older"), (fine.into(), None));
    let (conflict, more) = first_and_last("younger");
    let overlap = "cilium.io/PoolConflict True cidr_overlap: Pool conflicts since range 10.0.0.64-10.0.0.79 overlaps range \
                   10.0.0.0-10.0.0.255 of pool `older`";
    assert!(conflict.starts_with(overlap) && more.is_none(), "{conflict}");
    let (conflict, invalid) = first_and_last("broken");
    assert_eq!(conflict, fine);
    assert_eq!(
        invalid.unwrap(),
        "lb/PoolInvalid True invalid: block `10.1.0.9-10.1.0.1` starts after it stops; swap the two addresses"
    );
    let (_, warning) = first_and_last("empty");
    assert_eq!(warning.unwrap(), "lb/PoolWarning True warning: has no block and gives nothing; add one");
}

#[test]
fn warnings_stand_beside_each_other() {
    let host_bits =
        PoolWarning::HostBits { block: Block::parse("10.0.0.1/24"), network: "10.0.0.0/24".parse().unwrap() };
    let status = PoolStatus {
        name: PoolName::new("a"),
        problem: Some(PoolProblem::TooManyBlocks { found: 5000 }),
        warnings: vec![host_bits, PoolWarning::QuotaZero],
        counts: Counts::default(),
        ipv4: Counts::default(),
        ipv6: Counts::default(),
    };
    let conditions = write::pool_status(&status, SINCE).conditions;
    let kinds: Vec<_> = conditions.iter().map(|condition| condition.kind).collect();
    assert_eq!(kinds[4..], ["lb/PoolInvalid", "lb/PoolWarning"]);
    assert_eq!(conditions[5].message.split("; ").count(), 4, "{}", conditions[5].message);
}

#[test]
fn messages_are_cut_where_kubernetes_would_refuse_them() {
    let status = |bytes: usize| Status {
        addresses: vec![],
        condition: Some(Condition { satisfied: false, reason: "no_pool".into(), message: "é".repeat(bytes / 2) }),
    };
    let at = status(limits::MAX_MESSAGE_BYTES);
    assert_eq!(read_back(&at), at);
    let above = read_back(&status(limits::MAX_MESSAGE_BYTES + 2));
    assert_eq!(above, at);
}

#[test]
fn times_have_whole_seconds_and_an_end() {
    let time = |millis| {
        let condition = Condition { satisfied: true, reason: "satisfied".into(), message: String::new() };
        let status = Status { addresses: vec![], condition: Some(condition) };
        let status = write::service_status(&status, Timestamp::from_millis(millis));
        status.conditions[0].last_transition_time.clone()
    };
    assert_eq!(time(0), "1970-01-01T00:00:00Z");
    assert_eq!(time(1_795_272_540_999), TIME);
    assert!(time(u64::MAX).starts_with("9999-12-30T"), "{}", time(u64::MAX));
}

/// What is allocated, written, and read again at a restart needs no writing.
#[test]
fn what_was_written_is_not_written_again() {
    let reconcile = |requests: &[Request], ledger: MemoryLedger| {
        let mut allocator = Allocator::new(Settings::default(), ledger);
        allocator.handle_edit(Edit::UpsertPool(Pool::new("a", &["10.0.0.0/30"])));
        requests.iter().for_each(|request| allocator.handle_edit(Edit::UpsertService(request.clone())));
        let outcome = allocator.reconcile(SINCE);
        (outcome.writes, allocator.into_ledger())
    };
    let satisfied = Request::new("default", "web");
    let mut garbage = Request::new("default", "x");
    garbage.addresses = RequestedAddress::parse_list("10.0.0.2,garbage");
    let mut requests = [satisfied, garbage];
    let (writes, ledger) = reconcile(&requests, MemoryLedger::default());
    assert_eq!(writes.len(), 2);
    for (request, (_, status)) in requests.iter_mut().zip(&writes) {
        request.published = read_back(status);
        assert_eq!(&request.published, status);
    }
    assert_eq!(reconcile(&requests, ledger).0, []);
}
