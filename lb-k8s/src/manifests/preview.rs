//! The effect of manifests that are not in place yet.

use lb_ipam::Edit;

use crate::Report;

/// The edits for an allocator if some objects were added to the manifests.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The edits, in the order of [`Batch::edits`](crate::Batch::edits).
    pub edits: Vec<Edit>,
    /// The parts of the added objects that would not be accepted, and pools that could not be compared with all
    /// namespaces. [`Report::rejected`] says that all files together would exceed a limit; then there are no edits.
    pub report: Report,
}
