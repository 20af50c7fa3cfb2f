//! Tables, sets, chains, rules and elements as messages of nf_tables.

use lb_core::addr::Protocol;
use lb_netlink::Writer;
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};

use crate::{
    conntrack::CLOSE_WAIT,
    netfilter::*,
    nftables::table::{
        choice::{Choice, Pick},
        expressions::expressions,
        keys::{choice_bytes, endpoint_bytes, key_bytes},
        layout::{Bound, Element, Key, Set, Value},
        rules::{self, Chain, Hook, Rule, TIMEOUTS},
        shape::Shape,
        userdata,
    },
};

/// Bytes of elements in one message: the list's length is a 16-bit number.
const MESSAGE_ELEMENTS: usize = 48 << 10;

/// A change of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Fails if the element exists.
    Add,
    /// Fails if the element does not exist.
    Remove,
    /// Removes the element if it exists: a record may run out at any time.
    Destroy,
}

/// The time-out of a client's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// Milliseconds from the last use to the end.
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
    w.message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, &nfgenmsg(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES), |_| {});
}

/// Ends a batch. The message before it is acknowledged once the batch is committed.
pub(crate) fn end(w: &mut Writer) {
    w.flag_last(NLM_F_ACK);
    w.message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, &nfgenmsg(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES), |_| {});
}

/// Removes the table with this handle and its contents, never another table of the same name.
pub(crate) fn remove_table(w: &mut Writer, handle: u64) {
    message(w, NFT_MSG_DELTABLE, 0, |w| w.put_u64(NFTA_TABLE_HANDLE, handle));
}

/// Adds a table with the marker of this datapath.
pub(crate) fn add_table(w: &mut Writer, table: &str) {
    message(w, NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, |w| {
        w.put_str(NFTA_TABLE_NAME, table);
        w.put(NFTA_TABLE_USERDATA, &userdata::marker());
    });
}

/// Adds a set or map.
pub(crate) fn add_set(w: &mut Writer, table: &str, set: Set, id: u32, size: u32) {
    let shape = Shape::of(set);
    message(w, NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL, |w| {
        w.put_str(NFTA_SET_TABLE, table);
        w.put_str(NFTA_SET_NAME, set.name());
        w.put_u32(NFTA_SET_FLAGS, shape.flags);
        w.put_u32(NFTA_SET_KEY_TYPE, shape.key);
        w.put_u32(NFTA_SET_KEY_LEN, shape.key_length);
        if shape.data != 0 {
            w.put_u32(NFTA_SET_DATA_TYPE, shape.data);
            w.put_u32(NFTA_SET_DATA_LEN, shape.data_length);
        }
        if matches!(set, Set::Affinity(..)) {
            w.nest(NFTA_SET_DESC, |w| w.put_u32(NFTA_SET_DESC_SIZE, size));
        }
        w.put_u32(NFTA_SET_ID, id);
        w.put(NFTA_SET_USERDATA, &userdata::of_set(set));
    });
}

/// Adds the time-outs of connections. Those that are not given are the kernel's own at this moment.
pub(crate) fn add_timeouts(w: &mut Writer, table: &str) {
    let seconds = u32::try_from(CLOSE_WAIT.as_secs()).unwrap_or(u32::MAX);
    message(w, NFT_MSG_NEWOBJ, NLM_F_CREATE | NLM_F_EXCL, |w| {
        w.put_str(NFTA_OBJ_TABLE, table);
        w.put_str(NFTA_OBJ_NAME, TIMEOUTS);
        w.put_u32(NFTA_OBJ_TYPE, NFT_OBJECT_CT_TIMEOUT);
        w.nest(NFTA_OBJ_DATA, |w| {
            w.put(NFTA_CT_TIMEOUT_L4PROTO, &[Protocol::Tcp.number()]);
            w.nest(NFTA_CT_TIMEOUT_DATA, |w| w.put_u32(CTA_TIMEOUT_TCP_CLOSE_WAIT, seconds));
        });
    });
}

/// Adds a chain that every table has, without its rules.
pub(crate) fn add_chain(w: &mut Writer, table: &str, chain: &Chain) {
    add_named_chain(w, table, chain.name, chain.hook);
}

/// Adds a chain without rules; with a hook, a base chain.
pub(crate) fn add_named_chain(w: &mut Writer, table: &str, name: &str, hook: Option<Hook>) {
    message(w, NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, |w| {
        w.put_str(NFTA_CHAIN_TABLE, table);
        w.put_str(NFTA_CHAIN_NAME, name);
        if let Some(Hook { kind, number, priority }) = hook {
            w.nest(NFTA_CHAIN_HOOK, |w| {
                w.put_u32(NFTA_HOOK_HOOKNUM, number);
                w.put_u32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
            });
            w.put_u32(NFTA_CHAIN_POLICY, NF_ACCEPT);
            w.put_str(NFTA_CHAIN_TYPE, kind);
        }
    });
}

/// Adds a rule at the end of a chain.
pub(crate) fn add_rule(w: &mut Writer, table: &str, chain: &str, rule: &Rule) {
    message(w, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |w| {
        w.put_str(NFTA_RULE_TABLE, table);
        w.put_str(NFTA_RULE_CHAIN, chain);
        w.nest(NFTA_RULE_EXPRESSIONS, |w| expressions(w, rule));
        if !rule.comment.is_empty() {
            w.put(NFTA_RULE_USERDATA, &userdata::comment_of(rule.comment));
        }
    });
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
    message(w, NFT_MSG_DELRULE, 0, |w| {
        w.put_str(NFTA_RULE_TABLE, table);
        w.put_str(NFTA_RULE_CHAIN, chain);
    });
}

