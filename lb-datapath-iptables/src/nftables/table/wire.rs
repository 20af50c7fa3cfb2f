//! Tables, sets, chains, rules and elements as messages of nf_tables (`linux/netfilter/nf_tables.h`).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};

use lb_core::Family;

use crate::{
    netfilter::{INET, IPV4, IPV6, NFTABLES, fixed, kind},
    nftables::table::{
        layout::{Bound, CHOICE, Choice, Element, Endpoint, Key, Pick, Set, Value, block},
        rules::{self, Chain, Conntrack, Expr, Rule},
        ruleset, userdata,
    },
};
use lb_netlink::Writer;

pub(crate) const NEW_TABLE: u16 = kind(NFTABLES, 0);
pub(crate) const GET_TABLE: u16 = kind(NFTABLES, 1);
pub(crate) const DELETE_TABLE: u16 = kind(NFTABLES, 2);
const NEW_CHAIN: u16 = kind(NFTABLES, 3);
pub(crate) const GET_CHAIN: u16 = kind(NFTABLES, 4);
const DELETE_CHAIN: u16 = kind(NFTABLES, 5);
const NEW_RULE: u16 = kind(NFTABLES, 6);
pub(crate) const GET_RULE: u16 = kind(NFTABLES, 7);
const DELETE_RULE: u16 = kind(NFTABLES, 8);
const NEW_SET: u16 = kind(NFTABLES, 9);
pub(crate) const GET_SET: u16 = kind(NFTABLES, 10);
const DELETE_SET: u16 = kind(NFTABLES, 11);
pub(crate) const NEW_ELEMENT: u16 = kind(NFTABLES, 12);
pub(crate) const GET_ELEMENT: u16 = kind(NFTABLES, 13);
pub(crate) const DELETE_ELEMENT: u16 = kind(NFTABLES, 14);
/// Ends what the kernel tells of a transaction.
pub(crate) const NEW_GENERATION: u16 = kind(NFTABLES, 15);
const GET_GENERATION: u16 = kind(NFTABLES, 16);
/// Linux 6.3. Nothing older removes a record that may run out before the transaction takes: a plain removal is refused
/// for one that is gone, and so is adding it first where a packet has put another backend there.
const DESTROY_ELEMENT: u16 = kind(NFTABLES, 30);

/// Attributes of tables (`NFTA_TABLE_*`).
pub(crate) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const HANDLE: u16 = 4;
    pub(crate) const USERDATA: u16 = 6;
}

/// Attributes of elements (`NFTA_SET_ELEM_*`).
pub(crate) mod element {
    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const TIMEOUT: u16 = 4;
    pub(crate) const EXPIRATION: u16 = 5;
    pub(crate) const USERDATA: u16 = 6;
    pub(crate) const FLAG_INTERVAL_END: u32 = 1;
}

/// The list of elements in a message about elements.
pub(crate) const ELEMENTS: u16 = 3;
const LIST_ITEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

const VERDICT_DROP: u32 = 0;
const VERDICT_GOTO: i32 = -4;
const VERDICT_REGISTER: u8 = 0;

/// Maps whose values are verdicts have this data type.
pub(crate) const TYPE_VERDICT: u32 = 0xffff_ff00;
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTO: u32 = 12;
const TYPE_SERVICE: u32 = 13;
const TYPE_MARK: u32 = 19;
const TYPE_INTEGER: u32 = 4;

const SET_INTERVAL: u32 = 4;
const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const SET_DYNAMIC: u32 = 0x20;

/// Bytes of elements in one message: the list's length is a 16-bit number.
const MESSAGE_ELEMENTS: usize = 48 << 10;

/// What to do with elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Fails if the element is there.
    Add,
    /// Fails if the element is not there.
    Remove,
    /// Removes the element if it is there: it may run out at any time.
    Destroy,
}

