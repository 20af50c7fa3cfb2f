//! The rules, as the kernel's own expressions.
//!
//! `nft` has no words for some of them (a map inside an `update`, `ct original proto-dst` in a concatenation), but it
//! lists them all.

use std::sync::OnceLock;

use lb_core::{
    addr::{Family, Protocol, Scope},
    affinity::Affinity,
};
use nix::libc;

use crate::{
    netfilter::{IPS_DST_NAT, NF_CT_STATE_INVALID},
    nftables::table::{
        choice::{CHOICE, Pick},
        expr::{Conntrack, Expr, Register},
        layout::{Set, block, first_slot, millis},
        loads::{R0, destination, dnat, frontend, hash_flow, only, port, record, slot, source, width},
    },
};

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Rule {
    /// Expressions, evaluated until one ends the rule.
    pub(crate) expressions: Vec<Expr>,
    /// The comment that `nft list` shows; empty for none.
    pub(crate) comment: &'static str,
}

impl From<Vec<Expr>> for Rule {
    fn from(expressions: Vec<Expr>) -> Self {
        Self { expressions, comment: "" }
    }
}

/// A chain that every table has.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: &'static str,
    /// Where packets enter it, for a base chain.
    pub(crate) hook: Option<Hook>,
    /// Its rules.
    pub(crate) rules: Vec<Rule>,
}

/// Where packets enter a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    /// Type of the chain: `nat` or `filter`.
    pub(crate) kind: &'static str,
    /// `NF_INET_*`.
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

impl Hook {
    const fn nat(number: i32, priority: i32) -> Option<Self> {
        Some(Self { kind: "nat", number: number.cast_unsigned(), priority })
    }

    const fn filter(number: i32) -> Option<Self> {
        Some(Self { kind: "filter", number: number.cast_unsigned(), priority: libc::NF_IP_PRI_FILTER })
    }
}

const REFUSE_CHAIN: &str = "refuse";

/// Name of the object with the time-outs of connections.
pub(crate) const TIMEOUTS: &str = "connections";

/// Name of the chain that refuses.
pub(crate) const fn refuse() -> &'static str {
    REFUSE_CHAIN
}

/// The chains that every table has, each after those it leads to.
///
/// Those that translate are of type nat, so only the first packet of a flow walks them ([`nf_nat_inet_fn`]); conntrack
/// translates the later ones. It does not translate a packet that it can make nothing of: those of lb's flows end in the
/// chains of type filter.
///
/// [`nf_nat_inet_fn`]: https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nf_nat_core.c
pub(crate) fn chains() -> Vec<Chain> {
    vec![
        Chain { name: REFUSE_CHAIN, hook: None, rules: refuse_rules() },
        Chain { name: masquerade_chain(Family::V4), hook: None, rules: masquerade_rules(Family::V4) },
        Chain { name: masquerade_chain(Family::V6), hook: None, rules: masquerade_rules(Family::V6) },
        Chain { name: other_ports_chain(Family::V4), hook: None, rules: other_ports_rules(Family::V4) },
        Chain { name: other_ports_chain(Family::V6), hook: None, rules: other_ports_rules(Family::V6) },
        Chain {
            name: "prerouting",
            hook: Hook::nat(libc::NF_INET_PRE_ROUTING, libc::NF_IP_PRI_NAT_DST),
            rules: dispatch(Way::In),
        },
        Chain {
            name: "output",
            hook: Hook::nat(libc::NF_INET_LOCAL_OUT, libc::NF_IP_PRI_NAT_DST),
            rules: dispatch(Way::Out),
        },
        Chain {
            name: "postrouting",
            hook: Hook::nat(libc::NF_INET_POST_ROUTING, libc::NF_IP_PRI_NAT_SRC),
            rules: leaving(),
        },
        Chain { name: INVALID_HERE, hook: None, rules: invalid_rules(Ends::Here) },
        Chain { name: INVALID_PASSING, hook: None, rules: invalid_rules(Ends::Elsewhere) },
        Chain {
            name: "filter-input",
            hook: Hook::filter(libc::NF_INET_LOCAL_IN),
            rules: vec![only_invalid(INVALID_HERE)],
        },
        Chain {
            name: "filter-forward",
            hook: Hook::filter(libc::NF_INET_FORWARD),
            rules: vec![only_invalid(INVALID_PASSING)],
        },
        Chain {
            name: "filter-output",
            hook: Hook::filter(libc::NF_INET_LOCAL_OUT),
            rules: vec![only_invalid(INVALID_HERE)],
        },
    ]
}

