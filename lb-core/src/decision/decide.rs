//! The function that decides.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::ops::RangeInclusive;

use super::{Choice, Decision, Entry, FlowView, Forward, Packet, SourceRewrite, Verdict};
use crate::{
    addr::{BackendAddr, Family, FrontendAddr, FrontendKind, Protocol, Scope},
    affinity::Affinity,
    datapath::{SocketCapability, SocketOwners},
    desired::{effective_affinity, scopes, table_spec},
    flow_hash::{self, FLOW_SEED},
    model::{Model, Owner},
    selection::{Reason, Selection},
    service::{Algorithm, Service, ServicePort, TrafficPolicy},
    state::{Guard, GuardedTraffic, OtherPorts},
    time::Instant,
};

/// Decides the fate of `packet`. The function is pure, and every datapath is tested against it.
///
/// If a datapath cannot do what a service asks for, the decision follows that datapath's
/// [capabilities](crate::datapath::Capabilities) instead.
#[must_use]
pub fn decide(model: &Model, packet: &Packet, flow: &FlowView, now: Instant) -> Decision {
    let mut decision = Decision { verdict: Verdict::Pass, frontend: None, steps: Vec::new(), rejected: Vec::new() };
    if flow.direct {
        let says = "it answers a flow that is for no frontend: passed on".into();
        decision.step(format!("flow to {}", packet.destination), "frontend", says);
        return decision;
    }
    if is_unseen(model, packet) {
        let says = "does not see what the node sends to an address of its own".into();
        decision.step(format!("datapath {}", model.capabilities().kind), "capabilities", says);
        return decision;
    }
    let Some(matched) = MatchedFrontend::new(model, packet, &mut decision) else {
        decision.verdict = of_another_port(model, packet, flow, &mut decision);
        return decision;
    };
    if let Some(why) = forged(model, packet) {
        decision.step(format!("source {}", packet.source), "forged", format!("{why}: dropped"));
        decision.verdict = Verdict::Drop;
        return decision;
    }
    let selection = matched.select(&mut decision);
    decision.verdict = matched.verdict(&selection, flow, now, &mut decision);
    decision.rejected = selection.rejected;
    decision
}

/// The fate of a packet that no frontend takes. A connection that a frontend took before it went goes on.
fn of_another_port(model: &Model, packet: &Packet, flow: &FlowView, decision: &mut Decision) -> Verdict {
    let ip = packet.destination;
    if let Some(backend) = flow.established.filter(|_| packet.protocol != Protocol::Udp) {
        decision.step(format!("flow to {ip}"), "backend", format!("goes on to {backend}, as it began"));
        return Verdict::Pass;
    }
    let Some(fate) = model.other_ports(ip).filter(|_| model.capabilities().other_ports) else {
        decision.step(format!("address {ip}"), "frontends", "none takes the packet: passed on".into());
        return Verdict::Pass;
    };
    let (verdict, says) = match fate {
        OtherPorts::Pass => (Verdict::Pass, "it is, or may be, an address of a host: passed on"),
        OtherPorts::Reject => (Verdict::Reject, "it is a cluster address, and has other ports only: refused"),
        OtherPorts::Drop => (Verdict::Drop, "it is an address for clients outside, and has other ports only: dropped"),
    };
    decision.step(format!("address {ip}"), "other ports", says.into());
    if let Some(why) = forged(model, packet).filter(|_| fate != OtherPorts::Pass) {
        decision.step(format!("source {}", packet.source), "forged", format!("{why}: dropped"));
        return Verdict::Drop;
    }
    if model.answers_ping(ip) {
        decision.step(format!("address {ip}"), "pings", "this node answers them".into());
    }
    verdict
}

/// Why the datapath drops the packet whatever its frontend says, if it does.
fn forged(model: &Model, packet: &Packet) -> Option<&'static str> {
    packet.forged(model.node()).filter(|_| model.capabilities().drops_forged)
}

/// Whether the datapath never sees the packet: a process of the node sends it to an address that the node has.
fn is_unseen(model: &Model, packet: &Packet) -> bool {
    let node = model.node();
    let stays = node.ips.contains(&packet.destination) || packet.source == packet.destination;
    model.capabilities().sockets_of(packet.protocol) == SocketCapability::Egress && packet.is_of_node(node) && stays
}

/// The fate of an established flow.
enum Established {
    Stays(BackendAddr),
    Cut,
}

/// The frontend that a packet is for, with everything that the decision needs to know about it.
struct MatchedFrontend<'a> {
    model: &'a Model,
    packet: &'a Packet,
    service: &'a Service,
    port: &'a ServicePort,
    addr: FrontendAddr,
    kind: FrontendKind,
    policy: TrafficPolicy,
    affinity: Option<Affinity>,
    guard: Option<Guard>,
}

