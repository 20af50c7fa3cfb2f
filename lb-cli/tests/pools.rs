//! Addresses out of pools, through the real program on the memory datapath: no privilege needed.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not what it should be")]

mod common;
#[path = "common/node.rs"]
mod node;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::{Output, Stdio},
};

use common::{end, lb, service as cluster_service, text};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use node::Node;
use serde_json::Value;

const LEDGER: &str = "state/ledger.json";
const DRAFT: &str = "state/ledger.json.new";

/// A pool in Cilium's shape.
fn pool(name: &str, start: &str, stop: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2alpha1\nkind: CiliumLoadBalancerIPPool\nmetadata: {{name: {name}}}\n\
         spec: {{blocks: [{{start: {start}, stop: {stop}}}]}}\n"
    )
}

/// A service that wants an address.
fn service(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{type: LoadBalancer, ports: [{{port: 80}}]}}\n{extra}"
    )
}

fn blue() -> String {
    pool("blue", "20.0.20.100", "20.0.20.199")
}

/// What is listed of each service in `field`, without the namespace.
fn listed(node: &Node, field: &str) -> BTreeMap<String, Value> {
    by_name(&node.json(&["service", "list"]), field)
}

fn by_name(services: &Value, field: &str) -> BTreeMap<String, Value> {
    let name = |service: &Value| service["name"].as_str().unwrap().trim_start_matches("default/").to_owned();
    services.as_array().unwrap().iter().map(|service| (name(service), service[field].clone())).collect()
}

/// The condition of this type.
fn of_type<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["conditions"].as_array().unwrap();
    all.iter().find(|it| it["type"] == kind).unwrap_or_else(|| panic!("no {kind} in {object:#}"))
}

/// Waits until these are the addresses of the services.
fn await_addresses(node: &Node, expected: &[(&str, &[&str])]) {
    let expected: BTreeMap<String, Value> =
        expected.iter().map(|(name, ips)| ((*name).to_owned(), Value::from(ips.to_vec()))).collect();
    node.json_when(&["service", "list"], |services| by_name(services, "external_ips") == expected);
}

/// Waits until this is the first address of the service.
fn await_address(node: &Node, service: &str, expected: &str) {
    let address = |services: &Value| by_name(services, "external_ips").get(service).map(|ips| ips[0].clone());
    node.json_when(&["service", "list"], |services| address(services) == Some(expected.into()));
}

/// The words of the line that begins with `first`.
fn words(table: &Output, first: &str) -> Vec<String> {
    let table = text(&table.stdout);
    let line = table.lines().find(|line| line.starts_with(first)).unwrap_or_else(|| panic!("no {first} in {table}"));
    line.split_whitespace().map(ToOwned::to_owned).collect()
}

#[test]
fn a_service_gets_the_first_address_and_it_is_served() {
    let node = Node::running(&[("pool.yaml", &blue()), ("echo.yaml", &service("echo-1", ""))]);
    let services = node.json(&["service", "list"]);
    assert_eq!(services[0]["external_ips"], Value::from(vec!["20.0.20.100"]));
    assert_eq!(
        (&services[0]["type"], &services[0]["ipam"]["granted"][0]["pool"]),
        (&"LoadBalancer".into(), &"blue".into())
    );
    let frontend = &services[0]["frontends"][0];
    assert_eq!((&frontend["ip"], &frontend["status"]), (&"20.0.20.100".into(), &"active".into()));
    let line = words(&node.ask(&["service", "list"]), "default/echo-1");
    assert_eq!(line[1..5], ["LoadBalancer", "<none>", "20.0.20.100", "80/TCP"]);
    let line = words(&node.ask(&["pool", "list"]), "blue");
    assert_eq!(line[1..6], ["no", "no", "100", "1", "99"]);
    let line = words(&node.ask(&["status"]), "addresses");
    assert_eq!(line[1..], ["1", "pool,", "1", "held"]);
    let explained = node.ask(&["explain", "tcp", "198.51.100.7:4000", "20.0.20.100:80"]);
    assert!(text(&explained.stdout).contains("default/echo-1"), "{}", text(&explained.stdout));
}

#[test]
fn a_hundred_are_available_before_the_first_is_given() {
    let node = Node::running(&[("pool.yaml", &blue())]);
    assert_eq!(words(&node.ask(&["pool", "list"]), "blue")[1..6], ["no", "no", "100", "0", "100"]);
    let pools = node.json(&["pool", "list"]);
    assert_eq!(pools[0]["counts"]["available"], 100);
}