/// Rules of a pick chain.
pub(crate) fn pick(pick: &Pick) -> Vec<Rule> {
    let mut rules = match pick.affinity {
        None if pick.is_packed() => {
            (0..8).take(block(pick.family) as usize).map(|n| pick_from_block(pick, n)).collect()
        }
        None => vec![pick_fresh(pick).into()],
        Some(affinity) => vec![remember(pick, affinity), follow(pick, affinity).into(), pick_fresh(pick).into()],
    };
    rules.push(take_first(pick));
    rules
}

/// The way of packets that a chain leads to the frontends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// They come in through a device.
    In,
    /// The node itself sends them.
    Out,
}

fn dispatch(way: Way) -> Vec<Rule> {
    let of = |family| {
        let [internal, external] = [Scope::Internal, Scope::External].map(|scope| dispatch_of(way, scope, family));
        [internal, external, other_ports_of(family)]
    };
    [Family::V4, Family::V6].into_iter().flat_map(of).collect()
}

/// The rule for what no frontend takes, though its address has some.
pub(crate) fn other_ports_of(family: Family) -> Rule {
    let mut rule = only(family);
    rule.push(destination(family, R0));
    rule.extend([
        Expr::Map { map: Set::Addresses(family), key: R0, to: R0 },
        // No choice has the number zero. Without this comparison `nft list` would not show the look-up.
        Expr::Compare { not: true, register: R0, with: vec![0; CHOICE] },
        Expr::Goto(other_ports_chain(family)),
    ]);
    rule.into()
}

/// Looks for the frontend once more, and then has the address decide.
///
/// A frontend whose value changes is removed and added in one transaction, and a packet that looks it up at that very
/// moment can miss both elements ([`nft_lookup_eval`] asks for the generation each time). A second look finds it.
///
/// [`nft_lookup_eval`]: https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nft_lookup.c
fn other_ports_rules(family: Family) -> Vec<Rule> {
    let mut last = only(family);
    last.push(destination(family, R0));
    last.extend(look_up_choice(Set::Addresses(family)));
    last.push(Expr::VerdictMap { map: Set::Picks(family), key: CHOSEN });
    let comment = match family {
        Family::V4 => "the key is not what is listed, it is ip daddr map @addresses4",
        Family::V6 => "the key is not what is listed, it is ip6 daddr map @addresses6",
    };
    let [internal, external] = [Scope::Internal, Scope::External].map(|scope| dispatch_of(Way::In, scope, family));
    vec![internal, external, Rule { expressions: last, comment }]
}

/// Name of the chain for what no frontend of an address takes.
pub(crate) const fn other_ports_chain(family: Family) -> &'static str {
    match family {
        Family::V4 => "other-ports4",
        Family::V6 => "other-ports6",
    }
}

/// Where rules have the key of [`Set::Picks`].
const CHOSEN: Register = R0 + 8;

/// Looks up the choice of the key in the first registers, as the key of [`Set::Picks`].
///
/// `nft list` (1.0.6) aborts on a key that comes straight from a map. It takes for the key whatever expression last
/// loaded exactly that register. So the rule first loads numbers there, and the value of the map begins one register
/// early.
fn look_up_choice(map: Set) -> impl Iterator<Item = Expr> {
    let marks = (0..CHOICE as Register / 4).map(|word| Expr::Mark { to: CHOSEN + word });
    marks.chain([Expr::Map { map, key: R0, to: CHOSEN - 1 }])
}

/// The rule that leads packets of a family to the frontends of a scope, and on to the chain that their number stands for.
/// What comes in through an uplink has no business with those of scope internal.
pub(crate) fn dispatch_of(way: Way, scope: Scope, family: Family) -> Rule {
    let mut rule = only(family);
    if scope == Scope::Internal && way == Way::In {
        rule.push(Expr::InputDevice { to: R0 });
        rule.push(Expr::Member { set: Set::Uplinks, key: R0, not: true });
    }
    rule.extend(frontend(family, R0));
    rule.extend(look_up_choice(Set::Frontends(scope, family)));
    if has_timeouts() {
        rule.push(Expr::Timeouts);
    }
    rule.push(Expr::VerdictMap { map: Set::Picks(family), key: CHOSEN });
    let comment = match (scope, family) {
        (Scope::External, Family::V4) => {
            "the key is not what is listed, it is ip daddr . meta l4proto . th dport map @frontends4"
        }
        (Scope::External, Family::V6) => {
            "the key is not what is listed, it is ip6 daddr . meta l4proto . th dport map @frontends6"
        }
        (Scope::Internal, Family::V4) => {
            "the key is not what is listed, it is ip daddr . meta l4proto . th dport map @internal4"
        }
        (Scope::Internal, Family::V6) => {
            "the key is not what is listed, it is ip6 daddr . meta l4proto . th dport map @internal6"
        }
    };
    Rule { expressions: rule, comment }
}

