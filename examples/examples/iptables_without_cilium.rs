//! The baseline: services as iptables rules, in kube-proxy's shape. Needs root.

use std::{collections::BTreeMap, error::Error, net::SocketAddr, process::Command};

use lb_core::datapath::Datapath;
use lb_datapath_iptables::iptables::{IptablesConfig, IptablesDatapath};
use lb_examples::Scene;
use lb_testkit::{lab::Origin, traffic::Request};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    lb_testkit::run_if_worker();
    let scene = Scene::new("iptables-without-cilium").map_err(|error| error.to_string())?;
    let node = scene.lab.node(0);
    let mut datapath = scene.program(|_| Ok(IptablesDatapath::open(&IptablesConfig::default())?))?;
    let service = scene.manifests.services().next().ok_or("the manifests have a service")?;
    let to = SocketAddr::new(service.cluster_ips[0], service.ports[0].port);
    let mut reached: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in scene.lab.client(Origin::Node(0)).requests(&Request::http(to), 100)? {
        *reached.entry(outcome.map_err(|failure| format!("{to}: {failure:?}"))?.pod).or_default() += 1;
    }
    println!("{} at {to}: {reached:?}", service.name);
    let rules = node.run(|| Command::new("iptables-nft-save").args(["-t", "nat"]).output())??;
    print!("{}", String::from_utf8_lossy(&rules.stdout));
    node.run(|| datapath.cleanup())??;
    Ok(())
}
