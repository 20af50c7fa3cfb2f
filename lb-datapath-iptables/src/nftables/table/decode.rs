//! Elements as the kernel reports them, back in our own terms.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_core::{Family, FrontendAddr, Protocol};

use crate::{
    netfilter::FIXED,
    nftables::{
        kernel::Table,
        table::{
            layout::{Bound, Choice, Element, Endpoint, Key, Note, Set, Value, block},
            rules, userdata,
            wire::{ELEMENTS, Lifetime, element, table},
        },
    },
};
use lb_netlink::{attributes, string, u32_be, u64_be};

const LIST_ITEM: u16 = 1;
const VERDICT_DROP: u32 = 0;

/// An element that was read, and its life if it has an end.
pub(crate) type DecodedElement = (Element, Option<Lifetime>);

/// What one message of a dump of tables says about the table `name`.
pub(crate) fn table(name: &str, payload: &[u8]) -> Option<Table> {
    let found = attributes(payload.get(FIXED..)?);
    if found.find(table::NAME).and_then(string)? != name {
        return None;
    }
    let ours = found.find(table::USERDATA).is_some_and(userdata::is_marker);
    match found.find(table::HANDLE).and_then(u64_be) {
        Some(handle) if ours => Some(Table::Ours(handle)),
        _ => Some(Table::Foreign),
    }
}

/// The elements in one message about `set`, each with the bytes of its key.
pub(crate) fn raw_elements(set: Set, payload: &[u8]) -> Vec<RawElement> {
    let list = attributes(payload.get(FIXED..).unwrap_or_default()).find(ELEMENTS).unwrap_or_default();
    let items = attributes(list).filter(|(kind, _)| *kind == LIST_ITEM);
    items
        .map(|(_, item)| RawElement {
            key: attributes(item).path(&[element::KEY, 1]).unwrap_or_default().to_vec(),
            read: one(set, item),
        })
        .collect()
}

/// The key in the bytes of one of `set`; that of the start of a range in a set of ranges.
pub(crate) fn key_of(set: Set, bytes: &[u8]) -> Option<Key> {
    key(set, &mut Cursor(bytes), 0)
}

/// An element as it was found.
#[derive(Clone, Debug)]
pub(crate) struct RawElement {
    /// The bytes of its key.
    pub(crate) key: Vec<u8>,
    /// What they mean, unless the element is not of our making.
    pub(crate) read: Option<DecodedElement>,
}

/// The elements in one message of a dump of `set`. `None` stands for one that is not of our making.
pub(crate) fn elements(set: Set, payload: &[u8]) -> Vec<Option<DecodedElement>> {
    let list = attributes(payload.get(FIXED..).unwrap_or_default()).find(ELEMENTS).unwrap_or_default();
    attributes(list).filter(|(kind, _)| *kind == LIST_ITEM).map(|(_, item)| one(set, item)).collect()
}

fn one(set: Set, item: &[u8]) -> Option<DecodedElement> {
    let found = attributes(item);
    let flags = found.find(element::FLAGS).and_then(u32_be).unwrap_or(0);
    let key = key(set, &mut Cursor(found.path(&[element::KEY, 1])?), flags)?;
    let value = match set {
        Set::Frontends(family) => {
            let mut data = Cursor(found.path(&[element::DATA, 1])?);
            (data.host()? == 0).then_some(())?;
            Value::Choice(data.choice(family)?)
        }
        Set::Picks(_) => Value::Choice(choice(found.find(element::DATA)?)?),
        Set::Slots(family) | Set::Affinity(family) => {
            let (ip, port) = Cursor(found.path(&[element::DATA, 1])?).endpoint(family)?;
            Value::Backend(ip, port)
        }
        Set::Tables(family) => {
            let mut data = Cursor(found.path(&[element::DATA, 1])?);
            Value::Backends((0..block(family)).map(|_| data.endpoint(family)).collect::<Option<_>>()?)
        }
        Set::Cluster(_) | Set::Hairpin(_) | Set::Notes => Value::None,
    };
    let comment = found.find(element::USERDATA).and_then(userdata::comment).unwrap_or_default().to_owned();
    let life = found
        .find(element::TIMEOUT)
        .and_then(u64_be)
        .map(|timeout| Lifetime { timeout, left: found.find(element::EXPIRATION).and_then(u64_be).unwrap_or(timeout) });
    Some((Element { key, value, comment }, life))
}

fn key(set: Set, bytes: &mut Cursor<'_>, flags: u32) -> Option<Key> {
    Some(match set {
        Set::Frontends(family) => Key::Frontend(bytes.frontend(family)?),
        Set::Picks(family) => Key::Verdict(family, bytes.choice(family)?),
        Set::Slots(family) => Key::Slot(bytes.frontend(family)?, bytes.host()?),
        Set::Tables(family) => Key::Block(bytes.frontend(family)?, bytes.host()?),
        Set::Affinity(family) => Key::Record(bytes.ip(family)?, bytes.frontend(family)?),
        Set::Cluster(family) => {
            let end = flags & element::FLAG_INTERVAL_END != 0;
            Key::Bound(bytes.ip(family)?, if end { Bound::End } else { Bound::Start })
        }
        Set::Hairpin(family) => Key::Hairpin(bytes.ip(family)?),
        Set::Notes => Key::Note(Note::from_number(bytes.host()?)?, bytes.host()?),
    })
}

fn choice(data: &[u8]) -> Option<Choice> {
    let verdict = attributes(attributes(data).find(2)?);
    let code = verdict.find(1).and_then(u32_be)?;
    match verdict.find(2).and_then(string) {
        None => (code == VERDICT_DROP).then_some(Choice::Drop),
        Some(name) if name == rules::refuse() => Some(Choice::Refuse),
        Some(name) => Some(Choice::Pick(name.parse().ok()?)),
    }
}

/// Reads a key or a value register by register.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn host(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn ip(&mut self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.take::<4>().map(|bytes| Ipv4Addr::from(bytes).into()),
            Family::V6 => self.take::<16>().map(|bytes| Ipv6Addr::from(bytes).into()),
        }
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.take::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn endpoint(&mut self, family: Family) -> Option<Endpoint> {
        Some((self.ip(family)?, self.port()?))
    }

    fn choice(&mut self, family: Family) -> Option<Choice> {
        let words = [self.host()?, self.host()?, self.host()?, self.host()?];
        Choice::from_words(family, words)
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.take::<4>()?;
        Protocol::from_number(number)
    }

    fn frontend(&mut self, family: Family) -> Option<FrontendAddr> {
        let ip = self.ip(family)?;
        let protocol = self.protocol()?;
        Some(FrontendAddr::new(ip, self.port()?, protocol))
    }
}
