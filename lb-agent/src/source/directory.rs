//! A directory of manifests, watched.
//!
//! The kernel says which names change; only those files are read again, so that a change costs the same among ten files
//! and among ten thousand. In doubt everything is looked at: when events were lost, when a link or a directory is
//! involved, when a volume is swapped (`..data`), and once in a while whatever the kernel says.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fmt, fs, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lb_core::{
    model::Change,
    name::{ServiceName, SourceName},
};
use lb_ipam::Status;
use lb_k8s::{Batch, Manifests, Snapshot};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent},
};

use super::{Grant, News, Preview, Source, SourceError, Waker};

/// How long events are collected after the first one.
const COALESCE: Duration = Duration::from_millis(1);
/// How many events are collected at most; names beyond that are not remembered one by one.
const MAX_COLLECTED: usize = 1000;
/// How long until a directory that is gone is looked for again.
const ABSENCE: Duration = Duration::from_millis(500);
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

/// A directory of Kubernetes manifests as a source.
///
/// It holds the last good state: what cannot be read, or is rejected as a whole, changes nothing.
pub struct ManifestDirectory {
    name: SourceName,
    directory: PathBuf,
    manifests: Manifests,
    /// What the thread that watches found, and has not been read.
    unread: Arc<Mutex<Unread>>,
    was_rejected: bool,
}

impl fmt::Debug for ManifestDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManifestDirectory").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl ManifestDirectory {
    /// The directory as the source `manifests`. It must exist when the agent starts. Its files are read, those of
    /// subdirectories are not.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self::named("manifests", directory)
    }

    /// The same under another name, for an agent with several directories.
    #[must_use]
    pub fn named(name: &str, directory: impl Into<PathBuf>) -> Self {
        let name = SourceName(name.into());
        Self {
            manifests: Manifests::new(name.clone()).allocating(),
            name,
            directory: directory.into(),
            unread: Arc::new(Mutex::new(Unread { look: Some(Look::Everywhere), conditions: Vec::new() })),
            was_rejected: false,
        }
    }

    fn read(&mut self, look: &Look) -> Batch {
        match look {
            Look::At(names) => {
                let files: Vec<_> = names.iter().map(|name| self.directory.join(name)).collect();
                self.manifests.reload_files(&files)
            }
            Look::Everywhere | Look::Unasked => self.manifests.reload(&[&self.directory]),
        }
    }
}

impl Source for ManifestDirectory {
    fn name(&self) -> SourceName {
        self.name.clone()
    }

    fn start(&mut self, waker: Waker) -> Result<(), SourceError> {
        let watch = Watch::new(&self.directory)?;
        let mut follower =
            Follower { watch, directory: self.directory.clone(), unread: Arc::clone(&self.unread), waker };
        let follow = move || {
            if let Err(error) = follower.follow() {
                let directory = follower.directory.display();
                let problem = format!("the manifest directory {directory} is not watched: {error}");
                follower.report("ManifestsNotWatched", Some(problem));
            }
        };
        thread::Builder::new().name("manifests".into()).spawn(follow).map_err(WatchError::Inotify)?;
        Ok(())
    }

    fn poll(&mut self) -> News {
        let Unread { look, conditions } = std::mem::take(&mut *lock(&self.unread));
        let Some(look) = look else { return News { conditions, ..News::default() } };
        let Batch { changes, edits, report } = self.read(&look);
        let is_news = !changes.is_empty() || report.rejected.is_some() != self.was_rejected;
        self.was_rejected = report.rejected.is_some();
        let report = (is_news || look != Look::Unasked).then_some(report);
        News { changes, edits, report, conditions }
    }

    fn grant(&mut self, grants: &[Grant]) -> Vec<Change> {
        self.manifests.grant(grants.iter().map(|grant| (grant.service.clone(), grant.addresses.clone())))
    }

    /// Nobody else reads the files, and they are their owner's.
    fn publish(&mut self, _: &[(ServiceName, Status)]) {}

    fn preview(&self, file: &str, text: &str) -> Option<Result<Preview, String>> {
        let snapshot = match Snapshot::parse(file, text) {
            Ok(snapshot) => snapshot,
            Err(error) => return Some(Err(lb_core::error::report(&error))),
        };
        let lb_k8s::Preview { edits, report } = self.manifests.preview(&snapshot);
        Some(match &report.rejected {
            Some(error) => Err(lb_core::error::report(&**error)),
            None => Ok(Preview { edits, report }),
        })
    }

    fn place(&self) -> String {
        self.directory.display().to_string()
    }
}

/// What the thread that watches found since the last poll.
#[derive(Debug, Default)]
struct Unread {
    look: Option<Look>,
    conditions: Vec<(&'static str, Option<String>)>,
}

fn lock(found: &Mutex<Unread>) -> MutexGuard<'_, Unread> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What has to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    /// Files of these names.
    At(BTreeSet<OsString>),
    /// Whatever has changed.
    Everywhere,
    /// The same, although nothing was heard.
    Unasked,
}

