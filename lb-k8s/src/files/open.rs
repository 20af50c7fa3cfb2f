//! Opening and reading a file that another user may have put there.
//!
//! Paths are resolved by the kernel below an open directory (`openat2`, `RESOLVE_BENEATH`), so that nothing that
//! happens in between leads out of it. What was found is looked at before it is opened for reading: opening a pipe
//! waits for a writer, opening a device may do anything.

use std::{
    ffi::OsString,
    fs::{self, File, FileType, Metadata},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

use crate::{
    SnapshotError,
    document::guess,
    files::{FileId, stamp::Stamp},
    limits::{MAX_FILE_BYTES, MAX_OPEN_ATTEMPTS},
    text::shown_path,
};

/// Symbolic links that the kernel follows for one path.
const MAX_LINKS: usize = 40;

/// The text of a file.
pub(crate) struct Text {
    pub(crate) text: String,
    /// The file's stamp, if that shows whether the text has changed.
    pub(crate) stamp: Option<Stamp>,
}

/// The content that a file name leads to.
pub(crate) enum Content {
    Text(Text),
    /// An entry of a directory that is no file, and what it is instead. It was not opened.
    Irregular(&'static str),
    /// Nothing any more, or a directory.
    Gone,
}

/// A directory entry that was not opened for reading.
enum Candidate {
    File(File, Metadata),
    Irregular(&'static str),
    Gone,
}

/// Reads a file.
pub(crate) fn read(id: &FileId) -> Result<Content, SnapshotError> {
    let path = id.path();
    for _ in 0..MAX_OPEN_ATTEMPTS {
        let now = SystemTime::now();
        let (file, before) = match find(id)? {
            Candidate::File(found, metadata) => (open(id, &found)?, metadata),
            Candidate::Irregular(kind) => return Ok(Content::Irregular(kind)),
            Candidate::Gone => return Ok(Content::Gone),
        };
        let bytes = read_limited(&file, before.len()).map_err(|source| io_error(path, source))?;
        let bytes = bytes.ok_or_else(|| SnapshotError::FileTooLarge { file: shown_path(path) })?;
        let stamp = Stamp::of(&before);
        let after = file.metadata().map_err(|source| io_error(path, source))?;
        if Stamp::of(&after) != stamp && !is_same_content(&before, &after, bytes.len()) {
            continue;
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let offset = error.utf8_error().valid_up_to();
            SnapshotError::NotUtf8 { file: shown_path(path), offset, looks_like: guess::bytes(error.as_bytes()) }
        })?;
        return Ok(Content::Text(Text { text, stamp: Some(stamp).filter(|stamp| stamp.is_telling(now)) }));
    }
    Err(SnapshotError::Changing { file: shown_path(path) })
}

/// Whether only the name, the owner or the number of links changed meanwhile.
fn is_same_content(before: &Metadata, after: &Metadata, read: usize) -> bool {
    let written = |metadata: &Metadata| (metadata.mtime(), metadata.mtime_nsec(), metadata.len());
    written(before) == written(after) && after.len() == read as u64
}

/// The stamp of what a path leads to, not opened; `None` if that cannot be said. Reading it may still be refused.
pub(crate) fn look(id: &FileId) -> Option<Stamp> {
    fs::metadata(id.path()).ok().map(|metadata| Stamp::of(&metadata))
}

/// Opens for reading what was found, whatever its path leads to by now.
fn open(id: &FileId, found: &File) -> Result<File, SnapshotError> {
    let found = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat(CWD, found, flags, Mode::empty()).map(File::from).map_err(|errno| io_error(id.path(), errno.into()))
}

/// Finds a regular file without opening it for reading.
fn find(id: &FileId) -> Result<Candidate, SnapshotError> {
    let path = id.path();
    let found = match if id.is_entry() { resolve_beneath(path) } else { resolve(CWD, path) } {
        Ok(found) => File::from(found),
        Err(Errno::NOENT) if fs::symlink_metadata(path).is_err() => return Ok(Candidate::Gone),
        // As a listing does, whatever is in it.
        Err(Errno::XDEV) if path.is_dir() => return Ok(Candidate::Gone),
        Err(Errno::XDEV) => return Err(outside(path)),
        Err(Errno::NOENT) => {
            let nothing = std::io::Error::new(std::io::ErrorKind::NotFound, "the symbolic link leads to nothing");
            return Err(io_error(path, nothing));
        }
        Err(errno) => return Err(io_error(path, errno.into())),
    };
    let metadata = found.metadata().map_err(|source| io_error(path, source))?;
    if id.is_entry() && metadata.is_dir() {
        return Ok(Candidate::Gone);
    }
    if !metadata.is_file() {
        let found = describe(metadata.file_type());
        // Nobody takes an entry like this for a manifest: the others are served. A file that is named by its path is
        // meant.
        let error = || SnapshotError::NotRegular { file: shown_path(path), found };
        return if id.is_entry() { Ok(Candidate::Irregular(found)) } else { Err(error()) };
    }
    if id.is_entry() && metadata.nlink() > 1 {
        check_links(path, &metadata)?;
    }
    Ok(Candidate::File(found, metadata))
}

fn resolve(directory: impl std::os::fd::AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(directory, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Follows symbolic links only as far as they stay in the directory that `path` is an entry of.
fn resolve_beneath(path: &Path) -> rustix::io::Result<OwnedFd> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let directory = openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut outcome = Err(Errno::AGAIN);
    for _ in 0..MAX_OPEN_ATTEMPTS {
        outcome = openat2(&directory, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how);
        // The kernel gives up when something on the way is renamed meanwhile.
        if !matches!(outcome, Err(Errno::AGAIN)) {
            break;
        }
    }
    outcome
}

/// A hard link looks like any other file, so nothing says where else it is at home. It is trusted if whoever can put
/// links into the directory owns the file as well.
fn check_links(path: &Path, metadata: &Metadata) -> Result<(), SnapshotError> {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = fs::metadata(parent).map_err(|source| io_error(parent, source))?;
    if directory.uid() == metadata.uid() && directory.mode() & WRITABLE_BY_OTHERS == 0 {
        return Ok(());
    }
    Err(SnapshotError::HardLink { file: shown_path(path), links: metadata.nlink() })
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

fn outside(path: &Path) -> SnapshotError {
    let link = way_out(path).unwrap_or_else(|| path.to_owned());
    let target = link.canonicalize().or_else(|_| fs::read_link(&link));
    SnapshotError::Outside { file: shown_path(&link), target: shown_path(&target.unwrap_or_default()) }
}

/// The symbolic link that leads out of the directory of `path`: `path` itself, or one on the way.
fn way_out(path: &Path) -> Option<PathBuf> {
    let (directory, name) = (path.parent()?, path.file_name()?);
    let mut inside = PathBuf::new();
    // The steps that are left, the next step last, each with the link that asks for it.
    let mut steps = vec![(OsString::from(name), path.to_owned())];
    let mut links_left = MAX_LINKS;
    while let Some((step, link)) = steps.pop() {
        if step == ".." {
            if !inside.pop() {
                return Some(link);
            }
            continue;
        }
        inside.push(step);
        let at = directory.join(&inside);
        let Ok(target) = fs::read_link(&at) else { continue };
        links_left = usize::checked_sub(links_left, 1)?;
        if target.is_absolute() {
            return Some(at);
        }
        inside.pop();
        let further = target.components().filter(|step| *step != Component::CurDir);
        steps.extend(further.rev().map(|step| (step.as_os_str().to_owned(), at.clone())));
    }
    None
}

pub(crate) fn io_error(path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::Io { file: shown_path(path), source }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn text(id: &FileId) -> Option<Text> {
        match read(id).unwrap() {
            Content::Text(text) => Some(text),
            Content::Irregular(_) | Content::Gone => None,
        }
    }

    #[test]
    fn a_stamp_is_only_given_once_it_tells_of_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        let id = FileId::entry(0, &path);
        fs::write(&path, "a").unwrap();
        assert_eq!(text(&id).unwrap().stamp, None, "just written");
        let deadline = Instant::now() + Duration::from_secs(10);
        let stamp = loop {
            let Text { text, stamp } = text(&id).unwrap();
            assert_eq!(text, "a");
            if let Some(stamp) = stamp {
                break stamp;
            }
            assert!(Instant::now() < deadline, "the file does not age");
            std::thread::yield_now();
        };
        assert_eq!(look(&id), Some(stamp));
        fs::write(&path, "b").unwrap();
        assert_ne!(look(&id), Some(stamp));
        fs::remove_file(&path).unwrap();
        assert_eq!(look(&id), None);
        assert!(matches!(read(&id), Ok(Content::Gone)));
    }

    #[test]
    fn a_file_of_the_size_that_is_allowed_is_read_and_one_that_grows_is_not() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAX_FILE_BYTES).unwrap();
        let bytes = read_limited(&file, 0).unwrap().unwrap();
        assert_eq!(bytes.len() as u64, MAX_FILE_BYTES);
        file.set_len(MAX_FILE_BYTES + 1).unwrap();
        std::io::Seek::rewind(&mut &file).unwrap();
        assert_eq!(read_limited(&file, 0).unwrap(), None, "whatever its size was at first");
    }
}