/// Leads flows to be masqueraded only if their destination was translated and was a frontend.
fn leaving() -> Vec<Rule> {
    [Family::V4, Family::V6]
        .into_iter()
        .map(|family| {
            let mut rule = vec![
                Expr::Conntrack { what: Conntrack::Status, to: R0 },
                Expr::Mask { register: R0, mask: IPS_DST_NAT.to_ne_bytes().to_vec() },
                Expr::Compare { not: true, register: R0, with: vec![0; 4] },
            ];
            rule.extend(only(family));
            rule.extend(original_frontend(family));
            rule.extend([
                Expr::Map { map: Set::Frontends(Scope::External, family), key: R0, to: R0 },
                // No choice has the number zero. Without this comparison `nft list` would not show the look-up.
                Expr::Compare { not: true, register: R0, with: vec![0; CHOICE] },
                Expr::Goto(masquerade_chain(family)),
            ]);
            rule.into()
        })
        .collect()
}

/// Loads the frontend that the packet's flow is for, from the first register on.
fn original_frontend(family: Family) -> [Expr; 3] {
    let width = width(family);
    [
        Expr::Conntrack { what: Conntrack::OriginalDestination(family), to: R0 },
        Expr::TransportProtocol { to: R0 + width },
        Expr::Conntrack { what: Conntrack::OriginalPort, to: R0 + width + 1 },
    ]
}

/// Chains for packets that conntrack can make nothing of, by whether they begin or end on this host.
const INVALID_HERE: &str = "invalid";
const INVALID_PASSING: &str = "invalid-forward";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Here,
    Elsewhere,
}

/// Every other packet meets nothing but this rule.
fn only_invalid(chain: &'static str) -> Rule {
    let invalid = NF_CT_STATE_INVALID.to_ne_bytes().to_vec();
    vec![
        Expr::Conntrack { what: Conntrack::State, to: R0 },
        Expr::Mask { register: R0, mask: invalid },
        Expr::Compare { not: true, register: R0, with: vec![0; 4] },
        Expr::Goto(chain),
    ]
    .into()
}

/// Drops packets to frontends, and packets from backends that may be answers. Untranslated, they would have the end
/// that gets them reset the connection of the other one.
///
/// The answer to a source that is translated goes to this host; the answer to any other goes to a pod.
fn invalid_rules(ends: Ends) -> Vec<Rule> {
    let rules = [Family::V4, Family::V6].into_iter().flat_map(|family| {
        let width = width(family);
        let mut to_frontend = only(family);
        to_frontend.extend(frontend(family, R0));
        to_frontend.extend([
            Expr::Map { map: Set::Frontends(Scope::External, family), key: R0, to: R0 },
            Expr::Compare { not: true, register: R0, with: vec![0; CHOICE] },
            Expr::Drop,
        ]);
        let mut from_backend = only(family);
        from_backend.extend([
            Expr::TransportProtocol { to: R0 },
            Expr::Compare { not: false, register: R0, with: vec![Protocol::Tcp.number()] },
            source(family, R0),
            port(0, R0 + width),
            Expr::Member { set: Set::Backends(family), key: R0, not: false },
        ]);
        if ends == Ends::Elsewhere {
            from_backend.push(destination(family, R0));
            from_backend.push(Expr::Member { set: Set::Cluster(family), key: R0, not: false });
        }
        from_backend.push(Expr::Drop);
        [to_frontend, from_backend]
    });
    rules.map(Rule::from).collect()
}

/// Whether the kernel can give single connections time-outs of their own (`CONFIG_NF_CONNTRACK_TIMEOUT`).
static HAS_TIMEOUTS: OnceLock<bool> = OnceLock::new();

/// Whether rules give connections time-outs. The same for the life of a process, as the kernel is.
pub(crate) fn has_timeouts() -> bool {
    *HAS_TIMEOUTS.get().unwrap_or(&true)
}