#[test]
fn who_finds_a_pool_full_waits_with_the_reason_and_is_next() {
    let small = pool("small", "20.0.20.100", "20.0.20.100");
    let node = Node::running(&[("pool.yaml", &small), ("a.yaml", &service("a", "")), ("b.yaml", &service("b", ""))]);
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &[])]);
    let line = words(&node.ask(&["service", "list"]), "default/b");
    assert_eq!(line[3], "<pending>");
    let services = node.json(&["service", "list", "b"]);
    assert_eq!(
        (&services[0]["ipam"]["reason"], &services[0]["ipam"]["satisfied"]),
        (&"out_of_ips".into(), &false.into())
    );
    let condition = of_type(&services[0], "Unsatisfied");
    assert!(condition["message"].as_str().unwrap().starts_with("out_of_ips: "), "{condition}");
    let status = node.json(&["status"]);
    assert_eq!(status["addresses"]["unsatisfied"], 1);
    let message = &of_type(&status, "Unsatisfied")["message"];
    assert_eq!(message, "services lack addresses: default/b (out_of_ips); see `lb service list`");
    fs::remove_file(node.path("manifests/a.yaml")).unwrap();
    await_addresses(&node, &[("b", &["20.0.20.100"])]);
    assert_eq!(node.json(&["status"])["addresses"]["unsatisfied"], 0);
}

const NO_POOL: &str = "no IPv4 address: there is no pool; create one";

/// The reason in `ipam`, the condition and the status, and that nothing is held.
fn assert_without_pool(node: &Node, services: &[&str]) {
    let status = node.json_when(&["status"], |status| status["addresses"]["unsatisfied"] == services.len());
    assert_eq!((&status["addresses"]["pools"], &status["addresses"]["held"]), (&0.into(), &0.into()));
    let named: Vec<String> = services.iter().map(|name| format!("default/{name} (no_pool)")).collect();
    let message = format!("services lack addresses: {}; see `lb service list`", named.join(", "));
    assert_eq!(of_type(&status, "Unsatisfied")["message"], message);
    let line = words(&node.ask(&["status"]), "addresses").join(" ");
    assert!(line.ends_with("without an address"), "{line}");
    for name in services {
        let service = &node.json(&["service", "list", name])[0];
        assert_eq!((&service["ipam"]["reason"], &service["ipam"]["message"]), (&"no_pool".into(), &NO_POOL.into()));
        assert_eq!(of_type(service, "Unsatisfied")["message"], format!("no_pool: {NO_POOL}"));
    }
}

/// What the agent wrote to its log by now.
fn logged(node: &Node) -> String {
    fs::read_to_string(node.path("log")).unwrap()
}

fn start_logging(node: &mut Node) {
    let mut agent = node.agent();
    let log = File::options().create(true).append(true).open(node.path("log")).unwrap();
    node.start_with(agent.stderr(log));
}

#[test]
fn the_last_pool_takes_no_address_away_without_a_word() {
    let files = [("pool.yaml", &*blue()), ("a.yaml", &service("a", "")), ("b.yaml", &service("b", ""))];
    let mut node = Node::new(&files);
    start_logging(&mut node);
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &["20.0.20.101"])]);
    let plan = node.ask(&["pool", "plan", "--remove", "blue"]);
    let row = words(&plan, "default/a").join(" ");
    assert_eq!(row, format!("default/a 20.0.20.100 <none> {NO_POOL}"));
    fs::remove_file(node.path("manifests/pool.yaml")).unwrap();
    await_addresses(&node, &[("a", &[]), ("b", &[])]);
    assert_without_pool(&node, &["a", "b"]);
    let lost = |name: &str, ip: &str| {
        let line = |line: &&str| line.contains("a service lost its addresses") && line.contains(name);
        let log = logged(&node);
        let line = log.lines().find(line).unwrap_or_else(|| panic!("no loss of {name} in {log}"));
        assert!(line.contains("WARN") && line.contains(ip) && line.contains(NO_POOL), "{line}");
    };
    lost("default/a", "20.0.20.100");
    lost("default/b", "20.0.20.101");
    let explained = text(&node.ask(&["pool", "explain", "20.0.20.100"]).stdout);
    assert!(explained.contains("is in no pool") && explained.contains("default/a"), "{explained}");
    // The same after a restart, and if the pool goes while no agent is there.
    node.stop(Signal::SIGTERM);
    node.start();
    assert_without_pool(&node, &["a", "b"]);
    node.put("pool.yaml", &blue());
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &["20.0.20.101"])]);
    node.stop(Signal::SIGTERM);
    fs::remove_file(node.path("manifests/pool.yaml")).unwrap();
    fs::write(node.path("log"), "").unwrap();
    start_logging(&mut node);
    assert_without_pool(&node, &["a", "b"]);
    let log = logged(&node);
    assert_eq!(log.matches("a service lost its addresses").count(), 2, "{log}");
    assert!(log.contains("20.0.20.100") && log.contains("20.0.20.101"), "{log}");
}

