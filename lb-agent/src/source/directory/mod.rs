//! A directory of manifests, watched.
//!
//! The kernel says which names change; only those files are read again, so that a change costs the same among ten files
//! and among ten thousand. In doubt everything is looked at: when events were lost, when a link or a directory is
//! involved, when a volume is swapped (`..data`), and once in a while whatever the kernel says.

mod watch;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

pub use self::watch::WatchError;
use self::watch::{Heard, Look, Watch};
use super::{Grant, News, Preview, Source, SourceError, Waker};
use lb_core::{
    model::Change,
    name::{ServiceName, SourceName},
    node::NodeFacts,
};
use lb_ipam::Status;
use lb_k8s::{Batch, Manifests, Origin, Snapshot};

/// How long until a directory that is gone is looked for again.
const ABSENCE: Duration = Duration::from_millis(500);
/// A directory of Kubernetes manifests as a source.
///
/// It holds the last good state: what is rejected as a whole changes nothing, and a file that cannot be read holds what
/// it held before while every other file takes effect.
pub struct ManifestDirectory {
    name: SourceName,
    directory: PathBuf,
    manifests: Manifests,
    /// What the thread that watches found, and has not been read.
    unread: Arc<Mutex<Unread>>,
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
        }
    }

    /// Where the service of this name stands.
    pub(crate) fn origin(&self, service: &ServiceName) -> Option<&Origin> {
        self.manifests.service_origin(service)
    }

    fn read(&mut self, look: &Look) -> Batch {
        match look {
            Look::At(names) => {
                let files: Vec<_> = names.iter().map(|name| self.directory.join(name)).collect();
                self.manifests.reload_files(&files)
            }
            Look::Everywhere => self.manifests.reload(&[&self.directory]),
        }
    }
}

impl Source for ManifestDirectory {
    fn name(&self) -> SourceName {
        self.name.clone()
    }

    fn set_node(&mut self, node: &NodeFacts) {
        self.manifests = Manifests::new(self.name.clone()).allocating().on_node(node.name.clone());
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
        // Only what differs from before is logged, so that it may be said again.
        let report = Some(report);
        News { changes, edits, report, conditions }
    }

    fn reload(&mut self) {
        lock(&self.unread).look = Some(Look::Everywhere);
    }

    fn grant(&mut self, grants: &[Grant]) -> Vec<Change> {
        self.manifests.grant(grants.iter().map(|grant| (grant.service.clone(), grant.addresses.clone())))
    }

    /// Nobody else reads the files, and they are their owner's.
    fn publish(&mut self, _: &[(ServiceName, Status)]) {}

    fn preview(&self, file: &str, text: &str) -> Option<Result<Preview, String>> {
        let snapshot = match Snapshot::parse_readable(file, text) {
            Ok(snapshot) => snapshot,
            Err(error) => return Some(Err(lb_core::error::report(&error))),
        };
        let lb_k8s::Preview { edits, report } = self.manifests.preview(&snapshot);
        // Of a text that is not read at all there is nothing to show.
        let of_all = report.unread.iter().map(|unread| &unread.error).find(|error| !error.is_about_an_object());
        Some(match report.rejected.as_ref().or(of_all) {
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
        self.watch.restart()?;
        let mut gone = false;
        while let Err(error) = self.watch.add(&self.directory) {
            if self.waker.is_closed() {
                return Ok(());
            }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
        let unread = source.poll();
        assert!(unread.changes.is_empty() && unread.report.unwrap().unread.len() == 1);
        fs::write(path("c.yaml"), service("c")).unwrap();
        assert!(woken_within(PATIENCE));
        assert_eq!(names(&source.poll()), ["default/c"], "a file that cannot be read holds no other back");
    }

    #[test]
    fn a_directory_that_is_not_there_stops_the_start() {
        let mut source = ManifestDirectory::new("/nonexistent/manifests");
        let error = source.start(Waker::detached().0).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/manifests"), "{error}");
    }
}