/// Asks, the first time, whether the kernel can give single connections time-outs.
pub(crate) fn learn_timeouts(ask: impl FnOnce() -> lb_netlink::Result<bool>) -> lb_netlink::Result<()> {
    if HAS_TIMEOUTS.get().is_none() {
        // Whoever was faster has the same answer.
        let _ = HAS_TIMEOUTS.set(ask()?);
    }
    Ok(())
}

/// Sources that are translated: those of clients outside of the cluster, unless their frontend keeps them; of pods that are
/// their own backend; and of pods of other nodes where the backend would answer them past this node.
fn masquerade_rules(family: Family) -> Vec<Rule> {
    let from_uplink = |set: fn(Family) -> Set| {
        let mut rule = only(family);
        rule.extend([Expr::InputDevice { to: R0 }, Expr::Member { set: Set::Uplinks, key: R0, not: false }]);
        rule.extend(original_frontend(family));
        rule.push(Expr::Member { set: set(family), key: R0, not: false });
        rule
    };
    let mut kept = from_uplink(Set::KeptSources);
    kept.push(Expr::Accept);
    let mut pods = from_uplink(Set::TranslatedPods);
    pods.push(Expr::Masquerade);
    let mut outside = only(family);
    outside.extend([
        source(family, R0),
        Expr::Member { set: Set::Cluster(family), key: R0, not: true },
        Expr::Masquerade,
    ]);
    let mut hairpin = only(family);
    hairpin.extend([
        source(family, R0),
        destination(family, R0 + width(family)),
        Expr::Member { set: Set::Hairpin(family), key: R0, not: false },
        Expr::Masquerade,
    ]);
    vec![kept.into(), outside.into(), hairpin.into(), pods.into()]
}

/// A local UDP packet goes on to port 0 of the node, where nobody can listen. The answer is an ICMP error that
/// conntrack translates back. Refused in the output hook, it would be an error of `send`, and for IPv4 the kernel would
/// not find a source for the ICMP error where the packet's route leads to the loopback device.
fn refuse_rules() -> Vec<Rule> {
    let protocol =
        |number| [Expr::TransportProtocol { to: R0 }, Expr::Compare { not: false, register: R0, with: vec![number] }];
    let mut tcp = Vec::from(protocol(Protocol::Tcp.number()));
    tcp.push(Expr::Reset);
    let mut local = Vec::from(protocol(Protocol::Udp.number()));
    local.extend([
        // None is known before the route look-up of packets that arrive.
        Expr::OutputDevice { to: R0 },
        Expr::Compare { not: true, register: R0, with: vec![0; 4] },
        Expr::Load { bytes: [0; 4], to: R0 },
        Expr::Redirect { port: R0 },
    ]);
    vec![tcp.into(), local.into(), vec![Expr::Unreachable].into()]
}

/// Name of the chain that translates the sources of a family.
pub(crate) const fn masquerade_chain(family: Family) -> &'static str {
    match family {
        Family::V4 => "masquerade4",
        Family::V6 => "masquerade6",
    }
}

/// Picks a slot and translates to its backend.
fn pick_fresh(pick: &Pick) -> Vec<Expr> {
    let mut rule = only(pick.family);
    rule.extend(slot(pick, R0));
    rule.push(Expr::Map { map: Set::Slots(pick.family), key: R0, to: R0 });
    rule.push(dnat(pick.family, R0));
    rule
}

/// Translates to the backend of the first slot.
///
/// A packet that was led here before a transaction, and looks its slot up after it, may find the slot gone. The first one
/// is there as long as the frontend has backends.
fn take_first(pick: &Pick) -> Rule {
    let (family, width) = (pick.family, width(pick.family));
    let key = if pick.is_packed() { R0 + key_of_block(family, 0) } else { R0 };
    let mut rule = only(family);
    rule.push(Expr::Number { random: true, modulus: 1, first: first_slot(pick.scope), to: key + width + 2 });
    if pick.is_packed() {
        rule.extend([destination(family, R0), port(2, R0 + width)]);
    }
    rule.extend(frontend(family, key));
    let map = if pick.is_packed() { Set::Tables(family) } else { Set::Slots(family) };
    rule.push(Expr::Map { map, key, to: R0 });
    rule.push(dnat(family, R0));
    rule.into()
}

