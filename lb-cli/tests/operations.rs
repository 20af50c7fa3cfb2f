//! What an operator does with a node: upgrades, switches, clean-ups, and machines that are not as they should be.
//!
//! Not run without `--ignored` (or `--include-ignored`): it needs root.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not what it should be")]

mod common;

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{end, lb, service};
use lb_core::addr::Family;
use lb_testkit::{
    LabError,
    lab::{Builder, Lab, Netns, Origin, PodSpec, Program},
    traffic::{Outcome, Request, Transport},
};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const VIP: &str = "10.96.0.10";
const DATAPATHS: [&str; 4] = ["ebpf", "nftables", "iptables-nft", "iptables-legacy"];

fn main() -> ExitCode {
    lb_testkit::run_if_worker();
    let mut trials = vec![
        trial("a_switch_ends_the_connections_that_the_page_on_operations_says", switches),
        trial("a_datapath_in_another_namespace_is_neither_removed_nor_forgotten_and_found_again", elsewhere),
        trial("pins_that_ip_netns_exec_hides_are_neither_removed_nor_forgotten", hidden_pins),
        trial("a_foreign_table_of_the_same_name_is_in_the_way_no_longer_than_it_is_there", foreign_table),
        trial("what_nobody_can_look_at_is_not_said_to_be_absent", nobody_can_look),
        trial("pins_of_an_agent_with_another_state_directory_are_named", other_state_directory),
        trial("the_sockets_of_pods_at_certain_addresses_are_left_to_packets_until_the_setting_is_gone", left_alone),
        trial("pods_on_a_bridge_that_netfilter_does_not_see_are_a_condition_of_netfilter_datapaths", bridge),
    ];
    for datapath in DATAPATHS {
        let name = format!("another_datapath_of_lb_is_a_condition_on_{datapath}");
        trials.push(trial(name, move || foreign_datapath(datapath)));
        let name = format!("a_neighbour_with_the_address_of_a_service_is_a_condition_on_{datapath}");
        trials.push(trial(name, move || address_shared(datapath)));
        let name = format!("an_uplink_that_goes_and_comes_back_is_a_condition_on_{datapath}");
        trials.push(trial(name, move || uplink(datapath)));
        let name = format!("settings_of_the_kernel_are_followed_as_they_change_on_{datapath}");
        trials.push(trial(name, move || settings(datapath)));
        let name = format!("a_manifest_that_cannot_be_read_at_a_start_takes_no_frontend_away_on_{datapath}");
        trials.push(trial(name, move || unread_at_start(datapath)));
        let name = format!("a_load_balancer_in_front_of_the_nodes_hears_of_endpoints_on_{datapath}");
        trials.push(trial(name, move || health_check(datapath)));
    }
    for (what, inodes) in [("its_record", 100), ("its_directory", 4)] {
        let name = format!("an_agent_whose_full_disk_has_no_room_for_{what}_serves_and_records_later");
        trials.push(trial(name, move || full_disk(inodes)));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: impl Into<String>, test: impl FnOnce() -> Result<(), LabError> + Send + 'static) -> Trial {
    Trial::test(name, || test().map_err(|error| Failed::from(lb_testkit::report(&error)))).with_ignored_flag(true)
}

/// Where long-lived connections come from, in the order of the page's columns.
const ORIGINS: [Origin; 5] =
    [Origin::Pod(0), Origin::PodPackets(1), Origin::Node(0), Origin::NodePackets(0), Origin::Beyond];

/// Connections from each origin to each of two services. Half of those that meet a backend by chance live on: all or
/// none of them do once in 10^9 runs.
const CONNECTIONS: usize = 16;

fn switches() -> Result<(), LabError> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md")).unwrap();
    for from in DATAPATHS {
        for to in DATAPATHS.into_iter().filter(|to| *to != from || from == "ebpf") {
            let [here, there] = [switch(from, to, Servers::OnThisNode)?, switch(from, to, Servers::OnAnother)?];
            let sum = |of: fn(&Lived) -> usize| -> Vec<usize> {
                here.iter().zip(&there).map(|(here, there)| of(here) + of(there)).collect()
            };
            let fates: Vec<&str> = sum(|lived| lived.tcp).into_iter().map(fate).collect();
            // UDP flows go on in any case, and the page says which of them stay with their backend.
            let stay: Vec<bool> = sum(|lived| lived.udp).into_iter().map(|flows| flows == 2 * CONNECTIONS).collect();
            let live: Vec<bool> = fates.iter().map(|fate| *fate == "live").collect();
            assert_eq!(stay, live, "UDP from {from} to {to}");
            let moved = if from == to { ", another `pin-dir`" } else { "" };
            let row = format!("| `{from}` | `{to}`{moved} | {} |", fates.join(" | "));
            assert!(page.lines().any(|line| line == row), "the page does not have this row: {row}");
        }
    }
    Ok(())
}