/// None of the manifests says when it was created.
#[test]
fn who_asks_first_is_served_first_whatever_the_names_are() {
    let one = pool("one", "20.0.20.1", "20.0.20.1");
    for restarts in [false, true] {
        let mut node = Node::running(&[("pool.yaml", &one), ("zz.yaml", &service("zz", ""))]);
        for name in ["yy", "mm", "aa"] {
            node.put(&format!("{name}.yaml"), &service(name, ""));
            node.json_when(&["service", "list"], |services| {
                by_name(services, "ipam").get(name).is_some_and(|ipam| ipam["reason"] == "out_of_ips")
            });
        }
        for (gone, next) in [("zz", "yy"), ("yy", "mm"), ("mm", "aa")] {
            if restarts {
                node.stop(Signal::SIGKILL);
                node.start();
            }
            fs::remove_file(node.path(&format!("manifests/{gone}.yaml"))).unwrap();
            await_address(&node, next, "20.0.20.1");
        }
    }
}

/// The status of a manifest is edited while the service has an address from a pool.
#[test]
fn an_address_from_a_pool_that_a_status_replaces_is_told() {
    let node = Node::running(&[("pool.yaml", &blue()), ("a.yaml", &service("a", ""))]);
    await_addresses(&node, &[("a", &["20.0.20.100"])]);
    node.put("a.yaml", &service("a", "status: {loadBalancer: {ingress: [{ip: 203.0.113.5}]}}\n"));
    await_addresses(&node, &[("a", &["203.0.113.5"])]);
    let condition = of_type(&node.json(&["service", "list"])[0], "AddressReplaced")["message"].clone();
    assert!(condition.as_str().unwrap().contains("in place of 20.0.20.100 from a pool"), "{condition}");
    node.put("a.yaml", &service("a", ""));
    await_addresses(&node, &[("a", &["20.0.20.100"])]);
    assert!(!node.json(&["service", "list"])[0]["conditions"].to_string().contains("AddressReplaced"));
}

#[test]
fn restarts_leave_every_service_where_it_was() {
    let node = Node::running(&[("pool.yaml", &blue()), ("a.yaml", &service("a", ""))]);
    await_addresses(&node, &[("a", &["20.0.20.100"])]);
    node.put("b.yaml", &service("b", ""));
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &["20.0.20.101"])]);
    fs::remove_file(node.path("manifests/a.yaml")).unwrap();
    let expected: [(&str, &[&str]); 1] = [("b", &["20.0.20.101"])];
    await_addresses(&node, &expected);
    let mut node = node;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        node.stop(signal);
        let before = fs::read(node.path(LEDGER)).unwrap();
        node.start();
        await_addresses(&node, &expected);
        assert_eq!(fs::read(node.path(LEDGER)).unwrap(), before, "a restart changes no entry");
    }
    // It was away for a moment and is remembered.
    node.put("a.yaml", &service("a", ""));
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &["20.0.20.101"])]);
}

#[test]
fn an_agent_that_is_killed_while_services_come_never_moves_one_that_was_seen() {
    let mut node = Node::running(&[("pool.yaml", &blue())]);
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    for round in 0..12 {
        for n in 0..4 {
            node.put(&format!("{round}-{n}.yaml"), &service(&format!("s-{round:02}-{n}"), ""));
            // Between two of them, or between the ledger and the datapath, or later.
            if n == round % 4 {
                seen.extend(
                    listed(&node, "external_ips")
                        .into_iter()
                        .filter(|(_, ips)| *ips != Value::from(Vec::<Value>::new())),
                );
                node.stop(Signal::SIGKILL);
                node.start();
            }
        }
        let now = listed(&node, "external_ips");
        for (name, ips) in &seen {
            assert_eq!(now.get(name), Some(ips), "{name} in round {round}");
        }
        let mut addresses: Vec<String> = now.values().filter_map(|ips| Some(ips[0].as_str()?.to_owned())).collect();
        let count = addresses.len();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), count, "an address with two holders in round {round}");
    }
    node.json_when(&["pool", "list"], |pools| pools[0]["counts"]["used"] == 48);
    assert!(seen.len() > 12, "the test saw {} services", seen.len());
}

/// A file system as small as it gets, where the agent keeps its state.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=16k")).unwrap();
        Self(path)
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::create(self.0.join("fill")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn clear(&self) {
        fs::remove_file(self.0.join("fill")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The agent may hold it for a moment.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
#[ignore = "needs root: mounts a small file system"]
fn a_full_disk_costs_nobody_an_address_and_nothing_unwritten_is_served() {
    let mut node = Node::new(&[("pool.yaml", &blue()), ("a.yaml", &service("a", ""))]);
    let disk = SmallDisk::at(node.path("state"));
    node.start();
    await_addresses(&node, &[("a", &["20.0.20.100"])]);
    disk.fill();
    node.put("b.yaml", &service("b", ""));
    let problem = |status: &Value| {
        let all = status["conditions"].as_array().unwrap().iter();
        all.filter(|it| it["type"] == "LedgerNotWritten").map(|it| it["message"].to_string()).collect::<String>()
    };
    let status = node.json_when(&["status"], |status| !problem(status).is_empty());
    assert!(problem(&status).contains("No space left on device"), "{status:#}");
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &[])]);
    // Nobody is told of an address that is not served.
    let ipam = listed(&node, "ipam");
    assert_eq!((&ipam["a"]["satisfied"], &ipam["b"]["reason"]), (&true.into(), &"ledger_not_written".into()));
    assert_eq!(ipam["b"]["granted"].as_array().unwrap().len(), 0);
    node.stop(Signal::SIGKILL);
    node.start();
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &[])]);
    disk.clear();
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &["20.0.20.101"])]);
    node.json_when(&["status"], |status| problem(status).is_empty());
}

