//! The command line, as users of other tools expect it, on the memory datapath: no privilege needed.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not what it should be")]

mod common;
#[path = "common/node.rs"]
mod node;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use common::{end, lb, service, text};
use nix::sys::signal::Signal;
use node::Node;
use serde_json::{Value, json};

/// An object of a namespace, in one line.
fn object(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{namespace: {namespace}, name: {name}}}, spec: {{{spec}}}}}\n"
    )
}

/// A web service in `default`, and one of each kind without a cluster address in `shop`.
fn kinds() -> Node {
    let shop = object("shop", "web", "clusterIP: 10.96.0.20, ports: [{port: 80}]")
        + &object("shop", "direct", "clusterIP: None, ports: [{port: 80}]")
        + &object("shop", "elsewhere", "type: ExternalName, externalName: db.example.com")
        + &object("shop", "waits", "type: LoadBalancer, ports: [{port: 80}]")
        + &object("shop", "lost", "ports: [{port: 80}]");
    let web = service("web", "10.96.0.10", "", &["10.244.0.5", "10.244.0.6"]);
    Node::running(&[("web.yaml", &web), ("shop.yaml", &shop)])
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The words of the line of a table that begins with `name`.
fn words(table: &str, name: &str) -> Vec<String> {
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name} in {table}")).split_whitespace().map(Into::into).collect()
}

#[test]
fn types_and_missing_addresses_are_written_as_kubectl_does() {
    let node = kinds();
    let table = stdout(&node.ask(&["svc", "list"]));
    let four = |name: &str| words(&table, name)[1..4].to_vec();
    assert_eq!(four("shop/direct"), ["ClusterIP", "None", "<none>"]);
    assert_eq!(four("shop/elsewhere"), ["ExternalName", "<none>", "<none>"]);
    assert_eq!(four("shop/waits"), ["LoadBalancer", "<none>", "<pending>"]);
    assert_eq!(four("shop/lost"), ["ClusterIP", "<none>", "<none>"]);
    let of = |name: &str| node.json(&["service", "get", name]);
    assert_eq!((&of("shop/direct")["headless"], &of("shop/lost")["headless"]), (&json!(true), &json!(false)));
    assert_eq!(of("shop/elsewhere")["type"], "ExternalName");
}

#[test]
fn namespaces_and_names_select_services_and_backends() {
    let node = kinds();
    let names = |arguments: &[&str]| -> Vec<String> {
        stdout(&node.ask(&[arguments, &["-o", "name"]].concat())).lines().map(Into::into).collect()
    };
    assert_eq!(names(&["services", "list", "-n", "default"]), ["default/web"]);
    assert_eq!(names(&["svc", "list", "-n", "shop", "web"]), ["shop/web"]);
    assert_eq!(names(&["service", "list", "-A", "web"]), ["default/web", "shop/web"]);
    assert_eq!(names(&["service", "list", "-A"]).len(), 6);
    assert_eq!(names(&["svc", "get", "-n", "shop", "web"]), ["shop/web"]);
    assert_eq!(names(&["backends", "list", "-n", "default"]), ["10.244.0.5:8080/tcp", "10.244.0.6:8080/tcp"]);
    assert_eq!(names(&["backends", "list", "-n", "shop"]), [""; 0]);
    assert_eq!(stdout(&node.ask(&["svc", "list", "-n", "none"])), "no services in namespace none\n");
    for (arguments, code) in [
        (&["svc", "get", "nope"][..], 3),
        (&["svc", "describe", "-n", "shop", "nope"], 3),
        (&["svc", "list", "-A", "nope"], 3),
        (&["svc", "get", "-n", "default", "shop/web"], 2),
        (&["svc", "list", "-A", "-n", "shop"], 2),
        (&["svc", "get", "web/"], 2),
        (&["svc", "describe", "/web"], 2),
        (&["backend", "list", "a/b/c"], 2),
        (&["explain", "a/b/c"], 2),
        (&["svc", "list", "-n", "shop/web"], 2),
        (&["svc", "list", "-n", ""], 2),
    ] {
        assert_eq!(end(&node.ask(arguments)).0, code, "{arguments:?}");
    }
}

#[test]
fn a_service_that_is_in_another_namespace_is_hinted_at() {
    let node = kinds();
    for command in [&["svc", "get", "waits"][..], &["svc", "describe", "waits"], &["explain", "waits"]] {
        let (code, message) = end(&node.ask(command));
        assert_eq!(code, 3);
        assert_eq!(message, "lb: there is no service default/waits; there is shop/waits: name a namespace with -n\n");
    }
}