fn fate(lived: usize) -> &'static str {
    match lived {
        0 => "end",
        lived if lived == 2 * CONNECTIONS => "live",
        _ => "chance",
    }
}

/// How many connections and flows of one origin outlive a switch; of UDP, with their backend.
struct Lived {
    tcp: usize,
    udp: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Servers {
    OnThisNode,
    OnAnother,
}

/// What outlives the switch, for each origin.
fn switch(from: &str, to: &str, servers: Servers) -> Result<Vec<Lived>, LabError> {
    let server = |name: &str| PodSpec::new(name, usize::from(servers == Servers::OnAnother)).http(8080).udp(8080);
    let clients = ["sockets", "packets"].map(|name| PodSpec::new(name, 0));
    let pods = clients.into_iter().chain([server("a"), server("b")]);
    let lab = pods.fold(Lab::builder().nodes(2), |lab, pod| lab.pod(pod)).build()?;
    lab.route_services_via(0)?;
    let backends: Vec<String> = lab.pods().skip(2).map(|pod| pod.ip(Family::V4).to_string()).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let manifest = service("web", VIP, "", &backends)
        .replace(
            "[{name: http, port: 80,",
            "[{name: echo, port: 80, protocol: UDP, targetPort: 8080}, {name: http, port: 80,",
        )
        .replace("[{name: http, port: 8080,", "[{name: echo, port: 8080, protocol: UDP}, {name: http, port: 8080,");
    let node = TestNode::new(&lab, &manifest)?;
    let mut agent = node.start(&lab, from, &[])?;
    let mut held = Vec::new();
    for origin in ORIGINS {
        let hold = |transport| lab.client(origin).hold(transport, vip(), CONNECTIONS);
        held.push((hold(Transport::Tcp)?, hold(Transport::Udp)?));
    }
    let mut backends = Vec::new();
    for (tcp, udp) in &held {
        let opened = tcp.opened().iter().chain(udp.opened()).cloned().collect::<Vec<_>>();
        let again = [tcp.exchange()?, udp.exchange()?].concat();
        assert_eq!(answerers(&opened), answerers(&again), "{opened:?} {again:?}");
        assert!(opened.iter().all(Result::is_ok), "{opened:?}");
        backends.push(answerers(udp.opened()));
    }
    agent.terminate(DEADLINE)?;
    let pin_dir = if from == to { lab.node(0).pin_dir()?.join("moved") } else { lab.node(0).pin_dir()? };
    let pin_dir = pin_dir.display().to_string();
    let moved = if to == "ebpf" { vec![("--pin-dir", &*pin_dir)] } else { Vec::new() };
    let agent = node.start(&lab, to, &moved)?;
    let level = if from == "ebpf" || to == "ebpf" { "WARN" } else { "INFO" };
    let announced = |line: &str| line.contains(level) && line.contains("the datapath is switched");
    assert!(agent.wait_for_line(DEADLINE, announced).is_some(), "{}", agent.output());
    let is_new = |used: &Value| used["datapath"] == to && (to != "ebpf" || used["pin_dir"] == *pin_dir);
    node.await_record(|used| used.len() == 1 && is_new(&used[0]), &agent);
    let mut lived = Vec::new();
    for ((tcp, udp), before) in held.iter().zip(&backends) {
        let after = udp.exchange()?;
        assert!(after.iter().all(Result::is_ok), "{after:?}");
        let stayed = answerers(&after).iter().zip(before).filter(|(after, before)| after == before).count();
        lived.push(Lived { tcp: tcp.exchange()?.iter().filter(|outcome| outcome.is_ok()).count(), udp: stayed });
    }
    Ok(lived)
}

/// Who answered; nobody has no name.
fn answerers(outcomes: &[Outcome]) -> Vec<String> {
    outcomes.iter().map(|outcome| outcome.as_ref().map(|answer| answer.pod.clone()).unwrap_or_default()).collect()
}

/// The lines of `lb cleanup` and its exit code, here and not in the node's namespace unless `within` says so.
fn cleanup(node: &TestNode, more: &[&str], within: Option<&Netns>) -> Result<(Option<i32>, Vec<Value>), LabError> {
    let mut command = lb();
    command.args(["cleanup", "-o", "json"]).args(node.places()).args(more);
    let output = match within {
        Some(netns) => netns.run(|| command.output().unwrap())?,
        None => command.output().unwrap(),
    };
    Ok((output.status.code(), lines(&output)))
}

fn lines(output: &Output) -> Vec<Value> {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The details of the lines with this outcome, by datapath.
fn details(lines: &[Value], outcome: &str) -> BTreeMap<String, String> {
    let of = |line: &Value| (text_of(&line["datapath"]), text_of(&line["detail"]));
    lines.iter().filter(|line| line["outcome"] == outcome).map(of).collect()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

fn elsewhere() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
    node.start(&lab, "nftables", &[])?.terminate(DEADLINE)?;
    let recorded = node.record();
    let (code, said) = cleanup(&node, &[], None)?;
    let unseen = details(&said, "not-inspected");
    assert_eq!((code, node.record()), (Some(1), recorded.clone()), "{said:#?}");
    assert!(unseen["nftables"].contains("it is in another network namespace"), "{said:#?}");
    assert!(details(&said, "removed").is_empty(), "{said:#?}");
    let (code, said) = cleanup(&node, &["--forget"], None)?;
    let kept = &details(&said, "not-inspected")["nftables"];
    assert_eq!((code, node.record()), (Some(1), recorded), "what is there is not forgotten: {said:#?}");
    assert!(kept.contains("it is not forgotten") && kept.contains("run `nsenter --net="), "{kept}");
    // The next agent of another kind, in a namespace of its own, says where the former datapath is.
    let other = Netns::create("other")?;
    let mut command = node.agent(&lab, "iptables-nft", &[("--device", "lo")])?;
    let agent = other.run(|| Agent::start(&mut command))?;
    let message = node.await_condition("DatapathLeft", true);
    assert!(message.contains("it is in another network namespace"), "{message}");
    assert_eq!(node.record().len(), 2);
    drop(agent);
    // What the message says to run does it.
    let run = message.split('`').nth(1).unwrap();
    let path =
        format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", Path::new(env!("CARGO_BIN_EXE_lb")).parent().unwrap().display());
    let output = Command::new("sh").args(["-c", &format!("{run} -o json")]).env("PATH", path).output().unwrap();
    assert!(details(&lines(&output), "removed")["nftables"].contains("table inet lb"), "{output:?}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (code, said) = cleanup(&node, &[], Some(&other))?;
    assert_eq!((code, details(&said, "removed").len(), node.record().len()), (Some(0), 1, 0), "{said:#?}");
    Ok(())
}

fn hidden_pins() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
    node.start(&lab, "ebpf", &[])?.terminate(DEADLINE)?;
    let recorded = node.record();
    let bare = |command: &Command| {
        let mut hidden = Command::new("unshare");
        // What `ip netns exec` does.
        hidden.args(["--mount", "sh", "-c", "umount -l /sys && mount -t sysfs bare /sys && exec \"$@\"", "sh"]);
        hidden.arg(command.get_program()).args(command.get_args());
        hidden.output().unwrap()
    };
    let mut command = lb();
    command.args(["cleanup", "-o", "json"]).args(node.places());
    let output = bare(&command);
    let unseen = details(&lines(&output), "not-inspected");
    assert_eq!((output.status.code(), node.record()), (Some(1), recorded), "{output:?}");
    assert!(unseen["ebpf"].contains("`nsenter --net=/run/netns/NAME lb …`"), "{output:?}");
    // Where nothing is recorded at all, nobody knows what was there.
    let mut command = lb();
    let empty = [format!("--socket={}", node.path("none.sock")), format!("--state-dir={}", node.path("none"))];
    command.args(["cleanup", "-o", "json"]).args(empty);
    let output = lab.node(0).run(|| bare(&command))?;
    let unseen = &details(&lines(&output), "not-inspected")["ebpf"];
    assert!(
        output.status.code() == Some(1) && unseen.starts_with("nothing is known of /sys/fs/bpf/lb: "),
        "{output:?}"
    );
    let (code, said) = end(&lab.node(0).run(|| bare(&node.agent(&lab, "ebpf", &[]).unwrap()))?);
    assert!(said.contains("as under `ip netns exec`") && code == 1, "{said}");
    let (code, said) = cleanup(&node, &[], None)?;
    assert!(details(&said, "removed")["ebpf"].contains(" pins in "), "{said:#?}");
    assert_eq!((code, node.record().len(), lab.node(0).pin_dir()?.exists()), (Some(0), 0, false));
    Ok(())
}

fn other_state_directory() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
    let mut agent = node.start(&lab, "ebpf", &[])?;
    let pins = lab.node(0).pin_dir()?.display().to_string();
    let elsewhere = |more: &[&str]| {
        let places = [format!("--socket={}", node.path("none.sock")), format!("--state-dir={}", node.path("none"))];
        let output = lb().args(["cleanup", "-o", "json"]).args(places).args(more).output().unwrap();
        let found: Vec<Value> = lines(&output).into_iter().filter(|line| line["pin_dir"] == *pins).collect();
        (output.status.code(), found)
    };
    let (_, found) = elsewhere(&[]);
    assert_eq!((&found[0]["outcome"], &found[0]["detail"]), (&"not-inspected".into(), &"another agent uses it".into()));
    agent.terminate(DEADLINE)?;
    let (code, found) = elsewhere(&[]);
    assert_eq!((code, &found[0]["outcome"]), (Some(1), &"not-inspected".into()));
    assert!(text_of(&found[0]["detail"]).ends_with(&format!("run it with --pin-dir {pins}")), "{found:?}");
    let (code, found) = elsewhere(&["--datapath=ebpf", "--pin-dir", &pins]);
    assert_eq!((code, &found[0]["outcome"]), (Some(0), &"removed".into()));
    Ok(())
}

/// A machine that lacks the programs of a datapath that was never used, and a user who may not look.
fn nobody_can_look() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
    node.start(&lab, "nftables", &[])?.terminate(DEADLINE)?;
    in_node(&lab, "iptables-legacy -t nat -N OTHERS")?;
    let run = |command: &mut Command| lab.node(0).run(|| command.output().unwrap());
    let places = node.places();
    let cleanup = |command: &mut Command| run(command.args(["cleanup", "-o", "json"]).args(&places));
    let output = cleanup(lb().env("PATH", "/nonexistent"))?;
    let said = lines(&output);
    assert!(details(&said, "not-inspected")["iptables-legacy"].contains("is iptables installed?"), "{said:#?}");
    assert_eq!((output.status.code(), details(&said, "removed").len()), (Some(0), 1), "{said:#?}");
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("lb");
    lb_testkit::copy_program(Path::new(env!("CARGO_BIN_EXE_lb")), &copy).unwrap();
    let empty = ["--socket=/nonexistent/s", "--state-dir=/nonexistent/d"];
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    let output = run(command.arg(copy).args(["cleanup", "-o", "json"]).args(empty))?;
    let said = lines(&output);
    assert_eq!(
        (output.status.code(), details(&said, "absent").contains_key("nftables")),
        (Some(1), false),
        "{said:#?}"
    );
    Ok(())
}

