//! The agent on the memory datapath, through the real program: no privilege needed.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not what it should be")]

mod common;
#[path = "agent/health_check.rs"]
mod health_check;
#[path = "agent/host_ports.rs"]
mod host_ports;
#[path = "common/node.rs"]
mod node;
#[path = "common/watch.rs"]
mod watch;

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::UnixListener,
        process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use common::{end, lb, service, text};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
    unistd::geteuid,
};
use node::Node;
use serde_json::Value;

#[test]
fn services_and_backends_are_listed() {
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5", "10.244.0.6"]))]);
    let services = node.json(&["service", "list"]);
    assert_eq!(services[0]["name"], "default/web");
    let frontend = &services[0]["frontends"][0];
    assert_eq!((frontend["ip"].as_str(), frontend["port"].as_u64()), (Some("10.96.0.10"), Some(80)));
    assert_eq!((frontend["kind"].as_str(), frontend["status"].as_str()), (Some("ClusterIP"), Some("active")));
    assert_eq!((frontend["backends"]["active"].as_u64(), frontend["backends"]["total"].as_u64()), (Some(2), Some(2)));
    let backends = node.json(&["backend", "list", "web"]);
    let ips: Vec<_> = backends.as_array().unwrap().iter().map(|backend| backend["ip"].as_str().unwrap()).collect();
    assert_eq!(ips, ["10.244.0.5", "10.244.0.6"]);
}

#[test]
fn tables_and_yaml_say_the_same() {
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let table = text(&node.ask(&["service", "list"]).stdout);
    assert!(table.starts_with("NAME"), "{table}");
    assert!(table.contains("default/web   ClusterIP   10.96.0.10   <none>        80/TCP    random"), "{table}");
    let table = text(&node.ask(&["service", "list", "--frontends"]).stdout);
    assert!(table.contains("default/web:http   10.96.0.10:80/tcp   ClusterIP   random"), "{table}");
    let yaml = text(&node.ask(&["service", "ls", "default/web", "-o", "yaml"]).stdout);
    assert!(yaml.starts_with("- name: default/web\n"), "{yaml}");
    assert!(text(&node.ask(&["backend", "list"]).stdout).contains("10.244.0.5:8080/tcp"));
}

#[test]
fn status_is_complete() {
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let status = node.json(&["status"]);
    assert_eq!((&status["ready"], &status["settled"]), (&true.into(), &true.into()));
    assert_eq!(status["datapath"]["kind"], "memory");
    assert_eq!((status["datapath"]["plan"].as_u64(), status["counts"]["frontends"].as_u64()), (Some(1), Some(1)));
    assert_eq!((status["node"]["name"].as_str(), status["node"]["ips"][0].as_str()), (Some("here"), Some("192.0.2.1")));
    assert_eq!(status["conditions"].as_array().unwrap().len(), 0);
    assert!(text(&node.ask(&["status"]).stdout).contains("ready, settled"));
}

#[test]
fn what_others_wrote_does_not_steer_the_terminal_by_way_of_an_error() {
    let node = Node::new(&[]);
    fs::write(node.path("lb.yaml"), "\"\\e[2Jnode\": a\n").unwrap();
    let (code, message) = end(&node.agent().arg("--config").arg(node.path("lb.yaml")).output().unwrap());
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("\\u{1b}[2Jnode") && !message.contains('\u{1b}'), "{message:?}");
}

#[test]
fn ciliums_tables_are_a_matter_of_settings() {
    let mut node = Node::new(&[]);
    fs::write(node.path("lb.yaml"), "maglev-hash: cilium\nmaglev-seed: JLfvgnHc2kaSUFaI\n").unwrap();
    let mut agent = node.agent();
    agent.arg("--config").arg(node.path("lb.yaml"));
    node.start_with(&mut agent);
    assert_eq!(node.json(&["status"])["maglev_hash"], "cilium");
    assert!(text(&node.ask(&["status"]).stdout).contains("tables of cilium"));
}

#[test]
fn changes_of_files_are_followed() {
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let names = |value: &serde_json::Value| -> Vec<String> {
        let all = value.as_array().unwrap().iter();
        all.map(|service| service["name"].as_str().unwrap().to_owned()).collect()
    };
    node.put("api.yaml", &service("api", "10.96.0.11", "", &["10.244.0.6"]));
    node.json_when(&["service", "list"], |list| names(list) == ["default/api", "default/web"]);
    fs::write(node.path("manifests/web.yaml"), service("web", "10.96.0.12", "", &["10.244.0.5"])).unwrap();
    node.json_when(&["service", "list", "web"], |list| list[0]["frontends"][0]["ip"] == "10.96.0.12");
    fs::remove_file(node.path("manifests/api.yaml")).unwrap();
    node.json_when(&["service", "list"], |list| names(list) == ["default/web"]);
}

