//! The networks that the node is connected to.

use std::io;

use ipnet::IpNet;
use lb_core::model::Change;

use super::Engine;

/// Condition: the networks of the node cannot be read.
const NETWORKS_UNKNOWN: &str = "NetworksUnknown";

impl Engine {
    /// Tells the model which addresses may belong to other hosts, if the datapath has a say in packets to them.
    pub(super) fn follow_networks(&mut self) {
        if self.datapath.datapath().capabilities().other_ports && self.carries_packets {
            self.take_networks((self.networks)());
        }
    }

    fn take_networks(&mut self, networks: io::Result<Vec<IpNet>>) {
        let networks = match networks {
            Ok(networks) => networks,
            Err(error) => {
                let problem =
                    format!("the addresses of devices cannot be read: {error}; the networks known so far stay");
                tracing::warn!(problem, "the networks of this node are not known");
                self.shared.set_problem(NETWORKS_UNKNOWN, Some(problem));
                return;
            }
        };
        self.shared.set_problem(NETWORKS_UNKNOWN, None);
        let before = self.shared.runner().reconciler().model().networks().to_vec();
        if before == networks {
            return;
        }
        let listed = |networks: &[IpNet]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        tracing::info!(
            before = listed(&before),
            now = listed(&networks),
            "networks of this node changed: other ports of service addresses in them are left to hosts"
        );
        self.shared.take_changes(vec![Change::SetNetworks(networks)]);
    }
}

#[cfg(test)]
mod tests {
    use lb_core::memory::MemoryDatapath;

    use super::*;
    use crate::testing::{self, conditions, config};

    #[test]
    fn networks_reach_the_model_and_stay_when_they_cannot_be_read() {
        let mut agent = testing::agent(&config(), MemoryDatapath::default());
        let known = |agent: &Engine| agent.shared.runner().reconciler().model().networks().to_vec();
        let networks: Vec<IpNet> = vec!["192.0.2.0/24".parse().unwrap()];
        agent.take_networks(Ok(networks.clone()));
        assert_eq!(known(&agent), networks);
        agent.take_networks(Err(io::Error::other("no memory")));
        assert_eq!((known(&agent), conditions(&agent)), (networks, vec![NETWORKS_UNKNOWN.to_owned()]));
        agent.take_networks(Ok(Vec::new()));
        assert_eq!((known(&agent), conditions(&agent)), (Vec::new(), Vec::new()));
    }

    #[test]
    fn only_a_datapath_with_a_say_in_other_ports_asks_for_networks() {
        let asked = |capabilities, carries_packets| {
            let mut agent = testing::agent(&config(), MemoryDatapath::with_capabilities(capabilities));
            agent.networks = || Ok(vec!["192.0.2.0/24".parse().unwrap()]);
            agent.carries_packets = carries_packets;
            agent.follow_networks();
            !agent.shared.runner().reconciler().model().networks().is_empty()
        };
        let all = || lb_core::datapath::Capabilities::all("test");
        assert!(asked(all(), true));
        assert!(!asked(all(), false) && !asked(all().with_other_ports(false), true));
    }
}
