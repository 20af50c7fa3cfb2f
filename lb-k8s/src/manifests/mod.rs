//! The last good state of manifests, and the changes that a newer snapshot brings.

mod assigned;
mod differences;
mod edits;
mod handover;
mod host_ports;
mod preview;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use assigned::AssignedServices;
use differences::{Differences, slice_changes};
use edits::Allocatable;
use host_ports::{HostPorts, Place};
use lb_core::{
    endpoint::EndpointSlice,
    model::Change,
    name::{NodeName, ServiceName, SliceName, SourceName},
    service::Service,
};
use lb_ipam::{Edit, Pool, Request};
pub use preview::Preview;

use crate::{
    Origin, Report, Snapshot, SnapshotError,
    files::{
        self, FileId,
        open::{self, Content, Text},
        stamp::Stamp,
    },
    snapshot::{
        Caller, Declared,
        amounts::Amounts,
        check_sizes,
        part::{Key, Part},
        reader,
    },
    text::shown_path,
};

/// A source of changes that reads manifests.
///
/// It holds the last good state. A snapshot that is rejected changes nothing, and an object that is refused stays as it
/// last was. [`reload`](Self::reload) reads only files that have changed, and a file that cannot be read or parsed costs
/// only itself: what it held before stays, and every other file takes effect.
#[derive(Debug)]
pub struct Manifests {
    source: SourceName,
    progress: Progress,
    snapshot: Snapshot,
    services: AssignedServices,
    slices: BTreeMap<SliceName, Arc<EndpointSlice>>,
    allocatable: Allocatable,
    host_ports: HostPorts,
    /// Whether the caller allocates addresses.
    is_allocating: bool,
    /// Paths of the last reload.
    paths: Vec<PathBuf>,
    /// Files that need not be read while they look like this.
    stamps: BTreeMap<FileId, Stamp>,
    /// Whether all files of `paths` are in `snapshot`, those of `pending` left aside.
    is_complete: bool,
    /// Files that were named and not accepted, because something was wrong with one of them.
    pending: BTreeSet<FileId>,
    report: Arc<Report>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The source has not been announced yet.
    Unannounced,
    /// The first listing has begun.
    Listing,
    /// There has been a good snapshot.
    Listed,
}

/// The result of an update.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Changes, in the order in which the model takes them without a conflict over an address.
    pub changes: Vec<Change>,
    /// Changes of pools and of requests for addresses, for an [`Allocator`](lb_ipam::Allocator). First pools that go,
    /// then pools that come or change, requests that go, [services](Edit::KeepService) that are refused and never were
    /// good, and requests that come or change. The first reconcile must wait for [`Change::InitDone`].
    pub edits: Vec<Edit>,
    /// Everything that was not accepted, and why.
    pub report: Arc<Report>,
}

/// A file that was read, or is gone.
struct Reread {
    file: FileId,
    part: Option<Part>,
    stamp: Option<Stamp>,
}

impl Manifests {
    /// A source that has read nothing yet.
    #[must_use]
    pub fn new(source: SourceName) -> Self {
        Self {
            source,
            progress: Progress::Unannounced,
            snapshot: Snapshot::default(),
            services: AssignedServices::default(),
            slices: BTreeMap::new(),
            allocatable: Allocatable::default(),
            host_ports: HostPorts::default(),
            is_allocating: false,
            paths: Vec::new(),
            stamps: BTreeMap::new(),
            is_complete: false,
            pending: BTreeSet::new(),
            report: Arc::default(),
        }
    }

    /// The same for a caller that applies [`Batch::edits`]. As soon as there is a pool, requests for addresses are
    /// no longer reported as not supported.
    #[must_use]
    pub fn allocating(self) -> Self {
        Self { is_allocating: true, ..self }
    }

    /// The same with the host ports of the pods that run on `node`, each as a service of its own with the pod behind it. If
    /// the node has no name, every pod runs there. Without this no host ports are served. To be called before the first
    /// update.
    #[must_use]
    pub fn on_node(mut self, node: Option<NodeName>) -> Self {
        self.host_ports.set_place(node.map_or(Place::Here, Place::Node));
        self
    }

    /// Takes over a newer snapshot, or the reason why there is none.
    ///
    /// The very first batch begins with [`Change::InitStart`], the first with a good snapshot ends with
    /// [`Change::InitDone`]. In between: services that go, services that come or change, slices that come or change,
    /// slices that go. An address that one service releases is free before another one claims it, even when two swap
    /// theirs.
    pub fn update(&mut self, snapshot: Result<Snapshot, SnapshotError>) -> Batch {
        self.is_complete = false;
        let touched = snapshot.map(|snapshot| {
            self.stamps.clear();
            let old = std::mem::replace(&mut self.snapshot, snapshot);
            old.keys().chain(self.snapshot.keys()).cloned().collect()
        });
        self.settle(touched)
    }