#[test]
fn a_volume_that_is_swapped_as_the_kubelet_does_is_followed() {
    let node = Node::new(&[]);
    let manifests = node.path("manifests");
    let volume = |version: &str, ip: &str| {
        fs::create_dir(manifests.join(version)).unwrap();
        fs::write(manifests.join(version).join("web.yaml"), service("web", ip, "", &["10.244.0.5"])).unwrap();
        std::os::unix::fs::symlink(version, manifests.join("..data_tmp")).unwrap();
        fs::rename(manifests.join("..data_tmp"), manifests.join("..data")).unwrap();
    };
    volume("..1", "10.96.0.10");
    std::os::unix::fs::symlink("..data/web.yaml", manifests.join("web.yaml")).unwrap();
    let mut node = node;
    node.start();
    assert_eq!(node.json(&["service", "list"])[0]["frontends"][0]["ip"], "10.96.0.10");
    volume("..2", "10.96.0.20");
    node.json_when(&["service", "list"], |list| list[0]["frontends"][0]["ip"] == "10.96.0.20");
}

#[test]
fn a_directory_that_is_replaced_is_followed() {
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    fs::rename(node.path("manifests"), node.path("old")).unwrap();
    fs::create_dir(node.path("manifests")).unwrap();
    node.put("api.yaml", &service("api", "10.96.0.11", "", &["10.244.0.6"]));
    let has_api = |list: &serde_json::Value| list.as_array().unwrap().len() == 1 && list[0]["name"] == "default/api";
    node.json_when(&["service", "list"], has_api);
}

#[test]
fn a_directory_that_is_gone_is_a_condition_until_it_is_back() {
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let gone = |status: &serde_json::Value| {
        status["conditions"].as_array().unwrap().iter().any(|condition| condition["type"] == "ManifestsGone")
    };
    fs::rename(node.path("manifests"), node.path("old")).unwrap();
    node.json_when(&["status"], gone);
    assert_eq!(node.json(&["service", "list"])[0]["frontends"][0]["status"], "active");
    fs::rename(node.path("old"), node.path("manifests")).unwrap();
    node.json_when(&["status"], |status| !gone(status));
}

#[test]
fn arguments_that_cannot_be_meant_are_refused() {
    let node = Node::running(&[]);
    for command in ["service", "backend"] {
        let (code, message) = end(&node.ask(&[command, "list", ""]));
        assert_eq!(code, 2, "{message}");
        assert!(message.contains("value is required"), "{message}");
    }
    for ip in ["127.0.0.1", "::", "224.0.0.1", "0.0.0.0", "ff02::1", "::1", "255.255.255.255"] {
        let (code, message) = end(&node.agent_in("other").arg(format!("--node-ip={ip}")).output().unwrap());
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(ip) && message.contains("--node-ip"), "{message}");
    }
    for (hash, seed) in
        [("lb", "JLfvgnHc2kaSUFaI"), ("lb", "\u{1b}[2J"), ("cilium", ""), ("cilium", "AAAAAAAAAAAAAAAAAAAAAA==")]
    {
        let arguments = ["--maglev-hash", hash, "--maglev-seed", seed];
        let (code, message) = end(&node.agent_in("other").args(arguments).output().unwrap());
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(&format!("the seed of --maglev-hash {hash} is")), "{message}");
        assert!(message.contains("check --maglev-seed") || message.contains("set --maglev-hash cilium"), "{message}");
        assert!(!message.contains('\u{1b}'), "{message:?}");
    }
    let other = Node::new(&[("web.yaml", "")]);
    let mut command = lb();
    command.args(["agent", "--datapath", "memory", "--node-ip", "192.0.2.1", "--manifests"]);
    command.arg(other.path("manifests/web.yaml")).arg("--socket").arg(other.path("s"));
    let (code, message) = end(&command.arg("--state-dir").arg(other.path("state")).output().unwrap());
    assert_eq!(code, 1);
    assert!(message.contains("not a directory; give the directory that holds the manifests"), "{message}");
    let mut command = lb();
    command.args(["agent", "--datapath", "ebpf", "--device", "lo", "--node-ip", "192.0.2.1", "--manifests", "/"]);
    let (code, message) = end(&command.arg("--cgroup").arg(other.path("manifests")).output().unwrap());
    assert_eq!(code, 1);
    assert!(message.contains("is not in a cgroup2 file system"), "{message}");
}

