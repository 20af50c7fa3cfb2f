//! The kernel's own answer about a packet.

use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use crate::{
    addr::{BackendAddr, Family},
    decision::{Choice, Decision, Entry, FlowView, Packet, Shares, Socket, SourceRewrite, Verdict},
    model::Model,
};

/// The fate of a packet according to the kernel, which was asked itself: the memory of this process plays no part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelAnswer {
    /// How the kernel was asked, such as `BPF_PROG_TEST_RUN of lb_ingress`.
    pub method: String,
    /// Findings on the way to the answer, in order.
    pub steps: Vec<String>,
    /// The memory of the kernel about the flow and the client of the packet. A decision needs it to be comparable.
    pub flow: FlowView,
    /// The fate of the packet.
    pub verdict: KernelVerdict,
    /// What is wrong beyond the fate of this packet, such as a source that is none of the way to the backend. Each is a
    /// disagreement.
    pub faults: Vec<String>,
}

/// The fate of a packet in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelVerdict {
    /// The packet passes untouched.
    Pass,
    /// Refused at once.
    Reject,
    /// Dropped silently.
    Drop,
    /// It goes to a backend.
    Forward {
        /// To whom.
        backends: Backends,
        /// Whether its source is translated; `None` where the way of asking does not show it.
        translated: Option<bool>,
    },
}

/// The backends of a [`KernelVerdict`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backends {
    /// The one that the kernel took, this time.
    Took(BackendAddr),
    /// All that it may take, with their number of slots.
    MayTake(BTreeMap<BackendAddr, u32>),
}

impl KernelAnswer {
    /// The differences between this answer and `decision` about `packet`, which was made with [`flow`](Self::flow) in
    /// view. Empty if they agree.
    #[must_use]
    pub fn disagreements(&self, packet: &Packet, decision: &Decision) -> Vec<String> {
        let mut found = self.of_verdict(packet, decision);
        found.extend_from_slice(&self.faults);
        found
    }

    fn of_verdict(&self, packet: &Packet, decision: &Decision) -> Vec<String> {
        match (&self.verdict, &decision.verdict) {
            (KernelVerdict::Pass, Verdict::Pass)
            | (KernelVerdict::Reject, Verdict::Reject)
            | (KernelVerdict::Drop, Verdict::Drop) => Vec::new(),
            (KernelVerdict::Forward { backends, translated }, Verdict::Forward(forward)) => {
                let mut found: Vec<_> = of_choice(backends, &forward.choice).into_iter().collect();
                if let (Some(is), Backends::Took(backend)) = (*translated, backends) {
                    let rewrite = forward.source_rewrite(packet.source, *backend);
                    let should = matches!(rewrite, SourceRewrite::Translated { .. });
                    if is != should {
                        found.push(format!("source: expected {}, the kernel has {}", source(should), source(is)));
                    }
                }
                found
            }
            (is, should) => {
                Vec::from([format!("verdict: expected {}, the kernel has {}", verdict(should), kernel_verdict(is))])
            }
        }
    }
}

/// Whether the kernel passes packets on that come in through a device and are for another machine, as its settings say.
///
/// A datapath whose [capabilities](crate::datapath::Capabilities::needs_forwarding) say so depends on it: translated
/// packets are lost otherwise, although everything that the datapath owns is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Of IPv4; `None` if it is not known.
    pub v4: Option<bool>,
    /// Of IPv6; `None` if it is not known.
    pub v6: Option<bool>,
}

impl Forwarding {
    /// The setting that switches it on.
    #[must_use]
    pub const fn setting(family: Family) -> &'static str {
        match family {
            Family::V4 => "net.ipv4.ip_forward",
            Family::V6 => "net.ipv6.conf.all.forwarding",
        }
    }

    /// Whether it is known to be off.
    #[must_use]
    pub const fn is_off(self, family: Family) -> bool {
        let is_on = match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        };
        matches!(is_on, Some(false))
    }

    /// Why `packet`, which `decision` forwards, does not arrive: the kernel would have to forward it, and does not.
    ///
    /// A packet of the node itself, or for a backend on an address of the node, needs no forwarding.
    #[must_use]
    pub fn disagreement(self, model: &Model, packet: &Packet, decision: &Decision) -> Option<String> {
        let (node, family) = (model.node(), Family::of(packet.destination));
        let Verdict::Forward(forward) = &decision.verdict else { return None };
        let from_elsewhere = packet.entry != Entry::Socket || node.is_pod(packet.source);
        let leaves = |backend: &BackendAddr| !node.ips.contains(&backend.ip);
        let to_elsewhere = match &forward.choice {
            Choice::Exactly(backend) => leaves(backend),
            Choice::OneOf(weights) => weights.keys().any(leaves),
        };
        let lost = model.capabilities().needs_forwarding && self.is_off(family) && from_elsewhere && to_elsewhere;
        let setting = Self::setting(family);
        lost.then(|| {
            format!("forwarding: expected on, the kernel has {setting} = 0 and loses the packet; run `sysctl -w {setting}=1`")
        })
    }
}

/// The verdict, and how the kernel was asked.
impl fmt::Display for KernelAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.verdict, self.method)
    }
}

