//! What the kernel's maps and sets say about one packet: look-ups of single elements, in the order in which the packet's
//! rules do them.

use std::{collections::BTreeMap, io, time::Duration};

use lb_core::{
    Affinity, AffinityRecord, BackendAddr, Backends, DatapathError, Entry, ErrorKind, Family, FlowView, FrontendAddr,
    Instant, KernelAnswer, KernelVerdict, Lookup, Packet, flow_hash,
};
use nix::time::{ClockId, clock_gettime};

use super::{
    engine::{Flows, failure},
    kernel::{Kernel, Table},
    layout::{Bound, Choice, Key, Pick, Set, Value},
    read::Read,
    ruleset::{self, wanted_pick},
    wire::{Life, key_bytes},
};

/// Asks about `packet`.
pub(super) fn ask(
    kernel: &mut dyn Kernel,
    flows: &mut dyn Flows,
    packet: &Packet,
) -> Result<KernelAnswer, DatapathError> {
    let mut question = Question { kernel, packet, steps: Vec::new(), flow: FlowView::default() };
    let asking = |error| failure("asking the kernel's maps and sets", error);
    question.flow.established = flows.backend_of(packet).map_err(|error| failure("asking conntrack", error))?;
    let verdict = question.verdict().map_err(asking)?;
    let Question { steps, flow, .. } = question;
    match verdict {
        Some(verdict) => {
            Ok(KernelAnswer { method: "look-ups in nf_tables and conntrack".into(), steps, flow, verdict })
        }
        None => {
            let message = format!("{}: `lb drift` says what is wrong with it", steps.last().map_or("", String::as_str));
            Err(DatapathError::new(ErrorKind::System, message))
        }
    }
}

struct Question<'a> {
    kernel: &'a mut dyn Kernel,
    packet: &'a Packet,
    steps: Vec<String>,
    flow: FlowView,
}

