//! Sets, chains and rules as the kernel lists them, in a form in which what should be there can be compared with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_core::Family;

use crate::{
    netfilter::FIXED,
    nftables::table::{
        layout::{Pick, Set},
        rules::{self, Rule},
        wire,
    },
};
use lb_netlink::{Writer, attributes, string, u32_be};

/// Everything of a table but its elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// Whether the table is switched off (`flags dormant`).
    pub(crate) dormant: bool,
    /// Sets and maps by name.
    pub(crate) sets: BTreeMap<String, Shape>,
    /// Chains by name.
    pub(crate) chains: BTreeMap<String, ListedChain>,
}

/// What a set holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) flags: u32,
    pub(crate) key: u32,
    pub(crate) key_length: u32,
    pub(crate) data: u32,
    pub(crate) data_length: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flags, key, key_length, data, data_length } = self;
        write!(f, "flags {flags:#x}, key type {key:#x} of {key_length} bytes, ")?;
        write!(f, "data type {data:#x} of {data_length} bytes")
    }
}

/// A chain with its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListedChain {
    /// Where it is hooked in.
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<ListedRule>,
}

/// What makes a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) kind: String,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    pub(crate) policy: u32,
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, hook, priority, policy } = self;
        let policy = if *policy == ACCEPT { "accept" } else { "drop" };
        write!(f, "type {kind} hook {hook} priority {priority} policy {policy}")
    }
}

/// How a base chain or the lack of one is printed.
pub(crate) fn base_text(base: &Option<Base>) -> String {
    base.as_ref().map_or_else(|| "no base chain".into(), ToString::to_string)
}

/// A rule, expression by expression.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListedRule(Vec<ListedExpr>);

/// An expression: its name, and its attributes, those of nested ones by their path. One that is all zeros is the same
/// as one that is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ListedExpr {
    name: String,
    attributes: BTreeMap<Path, Vec<u8>>,
}

/// Types of attributes from the outermost in; 0 ends it.
type Path = [u16; 3];

/// A rule in few words: what it loads and compares, and where it looks.
impl fmt::Display for ListedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for ListedExpr { name, attributes } in &self.0 {
            write!(f, "{separator}{name}")?;
            separator = ", ";
            let target = match name.as_str() {
                "lookup" | "dynset" => attributes.get(&[1, 0, 0]),
                "immediate" => attributes.get(&[2, 2, 2]),
                _ => None,
            };
            if let Some(target) = target.and_then(|bytes| string(bytes)) {
                write!(f, " {target}")?;
            }
        }
        Ok(())
    }
}

impl ListedRule {
    /// The rule in the payload of `NFTA_RULE_EXPRESSIONS`.
    fn read(expressions: &[u8]) -> Self {
        Self(attributes(expressions).map(|(_, expression)| ListedExpr::read(expression)).collect())
    }

    /// What the kernel lists once it was given `rule`.
    pub(crate) fn expected(rule: &Rule) -> Self {
        let mut writer = Writer::default();
        writer.message(0, 0, &[], |w| wire::expressions(w, rule));
        let bytes = writer.finish(0);
        let mut found = Self::read(bytes.get(16..).unwrap_or_default());
        found.0.iter_mut().for_each(ListedExpr::complete);
        found
    }
}

impl ListedExpr {
    fn read(bytes: &[u8]) -> Self {
        let found = attributes(bytes);
        let name = found.find(1).and_then(string).unwrap_or_default().to_owned();
        let mut expr = Self { name, attributes: BTreeMap::new() };
        for (kind, payload) in attributes(found.find(2).unwrap_or_default()) {
            if expr.is_nested(kind) {
                expr.nested(kind, payload);
            } else {
                expr.put([kind, 0, 0], payload);
            }
        }
        expr
    }

    fn nested(&mut self, kind: u16, payload: &[u8]) {
        const VERDICT: u16 = 2;
        for (inner, payload) in attributes(payload) {
            if inner != VERDICT {
                self.put([kind, inner, 0], payload);
                continue;
            }
            for (innermost, payload) in attributes(payload) {
                self.put([kind, inner, innermost], payload);
            }
        }
    }

    fn is_nested(&self, kind: u16) -> bool {
        matches!((self.name.as_str(), kind), ("cmp", 3) | ("bitwise", 4 | 5) | ("immediate", 2))
    }

    fn put(&mut self, path: Path, payload: &[u8]) {
        if payload.iter().any(|&byte| byte != 0) {
            self.attributes.insert(path, payload.to_vec());
        }
    }

    /// What the kernel makes of what it was given: the end of a range is its beginning, and every fourth register has an
    /// older number too.
    fn complete(&mut self) {
        self.complete_ranges();
        for &kind in self.registers() {
            if let Some(value) = self.attributes.get_mut(&[kind, 0, 0]).filter(|value| value.len() == 4)
                && let 8 | 12 | 16 | 20 = value[3]
            {
                value[3] = value[3] / 4 - 1;
            }
        }
    }