/// A client's record, with what is left of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// Milliseconds from one use to the end.
    pub(crate) timeout: u64,
    /// Milliseconds that are left.
    pub(crate) left: u64,
}

/// An element in a message: removing one takes its key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Item<'a> {
    /// Its key.
    Key(&'a Key),
    /// All of it, and its life if it has an end.
    Whole(&'a Element, Option<Lifetime>),
}

/// Opens a batch.
pub(crate) fn begin(w: &mut Writer) {
    w.message(crate::netfilter::BATCH_BEGIN, NLM_F_REQUEST, &fixed(0, NFTABLES), |_| {});
}

/// Ends a batch. The message before it is acknowledged once the batch is committed.
pub(crate) fn end(w: &mut Writer) {
    w.flag_last(netlink_packet_core::NLM_F_ACK);
    w.message(crate::netfilter::BATCH_END, NLM_F_REQUEST, &fixed(0, NFTABLES), |_| {});
}

/// Removes a table with all that is in it: this very one, not another of its name.
pub(crate) fn remove_table(w: &mut Writer, handle: u64) {
    message(w, DELETE_TABLE, 0, |w| w.put_u64(table::HANDLE, handle));
}

/// Adds a table with our marker.
pub(crate) fn add_table(w: &mut Writer, table: &str) {
    message(w, NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL, |w| {
        w.put_str(table::NAME, table);
        w.put(table::USERDATA, &userdata::marker());
    });
}

/// Adds a set or map.
pub(crate) fn add_set(w: &mut Writer, table: &str, set: Set, id: u32, size: u32) {
    let shape = shape(set);
    message(w, NEW_SET, NLM_F_CREATE | NLM_F_EXCL, |w| {
        w.put_str(1, table);
        w.put_str(2, set.name());
        w.put_u32(3, shape.flags);
        w.put_u32(4, concat(&shape.key));
        w.put_u32(5, length(&shape.key));
        if !shape.data.is_empty() {
            w.put_u32(6, concat(&shape.data));
            w.put_u32(7, shape.data_length);
        }
        if matches!(set, Set::Affinity(_)) {
            w.nest(9, |w| w.put_u32(1, size));
        }
        w.put_u32(10, id);
        w.put(13, &userdata::of_set(set));
    });
}

/// Adds a chain that is always there, without its rules.
pub(crate) fn add_chain(w: &mut Writer, table: &str, chain: &Chain) {
    add_named_chain(w, table, chain.name, chain.hook);
}

/// Adds a chain without rules; with a hook, a base chain of type nat.
pub(crate) fn add_named_chain(w: &mut Writer, table: &str, name: &str, hook: Option<(u32, i32)>) {
    message(w, NEW_CHAIN, NLM_F_CREATE | NLM_F_EXCL, |w| {
        w.put_str(1, table);
        w.put_str(3, name);
        if let Some((hook, priority)) = hook {
            w.nest(4, |w| {
                w.put_u32(1, hook);
                w.put_u32(2, priority.cast_unsigned());
            });
            w.put_u32(5, 1);
            w.put_str(7, "nat");
        }
    });
}

/// Adds a rule at the end of a chain.
pub(crate) fn add_rule(w: &mut Writer, table: &str, chain: &str, rule: &Rule) {
    message(w, NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |w| {
        w.put_str(1, table);
        w.put_str(2, chain);
        w.nest(4, |w| expressions(w, rule));
        if !rule.comment.is_empty() {
            w.put(7, &userdata::comment_of(rule.comment));
        }
    });
}

/// The expressions of a rule.
pub(crate) fn expressions(w: &mut Writer, rule: &Rule) {
    rule.expressions.iter().for_each(|expr| expression(w, expr));
}

/// Adds a pick chain with its rules.
pub(crate) fn add_pick(w: &mut Writer, table: &str, pick: &Pick) {
    let name = pick.to_string();
    add_named_chain(w, table, &name, None);
    for rule in rules::pick(pick) {
        add_rule(w, table, &name, &rule);
    }
}

/// Removes the rules of a chain.
pub(crate) fn flush_chain(w: &mut Writer, table: &str, chain: &str) {
    message(w, DELETE_RULE, 0, |w| {
        w.put_str(1, table);
        w.put_str(2, chain);
    });
}

/// Removes a chain of any name; it has no rules any more.
pub(crate) fn remove_chain(w: &mut Writer, table: &str, chain: &str) {
    message(w, DELETE_CHAIN, 0, |w| {
        w.put_str(1, table);
        w.put_str(3, chain);
    });
}

/// Removes a set of any name.
pub(crate) fn remove_set(w: &mut Writer, table: &str, set: &str) {
    message(w, DELETE_SET, 0, |w| {
        w.put_str(1, table);
        w.put_str(2, set);
    });
}

/// Removes every element of a set.
pub(crate) fn flush_set(w: &mut Writer, table: &str, set: Set) {
    message(w, DELETE_ELEMENT, 0, |w| {
        w.put_str(1, table);
        w.put_str(2, set.name());
    });
}

/// Removes an element if it is there, by the bytes of its key: whoever made it.
pub(crate) fn destroy_raw(w: &mut Writer, table: &str, set: Set, key: &[u8]) {
    message(w, DESTROY_ELEMENT, 0, |w| one_raw(w, table, set, key));
}

/// Asks for one element.
pub(crate) fn ask_element(w: &mut Writer, table: &str, set: Set, key: &[u8]) {
    message(w, GET_ELEMENT, 0, |w| one_raw(w, table, set, key));
}

/// Asks for the number of the ruleset, which grows with each transaction.
pub(crate) fn ask_generation(w: &mut Writer) {
    w.message(GET_GENERATION, NLM_F_REQUEST, &fixed(0, 0), |_| {});
}

fn one_raw(w: &mut Writer, table: &str, set: Set, key: &[u8]) {
    w.put_str(1, table);
    w.put_str(2, set.name());
    w.nest(ELEMENTS, |w| {
        w.nest(LIST_ITEM, |w| w.nest(element::KEY, |w| w.put(DATA_VALUE, key)));
    });
}

/// Removes a pick chain with its rules.
pub(crate) fn remove_pick(w: &mut Writer, table: &str, pick: &Pick) {
    remove_chain(w, table, &pick.to_string());
}

/// Adds or removes elements of one set, in one message or, where they are many, in several.
pub(crate) fn elements<'a>(
    w: &mut Writer,
    table: &str,
    verb: Verb,
    set: Set,
    elements: impl IntoIterator<Item = Item<'a>>,
) {
    let mut elements = elements.into_iter().peekable();
    while elements.peek().is_some() {
        let (kind, flags) = match verb {
            Verb::Add => (NEW_ELEMENT, NLM_F_CREATE | NLM_F_EXCL),
            Verb::Remove => (DELETE_ELEMENT, 0),
            Verb::Destroy => (DESTROY_ELEMENT, 0),
        };
        message(w, kind, flags, |w| {
            w.put_str(1, table);
            w.put_str(2, set.name());
            w.nest(ELEMENTS, |w| {
                let start = w.len();
                while w.len() - start < MESSAGE_ELEMENTS
                    && let Some(item) = elements.next()
                {
                    w.nest(LIST_ITEM, |w| one(w, verb, &item));
                }
            });
        });
    }
}

