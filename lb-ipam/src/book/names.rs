//! Services by name.

use alloc::collections::{BTreeMap, btree_map};

use lb_core::name::ServiceName;

/// Places of services by name, in an order that is always the same and is not that of their names: that of a hash comes
/// first, so that a search compares numbers and follows pointers to one name only.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(BTreeMap<(u64, ServiceName), usize>);

impl Names {
    pub(crate) fn find(&self, name: &ServiceName) -> Option<usize> {
        self.0.get(&key(name)).copied()
    }

    /// The place of the service, if it has one, or else where to note it.
    pub(crate) fn entry(&mut self, name: &ServiceName) -> btree_map::Entry<'_, (u64, ServiceName), usize> {
        self.0.entry(key(name))
    }

    pub(crate) fn remove(&mut self, name: &ServiceName) {
        self.0.remove(&key(name));
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.values().copied()
    }
}

fn key(name: &ServiceName) -> (u64, ServiceName) {
    (hash(name), name.clone())
}

/// FNV-1a. Names that were made to collide cost what they would cost without a hash.
fn hash(name: &ServiceName) -> u64 {
    let add = |hash: u64, text: &str| {
        text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    add(add(add(0xcbf2_9ce4_8422_2325, name.namespace()), "/"), name.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_by_both_parts() {
        let mut names = Names::default();
        let all = [("a", "b"), ("ab", ""), ("", "ab"), ("b", "a")].map(|(ns, name)| ServiceName::new(ns, name));
        for (place, name) in all.iter().enumerate() {
            names.entry(name).or_insert(place);
        }
        names.remove(&all[1]);
        let found = all.each_ref().map(|name| names.find(name));
        assert_eq!(found, [Some(0), None, Some(2), Some(3)]);
        assert_eq!(names.places().count(), 3);
    }
}