/// A table of another name, and what an agent with another state directory left of another kind.
fn foreign_datapath(datapath: &str) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
    let other = if datapath == "ebpf" { "nftables" } else { "ebpf" };
    node.start(&lab, other, &[("--state-dir", &node.path("other"))])?.terminate(DEADLINE)?;
    let agent = node.start(&lab, datapath, &[])?;
    let table = |message: &str| message.contains("table inet lb-2");
    assert!(!table(&node.await_condition("ForeignDatapath", true)));
    // What comes while the agent runs is noticed too.
    in_node(&lab, "nft add table inet lb-2 { comment \"lb layout 3\" ; }")?;
    node.await_status(|status| condition(status, "ForeignDatapath").is_some_and(|message| table(&message)));
    let message = node.await_condition("ForeignDatapath", true);
    let pins = lab.node(0).pin_dir()?.display().to_string();
    let named = match other {
        "ebpf" => format!("pinned in {pins}, which `lb cleanup --datapath ebpf --pin-dir {pins}` removes"),
        _ => "table inet lb, which `lb cleanup --datapath nftables` removes".into(),
    };
    assert!(message.contains(&named) && message.contains("table inet lb-2, which `nft delete table"), "{message}");
    assert!(agent.wait_for_line(DEADLINE, |line| line.contains("WARN") && line.contains("ForeignDatapath")).is_some());
    in_node(&lab, "nft delete table inet lb-2")?;
    let pin_dir = format!("--pin-dir={pins}");
    let mut arguments = vec!["--force", "--datapath", other];
    arguments.extend((other == "ebpf").then_some(&*pin_dir));
    let (code, said) = cleanup(&node, &arguments, Some(lab.node(0).netns()))?;
    assert_eq!((code, details(&said, "removed").len()), (Some(0), 1), "{said:#?}");
    node.await_condition("ForeignDatapath", false);
    assert!(agent.wait_for_line(DEADLINE, |line| line.contains("INFO") && line.contains("ForeignDatapath")).is_some());
    Ok(())
}