impl fmt::Display for KernelVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => Verdict::Pass.fmt(f),
            Self::Reject => Verdict::Reject.fmt(f),
            Self::Drop => Verdict::Drop.fmt(f),
            Self::Forward { backends, translated } => {
                write!(f, "forwarded to {backends}")?;
                f.write_str(match translated {
                    Some(true) => ", source translated",
                    Some(false) => ", source kept",
                    None => "",
                })
            }
        }
    }
}

impl fmt::Display for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Took(backend) => Socket(backend).fmt(f),
            Self::MayTake(some) => Shares(some).fmt(f),
        }
    }
}

fn of_choice(backends: &Backends, choice: &Choice) -> Option<String> {
    let agrees = match (backends, choice) {
        (Backends::Took(backend), choice) => choice.allows(backend),
        (Backends::MayTake(some), Choice::Exactly(only)) => some.len() == 1 && some.contains_key(only),
        (Backends::MayTake(some), Choice::OneOf(weights)) => some.keys().eq(weights.keys()),
    };
    let found: Vec<_> = match backends {
        Backends::Took(backend) => Vec::from([backend.to_string()]),
        Backends::MayTake(some) => some.keys().map(ToString::to_string).collect(),
    };
    let wanted: Vec<_> = match choice {
        Choice::Exactly(backend) => Vec::from([backend.to_string()]),
        Choice::OneOf(weights) => weights.keys().map(ToString::to_string).collect(),
    };
    (!agrees).then(|| format!("backend: expected {}, the kernel has {}", wanted.join(" or "), found.join(" or ")))
}

const fn source(translated: bool) -> &'static str {
    if translated { "a translated one" } else { "the client's" }
}

const fn verdict(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Forward(_) => "forward",
        Verdict::Reject => "refuse",
        Verdict::Drop => "drop",
    }
}

const fn kernel_verdict(verdict: &KernelVerdict) -> &'static str {
    match verdict {
        KernelVerdict::Pass => "pass",
        KernelVerdict::Forward { .. } => "forward",
        KernelVerdict::Reject => "refuse",
        KernelVerdict::Drop => "drop",
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use core::net::IpAddr;

    use super::*;
    use crate::{
        addr::Protocol,
        datapath::Capabilities,
        decision::decide,
        endpoint::{Endpoint, EndpointSlice, SlicePort},
        model::{Change, Settings},
        name::{ServiceName, SliceName},
        node::NodeFacts,
        service::{Service, ServicePort},
        time::Instant,
    };

    const NODE: [u8; 4] = [192, 0, 2, 1];
    const POD: [u8; 4] = [10, 244, 0, 9];
    const OUTSIDE: [u8; 4] = [198, 51, 100, 7];
    const OFF: Forwarding = Forwarding { v4: Some(false), v6: Some(true) };

    /// What is said of a packet from `source` to a service of these backends.
    fn said(
        needs_forwarding: bool,
        forwarding: Forwarding,
        (entry, source): (Entry, [u8; 4]),
        backends: &[[u8; 4]],
    ) -> Option<String> {
        let capabilities = Capabilities::all("test").with_needs_forwarding(needs_forwarding);
        let mut model = Model::new(Settings::default(), capabilities);
        let name = ServiceName::new("default", "web");
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let service =
            Service { cluster_ips: vec![[10, 96, 0, 1].into()], ports: vec![port], ..Service::new(name.clone()) };
        let slice = EndpointSlice {
            name: SliceName::new("default", "web-1"),
            service: name,
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: backends.iter().map(|&ip| Endpoint::new(ip.into())).collect(),
        };
        let cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
        let node = NodeFacts { ips: vec![NODE.into()], cluster_cidrs, ..NodeFacts::default() };
        for change in [Change::SetNode(node), Change::UpsertService(service), Change::ReplaceEndpoints(slice)] {
            model.apply(change).unwrap();
        }
        let packet = Packet {
            entry,
            protocol: Protocol::Tcp,
            source: IpAddr::from(source),
            source_port: 4000,
            destination: [10, 96, 0, 1].into(),
            destination_port: 80,
        };
        let decision = decide(&model, &packet, &FlowView::default(), Instant::default());
        forwarding.disagreement(&model, &packet, &decision)
    }

    #[test]
    fn a_packet_that_has_to_be_forwarded_is_lost_while_forwarding_is_off() {
        let there = &[[10, 244, 1, 1]][..];
        for from in [(Entry::PodDevice, POD), (Entry::Uplink, OUTSIDE), (Entry::Socket, POD)] {
            assert_eq!(
                said(true, OFF, from, there).as_deref(),
                Some(
                    "forwarding: expected on, the kernel has net.ipv4.ip_forward = 0 and loses the packet; \
                     run `sysctl -w net.ipv4.ip_forward=1`"
                )
            );
            assert_eq!(said(true, Forwarding { v4: Some(true), v6: Some(false) }, from, there), None);
            assert_eq!(said(true, Forwarding::default(), from, there), None, "not known");
            assert_eq!(said(false, OFF, from, there), None, "not needed");
            assert_eq!(said(true, OFF, from, &[]), None, "refused");
            assert_eq!(said(true, OFF, from, &[NODE]), None, "the node itself answers");
            assert!(said(true, OFF, from, &[NODE, [10, 244, 1, 1]]).is_some());
        }
        assert_eq!(said(true, OFF, (Entry::Socket, NODE), there), None, "a packet of the node");
    }
}
