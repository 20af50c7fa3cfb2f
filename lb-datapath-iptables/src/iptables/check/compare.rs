//! Compares the output of `iptables-save` with the expected rules, rule by rule. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{
    addr::{Family, FrontendAddr},
    drift::{Cause, Difference, Drift, DriftClass, Expected},
    plan::Labels,
    state::State,
};

use crate::iptables::{
    change::lower::{Job, Style, chains_of},
    check::installed::Tables,
    rules::{
        choice::Share,
        hooks::Hook,
        names::{Chain, PREFIX, SERVICES},
        notes::FrontendNote,
        saved::{Rule, SavedTable},
    },
};

/// The differences of one family, and the restore that puts them right.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) drifts: Vec<Drift>,
    /// Frontends whose chains are written anew.
    pub(crate) dirty: BTreeSet<FrontendAddr>,
    /// Chains that go.
    pub(crate) stray: BTreeSet<Chain>,
    /// Whether the chains that do not depend on frontends are written anew.
    pub(crate) base: bool,
    /// Jumps that are missing, or behind others' rules.
    pub(crate) missing: BTreeSet<Hook>,
    /// Those of them that are behind others' rules.
    pub(crate) behind: BTreeSet<Hook>,
}

/// Where the jump of lb stands among the rules of a built-in chain.
pub(crate) enum Jump<'a> {
    Missing,
    InFront,
    /// Behind a rule that may take packets away, whose number comes first.
    Behind(usize, &'a Rule),
}

impl<'a> Jump<'a> {
    pub(crate) fn find(hook: Hook, rules: &'a [Rule]) -> Self {
        let wanted = Rule::parse(hook.rule());
        let Some(at) = rules.iter().position(|rule| agrees(&wanted, rule)) else { return Self::Missing };
        let before = rules.iter().take(at).position(|rule| !passes_on(rule));
        before.and_then(|at| Some((at + 1, rules.get(at)?))).map_or(Self::InFront, |(at, rule)| Self::Behind(at, rule))
    }
}

/// Whether packets go on to the next rule whatever `rule` does, or go to another chain of lb.
fn passes_on(rule: &Rule) -> bool {
    const PASSIVE: [&str; 7] = ["AUDIT", "CONNMARK", "LOG", "MARK", "NFLOG", "TRACE", "ULOG"];
    let is_passive = |target: &str| PASSIVE.contains(&target) || target.starts_with(PREFIX);
    rule.target().map_or_else(|| !rule.has("-g"), is_passive)
}

/// The chains that are the same whatever the frontends and the node are, in nat and in filter.
pub(crate) fn fixed(family: Family, style: Style) -> (SavedTable, SavedTable) {
    let (state, labels) = (State::default(), Labels::new());
    let ExpectedRules { nat, filter, .. } =
        ExpectedRules::new(Expected { state: &state, labels: &labels }, family, style);
    (nat, filter)
}

/// Whether rules are the wanted ones, in their order, and no others.
pub(crate) fn all_agree(wanted: &[Rule], found: &[Rule]) -> bool {
    wanted.len() == found.len() && wanted.iter().zip(found).all(|(wanted, found)| agrees(wanted, found))
}

/// Compares the tables of one family.
pub(crate) fn compare(expected: Expected<'_>, style: Style, tables: &Tables) -> Compared {
    let mut compared = Compared::default();
    if !is_wanted(expected, tables) {
        return compared;
    }
    let wanted = ExpectedRules::new(expected, tables.family, style);
    for (name, found, wanted_chains) in [("nat", &tables.nat, &wanted.nat), ("filter", &tables.filter, &wanted.filter)]
    {
        for (chain, rules) in wanted_chains.chains() {
            compared.chain(&wanted, name, chain, rules, found.chain(chain));
        }
    }
    compared.hooks(tables);
    let extra = tables.nat.chains().filter(|(chain, _)| wanted.nat.chain(chain).is_none());
    for (name, chain) in extra.filter_map(|(name, _)| Some((name, Chain::parse(name)?))) {
        compared.drifts.push(Drift::new(DriftClass::Chain, format_args!("nat {name}"), Difference::Extra));
        compared.stray.insert(chain);
    }
    let flushed = tables.nat.rules(SERVICES).is_empty() && compared.drifts.len() > 1;
    if flushed {
        compared.drifts.iter_mut().for_each(|drift| drift.cause = Cause::Flushed);
    }
    let family = if tables.family == Family::V4 { "IPv4" } else { "IPv6" };
    compared.drifts.iter_mut().for_each(|drift| drift.object = format!("{family} {}", drift.object));
    compared
}

