//! Where services come from: manifests, and the allocator that gives them addresses.

pub(crate) mod manifests;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lb_core::{Change, SourceName};
use lb_ipam::{Edit, PoolName};
use lb_k8s::{Batch, Manifests, Preview, Snapshot};

use crate::{
    allocation::{self, Allocation, wall_clock},
    api::PoolPlan,
    error,
};

/// The name of this source.
pub(crate) fn name() -> SourceName {
    SourceName("manifests".into())
}

/// Manifests and allocator. Read by one thread, and asked by those that answer.
///
/// Whoever takes both locks takes that of the manifests first.
pub(crate) struct Source {
    manifests: Mutex<Manifests>,
    allocation: Mutex<Allocation>,
}

impl Source {
    pub(crate) fn new(allocation: Allocation) -> Self {
        Self { manifests: Mutex::new(Manifests::new(name()).allocating()), allocation: Mutex::new(allocation) }
    }

    /// Reads the whole directory, as far as it has changed.
    pub(crate) fn read(&self, directory: &Path) -> Batch {
        self.update(|manifests| manifests.reload(&[directory]))
    }

    /// Reads some of its files.
    pub(crate) fn read_files(&self, files: &[PathBuf]) -> Batch {
        self.update(|manifests| manifests.reload_files(files))
    }

    fn update(&self, read: impl FnOnce(&mut Manifests) -> Batch) -> Batch {
        let mut manifests = self.manifests();
        // Reading takes its time, and nobody who asks about addresses waits for it.
        let mut batch = read(&mut manifests);
        self.allocation().take(&mut manifests, &mut batch, wall_clock());
        batch
    }

    /// What has to be done by now though nothing was edited.
    pub(crate) fn poll(&self) -> Vec<Change> {
        let mut manifests = self.manifests();
        self.allocation().poll(&mut manifests, wall_clock())
    }

    /// How long there is nothing to [`poll`](Self::poll).
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.allocation().patience(wall_clock())
    }

    /// What would happen if these manifests joined those that there are, and these pools went.
    ///
    /// # Errors
    /// When they would be rejected as a whole, or make no sense together, and why.
    pub(crate) fn plan(&self, file: &str, text: &str, removed: &[PoolName]) -> Result<PoolPlan, String> {
        let snapshot = Snapshot::parse(file, text).map_err(|error| error::chain(&error))?;
        let manifests = self.manifests();
        let Preview { edits, report } = manifests.preview(&snapshot);
        if let Some(error) = report.rejected {
            return Err(error::chain(&*error));
        }
        if let Some(both) = allocation::contradiction(&edits, removed) {
            return Err(format!("pool `{both}` is in {file} and is to be removed: it can only be one of the two"));
        }
        let planned = allocation::Edits {
            edits: removed.iter().cloned().map(Edit::RemovePool).chain(edits).collect(),
            refused: report.refused.iter().map(ToString::to_string).collect(),
            unsupported: report.unsupported.iter().map(ToString::to_string).collect(),
        };
        Ok(self.allocation().plan(planned, manifests.services(), wall_clock()))
    }

    pub(crate) fn allocation(&self) -> MutexGuard<'_, Allocation> {
        self.allocation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn manifests(&self) -> MutexGuard<'_, Manifests> {
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