#[test]
fn an_empty_variable_is_none() {
    let output = lb().arg("status").env("LB_SOCKET", "").env("LB_CONFIG", "").env("LB_STATE_DIR", "").output().unwrap();
    let (code, message) = end(&output);
    assert!(
        code == 0 || (code == 1 && message.starts_with("lb: ") && message.contains("/run/lb/lb.sock")),
        "{message}"
    );
    let node = Node::new(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let checked = lb().arg("check").arg(node.path("manifests")).env("LB_CONFIG", "").output().unwrap();
    assert_eq!(end(&checked), (0, String::new()));
    let (code, message) = end(&lb().args(["status", "--socket", ""]).output().unwrap());
    assert!(code == 2 && message.contains("a value is required"), "{message}");
}

#[test]
fn the_usage_in_an_error_is_the_same_with_variables() {
    for arguments in [&["status", "--bogus"][..], &["svc", "get"], &["explain"], &["check", "--bogus"], &["agent", "x"]]
    {
        let of = |command: &mut Command| end(&command.args(arguments).output().unwrap());
        let plain = of(&mut lb());
        let set = of(lb().env("LB_SOCKET", "/s").env("LB_CONFIG", "/c").env("LB_STATE_DIR", "/d"));
        assert!(plain.0 == 2 && plain.1.contains("Usage: "), "{plain:?}");
        let usage = |message: &str| message.lines().find(|line| line.starts_with("Usage: ")).map(str::to_owned);
        assert!(usage(&plain.1).is_some_and(|line| !line.contains("--socket")), "{plain:?}");
        // A configuration file stands in for what `explain` and `check` do not need then.
        assert_eq!(usage(&set.1), usage(&plain.1), "{arguments:?}");
    }
}

#[test]
fn an_answer_that_cannot_be_written_says_so() {
    let node = kinds();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for arguments in [&["svc", "list"][..], &["svc", "list", "-w"], &["status", "-o", "json"], &["explain", "web"]] {
        let mut command = lb();
        let output = command.args(arguments).arg("--socket").arg(node.path("lb.sock")).stdout(full()).output().unwrap();
        let (code, message) = end(&output);
        assert_eq!(code, 1);
        let expected = "lb: writing the answer to standard output failed: No space left on device";
        assert!(message.starts_with(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn an_agent_that_is_not_ready_is_no_agent_without_services() {
    let mut node = Node::new(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    too_large(&node.path("manifests/large.yaml"));
    let child = node.agent().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    node.adopt(child);
    while node.ask(&["status"]).stdout.is_empty() {}
    let unready = "the agent is not ready, so it may not know everything yet: see `lb status`\n";
    for command in [&["svc", "list"][..], &["backend", "list"], &["pool", "list", "-o", "json"]] {
        assert_eq!(end(&node.ask(command)), (0, format!("lb: {unready}")), "{command:?}");
    }
    for command in [&["svc", "get", "web"][..], &["explain", "web"], &["backend", "list", "web"]] {
        let expected = format!("lb: there is no service default/web: {unready}");
        assert_eq!(end(&node.ask(command)), (3, expected), "{command:?}");
    }
    fs::remove_file(node.path("manifests/large.yaml")).unwrap();
    node.json_when(&["status"], |status| status["ready"] == true);
    assert_eq!(end(&node.ask(&["pool", "list"])), (0, String::new()));
}

#[test]
fn a_client_of_one_family_is_told_which_family_is_left_out() {
    let dual = object(
        "default",
        "dual",
        "clusterIP: 10.96.0.30, clusterIPs: [10.96.0.30, 'fd00:10:96::a'], ipFamilies: \
        [IPv4, IPv6], ports: [{port: 80}]",
    );
    let node = Node::running(&[("dual.yaml", &dual)]);
    let left_out = "lb: frontend [fd00:10:96::a]:80 is left out: it is IPv6, and ";
    let said = |arguments: &[&str]| end(&node.ask(&[&["explain", "dual"], arguments].concat()));
    let given = "the client of --from is not; ask again with an IPv6 client\n";
    assert_eq!(said(&["--from", "10.244.0.11"]), (0, format!("{left_out}{given}")));
    let none = "the node has no such address; name an IPv6 client with --from\n";
    assert_eq!(said(&[]), (0, format!("{left_out}{none}")));
}

#[test]
fn a_list_is_cut_to_the_terminal_and_get_and_describe_have_the_whole_text() {
    let extra = "  annotations: {lb/algorithm: maglev}\n";
    let ranges = service("web", "10.96.0.10", extra, &["10.244.0.5"])
        .replace("spec:\n  clusterIP", "spec:\n  loadBalancerSourceRange: [10.0.0.0/8]\n  clusterIP");
    let node = Node::running(&[("web.yaml", &ranges)]);
    let said = node.json(&["service", "get", "web"])["conditions"][0]["message"].as_str().unwrap().to_owned();
    let asked = |arguments: &[&str]| {
        let mut command = lb();
        command.args(arguments).arg("--socket").arg(node.path("lb.sock")).env("COLUMNS", "80");
        stdout(&command.output().unwrap())
    };
    let list = asked(&["service", "list"]);
    assert!(list.contains("   Degraded") && !list.contains(&said), "{list}");
    for listed in
        [&["service", "list"][..], &["service", "list", "--frontends"], &["backend", "list"], &["pool", "list"]]
    {
        let text = asked(listed);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{listed:?}: {text}");
    }
    for whole in [&["service", "get", "web"][..], &["service", "describe", "web"], &["service", "list", "-o", "wide"]] {
        assert!(asked(whole).contains(&said), "{whole:?}: {}", asked(whole));
    }
    // Without a terminal there is no margin, and the types are the same.
    let list = stdout(&node.ask(&["service", "list"]));
    assert!(list.lines().next().unwrap().contains("   ALGORITHM   ") && list.contains("   Degraded"), "{list}");
}

#[test]
fn a_description_has_frontends_and_backends() {
    let node = kinds();
    let described = stdout(&node.ask(&["service", "describe", "web"]));
    for line in
        ["Name            default/web\n", "\nFrontends:\n  FRONTEND", "\n  10.96.0.10:80/tcp", "\nBackends:\n  SERVICE"]
    {
        assert!(described.contains(line), "{line} is not in {described}");
    }
    let value = node.json(&["service", "describe", "web"]);
    assert_eq!(value["service"], node.json(&["service", "get", "web"]));
    assert_eq!(value["backends"], node.json(&["backend", "list", "web"]));
}

#[test]
fn a_description_says_who_may_use_a_service_and_what_becomes_of_its_connections() {
    let guarded = service("web", "10.96.0.10", "  annotations: {lb/drain: \"30\"}\n", &["10.244.0.5"])
        .replace("spec:\n  clusterIP", "spec:\n  type: NodePort\n  externalTrafficPolicy: Local\n  loadBalancerSourceRanges: [10.0.0.0/8, 192.0.2.0/24]\n  clusterIP");
    let open = service("open", "10.96.0.11", "", &["10.244.0.5"]);
    let node = Node::running(&[("web.yaml", &guarded), ("open.yaml", &open)]);
    for (name, policy, ranges, drain) in [
        ("web", "external Local, internal Cluster", "allow 10.0.0.0/8,192.0.2.0/24", "connections are cut after 30 s"),
        ("open", "external Cluster, internal Cluster", "everybody", "connections stay until they end"),
    ] {
        let described = stdout(&node.ask(&["service", "describe", name]));
        for (fact, value) in [("Traffic policy", policy), ("Source ranges", ranges), ("Drain", drain)] {
            let line = format!("\n{fact:<15} {value}\n");
            assert!(described.contains(&line), "{line} is not in {described}");
        }
    }
}

/// A command that goes on, and what it says.
struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    fn start(node: &Node, arguments: &[&str]) -> Self {
        let mut command = lb();
        command.args(arguments).arg("--socket").arg(node.path("lb.sock")).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// Type and name of the next event.
    fn event(&mut self) -> (String, String) {
        let event: Value = serde_json::from_str(&self.line()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&event["type"]), text(&event["object"]["name"]))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_watch_says_what_comes_changes_and_goes() {
    let node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let mut events = Watch::start(&node, &["service", "list", "-w", "-o", "json"]);
    let mut rows = Watch::start(&node, &["service", "list", "--watch"]);
    let of = |kind: &str, name: &str| (kind.to_owned(), format!("default/{name}"));
    assert_eq!(events.event(), of("ADDED", "web"));
    assert!(rows.line().starts_with("NAME "));
    assert!(rows.line().starts_with("default/web "));
    node.put("web.yaml", &service("web", "10.96.0.12", "", &["10.244.0.5"]));
    assert_eq!(events.event(), of("MODIFIED", "web"));
    assert!(rows.line().contains(" 10.96.0.12 "));
    node.put("api.yaml", &service("api", "10.96.0.11", "", &["10.244.0.6"]));
    assert_eq!(events.event(), of("ADDED", "api"));
    assert!(rows.line().starts_with("default/api "));
    fs::remove_file(node.path("manifests/web.yaml")).unwrap();
    assert_eq!(events.event(), of("DELETED", "web"));
    let row = rows.line();
    assert!(row.starts_with("default/web ") && row.contains(" removed "), "{row}");
}

#[test]
fn a_watch_outlives_the_agent() {
    let mut node = Node::running(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let mut command = lb();
    command.args(["service", "list", "-w", "-o", "json", "--socket"]).arg(node.path("lb.sock"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let lines = BufReader::new(child.stdout.take().unwrap());
    let mut watch = Watch { child, lines };
    let of = |kind: &str, name: &str| (kind.to_owned(), format!("default/{name}"));
    assert_eq!(watch.event(), of("ADDED", "web"));
    node.stop(Signal::SIGTERM);
    let line = said.next().unwrap().unwrap();
    assert!(
        line.starts_with("lb: the watch is interrupted and goes on with the agent: no agent answers on "),
        "{line}"
    );
    // It answers and is not ready: what it does not know yet is not gone.
    too_large(&node.path("manifests/large.yaml"));
    let child = node.agent().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    node.adopt(child);
    while node.ask(&["status"]).stdout.is_empty() {}
    node.put("api.yaml", &service("api", "10.96.0.11", "", &["10.244.0.6"]));
    fs::remove_file(node.path("manifests/large.yaml")).unwrap();
    assert_eq!(watch.event(), of("ADDED", "api"));
    watch.child.kill().unwrap();
    assert_eq!(said.count(), 0, "one line");
}

/// A file that is too large, so that the manifests are rejected as a whole.
fn too_large(path: &Path) {
    File::create(path).unwrap().set_len(1 << 30).unwrap();
}

#[test]
fn status_fails_until_the_agent_is_ready_and_can_wait_for_it() {
    let mut node = Node::new(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let obstacle = node.path("manifests/large.yaml");
    too_large(&obstacle);
    let status = |arguments: &[&str]| {
        let mut command = lb();
        command.arg("status").args(arguments).arg("--socket").arg(node.path("lb.sock"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let (code, message) = end(&status(&["--wait", "100ms"]).output().unwrap());
    assert!(code == 1 && message.starts_with("lb: no agent answers on "), "{message}");
    let waiting = status(&["--wait", "-o", "json"]).spawn().unwrap();
    let mut agent = node.agent();
    let agent = agent.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // It answers from now on, and is not ready.
    let mut early = status(&["-o", "json"]).output().unwrap();
    while early.stdout.is_empty() {
        early = status(&["-o", "json"]).output().unwrap();
    }
    let ready = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap()["ready"].clone();
    assert_eq!((end(&early), ready(&early)), ((1, String::new()), json!(false)));
    let late = status(&["--wait", "300ms", "-o", "json"]).output().unwrap();
    assert_eq!((end(&late).0, ready(&late)), (1, json!(false)));
    fs::remove_file(&obstacle).unwrap();
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!((end(&waited).0, ready(&waited)), (0, json!(true)));
    assert_eq!(end(&status(&[]).output().unwrap()).0, 0);
    node.adopt(agent);
}

#[test]
fn what_the_manifests_ask_for_in_vain_is_named_in_the_status() {
    let open = |n: usize| {
        let spec = format!("clusterIP: 10.96.0.{n}, ports: [{{port: 80}}], loadBalancerSourceRange: [10.0.0.0/8]");
        object("default", &format!("web-{n}"), &spec)
    };
    let node = Node::running(&[("web.yaml", &(1..=5).map(open).collect::<String>())]);
    let some = stdout(&node.ask(&["status"]));
    assert!(some.contains("5 fields not supported"), "{some}");
    assert!(some.contains("default/web-1, field `spec.loadBalancerSourceRange`: "), "{some}");
    assert!(some.contains("  and 2 more: see `lb status --verbose`\n") && !some.contains("default/web-5,"), "{some}");
    let all = stdout(&node.ask(&["status", "--verbose"]));
    assert!((1..=5).all(|n| all.contains(&format!("default/web-{n}, field"))), "{all}");
}

#[test]
fn a_client_finds_the_agent_by_flag_environment_or_configuration() {
    let mut node = Node::new(&[]);
    let path = |name: &str| node.path(name);
    let config = path("lb.yaml");
    let settings = format!(
        "manifests: {}\ndatapath: memory\nsocket: {}\nstate-dir: {}\nnode-ip: [192.0.2.1]\n",
        path("manifests").display(),
        path("lb.sock").display(),
        path("state").display()
    );
    fs::write(&config, settings).unwrap();
    let socket = path("lb.sock");
    let mut agent = lb();
    node.start_with(agent.arg("agent").env("LB_CONFIG", &config));
    let code = |command: &mut Command| end(&command.output().unwrap()).0;
    assert_eq!(code(lb().arg("status").arg("--config").arg(&config)), 0);
    assert_eq!(code(lb().arg("status").env("LB_CONFIG", &config)), 0);
    assert_eq!(code(lb().arg("status").env("LB_SOCKET", &socket)), 0);
    assert_eq!(code(lb().arg("status").env("LB_SOCKET", "/nonexistent").arg("--socket").arg(&socket)), 0);
    // As for the agent: the environment wins over the file.
    assert_eq!(code(lb().arg("status").env("LB_SOCKET", "/nonexistent").arg("--config").arg(&config)), 1);
    let (code, message) =
        end(&lb().args(["cleanup", "--datapath", "memory", "--config"]).arg(&config).output().unwrap());
    assert!(code == 1 && message.contains("an agent answers on"), "{message}");
}

#[test]
fn cleanup_reads_the_places_of_the_configuration() {
    let node = Node::new(&[]);
    let pins = node.path("pins");
    let config = node.path("lb.yaml");
    let state = node.path("state");
    let settings = |state: &Path| {
        let socket = node.path("lb.sock").display().to_string();
        format!("socket: {socket}\nstate-dir: {}\npin-dir: {}\n", state.display(), pins.display())
    };
    fs::write(&config, settings(&state)).unwrap();
    let cleaned = |more: &[&str]| -> Value {
        let mut command = lb();
        command.args(["cleanup", "--datapath", "ebpf", "-o", "json", "--config"]).arg(&config).args(more);
        serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
    };
    assert_eq!(cleaned(&[])[0]["pin_dir"], pins.display().to_string(), "no agent left word of another");
    fs::create_dir(&state).unwrap();
    let elsewhere = node.path("elsewhere").display().to_string();
    let record = json!({ "used": [{ "datapath": "ebpf", "pin_dir": elsewhere }] });
    fs::write(state.join("agent.json"), record.to_string()).unwrap();
    assert_eq!(cleaned(&[])[0]["pin_dir"], elsewhere, "the state directory is that of the file");
}

#[test]
fn versions_of_both_sides_are_told() {
    let mut node = Node::running(&[]);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(stdout(&node.ask(&["version"])), format!("client  {version}\nagent   {version}\n"));
    assert_eq!(node.json(&["version"]), json!({ "client": version, "agent": version }));
    node.stop(Signal::SIGTERM);
    let output = node.ask(&["version"]);
    assert_eq!((end(&output).0, text(&output.stdout)), (1, format!("client  {version}\n")));
    assert_eq!(stdout(&node.ask(&["version", "--client"])), format!("client  {version}\n"));
}

#[test]
fn explain_takes_a_service() {
    let node = kinds();
    let of = |arguments: &[&str]| node.json(&[&["explain"], arguments].concat());
    let web = of(&["web"]);
    assert_eq!((&web["service"], &web["conditions"]), (&json!("default/web"), &json!([])));
    let web = &web["explanations"];
    assert_eq!(web.as_array().unwrap().len(), 1);
    // The client is the node itself; the answer is that about the packet.
    assert_eq!(web[0], of(&["tcp", "192.0.2.1:40000", "10.96.0.10:80"]));
    assert_eq!((web[0]["entry"].as_str(), web[0]["verdict"].as_str()), (Some("socket"), Some("forward")));
    let from = of(&["web:http", "--from", "198.51.100.7", "--verify", "--why-not", "10.244.0.5"]);
    let from = &from["explanations"];
    assert_eq!(from[0], of(&["tcp", "198.51.100.7:40000", "10.96.0.10:80", "--verify", "--why-not", "10.244.0.5"]));
    assert_eq!(from[0]["verification"]["agrees"], true);
    assert_eq!(of(&["-n", "shop", "web:80/tcp"])["explanations"][0]["service"], "shop/web");
    assert_eq!(of(&["shop/direct"])["explanations"], json!([]));
    node.put("bad.yaml", &object("shop", "bad", "clusterIP: nonsense, ports: [{port: 80}]"));
    node.json_when(&["service", "list"], |list| list.as_array().unwrap().len() == 7);
    let bad = of(&["shop/bad"]);
    assert_eq!(bad["conditions"], node.json(&["service", "get", "shop/bad"])["conditions"]);
    assert_eq!((&bad["conditions"][0]["type"], &bad["explanations"]), (&json!("Refused"), &json!([])));
    let direct = stdout(&node.ask(&["explain", "shop/direct"]));
    assert!(direct.contains("it is headless"), "{direct}");
    for (arguments, code, said) in [
        (&["nope"][..], 3, "no service default/nope"),
        (&["web:81"], 3, "its ports: 80/tcp (http)\n"),
        (&["web:80/udp"], 3, "no frontend with port 80/udp"),
        (&["web:"], 2, "`web:` names no port: write web, or web:PORT"),
        (&["web", "--why-not", "10.9.9.9"], 3, ""),
        (&["web", "--from", "fd00::1"], 1, "--from"),
        (&["web", "--from", "nobody"], 2, "client `nobody`"),
        (&["tcp"], 2, "needs SRC:PORT and DST:PORT"),
        (&["tcp", "10.0.0.1:1"], 2, "DST:PORT"),
        (&["-n", "shop", "tcp", "10.0.0.1:1", "10.0.0.2:1"], 2, "--namespace is for a service"),
    ] {
        let (found, message) = end(&node.ask(&[&["explain"], arguments].concat()));
        assert!(found == code && message.contains(said), "{arguments:?}: {found}, {message}");
    }
}

#[test]
fn a_slice_of_a_missing_service_makes_no_service() {
    let both = service("nosvc", "10.96.0.10", "", &["10.244.0.5"]);
    let slice = both.rsplit_once("---\n").unwrap().1;
    assert!(slice.contains("kind: EndpointSlice") && !slice.contains("kind: Service"), "{slice}");
    let node = Node::running(&[("slice.yaml", slice)]);
    let alone = |status: &Value| {
        let all = status["conditions"].as_array().unwrap();
        all.iter().any(|it| it["type"] == "NoService" && it["message"].as_str().unwrap().ends_with(" default/nosvc"))
    };
    node.json_when(&["status"], alone);
    assert_eq!(node.json(&["service", "list"]), json!([]));
    let explained = node.ask(&["explain", "nosvc"]);
    assert_eq!(explained.status.code(), Some(3));
    assert_eq!(text(&explained.stderr), "lb: there is no service default/nosvc\n");
}

/// What a shell would offer for the last of these words.
fn offered(words: &[&str], environment: &[(&str, &Path)]) -> Vec<String> {
    let mut shell = lb();
    shell.env("COMPLETE", "bash").env("_CLAP_IFS", "\n").env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
    let output = shell.envs(environment.iter().copied()).arg("--").args(words).output().unwrap();
    stdout(&output).lines().map(Into::into).collect()
}

#[test]
fn a_shell_is_offered_the_names_of_services_and_pools() {
    let pool = "{apiVersion: lb/v1, kind: IPPool, metadata: {name: blue}, spec: {blocks: [192.0.2.0/24]}}\n";
    let node = kinds();
    node.put("pool.yaml", pool);
    node.json_when(&["pool", "list"], |pools| pools.as_array().unwrap().len() == 1);
    assert_eq!(stdout(&node.ask(&["pools", "list", "-o", "name"])), "blue\n");
    let wide = stdout(&node.ask(&["pools", "list", "-o", "wide"]));
    assert!(words(&wide, "blue").contains(&"192.0.2.0/24".into()), "{wide}");
    let socket = node.path("lb.sock");
    let here = [("LB_SOCKET", &*socket)];
    assert_eq!(offered(&["lb", "service", "get", "w"], &here), ["web"]);
    assert_eq!(offered(&["lb", "svc", "describe", "shop/w"], &here), ["shop/waits", "shop/web"]);
    assert_eq!(offered(&["lb", "explain", "t"], &here), ["tcp"]);
    assert_eq!(offered(&["lb", "explain", "we"], &here), ["web"]);
    assert_eq!(offered(&["lb", "pool", "get", "b"], &here), ["blue"]);
    assert_eq!(offered(&["lb", "svc", "get", "-n", "shop", "w"], &here), ["waits", "web"]);
    assert_eq!(offered(&["lb", "explain", "--namespace=shop", "we"], &here), ["web"]);
    assert_eq!(offered(&["lb", "svc", "list", "-n", ""], &here), ["default", "shop"]);
    assert_eq!(offered(&["lb", "explain", "-n", "s"], &here), ["shop"]);
    assert_eq!(offered(&["lb", "explain", "web:"], &here), ["web:http"]);
    assert_eq!(offered(&["lb", "explain", "shop/web:"], &here), ["shop/web:80"]);
    let both = ["10.244.0.5:8080", "10.244.0.6:8080"];
    assert_eq!(offered(&["lb", "explain", "web:http", "--why-not", ""], &here), both);
    assert_eq!(offered(&["lb", "explain", "web", "--why-not", "10.244.0.6"], &here), both[1..]);
    let path = socket.display().to_string();
    assert_eq!(offered(&["lb", "pool", "--help"], &[]), ["--help"]);
    assert_eq!(offered(&["lb", "pool", "get", "--socket", &path, "b"], &[]), ["blue"]);
    let nowhere = [("LB_SOCKET", Path::new("/nonexistent"))];
    assert_eq!(offered(&["lb", "service", "get", "w"], &nowhere), [""; 0], "no agent is no error");
}

#[test]
fn the_script_for_bash_completes() {
    let node = kinds();
    let script = "source <(lb completions bash)\n\
                  COMP_WORDS=(lb service get shop/we) COMP_CWORD=3 COMP_TYPE=9\n\
                  _clap_complete_lb lb shop/we get 2>/dev/null\n\
                  echo \"${COMPREPLY[@]}\"\n";
    let directory = Path::new(env!("CARGO_BIN_EXE_lb")).parent().unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    let output = bash.args(["-c", script]).env("PATH", path).env("LB_SOCKET", node.path("lb.sock")).output().unwrap();
    assert_eq!(stdout(&output).trim(), "shop/web");
}

/// Manifests of every fate.
fn mixed() -> String {
    service("web", "10.96.0.10", "", &["10.244.0.5"])
        + &object("shop", "open", "clusterIP: 10.96.0.11, ports: [{port: 80}], loadBalancerSourceRange: [10.0.0.0/8]")
        + "---\n{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: rs}}\n"
}

fn check(arguments: &[&str], path: &Path) -> Output {
    lb().arg("check").args(arguments).arg(path).output().unwrap()
}

#[test]
fn check_needs_no_agent_and_its_exit_code_is_for_scripts() {
    let node = Node::new(&[("web.yaml", &service("web", "10.96.0.10", "", &["10.244.0.5"]))]);
    let manifests = node.path("manifests");
    let code = |arguments: &[&str]| check(arguments, &manifests).status.code();
    assert_eq!((code(&[]), code(&["--strict"])), (Some(0), Some(0)));
    node.put("mixed.yaml", &mixed().replace("name: web", "name: other").replace("10.96.0.10", "10.96.0.12"));
    assert_eq!((code(&[]), code(&["--strict"])), (Some(0), Some(1)));
    node.put("bad.yaml", &object("default", "bad", "clusterIP: nonsense, ports: [{port: 80}]"));
    let refused = check(&[], &manifests);
    assert_eq!(refused.status.code(), Some(1));
    let place = format!("\nRefused:\n  {}/bad.yaml:2:", manifests.display());
    assert!(text(&refused.stdout).contains(&place), "{}", text(&refused.stdout));
    fs::remove_file(node.path("manifests/bad.yaml")).unwrap();
    too_large(&node.path("manifests/large.yaml"));
    assert_eq!(code(&[]), Some(1));
    assert_eq!(check(&[], &node.path("missing")).status.code(), Some(1));
    assert_eq!(check(&[], &node.path("manifests/web.yaml")).status.code(), Some(0), "a file alone");
    assert_eq!(end(&lb().arg("check").output().unwrap()).0, 2);
}

#[test]
fn check_of_nothing_is_one_line_of_error() {
    let node = Node::new(&[]);
    let says = |output: &Output, code: i32, end: &str| {
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(code), String::new()), "{error}");
        assert!(error.starts_with("lb: ") && error.lines().count() == 1 && error.trim_end().ends_with(end), "{error}");
    };
    says(&lb().args(["check", "-"]).stdin(Stdio::null()).output().unwrap(), 1, "standard input holds no manifests");
    let hint = "holds no manifests: give a directory that has .yaml, .yml or .json files itself";
    says(&check(&["--strict"], &node.path("manifests")), 1, hint);
    says(&check(&[], &node.path("missing")), 1, "No such file or directory (os error 2)");
    let config = node.path("lb.yaml");
    fs::write(&config, "datapath: memory\n").unwrap();
    let output = lb().args(["check", "--config", &config.display().to_string()]).output().unwrap();
    says(&output, 2, "give DIR, or `-` for standard input: the configuration file has no key `manifests`");
}

fn check_input(text: &str) -> Output {
    let mut child =
        lb().args(["check", "-", "-o", "json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_document_that_is_no_object_costs_only_itself_on_standard_input() {
    let output = check_input(&(service("web", "10.96.0.10", "", &["10.244.0.5"]) + "---\nreplicas: 1\n"));
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &checked["rejected"]), (Some(1), &Value::Null));
    assert_eq!(checked["services"][0]["frontends"][0]["status"], "active");
    let unread = checked["unread"][0]["text"].as_str().unwrap();
    assert!(
        unread.starts_with("standard input:") && unread.ends_with(": remove the document; it is left out"),
        "{unread}"
    );
}

#[test]
fn check_reads_standard_input() {
    let output = check_input(&mixed());
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(checked["services"].as_array().unwrap().len(), 2);
    let field = &checked["unsupported"][0];
    assert_eq!((&field["file"], &field["line"]), (&json!("standard input"), &json!(19)), "{field:#}");
}

#[test]
fn check_and_the_agent_agree() {
    let thief = object("default", "thief", "clusterIP: 10.96.0.10, ports: [{port: 80}]");
    let waits = object("shop", "waits", "type: LoadBalancer, ports: [{port: 80}]");
    let pool = "{apiVersion: lb/v1, kind: IPPool, metadata: {name: p}, spec: {blocks: [192.0.2.77/32]}}\n";
    let bad = object("shop", "bad", "clusterIP: nonsense, ports: [{port: 80}]");
    let node = Node::running(&[
        ("a.yaml", &mixed()),
        ("b.yaml", &(thief + &waits + &bad)),
        ("c.yaml", pool),
        ("values.yaml", "replicas: 1\n"),
        ("notes.txt", ""),
    ]);
    let config = node.path("lb.yaml");
    fs::write(&config, "datapath: memory\nnode: here\nnode-ip: [192.0.2.1]\ncluster-cidr: [10.244.0.0/16]\n").unwrap();
    let config = config.display().to_string();
    let checked = check(&["--config", &config, "-o", "json"], &node.path("manifests"));
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(checked["services"], node.json(&["service", "list"]));
    let status = node.json(&["status"]);
    let texts = |key: &str| -> Vec<Value> {
        checked[key].as_array().unwrap().iter().map(|finding| finding["text"].clone()).collect()
    };
    assert_eq!(Value::from(texts("unread")), status["manifests"]["unread"]);
    assert!(checked["unread"][0]["file"].as_str().unwrap().ends_with("values.yaml"), "{checked:#}");
    assert_eq!(checked["unread"][0]["line"], 1);
    assert_eq!(Value::from(texts("unsupported")), status["manifests"]["unsupported"]);
    assert_eq!(Value::from(texts("skipped")), status["manifests"]["skipped"]);
    assert_eq!(checked["ignored_files"], status["manifests"]["ignored_files"]);
    // The agent does not say where the service stands that claims an address of another one.
    let place = format!("{}: document 1: ", node.path("manifests/a.yaml").display());
    let refused = texts("refused").into_iter().map(|text| text.as_str().unwrap().replace(&place, ""));
    let mut refused: Vec<String> = refused.collect();
    refused.sort();
    let conditions = status["conditions"].as_array().unwrap().iter();
    let agent: Vec<String> = conditions
        .filter(|condition| condition["type"] == "Refused")
        .map(|condition| condition["message"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(refused.len(), 2);
    assert_eq!(refused, agent);
}

#[test]
fn check_judges_node_ports_by_which_sockets_the_configuration_balances() {
    let manifest =
        object("default", "np", "type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]");
    let node = Node::new(&[("np.yaml", &manifest)]);
    let is_degraded = |socket_lb: &str| {
        let config = format!("datapath: ebpf\nsocket-lb: \"{socket_lb}\"\nnode-ip: [192.0.2.1]\n");
        fs::write(node.path("lb.yaml"), config).unwrap();
        let config = node.path("lb.yaml").display().to_string();
        let checked = check(&["--config", &config], &node.path("manifests"));
        assert_eq!(checked.status.code(), Some(0));
        stdout(&checked).contains("Degraded: service default/np: processes of the node do not reach tcp frontends")
    };
    assert_eq!(["all", "host", "off"].map(is_degraded), [false, false, true]);
}

#[test]
fn check_assigns_no_address_that_the_configuration_reserves() {
    let pool = "{apiVersion: lb/v1, kind: IPPool, metadata: {name: p}, spec: {blocks: [192.0.2.77/32]}}\n";
    let waits = object("shop", "waits", "type: LoadBalancer, ports: [{port: 80}]");
    let node = Node::new(&[("all.yaml", &(pool.to_owned() + &waits))]);
    let addresses = |setting: &str| {
        let config = node.path("lb.yaml");
        fs::write(&config, setting).unwrap();
        let output = check(&["-o", "json", "--config", &config.display().to_string()], &node.path("manifests"));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["services"][0]["external_ips"].clone()
    };
    assert_eq!(addresses("datapath: memory\n"), json!(["192.0.2.77"]));
    for setting in ["node-ip: [192.0.2.77]", "cluster-cidr: [192.0.2.0/24]", "service-cidr: [192.0.2.0/24]"] {
        assert_eq!(addresses(setting), json!([]), "{setting}");
    }
}

#[test]
fn check_says_what_a_datapath_lacks() {
    let maglev = service("web", "10.96.0.10", "  annotations: {lb/algorithm: maglev}\n", &["10.244.0.5"]);
    let node = Node::new(&[("web.yaml", &maglev)]);
    let of = |kind: &str| check(&["--strict", "--datapath", kind], &node.path("manifests"));
    assert_eq!(of("nftables").status.code(), Some(0));
    let iptables = of("iptables-nft");
    assert_eq!(iptables.status.code(), Some(1));
    let said = text(&iptables.stdout);
    assert!(
        said.contains("served (Degraded)") && said.contains("Degraded: service default/web: algorithm maglev"),
        "{said}"
    );
}
