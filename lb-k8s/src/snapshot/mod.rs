//! The content of some files at one moment.

pub(crate) mod amounts;
mod declared;
pub(crate) mod part;
pub(crate) mod reader;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use amounts::Amounts;
pub(crate) use declared::Declared;
use lb_core::{endpoint::EndpointSlice, service::Service};
use part::{Body, Entry, Key, Noted, Part};

use crate::{
    Finding, Instead, Refusal, Report, ServiceTemplate, SnapshotError, Unread, Workload,
    files::{
        self, FileId, Ignored,
        open::{self, Content, Text},
        stamp::Stamp,
    },
    limits::{MAX_FILE_BYTES, MAX_FINDINGS, MAX_TOTAL_BYTES},
    text::shown_path,
};

/// The content of manifests at one moment, read as a whole or not at all: [`Manifests`](crate::Manifests) reads
/// directories in which a file is broken.
///
/// An invalid object does not affect the others; the [report](Self::report) lists it. If several files define an
/// object, the first file counts. Two snapshots are compared by [`Manifests`](crate::Manifests).
#[derive(Debug, Default)]
pub struct Snapshot {
    parts: BTreeMap<FileId, Part>,
    /// The files that have an object, in order.
    files_of: BTreeMap<Key, Vec<FileId>>,
    /// Objects that more than one file has.
    repeated: BTreeSet<Key>,
    amounts: Amounts,
    /// Files that the report is about, and how many findings are listed.
    noted: BTreeSet<FileId>,
    findings: usize,
    pub(crate) ignored: Ignored,
}