#[test]
fn broken_manifests_leave_the_last_good_state_and_are_reported() {
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    node.put("broken.yaml", "kind: [Service");
    let kind = |status: &serde_json::Value| status["conditions"][0]["type"].as_str().map(str::to_owned);
    let status = node.json_when(&["status"], |status| kind(status).is_some());
    assert_eq!(kind(&status).as_deref(), Some("ManifestsRejected"));
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("broken.yaml"), "{message}");
    assert_eq!(node.json(&["service", "list"])[0]["frontends"][0]["status"], "active");
    fs::remove_file(node.path("manifests/broken.yaml")).unwrap();
    node.json_when(&["status"], |status| kind(status).is_none());
}

#[test]
fn a_pipe_beside_manifests_is_noticed_at_once_and_holds_nothing_up() {
    let mut node = Node::new(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let pipe = |name: &str| {
        let path = node.path("manifests").join(name);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        format!("{}: it is a named pipe, expected a regular file", path.display())
    };
    let (first, second) = (pipe("a.yaml"), pipe("b.yaml"));
    fs::remove_file(node.path("manifests/b.yaml")).unwrap();
    node.start();
    let ignored = |status: &serde_json::Value| status["manifests"]["ignored_files"].clone();
    assert_eq!(ignored(&node.json(&["status"])), serde_json::json!([first]), "it is ready");
    assert!(std::process::Command::new("mkfifo").arg(node.path("manifests/b.yaml")).status().unwrap().success());
    node.json_when(&["status"], |status| ignored(status) == serde_json::json!([first, second]));
    node.put("web.yaml", &service("web", "10.96.0.12", "", &["10.244.0.5"]));
    node.json_when(&["service", "list", "web"], |list| list[0]["frontends"][0]["ip"] == "10.96.0.12");
    assert_eq!(node.json(&["status"])["conditions"], serde_json::json!([]));
}

#[test]
fn a_file_that_is_no_manifest_at_the_start_holds_no_other_file_back() {
    let web = service("web", "10.96.0.10", "", &["10.244.0.5"]);
    let node = Node::running(&[
        ("values.yaml", "replicas: 1\n"),
        ("template.yaml", "a: {{ .Values.a }}\n"),
        ("web.yaml", &web),
    ]);
    let status = node.json(&["status"]);
    assert_eq!(status["ready"], true);
    let told: Vec<&str> =
        status["conditions"].as_array().unwrap().iter().map(|it| it["message"].as_str().unwrap()).collect();
    assert!(told.len() == 2 && told[0].contains("Helm template") && told[1].contains("values file"), "{told:?}");
    assert_eq!(node.json(&["service", "list"])[0]["frontends"][0]["status"], "active");
    node.put("web.yaml", "kind: [Service");
    node.json_when(&["status"], |status| status["conditions"].as_array().unwrap().len() == 3);
    assert_eq!(node.json(&["service", "list"])[0]["frontends"][0]["status"], "active", "what the file held stays");
}

#[test]
fn an_agent_whose_first_manifests_are_beyond_a_limit_answers_and_becomes_ready_later() {
    let mut node = Node::new(&[]);
    fs::File::create(node.path("manifests/web.yaml")).unwrap().set_len(8 << 20 | 1).unwrap();
    let mut child = node.agent().stdout(std::process::Stdio::null()).spawn().unwrap();
    while node.ask(&["status"]).stdout.is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "the agent ended");
    }
    node.adopt(child);
    let status = node.json_when(&["status"], |status| status["manifests"]["reads"] == 1);
    assert_eq!((&status["ready"], &status["manifests"]["listed"]), (&false.into(), &false.into()));
    node.put("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]));
    node.json_when(&["status"], |status| status["ready"] == true);
}

#[test]
fn a_claimant_of_a_taken_address_is_refused_by_name() {
    let node = Node::running(&[("a.yaml", &service("a", "10.96.0.10", "", &["10.244.0.5"]))]);
    node.put("b.yaml", &service("b", "10.96.0.10", "", &["10.244.0.6"]));
    let services = node.json_when(&["service", "list"], |list| list.as_array().unwrap().len() == 2);
    assert_eq!((services[0]["name"].as_str(), services[1]["name"].as_str()), (Some("default/a"), Some("default/b")));
    assert_eq!(services[1]["conditions"][0]["type"], "Refused");
    let message = services[1]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("belongs to service default/a"), "{message}");
    assert!(text(&node.ask(&["service", "list"]).stdout).contains("   Refused\n"));
    fs::remove_file(node.path("manifests/a.yaml")).unwrap();
    node.json_when(&["service", "list"], |list| {
        list.as_array().unwrap().len() == 1 && list[0]["frontends"][0]["status"] == "active"
    });
}

