//! The addresses of the node, as its devices have them.

use std::{io, net::IpAddr};

use lb_core::{model::Change, node::NodeFacts};

use super::{Engine, networks::listed};
use crate::host::netlink;

/// Condition: the addresses of the node cannot be read.
const ADDRESSES_UNKNOWN: &str = "AddressesUnknown";

/// Reads the addresses of the devices that lead out of the node.
pub(super) struct AddressReader {
    devices: Vec<String>,
    read: fn(&[String]) -> io::Result<Vec<IpAddr>>,
}

impl AddressReader {
    pub(super) fn new(devices: Vec<String>) -> Self {
        Self { devices, read: netlink::addresses }
    }
}

impl Engine {
    /// Tells the model which addresses the node has, unless a setting says which those are.
    pub(super) fn follow_addresses(&mut self) {
        let Some(AddressReader { devices, read }) = &self.addresses else { return };
        match read(devices) {
            Ok(ips) => {
                self.shared.set_problem(ADDRESSES_UNKNOWN, None);
                self.take_addresses(&ips);
            }
            Err(error) => {
                let problem = format!("the addresses of devices cannot be read: {error}; those known so far stay");
                tracing::warn!(problem, "the addresses of this node are not known");
                self.shared.set_problem(ADDRESSES_UNKNOWN, Some(problem));
            }
        }
    }

    fn take_addresses(&mut self, found: &[IpAddr]) {
        let before = self.shared.runner().reconciler().model().node().clone();
        let ips = in_order(&before.ips, found);
        if before.ips == ips {
            return;
        }
        tracing::info!(
            before = listed(&before.ips),
            now = listed(&ips),
            "addresses of this node changed: node ports follow, and flows through an address that went are over"
        );
        let node = NodeFacts { ips, ..before };
        if let Some(surroundings) = &mut self.surroundings {
            surroundings.node_changed(node.clone());
        }
        self.shared.take_changes(vec![Change::SetNode(node)]);
        self.check_addresses();
    }
}

/// The addresses in `found`. Those known before come first, in their order: the first one is what sources are translated
/// to, and the kernel lists a new IPv6 address before the others.
fn in_order(before: &[IpAddr], found: &[IpAddr]) -> Vec<IpAddr> {
    let kept = before.iter().filter(|ip| found.contains(ip));
    let new = found.iter().filter(|ip| !before.contains(ip));
    kept.chain(new).copied().collect()
}

#[cfg(test)]
mod tests {
    use lb_core::memory::MemoryDatapath;

    use super::*;
    use crate::testing::{self, conditions, config};

    /// An agent whose devices have what `read` says.
    fn agent(read: fn(&[String]) -> io::Result<Vec<IpAddr>>) -> Engine {
        let mut config = config();
        config.node.ips = ips(&["192.0.2.1", "2001:db8::1"]);
        let mut agent = testing::agent_of(NODE_PORT, &config, MemoryDatapath::default());
        agent.settle().unwrap();
        agent.addresses = Some(AddressReader { devices: vec!["eth0".into()], read });
        agent
    }

    const NODE_PORT: &str = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, clusterIP: \
                             10.96.0.1, ports: [{port: 80, nodePort: 30080}]}}\n";

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn known(agent: &Engine) -> Vec<IpAddr> {
        agent.shared.runner().reconciler().model().node().ips.clone()
    }

    fn node_ports(agent: &Engine) -> Vec<String> {
        let runner = agent.shared.runner();
        let at = runner.reconciler().desired().frontends.keys().filter(|addr| addr.port == 30080);
        at.map(|addr| addr.ip.to_string()).collect()
    }

    #[test]
    fn node_ports_follow_addresses_that_come_and_go() {
        let mut agent = agent(|_| Ok(ips(&["192.0.2.9", "192.0.2.1", "2001:db8::1"])));
        assert_eq!(node_ports(&agent), ["192.0.2.1"]);
        agent.follow_addresses();
        agent.settle().unwrap();
        assert_eq!(known(&agent), ips(&["192.0.2.1", "2001:db8::1", "192.0.2.9"]), "the first one stays the first");
        assert_eq!(node_ports(&agent), ["192.0.2.1", "192.0.2.9"]);
        agent.addresses.as_mut().unwrap().read = |_| Ok(ips(&["192.0.2.9"]));
        agent.follow_addresses();
        agent.settle().unwrap();
        assert_eq!((known(&agent), node_ports(&agent)), (ips(&["192.0.2.9"]), vec!["192.0.2.9".to_owned()]));
    }

    #[test]
    fn addresses_that_cannot_be_read_stay_and_are_a_condition() {
        let mut agent = agent(|_| Err(io::Error::other("no memory")));
        let before = known(&agent);
        agent.follow_addresses();
        assert_eq!(known(&agent), before);
        assert!(conditions(&agent).contains(&ADDRESSES_UNKNOWN.to_owned()));
        agent.addresses.as_mut().unwrap().read = |_| Ok(ips(&["192.0.2.1"]));
        agent.follow_addresses();
        assert!(!conditions(&agent).contains(&ADDRESSES_UNKNOWN.to_owned()));
    }

    #[test]
    fn addresses_that_a_setting_names_are_not_looked_for() {
        let mut agent = agent(|_| Ok(Vec::new()));
        agent.addresses = None;
        let before = known(&agent);
        agent.follow_addresses();
        assert_eq!(known(&agent), before);
    }
}
