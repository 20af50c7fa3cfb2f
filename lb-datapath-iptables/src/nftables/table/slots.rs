//! A frontend's slots as elements and back. Pure.
//!
//! Backends that are draining are slots behind [`DRAINING`], which no packet picks.
//!
//! An element holds one slot or a block of them. Its comment names the backends by id, each where it is first met: the
//! id of a slot is the one that was named last, up to there, for the same address.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    id::BackendId,
    state::Backend,
};

use crate::nftables::table::layout::{Element, Endpoint, Key, Value, block, nowhere};

/// The backend in a slot.
pub(crate) type Slot = (BackendId, Backend);

/// Number of the first slot that stands for a backend which is draining.
pub(crate) const DRAINING: u32 = 1 << 31;

/// The backends of a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backends {
    /// Those that take new flows, by slot.
    pub(crate) slots: Vec<Slot>,
    /// Those that only keep the UDP flows that they have.
    pub(crate) draining: Vec<Slot>,
}

impl Backends {
    /// Where new flows go.
    pub(crate) fn takers(&self) -> BTreeSet<Endpoint> {
        self.slots.iter().map(endpoint).collect()
    }

    /// Where flows may be.
    pub(crate) fn holders(&self) -> BTreeSet<Endpoint> {
        self.slots.iter().chain(&self.draining).map(endpoint).collect()
    }
}

/// Where the backend of a slot listens.
pub(crate) fn endpoint((_, backend): &Slot) -> Endpoint {
    (backend.addr.ip, backend.addr.port)
}

/// The elements of a frontend's backends, in the order of their keys; `packed` says whether the slots are in blocks.
pub(crate) fn elements(addr: FrontendAddr, packed: bool, backends: &Backends) -> Vec<Element> {
    let Backends { slots, draining } = backends;
    let draining = single(addr, DRAINING, draining);
    if packed {
        draining.into_iter().chain(blocks(addr, slots)).collect()
    } else {
        let mut elements = single(addr, 0, slots);
        elements.extend(draining);
        elements
    }
}

fn single(addr: FrontendAddr, first: u32, slots: &[Slot]) -> Vec<Element> {
    let mut names = Names::default();
    let single = |(n, slot): (u32, &Slot)| {
        let (ip, port) = endpoint(slot);
        let name = names.new_name(slot).unwrap_or_default();
        Element::new(Key::Slot(addr, n), Value::Backend(ip, port)).comment(name)
    };
    (first..).zip(slots).map(single).collect()
}

fn blocks(addr: FrontendAddr, slots: &[Slot]) -> Vec<Element> {
    let mut names = Names::default();
    let size = block(addr.family());
    let blocks = (0..).step_by(size as usize).zip(slots.chunks(size as usize));
    blocks
        .map(|(first, slots)| {
            let mut backends = vec![nowhere(addr.family()); size as usize];
            let mut comment = String::new();
            for (n, (slot, backend)) in slots.iter().zip(&mut backends).enumerate() {
                *backend = endpoint(slot);
                if let Some(name) = names.new_name(slot) {
                    let separator = if comment.is_empty() { "" } else { ", " };
                    comment.push_str(&format!("{separator}{n}: {name}"));
                }
            }
            Element::new(Key::Block(addr, first), Value::Backends(backends.into())).comment(comment)
        })
        .collect()
}

/// Which id was named last for an address.
#[derive(Default)]
struct Names(BTreeMap<Endpoint, BackendId>);

impl Names {
    /// How a slot's backend is named in a comment, unless that is clear.
    fn new_name(&mut self, slot: &Slot) -> Option<String> {
        let (id, Backend { local, .. }) = *slot;
        let known = self.0.insert(endpoint(slot), id);
        (known != Some(id)).then(|| format!("backend {id}{}", if local { LOCAL } else { "" }))
    }
}

const LOCAL: &str = " local";

/// A slot as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListedSlot {
    /// Its number.
    pub(crate) number: u32,
    endpoint: Endpoint,
    /// The backend by its comment: the id, and whether it is local.
    name: Option<(BackendId, bool)>,
}

/// The slots in an element; `None` if it makes no sense.
pub(crate) fn read(element: &Element) -> Option<Vec<ListedSlot>> {
    match (&element.key, &element.value) {
        (Key::Slot(_, number), &Value::Backend(ip, port)) => {
            let name = match element.comment.as_str() {
                "" => None,
                text => Some(named(text)?),
            };
            Some(vec![ListedSlot { number: *number, endpoint: (ip, port), name }])
        }
        (Key::Block(addr, first), Value::Backends(backends)) => {
            first.is_multiple_of(block(addr.family())).then_some(())?;
            let numbered = (*first..).zip(backends.iter());
            let mut slots: Vec<ListedSlot> =
                numbered.map(|(number, &endpoint)| ListedSlot { number, endpoint, name: None }).collect();
            for part in element.comment.split(", ").filter(|part| !part.is_empty()) {
                let (n, text) = part.split_once(": ")?;
                slots.get_mut(n.parse::<usize>().ok()?)?.name = Some(named(text)?);
            }
            Some(slots)
        }
        _ => None,
    }
}

fn named(text: &str) -> Option<(BackendId, bool)> {
    let rest = text.strip_prefix("backend ")?;
    let (id, local) = rest.strip_suffix(LOCAL).map_or((rest, false), |id| (id, true));
    Some((BackendId::new(id.parse().ok()?)?, local))
}