#[test]
fn while_the_ledger_cannot_be_written_addresses_are_let_go_of_and_none_is_given() {
    let mut node = Node::running(&[
        ("pool.yaml", &pool("two", "20.0.20.100", "20.0.20.101")),
        ("a.yaml", &service("a", "")),
        ("b.yaml", &service("b", "")),
    ]);
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &["20.0.20.101"])]);
    fs::create_dir(node.path(DRAFT)).unwrap();
    fs::remove_file(node.path("manifests/a.yaml")).unwrap();
    node.put("c.yaml", &service("c", ""));
    node.put("b.yaml", &service("b", "").replace("type: LoadBalancer", "clusterIP: 10.96.0.9"));
    await_addresses(&node, &[("b", &[]), ("c", &[])]);
    let written = text(&fs::read(node.path(LEDGER)).unwrap());
    assert!(
        written.contains("default/a") && written.contains("default/b") && !written.contains("default/c"),
        "{written}"
    );
    // Whoever comes next finds what was written, on a disk that is still full.
    node.put("a.yaml", &service("a", ""));
    node.stop(Signal::SIGKILL);
    node.start();
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &[]), ("c", &[])]);
    fs::remove_dir(node.path(DRAFT)).unwrap();
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &[]), ("c", &["20.0.20.101"])]);
}

#[test]
fn a_damaged_ledger_is_refused_by_name_and_left_alone() {
    let mut node = Node::running(&[("pool.yaml", &blue()), ("a.yaml", &service("a", ""))]);
    node.stop(Signal::SIGTERM);
    let whole = fs::read(node.path(LEDGER)).unwrap();
    let half = &whole[..whole.len() / 2];
    fs::write(node.path(LEDGER), half).unwrap();
    let (code, message) = end(&node.agent().output().unwrap());
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("state/ledger.json is damaged") && message.contains("restore a copy of it"), "{message}");
    assert_eq!(fs::read(node.path(LEDGER)).unwrap(), half);
}

#[test]
fn an_address_in_a_status_stays_when_a_pool_for_others_comes_and_goes() {
    let by_hand = "status: {loadBalancer: {ingress: [{ip: 203.0.113.5}]}}\n";
    let node = Node::running(&[("a.yaml", &service("a", by_hand)), ("b.yaml", &service("b", ""))]);
    await_addresses(&node, &[("a", &["203.0.113.5"]), ("b", &[])]);
    node.put("pool.yaml", &blue());
    await_addresses(&node, &[("a", &["203.0.113.5"]), ("b", &["20.0.20.100"])]);
    // A pool that has the address takes the service over as it is.
    node.put("more.yaml", &pool("more", "203.0.113.0", "203.0.113.255"));
    node.json_when(&["status"], |status| status["addresses"]["held"] == 2);
    assert_eq!(node.json(&["pool", "explain", "203.0.113.5"])["services"][0], "default/a");
    await_addresses(&node, &[("a", &["203.0.113.5"]), ("b", &["20.0.20.100"])]);
    fs::remove_file(node.path("manifests/more.yaml")).unwrap();
    fs::remove_file(node.path("manifests/pool.yaml")).unwrap();
    await_addresses(&node, &[("a", &["203.0.113.5"]), ("b", &[])]);
}

#[test]
fn who_stops_asking_lets_go_of_the_address_at_once() {
    let one = pool("one", "20.0.20.1", "20.0.20.1");
    for change in [
        // With another port as well, so that the service itself is another one.
        |text: &str| text.replace("LoadBalancer, ports: [{port: 80}]", "ClusterIP, ports: [{port: 81}]"),
        |text: &str| text.replace("LoadBalancer, ports: [{port: 80}]", "NodePort, ports: [{port: 81}]"),
        |text: &str| text.replace("ports: [{port: 80}]", "loadBalancerClass: example.com/bgp, ports: [{port: 81}]"),
        |text: &str| text.replace("ports: [{port: 80}]", "loadBalancerClass: example.com/bgp, ports: [{port: 80}]"),
    ] {
        let mut node = Node::running(&[("pool.yaml", &one), ("a.yaml", &service("a", ""))]);
        await_addresses(&node, &[("a", &["20.0.20.1"])]);
        node.put("a.yaml", &change(&service("a", "")));
        await_addresses(&node, &[("a", &[])]);
        node.put("b.yaml", &service("b", ""));
        let expected: [(&str, &[&str]); 2] = [("a", &[]), ("b", &["20.0.20.1"])];
        await_addresses(&node, &expected);
        node.stop(Signal::SIGTERM);
        node.start();
        await_addresses(&node, &expected);
    }
}

