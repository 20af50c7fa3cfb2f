//! What manifests would bring that are not there yet.

use lb_ipam::Edit;

use crate::Report;

/// What an allocator would be told if some objects were added to the manifests.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The edits, in the order of [`Batch::edits`](crate::Batch::edits).
    pub edits: Vec<Edit>,
    /// What of the added objects would not be taken over, and pools that could not be compared with all namespaces.
    /// [`Report::rejected`] says that all files together would exceed a limit; then there are no edits.
    pub report: Report,
}
