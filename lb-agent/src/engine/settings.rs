//! Settings of the kernel that service traffic depends on.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{addr::Family, node::NodeFacts, state::State};

use super::Engine;
use crate::api::{Network, NetworkDevice};

/// Condition: packets of clients behind several uplinks may be dropped before they reach a backend on the node.
const REVERSE_PATH_STRICT: &str = "ReversePathStrict";
/// Condition: a device has no IPv6, because its MTU is too small.
const MTU_TOO_SMALL: &str = "MtuTooSmall";
/// The smallest MTU with which a device has IPv6 (`IPV6_MIN_MTU`, RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;
/// The value of `rp_filter` that wants the way back to lead through the same device.
const STRICT: u8 = 1;
/// Most devices that a message names.
const MOST_NAMED: usize = 3;

impl Engine {
    /// Reads the settings anew: the kernel says when one changes.
    pub(crate) fn follow_settings(&mut self) {
        if !self.carries_packets {
            return;
        }
        let attached = self.datapath.devices().unwrap_or_default();
        let names = attached.into_iter().chain(self.uplinks.iter().cloned()).collect();
        match (self.settings)(&names) {
            Ok(network) => {
                let before = self.shared.set_network(network.clone());
                log(&before, &network);
                self.network = network;
            }
            Err(error) => tracing::warn!(%error, "settings of devices cannot be read; lb status shows those before"),
        }
        self.judge_settings();
    }

    /// Says which settings break what is served, and when they do no more.
    pub(crate) fn judge_settings(&mut self) {
        let found = {
            let runner = self.shared.runner();
            let reconciler = runner.reconciler();
            let (node, desired) = (reconciler.model().node(), reconciler.desired());
            // Of the other kinds of datapath, the kernel routes every packet.
            let attaches = self.datapath.devices().is_some();
            let strict = if attaches { strict(&self.network, &self.uplinks, node, desired) } else { None };
            [(REVERSE_PATH_STRICT, strict), (MTU_TOO_SMALL, too_small(&self.network, desired))]
        };
        for (condition, problem) in found {
            match (self.bad_settings.get(condition), &problem) {
                (before, Some(problem)) if before != Some(problem) => {
                    tracing::warn!(condition, problem, "a setting of the kernel breaks service traffic");
                }
                (Some(before), None) => tracing::info!(condition, before, "a setting of the kernel is right again"),
                _ => {}
            }
            match &problem {
                Some(problem) => drop(self.bad_settings.insert(condition, problem.clone())),
                None => drop(self.bad_settings.remove(condition)),
            }
            self.shared.set_problem(condition, problem);
        }
    }
}

/// A packet for a backend on the node's own address goes through the node's routing, where the filter looks at the
/// client's source. All others are sent on before.
fn strict(network: &Network, uplinks: &[String], node: &NodeFacts, desired: &State) -> Option<String> {
    let is_strict = |device: &&NetworkDevice| device.rp_filter == Some(STRICT) && uplinks.contains(&device.name);
    let strict: Vec<&str> = network.devices.iter().filter(is_strict).map(|device| &*device.name).collect();
    if uplinks.len() < 2 || strict.is_empty() {
        return None;
    }
    let backend =
        desired.backends.values().find(|backend| backend.addr.ip.is_ipv4() && node.ips.contains(&backend.addr.ip))?;
    let commands =
        ["all"].iter().chain(&strict).map(|device| format!("net.ipv4.conf.{}.rp_filter=2", device.replace('.', "/")));
    Some(format!(
        "net.ipv4.conf.*.rp_filter is 1 (strict) for {}: packets of clients that come in by another uplink than the node's \
         route to them are dropped, if the backend is on an address of the node, such as {}; run `sysctl -w {}`",
        some_of(&strict),
        backend.addr,
        commands.collect::<Vec<_>>().join(" ")
    ))
}

