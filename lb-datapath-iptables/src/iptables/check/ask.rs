//! The fate of one packet by the kernel's own rules: the chains that it walks, read one by one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr},
    datapath::{DatapathError, ErrorKind},
    decision::{Entry, FlowView, Packet},
    kernel::{Backends, KernelAnswer, KernelVerdict},
};

use crate::iptables::{
    IptablesDatapath,
    change::lower::Style,
    check::{
        compare::{Jump, all_agree, fixed},
        installed::frontend_addr,
    },
    rules::{
        hooks::Hook,
        names::{FILTER, MARK_DROP, MARK_MASQ, MARK_REJECT, MARK_SOURCE, POSTROUTING, SERVICES},
        notes::SetNote,
        saved::{Rule, SavedTable},
    },
    tools::{ToolError, Tools},
};

/// Where the `recent` module lists its clients, seen from a thread in the network namespace.
const RECENT: &str = "/proc/thread-self/net/xt_recent";

impl IptablesDatapath {
    /// Asks about `packet`.
    pub(crate) fn question(&mut self, packet: &Packet) -> Result<KernelAnswer, DatapathError> {
        let established = self.host.backend_of(packet)?;
        let mut question =
            ChainTrace { tools: &*self.tools, style: self.style, packet, steps: Vec::new(), lists: Vec::new() };
        let verdict = match established {
            Some(backend) => {
                question.steps.push(format!("conntrack: the flow is known, its destination becomes {backend}"));
                forward(Backends::Took(backend))
            }
            None => question.verdict()?,
        };
        let ChainTrace { mut steps, lists, .. } = question;
        for list in lists {
            let client = self.namespace.within(|| std::fs::read_to_string(format!("{RECENT}/{list}"))).flatten();
            steps.extend(client.is_ok_and(|text| lists_client(&text, packet.source)).then(|| {
                format!("recent: {} is in list {list}; how long ago it was seen is not shown", packet.source)
            }));
        }
        let method = format!("conntrack and the rules of {}", self.config.variant.as_str());
        // Which client a `recent` list still holds for is known to the kernel only.
        let flow = FlowView { established, ..FlowView::default() };
        Ok(KernelAnswer { method, steps, flow, verdict, faults: Vec::new() })
    }
}

struct ChainTrace<'a> {
    tools: &'a dyn Tools,
    style: Style,
    packet: &'a Packet,
    steps: Vec<String>,
    /// Names of the lists in which a client's backend is remembered.
    lists: Vec<String>,
}

