//! Host ports of pods, through the real program.

use std::fs;

use serde_json::Value;

use crate::{
    common::{lb, text},
    node::Node,
};

/// A pod with host port 8080 on a node.
fn pod(name: &str, number: u8, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: uid-{number}}}\nspec:\n  nodeName: {node}\n  containers: \
         [{{name: c, ports: [{{containerPort: 80, hostPort: 8080}}]}}]\nstatus: {{phase: Running, podIP: \
         10.244.0.{number}}}\n"
    )
}

/// Host ports that are served, and the backends behind them.
fn served(node: &Node) -> Vec<(String, String)> {
    let backends = node.json(&["backend", "list"]);
    let of = |service: &Value| {
        let of_it = backends.as_array().unwrap().iter().filter(|backend| backend["service"] == service["name"]);
        of_it.map(|backend| format!("{}:{}", backend["ip"].as_str().unwrap(), backend["port"])).collect::<String>()
    };
    let services = node.json(&["service", "list"]);
    let all = services.as_array().unwrap().iter().flat_map(|service| {
        let frontends = service["frontends"].as_array().unwrap().iter().filter(|it| it["status"] == "active");
        frontends
            .map(|it| format!("{} {}:{}", it["kind"], it["ip"].as_str().unwrap(), it["port"]))
            .zip(std::iter::repeat(of(service)))
    });
    all.collect()
}

#[test]
fn the_host_port_of_a_pod_of_this_node_is_served_and_goes_over_to_the_next_pod() {
    let node = Node::running(&[("web.yaml", &pod("web", 1, "here")), ("other.yaml", &pod("other", 9, "there"))]);
    let at = |backend: &str| vec![("\"HostPort\" 192.0.2.1:8080".to_owned(), backend.to_owned())];
    assert_eq!(served(&node), at("10.244.0.1:80"));
    let list = node.json(&["service", "list"]);
    let name = list[0]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("default/web.host-port-8080-tcp."), "{name}");
    assert_eq!((list[0]["type"].as_str(), &list[0]["conditions"]), (Some("HostPort"), &serde_json::json!([])));
    let described = text(&node.ask(&["service", "describe", &name]).stdout);
    assert!(described.contains("192.0.2.1:8080/tcp") && described.contains("10.244.0.1:80/tcp"), "{described}");
    let steps = node.json(&["explain", "tcp", "198.51.100.1:40000", "192.0.2.1:8080"]);
    assert_eq!(steps["choice"]["backends"][0]["address"], "10.244.0.1:80", "{steps}");

    node.put("second.yaml", &pod("second", 2, "here"));
    let status = node.json_when(&["status"], |status| status["conditions"] != serde_json::json!([]));
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("Pod default/second") && message.contains("that of Pod default/web"), "{message}");
    assert_eq!(served(&node), at("10.244.0.1:80"));
    node.put("web.yaml", "");
    node.json_when(&["status"], |status| status["conditions"] == serde_json::json!([]));
    assert_eq!(served(&node), at("10.244.0.2:80"));
}

#[test]
fn a_host_port_that_is_a_node_port_is_refused_by_an_agent_and_found_by_a_check() {
    let api = "apiVersion: v1\nkind: Service\nmetadata: {name: api}\nspec: {type: NodePort, clusterIP: 10.96.0.9, ports: \
               [{port: 80, nodePort: 8080}]}\n";
    let node = Node::running(&[("web.yaml", &pod("web", 1, "here")), ("api.yaml", api)]);
    let frontends: Vec<String> = served(&node).into_iter().map(|(frontend, _)| frontend).collect();
    assert!(frontends.contains(&"\"NodePort\" 192.0.2.1:8080".to_owned()), "{frontends:?}");
    assert!(!frontends.iter().any(|frontend| frontend.contains("HostPort")), "{frontends:?}");
    let says = "host port 8080/tcp is also the node port of Service default/api, which keeps it";
    let status = node.json(&["status"]);
    let refused = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Refused").unwrap();
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("Pod default/web") && message.contains(says), "{message}");
    fs::write(node.path("lb.yaml"), "node: here\n").unwrap();
    let mut check = lb();
    check.arg("check").arg("--config").arg(node.path("lb.yaml")).arg(node.path("manifests"));
    let checked = check.output().unwrap();
    assert!(!checked.status.success() && text(&checked.stdout).contains(says), "{checked:?}");
}
