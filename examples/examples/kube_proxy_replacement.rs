//! kube-proxy's job in eBPF: no rule anywhere, and the client does not notice. Needs root.

use std::{collections::BTreeMap, error::Error, net::SocketAddr};

use lb_core::{addr::Family, datapath::Datapath};
use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath};
use lb_examples::Scene;
use lb_testkit::{lab::Origin, traffic::Request};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    lb_testkit::run_if_worker();
    let scene = Scene::new("kube-proxy-replacement").map_err(|error| error.to_string())?;
    let mut datapath = scene.program(|node| {
        let config = EbpfConfig::new(node.cgroup())
            .with_pin_dir(node.pin_dir()?)
            .with_pod_devices(node.pod_devices())
            .with_uplink_devices([node.uplink()]);
        Ok(EbpfDatapath::open(config)?)
    })?;
    let service = scene.manifests.services().next().ok_or("the manifests have a service")?;
    let to = SocketAddr::new(service.cluster_ips[0], service.ports[0].port);
    let mut reached: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in scene.lab.client(Origin::Node(0)).requests(&Request::http(to), 100)? {
        *reached.entry(outcome.map_err(|failure| format!("{to}: {failure:?}"))?.pod).or_default() += 1;
    }
    println!("{} at {to} ({:?}): {reached:?}", service.name, Family::of(to.ip()));
    let usage = datapath.counters().map(|counters| counters.usage()).transpose()?;
    println!("in the kernel: {usage:?}");
    datapath.cleanup()?;
    Ok(())
}
