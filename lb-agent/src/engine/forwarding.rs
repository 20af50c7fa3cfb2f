//! Packets that are lost because the kernel does not forward them.

use lb_core::{addr::Family, kernel::Forwarding, reconciler::Reconciler};

use super::Engine;
use crate::api::{Network, NetworkDevice};

impl Engine {
    /// Says when the kernel does not forward packets that the datapath translates, and when it does again.
    pub(crate) fn check_forwarding(&mut self) {
        let problem = {
            let runner = self.shared.runner();
            let general = problem(runner.reconciler(), (self.forwarding)());
            let attaches = self.datapath.devices().is_some();
            general.or_else(|| attaches.then(|| of_devices(runner.reconciler(), &self.network)).flatten())
        };
        if problem != self.not_forwarded {
            match &problem {
                Some(problem) => tracing::warn!(problem, "the kernel does not forward packets"),
                None => tracing::info!("the kernel forwards packets again"),
            }
        }
        self.not_forwarded.clone_from(&problem);
        self.shared.set_problem("ForwardingOff", problem);
    }
}

fn problem(reconciler: &Reconciler, forwarding: Forwarding) -> Option<String> {
    if !reconciler.model().capabilities().needs_forwarding {
        return None;
    }
    let served = |family| reconciler.desired().frontends.keys().any(|addr| addr.family() == family);
    let off = [Family::V4, Family::V6].into_iter().filter(|&family| forwarding.is_off(family) && served(family));
    let settings: Vec<&str> = off.map(Forwarding::setting).collect();
    if settings.is_empty() {
        return None;
    }
    let commands: Vec<String> = settings.iter().map(|setting| format!("{setting}=1")).collect();
    Some(format!(
        "{} {} 0: packets of pods and of other machines do not reach backends elsewhere; run `sysctl -w {}`",
        settings.join(" and "),
        if settings.len() == 1 { "is" } else { "are" },
        commands.join(" ")
    ))
}

/// A program at a device asks whether this one forwards, of either family (`bpf_fib_lookup`).
fn of_devices(reconciler: &Reconciler, network: &Network) -> Option<String> {
    if !reconciler.model().capabilities().needs_forwarding {
        return None;
    }
    let served = |family| reconciler.desired().frontends.keys().any(|addr| addr.family() == family);
    let is_off = |device: &NetworkDevice, family| match family {
        Family::V4 => device.ip_forward == Some(false),
        Family::V6 => device.ipv6_forwarding == Some(false),
    };
    let mut settings = Vec::new();
    for (family, name) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")].into_iter().filter(|(family, _)| served(*family))
    {
        let off = network.devices.iter().filter(|device| is_off(device, family));
        settings.extend(off.map(|device| format!("net.{name}.conf.{}.forwarding", device.name.replace('.', "/"))));
    }
    let (first, more) = (settings.first()?, settings.len() - 1);
    let (others, are) =
        if more == 0 { (String::new(), "is") } else { (format!(" and {more} more such settings"), "are") };
    Some(format!(
        "{first}{others} {are} 0: packets that come in through such a device do not reach backends elsewhere; run \
         `sysctl -w {first}=1`"
    ))
}

#[cfg(test)]
mod tests {
    use lb_core::{
        addr::Protocol,
        datapath::Capabilities,
        decision::{Entry, Packet},
        memory::MemoryDatapath,
        model::Change,
        name::ServiceName,
        service::{Service, ServicePort},
    };

    use super::*;
    use crate::{
        api::view,
        testing::{self, conditions, config},
    };

    /// A ready agent whose datapath needs a kernel that forwards, or does not.
    fn agent(needs_forwarding: bool, forwarding: fn() -> Forwarding) -> Engine {
        let capabilities = Capabilities::all("memory").with_needs_forwarding(needs_forwarding);
        let mut agent = testing::agent(&config(), MemoryDatapath::with_capabilities(capabilities));
        agent.forwarding = forwarding;
        agent.settle().unwrap();
        agent
    }

    #[test]
    fn a_kernel_that_does_not_forward_is_a_condition_until_it_does() {
        let off = || Forwarding { v4: Some(false), v6: Some(false) };
        let mut agent = agent(true, off);
        assert_eq!(conditions(&agent), ["ForwardingOff"]);
        let message = &agent.shared.status().conditions[0].message;
        assert!(
            message.starts_with("net.ipv4.ip_forward is 0: ") && message.ends_with("`sysctl -w net.ipv4.ip_forward=1`"),
            "no frontend is of IPv6: {message}"
        );
        agent.forwarding = || Forwarding { v4: Some(true), v6: Some(false) };
        agent.check_forwarding();
        assert_eq!(conditions(&agent), Vec::<String>::new());
    }

    #[test]
    fn both_families_that_the_kernel_does_not_forward_are_named() {
        let capabilities = Capabilities::all("memory").with_needs_forwarding(true);
        let mut agent = testing::agent(&config(), MemoryDatapath::with_capabilities(capabilities));
        agent.forwarding = || Forwarding { v4: Some(false), v6: Some(false) };
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let (cluster_ips, ports) = (vec!["fd00::1".parse().unwrap()], vec![port]);
        let v6 = Service { cluster_ips, ports, ..Service::new(ServiceName::new("default", "six")) };
        agent.shared.take_changes(vec![Change::UpsertService(v6)]);
        agent.settle().unwrap();
        let status = agent.shared.status();
        let message = &status.conditions.iter().find(|it| it.kind == "ForwardingOff").unwrap().message;
        assert!(message.starts_with("net.ipv4.ip_forward and net.ipv6.conf.all.forwarding are 0: "), "{message}");
    }

    #[test]
    fn a_packet_that_the_kernel_does_not_forward_is_a_disagreement() {
        let packet = Packet {
            entry: Entry::Uplink,
            protocol: Protocol::Tcp,
            source: [198, 51, 100, 7].into(),
            source_port: 4000,
            destination: [10, 96, 0, 1].into(),
            destination_port: 80,
        };
        let mut agent = agent(true, || Forwarding { v4: Some(false), v6: None });
        let off = view::verification(&packet, &agent.verify(&packet).unwrap().unwrap());
        assert!(!off.agrees && off.disagreements[0].starts_with("forwarding: expected on"), "{off:?}");
        agent.forwarding = || Forwarding { v4: Some(true), v6: None };
        assert!(view::verification(&packet, &agent.verify(&packet).unwrap().unwrap()).agrees);
    }

    #[test]
    fn a_datapath_that_needs_no_forwarding_has_no_such_condition() {
        let off = || Forwarding { v4: Some(false), v6: Some(false) };
        assert_eq!(conditions(&agent(false, off)), Vec::<String>::new());
        assert_eq!(conditions(&agent(true, Forwarding::default)), Vec::<String>::new(), "not known");
    }
}