impl Snapshot {
    /// Reads files and directories: of a directory its `.yaml`, `.yml` and `.json` files in the order of their names,
    /// hidden ones and directories inside it left out.
    ///
    /// # Errors
    /// When a file cannot be read or parsed, a document is no object, or a limit of [`limits`](crate::limits) is
    /// exceeded.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self, SnapshotError> {
        let listing = files::list(paths)?;
        check_sizes(listing.files.iter().map(|file| (file, open::look(file))))?;
        let mut snapshot = Self { ignored: listing.ignored, ..Self::default() };
        for file in listing.files {
            let part = match open::read(&file)? {
                Content::Text(Text { text, .. }) => whole(reader::read(&shown_path(file.path()), &text)?)?,
                Content::Irregular(kind) => Part::irregular(kind),
                Content::Gone => continue,
            };
            snapshot.check_limits([(&file, Some(&part))])?;
            snapshot.replace(file, Some(part));
        }
        Ok(snapshot)
    }

    /// Parses one text that is called `file` in messages: JSON if that ends in `.json`, YAML otherwise.
    ///
    /// # Errors
    /// When it cannot be parsed, a document is no object, or a limit of [`limits`](crate::limits) is exceeded.
    pub fn parse(file: &str, text: &str) -> Result<Self, SnapshotError> {
        let path = Path::new(file);
        let part = whole(reader::read(&shown_path(path), text)?)?;
        let mut snapshot = Self::default();
        snapshot.replace(FileId::named(0, path), Some(part));
        Ok(snapshot)
    }

    /// The same, read as [`Manifests::reload`](crate::Manifests::reload) reads a file: what cannot be read costs only
    /// itself, and [`Report::unread`] lists it.
    ///
    /// # Errors
    /// When a limit of [`limits`](crate::limits) is exceeded.
    pub fn parse_readable(file: &str, text: &str) -> Result<Self, SnapshotError> {
        let path = Path::new(file);
        let part = match reader::read(&shown_path(path), text) {
            Err(error) if error.is_about_a_file() => Part::unread(error),
            read => read?,
        };
        let mut snapshot = Self::default();
        snapshot.replace(FileId::named(0, path), Some(part));
        Ok(snapshot)
    }

    /// Valid services, in order of their names.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.bodies().filter_map(|body| match body {
            Body::Service { service, .. } => Some(&**service),
            Body::Slice(_) | Body::Namespace(_) | Body::Workload(_) | Body::Pool(_) => None,
        })
    }

    /// Valid endpoint slices, in order of their names.
    pub fn endpoint_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.bodies().filter_map(|body| match body {
            Body::Slice(slice) => Some(&**slice),
            Body::Service { .. } | Body::Namespace(_) | Body::Workload(_) | Body::Pool(_) => None,
        })
    }

    /// Names of the namespaces that are declared, in order; objects may be in others.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.files_of.keys().filter_map(|key| match key {
            Key::Namespace(name) => Some(&**name),
            Key::Service(_) | Key::Slice(_) | Key::Workload(_) | Key::Pool(_) => None,
        })
    }

    /// Valid services with selectors, in order of their names.
    pub fn templates(&self) -> impl Iterator<Item = &ServiceTemplate> {
        self.bodies().filter_map(|body| match body {
            Body::Service { aside, .. } => aside.as_ref()?.template.as_ref(),
            Body::Slice(_) | Body::Namespace(_) | Body::Workload(_) | Body::Pool(_) => None,
        })
    }

    /// Pods and what multiplies them, in order of kind, namespace and name.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.bodies().filter_map(|body| match body {
            Body::Workload(read) => Some(&read.workload),
            Body::Service { .. } | Body::Slice(_) | Body::Namespace(_) | Body::Pool(_) => None,
        })
    }

    /// Everything that the snapshot leaves out, and why. No object counts as having a last good state, which only
    /// [`Manifests`](crate::Manifests) knows.
    ///
    /// Requests for addresses count as not supported; see [`allocating_report`](Self::allocating_report).
    #[must_use]
    pub fn report(&self) -> Report {
        self.report_with(
            &self.declared(),
            |_| false,
            Caller { allocates: false, starts_pods: true, serves_host_ports: false },
        )
    }

    /// The report for a caller that allocates addresses for [`requests`](Self::requests) from [`pools`](Self::pools),
    /// if there are any pools.
    #[must_use]
    pub fn allocating_report(&self) -> Report {
        let declared = self.declared();
        let caller = Caller { allocates: declared.has_pools(), starts_pods: true, serves_host_ports: false };
        self.report_with(&declared, |_| false, caller)
    }

    /// The report, given what is declared, which objects have a last good state that stays when they are refused, and
    /// who asks.
    pub(crate) fn report_with(&self, declared: &Declared<'_>, kept: impl Fn(&Key) -> bool, caller: Caller) -> Report {
        let documents = self.parts.values().map(|part| part.documents).sum();
        let mut report = Report { documents, ignored_files: self.ignored_lines(), ..Report::default() };
        let instead = |key: &Key| match key {
            key if kept(key) => Instead::LastGood,
            Key::Pool(_) => Instead::Disabled,
            Key::Service(_) | Key::Slice(_) | Key::Namespace(_) | Key::Workload(_) => Instead::Nothing,
        };
        for (file, part) in self.noted.iter().filter_map(|file| Some((file, self.parts.get(file)?))) {
            let held = if part.held > 0 { Instead::LastGood } else { Instead::Nothing };
            let room = MAX_FINDINGS.saturating_sub(report.unread.len());
            report.unlisted.unread += part.unread.len().saturating_sub(room);
            let unread = part.unread.iter().take(room).map(|error| Unread { error: Arc::clone(error), instead: held });
            report.unread.extend(unread);
            report.skipped.extend_from_slice(&part.skipped);
            if !caller.starts_pods {
                report.skipped.extend_from_slice(&part.workloads);
                report.unlisted.skipped += part.unlisted_workloads;
            }
            if !caller.starts_pods && !caller.serves_host_ports {
                report.skipped.extend_from_slice(&part.host_workloads);
                report.unlisted.skipped += part.unlisted_host_workloads;
            }
            // What is said of an object that another file has, too, must not stand on that one.
            let counts = |noted: &&Noted| match &noted.0 {
                Some(Key::Workload(_)) if !caller.starts_pods => false,
                Some(key) => self.file_of(key).is_none_or(|counting| counting == file),
                None => true,
            };
            // A pod that is refused is missed where its host ports are served.
            let counts_as_refused = |noted: &&Noted| match &noted.0 {
                Some(key) if caller.serves_host_ports && part.host_pods.contains(key) => {
                    self.file_of(key).is_none_or(|counting| counting == file)
                }
                _ => counts(noted),
            };
            let finding = |(_, finding): &Noted| Arc::clone(finding);
            report.unsupported.extend(part.unsupported.iter().filter(counts).map(finding));
            if !caller.allocates {
                report.unsupported.extend(part.unallocated.iter().filter(counts).map(finding));
                report.unlisted.unsupported += part.unlisted_unallocated;
            }
            let refusal = |(key, finding): &Noted| {
                let instead = key.as_ref().map_or(Instead::Nothing, instead);
                Refusal { finding: Arc::clone(finding), instead }
            };
            report.exposing.extend(part.exposing.iter().filter(counts).map(finding));
            report.refused.extend(part.refused.iter().filter(counts_as_refused).map(refusal));
            report.also_refused.extend(part.also_refused.iter().filter(counts_as_refused).map(refusal));
            let repeated = part.repeated.iter().cloned();
            report.refused.extend(repeated.map(|finding| Refusal { finding, instead: Instead::First }));
            report.unlisted += part.unlisted;
        }
        let incomparable = declared.incomparable().map(|(key, finding)| (instead(&key), Arc::new(finding)));
        report.refused.extend(incomparable.map(|(instead, finding)| Refusal { finding, instead }));
        let in_vain = declared.selecting_in_vain().filter(|(key, _)| self.files_of.contains_key(key));
        report.unsupported.extend(in_vain.map(|(_, finding)| Arc::new(finding)));
        let repetition = |finding| Refusal { finding: Arc::new(finding), instead: Instead::First };
        report.refused.extend(self.repetitions().map(repetition));
        report
    }

    fn ignored_lines(&self) -> Vec<String> {
        let mut ignored = self.ignored.clone();
        for file in &self.noted {
            if let Some(kind) = self.parts.get(file).and_then(|part| part.irregular) {
                ignored.push_because(file.path(), kind);
            }
        }
        ignored.lines()
    }

    /// One finding for each object that an earlier file has already.
    fn repetitions(&self) -> impl Iterator<Item = Finding> {
        self.repeated.iter().flat_map(move |key| {
            let counting = self.file_of(key);
            let first = self.entry(key).map(|first| first.origin.to_string()).unwrap_or_default();
            let others = self.files_of.get(key).into_iter().flatten().filter(move |file| Some(*file) != counting);
            let entries = others.filter_map(|file| self.entry_in(file, key)).filter(|entry| !entry.is_held);
            entries.map(move |entry| Finding {
                object: entry.object(key),
                field: String::new(),
                position: None,
                message: format!("it is already defined in {first}"),
                exposes: false,
            })
        })
    }

    /// The object that counts: the first one.
    pub(crate) fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entry_in(self.file_of(key)?, key)
    }

    /// The file whose object counts: the first one that can be read, else the first one.
    fn file_of(&self, key: &Key) -> Option<&FileId> {
        let files = self.files_of.get(key)?;
        let is_read = |file: &&FileId| self.entry_in(file, key).is_some_and(|entry| !entry.is_held);
        files.iter().find(is_read).or(files.first())
    }

    fn entry_in(&self, file: &FileId, key: &Key) -> Option<&Entry> {
        self.parts.get(file)?.entries.get(key)
    }

    fn bodies(&self) -> impl Iterator<Item = &Body> {
        self.files_of.keys().filter_map(|key| self.entry(key)?.body.as_ref())
    }

    /// Every object that some file has, refused ones included.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.files_of.keys()
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &FileId> {
        self.parts.keys()
    }

    /// What a file says.
    pub(crate) fn part(&self, file: &FileId) -> Option<&Part> {
        self.parts.get(file)
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = (&FileId, Option<&Part>)> {
        self.parts.iter().map(|(file, part)| (file, Some(part)))
    }

    /// Whether the snapshot stays within the limits once `parts` replace those of the same files.
    pub(crate) fn check_limits<'a>(
        &self,
        parts: impl IntoIterator<Item = (&'a FileId, Option<&'a Part>)>,
    ) -> Result<(), SnapshotError> {
        let of = |part: Option<&Part>| part.map(|part| part.amounts).unwrap_or_default();
        let mut amounts = self.amounts;
        for (file, part) in parts {
            amounts = amounts - of(self.parts.get(file)) + of(part);
            amounts.check(|| shown_path(file.path()))?;
        }
        Ok(())
    }

    /// Replaces what `file` says, or forgets it. Returns the objects that may have changed.
    pub(crate) fn replace(&mut self, file: FileId, part: Option<Part>) -> BTreeSet<Key> {
        let mut touched = BTreeSet::new();
        if let Some(old) = self.parts.remove(&file) {
            self.amounts = self.amounts - old.amounts;
            self.findings -= old.findings();
            self.noted.remove(&file);
            for key in old.entries.into_keys() {
                self.forget(&key, &file);
                touched.insert(key);
            }
        }
        let Some(mut part) = part else { return touched };
        self.amounts = self.amounts + part.amounts;
        part.list_at_most(MAX_FINDINGS.saturating_sub(self.findings));
        self.findings += part.findings();
        if part.is_noted() {
            self.noted.insert(file.clone());
        }
        for key in part.entries.keys() {
            self.remember(key, &file);
            touched.insert(key.clone());
        }
        self.parts.insert(file, part);
        touched
    }

    fn remember(&mut self, key: &Key, file: &FileId) {
        // Nearly always the only one: an empty vector would make room for four.
        let Some(files) = self.files_of.get_mut(key) else {
            self.files_of.insert(key.clone(), vec![file.clone()]);
            return;
        };
        let at = files.partition_point(|other| other < file);
        files.insert(at, file.clone());
        self.repeated.insert(key.clone());
    }

    fn forget(&mut self, key: &Key, file: &FileId) {
        let Some(files) = self.files_of.get_mut(key) else { return };
        files.retain(|other| other != file);
        if files.len() < 2 {
            self.repeated.remove(key);
        }
        if files.is_empty() {
            self.files_of.remove(key);
        }
    }
}