#[test]
fn an_invalid_object_is_refused_alone() {
    let bad = service("bad", "not-an-address", "", &["10.244.0.6"]);
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"])), ("bad.yaml", &bad)]);
    let services = node.json(&["service", "list"]);
    assert_eq!(
        (services[0]["name"].as_str(), services[1]["name"].as_str()),
        (Some("default/bad"), Some("default/web"))
    );
    assert_eq!(services[0]["conditions"][0]["type"], "Refused");
    assert_eq!(services[1]["frontends"][0]["status"], "active");
    assert!(!node.json(&["status"])["manifests"]["refused"].as_array().unwrap().is_empty());
}

#[test]
fn explain_tells_the_choice_and_why() {
    let maglev = "  annotations: {lb/algorithm: maglev}\n";
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", maglev, &["10.244.0.5", "10.244.0.6"]))]);
    let explain = |arguments: &[&str]| node.json(&[&["explain"], arguments].concat());
    let explanation = explain(&["tcp", "10.244.0.9:4000", "10.96.0.10:80"]);
    assert_eq!((explanation["entry"].as_str(), explanation["verdict"].as_str()), (Some("pod"), Some("forward")));
    assert_eq!((&explanation["choice"]["exact"], &explanation["service"]), (&true.into(), &"default/web:http".into()));
    assert_eq!(explanation, explain(&["tcp", "10.244.0.9:4000", "10.96.0.10:80"]));
    assert_eq!(explanation["source_rewrite"]["rewrite"], "kept");
    let outside = explain(&["tcp", "198.51.100.1:4000", "10.96.0.10:80", "--entry", "uplink"]);
    assert_eq!(outside["source_rewrite"]["address"], "192.0.2.1");
    assert_eq!(explain(&["udp", "10.244.0.9:4000", "10.96.0.10:80"])["verdict"], "reject");
    assert_eq!(explain(&["udp", "10.244.0.9:4000", "10.96.0.11:80"])["verdict"], "pass");
    assert!(
        text(&node.ask(&["explain", "tcp", "10.244.0.9:1", "10.96.0.10:80"]).stdout).contains("forwarded to 10.244.0.")
    );
}

#[test]
fn explain_is_verified_and_says_why_a_backend_is_not_the_choice() {
    let maglev = "  annotations: {lb/algorithm: maglev}\n";
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", maglev, &["10.244.0.5", "10.244.0.6"]))]);
    let packet = ["explain", "tcp", "10.244.0.9:4000", "10.96.0.10:80"];
    let verified = node.json(&[&packet[..], &["--verify"]].concat());
    assert_eq!((&verified["verification"]["agrees"], &verified["why_not"]), (&true.into(), &serde_json::Value::Null));
    assert!(
        text(&node.ask(&[&packet[..], &["--verify"]].concat()).stdout)
            .contains("AGREE: the datapath answers: forwarded to")
    );
    let asked =
        ["10.244.0.5", "10.244.0.6:8080"].map(|backend| node.json(&[&packet[..], &["--why-not", backend]].concat()));
    let mut answers = asked.each_ref().map(|one| one["why_not"]["answer"].as_str().unwrap());
    answers.sort_unstable();
    assert_eq!(answers, ["chosen", "other"]);
    let slots = asked.each_ref().map(|one| one["why_not"]["slot_count"].as_u64().unwrap());
    assert_eq!(Some(slots.iter().sum()), asked[0]["why_not"]["table"].as_u64());
    let absent = node.ask(&[&packet[..], &["--why-not", "10.244.0.7"]].concat());
    assert_eq!(absent.status.code(), Some(3));
    assert!(text(&absent.stdout).contains("Why not 10.244.0.7?\n  it is no backend of the service"));
    let (code, message) = end(&node.ask(&[&packet[..], &["--why-not", "web-1"]].concat()));
    assert!(code == 2 && message.contains("backend `web-1` is neither ADDRESS:PORT nor ADDRESS"), "{message}");
}

