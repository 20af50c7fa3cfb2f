//! Which files make a snapshot.

pub(crate) mod open;
pub(crate) mod stamp;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use open::io_error;

use crate::{
    SnapshotError,
    limits::{MAX_FILES, MAX_IGNORED_FILES},
    text::shown_path,
};

/// A file of a snapshot; files are in the order of the paths that were asked for, then of their names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId {
    /// Which of the paths it comes from.
    argument: usize,
    path: Arc<Path>,
    is_entry: bool,
}

impl FileId {
    /// A file that was asked for by its own name.
    pub(crate) fn named(argument: usize, path: &Path) -> Self {
        Self { argument, path: path.into(), is_entry: false }
    }

    /// A file of a directory that was asked for.
    pub(crate) fn entry(argument: usize, path: &Path) -> Self {
        Self { argument, path: path.into(), is_entry: true }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether another user may have put it there: it must not lead out of its directory.
    pub(crate) fn is_entry(&self) -> bool {
        self.is_entry
    }
}

/// Files to read, in order, and entries of directories that are not read.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) files: Vec<FileId>,
    pub(crate) ignored: Ignored,
}

/// Entries of directories that are not manifests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ignored {
    listed: Vec<String>,
    more: usize,
}

impl Ignored {
    /// Adds an entry that is not a manifest by its name.
    fn push(&mut self, path: &Path) {
        self.add(|| format!("{}: its name does not end in .yaml, .yml or .json", shown_path(path)));
    }

    /// Adds a directory inside the directory.
    fn push_directory(&mut self, path: &Path) {
        self.add(|| {
            format!("{}: directories inside the directory are not read; move its manifests up", shown_path(path))
        });
    }

    /// Adds an entry with the name of a manifest that is something else.
    pub(crate) fn push_because(&mut self, path: &Path, kind: &str) {
        self.add(|| format!("{}: it is {kind}, expected a regular file", shown_path(path)));
    }

    fn add(&mut self, line: impl FnOnce() -> String) {
        if self.listed.len() < MAX_IGNORED_FILES {
            self.listed.push(line());
        } else {
            self.more += 1;
        }
    }

    /// One line for each, and one for those that are too many to name.
    pub(crate) fn lines(&self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("and {} more", self.more));
        self.listed.iter().cloned().chain(more).collect()
    }
}

/// Lists `paths`: a file as it is, a directory as its manifests by name. Directories in directories are not entered.
pub(crate) fn list(paths: &[impl AsRef<Path>]) -> Result<Listing, SnapshotError> {
    let mut listing = Listing::default();
    for (argument, path) in paths.iter().map(AsRef::as_ref).enumerate() {
        if fs::metadata(path).map_err(|source| io_error(path, source))?.is_dir() {
            list_directory(argument, path, &mut listing)?;
        } else {
            listing.files.push(FileId::named(argument, path));
        }
        if listing.files.len() > MAX_FILES {
            return Err(SnapshotError::TooManyFiles { directory: shown_path(path) });
        }
    }
    Ok(listing)
}

fn list_directory(argument: usize, directory: &Path, listing: &mut Listing) -> Result<(), SnapshotError> {
    let read = || {
        let entries = fs::read_dir(directory)?.take(MAX_FILES + 1);
        let entry = |entry: io::Result<fs::DirEntry>| entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)));
        entries.map(entry).collect::<io::Result<Vec<_>>>()
    };
    let mut entries = read().map_err(|source| io_error(directory, source))?;
    if entries.len() > MAX_FILES {
        return Err(SnapshotError::TooManyFiles { directory: shown_path(directory) });
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (path, file_type) in entries {
        if is_hidden(&path) {
            continue;
        }
        if file_type.is_dir() || (file_type.is_symlink() && path.is_dir()) {
            listing.ignored.push_directory(&path);
            continue;
        }
        if !is_manifest(&path) {
            listing.ignored.push(&path);
            continue;
        }
        listing.files.push(FileId::entry(argument, &path));
    }
    Ok(())
}

/// Where `file` belongs in a listing of `paths`, whether it exists or not.
pub(crate) fn identify(file: &Path, paths: &[PathBuf]) -> Option<FileId> {
    paths.iter().enumerate().find_map(|(argument, path)| {
        if file == path {
            return Some(FileId::named(argument, file));
        }
        let is_entry = file.parent() == Some(path) && is_manifest(file) && !is_hidden(file);
        is_entry.then(|| FileId::entry(argument, file))
    })
}

/// Editors and the kubelet (`..data`) keep what is not for readers under such names.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_identified_as_a_listing_would() {
        let paths = ["/etc/lb".into(), "/etc/one".into()];
        let identify = |file: &str| identify(Path::new(file), &paths).map(|file| (file.argument, file.is_entry));
        assert_eq!(identify("/etc/lb/a.yaml"), Some((0, true)));
        assert_eq!(identify("/etc/one"), Some((1, false)));
        for other in ["/etc/lb/.a.yaml", "/etc/lb/a.txt", "/etc/lb/a/b.yaml", "/etc/two.yaml", "a.yaml"] {
            assert_eq!(identify(other), None, "{other}");
        }
    }

    #[test]
    fn files_are_counted_over_all_paths() {
        let directory = tempfile::tempdir().unwrap();
        let other = directory.path().join("other");
        fs::create_dir(&other).unwrap();
        // The directory itself has one more entry, which is no manifest.
        for number in 1..MAX_FILES {
            fs::File::create(directory.path().join(format!("{number}.yaml"))).unwrap();
        }
        let files = |paths: &[&Path]| list(paths).map(|listing| listing.files.len()).map_err(|error| error.to_string());
        fs::File::create(other.join("a.yaml")).unwrap();
        assert_eq!(files(&[directory.path(), &other]), Ok(MAX_FILES));
        fs::File::create(other.join("b.yaml")).unwrap();
        let error = files(&[directory.path(), &other]).unwrap_err();
        assert!(error.contains("there are more than 100000 files"), "{error}");
        fs::File::create(directory.path().join("0.yaml")).unwrap();
        assert!(files(&[directory.path()]).is_err(), "entries of one directory, whatever they are");
    }

    #[test]
    fn entries_that_are_ignored_are_named_up_to_a_limit() {
        let mut ignored = Ignored::default();
        for number in 0..MAX_IGNORED_FILES {
            ignored.push(Path::new(&number.to_string()));
        }
        assert_eq!(ignored.lines().len(), MAX_IGNORED_FILES);
        ignored.push(Path::new("one more"));
        ignored.push(Path::new("two more"));
        assert_eq!(ignored.lines().last().map(String::as_str), Some("and 2 more"));
    }
}
