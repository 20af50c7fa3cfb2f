//! From what `iptables-save` prints back to a state. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr, Protocol},
    affinity::Affinity,
    id::{BackendId, SetId},
    name::NodeName,
    node::NodeFacts,
    plan::Labels,
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
};

use crate::iptables::{
    change::lower::{MAX_SLOTS, Style, chains_of},
    rules::{
        choice::Share,
        hooks::Hook,
        invalid::Ends,
        names::{Chain, FILTER, MARK_DROP, MARK_MASQ, MARK_REJECT, MARK_SOURCE, NODE, POSTROUTING, SERVICES},
        notes::{FrontendNote, SetNote},
        saved::{Rule, SavedTable},
    },
};

/// The rules and routes of this datapath that exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Installed {
    /// Frontends that are complete, and what they refer to.
    pub(crate) state: State,
    /// Their labels.
    pub(crate) labels: Labels,
    /// VIPs that are routed here.
    pub(crate) routed: BTreeSet<IpAddr>,
    /// IPv4.
    pub(crate) v4: Frame,
    /// IPv6.
    pub(crate) v6: Frame,
}

/// The rules of one family that belong to no frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Whether the chains that do not depend on frontends are as this process writes them.
    pub(crate) base: bool,
    /// Jumps that are missing.
    pub(crate) missing: BTreeSet<Hook>,
    /// Chains of frontends that are not complete, or not there.
    pub(crate) stray: BTreeSet<Chain>,
    /// Whether a restore ended after it had changed the table filter, so that it does not fit the table nat.
    pub(crate) torn: bool,
}

impl Installed {
    pub(crate) fn frame(&self, family: Family) -> &Frame {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    pub(crate) fn frame_mut(&mut self, family: Family) -> &mut Frame {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Reads the tables of every family that there is.
    ///
    /// A frontend that packets do not get to is not there, and what is left of it is stray: one whose VIP is not
    /// routed, and all of a family whose jumps or marks are not as this process writes them.
    pub(crate) fn read(tables: &[Tables], routed: BTreeSet<IpAddr>, style: Style) -> Self {
        let mut installed = Self { routed, ..Self::default() };
        let mut node = NodeNotes::default();
        for tables in tables {
            let Self { state, labels, routed, .. } = &mut installed;
            let mut reader = Reader { tables, routed, state, labels };
            let missing: BTreeSet<Hook> = Hook::ALL.into_iter().filter(|&hook| !reader.has_hook(hook)).collect();
            if missing.iter().all(|hook| hook.is_for_invalid()) && reader.has_marks(style) {
                reader.frontends();
            }
            let (stray, torn) = (reader.stray(), !Ends::of(reader.state, tables.family).are_in(&tables.filter));
            let frame = Frame { base: false, missing, stray, torn };
            node.read(&tables.nat);
            *installed.frame_mut(tables.family) = frame;
        }
        installed.state.node = node.facts();
        installed
    }
}

/// The tables of one family.
pub(crate) struct Tables {
    pub(crate) family: Family,
    pub(crate) nat: SavedTable,
    pub(crate) filter: SavedTable,
}

/// The addresses of frontends in `tables`.
pub(crate) fn addresses(tables: &[Tables]) -> BTreeSet<IpAddr> {
    let rules = tables.iter().flat_map(|tables| tables.nat.rules(SERVICES));
    rules.filter_map(frontend_addr).map(|(addr, _)| addr.ip).collect()
}

struct Reader<'a> {
    tables: &'a Tables,
    routed: &'a BTreeSet<IpAddr>,
    state: &'a mut State,
    labels: &'a mut Labels,
}

impl Reader<'_> {
    fn frontends(&mut self) {
        for rule in self.tables.nat.rules(SERVICES) {
            let Some((addr, note)) = frontend_addr(rule) else { continue };
            if self.state.frontends.contains_key(&addr) || !self.routed.contains(&addr.ip) {
                continue;
            }
            let Some(target) = self.target(addr, note.affinity, rule) else { continue };
            self.state.frontends.insert(addr, Frontend { affinity: note.affinity, ..Frontend::new(note.id, target) });
            if !note.label.is_empty() {
                self.labels.insert(addr, note.label.into());
            }
        }
    }

