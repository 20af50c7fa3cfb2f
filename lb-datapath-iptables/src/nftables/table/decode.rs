//! Tables and elements, decoded from the messages of the kernel.

use lb_netlink::{attributes, string, u32_be, u64_be};

use crate::{
    netfilter::*,
    nftables::{
        host::Table,
        table::{
            choice::Choice,
            keys::{Cursor, key},
            layout::{Element, Set, Value, block},
            messages::Lifetime,
            rules, userdata,
        },
    },
};

/// An element, and its time-out if it has one.
pub(crate) type DecodedElement = (Element, Option<Lifetime>);

/// The table `name`, if a message of a dump of tables is about it.
pub(crate) fn table(name: &str, payload: &[u8]) -> Option<Table> {
    let found = body(payload);
    if found.find(NFTA_TABLE_NAME).and_then(string)? != name {
        return None;
    }
    let ours = found.find(NFTA_TABLE_USERDATA).is_some_and(userdata::is_marker);
    match found.find(NFTA_TABLE_HANDLE).and_then(u64_be) {
        Some(handle) if ours => Some(Table::Ours(handle)),
        _ => Some(Table::Foreign),
    }
}

/// The elements in one message about `set`, each with the bytes of its key.
pub(crate) fn raw_elements(set: Set, payload: &[u8]) -> Vec<RawElement> {
    let list = body(payload).find(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    let items = attributes(list).filter(|(kind, _)| *kind == NFTA_LIST_ELEM);
    items
        .map(|(_, item)| RawElement {
            key: attributes(item).path(&[NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE]).unwrap_or_default().to_vec(),
            read: one(set, item),
        })
        .collect()
}

/// An element as the kernel lists it.
#[derive(Clone, Debug)]
pub(crate) struct RawElement {
    /// The bytes of its key.
    pub(crate) key: Vec<u8>,
    /// The element, unless this datapath did not write it.
    pub(crate) read: Option<DecodedElement>,
}

/// The elements in one message of a dump of `set`. `None` stands for an element that this datapath did not write.
pub(crate) fn elements(set: Set, payload: &[u8]) -> Vec<Option<DecodedElement>> {
    let list = body(payload).find(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    attributes(list).filter(|(kind, _)| *kind == NFTA_LIST_ELEM).map(|(_, item)| one(set, item)).collect()
}

fn one(set: Set, item: &[u8]) -> Option<DecodedElement> {
    let found = attributes(item);
    let flags = found.find(NFTA_SET_ELEM_FLAGS).and_then(u32_be).unwrap_or(0);
    let key = key(set, &mut Cursor(found.path(&[NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE])?), flags)?;
    let value = match set {
        Set::Frontends(_, family) | Set::Addresses(family) => {
            let mut data = Cursor(found.path(&[NFTA_SET_ELEM_DATA, NFTA_DATA_VALUE])?);
            (data.host()? == 0).then_some(())?;
            Value::Choice(data.choice(family)?)
        }
        Set::Picks(_) => Value::Choice(choice(found.find(NFTA_SET_ELEM_DATA)?)?),
        Set::Slots(family) | Set::Affinity(_, family) => {
            let (ip, port) = Cursor(found.path(&[NFTA_SET_ELEM_DATA, NFTA_DATA_VALUE])?).endpoint(family)?;
            Value::Backend(ip, port)
        }
        Set::Tables(family) => {
            let mut data = Cursor(found.path(&[NFTA_SET_ELEM_DATA, NFTA_DATA_VALUE])?);
            Value::Backends((0..block(family)).map(|_| data.endpoint(family)).collect::<Option<_>>()?)
        }
        Set::Cluster(_)
        | Set::Uplinks
        | Set::KeptSources(_)
        | Set::TranslatedPods(_)
        | Set::Hairpin(_)
        | Set::Backends(_)
        | Set::Notes => Value::None,
    };
    let comment = found.find(NFTA_SET_ELEM_USERDATA).and_then(userdata::comment).unwrap_or_default().to_owned();
    let life = found.find(NFTA_SET_ELEM_TIMEOUT).and_then(u64_be).map(|timeout| Lifetime {
        timeout,
        left: found.find(NFTA_SET_ELEM_EXPIRATION).and_then(u64_be).unwrap_or(timeout),
    });
    Some((Element { key, value, comment }, life))
}

fn choice(data: &[u8]) -> Option<Choice> {
    let verdict = attributes(attributes(data).find(NFTA_DATA_VERDICT)?);
    let code = verdict.find(NFTA_VERDICT_CODE).and_then(u32_be)?;
    match verdict.find(NFTA_VERDICT_CHAIN).and_then(string) {
        None => (code == NF_DROP).then_some(Choice::Drop),
        Some(name) if name == rules::refuse() => Some(Choice::Refuse),
        Some(name) => Some(Choice::Pick(name.parse().ok()?)),
    }
}
