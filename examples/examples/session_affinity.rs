//! A client stays with its backend; another one may have another. On nftables, to show that it is a swap of one value.
//! Needs root.

use std::{collections::BTreeSet, error::Error, net::SocketAddr};

use lb_core::datapath::Datapath;
use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};
use lb_examples::Scene;
use lb_testkit::{lab::Origin, traffic::Request};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    lb_testkit::run_if_worker();
    let scene = Scene::new("session-affinity").map_err(|error| error.to_string())?;
    let mut datapath = scene.program(|_| Ok(NftablesDatapath::open(&NftablesConfig::default())?))?;
    let service = scene.manifests.services().next().ok_or("the manifests have a service")?;
    let to = SocketAddr::new(service.cluster_ips[0], service.ports[0].port);
    let mut reached = BTreeSet::new();
    for outcome in scene.lab.client(Origin::Node(0)).requests(&Request::http(to), 50)? {
        reached.insert(outcome.map_err(|failure| format!("{to}: {failure:?}"))?.pod);
    }
    println!("{} at {to}: 50 connections of one client reached {reached:?}", service.name);
    scene.lab.node(0).run(|| datapath.cleanup())??;
    if reached.len() == 1 { Ok(()) } else { Err("the client did not stay with its backend".into()) }
}