    fn target(&mut self, addr: FrontendAddr, affinity: Option<Affinity>, rule: &Rule) -> Option<Target> {
        match rule.target()? {
            MARK_REJECT => Some(Target::Reject),
            MARK_DROP => Some(Target::Drop),
            chain => {
                (Chain::parse(chain) == Some(Chain::service(addr))).then_some(())?;
                self.set(addr, affinity, self.tables.nat.rules(chain)).map(Target::Set)
            }
        }
    }

    /// The set of a frontend's chain, if the chain is whole: its comments, its probabilities and the chains that it
    /// jumps to agree.
    fn set(&mut self, addr: FrontendAddr, affinity: Option<Affinity>, rules: &[Rule]) -> Option<SetId> {
        let (first, rest) = rules.split_first()?;
        let (known, draws): (Vec<&Rule>, Vec<&Rule>) = rest.iter().partition(|rule| rule.has("--rcheck"));
        let (id, runs) = SetNote::parse(rules.iter().filter_map(Rule::comment))?;
        (first.target() == Some(MARK_SOURCE) && draws.len() == runs.len()).then_some(())?;
        let mut left: u64 = runs.iter().map(|run| u64::from(run.slots)).sum();
        (left <= MAX_SLOTS.into()).then_some(())?;
        let mut backends = BTreeMap::new();
        let (mut slots, mut draining) = (Vec::new(), Vec::new());
        for (rule, run) in draws.iter().zip(&runs) {
            is_share(rule, Share { of: left, slots: run.slots.into() }).then_some(())?;
            left -= u64::from(run.slots);
            let backend = Backend { addr: self.endpoint(addr, rule.target()?)?, local: run.local };
            (*backends.entry(run.backend).or_insert(backend) == backend).then_some(())?;
            match run.slots {
                0 => draining.push(run.backend),
                count => slots.extend(std::iter::repeat_n(run.backend, count as usize)),
            }
        }
        (known.len() == affinity.map_or(0, |_| backends.len() - draining.len())).then_some(())?;
        let set = BackendSet { lookup: Lookup::Random, slots: slots.into(), draining: draining.into() };
        self.insert(id, set, backends).then_some(id)
    }

    fn endpoint(&self, addr: FrontendAddr, chain: &str) -> Option<BackendAddr> {
        let [mark, rule] = self.tables.nat.rules(chain) else { return None };
        (mark.target() == Some(MARK_MASQ) && rule.target() == Some("DNAT")).then_some(())?;
        let to: SocketAddr = rule.value("--to-destination")?.parse().ok()?;
        let backend = BackendAddr::new(to.ip(), to.port(), protocol(rule.value("-p")?)?);
        (Chain::parse(chain) == Some(Chain::endpoint(addr, backend))).then_some(backend)
    }

    /// Adds a set and its backends, unless the same ids already stand for something else.
    fn insert(&mut self, id: SetId, set: BackendSet, backends: BTreeMap<BackendId, Backend>) -> bool {
        let agrees = self.state.sets.get(&id).is_none_or(|known| **known == set)
            && backends.iter().all(|(id, new)| self.state.backends.get(id).is_none_or(|known| known == new));
        if agrees {
            self.state.sets.entry(id).or_insert_with(|| Arc::new(set));
            self.state.backends.extend(backends);
        }
        agrees
    }

    fn stray(&self) -> BTreeSet<Chain> {
        let family = self.tables.family;
        let addrs = self.state.frontends.keys().filter(|addr| addr.family() == family);
        let owned: BTreeSet<Chain> = addrs.flat_map(|&addr| chains_of(self.state, addr)).collect();
        let present = self.tables.nat.chains().filter_map(|(name, _)| Chain::parse(name));
        present.filter(|chain| !owned.contains(chain)).collect()
    }