/// Translates to the `n`th backend of a block, if the hash selects that slot.
///
/// `nft list` takes for address and port whatever expressions last loaded exactly their registers. It overlooks that a
/// look-up loads more registers than the first. So the rule first loads an address and a port there, and keeps the key
/// elsewhere.
fn pick_from_block(pick: &Pick, n: u8) -> Rule {
    let (family, width) = (pick.family, width(pick.family));
    let address = R0 + (width + 1) * n;
    let key = R0 + key_of_block(family, n);
    let (number, last) = (key + width + 2, block(family) - 1);
    let spare = if number == R0 + 15 { key - 1 } else { number + 1 };
    let mut rule = only(family);
    rule.extend(hash_flow(pick, number));
    rule.extend([
        Expr::Part { from: number, mask: last, to: spare },
        Expr::Compare { not: false, register: spare, with: u32::from(n).to_ne_bytes().to_vec() },
        // A number that was masked has no length for `nft list`, which then aborts: so it is masked with the one
        // before.
        Expr::TransportProtocol { to: number - 1 },
        Expr::Mask { register: number - 1, mask: [[0xff; 4], (!last).to_ne_bytes()].concat() },
        destination(family, address),
        port(2, address + width),
    ]);
    rule.extend(frontend(family, key));
    rule.push(Expr::Map { map: Set::Tables(family), key, to: R0 });
    rule.push(dnat(family, address));
    let comment = match family {
        Family::V4 => "the backend is not what is listed, it is a part of what is in @tables4",
        Family::V6 => "the backend is not what is listed, it is a part of what is in @tables6",
    };
    Rule { expressions: rule, comment }
}

/// Where the key of a block can be without being in the way of address and port of the `n`th backend.
const fn key_of_block(family: Family, n: u8) -> Register {
    match (family, n) {
        (Family::V4, 0..4) => 12,
        (Family::V4, _) => 0,
        // From the second register of an address on, where `nft list` does not look.
        (Family::V6, _) => 6,
    }
}

/// Picks a slot and records its backend for the client, unless the client has a record: then that is renewed.
fn remember(pick: &Pick, affinity: Affinity) -> Rule {
    let width = width(pick.family);
    let value = R0 + 2 * width + 2;
    let slot_key = R0 + 16 - width - 3;
    let mut rule = only(pick.family);
    rule.extend(slot(pick, slot_key));
    rule.extend(picked(pick.family, slot_key, value));
    rule.extend(record(pick.family, affinity, R0));
    rule.push(Expr::Update {
        map: Set::Affinity(pick.scope, pick.family),
        key: R0,
        value,
        timeout_ms: millis(affinity.timeout),
    });
    let comment = match pick.family {
        Family::V4 => "the value is not what is listed, it is a pick from @slots4",
        Family::V6 => "the value is not what is listed, it is a pick from @slots6",
    };
    Rule { expressions: rule, comment }
}

/// Loads the backend of a slot to `value`, by way of the first registers.
///
/// `nft list` (1.0.6) aborts on a value that comes straight from a map. It takes for the value whatever expressions
/// last loaded exactly its registers, and overlooks that a copy loads more registers than the first. So the rule first
/// loads an address and a port there, and the copies start one register early.
fn picked(family: Family, slot_key: Register, value: Register) -> Vec<Expr> {
    let mut load = vec![
        Expr::TransportProtocol { to: R0 },
        Expr::TransportProtocol { to: R0 + 3 },
        Expr::Map { map: Set::Slots(family), key: slot_key, to: R0 + 1 },
        destination(family, value),
        port(2, value + width(family)),
    ];
    match family {
        Family::V4 => load.push(Expr::Copy { from: R0, bytes: 12, to: value - 1 }),
        Family::V6 => load.extend([
            Expr::Copy { from: R0, bytes: 16, to: value - 1 },
            Expr::Copy { from: R0 + 3, bytes: 12, to: value + 2 },
        ]),
    }
    load
}