#[test]
fn a_claim_ends_with_its_service_also_when_the_pool_changes_at_the_same_time() {
    let one = pool("one", "20.0.20.1", "20.0.20.1");
    let foreign = service("a", "status: {loadBalancer: {ingress: [{ip: 20.0.20.1}]}}\n")
        .replace("ports:", "loadBalancerClass: example.com/bgp, ports:");
    let node = Node::running(&[("all.yaml", &(one.clone() + "---\n" + &foreign)), ("b.yaml", &service("b", ""))]);
    await_addresses(&node, &[("a", &["20.0.20.1"]), ("b", &[])]);
    let wider = one.replace("spec: {", "spec: {serviceSelector: {}, ");
    let internal = service("a", "").replace("LoadBalancer", "ClusterIP");
    node.put("all.yaml", &(wider + "---\n" + &internal));
    await_addresses(&node, &[("a", &[]), ("b", &["20.0.20.1"])]);
}

#[test]
fn an_address_that_is_let_go_goes_to_who_claims_it_and_not_to_who_waits() {
    let external = cluster_service("old", "10.96.0.10", "", &["10.244.0.5"])
        .replace("  ports:", "  externalIPs: [20.0.20.1]\n  ports:");
    let one = pool("one", "20.0.20.1", "20.0.20.1");
    let node = Node::running(&[("pool.yaml", &one), ("a.yaml", &service("a", ""))]);
    await_addresses(&node, &[("a", &["20.0.20.1"])]);
    node.put("old.yaml", &external);
    node.put("b.yaml", &service("b", ""));
    node.json_when(&["service", "list"], |services| {
        let conditions = by_name(services, "conditions");
        let refused = |name: &str| conditions.get(name).is_some_and(|all| all[0]["type"] == "Refused");
        refused("old") && conditions.contains_key("b")
    });
    fs::remove_file(node.path("manifests/a.yaml")).unwrap();
    await_addresses(&node, &[("b", &[]), ("old", &["20.0.20.1"])]);
    assert_eq!(listed(&node, "ipam")["b"]["reason"], "out_of_ips");
    assert_eq!(node.json(&["pool", "explain", "20.0.20.1"])["state"], "reserved");
}

#[test]
fn a_service_that_is_refused_keeps_its_address_over_a_restart() {
    let mut node =
        Node::running(&[("pool.yaml", &pool("one", "20.0.20.1", "20.0.20.1")), ("a.yaml", &service("a", ""))]);
    node.put("b.yaml", &service("b", ""));
    await_addresses(&node, &[("a", &["20.0.20.1"]), ("b", &[])]);
    let typo = service("a", "").replace("metadata: {name: a}", "metadata: {name: a, annotations: {lb/algorithm: foo}}");
    node.put("a.yaml", &typo);
    node.json_when(&["service", "list"], |services| {
        by_name(services, "conditions")["a"].as_array().unwrap().iter().any(|it| it["type"] == "Refused")
    });
    await_addresses(&node, &[("a", &["20.0.20.1"]), ("b", &[])]);
    node.stop(Signal::SIGTERM);
    node.start();
    assert_eq!(node.json(&["pool", "explain", "20.0.20.1"])["services"][0], "default/a");
    node.put("a.yaml", &service("a", ""));
    await_addresses(&node, &[("a", &["20.0.20.1"]), ("b", &[])]);
}

#[test]
fn a_pool_that_comes_later_does_not_take_over_from_one_that_is_in_use() {
    let mut node = Node::running(&[("pool.yaml", &blue()), ("a.yaml", &service("a", ""))]);
    // Before the other one by name, and neither says when it was made.
    node.put("aaa.yaml", &pool("aaa", "20.0.20.90", "20.0.20.110"));
    let conflicting = |pools: &Value| {
        let all = pools.as_array().unwrap().iter().filter(|pool| pool["conflicting"] == true);
        all.map(|pool| pool["name"].to_string()).collect::<Vec<_>>()
    };
    node.json_when(&["pool", "list"], |pools| conflicting(pools) == ["\"aaa\""]);
    node.stop(Signal::SIGTERM);
    node.start();
    assert_eq!(conflicting(&node.json(&["pool", "list"])), ["\"aaa\""], "who was there first is remembered");
    node.put("b.yaml", &service("b", ""));
    await_addresses(&node, &[("a", &["20.0.20.100"]), ("b", &["20.0.20.101"])]);
}

