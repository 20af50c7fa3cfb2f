//! The blue-pool walk-through without an agent: manifests to an allocator, its answers to services, and these to a
//! datapath.
//!
//! Allocating needs no privilege; that a node reaches the address afterwards does, so this needs root.

use std::{
    error::Error,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use lb_core::{datapath::Datapath, name::SourceName};
use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};
use lb_examples::{Scene, directory};
use lb_ipam::{Allocator, MemoryLedger, Settings, Timestamp};
use lb_k8s::{Manifests, unservable};
use lb_testkit::{lab::Origin, traffic::Request};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    lb_testkit::run_if_worker();
    let mut manifests = Manifests::new(SourceName("manifests".into())).allocating();
    let batch = manifests.reload(&[directory("lb-ipam/blue-pool")]);
    batch.report.rejected.clone().map_or(Ok(()), |error| Err(error.to_string()))?;

    let settings = Settings::default().with_reserved(unservable());
    let mut allocator = Allocator::new(settings, MemoryLedger::default());
    batch.edits.into_iter().for_each(|edit| allocator.handle_edit(edit));
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let outcome = allocator.reconcile(Timestamp::from_secs(since_1970.as_secs()));
    for pool in allocator.pools() {
        println!("{}: {} of {} addresses are used", pool.name, pool.counts.used, pool.counts.total);
    }
    // An agent has the ledger on its disk by now: what follows cannot be taken back.
    let answers = outcome.writes.into_iter().map(|(service, status)| (service, Some(status.addresses)));
    let granted = manifests.grant(answers);

    let scene = Scene::new("lb-ipam/blue-pool").map_err(|error| error.to_string())?;
    let mut datapath = scene.program_with(&granted, |_| Ok(NftablesDatapath::open(&NftablesConfig::default())?))?;
    let echo = manifests.services().next().ok_or("the manifests have a service")?;
    let address = echo.load_balancer_ips.first().ok_or("it has an address by now")?;
    let to = SocketAddr::new(*address, echo.ports[0].port);
    let answer = scene.lab.client(Origin::Node(0)).request(&Request::http(to))?;
    println!("{} at http://{to}/: {} answers", echo.name, answer.map_err(|failure| format!("{to}: {failure}"))?.pod);
    scene.lab.node(0).run(|| datapath.cleanup())??;
    if to.to_string() == "20.0.20.100:8080" { Ok(()) } else { Err("another address was expected".into()) }
}