#[test]
fn drift_says_that_nothing_differs_and_how_it_is_looked_for() {
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let drift = node.json(&["drift"]);
    assert_eq!(
        (drift["found"].as_u64(), &drift["mode"], &drift["datapath"]),
        (Some(0), &"repair".into(), &"memory".into())
    );
    let said = text(&node.ask(&["drift", "--all"]).stdout);
    assert!(said.starts_with("no difference: memory holds what it should (mode repair, inspected in "), "{said}");
    let status = node.json(&["status"]);
    assert_eq!((&status["drift"]["mode"], status["drift"]["interval_ms"].as_u64()), (&"repair".into(), Some(60_000)));
    assert!(status["drift"]["inspections"].as_u64() > Some(0), "{status}");
    assert_eq!(end(&node.ask(&["drift", "--all", "--watch"])).0, 2);
}

#[test]
fn drift_is_looked_for_as_it_is_set() {
    let mut node = Node::new(&[]);
    let mut agent = node.agent();
    node.start_with(agent.args(["--drift", "alert", "--drift-interval", "100ms"]));
    let inspections = |status: &serde_json::Value| status["drift"]["inspections"].as_u64();
    node.json_when(&["status"], |status| inspections(status) > Some(3));
    assert_eq!(node.json(&["drift"])["mode"], "alert");
    for (flag, value) in [("--drift", "maybe"), ("--drift-interval", "5"), ("--drift-interval", "1ms")] {
        let (code, message) = end(&node.agent_in("other").args([flag, value]).output().unwrap());
        assert!(code == 2 && message.contains(value), "{message}");
    }
}

#[test]
fn who_watches_drift_learns_that_the_agent_ended() {
    let mut node = Node::running(&[]);
    let socket = node.path("lb.sock");
    let mut watch = lb();
    watch.args(["drift", "--watch", "-o", "json", "--socket"]).arg(&socket);
    let watch = watch.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let clients = || node.json(&["status"])["drift"]["watchers"].as_u64();
    while clients() != Some(1) {}
    node.stop(Signal::SIGTERM);
    let (code, message) = end(&watch.wait_with_output().unwrap());
    assert_eq!(code, 1);
    assert!(
        message.contains("the agent ended the watch") || message.contains("communication with the agent"),
        "{message}"
    );
}

#[test]
fn exit_codes_tell_what_is_wrong() {
    let node = Node::running(&[]);
    assert_eq!(node.ask(&["service", "list"]).status.code(), Some(0));
    for command in ["service", "backend"] {
        let (code, message) = end(&node.ask(&[command, "list", "nowhere"]));
        assert_eq!(code, 3);
        assert!(message.contains("no service default/nowhere"), "{message}");
    }
    let (code, message) = end(&node.ask(&["explain", "icmp", "10.0.0.1:1", "10.0.0.2:1"]));
    assert_eq!(code, 2);
    assert!(message.contains("`icmp`"), "{message}");
    assert_eq!(end(&node.ask(&["service", "list", "--no-such-flag"])).0, 2);
    assert_eq!(end(&lb().arg("agent").output().unwrap()).0, 2);
}

#[test]
fn without_an_agent_the_error_says_what_to_do() {
    let node = Node::new(&[]);
    for arguments in [&["status"][..], &["service", "list"], &["explain", "tcp", "10.0.0.1:1", "10.0.0.2:1"]] {
        let (code, message) = end(&node.ask(arguments));
        assert_eq!(code, 1);
        let socket = node.path("lb.sock");
        assert!(
            message.starts_with(&format!("lb: no agent answers on {}: start one (`lb agent", socket.display())),
            "{message}"
        );
        assert!(["--socket", "LB_SOCKET", "--config"].iter().all(|way| message.contains(way)), "{message}");
    }
}