/// The bytes of a key, each part padded to whole registers.
pub(crate) fn key_bytes(key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    match *key {
        Key::Frontend(addr) => frontend(&mut bytes, &addr),
        Key::Verdict(_, choice) => bytes.extend(choice_bytes(choice)),
        Key::Slot(addr, slot) | Key::Block(addr, slot) => {
            frontend(&mut bytes, &addr);
            bytes.extend(slot.to_ne_bytes());
        }
        Key::Record(client, addr) => {
            address(&mut bytes, client);
            frontend(&mut bytes, &addr);
        }
        Key::Bound(ip, _) => address(&mut bytes, ip),
        Key::Hairpin(ip) => {
            address(&mut bytes, ip);
            address(&mut bytes, ip);
        }
        Key::Note(note, number) => {
            bytes.extend((note as u32).to_ne_bytes());
            bytes.extend(number.to_ne_bytes());
        }
    }
    bytes
}

fn choice_bytes(choice: Choice) -> [u8; CHOICE] {
    let mut bytes = [0; CHOICE];
    for (part, word) in bytes.chunks_exact_mut(4).zip(choice.words()) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn backend(bytes: &mut Vec<u8>, (ip, number): Endpoint) {
    address(bytes, ip);
    port(bytes, number);
}

fn address(bytes: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
    }
}

