//! Counts the elements of the maps, and the memory that they take.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lb_core::datapath::{Counters, DatapathError, ErrorKind, KernelUsage};

use crate::state::maps::memory;

/// Counts what the maps hold, through descriptors of its own.
#[derive(Debug)]
pub(crate) struct MapCounters {
    maps: Vec<OwnedFd>,
    elements: Arc<AtomicU64>,
}

impl MapCounters {
    /// Counts these maps; `elements` is kept up to date by whoever writes them.
    pub(crate) const fn new(maps: Vec<OwnedFd>, elements: Arc<AtomicU64>) -> Self {
        Self { maps, elements }
    }
}

impl Counters for MapCounters {
    fn usage(&self) -> Result<KernelUsage, DatapathError> {
        let sizes = self.maps.iter().map(|map| memory(map.as_fd())).collect::<io::Result<Option<Vec<_>>>>();
        let sizes = sizes.map_err(|error| {
            DatapathError::new(ErrorKind::System, "reading the size of a map from /proc failed").with_source(error)
        })?;
        Ok(KernelUsage {
            rules: 0,
            elements: self.elements.load(Ordering::Relaxed),
            bytes: sizes.map(|sizes| sizes.iter().sum()),
        })
    }
}