#[test]
fn another_class_is_somebody_elses_until_it_is_named() {
    let foreign = service("a", "").replace("ports:", "loadBalancerClass: example.com/bgp, ports:");
    let mut node = Node::running(&[("pool.yaml", &blue()), ("a.yaml", &foreign), ("b.yaml", &service("b", ""))]);
    await_addresses(&node, &[("a", &[]), ("b", &["20.0.20.100"])]);
    let services = node.json(&["service", "list", "a"]);
    assert_eq!(services[0]["ipam"], Value::Null);
    let left = &of_type(&services[0], "OtherClass")["message"];
    assert!(left.as_str().unwrap().contains("load-balancer class example.com/bgp"), "{left}");
    node.stop(Signal::SIGTERM);
    let mut agent = node.agent();
    node.start_with(agent.args(["--load-balancer-class", "example.com/bgp"]));
    await_addresses(&node, &[("a", &["20.0.20.101"]), ("b", &["20.0.20.100"])]);
}

#[test]
fn addresses_of_the_node_and_of_pods_are_kept_back() {
    let node = Node::running(&[
        ("pool.yaml", &pool("wide", "192.0.2.0", "192.0.2.2")),
        ("pods.yaml", &pool("pods", "10.244.0.0", "10.244.0.9")),
        ("a.yaml", &service("a", "")),
        ("b.yaml", &service("b", "")),
        ("c.yaml", &service("c", "")),
    ]);
    await_addresses(&node, &[("a", &["192.0.2.0"]), ("b", &["192.0.2.2"]), ("c", &[])]);
    for (address, why) in
        [("192.0.2.1", "an address of this node"), ("10.244.0.3", "part of the cluster CIDR 10.244.0.0/16")]
    {
        let explained = text(&node.ask(&["pool", "explain", address]).stdout);
        assert!(explained.contains(why), "{explained}");
    }
    // The pools say so, and so does the refusal.
    let pools = node.json(&["pool", "list"]);
    let warned = by_name(&pools, "conditions");
    for (pool, of) in [
        ("wide", "192.0.2.1 (an address of this node)"),
        ("pods", "10.244.0.0-10.244.0.9 (part of the cluster CIDR 10.244.0.0/16)"),
    ] {
        let expected = match pool {
            "pods" => format!("has no address to give: all 10 are reserved: {of}; choose another block"),
            _ => format!("has addresses that are never assigned: {of}; take them out of its blocks"),
        };
        let warnings = warned[pool].as_array().unwrap();
        assert_eq!(warnings.len(), 1, "{pool}: {warnings:?}");
        assert_eq!(warnings[0]["message"], expected, "{pool}");
    }
    for (pool, row) in [
        ("wide", "192.0.2.1 reserved - - an address of this node"),
        ("pods", "10.244.0.0-10.244.0.9 reserved - - part of the cluster CIDR 10.244.0.0/16"),
    ] {
        let shown = text(&node.ask(&["pool", "get", pool]).stdout).to_string();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(shown.lines().any(|line| words(line) == row), "{shown}");
    }
    let message = &node.json(&["service", "list", "c"])[0]["ipam"]["message"];
    let full = "2 pools are full: 2 used of 13, 11 reserved (`pods` and `wide`)";
    assert!(message.as_str().unwrap().contains(full), "{message}");
}

#[test]
fn addresses_of_the_service_cidr_and_of_other_services_are_named_by_the_pool() {
    let external = cluster_service("old", "10.96.0.10", "", &["10.244.0.5"])
        .replace("  ports:", "  externalIPs: [10.111.255.254]\n  ports:");
    let mut node = Node::new(&[
        ("pool.yaml", &pool("near", "10.111.255.253", "10.112.0.0")),
        ("old.yaml", &external),
        ("a.yaml", &service("a", "")),
        ("b.yaml", &service("b", "")),
    ]);
    let warned = |node: &Node| of_type(&node.json(&["pool", "list"])[0], "PoolWarning")["message"].to_string();
    node.start();
    await_addresses(&node, &[("a", &["10.111.255.253"]), ("b", &["10.111.255.255"]), ("old", &["10.111.255.254"])]);
    assert!(
        warned(&node).contains("10.111.255.254 (an address that service default/old has already)"),
        "{}",
        warned(&node)
    );
    node.stop(Signal::SIGTERM);
    let mut agent = node.agent();
    node.start_with(agent.args(["--service-cidr", "10.96.0.0/12"]));
    await_addresses(&node, &[("a", &["10.112.0.0"]), ("b", &[]), ("old", &["10.111.255.254"])]);
    let warning = warned(&node);
    assert!(warning.contains("10.111.255.253-10.111.255.255 (part of the service CIDR 10.96.0.0/12)"), "{warning}");
    let message = &node.json(&["service", "list", "b"])[0]["ipam"]["message"];
    assert!(message.as_str().unwrap().contains("is full: 1 used of 4, 3 reserved: "), "{message}");
}