fn frontend(bytes: &mut Vec<u8>, addr: &lb_core::FrontendAddr) {
    address(bytes, addr.ip);
    bytes.extend([addr.protocol.number(), 0, 0, 0]);
    port(bytes, addr.port);
}

fn port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

fn one(w: &mut Writer, verb: Verb, item: &Item<'_>) {
    let key = match item {
        Item::Key(key) => key,
        Item::Whole(element, _) => &element.key,
    };
    w.nest(element::KEY, |w| w.put(DATA_VALUE, &key_bytes(key)));
    if matches!(key, Key::Bound(_, Bound::End)) {
        w.put_u32(element::FLAGS, element::FLAG_INTERVAL_END);
    }
    if let (Verb::Add, Item::Whole(element, life)) = (verb, item) {
        rest(w, element, *life);
    }
}

/// What an element has beside its key.
fn rest(w: &mut Writer, item: &Element, life: Option<Lifetime>) {
    match &item.value {
        Value::None => {}
        Value::Choice(choice) if matches!(item.key, Key::Verdict(..)) => w.nest(element::DATA, |w| verdict(w, choice)),
        Value::Choice(choice) => w.nest(element::DATA, |w| {
            // The first register is not part of the number: see `rules::dispatch_of`.
            w.put(DATA_VALUE, &[&[0; 4][..], &choice_bytes(*choice)].concat());
        }),
        Value::Backend(ip, number) => w.nest(element::DATA, |w| {
            let mut bytes = Vec::with_capacity(20);
            backend(&mut bytes, (*ip, *number));
            w.put(DATA_VALUE, &bytes);
        }),
        Value::Backends(backends) => w.nest(element::DATA, |w| {
            let mut bytes = Vec::with_capacity(64);
            backends.iter().for_each(|&one| backend(&mut bytes, one));
            w.put(DATA_VALUE, &bytes);
        }),
    }
    if let Some(life) = life {
        w.put_u64(element::TIMEOUT, life.timeout);
        w.put_u64(element::EXPIRATION, life.left);
    }
    if !item.comment.is_empty() {
        w.put(element::USERDATA, &userdata::comment_of(&item.comment));
    }
}

fn verdict(w: &mut Writer, choice: &Choice) {
    match choice {
        Choice::Drop => w.nest(DATA_VERDICT, |w| w.put_u32(1, VERDICT_DROP)),
        Choice::Refuse => go(w, rules::refuse()),
        Choice::Pick(pick) => go(w, &pick.to_string()),
    }
}

fn go(w: &mut Writer, chain: &str) {
    w.nest(DATA_VERDICT, |w| {
        w.put_u32(1, VERDICT_GOTO.cast_unsigned());
        w.put_str(2, chain);
    });
}

/// A set as the kernel lists it.
pub(crate) fn listed(set: Set) -> ruleset::Shape {
    let Shape { flags, key, data, data_length } = shape(set);
    ruleset::Shape {
        flags,
        key: concat(&key),
        key_length: length(&key),
        data: if data.is_empty() { 0 } else { concat(&data) },
        data_length,
    }
}