impl<'a> MatchedFrontend<'a> {
    fn new(model: &'a Model, packet: &'a Packet, decision: &mut Decision) -> Option<Self> {
        let addr = FrontendAddr::new(packet.destination, packet.destination_port, packet.protocol);
        let Some(Owner { port: owner, kind }) = model.owner(&addr) else {
            decision.step(format!("frontend {addr}"), "owner", "no service has it".into());
            return None;
        };
        let service = model.service(&owner.service)?;
        let frontend = model.frontends(service).find(|frontend| frontend.addr == addr)?;
        decision.step(format!("frontend {addr}"), "owner", format!("{kind} of service {owner}"));
        if !model.carries(service, &frontend) {
            let datapath = model.capabilities().kind;
            decision.step(format!("datapath {datapath}"), "capabilities", "does not carry this frontend".into());
            return None;
        }
        let scopes = scopes(model, service, *kind);
        let wanted = if packet.entry == Entry::Uplink { Scope::External } else { Scope::Internal };
        let (scope, policy) = *scopes.iter().find(|(scope, _)| *scope == wanted).or(scopes.first())?;
        let addr = FrontendAddr { scope, ..addr };
        decision.frontend = Some(addr);
        Some(Self {
            model,
            packet,
            service,
            port: frontend.port,
            addr,
            kind: *kind,
            policy,
            affinity: effective_affinity(model, service),
            guard: model.guard(service, *kind, addr.family()),
        })
    }

    fn select(&self, decision: &mut Decision) -> Selection {
        let selection = self.model.selection(self.service, self.port, self.addr.family(), self.policy);
        let object = || format!("service {}", self.service.name);
        let (usable, all) = (selection.usable.len(), selection.usable.len() + selection.rejected.len());
        let says = format!("{:?}: {usable} of {all} backends take new flows", self.policy);
        decision.step(object(), "traffic policy", says);
        if let Some(near) = &selection.near {
            let (field, why) = match self.service.traffic_distribution {
                Some(distribution) => ("traffic distribution", format!("{distribution}: ")),
                None => ("hints", String::new()),
            };
            decision.step(object(), field, format!("{why}those meant for {near}"));
        }
        if selection.panic {
            let threshold = self.model.rules(self.service, self.policy).panic_threshold;
            let says = format!("less than {threshold} % of backends are well: health is not looked at");
            decision.step(object(), "panic threshold", says);
        }
        selection
    }

    fn verdict(&self, selection: &Selection, flow: &FlowView, now: Instant, decision: &mut Decision) -> Verdict {
        match self.established(selection, flow, now, decision) {
            Some(Established::Stays(backend)) => return self.forward(Choice::Exactly(backend), decision),
            Some(Established::Cut) => return Verdict::Reject,
            None => {}
        }
        if self.keeps_out(decision) {
            return Verdict::Drop;
        }
        if selection.usable.is_empty() {
            let (verdict, says) = if selection.excluded_by_policy {
                (Verdict::Drop, "none on this node: dropped")
            } else {
                (Verdict::Reject, "none usable: refused")
            };
            decision.step(format!("service {}", self.service.name), "backends", says.into());
            return verdict;
        }
        let choice = match self.remembered_backend(selection, flow, now, decision) {
            Some(backend) => Choice::Exactly(backend),
            None => self.choose(selection, decision),
        };
        self.forward(choice, decision)
    }

    /// Whether the source ranges of the service keep the source of a new flow out.
    fn keeps_out(&self, decision: &mut Decision) -> bool {
        let Some(guard) = &self.guard else { return false };
        let source = self.packet.source;
        let admits = guard.admits(self.packet, self.model.node());
        let why = match guard.ranges.prefix_of(source) {
            _ if admits && !guard.ranges.admit(source) => {
                let node = self.model.node();
                let who = if self.packet.is_of_node(node) { "a process of the node" } else { "inside of the cluster" };
                format!("{source} comes from {who}: let in whatever they say")
            }
            Some(prefix) => format!("{source} is in {prefix}"),
            None => format!("{source} is in none of them"),
        };
        let fate = if admits { "" } else { ": dropped" };
        let says = format!("{}: {why}{fate}", guard.ranges);
        decision.step(format!("service {}", self.service.name), "source ranges", says);
        !admits
    }