    /// Whether marks are set, and acted on, as `style` says.
    fn has_marks(&self, style: Style) -> bool {
        let Style { masquerade_mark, reject_mark, drop_mark, .. } = style;
        let sets = |chain, mask: u32, mark: u32| {
            let rule = self.tables.nat.rules(chain).last();
            rule.and_then(|rule| rule.value("--set-xmark")) == Some(&format!("{mark:#x}/{mask:#x}"))
        };
        let acts = |rules: &[Rule], mark: u32| {
            let text = format!("{mark:#x}");
            rules.iter().any(|rule| rule.value("--mark").is_some_and(|mark| mark.split('/').next() == Some(&text)))
        };
        let filter = self.tables.filter.rules(FILTER);
        let leads = |chain, target| self.tables.nat.rules(chain).last().and_then(Rule::target) == Some(target);
        leads(MARK_SOURCE, MARK_MASQ)
            && leads(POSTROUTING, "MASQUERADE")
            && sets(MARK_MASQ, masquerade_mark, masquerade_mark)
            && sets(MARK_REJECT, u32::MAX, reject_mark)
            && sets(MARK_DROP, u32::MAX, drop_mark)
            && acts(self.tables.nat.rules(POSTROUTING), masquerade_mark)
            && acts(filter, reject_mark)
            && acts(filter, drop_mark)
    }

    fn has_hook(&self, hook: Hook) -> bool {
        let table = if hook.in_filter() { &self.tables.filter } else { &self.tables.nat };
        table.rules(hook.chain()).iter().any(|rule| rule.target() == Some(hook.target()))
    }
}

/// The frontend that a rule of `LB-SERVICES` is for.
pub(crate) fn frontend_addr(rule: &Rule) -> Option<(FrontendAddr, FrontendNote<'_>)> {
    let addr =
        FrontendAddr::new(host(rule.value("-d")?)?, rule.value("--dport")?.parse().ok()?, protocol(rule.value("-p")?)?);
    Some((addr, FrontendNote::parse(rule.comment()?)?))
}

/// The address of `text`, with or without the prefix length of a host.
fn host(text: &str) -> Option<IpAddr> {
    match text.split_once('/') {
        None => text.parse().ok(),
        Some((ip, _)) => {
            let net: IpNet = text.parse().ok()?;
            (net.prefix_len() == net.max_prefix_len()).then(|| ip.parse().ok())?
        }
    }
}

fn protocol(text: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.as_str() == text)
}

/// Whether `rule` draws with the probability of `share`.
fn is_share(rule: &Rule, share: Share) -> bool {
    let probability = rule.value("--probability").map(str::parse::<f64>);
    match probability {
        None => share.slots == share.of,
        Some(Ok(probability)) => (probability * f64::from(1u32 << 31) - share.bits() as f64).abs() < 1.0,
        Some(Err(_)) => false,
    }
}

/// The node's facts as the comments of both families hold them.
#[derive(Default)]
struct NodeNotes {
    cidrs: BTreeMap<usize, IpNet>,
    ips: BTreeMap<usize, IpAddr>,
    name: Option<NodeName>,
}

impl NodeNotes {
    fn read(&mut self, nat: &SavedTable) {
        let notes = nat.rules(MARK_SOURCE).iter().filter_map(Rule::comment);
        self.cidrs.extend(notes.filter_map(|note| -> Option<(usize, IpNet)> {
            let (index, cidr) = note.split_once(' ')?;
            Some((index.parse().ok()?, cidr.parse().ok()?))
        }));
        for rule in nat.rules(NODE) {
            let Some(note) = rule.comment() else { continue };
            if let Some(name) = note.strip_prefix("name ") {
                self.name = Some(NodeName::new(name));
            } else if let (Ok(index), Some(ip)) = (note.parse(), rule.value("-d").and_then(host)) {
                self.ips.insert(index, ip);
            }
        }
    }

    fn facts(self) -> NodeFacts {
        NodeFacts {
            name: self.name,
            ips: self.ips.into_values().collect(),
            cluster_cidrs: self.cidrs.into_values().collect(),
        }
    }
}
