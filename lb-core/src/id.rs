//! Ids that datapaths key their tables by, and their allocator.

use alloc::collections::{BTreeMap, BTreeSet};
use core::{fmt, num::NonZeroU32};

use crate::state::State;

/// An id that [`IdTable`] assigns: never 0.
pub trait Id: Copy + Ord {
    /// The id with this number.
    fn from_raw(raw: NonZeroU32) -> Self;
    /// Its number.
    fn raw(self) -> NonZeroU32;
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(NonZeroU32);

        impl $name {
            /// The id with this number; `None` for 0.
            #[must_use]
            pub const fn new(raw: u32) -> Option<Self> {
                match NonZeroU32::new(raw) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The number, 1..=[`u32::MAX`].
            #[must_use]
            pub const fn get(self) -> u32 {
                self.0.get()
            }
        }

        impl Id for $name {
            fn from_raw(raw: NonZeroU32) -> Self {
                Self(raw)
            }

            fn raw(self) -> NonZeroU32 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Id of a frontend: the key of its affinity records.
    FrontendId
}
id! {
    /// Id of a backend address.
    BackendId
}
id! {
    /// Id of a backend set. A set never changes: another content has another id.
    SetId
}

/// Ids that a datapath still has somewhere below its [state](State), such as in the entry of a flow. Whoever got one of
/// them anew would be taken for its former owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldIds {
    /// Of frontends.
    pub frontends: BTreeSet<FrontendId>,
    /// Of backends.
    pub backends: BTreeSet<BackendId>,
    /// Of sets.
    pub sets: BTreeSet<SetId>,
}

impl HeldIds {
    /// Adds every id of a state.
    pub(crate) fn add(&mut self, state: &State) {
        self.frontends.extend(state.frontends.values().map(|frontend| frontend.id));
        self.backends.extend(state.backends.keys());
        self.sets.extend(state.sets.keys());
    }
}

/// No id is left that is known to be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all ids up to {} were assigned since the datapath last said which ones its flows hold", MAX_ASSIGNED)]
pub struct IdsExhausted;

/// The highest id that is assigned: half of the numbers are left to datapaths that mark an id with a bit.
pub const MAX_ASSIGNED: u32 = i32::MAX as u32;

/// Assigns each key an id and remembers it.
///
/// An id that was freed may live on in flows of the datapath. So the cursor only moves forward, and a freed id is not
/// assigned again before the cursor is at the end and [`hold`](Self::hold) says which ids are still somewhere.
#[derive(Clone, Debug)]
pub struct IdTable<K, I> {
    by_key: BTreeMap<K, I>,
    used: BTreeSet<I>,
    /// In no use, and not to be assigned.
    held: BTreeSet<I>,
    /// `None`: the cursor is at the end.
    next: Option<NonZeroU32>,
}

impl<K: Ord + Clone, I: Id> Default for IdTable<K, I> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), used: BTreeSet::new(), held: BTreeSet::new(), next: Some(NonZeroU32::MIN) }
    }
}

impl<K: Ord + Clone, I: Id> IdTable<K, I> {
    /// The id of `key`, a fresh one if it has none.
    ///
    /// # Errors
    /// When the cursor is at the end: [`hold`](Self::hold) puts it back to the beginning.
    pub fn id(&mut self, key: &K) -> Result<I, IdsExhausted> {
        if let Some(&id) = self.by_key.get(key) {
            return Ok(id);
        }
        loop {
            let raw = self.next.ok_or(IdsExhausted)?;
            self.next = following(raw);
            let id = I::from_raw(raw);
            if !self.used.contains(&id) && !self.held.contains(&id) {
                self.by_key.insert(key.clone(), id);
                self.used.insert(id);
                return Ok(id);
            }
        }
    }

    /// The id that `key` has.
    #[must_use]
    pub fn lookup(&self, key: &K) -> Option<I> {
        self.by_key.get(key).copied()
    }

    /// Takes an id over from what an earlier process installed. Refuses (`false`) an id or a key that is already taken.
    pub fn restore(&mut self, key: K, id: I) -> bool {
        if self.by_key.contains_key(&key) || self.used.contains(&id) {
            return false;
        }
        if self.next.is_some_and(|next| id.raw() >= next) {
            self.next = following(id.raw());
        }
        self.used.insert(id);
        self.by_key.insert(key, id);
        true
    }

    /// Forgets `key`. Its id is not assigned again before the cursor has come to the end and [`hold`](Self::hold) has
    /// been called since.
    pub fn remove(&mut self, key: &K) {
        if let Some(id) = self.by_key.remove(key) {
            self.used.remove(&id);
            if self.next.is_none_or(|next| id.raw() >= next) {
                self.held.insert(id);
            }
        }
    }

    /// From now on these ids are not assigned, and all others that were freed before may be: nothing has them any more.
    pub fn hold(&mut self, ids: impl IntoIterator<Item = I>) {
        self.held = ids.into_iter().collect();
        self.next = Some(self.next.unwrap_or(NonZeroU32::MIN));
    }
}

/// The number after `raw`, up to [`MAX_ASSIGNED`].
fn following(raw: NonZeroU32) -> Option<NonZeroU32> {
    raw.checked_add(1).filter(|next| next.get() <= MAX_ASSIGNED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(raw: u32) -> BackendId {
        BackendId::new(raw).expect("non-zero")
    }

    #[test]
    fn a_freed_id_is_not_the_next_one_given_out() {
        let mut table = IdTable::<&str, BackendId>::default();
        assert_eq!(table.id(&"a"), Ok(id(1)));
        table.remove(&"a");
        assert_eq!(table.id(&"b"), Ok(id(2)));
    }

    #[test]
    fn restored_ids_are_kept_and_skipped() {
        let mut table = IdTable::<&str, BackendId>::default();
        assert!(table.restore("old", id(7)));
        assert!(!table.restore("other", id(7)));
        assert_eq!(table.id(&"old"), Ok(id(7)));
        assert_eq!(table.id(&"new"), Ok(id(8)));
    }

    #[test]
    fn ids_that_something_holds_are_skipped() {
        let mut table = IdTable::<&str, BackendId>::default();
        table.hold([id(1), id(3)]);
        assert_eq!((table.id(&"a"), table.id(&"b")), (Ok(id(2)), Ok(id(4))));
        assert!(table.restore("old", id(1)), "what is installed keeps its id, though flows have it as well");
    }

    #[test]
    fn the_cursor_starts_anew_only_when_it_is_known_what_holds_ids() {
        let mut table = IdTable::<&str, BackendId>::default();
        assert_eq!(table.id(&"first"), Ok(id(1)));
        assert!(table.restore("last", id(MAX_ASSIGNED)));
        table.remove(&"last");
        table.remove(&"first");
        assert_eq!(table.id(&"new"), Err(IdsExhausted));
        table.hold([id(1)]);
        assert_eq!(table.id(&"new"), Ok(id(2)), "1 is held");
    }

    #[test]
    fn an_id_that_is_freed_before_the_cursor_comes_to_it_is_passed_by() {
        let mut table = IdTable::<&str, BackendId>::default();
        assert!(table.restore("third", id(3)) && table.restore("last", id(u32::MAX)));
        table.hold([]);
        assert_eq!(table.id(&"a"), Ok(id(1)));
        table.remove(&"third");
        assert_eq!((table.id(&"b"), table.id(&"c")), (Ok(id(2)), Ok(id(4))));
        table.hold([]);
        table.remove(&"a");
        assert_eq!(table.id(&"d"), Ok(id(5)), "the cursor does not go back");
    }
}