/// A pipe that nobody reads any more.
fn unread() -> Stdio {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// The same command with another value of a flag.
fn other(command: &Command, value: &str, instead: &str) -> Command {
    let mut other = lb();
    other.args(command.get_args().map(|argument| if argument == value { instead.as_ref() } else { argument }));
    other
}

#[test]
fn a_closed_standard_error_does_not_change_how_a_command_ends() {
    let node = Node::new(&[]);
    let status = |arguments: &[&str]| {
        lb().args(arguments).arg("--socket").arg(node.path("lb.sock")).stderr(unread()).status().unwrap().code()
    };
    assert_eq!(status(&["status"]), Some(1));
    assert_eq!(status(&["explain", "icmp", "10.0.0.1:1", "10.0.0.2:1"]), Some(2));
}

#[test]
fn an_agent_whose_log_nobody_reads_any_more_goes_on() {
    let mut node = Node::new(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let mut agent = other(&node.agent(), "warn", "trace");
    node.start_with(agent.stderr(unread()));
    assert_eq!(node.json(&["status"])["ready"], true);
    assert_eq!(node.stop(Signal::SIGTERM).code(), Some(0));
}

#[test]
fn who_may_not_look_at_the_socket_is_told_so() {
    let node = Node::new(&[]);
    let run = node.path("run");
    DirBuilder::new().mode(0o000).create(&run).unwrap();
    // Nobody may not be let into the directory of the build.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("lb");
    lb_testkit::copy_program(env!("CARGO_BIN_EXE_lb").as_ref(), &program).unwrap();
    for arguments in [&["status"][..], &["cleanup", "--datapath", "memory"]] {
        let mut command = Command::new(&program);
        command.args(arguments).arg("--socket").arg(run.join("lb.sock"));
        if geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        let (code, message) = end(&command.output().unwrap());
        assert_eq!(code, 1, "{message}");
        let expected = "lb.sock is not accessible (permission denied): run this as root";
        assert!(message.contains(expected) && !message.contains("answers"), "{arguments:?}: {message}");
    }
}

/// A directory in a BPF file system, removed with this value.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "needs root: makes a directory in a BPF file system"]
fn pins_of_another_agent_are_not_cleaned_up_by_one_that_was_refused() {
    let mut node = Node::new(&[]);
    let pins = Pins(format!("/sys/fs/bpf/lbagent{}", std::process::id()).into());
    DirBuilder::new().mode(0o700).create(&pins.0).unwrap();
    let lock = Flock::lock(File::open(&pins.0).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    let refused = other(&node.agent(), "memory", "ebpf").arg("--pin-dir").arg(&pins.0).output().unwrap();
    let (code, message) = end(&refused);
    assert!(code == 1 && message.contains("is in use by another process"), "{message}");
    // The other agent restarts: nobody holds its directory now.
    drop(lock);
    node.start();
    assert_eq!(node.json(&["status"])["conditions"], serde_json::json!([]));
    assert!(pins.0.exists(), "the other agent's directory was cleaned up");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(node.path("state/agent.json")).unwrap()).unwrap();
    assert_eq!(record, serde_json::json!({ "used": [] }));
}

#[test]
fn signals_end_the_agent_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut node = Node::running(&[]);
        assert!(node.path("lb.sock").exists());
        assert_eq!(node.stop(signal).code(), Some(0));
        assert!(!node.path("lb.sock").exists());
    }
}

#[test]
fn a_second_agent_is_refused_and_a_dead_ones_socket_replaced() {
    let mut node = Node::running(&[]);
    let (code, message) = end(&node.agent().output().unwrap());
    assert_eq!(code, 1);
    assert!(message.contains("another agent uses the state directory"), "{message}");
    let (code, message) = end(&node.agent_in("other").output().unwrap());
    assert_eq!(code, 1);
    assert!(message.contains("another agent answers on"), "{message}");
    assert_eq!(node.json(&["status"])["ready"], true);
    node.stop(Signal::SIGKILL);
    assert!(node.path("lb.sock").exists());
    node.start();
    assert_eq!(node.json(&["status"])["ready"], true);
}