/// Another datapath that comes where there was none, and a neighbour that answers for the address of a service.
fn address_shared(datapath: &str) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
    let agent = node.start(&lab, datapath, &[])?;
    assert_eq!(condition(&node.status(), "ForeignDatapath"), None);
    in_node(&lab, "nft add table inet lb-2 { comment \"lb layout 3\" ; }")?;
    let message = node.await_condition("ForeignDatapath", true);
    assert!(message.contains("table inet lb-2"), "{message}");
    let neighbour = |command: &str, ip: &str| {
        let device = lab.node(0).uplink();
        in_node(&lab, &format!("ip neighbour {command} {ip} lladdr 02:00:00:00:00:07 dev {device} nud permanent"))
    };
    let kind = "AddressOfAnotherHost";
    let named = |ip: &str, of: &str| format!("another host answers for {ip}{of} (02:00:00:00:00:07 on ");
    assert_eq!(condition(&node.status(), kind), None);
    neighbour("add", VIP)?;
    let message = node.await_condition(kind, true);
    assert!(message.starts_with(&named(VIP, " of default/web")), "{message}");
    let of_service = || node.condition_of_service("default/web", kind);
    assert!(of_service().unwrap().starts_with(&named(VIP, "")), "{:?}", of_service());
    neighbour("delete", VIP)?;
    node.await_condition(kind, false);
    assert_eq!(of_service(), None);
    assert!(agent.wait_for_line(DEADLINE, |line| line.contains("INFO") && line.contains(kind)).is_some());
    // A service that comes and goes while the neighbour is there.
    let other = "10.96.0.11";
    neighbour("add", other)?;
    fs::write(node.path("manifests/other.yaml"), service("other", other, "", &["10.244.0.9"])).unwrap();
    let message = node.await_condition(kind, true);
    assert!(message.starts_with(&named(other, " of default/other")), "{message}");
    fs::remove_file(node.path("manifests/other.yaml")).unwrap();
    node.await_condition(kind, false);
    Ok(())
}