    /// The fate of the packet's flow; `None` if there is no flow or it has to be treated as new.
    ///
    /// It stays with a usable backend. With another one, a UDP flow stays as long as that backend serves and there is a
    /// usable one. Any other flow stays, unless the drain policy cuts it, which it never does to a backend that is well
    /// and only not for this node.
    fn established(
        &self,
        selection: &Selection,
        flow: &FlowView,
        now: Instant,
        decision: &mut Decision,
    ) -> Option<Established> {
        let backend = flow.established?;
        let object = format!("flow to {}", self.addr);
        if selection.usable.iter().any(|usable| usable.addr == backend) {
            decision.step(object, "backend", format!("keeps {backend}"));
            return Some(Established::Stays(backend));
        }
        let reason = selection.rejected.iter().find(|(addr, _)| *addr == backend).map(|(_, reason)| reason);
        let why = reason.map_or_else(|| "no longer there".into(), Reason::to_string);
        if self.packet.protocol == Protocol::Udp {
            let serves = selection.draining.iter().any(|draining| draining.addr == backend);
            let stays = serves && !selection.usable.is_empty();
            let says = match (stays, serves) {
                (true, _) => format!("keeps {backend}, which still serves: it is {why}"),
                (false, true) => format!("leaves {backend}, which is {why}: no backend takes new flows"),
                (false, false) => format!("leaves {backend}, which is {why}: chosen anew"),
            };
            decision.step(object, "backend", says);
            return stays.then_some(Established::Stays(backend));
        }
        if reason.is_some_and(Reason::is_about_place) {
            decision.step(object, "backend", format!("keeps {backend}, which is well but not for this node"));
            return Some(Established::Stays(backend));
        }
        let policy = self.model.drain(self.service);
        let keeps = policy.keeps(flow.left, now);
        let says = if keeps { "keeps" } else { "is cut from" };
        decision.step(object, "drain policy", format!("{policy}: {says} {backend}, which is {why}"));
        Some(if keeps { Established::Stays(backend) } else { Established::Cut })
    }

    fn remembered_backend(
        &self,
        selection: &Selection,
        flow: &FlowView,
        now: Instant,
        decision: &mut Decision,
    ) -> Option<BackendAddr> {
        let affinity = self.affinity?;
        let object = format!("affinity of {} at {}", affinity.client(self.packet.source), self.addr);
        let Some(record) = flow.affinity else {
            decision.step(object, "record", "none: chosen anew".into());
            return None;
        };
        let (holds, says) = if !record.holds(&affinity, now) {
            (false, format!("timed out after {} s", affinity.timeout.as_secs()))
        } else if !selection.usable.iter().any(|usable| usable.addr == record.backend) {
            (false, format!("{} takes no new flows", record.backend))
        } else {
            (true, format!("sticks to {}", record.backend))
        };
        decision.step(object, "record", says);
        holds.then_some(record.backend)
    }

    fn choose(&self, selection: &Selection, decision: &mut Decision) -> Choice {
        let spec = table_spec(self.model, self.service, selection);
        let object = format!("service {}", self.service.name);
        if let [(only, _)] = spec.backends[..] {
            decision.step(object, "backends", format!("{only} is the only one"));
            return Choice::Exactly(only);
        }
        let slots = spec.slots(&self.model.settings().maglev);
        let (hash, what) = match self.affinity {
            Some(affinity) => (affinity.client_hash(self.packet.source), "client"),
            None => (self.packet.flow_hash(), "flow"),
        };
        if spec.algorithm == Algorithm::LeastConnections && !self.at_socket() {
            let two = flow_hash::two_slots(hash, FLOW_SEED, slots.len() as u32);
            let [first, second] = two.map(|slot| spec.backends[slots[slot as usize] as usize].0);
            let says = format!(
                "least-connections: {what} hash {hash:#010x} is slots {} and {} of {}: {first}, or {second} if it has fewer \
                 connections",
                two[0],
                two[1],
                slots.len()
            );
            decision.step(object, "algorithm", says);
            let both = || Choice::OneOf([(first, 1), (second, 1)].into());
            return if first == second { Choice::Exactly(first) } else { both() };
        }
        if spec.algorithm == Algorithm::Maglev && !self.at_socket() {
            let slot = flow_hash::slot(hash, slots.len() as u32);
            let backend = spec.backends[slots[slot as usize] as usize].0;
            let says = format!("maglev: {what} hash {hash:#010x} is slot {slot} of {}: {backend}", slots.len());
            decision.step(object, "algorithm", says);
            return Choice::Exactly(backend);
        }
        let mut weights = BTreeMap::new();
        for index in slots {
            *weights.entry(spec.backends[index as usize].0).or_insert(0) += 1;
        }
        decision.step(object, "algorithm", format!("{}: one of {}", spec.algorithm, weights.len()));
        Choice::OneOf(weights)
    }