impl Look {
    /// What has to be read for both.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::At(mut names), Self::At(more)) if names.len() + more.len() < MAX_COLLECTED => {
                names.extend(more);
                Self::At(names)
            }
            (Self::Unasked, Self::Unasked) => Self::Unasked,
            _ => Self::Everywhere,
        }
    }
}

/// The thread that watches.
struct Follower {
    watch: Watch,
    directory: PathBuf,
    unread: Arc<Mutex<Unread>>,
    waker: Waker,
}

impl Follower {
    /// Ends well when nobody listens any more.
    fn follow(&mut self) -> io::Result<()> {
        loop {
            let look = match self.watch.wait(&self.directory)? {
                Heard::Look(look) => look,
                Heard::Other(look) => {
                    self.start_again()?;
                    look
                }
            };
            {
                let mut found = lock(&self.unread);
                found.look = Some(match found.look.take() {
                    Some(before) => before.and(look),
                    None => look,
                });
            }
            if !self.waker.wake() {
                return Ok(());
            }
        }
    }

    /// A condition begins or ends.
    fn report(&self, kind: &'static str, problem: Option<String>) {
        lock(&self.unread).conditions.push((kind, problem));
        // Nobody listens when the agent is on its way out already.
        let _ = self.waker.wake();
    }

    /// The directory is another one now, or gone for the time being.
    fn start_again(&mut self) -> io::Result<()> {
        self.watch.inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut gone = false;
        while let Err(error) = self.watch.add(&self.directory) {
            if !std::mem::replace(&mut gone, true) {
                let directory = self.directory.display();
                let problem = format!("{directory} cannot be read ({error}): the last good state stays");
                self.report("ManifestsGone", Some(problem));
            }
            thread::sleep(ABSENCE);
        }
        if gone {
            self.report("ManifestsGone", None);
        }
        Ok(())
    }
}

/// What came of waiting.
enum Heard {
    /// This has to be read.
    Look(Look),
    /// The same, and the directory may be another one by now.
    Other(Look),
}

struct Watch {
    inotify: Inotify,
    /// When everything is looked at, though nothing was heard.
    silent_until: Instant,
}

impl Watch {
    fn new(directory: &Path) -> Result<Self, WatchError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|error| WatchError::Inotify(error.into()))?;
        let watch = Self { inotify, silent_until: Instant::now() + LONGEST_SILENCE };
        watch.add(directory).map_err(|source| match source.kind() {
            io::ErrorKind::NotADirectory => WatchError::NotDirectory(directory.into()),
            _ => WatchError::Directory { directory: directory.into(), source },
        })?;
        Ok(watch)
    }

    fn add(&self, directory: &Path) -> io::Result<()> {
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
    fn wait(&mut self, directory: &Path) -> io::Result<Heard> {
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
                return Ok(Heard::Other(Look::Unasked));
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
/// whole volume. A file that was just created is still empty, unless it is a link to a complete one; a pipe, a socket or a
/// device is what it is, and nothing else may ever be heard of it.
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

    const PATIENCE: Duration = Duration::from_secs(20);

    fn names(news: &News) -> Vec<String> {
        let upserted = news.changes.iter().filter_map(|change| match change {
            Change::UpsertService(service) => Some(service.name.to_string()),
            _ => None,
        });
        upserted.collect()
    }

    fn service(name: &str) -> String {
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: 80}}]}}}}")
    }

    #[test]
    fn a_directory_is_a_source_that_wakes_when_a_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("a.yaml"), service("a")).unwrap();
        let mut source = ManifestDirectory::new(directory.path());
        let (waker, mut woken_within) = Waker::detached();
        source.start(waker).unwrap();
        let first = source.poll();
        assert_eq!(
            (names(&first), first.changes.last()),
            (vec!["default/a".into()], Some(&Change::InitDone(source.name())))
        );
        assert!(source.poll().is_empty(), "nothing happened since");
        fs::write(path("b.yaml"), service("b")).unwrap();
        assert!(woken_within(PATIENCE));
        assert_eq!(names(&source.poll()), ["default/b"]);
        fs::write(path("b.yaml"), "{").unwrap();
        assert!(woken_within(PATIENCE));
        let rejected = source.poll();
        assert!(rejected.changes.is_empty() && rejected.report.unwrap().rejected.is_some());
    }

    #[test]
    fn a_directory_that_is_not_there_stops_the_start() {
        let mut source = ManifestDirectory::new("/nonexistent/manifests");
        let error = source.start(Waker::detached().0).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/manifests"), "{error}");
    }

    #[test]
    fn what_was_found_twice_is_read_once() {
        let at = |names: &[&str]| Look::At(names.iter().map(|name| (*name).into()).collect());
        assert_eq!(at(&["a"]).and(at(&["b", "a"])), at(&["a", "b"]));
        assert_eq!(Look::Unasked.and(Look::Unasked), Look::Unasked);
        assert_eq!(at(&["a"]).and(Look::Unasked), Look::Everywhere);
        let many: BTreeSet<OsString> = (0..MAX_COLLECTED).map(|n| n.to_string().into()).collect();
        assert_eq!(Look::At(many).and(at(&["a"])), Look::Everywhere);
    }
}