/// The agent tries to observe ever more rarely, up to every 30 s.
fn foreign_table() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
    in_node(&lab, "nft add table inet lb")?;
    let agent = lab.node(0).spawn(node.agent(&lab, "nftables", &[])?)?;
    let rarely = |line: &str| line.contains("again_in=6.4s");
    assert!(agent.wait_for_line(DEADLINE, rarely).is_some(), "{}", agent.output());
    let start = Instant::now();
    in_node(&lab, "nft delete table inet lb")?;
    assert!(agent.wait_for_line(DEADLINE, |line| line == "ready").is_some(), "{}", agent.output());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}: {}", start.elapsed(), agent.output());
    Ok(())
}

fn uplink(datapath: &str) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
    let add = "ip link add name up1 type veth peer name peer1";
    in_node(&lab, add)?;
    let agent = node.start(&lab, datapath, &[("--device", "up1")])?;
    in_node(&lab, "ip link delete up1")?;
    let message = node.await_condition("UplinkGone", true);
    assert!(message.starts_with("up1, named by --device"), "{message}");
    assert!(agent.wait_for_line(DEADLINE, |line| line.contains("WARN") && line.contains("UplinkGone")).is_some());
    in_node(&lab, add)?;
    node.await_condition("UplinkGone", false);
    assert!(agent.wait_for_line(DEADLINE, |line| line.contains("INFO") && line.contains("UplinkGone")).is_some());
    if datapath == "ebpf" {
        node.await_status(|status| status["datapath"]["devices"].as_array().unwrap().contains(&"up1".into()));
    }
    Ok(())
}

/// The agent looks at nothing of this by itself within an hour: the kernel notifies it.
fn settings(datapath: &str) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let own = lab.node(0).ip(Family::V4).to_string();
    let six = service("six", "fd00:96::10", "", &["fd00:244::9"]);
    let node = TestNode::new(&lab, &format!("{}---\n{six}", service("web", VIP, "", &[&own])))?;
    let uplink = lab.node(0).uplink().to_owned();
    in_node(&lab, "ip link add name up1 type veth peer name peer1")?;
    let more = [("--device", &*uplink), ("--device", "up1"), ("--drift-interval", "1h")];
    let agent = node.start(&lab, datapath, &more)?;
    let device = |status: &Value, name: &str| {
        let devices = status["network"]["devices"].as_array().unwrap();
        devices.iter().find(|device| device["name"] == name).cloned().unwrap_or_default()
    };
    let status = node.status();
    assert_eq!((&status["network"]["ip_forward"], &status["network"]["ipv6_forwarding"]), (&true.into(), &true.into()));
    assert_eq!((&device(&status, "up1")["mtu"], &device(&status, "up1")["rp_filter"]), (&1500.into(), &0.into()));

    in_node(&lab, "ip link set up1 mtu 1279")?;
    node.await_condition("MtuTooSmall", true);
    assert_eq!(device(&node.status(), "up1")["ipv6_forwarding"], Value::Null, "the kernel has no IPv6 there");
    in_node(&lab, "ip link set up1 mtu 1280")?;
    node.await_condition("MtuTooSmall", false);

    in_node(&lab, "sysctl -qw net.ipv4.conf.up1.rp_filter=1")?;
    node.await_status(|status| device(status, "up1")["rp_filter"] == 1);
    if datapath == "ebpf" {
        let message = node.await_condition("ReversePathStrict", true);
        assert!(message.contains("for up1: ") && message.contains(&own), "{message}");
    }
    in_node(&lab, "sysctl -qw net.ipv4.conf.all.rp_filter=2")?;
    node.await_status(|status| device(status, "up1")["rp_filter"] == 2);
    node.await_condition("ReversePathStrict", false);

    in_node(&lab, "sysctl -qw net.ipv4.ip_forward=0")?;
    node.await_condition("ForwardingOff", true);
    assert!(agent.wait_for_line(DEADLINE, |line| line.contains("INFO") && line.contains("before=")).is_some());
    in_node(&lab, "sysctl -qw net.ipv4.ip_forward=1")?;
    node.await_condition("ForwardingOff", false);
    if datapath == "ebpf" {
        in_node(&lab, &format!("sysctl -qw net.ipv6.conf.{uplink}.forwarding=0"))?;
        let message = node.await_condition("ForwardingOff", true);
        assert!(message.starts_with(&format!("net.ipv6.conf.{uplink}.forwarding is 0: ")), "{message}");
    }
    Ok(())
}