fn too_small(network: &Network, desired: &State) -> Option<String> {
    let small: Vec<String> = network
        .devices
        .iter()
        .filter(|device| device.mtu < IPV6_MIN_MTU)
        .map(|device| format!("{} ({})", device.name, device.mtu))
        .collect();
    let serves_v6 = desired.frontends.keys().any(|addr| addr.family() == Family::V6);
    (!small.is_empty() && serves_v6).then(|| {
        format!(
            "the MTU of {} is below {IPV6_MIN_MTU}, so that the kernel has no IPv6 there: IPv6 services are not reached \
             through it; run `ip link set dev DEVICE mtu {IPV6_MIN_MTU}` or more",
            some_of(&small)
        )
    })
}

/// The first of these, and how many more there are.
fn some_of(all: &[impl AsRef<str>]) -> String {
    let named: Vec<&str> = all.iter().take(MOST_NAMED).map(AsRef::as_ref).collect();
    let more = all.len().saturating_sub(MOST_NAMED);
    let named = named.join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

/// A switch of the kernel, if it could be read.
const fn switch(is_on: Option<bool>) -> &'static str {
    match is_on {
        Some(true) => "on",
        Some(false) => "off",
        None => "not known",
    }
}

/// Devices that came or went are logged elsewhere.
fn log(before: &Network, now: &Network) {
    let general = |network: &Network| (network.ip_forward, network.ipv6_forwarding);
    if general(before) != general(now) {
        let (before, now) = (general(before), general(now));
        tracing::info!(
            ipv4_before = switch(before.0),
            ipv4_now = switch(now.0),
            ipv6_before = switch(before.1),
            ipv6_now = switch(now.1),
            "forwarding by the kernel changed"
        );
    }
    let known: BTreeMap<&str, &NetworkDevice> = before.devices.iter().map(|device| (&*device.name, device)).collect();
    for device in &now.devices {
        let settings = |device: &NetworkDevice| {
            let NetworkDevice { mtu, rp_filter, ip_forward, ipv6_forwarding, .. } = device;
            format!("mtu {mtu}, rp_filter {rp_filter:?}, forwarding {ip_forward:?}, of IPv6 {ipv6_forwarding:?}")
        };
        match known.get(&*device.name) {
            Some(before) if *before != device => {
                let (device, before, now) = (&device.name, settings(before), settings(device));
                tracing::info!(device, before, now, "settings of a device changed");
            }
            Some(_) => {}
            None => tracing::debug!(device = device.name, now = settings(device), "settings of a device"),
        }
    }
}

