//! The fate of one packet by the kernel's own maps and sets: look-ups of single elements, in the order in which the
//! packet's rules do them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr, Scope},
    affinity::{Affinity, AffinityRecord},
    datapath::{DatapathError, ErrorKind},
    decision::{Entry, FlowView, Packet},
    flow_hash,
    kernel::{Backends, KernelAnswer, KernelVerdict},
    state::Lookup,
    time::Instant,
};
use nix::time::{ClockId, clock_gettime};

use crate::nftables::{
    change::errors::failure,
    host::{Host, Table},
    table::{
        choice::{Choice, Pick},
        decode::DecodedElement,
        keys::key_bytes,
        layout::{Bound, Key, Set, Value, block},
        messages::Lifetime,
        rules::{self, Way},
        ruleset::{self, Ruleset},
    },
};

/// Asks about `packet`.
pub(crate) fn ask(host: &mut dyn Host, packet: &Packet) -> Result<KernelAnswer, DatapathError> {
    let mut trace = PacketTrace { host, packet, steps: Vec::new(), flow: FlowView::default() };
    let asking = |error| failure("asking the kernel's maps and sets", error);
    trace.flow.established = trace.host.backend_of(packet).map_err(|error| failure("asking conntrack", error))?;
    let verdict = trace.verdict().map_err(asking)?;
    let PacketTrace { steps, flow, .. } = trace;
    match verdict {
        Some(verdict) => Ok(KernelAnswer {
            method: "look-ups in nf_tables and conntrack".into(),
            steps,
            flow,
            verdict,
            faults: Vec::new(),
        }),
        None => {
            let message = format!("{}: `lb drift` shows the difference", steps.last().map_or("", String::as_str));
            Err(DatapathError::new(ErrorKind::System, message))
        }
    }
}

/// In the order in which packets meet their frontends.
const SCOPES: [Scope; 2] = [Scope::Internal, Scope::External];

fn not_ours(chain: &str) -> String {
    format!("the rules of chain {chain} are no longer those of lb")
}

struct PacketTrace<'a> {
    host: &'a mut dyn Host,
    packet: &'a Packet,
    steps: Vec<String>,
    flow: FlowView,
}

