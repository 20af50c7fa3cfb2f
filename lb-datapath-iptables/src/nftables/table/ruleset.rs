//! Sets, chains and rules as the kernel lists them, and the same form of those that the table should have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_core::addr::{Family, Scope};
use lb_netlink::{HEADER, Writer, attributes, string, u32_be};

use crate::{
    netfilter::*,
    nftables::table::{
        choice::Pick,
        expressions::expressions,
        layout::Set,
        rules::{self, Hook, Rule, Way},
        shape::Shape,
    },
};

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

/// A chain with its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListedChain {
    /// Where it is hooked in.
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<ListedRule>,
}

/// Hook, priority and policy of a base chain.
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
        let policy = if *policy == NF_ACCEPT { "accept" } else { "drop" };
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

/// An expression: its name, and its attributes, those of nested ones by their path. The kernel leaves out some
/// attributes that are zero, so a zero attribute counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ListedExpr {
    name: String,
    attributes: BTreeMap<Path, Vec<u8>>,
}

/// Types of attributes from the outermost in; 0 ends it.
type Path = [u16; 3];

/// A rule in a few words: the names of its expressions, with the sets and chains that they name.
impl fmt::Display for ListedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for ListedExpr { name, attributes } in &self.0 {
            write!(f, "{separator}{name}")?;
            separator = ", ";
            let target = match name.as_str() {
                "lookup" => attributes.get(&[NFTA_LOOKUP_SET, 0, 0]),
                "dynset" => attributes.get(&[NFTA_DYNSET_SET_NAME, 0, 0]),
                "immediate" => attributes.get(&[NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN]),
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

    /// The rule that the kernel lists after `rule` was added.
    pub(crate) fn expected(rule: &Rule) -> Self {
        let mut writer = Writer::default();
        writer.message(0, 0, &[], |w| expressions(w, rule));
        let bytes = writer.finish(0);
        let mut found = Self::read(bytes.get(HEADER..).unwrap_or_default());
        found.0.iter_mut().for_each(ListedExpr::complete);
        found
    }
}

impl ListedExpr {
    fn read(bytes: &[u8]) -> Self {
        let found = attributes(bytes);
        let name = found.find(NFTA_EXPR_NAME).and_then(string).unwrap_or_default().to_owned();
        let mut expr = Self { name, attributes: BTreeMap::new() };
        for (kind, payload) in attributes(found.find(NFTA_EXPR_DATA).unwrap_or_default()) {
            if expr.is_nested(kind) {
                expr.nested(kind, payload);
            } else {
                expr.put([kind, 0, 0], payload);
            }
        }
        expr
    }

    fn nested(&mut self, kind: u16, payload: &[u8]) {
        for (inner, payload) in attributes(payload) {
            if inner != NFTA_DATA_VERDICT {
                self.put([kind, inner, 0], payload);
                continue;
            }
            for (innermost, payload) in attributes(payload) {
                self.put([kind, inner, innermost], payload);
            }
        }
    }

    fn is_nested(&self, kind: u16) -> bool {
        matches!(
            (self.name.as_str(), kind),
            ("cmp", NFTA_CMP_DATA)
                | ("bitwise", NFTA_BITWISE_MASK | NFTA_BITWISE_XOR)
                | ("immediate", NFTA_IMMEDIATE_DATA)
        )
    }

    fn put(&mut self, path: Path, payload: &[u8]) {
        if payload.iter().any(|&byte| byte != 0) {
            self.attributes.insert(path, payload.to_vec());
        }
    }

