//! The networks that the node is connected to, and its addresses there.

use std::{collections::BTreeSet, io, net::IpAddr};

use ipnet::IpNet;
use lb_core::model::Change;

use super::Engine;
use crate::host::netlink::Networks;

/// Condition: the networks of the node cannot be read.
const NETWORKS_UNKNOWN: &str = "NetworksUnknown";
/// Condition: `node-ip` names an address that no device has.
const NODE_IP_ELSEWHERE: &str = "NodeIpElsewhere";

impl Engine {
    /// Tells the model which addresses are the node's own, and which may belong to other hosts.
    pub(super) fn follow_networks(&mut self) {
        if self.carries_packets {
            self.take_networks((self.networks)());
        }
    }

    fn take_networks(&mut self, networks: io::Result<Networks>) {
        let Networks { connected, local } = match networks {
            Ok(networks) => networks,
            Err(error) => {
                let problem = format!(
                    "the addresses of devices cannot be read: {error}; the networks and addresses known so far stay"
                );
                tracing::warn!(problem, "the networks of this node are not known");
                self.shared.set_problem(NETWORKS_UNKNOWN, Some(problem));
                return;
            }
        };
        self.shared.set_problem(NETWORKS_UNKNOWN, None);
        self.check_node_ips(&local);
        let (before, local_before) = {
            let runner = self.shared.runner();
            let model = runner.reconciler().model();
            (model.networks().to_vec(), model.local_addresses().clone())
        };
        if local_before != local {
            tracing::info!(
                before = listed(&local_before),
                now = listed(&local),
                "addresses of devices of this node changed: external addresses of services may not be among them, \
                 unless `external-ips-of-node` allows it"
            );
            self.shared.take_changes(vec![Change::SetLocalAddresses(local)]);
        }
        if self.datapath.datapath().capabilities().other_ports && before != connected {
            tracing::info!(
                before = listed(&before),
                now = listed::<IpNet>(&connected),
                "networks of this node changed: other ports of service addresses in them are left to hosts"
            );
            self.shared.take_changes(vec![Change::SetNetworks(connected)]);
        }
    }
}

impl Engine {
    /// Addresses that are followed are those of devices. Of those that a setting names, one may be on none.
    fn check_node_ips(&mut self, local: &BTreeSet<IpAddr>) {
        let own = self.shared.runner().reconciler().model().node().ips.clone();
        let elsewhere: Vec<IpAddr> =
            own.into_iter().filter(|ip| self.addresses.is_none() && !local.contains(ip)).collect();
        let problem = (!elsewhere.is_empty()).then(|| {
            format!(
                "--node-ip has {}, which no device of this node has: answers to flows that are translated to it do not \
                 come back unless it is routed here; correct the setting, or give the address to a device",
                listed(&elsewhere)
            )
        });
        if problem != self.node_ip_elsewhere {
            match &problem {
                Some(problem) => tracing::warn!(problem, "an address of this node is on no device"),
                None => tracing::info!("each address of this node is on a device"),
            }
        }
        self.shared.set_problem(NODE_IP_ELSEWHERE, problem.clone());
        self.node_ip_elsewhere = problem;
    }
}

pub(super) fn listed<'a, T: ToString + 'a>(all: impl IntoIterator<Item = &'a T>) -> String {
    all.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use lb_core::memory::MemoryDatapath;

    use super::*;
    use crate::testing::{self, conditions, config};

    fn networks() -> Networks {
        Networks { connected: vec!["192.0.2.0/24".parse().unwrap()], local: ["192.0.2.1".parse().unwrap()].into() }
    }

    /// What the model knows.
    fn known(agent: &Engine) -> Networks {
        let runner = agent.shared.runner();
        let model = runner.reconciler().model();
        Networks { connected: model.networks().to_vec(), local: model.local_addresses().clone() }
    }

    #[test]
    fn networks_reach_the_model_and_stay_when_they_cannot_be_read() {
        let mut agent = testing::agent(&config(), MemoryDatapath::default());
        agent.take_networks(Ok(networks()));
        assert_eq!(known(&agent), networks());
        agent.take_networks(Err(io::Error::other("no memory")));
        assert_eq!((known(&agent), conditions(&agent)), (networks(), vec![NETWORKS_UNKNOWN.to_owned()]));
        agent.take_networks(Ok(Networks::default()));
        assert_eq!((known(&agent), conditions(&agent)), (Networks::default(), Vec::new()));
    }

    #[test]
    fn only_a_datapath_with_a_say_in_other_ports_asks_for_networks_and_each_one_for_addresses() {
        let asked = |capabilities, carries_packets| {
            let mut agent = testing::agent(&config(), MemoryDatapath::with_capabilities(capabilities));
            agent.networks = || Ok(networks());
            agent.carries_packets = carries_packets;
            agent.follow_networks();
            known(&agent)
        };
        let all = || lb_core::datapath::Capabilities::all("test");
        assert_eq!(asked(all(), true), networks());
        assert_eq!(asked(all(), false), Networks::default());
        assert_eq!(asked(all().with_other_ports(false), true), Networks { connected: Vec::new(), ..networks() });
    }

    #[test]
    fn an_external_address_on_any_device_is_refused_whatever_node_ip_says() {
        const EXTERNAL: &str = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.1, \
                                externalIPs: [10.99.0.1], ports: [{port: 80}]}}\n";
        let mut config = config();
        config.node.ips = vec!["10.9.9.9".parse().unwrap()];
        let mut agent = testing::agent_of(EXTERNAL, &config, MemoryDatapath::default());
        agent.networks = || Ok(Networks { local: ["10.99.0.1".parse().unwrap()].into(), ..networks() });
        agent.carries_packets = true;
        agent.follow_networks();
        agent.settle().unwrap();
        let runner = agent.shared.runner();
        let served: Vec<String> = runner.reconciler().desired().frontends.keys().map(ToString::to_string).collect();
        assert_eq!(served, ["10.96.0.1:80/tcp"]);
        drop(runner);
        assert!(conditions(&agent).contains(&NODE_IP_ELSEWHERE.to_owned()), "10.9.9.9 is on no device");
        agent.networks = || Ok(Networks { local: ["10.9.9.9".parse().unwrap()].into(), ..networks() });
        agent.follow_networks();
        assert!(!conditions(&agent).contains(&NODE_IP_ELSEWHERE.to_owned()));
    }
}