/// Reads the settings of these devices.
pub(super) type ReadSettings = fn(&BTreeSet<String>) -> std::io::Result<Network>;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use lb_core::memory::MemoryDatapath;

    use super::*;
    use crate::{
        driver::OpenDatapath,
        testing::{self, conditions, config},
    };

    /// A datapath that is attached to two uplinks and a pod.
    struct Attached(MemoryDatapath);

    impl OpenDatapath for Attached {
        fn datapath(&self) -> &dyn lb_core::datapath::Datapath {
            &self.0
        }

        fn datapath_mut(&mut self) -> &mut dyn lb_core::datapath::Datapath {
            &mut self.0
        }

        fn devices(&self) -> Option<Vec<String>> {
            Some(["eth0", "eth1", "veth0"].map(String::from).into())
        }
    }

    fn network(rp_filter: u8, mtu: u32, ip_forward: bool) -> Network {
        let device = |name: &str| NetworkDevice {
            name: name.into(),
            mtu,
            rp_filter: Some(rp_filter),
            ip_forward: Some(ip_forward || name != "eth1"),
            ipv6_forwarding: Some(true),
        };
        let devices = ["eth0", "eth1", "veth0"].map(device).into();
        Network { ip_forward: Some(true), ipv6_forwarding: Some(true), devices, ..Network::default() }
    }

    fn engine(manifests: &str, uplinks: &[&str]) -> Engine {
        let mut config = config();
        config.uplinks = uplinks.iter().map(ToString::to_string).collect();
        config.node.ips = vec!["10.0.0.2".parse().unwrap()];
        let mut capabilities = lb_core::datapath::Capabilities::all("memory");
        capabilities.needs_forwarding = true;
        let datapath = Box::new(Attached(MemoryDatapath::with_capabilities(capabilities)));
        let mut engine = Engine::new(
            &config,
            &[(lb_core::name::SourceName("test".into()), "web.yaml".into())],
            datapath,
            Box::new(|| {}),
        );
        engine.carries_packets = true;
        engine.forwarding = || lb_core::kernel::Forwarding { v4: Some(true), v6: Some(true) };
        engine.shared.take_changes(testing::changes(manifests));
        engine
    }

    #[test]
    fn a_strict_reverse_path_matters_with_two_uplinks_and_a_backend_on_the_node() {
        let strict = |uplinks: &[&str], rp_filter: u8, node: &str| {
            let mut engine = engine(testing::WEB, uplinks);
            engine.settle().unwrap();
            let runner = engine.shared.runner();
            let node = NodeFacts { ips: vec![node.parse().unwrap()], ..NodeFacts::default() };
            let uplinks: Vec<String> = uplinks.iter().map(ToString::to_string).collect();
            super::strict(&network(rp_filter, 1500, true), &uplinks, &node, runner.reconciler().desired())
        };
        let problem = strict(&["eth0", "eth1"], 1, "10.0.0.2").unwrap();
        assert!(
            problem.contains("strict) for eth0, eth1: ") && problem.contains("such as 10.0.0.2:8080/tcp"),
            "{problem}"
        );
        assert!(problem.ends_with("net.ipv4.conf.eth0.rp_filter=2 net.ipv4.conf.eth1.rp_filter=2`"), "{problem}");
        for (uplinks, rp_filter, node) in [
            (&["eth0", "eth1"][..], 2, "10.0.0.2"),
            (&["eth0", "eth1"], 0, "10.0.0.2"),
            (&["eth0"], 1, "10.0.0.2"),
            (&["eth0", "eth1"], 1, "10.0.0.9"),
        ] {
            assert_eq!(strict(uplinks, rp_filter, node), None);
        }
    }

    #[test]
    fn conditions_follow_settings() {
        static NOW: Mutex<(u8, u32, bool)> = Mutex::new((1, 1279, false));
        let six = "\n---\n{apiVersion: v1, kind: Service, metadata: {name: six}, \
                   spec: {clusterIP: 'fd00::1', ipFamilies: [IPv6], ports: [{port: 80}]}}\n";
        let mut engine = engine(&[testing::WEB, six].concat(), &["eth0", "eth1"]);
        engine.settings = |names| {
            assert_eq!(names.iter().collect::<Vec<_>>(), ["eth0", "eth1", "veth0"]);
            let (rp_filter, mtu, ip_forward) = *NOW.lock().unwrap();
            Ok(network(rp_filter, mtu, ip_forward))
        };
        engine.settle().unwrap();
        let named = |engine: &Engine| {
            let mut conditions = conditions(engine);
            conditions.retain(|name| !["NoEndpoints", "NoNodeIp", "NodeIpElsewhere"].contains(&name.as_str()));
            conditions
        };
        assert_eq!(named(&engine), ["ForwardingOff", MTU_TOO_SMALL, REVERSE_PATH_STRICT]);
        let status = engine.shared.status();
        let off = status.conditions.iter().find(|condition| condition.kind == "ForwardingOff").unwrap();
        assert!(off.message.starts_with("net.ipv4.conf.eth1.forwarding is 0: "), "{}", off.message);
        assert_eq!(status.network.devices, network(1, 1279, false).devices);
        for (now, expected) in [
            ((2, 1280, false), vec!["ForwardingOff"]),
            ((2, 1279, true), vec![MTU_TOO_SMALL]),
            ((2, 1280, true), vec![]),
        ] {
            *NOW.lock().unwrap() = now;
            engine.handle(super::super::Event::Devices);
            assert_eq!(named(&engine), expected);
        }
    }
}