/// Translates to the backend that the client's record names.
fn follow(pick: &Pick, affinity: Affinity) -> Vec<Expr> {
    let mut rule = only(pick.family);
    rule.extend(record(pick.family, affinity, R0));
    rule.push(Expr::Map { map: Set::Affinity(pick.scope, pick.family), key: R0, to: R0 });
    rule.push(dnat(pick.family, R0));
    rule
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use lb_core::id::FrontendId;

    use super::*;
    use crate::{netfilter::nfproto, nftables::table::choice::How};

    /// The kernel refuses a rule that reads what it did not load, or a register that it does not have.
    #[test]
    fn rules_read_only_what_they_loaded() {
        let mut rules: Vec<Rule> = chains().into_iter().flat_map(|chain| chain.rules).collect();
        let affinity = Affinity { timeout: Duration::from_secs(1), prefix_v4: 24, prefix_v6: 56 };
        for family in [Family::V4, Family::V6] {
            for how in [How::Random, How::Hash, How::Turn(FrontendId::new(1).unwrap())] {
                for affinity in [None, Some(affinity), Some(Affinity::default())] {
                    for scope in [Scope::External, Scope::Internal] {
                        rules.extend(pick(&Pick { family, scope, how, slots: 5, affinity }));
                    }
                }
            }
        }
        for rule in rules {
            let mut loaded = BTreeSet::new();
            for expr in &rule.expressions {
                let (reads, writes) = registers(expr, if rule.expressions.iter().any(is_v6) { 4 } else { 1 });
                assert!(reads.iter().all(|at| loaded.contains(at)), "{expr:?} in {rule:?}");
                loaded.extend(writes);
            }
            assert!(loaded.iter().all(|at| (R0..R0 + 16).contains(at)), "{rule:?}");
        }
    }

    fn is_v6(expr: &Expr) -> bool {
        matches!(expr, Expr::Compare { with, .. } if *with == [nfproto(Family::V6)])
    }

    fn span(at: Register, registers: usize) -> Vec<Register> {
        (at..at + u8::try_from(registers).unwrap()).collect()
    }

    /// Registers that an expression reads and writes, where an address takes `ip` registers.
    fn registers(expr: &Expr, ip: usize) -> (Vec<Register>, Vec<Register>) {
        let key = |set: Set| match set {
            Set::Frontends(..) | Set::KeptSources(_) | Set::TranslatedPods(_) => ip + 2,
            Set::Uplinks => 4,
            Set::Picks(_) => CHOICE / 4,
            Set::Addresses(_) => ip,
            Set::Slots(_) | Set::Tables(_) => ip + 3,
            Set::Affinity(..) => 2 * ip + 2,
            Set::Cluster(_) => ip,
            Set::Hairpin(_) => 2 * ip,
            Set::Backends(_) => ip + 1,
            Set::Notes => panic!("no packet looks there"),
        };
        let value = |map: Set| match map {
            Set::Frontends(..) | Set::Addresses(_) => 1 + CHOICE / 4,
            Set::Tables(family) => (ip + 1) * block(family) as usize,
            _ => ip + 1,
        };
        match expr {
            Expr::NetworkProtocol { to }
            | Expr::TransportProtocol { to }
            | Expr::OutputDevice { to }
            | Expr::Mark { to }
            | Expr::Load { to, .. }
            | Expr::Number { to, .. } => (vec![], vec![*to]),
            Expr::InputDevice { to } => (vec![], span(*to, 4)),
            Expr::Payload { bytes, to, .. } => (vec![], span(*to, bytes.div_ceil(4) as usize)),
            Expr::Conntrack { what: Conntrack::OriginalDestination(_), to } => (vec![], span(*to, ip)),
            Expr::Conntrack { to, .. } => (vec![], vec![*to]),
            Expr::Compare { register, with, .. } => (span(*register, with.len().div_ceil(4)), vec![]),
            Expr::Mask { register, mask } => (span(*register, mask.len() / 4), span(*register, mask.len() / 4)),
            Expr::Copy { from, bytes, to } => {
                assert!(*bytes <= 16, "the kernel copies 16 bytes at most");
                (span(*from, bytes / 4), span(*to, bytes / 4))
            }
            Expr::Hash { from, bytes, to, .. } => (span(*from, *bytes as usize / 4), vec![*to]),
            Expr::Member { set, key: at, .. } => (span(*at, key(*set)), vec![]),
            Expr::Part { from, to, .. } => (vec![*from], vec![*to]),
            Expr::Map { map, key: at, to } => (span(*at, key(*map)), span(*to, value(*map))),
            Expr::VerdictMap { map, key: at } => (span(*at, key(*map)), vec![]),
            Expr::Update { map, key: at, value, .. } => ([span(*at, key(*map)), span(*value, ip + 1)].concat(), vec![]),
            Expr::Dnat { address, port, .. } => ([span(*address, ip), vec![*port]].concat(), vec![]),
            Expr::Redirect { port } => (vec![*port], vec![]),
            Expr::Masquerade
            | Expr::Reset
            | Expr::Unreachable
            | Expr::Goto(_)
            | Expr::Accept
            | Expr::Drop
            | Expr::Timeouts => (vec![], vec![]),
        }
    }
}