impl PacketTrace<'_> {
    fn step(&mut self, text: String) {
        self.steps.push(text);
    }

    fn addr(&self) -> FrontendAddr {
        FrontendAddr::new(self.packet.destination, self.packet.destination_port, self.packet.protocol)
    }

    /// The fate of the packet; `None` where a chain is not as this datapath writes it.
    fn verdict(&mut self) -> lb_netlink::Result<Option<KernelVerdict>> {
        let addr = self.addr();
        if let Some(backend) = self.flow.established {
            self.step(format!("conntrack: the flow is known, its destination becomes {backend}"));
            return self.forward(Backends::Took(backend)).map(Some);
        }
        if !matches!(self.host.table()?, Table::Ours(_)) {
            self.step("the kernel has no table of this datapath".into());
            return Ok(Some(KernelVerdict::Pass));
        }
        let found = self.host.ruleset()?;
        if found.dormant {
            self.step("the table is switched off (flags dormant)".into());
            return Ok(Some(KernelVerdict::Pass));
        }
        let Some(scopes) = self.dispatches(addr.family(), &found) else { return Ok(None) };
        let Some((addr, choice)) = self.frontend(&scopes)? else { return self.other_port(&found) };
        let set = Set::Frontends(addr.scope, addr.family());
        let verdict = self.element(Key::Verdict(addr.family(), choice))?;
        if verdict.is_none_or(|(element, _)| element.value != Value::Choice(choice)) {
            self.step(format!("{}: the verdict of {choice} is no longer that of lb", Set::Picks(addr.family()).name()));
            return Ok(None);
        }
        let pick = match choice {
            Choice::Refuse => {
                self.step(format!("{}: {addr} is refused", set.name()));
                return Ok(self.is_ours(&found, rules::refuse(), None).then_some(KernelVerdict::Reject));
            }
            Choice::Drop => {
                self.step(format!("{}: {addr} is dropped", set.name()));
                return Ok(Some(KernelVerdict::Drop));
            }
            Choice::Pick(pick) => pick,
        };
        self.step(format!("{}: {addr} goes to chain {pick}", set.name()));
        let passed = [pick.to_string().as_str(), "postrouting", rules::masquerade_chain(addr.family())]
            .iter()
            .all(|chain| self.is_ours(&found, chain, Some(&pick)));
        if passed { self.pick(addr, &pick).map(Some) } else { Ok(None) }
    }

    /// The scopes whose frontends the chain leads the packet to, in turn; `None` where the chain has foreign rules, which may
    /// do anything.
    fn dispatches(&mut self, family: Family, found: &Ruleset) -> Option<Vec<Scope>> {
        let (chain, way) = match self.packet.entry {
            Entry::Socket => ("output", Way::Out),
            Entry::PodDevice | Entry::Uplink => ("prerouting", Way::In),
        };
        let wanted = ruleset::expected(&BTreeSet::new());
        let (wanted, found) = (wanted.chains.get(chain)?, found.chains.get(chain));
        let Some(found) = found else {
            self.step(format!("chain {chain}: it is not there"));
            return Some(Vec::new());
        };
        if found.base != wanted.base || found.rules.iter().any(|rule| !wanted.rules.contains(rule)) {
            self.step(not_ours(chain));
            return None;
        }
        let leads = |scope: &Scope| found.rules.contains(&ruleset::dispatch(way, *scope, family));
        let is = leads(&Scope::External);
        let what = if is { "leads to the frontends" } else { "lacks the rule that leads to the frontends" };
        self.step(format!("chain {chain}: {what}"));
        // What comes in through an uplink is not led to those of scope internal.
        let scopes = if self.packet.entry == Entry::Uplink { &SCOPES[1..] } else { &SCOPES[..] };
        Some(scopes.iter().copied().filter(leads).collect())
    }

    /// The frontend of one of these scopes that the packet is for.
    fn frontend(&mut self, scopes: &[Scope]) -> lb_netlink::Result<Option<(FrontendAddr, Choice)>> {
        for &scope in scopes {
            let addr = FrontendAddr { scope, ..self.addr() };
            if let Some(Value::Choice(choice)) = self.element(Key::Frontend(addr))?.map(|(element, _)| element.value) {
                return Ok(Some((addr, choice)));
            }
        }
        if !scopes.is_empty() {
            let (name, addr) = (Set::Frontends(Scope::External, self.addr().family()).name(), self.addr());
            self.step(format!("{name}: {addr} is not in it"));
        }
        Ok(None)
    }

    /// The fate of a packet that no frontend takes, though its address may have some; `None` where a chain is not as this
    /// datapath writes it.
    fn other_port(&mut self, found: &Ruleset) -> lb_netlink::Result<Option<KernelVerdict>> {
        let (ip, family) = (self.packet.destination, self.addr().family());
        let chain = if self.packet.entry == Entry::Socket { "output" } else { "prerouting" };
        let rule = ruleset::other_ports(family);
        if !found.chains.get(chain).is_some_and(|chain| chain.rules.contains(&rule)) {
            self.step(format!("chain {chain}: lacks the rule for other ports"));
            return Ok(Some(KernelVerdict::Pass));
        }
        let says = self.element(Key::Address(ip))?.map(|(element, _)| element.value);
        let (name, what) = match says {
            Some(Value::Choice(Choice::Refuse)) => (Set::Addresses(family).name(), "refuses its other ports"),
            Some(Value::Choice(Choice::Drop)) => (Set::Addresses(family).name(), "drops its other ports"),
            _ => return Ok(Some(KernelVerdict::Pass)),
        };
        self.step(format!("{name}: {ip} {what}"));
        if !self.is_ours(found, rules::other_ports_chain(family), None) {
            return Ok(None);
        }
        match says {
            Some(Value::Choice(Choice::Refuse)) => {
                Ok(self.is_ours(found, rules::refuse(), None).then_some(KernelVerdict::Reject))
            }
            _ => Ok(Some(KernelVerdict::Drop)),
        }
    }

    /// Whether a chain is as this datapath writes it, with these rules in this order and no others.
    fn is_ours(&mut self, found: &Ruleset, chain: &str, pick: Option<&Pick>) -> bool {
        let wanted = ruleset::expected(&pick.copied().into_iter().collect());
        let is = wanted.chains.get(chain) == found.chains.get(chain);
        if !is {
            self.step(not_ours(chain));
        }
        is
    }

    fn pick(&mut self, addr: FrontendAddr, pick: &Pick) -> lb_netlink::Result<KernelVerdict> {
        if let Some(affinity) = pick.affinity
            && let Some(backend) = self.record(addr, affinity)?
        {
            return self.forward(Backends::Took(backend));
        }
        if pick.lookup() == Lookup::Hash {
            let (hash, what) = match pick.affinity {
                Some(affinity) => (affinity.client_hash(self.packet.source), "client"),
                None => (self.packet.flow_hash(), "flow"),
            };
            let slot = flow_hash::slot(hash, pick.slots);
            self.step(format!("the hash of the {what}, {hash:#010x}, is slot {slot} of {}", pick.slots));
            let mut look =
                |slot| if pick.is_packed() { self.block(addr, slot) } else { self.slots(addr, slot..slot + 1) };
            let mut found = look(slot)?;
            if found.is_empty() && slot > 0 {
                found = look(0)?;
            }
            return match found.into_keys().next() {
                Some(backend) => self.forward(Backends::Took(backend)),
                None => Ok(KernelVerdict::Drop),
            };
        }
        let found = self.slots(addr, 0..pick.slots)?;
        if found.is_empty() { Ok(KernelVerdict::Drop) } else { self.forward(Backends::MayTake(found)) }
    }

    /// The backends of some slots, with their number. A packet whose slot is missing stays untranslated, and
    /// the routes of virtual addresses end it.
    fn slots(
        &mut self,
        addr: FrontendAddr,
        slots: std::ops::Range<u32>,
    ) -> lb_netlink::Result<BTreeMap<BackendAddr, u32>> {
        let set = Set::Slots(addr.family());
        let keys: Vec<Vec<u8>> = slots.clone().map(|slot| key_bytes(&Key::Slot(addr, slot))).collect();
        let found = self.host.look_up(set, &keys)?;
        let mut backends = BTreeMap::new();
        for (element, _) in found.into_iter().filter_map(|element| element.read) {
            if let Value::Backend(ip, port) = element.value {
                *backends.entry(BackendAddr::new(ip, port, addr.protocol)).or_insert(0) += 1;
            }
        }
        let lost = slots.len() - backends.values().map(|&slots| slots as usize).sum::<usize>();
        let names: Vec<String> = backends.keys().map(ToString::to_string).collect();
        self.step(format!("{}: {}", set.name(), if names.is_empty() { "nothing".into() } else { names.join(", ") }));
        if lost > 0 {
            self.step(format!(
                "{lost} of {} slots lead nowhere: the first slot takes their packets, if it is there",
                slots.len()
            ));
        }
        Ok(backends)
    }

    /// The backend of a slot that is in a block.
    fn block(&mut self, addr: FrontendAddr, slot: u32) -> lb_netlink::Result<BTreeMap<BackendAddr, u32>> {
        let (set, size) = (Set::Tables(addr.family()), block(addr.family()));
        let found = self.element(Key::Block(addr, slot - slot % size))?;
        let Some(Value::Backends(backends)) = found.map(|(element, _)| element.value) else {
            self.step(format!("{}: nothing: the first slot takes the packet, if it is there", set.name()));
            return Ok(BTreeMap::new());
        };
        let backend = backends.get((slot % size) as usize).map(|&(ip, port)| BackendAddr::new(ip, port, addr.protocol));
        let names: Vec<String> = backend.iter().map(ToString::to_string).collect();
        self.step(format!("{}: {}", set.name(), names.concat()));
        Ok(backend.into_iter().map(|backend| (backend, 1)).collect())
    }

    /// The backend that the client's record names.
    fn record(&mut self, addr: FrontendAddr, affinity: Affinity) -> lb_netlink::Result<Option<BackendAddr>> {
        let client = affinity.client(self.packet.source);
        let found = self.element(Key::Record(client, addr))?;
        let Some((Value::Backend(ip, port), life)) = found.map(|(element, life)| (element.value, life)) else {
            self.step(format!("affinity: no record of {client}"));
            return Ok(None);
        };
        let backend = BackendAddr::new(ip, port, addr.protocol);
        let left = life.map_or(affinity.timeout, |Lifetime { left, .. }| Duration::from_millis(left));
        self.step(format!("affinity: {client} sticks to {backend} for {left:?}"));
        let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock").into();
        let last_use = Instant::new(now.saturating_sub(affinity.timeout.saturating_sub(left)));
        self.flow.affinity = Some(AffinityRecord { backend, last_use });
        Ok(Some(backend))
    }

    fn forward(&mut self, backends: Backends) -> lb_netlink::Result<KernelVerdict> {
        let family = self.addr().family();
        let ours = self.element(Key::Frontend(self.addr()))?.is_some();
        let (source, pod) = (self.packet.source, self.is_pod(family)?);
        self.step(format!("{}: {source} is {}in it", Set::Cluster(family).name(), if pod { "" } else { "not " }));
        let keeps = self.says_of_uplinks(Key::KeptSource(self.addr()))?;
        let translates_pods = self.says_of_uplinks(Key::TranslatedPods(self.addr()))?;
        let translated = match &backends {
            _ if !ours || keeps => Some(false),
            _ if !pod || translates_pods => Some(true),
            Backends::Took(backend) => Some(backend.ip == source && self.element(Key::Hairpin(source))?.is_some()),
            Backends::MayTake(_) => None,
        };
        if !ours {
            self.step(format!(
                "{}: {} is not in it, no source is translated",
                Set::Frontends(Scope::External, family).name(),
                self.addr()
            ));
        }
        Ok(KernelVerdict::Forward { backends, translated })
    }

    /// Whether the packet comes in through an uplink, and the set of `key` says that its frontend treats such sources apart.
    fn says_of_uplinks(&mut self, key: Key) -> lb_netlink::Result<bool> {
        if self.packet.entry != Entry::Uplink || self.host.elements(Set::Uplinks)?.is_empty() {
            return Ok(false);
        }
        let is_there = self.element(key)?.is_some();
        if is_there {
            self.step(format!("{}: {} is in it", key.set().name(), self.addr()));
        }
        Ok(is_there)
    }

    /// Whether the source is in one of the ranges of pods.
    fn is_pod(&mut self, family: Family) -> lb_netlink::Result<bool> {
        let source = self.packet.source;
        let elements = self.host.elements(Set::Cluster(family))?.into_iter().flatten();
        let bounds = elements.filter_map(|(element, _)| match element.key {
            Key::Bound(ip, bound) => Some((ip, bound)),
            _ => None,
        });
        // An end and the start of the next range are at one address: the start is what counts there.
        let last = bounds.filter(|(ip, _)| *ip <= source).max_by_key(|&(ip, bound)| (ip, bound == Bound::Start));
        Ok(last.is_some_and(|(_, bound)| bound == Bound::Start))
    }

    fn element(&mut self, key: Key) -> lb_netlink::Result<Option<DecodedElement>> {
        let found = self.host.look_up(key.set(), &[key_bytes(&key)])?;
        Ok(found.into_iter().next().and_then(|element| element.read))
    }
}
