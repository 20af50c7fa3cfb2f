//! How often the programs stopped a packet or a socket, and why.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use lb_core::datapath::{DatapathError, ErrorKind};
use lb_datapath_ebpf_abi::Reason;

use crate::{state::layout::REASONS, sys::PerCpuCounters};

/// Reads the counters of the programs, through a descriptor of its own: any thread may do so while the datapath
/// changes.
///
/// The counters live in the kernel. They begin at zero with a new pin directory, survive a restart of the process, and
/// wrap around at 2^64. After [`cleanup`](lb_core::datapath::Datapath::cleanup) this reader still shows the last
/// values.
#[derive(Debug)]
pub struct ReasonCounters(PerCpuCounters);

impl ReasonCounters {
    pub(crate) fn new(map: OwnedFd) -> Result<Self, DatapathError> {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| {
            DatapathError::new(
                ErrorKind::System,
                format!("reading {path} failed; it says how many processors there are"),
            )
            .with_source(error)
        })?;
        PerCpuCounters::new(map, cpus).map(Self).map_err(unreadable)
    }

    /// Packets and calls of sockets that ended with each reason, since the maps were made. Every reason has an entry,
    /// of zero if it never occurred. The counters of one processor are read while others count on.
    ///
    /// # Errors
    /// When the kernel refuses the look-up.
    pub fn read(&self) -> Result<BTreeMap<Reason, u64>, DatapathError> {
        let count = |reason: &Reason| Ok((*reason, self.0.sum(reason.key()).map_err(unreadable)?));
        Reason::ALL.iter().map(count).collect()
    }
}

fn unreadable(error: std::io::Error) -> DatapathError {
    DatapathError::new(ErrorKind::System, format!("reading map {REASONS} failed")).with_source(error)
}
