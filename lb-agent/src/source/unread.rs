//! What services keep while files of a source cannot be read and never could.
//!
//! Nobody knows which services and pools are in such a file. Without them, an allocator at its start would release the
//! addresses of those services, and those of the pools; and the first plan would remove their frontends.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{model::Change, name::ServiceName};
use lb_ipam::{Edit, Pool};
use lb_k8s::{Instead, Report};

/// The pool that stands for those in files that cannot be read.
const STAND_IN: &str = "unread-manifests";

/// Most of what cannot be read that the pool names.
const MAX_NAMED: usize = 3;

/// Sources of which something could never be read, and what is kept because of that.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// What cannot be read of each, and why.
    sources: BTreeMap<usize, Vec<String>>,
    /// Services that hold addresses and that no source lists.
    kept: BTreeSet<ServiceName>,
    /// The pool that the allocator knows in the place of others.
    stand_in: Option<Pool>,
    /// Whether frontends that were found installed stay without a service.
    keeps_frontends: bool,
}

impl Unread {
    /// Takes in what a source says of itself.
    pub(super) fn note(&mut self, source: usize, report: &Report) {
        let unread = report.unread.iter().filter(|unread| unread.instead == Instead::Nothing);
        let errors: Vec<String> = unread.map(|unread| unread.error.to_string()).collect();
        if errors.is_empty() {
            self.sources.remove(&source);
        } else {
            self.sources.insert(source, errors);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Edits for an allocator at its start: services that hold addresses keep them, be they `listed` or not. `holders`
    /// are services and whether they hold an address of no pool.
    pub(super) fn keep(&mut self, holders: BTreeMap<ServiceName, bool>, listed: &BTreeSet<ServiceName>) -> Vec<Edit> {
        if self.is_empty() {
            return Vec::new();
        }
        let needs_stand_in = holders.iter().any(|(service, is_outside)| *is_outside && listed.contains(service));
        self.kept = holders.into_keys().filter(|service| !listed.contains(service)).collect();
        if !self.kept.is_empty() || needs_stand_in {
            let services = self.kept.len();
            tracing::warn!(services, "manifests are not read: services that may be in them keep their addresses");
        }
        self.stand_in = needs_stand_in.then(|| self.stand_in());
        self.stand_in
            .iter()
            .cloned()
            .map(Edit::UpsertPool)
            .chain(self.kept.iter().cloned().map(Edit::KeepService))
            .collect()
    }

    /// The change for the end of the first listings, if frontends that are installed and that no service claims stay.
    pub(super) fn keep_frontends(&mut self) -> Option<Change> {
        self.keeps_frontends = !self.is_empty();
        self.keeps_frontends.then_some(Change::KeepUnclaimed(true))
    }

    /// The change that ends this, once everything can be read.
    pub(super) fn let_frontends_go(&mut self) -> Option<Change> {
        let is_over = self.keeps_frontends && self.is_empty();
        self.keeps_frontends &= !is_over;
        is_over.then_some(Change::KeepUnclaimed(false))
    }

    /// Edits that end what is kept: of services that come without a request, and of all once everything can be read.
    pub(super) fn end(&mut self, changes: &[Change], edits: &[Edit]) -> Vec<Edit> {
        let mut ended = Vec::new();
        for edit in edits {
            if let Edit::UpsertService(request) = edit {
                self.kept.remove(&request.service);
            }
        }
        for change in changes {
            if let Change::UpsertService(service) = change
                && self.kept.remove(&service.name)
            {
                ended.push(Edit::RemoveService(service.name.clone()));
            }
        }
        if self.is_empty() {
            ended.extend(std::mem::take(&mut self.kept).into_iter().map(Edit::RemoveService));
            ended.extend(self.stand_in.take().map(|pool| Edit::RemovePool(pool.name)));
        } else if self.stand_in.is_some() {
            // Other files are the reason by now, perhaps.
            let stand_in = Some(self.stand_in());
            if self.stand_in != stand_in {
                ended.extend(stand_in.clone().map(Edit::UpsertPool));
                self.stand_in = stand_in;
            }
        }
        ended
    }
    /// A pool of which the blocks are not known: services keep addresses that are in no other one.
    fn stand_in(&self) -> Pool {
        let errors: Vec<&str> = self.sources.values().flatten().map(String::as_str).collect();
        let named = errors.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join("; ");
        let more = match errors.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let why = format!("it stands for the pools in manifests that cannot be read: {named}{more}; see `lb status`");
        Pool { refused: Some(why), disabled: true, ..Pool::new(STAND_IN, &[]) }
    }
}
