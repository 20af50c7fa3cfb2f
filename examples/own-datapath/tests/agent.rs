//! lb's agent with a kind of datapath that it does not have.

use std::{error::Error, fs, sync::mpsc, thread, time::Duration};

use lb_agent::{agent::Agent, api::Client, config::Settings, source::ManifestDirectory};
use own_datapath::{AUDIT_LOG, AUDITED_MEMORY};

const WEB: &str = "\
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, labels: {kubernetes.io/service-name: web}},
 addressType: IPv4, ports: [{port: 8080}], endpoints: [{addresses: [10.244.0.7]}]}
";

#[test]
fn the_agent_serves_by_it_and_every_plan_is_in_the_log() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("manifests"))?;
    fs::write(path("manifests/web.yaml"), WEB)?;
    // SAFETY: this is the only test of the program, and no other thread runs yet.
    unsafe { std::env::set_var(AUDIT_LOG, path("audit.log")) };
    let settings = Settings::default()
        .with_datapath(&AUDITED_MEMORY)
        .with_node("here")
        .with_node_ip(["192.0.2.1".parse()?])
        .with_socket(path("lb.sock"))
        .with_state_dir(path("state"));
    let (tell, ready) = mpsc::channel();
    let agent = Agent::new(settings.complete()?)
        .source(ManifestDirectory::new(path("manifests")))
        .on_ready(move || tell.send(()).expect("the test waits for it"));
    let stop = agent.stop();
    let running = thread::spawn(move || agent.run());
    ready.recv_timeout(Duration::from_secs(30))?;

    let client = Client::new(&path("lb.sock"));
    assert_eq!(client.status()?.datapath.kind, "memory-audited");
    let services = client.services()?;
    assert_eq!(services[0].name, "default/web");
    let log = fs::read_to_string(path("audit.log"))?;
    assert!(log.starts_with("plan 1: "), "{log}");

    stop.stop("the test is over");
    running.join().expect("the agent does not panic")?;
    Ok(())
}