    /// Reads the files that [`Snapshot::read`] reads, and updates with the result as [`update`](Self::update) does.
    /// Files that look as they did when they were last read are not opened.
    ///
    /// A file that cannot be read or parsed holds what it held before, and so does one with a document that is no object;
    /// [`Report::unread`] lists them. Only a limit and a directory that cannot be read reject the snapshot.
    pub fn reload(&mut self, paths: &[impl AsRef<Path>]) -> Batch {
        self.paths = paths.iter().map(|path| path.as_ref().to_owned()).collect();
        self.pending.clear();
        let touched = self.read_all();
        self.is_complete = touched.is_ok();
        self.settle(touched)
    }

    /// Reads some files again: files of the last [`reload`](Self::reload), new files in its directories, or files that
    /// are gone. It is for a caller that learns which files change. The number of other files makes no difference.
    ///
    /// Other files are passed over. Files that were rejected together are read again together with those that are named
    /// next; after a [`reload`](Self::reload) that was rejected, all files are looked at.
    pub fn reload_files(&mut self, files: &[impl AsRef<Path>]) -> Batch {
        if !self.is_complete {
            let paths = std::mem::take(&mut self.paths);
            return self.reload(&paths);
        }
        let known = files.iter().filter_map(|file| files::identify(file.as_ref(), &self.paths));
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend(known);
        let touched = read_again(pending.iter().cloned()).and_then(|reread| self.replace(reread));
        if touched.is_err() {
            self.pending = pending;
        }
        self.settle(touched)
    }

    /// Assigns these [addresses](Service::load_balancer_ips) to services, instead of those in their status; `None`
    /// restores those of the status. The changes are in the same order as those of [`update`](Self::update).
    ///
    /// A service keeps these addresses as long as it exists, whatever happens to its manifest. A service that comes
    /// again has the addresses of its status. Unknown services are passed over.
    pub fn grant(&mut self, answers: impl IntoIterator<Item = (ServiceName, Option<Vec<IpAddr>>)>) -> Vec<Change> {
        let changes = self.services.grant(answers);
        self.sourced(changes).collect()
    }

    /// The edits that a reload would bring an [`Allocator`](lb_ipam::Allocator) if the objects of `snapshot` replaced
    /// those of the same names, or joined the others. Everything else stays, and nothing is changed.
    #[must_use]
    pub fn preview(&self, snapshot: &Snapshot) -> Preview {
        let declared = snapshot.declared().over(&self.snapshot);
        let report = self.report_on(snapshot, &declared);
        match self.snapshot.check_limits(snapshot.parts()) {
            Ok(()) => {
                let edits = self.allocatable.preview(snapshot, &declared, |name| self.services.contains(name));
                Preview { edits, report }
            }
            Err(error) => Preview { edits: Vec::new(), report: Report { rejected: Some(Arc::new(error)), ..report } },
        }
    }

    /// The parts of the last good snapshot that were not accepted, and whether a newer snapshot was rejected.
    #[must_use]
    pub fn report(&self) -> &Arc<Report> {
        &self.report
    }

    /// Where the service of this name stands in the newest snapshot that was accepted.
    #[must_use]
    pub fn service_origin(&self, name: &ServiceName) -> Option<&Origin> {
        let pod = self.host_ports.pod_of(name).cloned();
        Some(&self.snapshot.entry(&pod.unwrap_or_else(|| Key::Service(name.clone())))?.origin)
    }