fn health_check(datapath: &str) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let balanced = "type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000\n  clusterIP:";
    let manifest = service("web", VIP, "", &["10.244.0.9"]).replace("clusterIP:", balanced);
    let node = TestNode::new(&lab, &manifest)?;
    let _agent = node.start(&lab, datapath, &[])?;
    let heard = |family| {
        let address = SocketAddr::new(lab.node(0).ip(family), 32_000);
        lab.router().run(move || {
            let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        })
    };
    for family in [Family::V4, Family::V6] {
        let answer = heard(family)?.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""localEndpoints":1"#), "{answer}");
    }
    node.put(&manifest.replace("Local", "Cluster"));
    let deadline = Instant::now() + DEADLINE;
    for family in [Family::V4, Family::V6] {
        while heard(family)?.map_err(|error| error.kind()) != Err(io::ErrorKind::ConnectionRefused) {
            assert!(Instant::now() < deadline, "the port is still open");
        }
    }
    Ok(())
}

fn bridge() -> Result<(), LabError> {
    for datapath in DATAPATHS {
        let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
        let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
        for line in [
            "ip link add cni0 type bridge",
            "ip address add 10.244.9.1/24 dev cni0",
            "ip link add name pod1 type veth peer name in1",
            "ip link add name pod2 type veth peer name in2",
            "ip link set pod1 master cni0",
            "sysctl -qw net.bridge.bridge-nf-call-iptables=0",
        ] {
            in_node(&lab, line)?;
        }
        let agent = node.start(&lab, datapath, &[])?;
        let has = |status: &Value| condition(status, "BridgeNotFiltered").is_some();
        assert!(!has(&node.status()), "one pod has nobody to talk to");
        in_node(&lab, "ip link set pod2 master cni0")?;
        if datapath == "ebpf" {
            node.await_status(|status| status["settled"] == true);
            assert!(!has(&node.status()), "{}", agent.output());
            continue;
        }
        let message = node.await_condition("BridgeNotFiltered", true);
        assert!(message.contains("cni0") && message.contains("net.bridge.bridge-nf-call-iptables=1"), "{message}");
        in_node(&lab, "sysctl -qw net.bridge.bridge-nf-call-iptables=1")?;
        // Something has to happen that makes the agent look.
        in_node(&lab, "ip link set pod2 nomaster")?;
        node.await_condition("BridgeNotFiltered", false);
    }
    Ok(())
}

/// Two pods that talk to a service: the peer of a socket that is left alone is the virtual address.
fn left_alone() -> Result<(), LabError> {
    let clients = ["meshed", "plain"].map(|name| PodSpec::new(name, 0));
    let lab = clients.into_iter().fold(Lab::builder().nodes(1), Builder::pod).pod(PodSpec::new("server", 0).http(8080));
    let lab = lab.build()?;
    let [meshed, _, server] = [0, 1, 2].map(|pod| lab.pods().nth(pod).unwrap().ip(Family::V4));
    let node = TestNode::new(&lab, &service("web", VIP, "", &[&server.to_string()]))?;
    let peers = |pod: usize| -> Result<Vec<String>, LabError> {
        let held = lab.client(Origin::Pod(pod)).hold(Transport::Tcp, vip(), 1)?;
        assert!(held.opened().iter().all(Result::is_ok), "{:?}", held.opened());
        let table = lab.pods().nth(pod).unwrap().netns().run(|| fs::read_to_string("/proc/thread-self/net/tcp"))?;
        let table = table.unwrap();
        let rows = table.lines().skip(1).map(|row| row.split_whitespace().nth(2).unwrap().to_owned());
        Ok(rows.filter(|peer| !peer.ends_with(":0000")).collect())
    };
    let shown = |ip: IpAddr, port: u16| {
        let IpAddr::V4(ip) = ip else { panic!("{ip}") };
        vec![format!("{:08X}:{port:04X}", u32::from_ne_bytes(ip.octets()))]
    };
    let (left, sent) = (shown(vip().ip(), 80), shown(server, 8080));
    // Each pod has a process.
    let processes: Vec<Agent> = (0..2)
        .map(|pod| {
            let sleeps = || Command::new("sleep").arg("infinity").spawn().unwrap();
            let process = Agent(lab.pods().nth(pod).unwrap().netns().run(sleeps)?);
            fs::write(lab.node(0).cgroup().join("cgroup.procs"), process.0.id().to_string()).unwrap();
            Ok(process)
        })
        .collect::<Result<_, LabError>>()?;
    let except = format!("{meshed}/32");
    let mut agent = node.start(&lab, "ebpf", &[("--socket-lb-except", &except)])?;
    node.await_status(|status| status["settled"] == true);
    assert_eq!([peers(0)?, peers(1)?], [left, sent.clone()], "{}", agent.output());
    agent.terminate(DEADLINE)?;
    // It is not remembered beyond the setting.
    let agent = node.start(&lab, "ebpf", &[])?;
    assert_eq!([peers(0)?, peers(1)?], [sent.clone(), sent], "{}", agent.output());
    drop(processes);
    Ok(())
}

