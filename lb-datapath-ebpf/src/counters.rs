//! Counts the elements of the maps, and the memory that they take.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use lb_core::datapath::{Counters, DatapathError, ErrorKind, KernelUsage, MapUsage};

use crate::{
    state::{
        layout::{LAYOUTS, Layout},
        maps::memory,
        mirror::Filled,
    },
    sys::RawMap,
};

/// How full the maps are that user space fills, kept up to date by whoever writes them.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedFilled(Arc<Mutex<Filled>>);

impl SharedFilled {
    pub(crate) fn set(&self, filled: Filled) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = filled;
    }

    fn get(&self) -> Filled {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts what the maps hold, through descriptors of its own.
#[derive(Debug)]
pub(crate) struct MapCounters {
    /// In the order of [`LAYOUTS`].
    maps: Vec<OwnedFd>,
    filled: SharedFilled,
}

impl MapCounters {
    /// Counts these maps, which are in the order of [`LAYOUTS`].
    pub(crate) const fn new(maps: Vec<OwnedFd>, filled: SharedFilled) -> Self {
        Self { maps, filled }
    }
}

impl Counters for MapCounters {
    fn usage(&self) -> Result<KernelUsage, DatapathError> {
        let sizes = self.maps.iter().map(|map| memory(map.as_fd())).collect::<io::Result<Option<Vec<_>>>>();
        let sizes = sizes.map_err(|error| {
            DatapathError::new(ErrorKind::System, "reading the size of a map from /proc failed").with_source(error)
        })?;
        Ok(KernelUsage { rules: 0, elements: self.filled.get().elements, bytes: sizes.map(|sizes| sizes.iter().sum()) })
    }

    /// User space knows what it has written. Of what programs write, a part is counted.
    fn maps(&self) -> Result<Vec<MapUsage>, DatapathError> {
        let filled = self.filled.get();
        let sized = LAYOUTS.iter().zip(&self.maps).filter(|(layout, _)| layout.is_sized());
        sized.map(|(layout, map)| usage(layout, map, &filled)).collect()
    }
}

fn usage(layout: &Layout, map: &OwnedFd, filled: &Filled) -> Result<MapUsage, DatapathError> {
    let failed = |error| {
        let message = format!("counting the elements of map {} failed", layout.name);
        DatapathError::new(ErrorKind::System, message).with_source(error)
    };
    let map = map.try_clone().and_then(RawMap::new).map_err(failed)?;
    let known = filled.tables.iter().find(|(name, _)| *name == layout.name).map(|(_, entries)| *entries);
    let entries = known.map_or_else(|| map.estimate(), Ok).map_err(failed)?;
    let capacity = u64::from(map.shape().max_entries) * layout.elements_per_entry();
    Ok(MapUsage { name: layout.name.into(), entries, capacity, evicts: layout.evicts() })
}