    /// Completes an expression as the kernel does: the end of a range is its beginning, and every fourth register goes
    /// by the number of the 16-byte register that begins there ([`nft_dump_register`]).
    ///
    /// [`nft_dump_register`]: https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nf_tables_api.c
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
            "meta" => &[NFTA_META_DREG],
            "payload" => &[NFTA_PAYLOAD_DREG],
            "ct" => &[NFTA_CT_DREG],
            "cmp" => &[NFTA_CMP_SREG],
            "immediate" => &[NFTA_IMMEDIATE_DREG],
            "numgen" => &[NFTA_NG_DREG],
            "bitwise" => &[NFTA_BITWISE_SREG, NFTA_BITWISE_DREG],
            "hash" => &[NFTA_HASH_SREG, NFTA_HASH_DREG],
            "redir" => &[NFTA_REDIR_REG_PROTO_MIN, NFTA_REDIR_REG_PROTO_MAX],
            "lookup" => &[NFTA_LOOKUP_SREG, NFTA_LOOKUP_DREG],
            "nat" => &[NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_ADDR_MAX, NFTA_NAT_REG_PROTO_MIN, NFTA_NAT_REG_PROTO_MAX],
            "dynset" => &[NFTA_DYNSET_SREG_KEY, NFTA_DYNSET_SREG_DATA],
            _ => &[],
        }
    }

    fn complete_ranges(&mut self) {
        let (pairs, flags): (&[(u16, u16)], _) = match self.name.as_str() {
            "nat" => (
                &[(NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_ADDR_MAX), (NFTA_NAT_REG_PROTO_MIN, NFTA_NAT_REG_PROTO_MAX)],
                (NFTA_NAT_FLAGS, NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED),
            ),
            "redir" => (
                &[(NFTA_REDIR_REG_PROTO_MIN, NFTA_REDIR_REG_PROTO_MAX)],
                (NFTA_REDIR_FLAGS, NF_NAT_RANGE_PROTO_SPECIFIED),
            ),
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

/// The ruleset of a table whose frontends go to `picks`.
pub(crate) fn expected(picks: &BTreeSet<Pick>) -> Ruleset {
    let sets = Set::ALL.iter().map(|&set| (set.name().to_owned(), Shape::of(set))).collect();
    let chains = rules::chains().into_iter().map(|chain| {
        let base = chain.hook.map(|Hook { kind, number, priority }| Base {
            kind: kind.into(),
            hook: number,
            priority,
            policy: NF_ACCEPT,
        });
        (chain.name.to_owned(), ListedChain { base, rules: found(&chain.rules) })
    });
    let picks = picks.iter().map(|pick| (pick.to_string(), expected_pick(pick)));
    Ruleset { dormant: false, sets, chains: chains.chain(picks).collect() }
}

/// A pick chain with its rules.
fn expected_pick(pick: &Pick) -> ListedChain {
    ListedChain { base: None, rules: found(&rules::pick(pick)) }
}

/// The rule that leads packets of a family to the frontends of a scope.
pub(crate) fn dispatch(way: Way, scope: Scope, family: Family) -> ListedRule {
    ListedRule::expected(&rules::dispatch_of(way, scope, family))
}

/// The rule for what no frontend takes, though its address has some.
pub(crate) fn other_ports(family: Family) -> ListedRule {
    ListedRule::expected(&rules::other_ports_of(family))
}

fn found(rules: &[Rule]) -> Vec<ListedRule> {
    rules.iter().map(ListedRule::expected).collect()
}

/// Whether one message of a dump of tables is about `table` and says that it is switched off.
pub(crate) fn is_dormant(table: &str, payload: &[u8]) -> bool {
    let found = body(payload);
    let flags = found.find(NFTA_TABLE_FLAGS).and_then(u32_be).unwrap_or(0);
    found.find(NFTA_TABLE_NAME).and_then(string) == Some(table) && flags & NFT_TABLE_F_DORMANT != 0
}

/// The set in one message of a dump of sets, if it is in `table`.
pub(crate) fn read_set(table: &str, payload: &[u8]) -> Option<(String, Shape)> {
    let found = body(payload);
    (found.find(NFTA_SET_TABLE).and_then(string)? == table).then_some(())?;
    let number = |kind| found.find(kind).and_then(u32_be).unwrap_or(0);
    let data = number(NFTA_SET_DATA_TYPE);
    // The kernel reports the length of its own structure for a verdict.
    let data_length = if data == NFT_DATA_VERDICT { 0 } else { number(NFTA_SET_DATA_LEN) };
    let shape = Shape {
        flags: number(NFTA_SET_FLAGS),
        key: number(NFTA_SET_KEY_TYPE),
        key_length: number(NFTA_SET_KEY_LEN),
        data,
        data_length,
    };
    Some((found.find(NFTA_SET_NAME).and_then(string)?.to_owned(), shape))
}

/// The chain in one message of a dump of chains, if it is in `table`.
pub(crate) fn read_chain(table: &str, payload: &[u8]) -> Option<(String, Option<Base>)> {
    let found = body(payload);
    (found.find(NFTA_CHAIN_TABLE).and_then(string)? == table).then_some(())?;
    let base = found.find(NFTA_CHAIN_HOOK).map(|hook| {
        let hook = attributes(hook);
        Base {
            kind: found.find(NFTA_CHAIN_TYPE).and_then(string).unwrap_or_default().to_owned(),
            hook: hook.find(NFTA_HOOK_HOOKNUM).and_then(u32_be).unwrap_or(u32::MAX),
            priority: hook.find(NFTA_HOOK_PRIORITY).and_then(u32_be).unwrap_or(0).cast_signed(),
            policy: found.find(NFTA_CHAIN_POLICY).and_then(u32_be).unwrap_or(NF_ACCEPT),
        }
    });
    Some((found.find(NFTA_CHAIN_NAME).and_then(string)?.to_owned(), base))
}

/// The rule in one message of a dump of rules, with its chain, if it is in `table`.
pub(crate) fn read_rule(table: &str, payload: &[u8]) -> Option<(String, ListedRule)> {
    let found = body(payload);
    (found.find(NFTA_RULE_TABLE).and_then(string)? == table).then_some(())?;
    let rule = ListedRule::read(found.find(NFTA_RULE_EXPRESSIONS).unwrap_or_default());
    Some((found.find(NFTA_RULE_CHAIN).and_then(string)?.to_owned(), rule))
}
