//! Pods on a Linux bridge, whose packets to each other netfilter may not see.

use std::{fs, net::IpAddr, path::Path};

use lb_core::node::NodeFacts;

use super::netlink::{self, Bridge};

/// Condition: answers among pods of one bridge pass netfilter by.
const BRIDGE_NOT_FILTERED: &str = "BridgeNotFiltered";

/// What keeps netfilter from the answers of pods: it translates a request that a pod of a bridge sends to a service,
/// and the answer of another pod of the same bridge goes back within the bridge.
pub(crate) fn hindrances(node: &NodeFacts) -> Vec<(&'static str, String)> {
    let bridges = match netlink::bridges() {
        Ok(bridges) => bridges,
        Err(error) => {
            tracing::debug!(%error, "bridges cannot be listed");
            return Vec::new();
        }
    };
    let problem = ["iptables", "ip6tables"].into_iter().enumerate().find_map(|(family, name)| {
        let sysctl = format!("bridge-nf-call-{name}");
        if is_on(&Path::new("/proc/sys/net/bridge").join(&sysctl)) {
            return None;
        }
        let bridge = bridges.iter().find(|bridge| is_affected(bridge, family == 1, node))?;
        Some(format!(
            "pods on bridge {} do not reach a service whose backend is on the same bridge, because the bridge hands \
             their answers on without netfilter: run `modprobe br_netfilter && sysctl -w net.bridge.{sysctl}=1`, and \
             make both permanent",
            bridge.name
        ))
    });
    problem.map(|problem| (BRIDGE_NOT_FILTERED, problem)).into_iter().collect()
}

/// Whether it is the gateway of several pods whose addresses are kept, and netfilter does not see what they answer.
/// Where every source is translated, answers come back to the node.
fn is_affected(bridge: &Bridge, is_v6: bool, node: &NodeFacts) -> bool {
    let is_pods = |ip: &&IpAddr| node.cluster_cidrs.iter().any(|cidr| cidr.contains(*ip));
    let is_gateway = bridge.ips.iter().filter(|ip| ip.is_ipv6() == is_v6).any(|ip| is_pods(&ip));
    is_gateway && bridge.ports > 1 && !bridge.filtered[usize::from(is_v6)]
}

/// Without the module `br_netfilter` there is no such file.
fn is_on(sysctl: &Path) -> bool {
    fs::read_to_string(sysctl).is_ok_and(|value| value.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bridges_with_pods_whose_sources_are_kept_matter() {
        let node = |cidr: &str| NodeFacts { cluster_cidrs: vec![cidr.parse().unwrap()], ..NodeFacts::default() };
        let bridge = Bridge {
            name: "cni0".into(),
            ports: 2,
            ips: vec!["10.244.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            filtered: [false; 2],
        };
        assert!(is_affected(&bridge, false, &node("10.244.0.0/16")));
        assert!(!is_affected(&bridge, true, &node("10.244.0.0/16")), "no pods of that family");
        assert!(is_affected(&bridge, true, &node("fd00::/64")));
        assert!(!is_affected(&bridge, false, &NodeFacts::default()), "every source is translated");
        assert!(!is_affected(&bridge, false, &node("10.99.0.0/16")), "a bridge of others");
        assert!(!is_affected(&Bridge { ports: 1, ..bridge.clone() }, false, &node("10.244.0.0/16")), "nobody else");
        assert!(!is_affected(&Bridge { filtered: [true, false], ..bridge }, false, &node("10.244.0.0/16")));
    }
}