#[test]
fn what_another_service_answers_for_is_given_to_nobody() {
    let external = cluster_service("old", "10.96.0.10", "", &["10.244.0.5"])
        .replace("  ports:", "  externalIPs: [20.0.20.100]\n  ports:");
    let foreign = service("foreign", "status: {loadBalancer: {ingress: [{ip: 20.0.20.102}]}}\n")
        .replace("ports:", "loadBalancerClass: example.com/bgp, ports:");
    let mut node = Node::running(&[
        ("pool.yaml", &blue()),
        ("old.yaml", &external),
        ("foreign.yaml", &foreign),
        ("a.yaml", &service("a", "")),
    ]);
    await_addresses(&node, &[("a", &["20.0.20.101"]), ("foreign", &["20.0.20.102"]), ("old", &["20.0.20.100"])]);
    let explained = text(&node.ask(&["pool", "explain", "20.0.20.100"]).stdout);
    assert!(explained.contains("an address that service default/old has already"), "{explained}");
    node.put("b.yaml", &service("b", ""));
    await_address(&node, "b", "20.0.20.103");
    // Who holds an address does not lose it to one that claims it later.
    let late = external
        .replace("name: old", "name: late")
        .replace("10.96.0.10", "10.96.0.11")
        .replace("20.0.20.100", "20.0.20.101");
    node.put("late.yaml", &late);
    node.json_when(&["service", "list"], |services| {
        let conditions = by_name(services, "conditions");
        conditions.get("late").is_some_and(|conditions| conditions[0]["type"] == "Refused")
    });
    assert_eq!(listed(&node, "external_ips")["a"], Value::from(vec!["20.0.20.101"]));
    node.stop(Signal::SIGTERM);
    node.start();
    assert_eq!(listed(&node, "external_ips")["a"], Value::from(vec!["20.0.20.101"]));
    // What is not claimed any more is to be had.
    fs::remove_file(node.path("manifests/old.yaml")).unwrap();
    node.put("c.yaml", &service("c", ""));
    await_address(&node, "c", "20.0.20.100");
}

#[test]
fn a_plan_names_a_document_that_is_no_object_and_goes_on_without_it() {
    let node = Node::running(&[("pool.yaml", &blue()), ("a.yaml", &service("a", ""))]);
    await_addresses(&node, &[("a", &["20.0.20.100"])]);
    let smaller = pool("blue", "20.0.20.150", "20.0.20.199");
    let output = piped(&node, &(smaller.clone() + "---\nreplicas: 1\n"));
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("not accepted: standard input:") && said.contains("remove the document"), "{said}");
    assert_eq!(words(&output, "default/a")[1..3], ["20.0.20.100", "20.0.20.150"]);
    let (code, why) = end(&piped(&node, &(smaller + "---\na: [1\n")));
    assert!(code == 1 && why.contains("standard input:") && why.contains("document 2"), "{why}");
}

