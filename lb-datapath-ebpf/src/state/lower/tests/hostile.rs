//! Maps that other tools have written to: any bytes under any key.

use std::collections::BTreeMap;

use lb_core::{
    id::SetId,
    state::{State, Target},
};
use lb_datapath_ebpf_abi::Pod;
use proptest::prelude::*;

use super::{Fake, LIMITS, apply, expected, plan, states};
use crate::state::{mirror::Mirror, restore::Restored, write::Store};

/// One write of another tool.
#[derive(Clone, Debug)]
struct Edit {
    map: u8,
    /// Which of the entries that are there; past the last one, an entry more.
    entry: usize,
    /// Bytes of the key (or, of an entry that is there, of the value) and what they become.
    bytes: Vec<(usize, u8)>,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let byte = prop_oneof![Just(0_u8), Just(1), Just(2), Just(0xff), any::<u8>()];
    let bytes = prop::collection::vec((0_usize..40, byte), 1..4);
    let edit = (0_u8..8, 0_usize..12, bytes).prop_map(|(map, entry, bytes)| Edit { map, entry, bytes });
    prop::collection::vec(edit, 1..12)
}

impl Edit {
    fn carry_out(&self, maps: &mut Fake<'_>) {
        match self.map {
            0 => self.entry_of(&mut maps.frontends),
            1 => self.entry_of(&mut maps.backends),
            2 => self.entry_of(&mut maps.sets),
            3 => self.entry_of(&mut maps.members),
            4 => self.key_of(&mut maps.turns),
            5 => self.entry_of(&mut maps.cidrs),
            6 => maps.node = maps.node.map(|node| self.changed(&node)),
            _ => {
                let at = self.entry * 7 % maps.slots.len();
                maps.slots[at] = self.changed(&maps.slots[at]);
            }
        }
    }

    fn entry_of<K: Pod + Ord, V: Pod>(&self, map: &mut BTreeMap<K, V>) {
        let Some((&key, &value)) = map.iter().nth(self.entry).or_else(|| map.iter().next_back()) else { return };
        if self.entry < map.len() {
            map.insert(key, self.changed(&value));
        } else {
            map.insert(self.changed(&key), value);
        }
    }

    fn key_of<K: Pod + Ord>(&self, map: &mut BTreeMap<K, ()>) {
        let Some((&key, ())) = map.iter().nth(self.entry).or_else(|| map.iter().next_back()) else { return };
        map.insert(self.changed(&key), ());
    }

    fn changed<T: Pod>(&self, value: &T) -> T {
        let mut bytes = value.bytes().to_vec();
        for (at, byte) in &self.bytes {
            let at = at % bytes.len();
            bytes[at] = *byte;
        }
        T::from_bytes(&bytes).unwrap()
    }
}

/// `state` with sets that `there` has not: the content of one in use is not what another state says it is, and what
/// others wrote can give any id a content.
fn with_new_sets(mut state: State, there: &State) -> State {
    let mut free = (1..).filter_map(SetId::new).filter(|id| !there.sets.contains_key(id));
    let ids: BTreeMap<_, _> = state.sets.keys().map(|&id| (id, free.next().unwrap())).collect();
    state.sets = state.sets.into_iter().map(|(id, set)| (ids[&id], set)).collect();
    for frontend in state.frontends.values_mut() {
        if let Target::Set(id) = &mut frontend.target {
            *id = ids[id];
        }
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn maps_that_others_wrote_to_are_opened_and_put_right(first in states(), second in states(), edits in edits()) {
        let (mut mirror, mut maps) = (Mirror::new(LIMITS), Fake::new());
        apply(&mut mirror, &mut maps, &plan(&State::default(), &first)).unwrap();
        for edit in &edits {
            edit.carry_out(&mut maps);
        }
        let Restored { mirror: mut opened, fixes, .. } = Restored::new(&maps.snapshot(), LIMITS);
        prop_assert!(maps.write(&fixes).is_empty());
        let again = Restored::new(&maps.snapshot(), LIMITS);
        prop_assert_eq!(&again.mirror.state, &opened.state);
        prop_assert_eq!((again.fixes, again.unreadable), (Vec::new(), Vec::new()));
        let second = with_new_sets(second, &opened.state);
        let wanted = plan(&opened.state, &second);
        apply(&mut opened, &mut maps, &wanted).unwrap();
        prop_assert_eq!(maps.state(), second.clone());
        for addr in second.frontends.keys() {
            prop_assert_eq!(maps.answer(addr), expected(&second, addr));
        }
    }
}