/// The backends of `count` slots, if none is missing, none too many, and each has a name.
pub(crate) fn resolve(addr: &FrontendAddr, packed: bool, count: u32, mut found: Vec<ListedSlot>) -> Option<Vec<Slot>> {
    found.sort_unstable_by_key(|slot| slot.number);
    let count = count as usize;
    let there = if packed { count.next_multiple_of(block(addr.family()) as usize) } else { count };
    let whole = found.len() == there && (0..).zip(&found).all(|(n, slot)| slot.number == n);
    let rest = found.get(count..)?.iter().all(|slot| slot.endpoint == nowhere(addr.family()) && slot.name.is_none());
    (whole && rest).then_some(())?;
    let mut names: BTreeMap<Endpoint, (BackendId, bool)> = BTreeMap::new();
    let backend = |slot: &ListedSlot| {
        if let Some(name) = slot.name {
            names.insert(slot.endpoint, name);
        }
        let (id, local) = *names.get(&slot.endpoint)?;
        Some((id, backend(slot.endpoint, addr.protocol, local)))
    };
    found[..count].iter().map(backend).collect()
}

/// The backends that are draining, if none is missing and each has a name.
pub(crate) fn resolve_draining(addr: &FrontendAddr, mut found: Vec<ListedSlot>) -> Option<Vec<Slot>> {
    found.iter_mut().for_each(|slot| slot.number -= DRAINING);
    resolve(addr, false, u32::try_from(found.len()).ok()?, found)
}

fn backend((ip, port): Endpoint, protocol: Protocol, local: bool) -> Backend {
    Backend { addr: BackendAddr::new(ip, port, protocol), local }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slots_survive_their_elements(
            slots in prop::collection::vec((1_u32..9, 0_u8..6, any::<bool>()), 1..40),
            (v6, packed) in any::<(bool, bool)>(),
        ) {
            let addr = frontend(v6);
            // An id has one address; an address may have two ids.
            let slots: Vec<Slot> = slots.iter().map(|&(id, _, _)| slot(&addr, id)).collect();
            let elements = elements(addr, packed, &Backends { draining: slots.clone(), slots: slots.clone() });
            prop_assert!(elements.is_sorted_by_key(|element| element.key));
            let found = elements.iter().flat_map(|element| read(element).unwrap());
            let (draining, found): (Vec<_>, Vec<_>) = found.partition(|slot| slot.number >= DRAINING);
            prop_assert_eq!(resolve_draining(&addr, draining.clone()), Some(slots.clone()));
            prop_assert_eq!(resolve_draining(&addr, draining[1..].into()).is_none(), draining.len() > 1);
            prop_assert_eq!(resolve(&addr, packed, slots.len() as u32, found.clone()), Some(slots.clone()));
            let more = slots.len() as u32 + block(addr.family());
            prop_assert_eq!(resolve(&addr, packed, more, found.clone()), None);
            prop_assert_eq!(resolve(&addr, packed, slots.len() as u32 - 1, found), None);
            prop_assert!(elements.iter().all(|element| element.comment.len() <= 253));
        }
    }

    #[test]
    fn the_longest_comment_of_a_block_is_not_cut() {
        let addr = frontend(false);
        let slots: Vec<Slot> = (0..8).map(|n| slot(&addr, u32::MAX - 2 * n - 1)).collect();
        let [element] = &blocks(addr, &slots)[..] else { panic!("one block") };
        assert!(element.comment.starts_with("0: backend 4294967294 local, 1: "), "{}", element.comment);
        assert!(element.comment.len() <= 253, "{}", element.comment.len());
        assert_eq!(resolve(&addr, true, 8, read(element).unwrap()), Some(slots));
    }

    #[test]
    fn comments_of_others_make_no_sense() {
        let addr = frontend(false);
        let single = Element::new(Key::Slot(addr, 0), Value::Backend(addr.ip, 80));
        for text in ["mine", "backend", "backend 0", "backend x", "backend 1 local ", "0: backend 1"] {
            assert_eq!(read(&single.clone().comment(text)), None, "{text}");
        }
        let block = Element::new(Key::Block(addr, 8), Value::Backends(vec![(addr.ip, 80); 8].into()));
        for text in ["mine", "backend 1", "8: backend 1", "0: backend 1,1: backend 2", "x: backend 1"] {
            assert_eq!(read(&block.clone().comment(text)), None, "{text}");
        }
        let crooked = Element::new(Key::Block(addr, 9), Value::Backends(vec![(addr.ip, 80); 8].into()));
        assert_eq!(read(&crooked), None);
    }

    fn frontend(v6: bool) -> FrontendAddr {
        let ip = if v6 { "fd96::1" } else { "10.96.0.1" };
        FrontendAddr::new(ip.parse().unwrap(), 80, Protocol::Tcp)
    }

    fn slot(addr: &FrontendAddr, id: u32) -> Slot {
        let number = u8::try_from(id / 2 % 200).unwrap();
        let ip = if addr.ip.is_ipv4() { format!("10.0.0.{number}") } else { format!("fd00::{number:x}") };
        let addr = BackendAddr::new(ip.parse().unwrap(), 8080, addr.protocol);
        (BackendId::new(id).unwrap(), Backend { addr, local: id.is_multiple_of(2) })
    }
}