impl Question<'_> {
    fn step(&mut self, text: String) {
        self.steps.push(text);
    }

    fn addr(&self) -> FrontendAddr {
        FrontendAddr::new(self.packet.destination, self.packet.destination_port, self.packet.protocol)
    }

    /// What becomes of the packet; `None` where a rule is not ours any more.
    fn verdict(&mut self) -> io::Result<Option<KernelVerdict>> {
        let addr = self.addr();
        if let Some(backend) = self.flow.established {
            self.step(format!("conntrack: the flow is known, its destination becomes {backend}"));
            return self.forward(Backends::Took(backend)).map(Some);
        }
        if !matches!(self.kernel.table()?, Table::Ours(_)) {
            self.step("there is no table of ours".into());
            return Ok(Some(KernelVerdict::Pass));
        }
        if !self.dispatches(addr.family())? {
            return Ok(Some(KernelVerdict::Pass));
        }
        let set = Set::Frontends(addr.family());
        let Some(Value::Go(choice)) = self.element(Key::Frontend(addr))?.map(|(element, _)| element.value) else {
            self.step(format!("{}: {addr} is not in it", set.name()));
            return Ok(Some(KernelVerdict::Pass));
        };
        let pick = match choice {
            Choice::Refuse => {
                self.step(format!("{}: {addr} is refused", set.name()));
                return Ok(Some(KernelVerdict::Reject));
            }
            Choice::Drop => {
                self.step(format!("{}: {addr} is dropped", set.name()));
                return Ok(Some(KernelVerdict::Drop));
            }
            Choice::Pick(pick) => pick,
        };
        self.step(format!("{}: {addr} goes to chain {pick}", set.name()));
        if self.kernel.chain(&pick.to_string())? != wanted_pick(&pick).rules {
            self.step(format!("chain {pick} does not have its own rules"));
            return Ok(None);
        }
        self.pick(addr, &pick).map(Some)
    }

    /// Whether the packet is led to the frontends at all.
    fn dispatches(&mut self, family: Family) -> io::Result<bool> {
        let chain = if self.packet.entry == Entry::Socket { "output" } else { "prerouting" };
        let found = self.kernel.chain(chain)?;
        let ours = ruleset::dispatch(family);
        let is = found.contains(&ours);
        self.step(format!(
            "chain {chain}: {}",
            if is { "leads to the frontends" } else { "lacks the rule that leads to the frontends" }
        ));
        Ok(is)
    }

    fn pick(&mut self, addr: FrontendAddr, pick: &Pick) -> io::Result<KernelVerdict> {
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
            let found = self.slots(addr, slot..slot + 1)?;
            return match found.into_keys().next() {
                Some(backend) => self.forward(Backends::Took(backend)),
                None => Ok(KernelVerdict::Drop),
            };
        }
        let found = self.slots(addr, 0..pick.slots)?;
        if found.is_empty() { Ok(KernelVerdict::Drop) } else { self.forward(Backends::MayTake(found)) }
    }

    /// The backends of some slots, with their number. A packet of a slot that is not there goes on untranslated, to the
    /// route that ends it.
    fn slots(&mut self, addr: FrontendAddr, slots: std::ops::Range<u32>) -> io::Result<BTreeMap<BackendAddr, u32>> {
        let set = Set::Slots(addr.family());
        let keys: Vec<Vec<u8>> = slots.clone().map(|slot| key_bytes(&Key::Slot(addr, slot))).collect();
        let found = self.kernel.look_up(set, &keys)?;
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
            self.step(format!("{lost} of {} slots lead nowhere: the packet would be lost in silence", slots.len()));
        }
        Ok(backends)
    }

    /// The backend that the client's record names.
    fn record(&mut self, addr: FrontendAddr, affinity: Affinity) -> io::Result<Option<BackendAddr>> {
        let client = affinity.client(self.packet.source);
        let found = self.element(Key::Record(client, addr))?;
        let Some((Value::Backend(ip, port), life)) = found.map(|(element, life)| (element.value, life)) else {
            self.step(format!("affinity: no record of {client}"));
            return Ok(None);
        };
        let backend = BackendAddr::new(ip, port, addr.protocol);
        let left = life.map_or(affinity.timeout, |Life { left, .. }| Duration::from_millis(left));
        self.step(format!("affinity: {client} sticks to {backend} for {left:?}"));
        let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
        let last_use = Instant::new(now.saturating_sub(affinity.timeout.saturating_sub(left)));
        self.flow.affinity = Some(AffinityRecord { backend, last_use });
        Ok(Some(backend))
    }

    fn forward(&mut self, backends: Backends) -> io::Result<KernelVerdict> {
        let family = self.addr().family();
        let ours = self.element(Key::Service(self.addr()))?.is_some();
        let (source, pod) = (self.packet.source, self.is_pod(family)?);
        self.step(format!("{}: {source} is {}in it", Set::Cluster(family).name(), if pod { "" } else { "not " }));
        let translated = match &backends {
            _ if !ours => Some(false),
            _ if !pod => Some(true),
            Backends::Took(backend) => Some(backend.ip == source && self.element(Key::Hairpin(source))?.is_some()),
            Backends::MayTake(_) => None,
        };
        if !ours {
            self.step(format!(
                "{}: {} is not in it, no source is translated",
                Set::Services(family).name(),
                self.addr()
            ));
        }
        Ok(KernelVerdict::Forward { backends, translated })
    }

    /// Whether the source is in one of the ranges of pods.
    fn is_pod(&mut self, family: Family) -> io::Result<bool> {
        let source = self.packet.source;
        let elements = self.kernel.elements(Set::Cluster(family))?.into_iter().flatten();
        let bounds = elements.filter_map(|(element, _)| match element.key {
            Key::Bound(ip, bound) => Some((ip, bound)),
            _ => None,
        });
        // An end and the start of the next range are at one address: the start is what counts there.
        let last = bounds.filter(|(ip, _)| *ip <= source).max_by_key(|&(ip, bound)| (ip, bound == Bound::Start));
        Ok(last.is_some_and(|(_, bound)| bound == Bound::Start))
    }

    fn element(&mut self, key: Key) -> io::Result<Option<Read>> {
        let found = self.kernel.look_up(key.set(), &[key_bytes(&key)])?;
        Ok(found.into_iter().next().and_then(|element| element.read))
    }
}
