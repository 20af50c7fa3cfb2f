//! An embedder's agent in a screenful: one service, one thread, on the datapath that the first argument names.
//!
//! `cargo run -p lb-examples --example embed` needs no privilege. With another datapath as argument it needs root,
//! programs the network namespace that it runs in, and removes everything again:
//! `unshare --net sh -c 'ip link set lo up && target/debug/examples/embed nftables'`.

use std::{error::Error, sync::mpsc};

use lb_core::{
    addr::Protocol,
    datapath::Datapath,
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    memory::MemoryDatapath,
    model::{Change, Model, Settings},
    name::{ServiceName, SliceName, SourceName},
    node::NodeFacts,
    runner::{Event, Runner},
    service::{Service, ServicePort},
};
use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath};
use lb_datapath_iptables::{
    iptables::{IptablesConfig, IptablesDatapath},
    nftables::{NftablesConfig, NftablesDatapath},
};

fn main() -> Result<(), Box<dyn Error>> {
    let datapath = open(std::env::args().nth(1).as_deref().unwrap_or("memory"))?;
    let (service, endpoints) = web()?;

    let node = NodeFacts { ips: vec!["192.0.2.1".parse()?], ..NodeFacts::default() };
    let source = SourceName("embedder".into());
    let model = Model::new(Settings::default(), datapath.capabilities());
    let runner = Runner::new(model, node, [source.clone()]);

    let (sender, events) = mpsc::channel();
    let handle = runner.spawn(datapath, move |event| drop(sender.send(event)))?;
    handle.change(Change::UpsertService(service))?;
    handle.change(Change::ReplaceEndpoints(endpoints))?;
    // What an earlier process left keeps serving until the first listing is complete.
    handle.change(Change::InitDone(source))?;
    for event in events {
        println!("{event}");
        match event {
            Event::NotPermitted(error) => return Err(error.into()),
            Event::Ready => break,
            _ => {}
        }
    }

    // The datapath goes on serving what it holds.
    let mut datapath = handle.stop()?;
    for (addr, frontend) in datapath.observe()?.frontends {
        println!("{} holds {addr} as frontend {}", datapath.capabilities().kind, frontend.id);
    }
    datapath.cleanup()?;
    Ok(())
}

/// A service with two backends.
fn web() -> Result<(Service, EndpointSlice), Box<dyn Error>> {
    let (name, tcp) = (ServiceName::new("default", "web"), Protocol::Tcp);
    let port = ServicePort { name: "http".into(), protocol: tcp, port: 80, node_port: None };
    let cluster_ips = vec!["10.96.0.10".parse()?];
    let service = Service { cluster_ips, ports: vec![port], ..Service::new(name.clone()) };
    let endpoints = EndpointSlice {
        name: SliceName::new("default", "web-1"),
        service: name,
        ports: vec![SlicePort { name: "http".into(), protocol: tcp, port: 8080 }],
        endpoints: vec![Endpoint::new("10.244.0.7".parse()?), Endpoint::new("10.244.0.8".parse()?)],
    };
    Ok((service, endpoints))
}

fn open(kind: &str) -> Result<Box<dyn Datapath>, Box<dyn Error>> {
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
