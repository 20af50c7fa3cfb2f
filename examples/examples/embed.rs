//! An embedder's agent in a screenful: one service, one plan, on the datapath that the first argument names.
//!
//! `cargo run -p lb-examples --example embed` needs no privilege. With another datapath as argument it needs root,
//! programs the network namespace that it runs in, and removes everything again:
//! `unshare --net target/debug/examples/embed nftables`.

use lb_core::{
    addr::Protocol,
    datapath::Datapath,
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    memory::MemoryDatapath,
    model::{Change, Model, Settings},
    name::{ServiceName, SliceName},
    node::NodeFacts,
    reconciler::Reconciler,
    service::{Service, ServicePort},
    time::Instant,
};
use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath};
use lb_datapath_iptables::{
    iptables::{IptablesConfig, IptablesDatapath},
    nftables::{NftablesConfig, NftablesDatapath},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut datapath = open(std::env::args().nth(1).as_deref().unwrap_or("memory"))?;
    let mut reconciler = Reconciler::new(Model::new(Settings::default(), datapath.capabilities()));
    let node = NodeFacts { ips: vec!["192.0.2.1".parse()?], ..NodeFacts::default() };
    reconciler.handle_change(Change::SetNode(node))?;
    reconciler.handle_observed(datapath.observe()?);

    let (name, tcp) = (ServiceName::new("default", "web"), Protocol::Tcp);
    let port = ServicePort { name: "http".into(), protocol: tcp, port: 80, node_port: None };
    let cluster_ips = vec!["10.96.0.10".parse()?];
    reconciler.handle_change(Change::UpsertService(Service {
        cluster_ips,
        ports: vec![port],
        ..Service::new(name.clone())
    }))?;
    reconciler.handle_change(Change::ReplaceEndpoints(EndpointSlice {
        name: SliceName::new("default", "web-1"),
        service: name,
        ports: vec![SlicePort { name: "http".into(), protocol: tcp, port: 8080 }],
        endpoints: vec![Endpoint::new("10.244.0.7".parse()?), Endpoint::new("10.244.0.8".parse()?)],
    }))?;

    let now = Instant::default();
    while let Some(plan) = reconciler.poll_plan(now)? {
        println!("plan {}: {}", plan.id.0, plan.summary());
        let outcome = datapath.apply(&plan);
        reconciler.handle_applied(plan.id, outcome, now);
    }
    for (addr, frontend) in datapath.observe()?.frontends {
        println!("{} holds {addr} as frontend {}", datapath.capabilities().kind, frontend.id);
    }
    datapath.cleanup()?;
    Ok(())
}

fn open(kind: &str) -> Result<Box<dyn Datapath>, Box<dyn std::error::Error>> {
    Ok(match kind {
        "memory" => Box::new(MemoryDatapath::default()),
        "nftables" => Box::new(NftablesDatapath::open(&NftablesConfig::default())?),
        "iptables" => Box::new(IptablesDatapath::open(&IptablesConfig::default())?),
        "ebpf" => Box::new(EbpfDatapath::open(
            EbpfConfig::new(std::env::args().nth(2).ok_or("which cgroup? embed ebpf /sys/fs/cgroup/…")?)
                .with_pin_dir("/sys/fs/bpf/lb-example"),
        )?),
        other => return Err(format!("datapath `{other}` is not one of memory, nftables, iptables, ebpf").into()),
    })
}
