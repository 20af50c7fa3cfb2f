//! Ids that datapaths key their tables by, and their allocator.

use alloc::collections::BTreeMap;
use core::{fmt, marker::PhantomData, num::NonZeroU32};

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

/// Every id of one kind is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {} ids are in use", u32::MAX)]
pub struct IdsExhausted;

/// Assigns each key an id and remembers it.
///
/// The cursor only moves forward and wraps at [`u32::MAX`], so an id that was freed is the last to be assigned again.
#[derive(Clone, Debug)]
pub struct IdTable<K, I> {
    by_key: BTreeMap<K, I>,
    used: BTreeMap<I, ()>,
    next: NonZeroU32,
    kind: PhantomData<I>,
}

impl<K: Ord + Clone, I: Id> Default for IdTable<K, I> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), used: BTreeMap::new(), next: NonZeroU32::MIN, kind: PhantomData }
    }
}

impl<K: Ord + Clone, I: Id> IdTable<K, I> {
    /// The id of `key`, a fresh one if it has none.
    ///
    /// # Errors
    /// When all ids are in use.
    pub fn id(&mut self, key: &K) -> Result<I, IdsExhausted> {
        if let Some(&id) = self.by_key.get(key) {
            return Ok(id);
        }
        if self.used.len() >= u32::MAX as usize {
            return Err(IdsExhausted);
        }
        let mut raw = self.next;
        while self.used.contains_key(&I::from_raw(raw)) {
            raw = raw.checked_add(1).unwrap_or(NonZeroU32::MIN);
        }
        self.next = raw.checked_add(1).unwrap_or(NonZeroU32::MIN);
        let id = I::from_raw(raw);
        self.by_key.insert(key.clone(), id);
        self.used.insert(id, ());
        Ok(id)
    }

    /// The id that `key` has.
    #[must_use]
    pub fn lookup(&self, key: &K) -> Option<I> {
        self.by_key.get(key).copied()
    }

    /// Takes an id over from what an earlier process installed. Refuses (`false`) an id or a key that is already taken.
    pub fn restore(&mut self, key: K, id: I) -> bool {
        if self.by_key.contains_key(&key) || self.used.contains_key(&id) {
            return false;
        }
        if id.raw() >= self.next {
            self.next = id.raw().checked_add(1).unwrap_or(NonZeroU32::MIN);
        }
        self.used.insert(id, ());
        self.by_key.insert(key, id);
        true
    }

    /// Forgets `key`; its id is free.
    pub fn remove(&mut self, key: &K) {
        if let Some(id) = self.by_key.remove(key) {
            self.used.remove(&id);
        }
    }
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
    fn the_cursor_wraps_and_skips_ids_in_use() {
        let mut table = IdTable::<&str, BackendId>::default();
        assert!(table.restore("last", id(u32::MAX)));
        assert!(table.restore("first", id(1)));
        assert_eq!(table.id(&"new"), Ok(id(2)));
    }
}