/// A family without frontends need not have rules.
fn is_wanted(expected: Expected<'_>, tables: &Tables) -> bool {
    let ours = |table: &SavedTable| table.chains().any(|(chain, _)| chain.starts_with(PREFIX));
    expected.state.frontends.keys().any(|addr| addr.family() == tables.family) || ours(&tables.nat)
}

/// The rules that a first restore would write.
struct ExpectedRules {
    nat: SavedTable,
    filter: SavedTable,
    owners: BTreeMap<String, FrontendAddr>,
}

impl ExpectedRules {
    fn new(expected: Expected<'_>, family: Family, style: Style) -> Self {
        let Expected { state, labels } = expected;
        let job = Job {
            family,
            style,
            before: state,
            after: state,
            labels,
            dirty: &state.frontends.keys().copied().collect(),
            stray: &BTreeSet::new(),
            base: true,
            missing: &BTreeSet::new(),
            behind: &BTreeSet::new(),
        };
        let text = job.restore().into_text();
        let (filter, nat) = text.split_once("*nat").unwrap_or_default();
        let owned = state.frontends.keys().filter(|addr| addr.family() == family);
        let owners =
            owned.flat_map(|&addr| chains_of(state, addr).into_iter().map(move |chain| (chain.to_string(), addr)));
        Self { nat: SavedTable::parse(nat), filter: SavedTable::parse(filter), owners: owners.collect() }
    }
}

impl Compared {
    fn chain(&mut self, wanted: &ExpectedRules, table: &str, chain: &str, rules: &[Rule], found: Option<&[Rule]>) {
        let before = self.drifts.len();
        match found {
            None => {
                self.drifts.push(Drift::new(DriftClass::Chain, format_args!("{table} {chain}"), Difference::Missing))
            }
            Some(found) => self.rules(table, chain, rules, found),
        }
        if self.drifts.len() == before {
            return;
        }
        match wanted.owners.get(chain) {
            Some(&addr) => drop(self.dirty.insert(addr)),
            // All of it is written with every restore.
            None if chain == SERVICES => {}
            None => self.base = true,
        }
    }

    /// Where two lists of rules differ, by position from 1: those between their common beginning and their common end.
    fn rules(&mut self, table: &str, chain: &str, wanted: &[Rule], found: &[Rule]) {
        let same = |(a, b): &(&Rule, &Rule)| agrees(a, b);
        let head = wanted.iter().zip(found).take_while(same).count();
        let tail = wanted[head..].iter().rev().zip(found[head..].iter().rev()).take_while(same).count();
        let (wanted, found) = (&wanted[head..wanted.len() - tail], &found[head..found.len() - tail]);
        for at in 0..wanted.len().max(found.len()) {
            let difference = match (wanted.get(at), found.get(at)) {
                (Some(wanted), Some(found)) if agrees(wanted, found) => continue,
                (Some(wanted), Some(found)) => {
                    Difference::Wrong { expected: wanted.to_string(), found: found.to_string() }
                }
                (Some(_), None) => Difference::Missing,
                (None, _) => Difference::Extra,
            };
            let object = format_args!("{table} {chain} rule {}", head + at + 1);
            self.drifts.push(Drift::new(DriftClass::Rule, object, difference));
        }
    }