/// `inodes`: how many files the disk can have, its root and the file that fills it included.
fn full_disk(inodes: u32) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, &service("web", VIP, "", &["10.244.0.9"]))?;
    let disk = node.path("disk");
    fs::create_dir(&disk).unwrap();
    let mut command = Command::new("unshare");
    let script = format!(
        "mount -t tmpfs -o size=64k,nr_inodes={inodes} full {disk} && (head -c 1M /dev/zero > {disk}/fill || touch {disk}/a {disk}/b) \
         2>/dev/null && exec \"$@\""
    );
    let agent = node.agent(&lab, "nftables", &[("--state-dir", &format!("{disk}/state"))])?;
    command.args(["--mount", "sh", "-c", &script, "sh"]).arg(agent.get_program()).args(agent.get_args());
    let agent = start(&lab, command)?;
    let message = node.await_condition("StateNotWritten", true);
    assert!(message.contains("No space left on device") && message.contains("datapath nftables"), "{message}");
    assert_eq!(node.status()["ready"], true);
    let seen = |name: &str| PathBuf::from(format!("/proc/{}/root{disk}/{name}", agent.pid()));
    ["fill", "a", "b"].iter().for_each(|name| drop(fs::remove_file(seen(name))));
    node.await_condition("StateNotWritten", false);
    assert!(fs::read_to_string(seen("state/agent.json")).unwrap().contains("nftables"));
    Ok(())
}

/// A service of a file that is broken when the agent starts again, beside one of a good file.
fn unread_at_start(datapath: &str) -> Result<(), LabError> {
    let lab =
        Lab::builder().nodes(1).pod(PodSpec::new("server", 0).http(8080)).pod(PodSpec::new("client", 0)).build()?;
    let backend = lab.pods().next().unwrap().ip(Family::V4).to_string();
    let web = service("web", VIP, "", &[&backend]);
    let node = TestNode::new(&lab, &web)?;
    let put = |name: &str, text: &str| fs::write(node.path(&format!("manifests/{name}")), text).unwrap();
    let answers = |address: &str| -> Result<bool, LabError> {
        let request = Request::http(SocketAddr::new(address.parse::<IpAddr>().unwrap(), 80));
        Ok(lab.client(Origin::Pod(1)).request(&request.timeout(Duration::from_secs(2)))?.is_ok())
    };
    node.start(&lab, datapath, &[])?.terminate(DEADLINE)?;
    put("web.yaml", "{{ bad }}: {{");
    put("api.yaml", &service("api", "10.96.0.11", "", &[&backend]));
    let mut agent = node.start(&lab, datapath, &[])?;
    let message = node.await_condition("Kept", true);
    assert!(message.contains(&format!("{VIP}:80/tcp")), "{message}");
    assert!(answers(VIP)? && answers("10.96.0.11")?, "{}", agent.output());
    let report = lb().args(["drift", "-o", "json", "--socket", &node.path("lb.sock")]).output().unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["found"], 0, "{report:#}");
    // A repair writes what is kept, too.
    if datapath == "nftables" {
        in_node(&lab, "nft delete table inet lb")?;
        node.await_status(|status| {
            status["drift"]["repaired"].as_object().is_some_and(|repaired| !repaired.is_empty())
        });
        assert!(answers(VIP)?, "{}", agent.output());
    }

    put("web.yaml", &web);
    node.await_condition("Kept", false);
    node.await_status(|status| status["settled"] == true);
    assert!(answers(VIP)?, "{}", agent.output());
    agent.terminate(DEADLINE)?;
    put("web.yaml", "kind: [Service");
    let agent = node.start(&lab, datapath, &[])?;
    assert!(answers(VIP)?, "{}", agent.output());
    fs::remove_file(node.path("manifests/web.yaml")).unwrap();
    node.await_condition("Kept", false);
    node.await_status(|status| status["settled"] == true && status["counts"]["frontends"] == 1);
    assert!(!answers(VIP)? && answers("10.96.0.11")?, "{}", agent.output());
    Ok(())
}