    /// Services of the last good state with what they were [granted](Self::grant), in order of their names; then those of
    /// [host ports](Self::on_node).
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().chain(self.host_ports.services())
    }

    /// Endpoint slices of the last good state, in order of their names; then those of [host ports](Self::on_node).
    pub fn endpoint_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values().map(|slice| &**slice).chain(self.host_ports.endpoint_slices())
    }

    /// Pools of the last good state, in order of their names. One that is refused and never was good is among them and
    /// assigns nothing.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.allocatable.pools()
    }

    /// Requests of services of the last good state for addresses, in order of their names.
    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.allocatable.requests()
    }

    fn read_all(&mut self) -> Result<BTreeSet<Key>, SnapshotError> {
        let listing = files::list(&self.paths)?;
        let mut gone: BTreeSet<_> = self.snapshot.files().cloned().collect();
        let found: Vec<_> = listing.files.into_iter().map(|file| (open::look(&file), file)).collect();
        check_sizes(found.iter().map(|(stamp, file)| (file, *stamp)))?;
        let mut changed = Vec::new();
        for (stamp, file) in found {
            gone.remove(&file);
            if stamp.is_none() || stamp.as_ref() != self.stamps.get(&file) {
                changed.push(file);
            }
        }
        // Files that are gone come first: they make room in the limits for new ones.
        let mut reread: Vec<_> = gone.into_iter().map(|file| Reread { file, part: None, stamp: None }).collect();
        reread.extend(read_again(changed)?);
        let touched = self.replace(reread)?;
        self.snapshot.ignored = listing.ignored;
        Ok(touched)
    }

    /// Puts files into the snapshot; the objects that may have changed by it.
    fn replace(&mut self, mut reread: Vec<Reread>) -> Result<BTreeSet<Key>, SnapshotError> {
        for Reread { file, part, .. } in &mut reread {
            if let Some(part) = part.as_mut().filter(|part| !part.unread.is_empty())
                && let Some(before) = self.snapshot.part(file)
            {
                part.hold(before);
            }
        }
        self.snapshot.check_limits(reread.iter().map(|Reread { file, part, .. }| (file, part.as_ref())))?;
        let mut touched = BTreeSet::new();
        for Reread { file, part, stamp } in reread {
            match stamp {
                Some(stamp) => drop(self.stamps.insert(file.clone(), stamp)),
                None => drop(self.stamps.remove(&file)),
            }
            touched.extend(self.snapshot.replace(file, part));
        }
        Ok(touched)
    }

    /// Makes the objects that may have changed the last good state.
    fn settle(&mut self, touched: Result<BTreeSet<Key>, SnapshotError>) -> Batch {
        let (mut changes, mut edits) = (Vec::new(), Vec::new());
        if self.progress == Progress::Unannounced {
            changes.push(Change::InitStart(self.source.clone()));
            self.progress = Progress::Listing;
        }
        match touched {
            Ok(touched) => {
                self.take(&touched, &mut changes);
                edits = self.allocatable.take(&touched, &self.snapshot, |name| self.services.contains(name));
                let mut report = self.report_on(&self.snapshot, &self.snapshot.declared());
                report.refused.extend(self.host_ports.refusals(&self.snapshot));
                self.report = Arc::new(report);
                if self.progress == Progress::Listing {
                    changes.push(Change::InitDone(self.source.clone()));
                    self.progress = Progress::Listed;
                }
            }
            Err(error) => self.report = Arc::new(Report { rejected: Some(Arc::new(error)), ..(*self.report).clone() }),
        }
        Batch { changes, edits, report: Arc::clone(&self.report) }
    }

    fn take(&mut self, touched: &BTreeSet<Key>, changes: &mut Vec<Change>) {
        let (services, of_host_ports) = self.services.take(touched, &self.snapshot, &mut self.host_ports);
        changes.extend(self.sourced(services));
        let slices = Differences::of(touched, &self.slices, |key| match key {
            Key::Slice(name) => Some((name, differences::slice(self.snapshot.entry(key)))),
            Key::Service(_) | Key::Namespace(_) | Key::Workload(_) | Key::Pool(_) => None,
        });
        changes.extend(slice_changes(&slices));
        changes.extend(slice_changes(&of_host_ports));
        slices.apply(&mut self.slices);
    }

    /// Changes as those of this source.
    fn sourced(&self, changes: Vec<Change>) -> impl Iterator<Item = Change> {
        changes.into_iter().map(|change| match change {
            Change::UpsertService(service) => {
                Change::UpsertService(Service { source: Some(self.source.clone()), ..service })
            }
            other => other,
        })
    }

    fn report_on(&self, snapshot: &Snapshot, declared: &Declared<'_>) -> Report {
        let caller = Caller {
            allocates: self.is_allocating && declared.has_pools(),
            starts_pods: false,
            serves_host_ports: self.host_ports.has_place(),
        };
        snapshot.report_with(declared, |key| self.has(key), caller)
    }

    fn has(&self, key: &Key) -> bool {
        match key {
            Key::Service(name) => self.services.contains(name),
            Key::Slice(name) => self.slices.contains_key(name),
            Key::Pool(name) => self.allocatable.has_pool(name),
            Key::Workload(_) => self.host_ports.has(key),
            Key::Namespace(_) => false,
        }
    }
}

/// Reads files, up to the point at which they alone exceed the limits of a snapshot.
fn read_again(files: impl IntoIterator<Item = FileId>) -> Result<Vec<Reread>, SnapshotError> {
    let mut amounts = Amounts::default();
    let mut all = Vec::new();
    for file in files {
        let reread = read(file)?;
        amounts = reread.part.as_ref().map_or(amounts, |part| amounts + part.amounts);
        amounts.check(|| shown_path(reread.file.path()))?;
        all.push(reread);
    }
    Ok(all)
}

/// Reads a file. An error of its own is a part of its own.
fn read(file: FileId) -> Result<Reread, SnapshotError> {
    let (part, stamp) = match open::read(&file) {
        Ok(Content::Text(Text { text, stamp })) => (reader::read(&shown_path(file.path()), &text).map(Some), stamp),
        Ok(Content::Irregular(kind)) => (Ok(Some(Part::irregular(kind))), None),
        Ok(Content::Gone) => (Ok(None), None),
        Err(error) => (Err(error), None),
    };
    let part =
        part.or_else(|error| if error.is_about_a_file() { Ok(Some(Part::unread(error))) } else { Err(error) })?;
    Ok(Reread { file, part, stamp })
}
