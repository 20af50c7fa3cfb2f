//! The datapath that only remembers.

use std::path::Path;

use lb_core::{
    datapath::{Capabilities, DatapathError},
    memory::MemoryDatapath,
};

use super::{Attachments, Driver, Exclusion, OpenDatapath, Setting};

pub(super) struct Memory;

impl Driver for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn about(&self) -> &'static str {
        "Keeps state and carries no packets; needs no privilege"
    }

    fn open(&self, _: &Attachments) -> Result<Box<dyn OpenDatapath>, DatapathError> {
        Ok(Box::new(MemoryDatapath::default()))
    }

    fn capabilities(&self, _: &Attachments) -> Option<Capabilities> {
        Some(Capabilities::all("memory"))
    }

    fn traces(&self, _: &Path) -> Result<Option<Vec<String>>, DatapathError> {
        Ok(Some(Vec::new()))
    }

    fn settings(&self) -> &'static [Setting] {
        &[Setting::Maglev]
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::Datapath
    }

    fn carries_packets(&self) -> bool {
        false
    }
}