/// Removes a chain of any name; it has no rules any more.
pub(crate) fn remove_chain(w: &mut Writer, table: &str, chain: &str) {
    message(w, NFT_MSG_DELCHAIN, 0, |w| {
        w.put_str(NFTA_CHAIN_TABLE, table);
        w.put_str(NFTA_CHAIN_NAME, chain);
    });
}

/// Removes a set of any name.
pub(crate) fn remove_set(w: &mut Writer, table: &str, set: &str) {
    message(w, NFT_MSG_DELSET, 0, |w| {
        w.put_str(NFTA_SET_TABLE, table);
        w.put_str(NFTA_SET_NAME, set);
    });
}

/// Removes every element of a set.
pub(crate) fn flush_set(w: &mut Writer, table: &str, set: Set) {
    message(w, NFT_MSG_DELSETELEM, 0, |w| {
        w.put_str(NFTA_SET_ELEM_LIST_TABLE, table);
        w.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
    });
}

/// Removes an element if it exists, by the bytes of its key and whoever added it.
pub(crate) fn destroy_raw(w: &mut Writer, table: &str, set: Set, key: &[u8]) {
    message(w, NFT_MSG_DESTROYSETELEM, 0, |w| one_raw(w, table, set, key));
}

/// Asks for one element.
pub(crate) fn ask_element(w: &mut Writer, table: &str, set: Set, key: &[u8]) {
    message(w, NFT_MSG_GETSETELEM, 0, |w| one_raw(w, table, set, key));
}

/// Asks for the number of the ruleset, which grows with each transaction.
pub(crate) fn ask_generation(w: &mut Writer) {
    w.message(NFT_MSG_GETGEN, NLM_F_REQUEST, &nfgenmsg(NFPROTO_UNSPEC, 0), |_| {});
}

fn one_raw(w: &mut Writer, table: &str, set: Set, key: &[u8]) {
    w.put_str(NFTA_SET_ELEM_LIST_TABLE, table);
    w.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
    w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
        w.nest(NFTA_LIST_ELEM, |w| w.nest(NFTA_SET_ELEM_KEY, |w| w.put(NFTA_DATA_VALUE, key)));
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
            Verb::Add => (NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL),
            Verb::Remove => (NFT_MSG_DELSETELEM, 0),
            Verb::Destroy => (NFT_MSG_DESTROYSETELEM, 0),
        };
        message(w, kind, flags, |w| {
            w.put_str(NFTA_SET_ELEM_LIST_TABLE, table);
            w.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
            w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                let start = w.len();
                while w.len() - start < MESSAGE_ELEMENTS
                    && let Some(item) = elements.next()
                {
                    w.nest(NFTA_LIST_ELEM, |w| one(w, verb, &item));
                }
            });
        });
    }
}

fn one(w: &mut Writer, verb: Verb, item: &Item<'_>) {
    let key = match item {
        Item::Key(key) => key,
        Item::Whole(element, _) => &element.key,
    };
    w.nest(NFTA_SET_ELEM_KEY, |w| w.put(NFTA_DATA_VALUE, &key_bytes(key)));
    if matches!(key, Key::Bound(_, Bound::End)) {
        w.put_u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
    }
    if let (Verb::Add, Item::Whole(element, life)) = (verb, item) {
        rest(w, element, *life);
    }
}

/// The value, the time-out and the comment of an element.
fn rest(w: &mut Writer, item: &Element, life: Option<Lifetime>) {
    match &item.value {
        Value::None => {}
        Value::Choice(choice) if matches!(item.key, Key::Verdict(..)) => {
            w.nest(NFTA_SET_ELEM_DATA, |w| verdict(w, choice))
        }
        Value::Choice(choice) => w.nest(NFTA_SET_ELEM_DATA, |w| {
            // The first register is not part of the number: see `rules::dispatch_of`.
            w.put(NFTA_DATA_VALUE, &[&[0; 4][..], &choice_bytes(*choice)].concat());
        }),
        Value::Backend(ip, number) => w.nest(NFTA_SET_ELEM_DATA, |w| {
            w.put(NFTA_DATA_VALUE, &endpoint_bytes(&[(*ip, *number)]));
        }),
        Value::Backends(backends) => w.nest(NFTA_SET_ELEM_DATA, |w| {
            w.put(NFTA_DATA_VALUE, &endpoint_bytes(backends));
        }),
    }
    if let Some(life) = life {
        w.put_u64(NFTA_SET_ELEM_TIMEOUT, life.timeout);
        w.put_u64(NFTA_SET_ELEM_EXPIRATION, life.left);
    }
    if !item.comment.is_empty() {
        w.put(NFTA_SET_ELEM_USERDATA, &userdata::comment_of(&item.comment));
    }
}

fn verdict(w: &mut Writer, choice: &Choice) {
    match choice {
        Choice::Drop => w.nest(NFTA_DATA_VERDICT, |w| w.put_u32(NFTA_VERDICT_CODE, NF_DROP)),
        Choice::Refuse => go_to(w, rules::refuse()),
        Choice::Pick(pick) => go_to(w, &pick.to_string()),
    }
}

/// The verdict to continue in a chain and not to come back.
pub(crate) fn go_to(w: &mut Writer, chain: &str) {
    w.nest(NFTA_DATA_VERDICT, |w| {
        w.put_u32(NFTA_VERDICT_CODE, NFT_GOTO);
        w.put_str(NFTA_VERDICT_CHAIN, chain);
    });
}

fn message(w: &mut Writer, kind: u16, flags: u16, attributes: impl FnOnce(&mut Writer)) {
    w.message(kind, NLM_F_REQUEST | flags, &nfgenmsg(NFPROTO_INET, 0), attributes);
}
