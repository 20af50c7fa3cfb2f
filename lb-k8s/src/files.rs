//! Which files make a snapshot, and their content.

use std::{
    fs::{self, File, FileType, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    SnapshotError,
    limits::{MAX_FILE_BYTES, MAX_FILES},
    text::shown_path,
};

/// A file of a snapshot; files are in the order of the paths that were asked for, then of their names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId {
    /// Which of the paths it comes from.
    argument: usize,
    path: Arc<Path>,
}

impl FileId {
    pub(crate) fn new(argument: usize, path: &Path) -> Self {
        Self { argument, path: path.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Files to read, in order, and entries of directories that are not read.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) files: Vec<FileId>,
    pub(crate) ignored: Vec<String>,
}

/// Lists `paths`: a file as it is, a directory as its manifests by name. Directories in directories are not entered.
pub(crate) fn list(paths: &[impl AsRef<Path>]) -> Result<Listing, SnapshotError> {
    let mut listing = Listing::default();
    for (argument, path) in paths.iter().map(AsRef::as_ref).enumerate() {
        if metadata(path)?.is_dir() {
            list_directory(argument, path, &mut listing)?;
        } else {
            listing.files.push(FileId::new(argument, path));
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
        if !is_manifest(&path) || file_type.is_dir() || (file_type.is_symlink() && path.is_dir()) {
            listing.ignored.push(shown_path(&path));
            continue;
        }
        if file_type.is_symlink() {
            check_inside(&path, directory)?;
        }
        listing.files.push(FileId::new(argument, &path));
    }
    Ok(())
}

/// Where `file` belongs in a listing of `paths`, whether it exists or not.
pub(crate) fn identify(file: &Path, paths: &[PathBuf]) -> Option<FileId> {
    paths.iter().enumerate().find_map(|(argument, path)| {
        let is_entry = file.parent() == Some(path) && is_manifest(file) && !is_hidden(file);
        (file == path || is_entry).then(|| FileId::new(argument, file))
    })
}

/// What a listing would say of one file: whether it is there.
pub(crate) fn exists(file: &FileId) -> Result<bool, SnapshotError> {
    let metadata = match fs::symlink_metadata(file.path()) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(io_error(file.path(), source)),
    };
    if metadata.is_symlink()
        && let Some(directory) = file.path().parent()
    {
        check_inside(file.path(), directory)?;
        return Ok(!file.path().is_dir());
    }
    Ok(!metadata.is_dir())
}

/// Editors and the kubelet (`..data`) keep what is not for readers under such names.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

fn check_inside(path: &Path, directory: &Path) -> Result<(), SnapshotError> {
    let canonical = |path: &Path| path.canonicalize().map_err(|source| io_error(path, source));
    let target = canonical(path)?;
    if target.starts_with(canonical(directory)?) {
        return Ok(());
    }
    Err(SnapshotError::Outside { file: shown_path(path), target: shown_path(&target) })
}

/// What distinguishes the content of a file from that of an hour ago without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    id: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Time stamps of files advance with the kernel's tick, 10 ms at most: a file that was changed less than this before it
/// was read may have changed again without a trace.
const TICK: Duration = Duration::from_millis(50);

impl Stamp {
    pub(crate) fn of(path: &Path) -> Result<Self, SnapshotError> {
        Ok(Self::from_metadata(&metadata(path)?))
    }

    fn from_metadata(metadata: &Metadata) -> Self {
        Self {
            id: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a change after `read` would show.
    fn is_telling(&self, read: SystemTime) -> bool {
        let (seconds, nanos) = self.changed;
        let since_epoch = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
        let changed = since_epoch.map(|(seconds, nanos)| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
        changed.is_some_and(|changed| read.duration_since(changed).is_ok_and(|age| age > TICK))
    }
}

/// The text of `path`, and its stamp if that will tell whether the text has changed.
pub(crate) fn read(path: &Path) -> Result<(String, Option<Stamp>), SnapshotError> {
    let now = SystemTime::now();
    // Opening a pipe for reading waits for a writer unless told not to.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = file.map_err(|source| io_error(path, source))?;
    let metadata = file.metadata().map_err(|source| io_error(path, source))?;
    if !metadata.is_file() {
        return Err(SnapshotError::NotRegular { file: shown_path(path), found: describe(metadata.file_type()) });
    }
    let bytes = read_limited(&file, metadata.len()).map_err(|source| io_error(path, source))?;
    let bytes = bytes.ok_or_else(|| SnapshotError::FileTooLarge { file: shown_path(path) })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        SnapshotError::NotUtf8 { file: shown_path(path), offset }
    })?;
    Ok((text, Some(Stamp::from_metadata(&metadata)).filter(|stamp| stamp.is_telling(now))))
}

/// `None` when the file is larger than [`MAX_FILE_BYTES`], also when it grows while it is read.
fn read_limited(file: &File, len: u64) -> io::Result<Option<Vec<u8>>> {
    if len > MAX_FILE_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_FILE_BYTES).then_some(bytes))
}

fn describe(file_type: FileType) -> &'static str {
    let kinds = [
        (file_type.is_dir(), "a directory"),
        (file_type.is_fifo(), "a named pipe"),
        (file_type.is_socket(), "a socket"),
        (file_type.is_char_device(), "a character device"),
        (file_type.is_block_device(), "a block device"),
    ];
    kinds.into_iter().find_map(|(is, kind)| is.then_some(kind)).unwrap_or("something else")
}

fn metadata(path: &Path) -> Result<Metadata, SnapshotError> {
    fs::metadata(path).map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::Io { file: shown_path(path), source }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_stamp_is_only_given_once_it_tells_of_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        fs::write(&path, "a").unwrap();
        assert_eq!(read(&path).unwrap().1, None, "just written");
        let deadline = Instant::now() + Duration::from_secs(10);
        let stamp = loop {
            if let (text, Some(stamp)) = read(&path).unwrap() {
                assert_eq!(text, "a");
                break stamp;
            }
            assert!(Instant::now() < deadline, "the file does not age");
            std::thread::yield_now();
        };
        assert_eq!(Stamp::of(&path).unwrap(), stamp);
        fs::write(&path, "b").unwrap();
        assert_ne!(Stamp::of(&path).unwrap(), stamp);
    }

    #[test]
    fn files_are_identified_as_a_listing_would() {
        let paths = ["/etc/lb".into(), "/etc/one".into()];
        let identify = |file: &str| identify(Path::new(file), &paths).map(|file| file.argument);
        assert_eq!(identify("/etc/lb/a.yaml"), Some(0));
        assert_eq!(identify("/etc/one"), Some(1));
        for other in ["/etc/lb/.a.yaml", "/etc/lb/a.txt", "/etc/lb/a/b.yaml", "/etc/two.yaml", "a.yaml"] {
            assert_eq!(identify(other), None, "{other}");
        }
    }
}