    fn hooks(&mut self, tables: &Tables) {
        for hook in Hook::ALL {
            let (name, table) = if hook.in_filter() { ("filter", &tables.filter) } else { ("nat", &tables.nat) };
            let difference = match Jump::find(hook, table.rules(hook.chain())) {
                Jump::InFront => continue,
                Jump::Missing => Difference::Missing,
                Jump::Behind(at, rule) => {
                    self.behind.insert(hook);
                    let expected = "in front of others' rules".to_owned();
                    Difference::Wrong { expected, found: format!("behind rule {at}: {rule}") }
                }
            };
            let object = format_args!("{name} {} jump to {}", hook.chain(), hook.target());
            self.drifts.push(Drift::new(DriftClass::Rule, object, difference));
            self.missing.insert(hook);
        }
    }
}

/// Whether `found`, as `iptables-save` prints it, is `wanted`, as it was given to `iptables-restore`. A frontend's
/// label is for people: it may be an older one.
fn agrees(wanted: &Rule, found: &Rule) -> bool {
    let (a, b) = (canonical(wanted), canonical(found));
    a.len() == b.len() && a.iter().zip(&b).enumerate().all(|(at, (x, y))| x == y || is_alike(at, &a, x, y))
}

/// Whether two words mean the same after the word before them.
fn is_alike(at: usize, words: &[String], wanted: &str, found: &str) -> bool {
    let option = at.checked_sub(1).and_then(|at| words.get(at)).map_or("", String::as_str);
    match option {
        "--probability" => match (wanted.parse::<f64>(), found.parse::<f64>()) {
            (Ok(wanted), Ok(found)) => (wanted - found).abs() < Share::EXACT,
            _ => false,
        },
        "--comment" => match (FrontendNote::parse(wanted), FrontendNote::parse(found)) {
            (Some(wanted), Some(found)) => (wanted.id, wanted.affinity) == (found.id, found.affinity),
            _ => false,
        },
        _ => false,
    }
}

/// The words of a rule in the spelling of `iptables-save`, without what it may add or leave out.
fn canonical(rule: &Rule) -> Vec<String> {
    let mut words = Vec::new();
    let mut given = rule.words().iter().map(String::as_str).peekable();
    while let Some(word) = given.next() {
        let value = given.peek().copied().unwrap_or_default();
        let mark = match word {
            "--or-mark" => Some(format!("{value}/{value}")),
            "--set-mark" => Some(format!("{value}/0xffffffff")),
            "--xor-mark" => Some(format!("{value}/0x0")),
            _ => None,
        };
        let default = matches!(
            (word, value),
            ("-m", "tcp" | "udp" | "sctp")
                | ("-s" | "-d", "0.0.0.0/0" | "::/0")
                | ("--mask", "255.255.255.255" | "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
        );
        match mark {
            Some(mark) => words.extend(["--set-xmark".to_owned(), mark]),
            None if default => {}
            None => {
                words.push(word.to_owned());
                continue;
            }
        }
        given.next();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(wanted: &str, found: &str) -> bool {
        agrees(&Rule::parse(wanted), &Rule::parse(found))
    }

    #[test]
    fn spellings_of_one_rule_agree() {
        assert!(same("-j MARK --or-mark 0x4000", "-j MARK --set-xmark 0x4000/0x4000"));
        assert!(same("-j MARK --set-mark 0x1", "-j MARK --set-xmark 0x1/0xffffffff"));
        assert!(same("-j MARK --xor-mark 0x4000", "-j MARK --set-xmark 0x4000/0x0"));
        assert!(same("-p tcp -j X", "-p tcp -m tcp -j X"));
        assert!(same("--name a --rsource", "--name a --mask 255.255.255.255 --rsource"));
        assert!(same("--probability 0.33333333349", "--probability 0.33333333302"));
        assert!(same("-m comment --comment \"f1 - a/b\" -j X", "-m comment --comment \"f1 - a/old\" -j X"));
    }

    #[test]
    fn rules_that_do_something_else_do_not() {
        assert!(!same("-j MARK --or-mark 0x4000", "-j MARK --set-xmark 0x4000/0xffffffff"));
        assert!(!same("-p tcp -j X", "-p udp -j X"));
        assert!(!same("--probability 0.5", "--probability 0.25"));
        assert!(!same("-m comment --comment \"f1 - a/b\"", "-m comment --comment \"f2 - a/b\""));
        assert!(!same("-j X", "-j X --random-fully"));
    }
}