/// What a set holds.
struct Shape {
    flags: u32,
    key: Vec<u32>,
    data: Vec<u32>,
    data_length: u32,
}

fn shape(set: Set) -> Shape {
    let ip = |family| if family == Family::V4 { TYPE_IPV4 } else { TYPE_IPV6 };
    let backend = |family| vec![ip(family), TYPE_SERVICE];
    let slot = |family, number| vec![ip(family), TYPE_PROTO, TYPE_SERVICE, number];
    let (flags, key, data) = match set {
        Set::Frontends(family) => {
            (SET_MAP, vec![ip(family), TYPE_PROTO, TYPE_SERVICE], vec![TYPE_MARK; 1 + CHOICE / 4])
        }
        Set::Picks(_) => (SET_MAP, vec![TYPE_MARK; CHOICE / 4], vec![TYPE_VERDICT]),
        Set::Slots(family) => (SET_MAP, slot(family, TYPE_INTEGER), backend(family)),
        // A number without a `typeof` to go with it cannot be listed; for all backends of a block there is no room in one.
        Set::Tables(family) => (SET_MAP, slot(family, TYPE_MARK), vec![TYPE_INTEGER]),
        Set::Affinity(family) => (
            SET_MAP | SET_TIMEOUT | SET_DYNAMIC,
            vec![ip(family), ip(family), TYPE_PROTO, TYPE_SERVICE],
            backend(family),
        ),
        Set::Cluster(family) => (SET_INTERVAL, vec![ip(family)], vec![]),
        Set::Hairpin(family) => (0, vec![ip(family), ip(family)], vec![]),
        Set::Notes => (0, vec![TYPE_MARK, TYPE_MARK], vec![]),
    };
    let data_length = match set {
        Set::Picks(_) => 0,
        Set::Tables(family) => block(family) * length(&backend(family)),
        _ => length(&data),
    };
    Shape { flags, key, data, data_length }
}

/// libnftables writes a concatenation as one number, six bits for each type.
fn concat(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| if types.len() == 1 { *one } else { all << 6 | one })
}

fn length(types: &[u32]) -> u32 {
    types.iter().map(|&one| if one == TYPE_IPV6 { 16 } else { 4 }).sum()
}

fn message(w: &mut Writer, kind: u16, flags: u16, attributes: impl FnOnce(&mut Writer)) {
    w.message(kind, NLM_F_REQUEST | flags, &fixed(INET, 0), attributes);
}

