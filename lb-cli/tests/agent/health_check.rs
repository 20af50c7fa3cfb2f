//! What a load balancer hears that asks a node for endpoints, through the real program and real HTTP.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    common::{lb, text},
    node::Node,
};

/// How long anything may take on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(20);

/// A port that nobody has, for a while at least.
fn free_port() -> u16 {
    TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

/// Service `web` of a load balancer, with a health check at `port`, and its endpoints: node and conditions of each.
fn web(policy: &str, port: u16, endpoints: &[(&str, &str)]) -> String {
    let endpoint = |(number, (node, conditions)): (usize, &(&str, &str))| {
        format!("- {{addresses: [10.244.0.{number}], nodeName: {node}, conditions: {{{conditions}}}}}\n")
    };
    let endpoints: String = (1..).zip(endpoints).map(endpoint).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  type: LoadBalancer\n  clusterIP: 10.96.0.10\n  \
         externalTrafficPolicy: {policy}\n  healthCheckNodePort: {port}\n  ports: [{{port: 80}}]\n\
         status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.10}}]}}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n{endpoints}"
    )
}

const READY: (&str, &str) = ("here", "ready: true");
const ELSEWHERE: (&str, &str) = ("there", "ready: true");
const TERMINATING: (&str, &str) = ("here", "ready: false, serving: true, terminating: true");

/// Status, weight and body of the answer at a port; `None` if the connection is refused.
fn heard(address: &str, port: u16) -> Option<(u16, String, Value)> {
    let mut stream = TcpStream::connect((address, port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let weight = head.lines().find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "));
    let status = head.split(' ').nth(1)?.parse().unwrap();
    // A port that is closed meanwhile says 503 and no more.
    Some((status, weight.unwrap_or_default().to_owned(), serde_json::from_str(body).unwrap_or_default()))
}

/// Asks until the answer has this status.
fn heard_when(port: u16, status: Option<u16>) -> Option<(u16, String, Value)> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let heard = heard("127.0.0.1", port);
        if heard.as_ref().map(|heard| heard.0) == status {
            return heard;
        }
        assert!(Instant::now() < deadline, "port {port} still says {heard:?}");
    }
}

#[test]
fn an_agent_answers_while_a_service_asks_for_it_and_as_its_endpoints_are() {
    let (port, other) = (free_port(), free_port());
    let node = Node::running(&[("web.yaml", &web("Local", port, &[READY, READY, ELSEWHERE]))]);
    for address in ["127.0.0.1", "::1"] {
        let (status, weight, body) = heard(address, port).unwrap();
        assert_eq!((status, weight.as_str()), (200, "2"));
        let expected = serde_json::json!({
            "service": { "namespace": "default", "name": "web" }, "localEndpoints": 2, "serviceProxyHealthy": true
        });
        assert_eq!(body, expected);
    }
    for (endpoints, status, weight) in
        [(&[TERMINATING][..], 503, "0"), (&[READY], 200, "1"), (&[ELSEWHERE], 503, "0"), (&[], 503, "0")]
    {
        node.put("web.yaml", &web("Local", port, endpoints));
        let heard = heard_when(port, Some(status)).unwrap();
        assert_eq!((heard.1.as_str(), &heard.2["serviceProxyHealthy"]), (weight, &Value::Bool(true)));
    }
    node.put("web.yaml", &web("Cluster", port, &[READY]));
    heard_when(port, None);
    node.put("web.yaml", &web("Local", port, &[READY]));
    heard_when(port, Some(200));
    node.put("web.yaml", &web("Local", other, &[READY]));
    heard_when(other, Some(200));
    heard_when(port, None);
    node.put("web.yaml", "");
    heard_when(other, None);
}

#[test]
fn lists_and_explanations_have_the_answer() {
    let port = free_port();
    let node = Node::running(&[("web.yaml", &web("Local", port, &[READY]))]);
    let check = &node.json(&["service", "get", "web"])["health_check"];
    let expected =
        serde_json::json!({ "port": port, "status": 200, "local_endpoints": 1, "healthy": true, "problem": null });
    assert_eq!(*check, expected);
    let described = text(&node.ask(&["service", "describe", "web"]).stdout);
    assert!(described.contains(&format!("Health check    port {port}: 200, 1 local endpoint\n")), "{described}");
    let destination = format!("192.0.2.1:{port}");
    let steps = node.json(&["explain", "tcp", "198.51.100.1:40000", &destination])["steps"].clone();
    let step = steps.as_array().unwrap().iter().find(|step| step["field"] == "health-check node port");
    assert!(step.is_some_and(|step| step["says"].as_str().unwrap().contains("answers here with 200")), "{steps}");
    node.put("web.yaml", &web("Local", port, &[]));
    heard_when(port, Some(503));
    let described = text(&node.ask(&["service", "describe", "web"]).stdout);
    assert!(described.contains(&format!("port {port}: 503, no local endpoint is ready\n")), "{described}");
}

#[test]
fn a_port_of_another_program_is_a_condition_until_it_is_free() {
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let node = Node::running(&[("web.yaml", &web("Local", port, &[READY]))]);
    let said = |status: &Value| {
        let all = status["conditions"].as_array().unwrap();
        let one = all.iter().find(|condition| condition["type"] == "HealthCheckUnanswered");
        one.map(|condition| condition["message"].as_str().unwrap().to_owned())
    };
    let message = said(&node.json(&["status"])).unwrap();
    assert!(message.contains(&format!("listening on 0.0.0.0:{port} failed")), "{message}");
    let described = text(&node.ask(&["service", "describe", "web"]).stdout);
    assert!(described.contains(&format!("Health check    port {port}: not answered\n")), "{described}");
    assert!(described.contains("HealthCheckUnanswered: health-check node port"), "{described}");
    drop(taken);
    node.json_when(&["status"], |status| said(status).is_none());
    assert_eq!(heard("127.0.0.1", port).unwrap().0, 200);
}

#[test]
fn two_services_with_one_number_are_found_before_they_are_served() {
    let port = free_port();
    let web = web("Local", port, &[READY]);
    let other = web.replace("web", "api").replace("10.96.0.10", "10.96.0.11").replace("203.0.113.10", "203.0.113.11");
    let node = Node::new(&[("api.yaml", &other), ("web.yaml", &web)]);
    let checked = lb().args(["check", "-o", "json"]).arg(node.path("manifests")).output().unwrap();
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap();
    for service in checked["services"].as_array().unwrap() {
        let conditions = service["conditions"].as_array().unwrap();
        let named = conditions.iter().find(|condition| condition["type"] == "HealthCheckUnanswered");
        let message = named.unwrap()["message"].as_str().unwrap();
        assert!(message.contains("default/api") && message.contains("default/web"), "{message}");
    }
    assert_eq!(heard("127.0.0.1", port), None, "a check opens no port");
}