#[test]
fn a_plan_says_who_would_move_and_moves_nobody() {
    let node = Node::running(&[("pool.yaml", &blue()), ("a.yaml", &service("a", ""))]);
    await_addresses(&node, &[("a", &["20.0.20.100"])]);
    fs::write(node.path("smaller.yaml"), pool("blue", "20.0.20.150", "20.0.20.199")).unwrap();
    let smaller = node.path("smaller.yaml");
    let output = node.ask(&["pool", "plan", "-f", smaller.to_str().unwrap()]);
    assert_eq!(
        (output.status.code(), &words(&output, "default/a")[1..3]),
        (Some(4), &["20.0.20.100".into(), "20.0.20.150".into()][..])
    );
    let output = node.ask(&["pool", "plan", "--remove", "blue", "-o", "json"]);
    assert_eq!(output.status.code(), Some(4));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&plan["moves"][0]["before"][0], plan["moves"][0]["after"].as_array().unwrap().len()),
        (&"20.0.20.100".into(), 0)
    );
    let output = piped(&node, &(blue() + "---\n" + &service("b", "")));
    assert_eq!((output.status.code(), words(&output, "default/b")[2].as_str()), (Some(0), "20.0.20.101"));
    await_addresses(&node, &[("a", &["20.0.20.100"])]);
    let asks =
        service("c", "").replace("metadata: {name: c}", "metadata: {name: c, annotations: {lb/ips: 20.0.20.100}}");
    let output = piped(&node, &asks);
    assert!(text(&output.stdout).contains("held by service default/a"), "{}", text(&output.stdout));
    let red = pool("red", "20.0.20.9", "20.0.20.1");
    for (output, code, said) in [
        (node.ask(&["pool", "plan", "--remove", "red"]), 3, "no pool `red`"),
        (node.ask(&["pool", "plan"]), 2, "`lb pool plan -f FILE` for manifests"),
        (node.ask(&["pool", "plan"]), 2, "`lb pool plan --remove NAME` for a pool"),
        (node.ask(&["pool", "plan", "-f", "/nowhere/pool.yaml"]), 1, "/nowhere/pool.yaml"),
        (node.ask(&["pool", "plan", "-f", "/dev/null"]), 1, "/dev/null holds no manifests"),
        (node.ask(&["pool", "plan", "-f", smaller.to_str().unwrap(), "--remove", "blue"]), 1, "only be one of the two"),
        (piped(&node, "kind: ["), 1, "standard input:1:"),
        (piped(&node, &red), 1, "not accepted: "),
    ] {
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let message = text(&output.stdout) + &text(&output.stderr);
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn a_plan_knows_what_others_answer_for_and_what_statuses_say() {
    let external = cluster_service("old", "10.96.0.10", "", &["10.244.0.5"])
        .replace("  ports:", "  externalIPs: [20.0.20.1]\n  ports:");
    let by_hand = service("s", "status: {loadBalancer: {ingress: [{ip: 203.0.113.5}]}}\n");
    let node = Node::running(&[("old.yaml", &external), ("s.yaml", &by_hand), ("a.yaml", &service("a", ""))]);
    let one = pool("one", "20.0.20.1", "20.0.20.1");
    let planned = piped(&node, &one);
    assert!(text(&planned.stdout).contains("no service would get another address"), "{}", text(&planned.stdout));
    node.put("one.yaml", &one);
    node.json_when(&["status"], |status| status["addresses"]["unsatisfied"] == 1);
    assert_eq!(listed(&node, "external_ips")["a"].as_array().unwrap().len(), 0);
    assert_eq!(listed(&node, "external_ips")["s"][0], "203.0.113.5");
}

/// `lb pool plan -f -`.
fn piped(node: &Node, manifests: &str) -> Output {
    let mut command = lb();
    command.args(["pool", "plan", "-f", "-", "--socket"]).arg(node.path("lb.sock"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_pool_and_an_address_are_described() {
    let node = Node::running(&[("pool.yaml", &blue()), ("a.yaml", &service("a", "")), ("b.yaml", &service("b", ""))]);
    fs::remove_file(node.path("manifests/b.yaml")).unwrap();
    await_addresses(&node, &[("a", &["20.0.20.100"])]);
    let detail = node.json_when(&["pool", "get", "blue"], |detail| detail["addresses"][1]["state"] == "quarantined");
    assert_eq!(detail["addresses"][0]["services"][0], "default/a");
    let shown = text(&node.ask(&["pool", "get", "blue"]).stdout);
    assert!(shown.contains("100 = 1 used + 98 free + 1 quarantined"), "{shown}");
    assert_eq!(end(&node.ask(&["pool", "get", "red"])), (3, "lb: the agent knows no pool `red`\n".into()));
    for (address, code, said) in [
        ("20.0.20.100", 0, "held by default/a"),
        ("20.0.20.101", 0, "quarantined after default/b released it"),
        ("20.0.20.102", 0, "free"),
        ("20.0.20.99", 3, "in no pool"),
    ] {
        let output = node.ask(&["pool", "explain", address]);
        assert_eq!(output.status.code(), Some(code), "{address}");
        assert!(text(&output.stdout).contains(said), "{}", text(&output.stdout));
    }
    assert_eq!(node.ask(&["pool", "explain", "20.0.20.300"]).status.code(), Some(2));
}

#[test]
fn a_bad_pool_says_so_and_the_others_go_on() {
    let wide = "apiVersion: lb/v1\nkind: IPPool\nmetadata: {name: wide}\nspec: {blocks: ['2001:db8::/32']}\n";
    let node = Node::running(&[
        ("blue.yaml", &blue()),
        ("twin.yaml", &pool("twin", "20.0.20.150", "20.0.20.250")),
        ("reversed.yaml", &pool("reversed", "20.0.30.9", "20.0.30.1")),
        ("wide.yaml", wide),
        ("a.yaml", &service("a", "")),
    ]);
    await_addresses(&node, &[("a", &["20.0.20.100"])]);
    let status = node.json(&["status"]);
    let kinds: Vec<_> =
        status["conditions"].as_array().unwrap().iter().map(|it| it["type"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"PoolConflict") && kinds.contains(&"Refused"), "{kinds:?}");
    assert_eq!(words(&node.ask(&["pool", "list"]), "twin")[2..6], ["yes", "101", "0", "0"]);
    for format in ["table", "json", "yaml"] {
        let all = text(&node.ask(&["pool", "list", "-o", format]).stdout);
        assert!(all.contains("79228162514264337593543950336"), "{all}");
    }
}
