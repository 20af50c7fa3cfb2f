//! How long manifests take from disk to changes: `cargo run --release -p lb-k8s --example scale [SERVICES]`.
//!
//! Writes that many services (10,000 by default) with a slice of four endpoints each, once into one file and once into
//! a file per service, and reads them back.

use std::{
    error::Error,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Instant,
};

use lb_core::{Endpoint, NodeName, Protocol, Service, ServiceName, ServicePort, SourceName};
use lb_k8s::{Manifests, write};

const ENDPOINTS: u32 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let services: u32 = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let start = Instant::now();
    let texts = (0..services).map(manifest).collect::<Result<Vec<_>, _>>()?;
    println!("rendered {services} services in {:?}", start.elapsed());

    let one = directory.path().join("one");
    fs::create_dir(&one)?;
    fs::write(one.join("all.yaml"), texts.concat())?;
    measure("one file", &one, services)?;

    let many = directory.path().join("many");
    fs::create_dir(&many)?;
    for (index, text) in texts.iter().enumerate() {
        fs::write(many.join(format!("{index:05}.yaml")), text)?;
    }
    measure("a file per service", &many, services)
}

fn manifest(index: u32) -> Result<String, write::WriteError> {
    let address = |network: u32, host: u32| IpAddr::V4(Ipv4Addr::from((network << 24) + host));
    let mut service = Service::new(ServiceName::new("default", &format!("service-{index}")));
    service.cluster_ips = vec![address(11, index + 1)];
    service.ports = vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }];
    let endpoint = |number| {
        let node = Some(NodeName::new(&format!("node-{}", number % 3)));
        Endpoint { node, ..Endpoint::new(address(12, index * ENDPOINTS + number + 1)) }
    };
    let endpoints: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
    write::service_with_endpoints(&service, &endpoints, |_| 8080)
}

fn measure(what: &str, directory: &Path, services: u32) -> Result<(), Box<dyn Error>> {
    let mut manifests = Manifests::new(SourceName("manifests".into()));
    let start = Instant::now();
    let batch = manifests.reload(&[directory]);
    println!("{what}: read to {} changes in {:?}", batch.changes.len(), start.elapsed());
    assert_eq!(batch.changes.len(), 2 * services as usize + 2);
    drop(batch);
    let start = Instant::now();
    let again = manifests.reload(&[directory]);
    println!("{what}: looked at again in {:?}", start.elapsed());
    assert!(again.changes.is_empty() && again.report.is_clean());

    let last = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .max_by_key(|path| path.as_ref().ok().cloned());
    let last = last.ok_or("the directory is empty")??;
    let changed = fs::read_to_string(&last)?.replace("port: 8080", "port: 8081");
    fs::write(&last, changed)?;
    let start = Instant::now();
    let batch = manifests.reload_files(&[last]);
    println!("{what}: one file that changed read to {} changes in {:?}", batch.changes.len(), start.elapsed());
    println!("{what}: resident at most {}", resident());
    Ok(())
}

fn resident() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.map_or("unknown".into(), |line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
}