fn expression(w: &mut Writer, expr: &Expr) {
    let (name, body): (&str, &dyn Fn(&mut Writer)) = match expr {
        Expr::NetworkProtocol { to } => ("meta", &|w| numbers(w, &[(2, 15), (1, register(to))])),
        Expr::TransportProtocol { to } => ("meta", &|w| numbers(w, &[(2, 16), (1, register(to))])),
        Expr::Payload { layer, offset, bytes, to } => {
            ("payload", &|w| numbers(w, &[(1, register(to)), (2, *layer as u32), (3, *offset), (4, *bytes)]))
        }
        Expr::Conntrack { what, to } => ("ct", &|w| conntrack(w, *what, *to)),
        Expr::Compare { not, register: from, with } => ("cmp", &|w| {
            numbers(w, &[(1, register(from)), (2, u32::from(*not))]);
            w.nest(3, |w| w.put(DATA_VALUE, with));
        }),
        Expr::Mask { register: at, mask } => ("bitwise", &|w| masking(w, *at, mask)),
        Expr::Part { from, mask, to } => ("bitwise", &|w| bits(w, *from, *to, &mask.to_ne_bytes())),
        Expr::Copy { from, bytes, to } => ("bitwise", &|w| copy(w, *from, *bytes, *to)),
        Expr::Mark { to } => ("meta", &|w| numbers(w, &[(2, 3), (1, register(to))])),
        Expr::OutputDevice { to } => ("meta", &|w| numbers(w, &[(2, 5), (1, register(to))])),
        Expr::Load { bytes, to } => ("immediate", &|w| {
            w.put_u32(1, register(to));
            w.nest(2, |w| w.put(DATA_VALUE, &bytes[..2]));
        }),
        Expr::Redirect { port } => ("redir", &|w| w.put_u32(1, register(port))),
        Expr::Number { random, modulus, to } => {
            ("numgen", &|w| numbers(w, &[(1, register(to)), (2, *modulus), (3, u32::from(*random)), (4, 0)]))
        }
        Expr::Hash { from, bytes, modulus, seed, to } => ("hash", &|w| {
            numbers(
                w,
                &[(1, register(from)), (2, register(to)), (3, *bytes), (4, *modulus), (5, *seed), (6, 0), (7, 0)],
            );
        }),
        Expr::Member { set, key, not } => ("lookup", &|w| {
            w.put_str(1, set.name());
            numbers(w, &[(2, register(key))]);
            if *not {
                w.put_u32(5, 1);
            }
        }),
        Expr::Map { map, key, to } => ("lookup", &|w| lookup(w, *map, *key, *to)),
        Expr::VerdictMap { map, key } => ("lookup", &|w| lookup(w, *map, *key, VERDICT_REGISTER)),
        Expr::Update { map, key, value, timeout_ms } => ("dynset", &|w| {
            w.put_str(1, map.name());
            numbers(w, &[(3, 1), (4, register(key)), (5, register(value))]);
            w.put_u64(6, *timeout_ms);
        }),
        Expr::Dnat { family, address, port } => ("nat", &|w| {
            let family = if *family == Family::V4 { IPV4 } else { IPV6 };
            numbers(w, &[(1, 1), (2, family.into()), (3, register(address)), (5, register(port))]);
        }),
        Expr::Masquerade => ("masq", &|w| w.put_u32(1, 0x10)),
        Expr::Reset => ("reject", &|w| {
            w.put_u32(1, 1);
            w.put(2, &[0]);
        }),
        Expr::Unreachable => ("reject", &|w| {
            w.put_u32(1, 2);
            w.put(2, &[1]);
        }),
        Expr::Goto(chain) => ("immediate", &|w| {
            w.put_u32(1, u32::from(VERDICT_REGISTER));
            w.nest(2, |w| go(w, chain));
        }),
    };
    w.nest(1, |w| {
        w.put_str(1, name);
        w.nest(2, body);
    });
}

fn lookup(w: &mut Writer, map: Set, key: u8, to: u8) {
    w.put_str(1, map.name());
    numbers(w, &[(2, register(&key)), (3, register(&to))]);
}

fn conntrack(w: &mut Writer, what: Conntrack, to: u8) {
    let key = match what {
        Conntrack::Status => 2,
        Conntrack::OriginalPort => 12,
        Conntrack::OriginalDestination(Family::V4) => 20,
        Conntrack::OriginalDestination(Family::V6) => 22,
    };
    numbers(w, &[(1, register(&to)), (2, key)]);
    if what != Conntrack::Status {
        w.put(3, &[0]);
    }
}

fn masking(w: &mut Writer, at: u8, mask: &[u8]) {
    bits(w, at, at, mask);
}

fn copy(w: &mut Writer, from: u8, bytes: usize, to: u8) {
    bits(w, from, to, &vec![0xff; bytes]);
}

fn bits(w: &mut Writer, from: u8, to: u8, mask: &[u8]) {
    let bytes = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    numbers(w, &[(1, register(&from)), (2, register(&to)), (3, bytes)]);
    w.nest(4, |w| w.put(DATA_VALUE, mask));
    w.nest(5, |w| w.put(DATA_VALUE, &vec![0; mask.len()]));
}

fn register(register: &u8) -> u32 {
    u32::from(*register)
}

fn numbers(w: &mut Writer, pairs: &[(u16, u32)]) {
    for &(kind, value) in pairs {
        w.put_u32(kind, value);
    }
}
