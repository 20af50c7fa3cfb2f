//! The network namespace that a datapath belongs to.

use std::{fs::File, io, os::unix::fs::MetadataExt as _, thread};

use nix::sched::{CloneFlags, setns};

/// Path of the calling thread's own; `/proc/self` would be the main thread's.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// A network namespace, kept open.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// That of the calling thread.
    pub(crate) fn current() -> io::Result<Self> {
        File::open(CURRENT).map(Self)
    }

    /// Runs `work` in the namespace: on the calling thread if that is in it, otherwise on a new thread, which needs the
    /// privilege to enter. Fails if it cannot enter.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        if self.is_current()? {
            return Ok(work());
        }
        let entered = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        thread::scope(|scope| {
            scope
                .spawn(entered)
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
        })
    }

    fn is_current(&self) -> io::Result<bool> {
        let (own, current) = (self.0.metadata()?, std::fs::metadata(CURRENT)?);
        Ok((own.dev(), own.ino()) == (current.dev(), current.ino()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_in_the_current_namespace_stays_on_its_thread() {
        let here = thread::current().id();
        let there = Namespace::current().unwrap().within(|| thread::current().id()).unwrap();
        assert_eq!(here, there);
    }
}
