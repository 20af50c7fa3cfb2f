//! The program on real nodes: the use cases, and agents that come and go.
//!
//! Not run without `--ignored` (or `--include-ignored`): it needs root.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not what it should be")]

mod common;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::{Command, ExitCode, Output, Stdio},
    time::{Duration, Instant},
};

use common::{end, lb, service, text};
use lb_core::addr::Family;
use lb_testkit::{
    LabError,
    lab::{Lab, Node, Origin, PodSpec, Program, leftovers},
    traffic::{FailureKind, Request},
};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);
const VIP: &str = "10.96.0.10";
/// Those that put something into the kernel.
const DATAPATHS: [&str; 4] = ["ebpf", "nftables", "iptables-nft", "iptables-legacy"];
/// Use cases in which agents give addresses.
const IPAM: [&str; 5] = ["basic", "important-pool", "start-stop-range", "no-first-last", "blue-pool"];

fn main() -> ExitCode {
    lb_testkit::run_if_worker();
    let mut trials = vec![
        trial("iptables_without_cilium_keeps_its_promises", || use_case("iptables-without-cilium", "iptables-nft")),
        trial("kube_proxy_replacement_keeps_its_promises", || use_case("kube-proxy-replacement", "ebpf")),
        trial("session_affinity_keeps_its_promises", || use_case("session-affinity", "ebpf")),
        trial("node_port_keeps_its_promises", || use_case("node-port", "ebpf")),
        trial("traffic_policy_keeps_its_promises", || use_case("traffic-policy", "ebpf")),
        trial("node_port_keeps_its_promises_on_nftables", || use_case_on("node-port", "nftables")),
        trial("traffic_policy_keeps_its_promises_on_nftables", || use_case_on("traffic-policy", "nftables")),
        trial("a_datapath_without_node_ports_leaves_them_out", left_out),
        trial("without_a_use_case_all_run_and_all_datapaths_are_compared", all_use_cases),
        trial("a_promise_that_is_not_kept_is_exit_code_1", a_broken_promise),
        trial("without_root_the_lab_runs_in_a_user_namespace", without_root),
        trial("without_root_a_comparison_leaves_out_what_does_not_fit", compare_without_root),
        trial("without_root_ebpf_is_refused", ebpf_without_root),
        trial("without_user_namespaces_the_lab_says_what_it_needs", without_user_namespaces),
        trial("a_signal_ends_the_lab_without_a_trace", a_signal_leaves_no_trace),
        trial("a_pod_that_comes_later_is_served", a_pod_that_comes_later),
    ];
    for (from, to) in [
        ("ebpf", "nftables"),
        ("nftables", "ebpf"),
        ("iptables-nft", "iptables-legacy"),
        ("iptables-legacy", "nftables"),
    ] {
        let name = format!("a_change_from_{from}_to_{to}_leaves_nothing_behind");
        trials.push(trial(name, move || change_of_datapath(from, to)));
    }
    trials.push(trial("another_pin_directory_leaves_nothing_behind", another_pin_directory));
    for datapath in ["nftables", "iptables-nft", "iptables-legacy"] {
        let name = format!("a_second_agent_on_{datapath}_in_the_same_namespace_is_refused");
        trials.push(trial(name, move || second_agent_in_a_namespace(datapath)));
    }
    trials.push(trial("the_walk_through_of_the_blue_pool_shows_what_users_know", blue_pool));
    for datapath in DATAPATHS {
        // On eBPF the walk-through is a test of its own.
        for name in IPAM.into_iter().filter(|name| (*name, datapath) != ("blue-pool", "ebpf")) {
            let title = format!("lb_ipam_{}_keeps_its_promises_on_{datapath}", name.replace('-', "_"));
            trials.push(trial(title, move || use_case_on(&format!("lb-ipam/{name}"), datapath)));
        }
        if datapath != "ebpf" {
            trials.push(trial(format!("session_affinity_keeps_its_promises_on_{datapath}"), || {
                use_case_on("session-affinity", datapath)
            }));
        }
        trials.push(trial(format!("services_outlive_the_agent_until_cleanup_on_{datapath}"), || {
            services_outlive_the_agent(datapath)
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: impl Into<String>, test: impl FnOnce() -> Result<(), LabError> + Send + 'static) -> Trial {
    Trial::test(name, || test().map_err(|error| Failed::from(lb_testkit::report(&error)))).with_ignored_flag(true)
}

fn use_case(name: &str, datapath: &str) -> Result<(), LabError> {
    let report = passed(&lb().args(["lab", name, "-o", "json"]).output().unwrap());
    assert_eq!((report["use_case"].as_str(), report["datapath"].as_str()), (Some(name), Some(datapath)));
    Ok(())
}

fn use_case_on(name: &str, datapath: &str) -> Result<(), LabError> {
    let report = passed(&lb().args(["lab", name, "--datapath", datapath, "-o", "json"]).output().unwrap());
    assert_eq!(report["datapath"], datapath);
    Ok(())
}

fn blue_pool() -> Result<(), LabError> {
    let report = passed(&lb().args(["lab", "lb-ipam/blue-pool", "-o", "json"]).output().unwrap());
    assert_eq!(report["datapath"], "ebpf");
    let details = report["expectations"].as_array().unwrap().iter().filter_map(|it| it["detail"].as_str());
    let details: Vec<_> = details.collect();
    for shown in [
        "blue-pool: DISABLED false, CONFLICTING False, IPS AVAILABLE 100; 100 in all",
        "echo-1 LoadBalancer 10.96.79.72 20.0.20.100 8080/TCP",
        "blue-pool: DISABLED false, CONFLICTING False, IPS AVAILABLE 99; 100 in all",
    ] {
        assert!(details.contains(&shown), "{shown} is not in {details:#?}");
    }
    assert!(details.iter().any(|detail| detail.starts_with("http://20.0.20.100:8080/; node-0: Hostname: echo-1-")));
    Ok(())
}

/// A datapath that lacks what a use case is about says so, and does not pass.
fn left_out() -> Result<(), LabError> {
    let output = lb().args(["lab", "traffic-policy", "--datapath", "iptables-nft", "-o", "json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let lacks = report["left_out"].as_str().unwrap_or_default();
    assert!(lacks.contains("external traffic policy Local"), "{report:#}");
    assert_eq!((&report["passed"], output.status.code()), (&false.into(), Some(1)));
    assert_eq!(report["expectations"], Value::Array(Vec::new()));
    Ok(())
}

/// The report of a use case in which every promise is kept.
fn passed(output: &Output) -> Value {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let expectations = report["expectations"].as_array().unwrap();
    let broken: Vec<&Value> = expectations.iter().filter(|expectation| expectation["passed"] != true).collect();
    assert!(broken.is_empty() && expectations.len() > 3, "{broken:#?}");
    assert_eq!((&report["passed"], output.status.code()), (&true.into(), Some(0)));
    report
}

fn all_use_cases() -> Result<(), LabError> {
    let directory = tempfile::tempdir().unwrap();
    let output = lb().args(["lab", "--report"]).arg(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    let report: Value = serde_json::from_slice(&fs::read(directory.path().join("report.json")).unwrap()).unwrap();
    let cases = report["use_cases"].as_array().unwrap().iter();
    let cases: Vec<_> = cases.map(|case| case["use_case"].as_str().unwrap().to_owned()).collect();
    let of_ipam = IPAM.map(|name| format!("lb-ipam/{name}"));
    assert_eq!((&report["passed"], cases.len(), &cases[5..]), (&true.into(), 10, &of_ipam[..]));
    let datapaths = report["datapaths"].as_array().unwrap().iter();
    assert_eq!(datapaths.map(|row| row["datapath"].as_str().unwrap()).collect::<Vec<_>>(), DATAPATHS);
    assert_eq!(report["datapaths"][0]["rules"], 0);
    assert!(text(&output.stdout).contains("The same manifests on every datapath"));
    Ok(())
}

fn a_broken_promise() -> Result<(), LabError> {
    let arguments = ["lab", "kube-proxy-replacement", "--datapath", "iptables-nft", "-o", "json"];
    let output = lb().args(arguments).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["passed"], output.status.code()), (&false.into(), Some(1)));
    let broken: Vec<&str> = report["expectations"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|expectation| expectation["passed"] == false)
        .map(|expectation| expectation["name"].as_str().unwrap())
        .collect();
    assert_eq!(broken, ["no node has an iptables rule for the service"]);
    Ok(())
}

/// The program where somebody else can start it: they may not be let into the directory of the build.
struct Copied {
    directory: TempDir,
}

impl Copied {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        lb_testkit::copy_program(env!("CARGO_BIN_EXE_lb").as_ref(), &directory.path().join("lb")).unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        Self { directory }
    }

    /// Started by nobody.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.uid(NOBODY).gid(NOBODY).current_dir(self.directory.path()).env("PATH", std::env::var("PATH").unwrap());
        command
    }

    fn lb(&self) -> Command {
        self.command(self.directory.path().join("lb").to_str().unwrap())
    }
}

/// Somebody who may do nothing special.
const NOBODY: u32 = 65534;

fn without_root() -> Result<(), LabError> {
    let output = Copied::new().lb().args(["lab", "-o", "json"]).output().unwrap();
    let (code, message) = end(&output);
    assert_eq!((code, message.lines().count()), (0, 1), "{message}");
    assert!(message.contains("root adds eBPF") && message.contains("net.core.wmem_max"), "{message}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let datapaths = |list: &str| -> Vec<String> {
        let rows = report[list].as_array().unwrap().iter();
        rows.map(|row| row["datapath"].as_str().unwrap().to_owned()).collect()
    };
    let mut expected = vec!["nftables"; 10];
    expected[0] = "iptables-nft";
    assert_eq!(datapaths("use_cases"), expected);
    assert_eq!(datapaths("datapaths"), DATAPATHS[1..]);
    Ok(())
}

fn compare_without_root() -> Result<(), LabError> {
    let copied = Copied::new();
    let arguments = ["lab", "compare", "--services", "10,100000", "--datapaths", "ebpf,nftables", "--rounds", "1"];
    let output = copied.lb().args(arguments).args(["-o", "json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let rows: Vec<_> =
        report["rows"].as_array().unwrap().iter().map(|row| (&row["datapath"], &row["services"])).collect();
    assert_eq!(rows, [(&Value::from("nftables"), &Value::from(10))]);
    let notes: Vec<&str> = report["notes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let noted = |what: &str| notes.iter().any(|note| note.starts_with(what));
    assert!(noted("100000 services: left out, ") && noted("ebpf: left out, it needs root"), "{notes:?}");
    Ok(())
}

fn ebpf_without_root() -> Result<(), LabError> {
    let output = Copied::new().lb().args(["lab", "--datapath", "ebpf"]).output().unwrap();
    assert_eq!(end(&output), (1, "lb: datapath ebpf needs root: run it with sudo, or choose nftables\n".into()));
    Ok(())
}

/// A user namespace of our own in which there may be no other.
fn without_user_namespaces() -> Result<(), LabError> {
    let copied = Copied::new();
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces && exec ./lb lab";
    let output = copied.command("unshare").args(["--user", "--map-root-user", "sh", "-c", forbid]).output().unwrap();
    let (code, message) = end(&output);
    assert_eq!((code, message.lines().count()), (1, 1), "{message}");
    assert!(
        message.contains("sysctl user.max_user_namespaces is 0") && message.contains("or run as root"),
        "{message}"
    );
    Ok(())
}

fn a_signal_leaves_no_trace() -> Result<(), LabError> {
    let child = lb().arg("lab").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mark = format!("-{}-", child.id());
    let is_left = || leftovers().unwrap().iter().any(|lab| lab.to_string().contains(&mark));
    let deadline = Instant::now() + DEADLINE;
    while !is_left() {
        assert!(Instant::now() < deadline, "the lab does not begin");
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let (code, message) = end(&child.wait_with_output().unwrap());
    assert_eq!((code, is_left()), (1, false), "{message}");
    assert!(message.contains("interrupted"), "{message}");
    Ok(())
}

/// A pod's packets are served only once a program is attached to its device.
fn a_pod_that_comes_later() -> Result<(), LabError> {
    let mut lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let device = lab.node(0).pod_devices().remove(0);
    let pattern = format!("{}*", device.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-'));
    let node = TestNode::new(&lab, "ebpf", &["--pod-device", &pattern])?;
    let agent = node.start(lab.node(0))?;
    lab.add_pod(PodSpec::new("late", 0))?;
    let late = Origin::PodPackets(lab.pod("late").unwrap().index());
    let deadline = Instant::now() + DEADLINE;
    let answer = loop {
        match lab.client(late).request(&Request::http(vip()).timeout(Duration::from_millis(100)))? {
            Ok(answer) => break answer,
            Err(failure) => assert!(Instant::now() < deadline, "{failure}; the agent said {}", agent.output()),
        }
    };
    assert_eq!(answer.pod, "pod-0-0");
    lab.remove_pod("late")?;
    let deadline = Instant::now() + DEADLINE;
    while node.status()["datapath"]["devices"].as_array().unwrap().len() != 2 {
        assert!(Instant::now() < deadline, "{:#}", node.status());
    }
    assert_eq!(node.status()["conditions"].as_array().unwrap().len(), 0);
    drop(agent);
    Ok(())
}

fn services_outlive_the_agent(datapath: &str) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(2).build()?;
    let node = TestNode::new(&lab, datapath, &[])?;
    let ask = || lab.client(Origin::Node(0)).request(&Request::http(vip()).timeout(Duration::from_millis(500)));
    let mut first = node.start(lab.node(0))?;
    assert!(ask()?.is_ok(), "the agent runs: {}", first.output());
    let status = first.terminate(DEADLINE)?.expect("it ends when it is asked to");
    assert_eq!(status.code(), Some(0), "{}", first.output());
    assert!(ask()?.is_ok(), "the agent has ended");
    let mut second = node.start(lab.node(0))?;
    assert!(ask()?.is_ok(), "another one has taken over: {}", second.output());
    assert_eq!(node.status()["datapath"]["plan"], 0, "there was nothing to change");
    second.signal(Signal::SIGKILL)?;
    second.wait(DEADLINE)?;
    assert!(ask()?.is_ok(), "it was killed");
    let cleaned: Value = serde_json::from_str(&node.cleanup(lab.node(0))?).unwrap();
    assert_eq!(outcomes(&cleaned, "removed"), [datapath], "{cleaned:#}");
    assert_eq!(outcomes(&cleaned, "absent").len(), DATAPATHS.len() - 1, "{cleaned:#}");
    let failure = ask()?.expect_err("nothing is left that would answer");
    assert_ne!(failure.kind, FailureKind::Other, "{failure}");
    Ok(())
}

/// The old datapath would go on sending to a backend that is gone.
fn change_of_datapath(from: &str, to: &str) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(2).build()?;
    let before = TestNode::new(&lab, from, &[])?;
    before.start(lab.node(0))?.terminate(DEADLINE)?;
    let after = TestNode::new(&lab, to, &[])?;
    after.keep_one_backend(&lab);
    let agent = after.start(lab.node(0))?;
    only_the_first_answers(&lab, &after, &agent)?;
    if from == "ebpf" {
        assert!(!lab.node(0).pin_dir()?.exists(), "{}", agent.output());
    }
    drop(agent);
    assert_nothing_is_left_after_cleanup(&lab, &after)
}

fn another_pin_directory() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(2).build()?;
    let before = TestNode::new(&lab, "ebpf", &[])?;
    before.start(lab.node(0))?.terminate(DEADLINE)?;
    let old = lab.node(0).pin_dir()?;
    let new = old.join("moved");
    let mut after = TestNode::new(&lab, "ebpf", &[])?;
    after.arguments.retain(|argument| !argument.starts_with("--pin-dir"));
    after.arguments.push(format!("--pin-dir={}", new.display()));
    after.keep_one_backend(&lab);
    let agent = after.start(lab.node(0))?;
    only_the_first_answers(&lab, &after, &agent)?;
    assert!(!old.join("v1").exists() && new.join("v1").exists(), "{}", agent.output());
    drop(agent);
    assert_nothing_is_left_after_cleanup(&lab, &after)
}

fn only_the_first_answers(lab: &Lab, node: &TestNode, agent: &Program) -> Result<(), LabError> {
    for _ in 0..20 {
        let answer = lab.client(Origin::Node(0)).request(&Request::http(vip()).timeout(Duration::from_millis(500)))?;
        assert_eq!(answer.unwrap_or_else(|failure| panic!("{failure}: {}", agent.output())).pod, "pod-0-0");
    }
    assert_eq!(node.status()["conditions"].as_array().unwrap().len(), 0, "{:#}", node.status());
    Ok(())
}

fn assert_nothing_is_left_after_cleanup(lab: &Lab, node: &TestNode) -> Result<(), LabError> {
    let cleaned: Value = serde_json::from_str(&node.cleanup(lab.node(0))?).unwrap();
    assert_eq!(outcomes(&cleaned, "removed").len(), 1, "{cleaned:#}");
    assert_eq!(outcomes(&cleaned, "absent").len(), DATAPATHS.len() - 1, "{cleaned:#}");
    let request = Request::http(vip()).timeout(Duration::from_millis(200));
    assert!(lab.client(Origin::Node(0)).request(&request)?.is_err(), "something still answers");
    Ok(())
}

/// The datapaths of which `lb cleanup` says this.
fn outcomes<'a>(cleaned: &'a Value, outcome: &str) -> Vec<&'a str> {
    let lines = cleaned.as_array().unwrap().iter().filter(|line| line["outcome"] == outcome);
    lines.map(|line| line["datapath"].as_str().unwrap()).collect()
}

fn second_agent_in_a_namespace(datapath: &str) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).build()?;
    let node = TestNode::new(&lab, datapath, &[])?;
    let first = node.start(lab.node(0))?;
    let mut command = lb();
    let elsewhere = |name: &str| node.run_dir.join(name).display().to_string();
    command.args(node.arguments.iter().filter(|argument| !argument.starts_with("--s")));
    command.args(["--socket", &elsewhere("second.sock"), "--state-dir", &elsewhere("second")]);
    let mut second = lab.node(0).spawn(command)?;
    let status = second.wait(DEADLINE)?.expect("it ends");
    assert!(second.wait_for_line(DEADLINE, |line| line.contains("in this network namespace")).is_some());
    assert_eq!(status.code(), Some(1), "{}", second.output());
    drop(first);
    Ok(())
}

fn vip() -> SocketAddr {
    SocketAddr::new(VIP.parse::<IpAddr>().unwrap(), 80)
}

/// Directories and arguments of the agent on the only node of a lab.
struct TestNode {
    run_dir: PathBuf,
    arguments: Vec<String>,
    cleanup: Vec<String>,
}

impl TestNode {
    fn new(lab: &Lab, datapath: &str, more: &[&str]) -> Result<Self, LabError> {
        let node = lab.node(0);
        let run_dir = node.run_dir()?;
        let backends: Vec<String> = node.pods().map(|pod| pod.ip(Family::V4).to_string()).collect();
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        fs::create_dir_all(run_dir.join("manifests")).unwrap();
        fs::write(run_dir.join("manifests/web.yaml"), service("web", VIP, "", &backends)).unwrap();
        let path = |name: &str| run_dir.join(name).display().to_string();
        let places = [format!("--socket={}", path("lb.sock")), format!("--state-dir={}", path("state"))];
        let pin_dir = format!("--pin-dir={}", node.pin_dir()?.display());
        let mut arguments = vec![
            "agent".to_owned(),
            format!("--manifests={}", path("manifests")),
            format!("--datapath={datapath}"),
            format!("--node-ip={}", node.ip(Family::V4)),
            "--cluster-cidr=10.244.0.0/16".to_owned(),
        ];
        arguments.extend(places.clone());
        if datapath == "ebpf" {
            arguments.extend([format!("--cgroup={}", node.cgroup().display()), format!("--device={}", node.uplink())]);
            arguments.push(pin_dir);
        }
        arguments.extend(more.iter().map(ToString::to_string));
        let mut cleanup: Vec<String> = ["cleanup", "-o", "json"].map(str::to_owned).into();
        cleanup.extend(places);
        Ok(Self { run_dir, arguments, cleanup })
    }

    fn keep_one_backend(&self, lab: &Lab) {
        let first = lab.node(0).pods().next().unwrap().ip(Family::V4).to_string();
        fs::write(self.run_dir.join("manifests/web.yaml"), service("web", VIP, "", &[&first])).unwrap();
    }

    fn start(&self, node: Node<'_>) -> Result<Program, LabError> {
        let mut command = lb();
        command.args(&self.arguments);
        let agent = node.spawn(command)?;
        assert!(agent.wait_for_line(DEADLINE, |line| line == "ready").is_some(), "{}", agent.output());
        Ok(agent)
    }

    fn status(&self) -> Value {
        let socket = self.run_dir.join("lb.sock");
        let output = lb().args(["status", "-o", "json", "--socket"]).arg(socket).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    fn cleanup(&self, node: Node<'_>) -> Result<String, LabError> {
        let mut command = lb();
        command.args(&self.cleanup);
        let mut program = node.spawn(command)?;
        let status = program.wait(DEADLINE)?.expect("it ends");
        // Standard output is captured by then or shortly after: the array ends with a line of its own.
        program.wait_for_line(DEADLINE, |line| line == "]");
        assert_eq!(status.code(), Some(0), "{}", program.output());
        Ok(program.output())
    }
}