#[test]
fn the_socket_is_its_owners_alone() {
    let node = Node::running(&[]);
    let mode = fs::metadata(node.path("lb.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mode = fs::metadata(node.path("state")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_socket_of_something_else_is_an_error_and_not_a_hang() {
    let node = Node::new(&[]);
    let listener = UnixListener::bind(node.path("lb.sock")).unwrap();
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let (code, message) = end(&node.ask(&["status"]));
    server.join().unwrap();
    assert_eq!(code, 1);
    assert!(message.contains("communication with the agent"), "{message}");
}

#[test]
fn a_configuration_file_does_what_flags_do_and_flags_win() {
    let node = Node::new(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let path = |name| node.path(name).display().to_string();
    let config = format!(
        "manifests: {}\ndatapath: memory\nsocket: {}\nstate-dir: {}\nnode: file\nnode-ip: [192.0.2.9]\n",
        path("manifests"),
        path("lb.sock"),
        path("state")
    );
    fs::write(node.path("lb.yaml"), &config).unwrap();
    let mut node = node;
    node.start_with(lb().args(["agent", "--node", "flag", "--config"]).arg(node.path("lb.yaml")));
    let status = node.json(&["status"]);
    assert_eq!((status["node"]["name"].as_str(), status["node"]["ips"][0].as_str()), (Some("flag"), Some("192.0.2.9")));
    fs::write(node.path("lb.yaml"), config + "datpath: ebpf\n").unwrap();
    let (code, message) = end(&lb().args(["agent", "--config"]).arg(node.path("lb.yaml")).output().unwrap());
    assert_eq!(code, 1);
    assert!(message.contains("lb.yaml") && message.contains("datpath"), "{message}");
}

#[test]
fn a_hangup_reads_manifests_and_settings_again_and_says_what_needs_a_restart() {
    let mut node = Node::new(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let file = node.path("lb.yaml");
    fs::write(&file, "zone: a\n").unwrap();
    let mut command = node.agent();
    let log = File::create(node.path("log")).unwrap();
    node.start_with(command.arg("--config").arg(&file).stderr(log));
    let logged = |wanted: &str, times: usize| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let log = fs::read_to_string(node.path("log")).unwrap();
            if log.matches(wanted).count() >= times {
                return log;
            }
            assert!(std::time::Instant::now() < deadline, "{wanted} is not in the log: {log}");
        }
    };
    let reads = || node.json(&["status"])["manifests"]["reads"].as_u64();
    let before = reads();
    // The level of the log is a flag, which wins over the file.
    fs::write(&file, "zone: b\nlog-level: trace\ndrift: alert\nload-balancer-class: [x]\n").unwrap();
    node.signal(Signal::SIGHUP);
    let log = logged("take effect at the next start", 1);
    assert!(log.contains("settings=\"drift, load-balancer-class\""), "{log}");
    assert!(!log.contains("TRACE"), "{log}");
    node.json_when(&["status"], |status| status["manifests"]["reads"].as_u64() > before);
    fs::write(&file, "zone: [\n").unwrap();
    node.signal(Signal::SIGHUP);
    assert!(logged("the configuration has a mistake", 1).contains("lb.yaml"));
    assert_eq!(node.json(&["status"])["ready"], true);
}

#[test]
fn after_a_hangup_the_zone_and_the_level_of_the_log_are_those_of_the_file() {
    let hints = |zone: &str| format!("\n  hints: {{forZones: [{{name: {zone}}}]}}\n");
    let manifest = service("web", "10.96.0.10", "", &["10.244.0.5", "10.244.0.6"])
        .replace("[10.244.0.5]\n", &format!("[10.244.0.5]{}", hints("a")))
        .replace("[10.244.0.6]\n", &format!("[10.244.0.6]{}", hints("b")));
    let mut node = Node::new(&[("web.yaml", &manifest)]);
    let file = node.path("lb.yaml");
    let path = |name| node.path(name).display().to_string();
    let fixed = format!(
        "manifests: {}\ndatapath: memory\nsocket: {}\nstate-dir: {}\nnode-ip: [192.0.2.9]\n",
        path("manifests"),
        path("lb.sock"),
        path("state")
    );
    fs::write(&file, format!("{fixed}zone: a\nlog-level: error\n")).unwrap();
    let log = File::create(node.path("log")).unwrap();
    node.start_with(lb().args(["agent", "--config"]).arg(&file).stderr(log));
    let packet = ["explain", "tcp", "10.244.0.9:4000", "10.96.0.10:80"];
    assert_eq!(node.json(&packet)["rejected"][0]["backend"], "10.244.0.6:8080");
    fs::write(&file, format!("{fixed}zone: b\nlog-level: debug\n")).unwrap();
    node.signal(Signal::SIGHUP);
    node.json_when(&packet, |answer| answer["rejected"][0]["backend"] == "10.244.0.5:8080");
    node.put("web.yaml", &manifest.replace("10.96.0.10", "10.96.0.11"));
    node.json_when(&["service", "list"], |list| list[0]["frontends"][0]["ip"] == "10.96.0.11");
    fs::write(&file, format!("{fixed}zone: a\nlog-level: debug\n")).unwrap();
    node.signal(Signal::SIGHUP);
    let packet = ["explain", "tcp", "10.244.0.9:4000", "10.96.0.11:80"];
    node.json_when(&packet, |answer| answer["rejected"][0]["backend"] == "10.244.0.6:8080");
    let log = fs::read_to_string(node.path("log")).unwrap();
    assert!(log.contains("the zone of this node is changed old=\"b\" new=\"a\" why="), "{log}");
    assert!(log.contains("DEBUG") && log.contains("the level of the log is changed old=error new=debug"), "{log}");
}

#[test]
fn cleanup_refuses_while_an_agent_runs() {
    let mut node = Node::running(&[]);
    let state = node.path("state").display().to_string();
    let (code, message) = end(&node.ask(&["cleanup", "--datapath", "memory", "--state-dir", &state]));
    assert_eq!(code, 1);
    assert!(message.contains("an agent answers on"), "{message}");
    node.stop(Signal::SIGTERM);
    let cleaned = node.json(&["cleanup", "--datapath", "memory", "--state-dir", &state]);
    assert_eq!((&cleaned[0]["datapath"], &cleaned[0]["outcome"]), (&"memory".into(), &"absent".into()));
}

#[test]
fn cleanup_says_of_what_it_cannot_see_that_it_did_not_look_and_forgets_it_only_when_told() {
    let node = Node::new(&[]);
    let pins = node.path("pins").display().to_string();
    fs::create_dir(node.path("state")).unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let place = |boot: &str| serde_json::json!({"boot_id": boot, "network_namespace": 1, "file_system": 1});
    let used = |pin_dir: &str, place| serde_json::json!({"datapath": "ebpf", "pin_dir": pin_dir, "place": place});
    // One that ended with an earlier boot, one in a BPF file system that is not seen, one of an earlier version.
    let (ended, early) = (node.path("ended").display().to_string(), node.path("early").display().to_string());
    let used = [used(&ended, place("before")), used(&pins, place(&boot_id)), used(&early, Value::Null)];
    fs::write(node.path("state/agent.json"), serde_json::json!({ "used": used }).to_string()).unwrap();
    let state = node.path("state").display().to_string();
    let cleanup = |more: &[&str]| {
        let base = ["cleanup", "--datapath", "ebpf", "--state-dir", &state, "-o", "json"];
        let output = node.ask(&[&base, more].concat());
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let said = said.as_array().unwrap().iter().map(|one| format!("{} {}", one["pin_dir"], one["outcome"]));
        (output.status.code(), said.filter(|said| !said.contains("/sys/fs/bpf")).collect::<Vec<_>>())
    };
    let line = |pin_dir: &str, outcome: &str| format!("\"{pin_dir}\" \"{outcome}\"");
    let other = node.path("other").display().to_string();
    let unseen = [line(&early, "not-inspected"), line(&pins, "not-inspected")];
    let mut only_the_other =
        [unseen.to_vec(), vec![line(&ended, "not-inspected"), line(&other, "not-inspected")]].concat();
    let (code, mut said) = cleanup(&["--pin-dir", &other]);
    said.sort();
    only_the_other.sort();
    assert_eq!((code, said), (Some(1), only_the_other), "it was asked for what it cannot see");
    // What is recorded and was not asked for makes it fail, though what was asked for is gone.
    let (code, said) = cleanup(&["--pin-dir", &ended]);
    assert!(code == Some(1) && said.contains(&line(&ended, "absent")), "{said:?}");
    assert_eq!(cleanup(&[]).0, Some(1));
    let (code, said) = cleanup(&[]);
    assert_eq!((code, said), (Some(1), unseen.to_vec()), "what ended is forgotten, and nothing else is");
    let output = node.ask(&["cleanup", "--datapath", "ebpf", "--state-dir", &state]);
    let socket = node.path("lb.sock").display().to_string();
    assert!(text(&output.stdout).contains(&format!(" --state-dir {state} --socket {socket}` where")), "{output:?}");
    assert_eq!(cleanup(&["--forget"]), (Some(0), unseen.to_vec()));
    let record: Value = serde_json::from_slice(&fs::read(node.path("state/agent.json")).unwrap()).unwrap();
    assert_eq!(record, serde_json::json!({ "used": [] }));
}

#[test]
fn completions_and_the_manual_name_every_command() {
    let mut shell = lb();
    shell.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "1").env("_CLAP_IFS", "\n").args(["--", "lb", ""]);
    let completions = text(&shell.output().unwrap().stdout);
    let manual = text(&lb().arg("man").output().unwrap().stdout);
    for command in ["agent", "service", "backend", "status", "explain", "drift", "check", "cleanup", "version"] {
        assert!(completions.lines().any(|line| line == command), "{command} is not in {completions}");
        assert!(manual.contains(command), "{command} is not in the manual");
    }
    assert!(manual.contains("\\-\\-manifests"), "the manual lacks flags");
}
