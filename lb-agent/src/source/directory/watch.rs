//! What inotify says of the directory, and what has to be read again because of it.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent},
};

/// How long events are collected after the first one.
const COALESCE: Duration = Duration::from_millis(1);
/// How many events are collected at most; names beyond that are not remembered one by one.
const MAX_COLLECTED: usize = 1000;
/// How often everything is looked at although nothing was heard of: a link may lead to where nobody watches, and the
/// path to the directory may lead elsewhere by now.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// Why the manifests cannot be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Something else has that name.
    #[error("{0}: not a directory; give the directory that holds the manifests")]
    NotDirectory(PathBuf),
    /// The directory is missing, or the system refuses.
    #[error("the manifest directory {directory} cannot be watched")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The system has no watch to spare.
    #[error("watching files failed (the limit may be raised by `sysctl fs.inotify.max_user_instances`)")]
    Inotify(#[source] io::Error),
}

/// What has to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Files of these names.
    At(BTreeSet<OsString>),
    /// Whatever has changed.
    Everywhere,
}

impl Look {
    /// What has to be read for both.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::At(mut names), Self::At(more)) if names.len() + more.len() < MAX_COLLECTED => {
                names.extend(more);
                Self::At(names)
            }
            _ => Self::Everywhere,
        }
    }
}

/// What came of waiting.
pub(super) enum Heard {
    /// This has to be read.
    Look(Look),
    /// The same, and the directory may be another one by now.
    Other(Look),
}

pub(super) struct Watch {
    inotify: Inotify,
    /// When everything is looked at, though nothing was heard.
    silent_until: Instant,
}

impl Watch {
    pub(super) fn new(directory: &Path) -> Result<Self, WatchError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|error| WatchError::Inotify(error.into()))?;
        let watch = Self { inotify, silent_until: Instant::now() + LONGEST_SILENCE };
        watch.add(directory).map_err(|source| match source.kind() {
            io::ErrorKind::NotADirectory => WatchError::NotDirectory(directory.into()),
            _ => WatchError::Directory { directory: directory.into(), source },
        })?;
        Ok(watch)
    }

    /// Forgets the directory that was watched; [`add`](Self::add) is to follow.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(())
    }

    pub(super) fn add(&self, directory: &Path) -> io::Result<()> {
        // A file that was written in place is complete when it is closed; one that was renamed here is already.
        let interest = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        self.inotify.add_watch(directory, interest).map(drop).map_err(io::Error::from)
    }

    /// Blocks until something changed that readers would notice, or until everything was left alone for
    /// [`LONGEST_SILENCE`].
    pub(super) fn wait(&mut self, directory: &Path) -> io::Result<Heard> {
        let heard = self.listen(directory)?;
        self.silent_until = Instant::now() + LONGEST_SILENCE;
        Ok(heard)
    }

    fn listen(&mut self, directory: &Path) -> io::Result<Heard> {
        loop {
            if !self.poll(self.silent_until.saturating_duration_since(Instant::now()))? {
                if Instant::now() < self.silent_until {
                    continue;
                }
                return Ok(Heard::Other(Look::Everywhere));
            }
            let mut found = self.take()?;
            let mut look = what_to_look_at(&found, directory);
            if look == Some(Look::At(BTreeSet::new())) {
                continue;
            }
            while found.len() < MAX_COLLECTED && self.poll(COALESCE)? {
                found.extend(self.take()?);
                look = what_to_look_at(&found, directory);
            }
            return Ok(look.map_or(Heard::Other(Look::Everywhere), Heard::Look));
        }
    }

    fn take(&self) -> io::Result<Vec<InotifyEvent>> {
        match self.inotify.read_events() {
            Ok(events) => Ok(events),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn poll(&self, patience: Duration) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_end(mask: AddWatchFlags) -> bool {
    let ends = AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_UNMOUNT
        | AddWatchFlags::IN_IGNORED;
    mask.intersects(ends)
}

/// What events ask for. `None`: the directory is not the one that is watched any more.
fn what_to_look_at(events: &[InotifyEvent], directory: &Path) -> Option<Look> {
    let mut names = BTreeSet::new();
    let mut everywhere = false;
    for event in events {
        if is_end(event.mask) {
            return None;
        }
        match event.name.as_deref() {
            None => everywhere |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW),
            Some(name) => match scope(name, event.mask, directory) {
                Scope::Nothing => {}
                Scope::File => drop(names.insert(name.to_owned())),
                Scope::Everything => everywhere = true,
            },
        }
    }
    Some(if everywhere || names.len() >= MAX_COLLECTED { Look::Everywhere } else { Look::At(names) })
}

/// How much an event of one name may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Nothing,
    File,
    Everything,
}