impl ChainTrace<'_> {
    fn verdict(&mut self) -> Result<KernelVerdict, DatapathError> {
        let entry = if self.packet.entry == Entry::Socket { Hook::NatOutput } else { Hook::NatPrerouting };
        if !is_in_front(entry, &self.rules(entry.chain())?)? {
            self.steps.push(format!("{}: no jump to {SERVICES}", entry.chain()));
            return Ok(KernelVerdict::Pass);
        }
        let addr = FrontendAddr::new(self.packet.destination, self.packet.destination_port, self.packet.protocol);
        let services = self.rules(SERVICES)?;
        if services.iter().any(|rule| frontend_addr(rule).is_none()) {
            return Err(not_ours(SERVICES));
        }
        let found = services.iter().position(|rule| frontend_addr(rule).is_some_and(|(found, _)| found == addr));
        let Some((at, target)) = found.and_then(|at| Some((at, services.get(at)?.target()?))) else {
            self.steps.push(format!("{SERVICES}: {addr} has none of {} rules", services.len()));
            return Ok(KernelVerdict::Pass);
        };
        self.steps.push(format!("{SERVICES}: rule {} of {} sends {addr} to {target}", at + 1, services.len()));
        match target {
            MARK_REJECT => self.filters(MARK_REJECT).map(|()| KernelVerdict::Reject),
            MARK_DROP => self.filters(MARK_DROP).map(|()| KernelVerdict::Drop),
            chain => self.draw(chain),
        }
    }

    /// Errors unless packets that `chain` marks end in the filter.
    fn filters(&self, chain: &str) -> Result<(), DatapathError> {
        let family = Family::of(self.packet.destination);
        let (nat, filter) = fixed(family, self.style);
        self.is_fixed(&nat, chain)?;
        let found = SavedTable::parse(&self.tools.save(family, "filter")?);
        if !all_agree(filter.rules(FILTER), found.rules(FILTER)) {
            return Err(not_ours(FILTER));
        }
        for hook in Hook::ALL.into_iter().filter(|hook| hook.in_filter()) {
            if !is_in_front(hook, found.rules(hook.chain()))? {
                return Err(not_ours(hook.chain()));
            }
        }
        Ok(())
    }

    /// Errors unless sources are translated as this datapath has it.
    fn leaves(&self) -> Result<(), DatapathError> {
        let (nat, _) = fixed(Family::of(self.packet.destination), self.style);
        self.is_fixed(&nat, MARK_MASQ)?;
        self.is_fixed(&nat, POSTROUTING)?;
        let sources = self.rules(MARK_SOURCE)?;
        let (wanted, pods) = (nat.rules(MARK_SOURCE), sources.len().saturating_sub(1));
        let (pods, last) = sources.split_at(pods);
        if !all_agree(wanted, last) || !pods.iter().all(spares_pods) {
            return Err(not_ours(MARK_SOURCE));
        }
        let hook = Hook::NatPostrouting;
        if is_in_front(hook, &self.rules(hook.chain())?)? { Ok(()) } else { Err(not_ours(hook.chain())) }
    }

    fn is_fixed(&self, wanted: &SavedTable, chain: &str) -> Result<(), DatapathError> {
        if all_agree(wanted.rules(chain), &self.rules(chain)?) { Ok(()) } else { Err(not_ours(chain)) }
    }

    /// The backends that the chain of a frontend draws from.
    fn draw(&mut self, chain: &str) -> Result<KernelVerdict, DatapathError> {
        let rules = self.rules(chain)?;
        let is_ours = |(at, rule): (usize, &Rule)| match rule.target() {
            Some(MARK_SOURCE) => at == 0,
            Some(target) => at > 0 && target.starts_with("LB-SEP-"),
            None => false,
        };
        if !rules.iter().enumerate().all(is_ours) {
            return Err(not_ours(chain));
        }
        let lists = rules.iter().filter(|rule| rule.has("--rcheck")).filter_map(|rule| rule.value("--name"));
        self.lists.extend(lists.map(str::to_owned));
        let runs = SetNote::parse(rules.iter().filter_map(Rule::comment)).map_or_else(Vec::new, |(_, runs)| runs);
        let draws = rules.iter().filter(|rule| !rule.has("--rcheck")).filter_map(Rule::target);
        let mut backends = BTreeMap::new();
        let mut slots = runs.iter().map(|run| run.slots);
        for endpoint in draws.filter(|target| target.starts_with("LB-SEP-")) {
            let slots = slots.next().unwrap_or(1);
            if slots == 0 {
                // The backend is draining: no packet gets as far as this rule.
                continue;
            }
            match self.destination(endpoint)? {
                Some(backend) => *backends.entry(backend).or_insert(0) += slots,
                None => self.steps.push(format!("{endpoint}: translates nothing, the packet would be lost in silence")),
            }
        }
        let names: Vec<String> = backends.keys().map(ToString::to_string).collect();
        self.steps.push(format!("{chain}: draws one of {}", names.join(", ")));
        if backends.is_empty() {
            return Ok(KernelVerdict::Drop);
        }
        self.leaves()?;
        Ok(forward(Backends::MayTake(backends)))
    }

    fn destination(&self, chain: &str) -> Result<Option<BackendAddr>, DatapathError> {
        let rules = self.rules(chain)?;
        if !rules.is_empty() && !rules.iter().filter_map(Rule::target).eq([MARK_MASQ, "DNAT"]) {
            return Err(not_ours(chain));
        }
        let to = rules.iter().find_map(|rule| rule.value("--to-destination")?.parse::<SocketAddr>().ok());
        Ok(to.map(|to| BackendAddr::new(to.ip(), to.port(), self.packet.protocol)))
    }

    /// The rules of a chain of nat; none if the chain does not exist.
    fn rules(&self, chain: &str) -> Result<Vec<Rule>, ToolError> {
        let listed = self.tools.list(Family::of(self.packet.destination), chain)?;
        Ok(SavedTable::parse(&listed).into_rules(chain))
    }
}

/// Whether the jump of lb is there; an error if it is behind a rule that may take packets away.
fn is_in_front(hook: Hook, rules: &[Rule]) -> Result<bool, DatapathError> {
    match Jump::find(hook, rules) {
        Jump::InFront => Ok(true),
        Jump::Missing => Ok(false),
        Jump::Behind(at, rule) => {
            let (chain, target) = (hook.chain(), hook.target());
            let message = format!("{chain}: rule {at}, in front of the jump to {target}, may take the packet: {rule}");
            Err(DatapathError::new(ErrorKind::System, message + ": `lb drift` shows the difference"))
        }
    }
}

/// Whether `rule` keeps the source of a prefix of pods. The comment has the prefix too: one of all addresses is listed
/// without.
fn spares_pods(rule: &Rule) -> bool {
    let prefix: Option<IpNet> = rule.comment().and_then(|note| note.split_once(' ')?.1.parse().ok());
    let source: Option<IpNet> = rule.value("-s").and_then(|source| source.parse().ok());
    rule.target() == Some("RETURN")
        && prefix.is_some_and(|prefix| {
            source.map_or_else(|| prefix.prefix_len() == 0, |source| source.trunc() == prefix.trunc())
        })
}

fn not_ours(chain: &str) -> DatapathError {
    let message = format!("the rules of chain {chain} are no longer those of lb: `lb drift` shows the difference");
    DatapathError::new(ErrorKind::System, message)
}

const fn forward(backends: Backends) -> KernelVerdict {
    KernelVerdict::Forward { backends, translated: None }
}

/// Whether a list of the `recent` module has a client that `source` may be.
fn lists_client(text: &str, source: IpAddr) -> bool {
    let clients = text.lines().filter_map(|line| line.strip_prefix("src=")?.split(' ').next()?.parse::<IpAddr>().ok());
    clients.into_iter().any(|client| client == source)
}
