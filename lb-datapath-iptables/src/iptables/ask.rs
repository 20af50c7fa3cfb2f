//! What the kernel's rules say about one packet: the chains that it walks, read one by one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_core::{
    BackendAddr, Backends, DatapathError, Entry, Family, FlowView, FrontendAddr, KernelAnswer, KernelVerdict, Packet,
};

use super::{
    IptablesDatapath,
    installed::frontend_addr,
    names::{MARK_DROP, MARK_REJECT, SERVICES},
    notes::SetNote,
    saved::{Rule, SavedTable},
    tools::{ToolError, Tools},
};

/// Where the `recent` module lists its clients, seen from a thread in the network namespace.
const RECENT: &str = "/proc/thread-self/net/xt_recent";

impl IptablesDatapath {
    /// Asks about `packet`.
    pub(super) fn question(&mut self, packet: &Packet) -> Result<KernelAnswer, DatapathError> {
        let established = self.host.backend_of(packet)?;
        let mut question = Question { tools: &*self.tools, packet, steps: Vec::new(), lists: Vec::new() };
        let verdict = match established {
            Some(backend) => {
                question.steps.push(format!("conntrack: the flow is known, its destination becomes {backend}"));
                forward(Backends::Took(backend))
            }
            None => question.verdict()?,
        };
        let Question { mut steps, lists, .. } = question;
        for list in lists {
            let client = self.namespace.within(|| std::fs::read_to_string(format!("{RECENT}/{list}")));
            steps.extend(client.is_ok_and(|text| lists_client(&text, packet.source)).then(|| {
                format!("recent: {} is in list {list}; how long ago it was seen is not shown", packet.source)
            }));
        }
        let method = format!("conntrack and the rules of {}", self.config.variant.as_str());
        // Which client a `recent` list still holds for is known to the kernel only.
        let flow = FlowView { established, ..FlowView::default() };
        Ok(KernelAnswer { method, steps, flow, verdict })
    }
}

struct Question<'a> {
    tools: &'a dyn Tools,
    packet: &'a Packet,
    steps: Vec<String>,
    /// Names of the lists in which a client's backend is remembered.
    lists: Vec<String>,
}

impl Question<'_> {
    fn verdict(&mut self) -> Result<KernelVerdict, ToolError> {
        let entry = if self.packet.entry == Entry::Socket { "OUTPUT" } else { "PREROUTING" };
        if self.rules(entry)?.iter().all(|rule| rule.target() != Some(SERVICES)) {
            self.steps.push(format!("{entry}: no jump to {SERVICES}"));
            return Ok(KernelVerdict::Pass);
        }
        let addr = FrontendAddr::new(self.packet.destination, self.packet.destination_port, self.packet.protocol);
        let services = self.rules(SERVICES)?;
        let found = services.iter().position(|rule| frontend_addr(rule).is_some_and(|(found, _)| found == addr));
        let Some((at, target)) = found.and_then(|at| Some((at, services.get(at)?.target()?))) else {
            self.steps.push(format!("{SERVICES}: {addr} has none of {} rules", services.len()));
            return Ok(KernelVerdict::Pass);
        };
        self.steps.push(format!("{SERVICES}: rule {} of {} sends {addr} to {target}", at + 1, services.len()));
        match target {
            MARK_REJECT => Ok(KernelVerdict::Reject),
            MARK_DROP => Ok(KernelVerdict::Drop),
            chain => self.draw(chain),
        }
    }

    /// The backends that the chain of a frontend draws from.
    fn draw(&mut self, chain: &str) -> Result<KernelVerdict, ToolError> {
        let rules = self.rules(chain)?;
        let lists = rules.iter().filter(|rule| rule.has("--rcheck")).filter_map(|rule| rule.value("--name"));
        self.lists.extend(lists.map(str::to_owned));
        let runs = SetNote::parse(rules.iter().filter_map(Rule::comment)).map_or_else(Vec::new, |(_, runs)| runs);
        let draws = rules.iter().filter(|rule| !rule.has("--rcheck")).filter_map(Rule::target);
        let mut backends = BTreeMap::new();
        let mut slots = runs.iter().map(|run| run.slots);
        for endpoint in draws.filter(|target| target.starts_with("LB-SEP-")) {
            let slots = slots.next().unwrap_or(1);
            match self.destination(endpoint)? {
                Some(backend) => *backends.entry(backend).or_insert(0) += slots,
                None => self.steps.push(format!("{endpoint}: translates nothing, the packet would be lost in silence")),
            }
        }
        let names: Vec<String> = backends.keys().map(ToString::to_string).collect();
        self.steps.push(format!("{chain}: draws one of {}", names.join(", ")));
        Ok(if backends.is_empty() { KernelVerdict::Drop } else { forward(Backends::MayTake(backends)) })
    }

    fn destination(&self, chain: &str) -> Result<Option<BackendAddr>, ToolError> {
        let rules = self.rules(chain)?;
        let to = rules.iter().find_map(|rule| rule.value("--to-destination")?.parse::<SocketAddr>().ok());
        Ok(to.map(|to| BackendAddr::new(to.ip(), to.port(), self.packet.protocol)))
    }

    /// The rules of a chain of nat; none if it is not there.
    fn rules(&self, chain: &str) -> Result<Vec<Rule>, ToolError> {
        let listed = self.tools.list(Family::of(self.packet.destination), chain)?;
        Ok(SavedTable::parse(&listed).into_rules(chain))
    }
}

const fn forward(backends: Backends) -> KernelVerdict {
    KernelVerdict::Forward { backends, translated: None }
}

/// Whether a list of the `recent` module has a client that `source` may be.
fn lists_client(text: &str, source: IpAddr) -> bool {
    let clients = text.lines().filter_map(|line| line.strip_prefix("src=")?.split(' ').next()?.parse::<IpAddr>().ok());
    clients.into_iter().any(|client| client == source)
}
