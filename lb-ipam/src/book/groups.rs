//! Services that share addresses.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::name::ServiceName;

use crate::{Request, book::waiting::Turn};

/// Services by sharing key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups(BTreeMap<Arc<str>, BTreeSet<Turn>>);

impl Groups {
    pub(crate) fn insert(&mut self, request: &Request) {
        let Some(sharing) = &request.sharing else { return };
        let member = (request.created, request.service.clone());
        self.0.entry(Arc::clone(&sharing.key)).or_default().insert(member);
    }

    pub(crate) fn remove(&mut self, request: &Request) {
        let Some(sharing) = &request.sharing else { return };
        let Some(members) = self.0.get_mut(&sharing.key) else { return };
        members.remove(&(request.created, request.service.clone()));
        if members.is_empty() {
            self.0.remove(&sharing.key);
        }
    }

    /// Services with this key, the oldest first.
    pub(crate) fn with_key(&self, key: &str) -> impl Iterator<Item = &ServiceName> {
        self.0.get(key).into_iter().flatten().map(|(_, name)| name)
    }
}