/// Who asks for a report: what somebody else does needs no word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// Whether somebody allocates addresses.
    pub(crate) allocates: bool,
    /// Whether somebody starts the pods of workloads.
    pub(crate) starts_pods: bool,
    /// Whether somebody serves the host ports of pods that run.
    pub(crate) serves_host_ports: bool,
}

/// A part of which every document is an object, or else the first error.
fn whole(mut part: Part) -> Result<Part, SnapshotError> {
    let first = part.unread.drain(..).next();
    first.and_then(Arc::into_inner).map_or(Ok(part), Err)
}

/// Whether files of these sizes may be read at all.
pub(crate) fn check_sizes<'a>(
    files: impl IntoIterator<Item = (&'a FileId, Option<Stamp>)>,
) -> Result<(), SnapshotError> {
    let mut total = 0;
    for (file, stamp) in files {
        let size = stamp.map_or(0, |stamp| stamp.size());
        total += size.min(MAX_FILE_BYTES + 1);
        if size > MAX_FILE_BYTES {
            return Err(SnapshotError::FileTooLarge { file: shown_path(file.path()) });
        }
        if total > MAX_TOTAL_BYTES {
            return Err(SnapshotError::TotalTooLarge { file: shown_path(file.path()) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn sizes_are_added_up_before_anything_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, size| {
            let path = directory.path().join(name);
            File::create(&path).unwrap().set_len(size).unwrap();
            FileId::entry(0, &path)
        };
        let mut files: Vec<_> =
            (0..MAX_TOTAL_BYTES / MAX_FILE_BYTES).map(|number| file(&number.to_string(), MAX_FILE_BYTES)).collect();
        let check = |files: &[FileId]| check_sizes(files.iter().map(|file| (file, open::look(file))));
        assert!(check(&files).is_ok());
        files.push(file("last", 1));
        assert!(matches!(check(&files), Err(SnapshotError::TotalTooLarge { file }) if file.ends_with("/last")));
        assert!(matches!(check(&[file("large", MAX_FILE_BYTES + 1)]), Err(SnapshotError::FileTooLarge { .. })));
    }
}