/// Hidden files are drafts of editors, except for those that begin with two dots: `..data` is how the kubelet swaps a
/// whole volume. A file that was just created is still empty, unless it is a link to a complete one; a pipe, a socket
/// or a device is what it is, and nothing else may ever be heard of it.
fn scope(name: &OsStr, mask: AddWatchFlags, directory: &Path) -> Scope {
    let bytes = name.as_encoded_bytes();
    if bytes.starts_with(b"..") {
        return Scope::Everything;
    }
    if bytes.starts_with(b".") {
        return Scope::Nothing;
    }
    if mask.contains(AddWatchFlags::IN_ISDIR) {
        // Links may lead through it; its own times tell nothing.
        return if mask.contains(AddWatchFlags::IN_ATTRIB) { Scope::Nothing } else { Scope::Everything };
    }
    match fs::symlink_metadata(directory.join(name)) {
        Ok(found) if found.is_symlink() => Scope::Everything,
        Ok(found) if mask.contains(AddWatchFlags::IN_CREATE) && found.is_file() && found.nlink() < 2 => Scope::Nothing,
        Ok(_) | Err(_) => Scope::File,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn watched() -> (tempfile::TempDir, Watch) {
        let directory = tempfile::tempdir().unwrap();
        let watch = Watch::new(directory.path()).unwrap();
        (directory, watch)
    }

    /// What the events so far ask for.
    fn look(directory: &tempfile::TempDir, watch: &Watch) -> Option<Look> {
        what_to_look_at(&watch.take().unwrap(), directory.path())
    }

    fn at(names: &[&str]) -> Option<Look> {
        Some(Look::At(names.iter().map(|name| (*name).into()).collect()))
    }

    #[test]
    fn files_are_looked_at_by_name() {
        let (directory, watch) = watched();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("a.yaml"), "x").unwrap();
        fs::write(path(".draft"), "x").unwrap();
        fs::rename(path(".draft"), path("b.yaml")).unwrap();
        assert_eq!(look(&directory, &watch), at(&["a.yaml", "b.yaml"]));
        fs::hard_link(path("a.yaml"), path("c.yaml")).unwrap();
        assert_eq!(look(&directory, &watch), at(&["c.yaml"]));
        fs::set_permissions(path("a.yaml"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(look(&directory, &watch), at(&["a.yaml"]), "it may be readable now");
        fs::remove_file(path("b.yaml")).unwrap();
        assert_eq!(look(&directory, &watch), at(&["b.yaml"]));
        fs::write(path(".draft"), "x").unwrap();
        assert_eq!(look(&directory, &watch), at(&[]));
        let _unfinished = fs::File::create(path("d.yaml")).unwrap();
        assert_eq!(look(&directory, &watch), at(&[]), "it is empty");
    }

    #[test]
    fn what_is_no_file_is_looked_at_as_soon_as_it_is_there() {
        let (directory, watch) = watched();
        let path = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&path("p.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(look(&directory, &watch), at(&["p.yaml"]));
        let _socket = std::os::unix::net::UnixListener::bind(path("s.yaml")).unwrap();
        assert_eq!(look(&directory, &watch), at(&["s.yaml"]));
    }

    #[test]
    fn in_doubt_everything_is_looked_at() {
        let (directory, watch) = watched();
        let path = |name: &str| directory.path().join(name);
        for (what, make) in [
            (
                "a volume that is swapped",
                Box::new(|| symlink("..1", path("..data"))) as Box<dyn Fn() -> io::Result<()>>,
            ),
            ("a link", Box::new(|| symlink("..data/a.yaml", path("a.yaml")))),
            ("a directory", Box::new(|| fs::create_dir(path("d")))),
            ("many files", Box::new(|| (0..MAX_COLLECTED).try_for_each(|n| fs::write(path(&format!("{n}.yaml")), "")))),
        ] {
            make().unwrap();
            let mut events = Vec::new();
            while let Ok(more) = watch.inotify.read_events() {
                events.extend(more);
            }
            assert_eq!(what_to_look_at(&events, directory.path()), Some(Look::Everywhere), "{what}");
        }
    }

    #[test]
    fn a_directory_that_goes_is_told_from_one_that_changes() {
        let (directory, watch) = watched();
        let path = directory.path().join("inner");
        fs::create_dir(&path).unwrap();
        assert_eq!(look(&directory, &watch), Some(Look::Everywhere));
        let inner = Watch::new(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        assert_eq!(what_to_look_at(&inner.take().unwrap(), &path), None);
    }

    #[test]
    fn what_was_found_twice_is_read_once() {
        let at = |names: &[&str]| Look::At(names.iter().map(|name| (*name).into()).collect());
        assert_eq!(at(&["a"]).and(at(&["b", "a"])), at(&["a", "b"]));
        assert_eq!(at(&["a"]).and(Look::Everywhere), Look::Everywhere);
        let many: BTreeSet<OsString> = (0..MAX_COLLECTED).map(|n| n.to_string().into()).collect();
        assert_eq!(Look::At(many).and(at(&["a"])), Look::Everywhere);
    }
}