    /// Whether the datapath translates this packet's socket rather than the packet.
    ///
    /// A socket has no source address yet when it connects. A pod's socket that has to be checked is therefore left
    /// alone, and its packets are translated when they leave the pod. So is everybody's whose source says which backend
    /// it uses, but for a process of the node that talks to the node.
    fn at_socket(&self) -> bool {
        let (packet, node) = (self.packet, self.model.node());
        let stays =
            packet.is_of_node(node) && (node.ips.contains(&packet.destination) || packet.destination.is_loopback());
        if self.model.leaves_sockets(self.service) && !stays {
            return false;
        }
        let sockets = self.model.capabilities().sockets_of(self.packet.protocol);
        let SocketCapability::Connect { whose, .. } = sockets else { return false };
        let needs_source = self.guard.as_ref().is_some_and(|guard| guard.traffic == GuardedTraffic::All);
        let waits = needs_source || whose == SocketOwners::Node;
        self.packet.entry == Entry::Socket && (!waits || self.packet.is_of_node(self.model.node()))
    }

    fn forward(&self, choice: Choice, decision: &mut Decision) -> Verdict {
        let node = self.model.node();
        let family = self.addr.family();
        let several = node.ips.iter().filter(|&&ip| Family::of(ip) == family).count() > 1;
        // The model does not know routes, only that the source is one of the node's addresses.
        let by_route = several && self.model.capabilities().routed_sources;
        let translated = || SourceRewrite::Translated {
            addr: node.primary_ip(family).filter(|_| !by_route),
            ports: self.translated_ports(),
        };
        let outside = self.kind.is_external() && self.packet.entry == Entry::Uplink;
        let keeps_source = outside && self.policy == TrafficPolicy::Local;
        // A pod of another node: its backend would answer it past this node.
        let pod_elsewhere =
            outside && self.model.translates_pods(self.kind, self.policy) && node.is_pod(self.packet.source);
        let sees_no_loopback = self.model.capabilities().sockets_of(self.packet.protocol) == SocketCapability::Egress;
        let (source, hairpin_source, why) = if sees_no_loopback && self.packet.is_of_node(node) {
            let ports = self.translated_ports();
            let as_frontend = SourceRewrite::Translated { addr: Some(self.addr.ip), ports };
            (translated(), as_frontend, "translated: to the frontend's for a backend on the node")
        } else if self.at_socket() {
            (SourceRewrite::Kept, SourceRewrite::Kept, "kept: the socket is connected to the backend itself")
        } else if keeps_source {
            (SourceRewrite::Kept, translated(), "kept: traffic policy Local")
        } else if pod_elsewhere {
            (translated(), translated(), "translated: a pod of another node")
        } else if node.is_pod(self.packet.source) {
            (SourceRewrite::Kept, translated(), "kept, unless the backend is the sender: a pod of the cluster")
        } else {
            (translated(), translated(), "translated: not a pod of the cluster")
        };
        decision.step("node".to_string(), "cluster CIDRs", format!("source {} {why}", self.packet.source));
        self.delivered_here(Forward { choice, source, hairpin_source, here: BTreeSet::new() }, decision)
    }

    /// Ports of a translated source: the packet's own, if the datapath cannot rewrite those of its protocol.
    fn translated_ports(&self) -> RangeInclusive<u16> {
        let capabilities = self.model.capabilities();
        let is_fixed = self.packet.protocol == Protocol::Sctp && !capabilities.sctp_ports;
        let own = self.packet.source_port;
        if is_fixed { own..=own } else { capabilities.translated_ports.clone() }
    }

    /// The same, but the source is kept for backends on addresses of this node: their packets do not leave it, so they
    /// are answered here as well. To a backend of its own, the node sends through its loopback device instead.
    fn delivered_here(&self, forward: Forward, decision: &mut Decision) -> Verdict {
        let node = self.model.node();
        if self.packet.is_of_node(node) || forward.source == SourceRewrite::Kept {
            return Verdict::Forward(forward);
        }
        let backends: Vec<BackendAddr> = match &forward.choice {
            Choice::Exactly(backend) => Vec::from([*backend]),
            Choice::OneOf(weights) => weights.keys().copied().collect(),
        };
        let here: BTreeSet<_> = backends.iter().copied().filter(|backend| node.ips.contains(&backend.ip)).collect();
        if here.is_empty() {
            return Verdict::Forward(forward);
        }
        let says = "kept for backends on addresses of this node, to which packets are delivered here";
        decision.step("node".to_string(), "addresses", says.into());
        Verdict::Forward(if here.len() == backends.len() {
            Forward { source: SourceRewrite::Kept, hairpin_source: SourceRewrite::Kept, here, ..forward }
        } else {
            Forward { here, ..forward }
        })
    }
}