    /// The attributes that are numbers of registers.
    fn registers(&self) -> &'static [u16] {
        match self.name.as_str() {
            "meta" | "payload" | "ct" | "cmp" | "immediate" | "numgen" => &[1],
            "bitwise" | "hash" | "redir" => &[1, 2],
            "lookup" => &[2, 3],
            "nat" => &[3, 4, 5, 6],
            "dynset" => &[4, 5],
            _ => &[],
        }
    }

    fn complete_ranges(&mut self) {
        const MAP_ADDRESS: u32 = 1;
        const PORT_SPECIFIED: u32 = 2;
        let (pairs, flags): (&[(u16, u16)], _) = match self.name.as_str() {
            "nat" => (&[(3, 4), (5, 6)], (7, MAP_ADDRESS | PORT_SPECIFIED)),
            "redir" => (&[(1, 2)], (3, PORT_SPECIFIED)),
            _ => return,
        };
        for &(from, to) in pairs {
            if let Some(value) = self.attributes.get(&[from, 0, 0]).cloned() {
                self.attributes.insert([to, 0, 0], value);
            }
        }
        self.attributes.insert([flags.0, 0, 0], flags.1.to_be_bytes().to_vec());
    }
}

const ACCEPT: u32 = 1;

/// What the table of frontends that go to `picks` consists of.
pub(crate) fn expected(picks: &BTreeSet<Pick>) -> Ruleset {
    let sets = Set::ALL.iter().map(|&set| (set.name().to_owned(), wire::listed(set))).collect();
    let chains = rules::chains().into_iter().map(|chain| {
        let base = chain.hook.map(|(hook, priority)| Base { kind: "nat".into(), hook, priority, policy: ACCEPT });
        (chain.name.to_owned(), ListedChain { base, rules: found(&chain.rules) })
    });
    let picks = picks.iter().map(|pick| (pick.to_string(), expected_pick(pick)));
    Ruleset { dormant: false, sets, chains: chains.chain(picks).collect() }
}

/// What a pick chain consists of.
fn expected_pick(pick: &Pick) -> ListedChain {
    ListedChain { base: None, rules: found(&rules::pick(pick)) }
}

/// The rule that leads packets of a family to the frontends.
pub(crate) fn dispatch(family: Family) -> ListedRule {
    ListedRule::expected(&rules::dispatch_of(family))
}

fn found(rules: &[Rule]) -> Vec<ListedRule> {
    rules.iter().map(ListedRule::expected).collect()
}

/// Whether one message of a dump of tables is about `table` and says that it is switched off.
pub(crate) fn is_dormant(table: &str, payload: &[u8]) -> bool {
    const DORMANT: u32 = 1;
    let found = attributes(payload.get(FIXED..).unwrap_or_default());
    let flags = found.find(2).and_then(u32_be).unwrap_or(0);
    found.find(1).and_then(string) == Some(table) && flags & DORMANT != 0
}

/// The set in one message of a dump of sets, if it is in `table`.
pub(crate) fn read_set(table: &str, payload: &[u8]) -> Option<(String, Shape)> {
    let found = attributes(payload.get(FIXED..)?);
    (found.find(1).and_then(string)? == table).then_some(())?;
    let number = |kind| found.find(kind).and_then(u32_be).unwrap_or(0);
    let data = number(6);
    // The length of a verdict is the kernel's own business.
    let data_length = if data == wire::TYPE_VERDICT { 0 } else { number(7) };
    let shape = Shape { flags: number(3), key: number(4), key_length: number(5), data, data_length };
    Some((found.find(2).and_then(string)?.to_owned(), shape))
}

/// The chain in one message of a dump of chains, if it is in `table`.
pub(crate) fn read_chain(table: &str, payload: &[u8]) -> Option<(String, Option<Base>)> {
    let found = attributes(payload.get(FIXED..)?);
    (found.find(1).and_then(string)? == table).then_some(())?;
    let base = found.find(4).map(|hook| {
        let hook = attributes(hook);
        Base {
            kind: found.find(7).and_then(string).unwrap_or_default().to_owned(),
            hook: hook.find(1).and_then(u32_be).unwrap_or(u32::MAX),
            priority: hook.find(2).and_then(u32_be).unwrap_or(0).cast_signed(),
            policy: found.find(5).and_then(u32_be).unwrap_or(ACCEPT),
        }
    });
    Some((found.find(3).and_then(string)?.to_owned(), base))
}

/// The rule in one message of a dump of rules, with its chain, if it is in `table`.
pub(crate) fn read_rule(table: &str, payload: &[u8]) -> Option<(String, ListedRule)> {
    let found = attributes(payload.get(FIXED..)?);
    (found.find(1).and_then(string)? == table).then_some(())?;
    let rule = ListedRule::read(found.find(4).unwrap_or_default());
    Some((found.find(2).and_then(string)?.to_owned(), rule))
}