/// Runs a command in the namespace of the first node; words are separated by spaces.
fn in_node(lab: &Lab, line: &str) -> Result<(), LabError> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    let output = lab.node(0).run(|| command.output().unwrap())?;
    assert!(output.status.success(), "{line}: {output:?}");
    Ok(())
}

/// Starts an agent on the first node and waits until it is ready.
fn start(lab: &Lab, command: Command) -> Result<Program, LabError> {
    let agent = lab.node(0).spawn(command)?;
    assert!(agent.wait_for_line(DEADLINE, |line| line == "ready").is_some(), "{}", agent.output());
    Ok(agent)
}

/// An agent in whichever namespace started it. It ends when this is dropped.
struct Agent(Child);

impl Agent {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let agent = Self(child);
        assert_eq!(line, "ready\n");
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The message of a condition, if it holds.
fn condition(status: &Value, kind: &str) -> Option<String> {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == kind).map(|condition| text_of(&condition["message"]))
}

fn vip() -> SocketAddr {
    SocketAddr::new(VIP.parse::<IpAddr>().unwrap(), 80)
}

/// Directories of the agent on the first node of a lab.
struct TestNode {
    run_dir: PathBuf,
}

impl TestNode {
    fn new(lab: &Lab, manifest: &str) -> Result<Self, LabError> {
        let run_dir = lab.node(0).run_dir()?;
        fs::create_dir_all(run_dir.join("manifests")).unwrap();
        fs::write(run_dir.join("manifests/web.yaml"), manifest).unwrap();
        Ok(Self { run_dir })
    }

    fn put(&self, manifest: &str) {
        let draft = self.run_dir.join("draft");
        fs::write(&draft, manifest).unwrap();
        fs::rename(draft, self.run_dir.join("manifests/web.yaml")).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.run_dir.join(name).display().to_string()
    }

    fn places(&self) -> [String; 2] {
        [format!("--socket={}", self.path("lb.sock")), format!("--state-dir={}", self.path("state"))]
    }

    /// The command that starts an agent; settings of `more` come in place of the usual ones, or beside them.
    fn agent(&self, lab: &Lab, datapath: &str, more: &[(&str, &str)]) -> Result<Command, LabError> {
        let node = lab.node(0);
        let [socket, state_dir] = ["lb.sock", "state"].map(|name| self.path(name));
        let mut settings = vec![
            ("--datapath", datapath.into()),
            ("--manifests", self.path("manifests")),
            ("--socket", socket),
            ("--state-dir", state_dir),
            ("--cluster-cidr", "10.244.0.0/16".into()),
            ("--node-ip", node.ip(Family::V4).to_string()),
            ("--device", node.uplink().into()),
        ];
        if datapath == "ebpf" {
            settings.push(("--cgroup", node.cgroup().display().to_string()));
            settings.push(("--pin-dir", node.pin_dir()?.display().to_string()));
            settings.extend(node.pod_devices().into_iter().map(|device| ("--pod-device", device)));
        }
        settings.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
        settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let mut command = lb();
        command.arg("agent").args(settings.iter().map(|(name, value)| format!("{name}={value}")));
        Ok(command)
    }

    fn start(&self, lab: &Lab, datapath: &str, more: &[(&str, &str)]) -> Result<Program, LabError> {
        start(lab, self.agent(lab, datapath, more)?)
    }

    fn status(&self) -> Value {
        let output = lb().args(["status", "-o", "json", "--socket", &self.path("lb.sock")]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    fn await_status(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:#}");
            // The pace of looking.
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a condition holds, or until it does not; its message.
    fn await_condition(&self, kind: &str, holds: bool) -> String {
        let status = self.await_status(|status| condition(status, kind).is_some() == holds);
        condition(&status, kind).unwrap_or_default()
    }

    fn condition_of_service(&self, name: &str, kind: &str) -> Option<String> {
        let places = ["--socket", &self.path("lb.sock")];
        let output = lb().args(["service", "list", "-A", "-o", "json"]).args(places).output().unwrap();
        let services: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let service = services.as_array().unwrap().iter().find(|service| service["name"] == name).unwrap();
        condition(service, kind)
    }

    fn record(&self) -> Vec<Value> {
        let text = fs::read(self.run_dir.join("state/agent.json")).unwrap();
        let record: Value = serde_json::from_slice(&text).unwrap();
        record["used"].as_array().unwrap().clone()
    }

    fn await_record(&self, wanted: impl Fn(&[Value]) -> bool, agent: &Program) {
        let deadline = Instant::now() + DEADLINE;
        while !wanted(&self.record()) {
            assert!(Instant::now() < deadline, "{:?}: {}", self.record(), agent.output());
            // The pace of looking.
            thread::sleep(Duration::from_millis(20));
        }
    }
}
