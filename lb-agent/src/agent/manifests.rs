//! The manifest directory, watched.

use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::mpsc::Sender,
    thread,
    time::Duration,
};

use lb_core::SourceName;
use lb_k8s::Manifests;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent},
};

use super::Event;

/// How long events are collected after the first one.
const COALESCE: Duration = Duration::from_millis(1);
/// How long until a directory that is gone is looked for again.
const ABSENCE: Duration = Duration::from_millis(500);

/// Why the manifests cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error("{0}: not a directory; give the directory that holds the manifests")]
    NotDirectory(PathBuf),
    #[error("the manifest directory {directory} cannot be watched")]
    Directory { directory: PathBuf, source: io::Error },
    #[error("watching files failed (the limit may be raised by `sysctl fs.inotify.max_user_instances`)")]
    Inotify(#[source] io::Error),
}

/// The source that manifests are.
pub(super) fn source() -> SourceName {
    SourceName("manifests".into())
}

/// Reads the directory now and whenever something in it changed.
pub(super) fn watch(directory: &Path, events: Sender<Event>) -> Result<(), WatchError> {
    let mut watch = Watch::new(directory)?;
    let mut manifests = Manifests::new(source());
    let directory = directory.to_path_buf();
    let follow = move || {
        loop {
            if events.send(Event::Manifests(manifests.reload(std::slice::from_ref(&directory)))).is_err() {
                return;
            }
            if let Err(error) = watch.wait(&directory, &events) {
                // Nobody listens when the agent is on its way out already.
                let _ = events.send(Event::WatchFailed(error.to_string()));
                return;
            }
        }
    };
    thread::Builder::new().name("manifests".into()).spawn(follow).map_err(WatchError::Inotify)?;
    Ok(())
}

struct Watch {
    inotify: Inotify,
}

impl Watch {
    fn new(directory: &Path) -> Result<Self, WatchError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|error| WatchError::Inotify(error.into()))?;
        let watch = Self { inotify };
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
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        self.inotify.add_watch(directory, interest).map(drop).map_err(io::Error::from)
    }

    /// Blocks until something changed that readers would notice.
    fn wait(&mut self, directory: &Path, events: &Sender<Event>) -> io::Result<()> {
        loop {
            self.poll(PollTimeout::NONE)?;
            let mut found = self.take()?;
            if !found.iter().any(|event| matters(event, directory)) {
                continue;
            }
            while self.poll(PollTimeout::try_from(COALESCE).unwrap_or(PollTimeout::ZERO))? && found.len() < 1000 {
                found.extend(self.take()?);
            }
            if found.iter().any(|event| is_end(event.mask)) {
                self.start_again(directory, events)?;
            }
            return Ok(());
        }
    }

    /// The directory is another one now, or gone for the time being.
    fn start_again(&mut self, directory: &Path, events: &Sender<Event>) -> io::Result<()> {
        self.inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut gone = false;
        while let Err(error) = self.add(directory) {
            if !std::mem::replace(&mut gone, true) {
                let problem = format!("{} cannot be read ({error}): the last good state stays", directory.display());
                // Nobody listens when the agent is on its way out already.
                let _ = events.send(Event::Directory(Some(problem)));
            }
            thread::sleep(ABSENCE);
        }
        let _ = events.send(Event::Directory(None));
        Ok(())
    }

    fn take(&self) -> io::Result<Vec<InotifyEvent>> {
        match self.inotify.read_events() {
            Ok(events) => Ok(events),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn poll(&self, timeout: PollTimeout) -> io::Result<bool> {
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

/// Hidden files are drafts of editors, except for those that begin with two dots: `..data` is how the kubelet swaps a
/// whole volume. A file that was just created is still empty, unless it is a link to a complete one.
fn matters(event: &InotifyEvent, directory: &Path) -> bool {
    let Some(name) = event.name.as_deref() else { return true };
    let bytes = name.as_encoded_bytes();
    if bytes.starts_with(b".") && !bytes.starts_with(b"..") {
        return false;
    }
    if !event.mask.contains(AddWatchFlags::IN_CREATE) {
        return true;
    }
    let found = fs::symlink_metadata(directory.join(name));
    found.is_ok_and(|found| found.is_symlink() || (found.is_file() && found.nlink() > 1))
}
