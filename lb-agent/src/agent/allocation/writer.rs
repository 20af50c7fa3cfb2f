//! Keeps the file of the ledger up to date, and knows when it is not.

use std::time::Duration;

use lb_ipam::{Ledger, MemoryLedger, Timestamp};

use super::ledger::LedgerFile;

/// First wait after the ledger could not be written; it doubles up to [`MAX_RETRY_DELAY`].
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);

/// The file, and whether it lacks something.
#[derive(Debug)]
pub(super) struct LedgerWriter {
    file: LedgerFile,
    is_behind: bool,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    again: Timestamp,
    delay: Duration,
    problem: String,
}

impl LedgerWriter {
    /// For a file that was just read.
    pub(super) fn new(file: LedgerFile) -> Self {
        Self { file, is_behind: false, failure: None }
    }

    /// The ledger has something that the file lacks.
    pub(super) fn note_change(&mut self) {
        self.is_behind = true;
    }

    /// Writes what the file lacks. Whether it lacks nothing now.
    pub(super) fn write(&mut self, ledger: &impl Ledger, now: Timestamp) -> bool {
        if !self.is_behind {
            return true;
        }
        match self.file.write(ledger) {
            Ok(()) => {
                if self.failure.take().is_some() {
                    tracing::info!("the ledger of addresses is written again");
                }
                self.is_behind = false;
            }
            Err(error) => {
                let delay = self.failure.as_ref().map_or(MIN_RETRY_DELAY, |failure| failure.delay * 2);
                let delay = delay.min(MAX_RETRY_DELAY);
                let problem = format!(
                    "{}: {error}: services keep the addresses that they have, and get no new ones until it can be written",
                    self.file.path().display()
                );
                tracing::warn!(problem, again_in = ?delay, "the ledger of addresses cannot be written");
                self.failure = Some(Failure { again: now + delay, delay, problem });
            }
        }
        !self.is_behind
    }

    /// What is on the disk, as far as that can be told.
    pub(super) fn written(&self) -> MemoryLedger {
        self.file.read().unwrap_or_else(|error| {
            tracing::warn!(error = crate::exit::chain(&error), "the ledger of addresses cannot be read back");
            MemoryLedger::default()
        })
    }

    /// When to try again, while the file is behind.
    pub(super) fn again(&self) -> Option<Timestamp> {
        self.failure.as_ref().map(|failure| failure.again)
    }

    /// Why the file is behind.
    pub(super) fn problem(&self) -> Option<&str> {
        self.failure.as_ref().map(|failure| &*failure.problem)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use lb_core::ServiceName;
    use lb_ipam::{Entry, Holders};

    use super::*;

    #[test]
    fn what_cannot_be_written_is_tried_again_later_and_later() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LedgerWriter::new(LedgerFile::in_directory(directory.path()));
        let blocker = directory.path().join("ledger.json.new");
        fs::create_dir(&blocker).unwrap();
        let held = Entry::Held(Holders::one(ServiceName::new("default", "web")));
        let ledger: MemoryLedger = [("192.0.2.1".parse().unwrap(), held)].into_iter().collect();
        let mut now = Timestamp::from_secs(1000);
        assert!(writer.write(&ledger, now) && writer.again().is_none(), "there is nothing to write");
        writer.note_change();
        let mut waits = Vec::new();
        for _ in 0..7 {
            assert!(!writer.write(&ledger, now));
            let again = writer.again().unwrap();
            waits.push((again.as_millis() - now.as_millis()) / 1000);
            now = again;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert!(writer.problem().unwrap().contains("ledger.json: "), "{:?}", writer.problem());
        assert_eq!(writer.written(), MemoryLedger::default());
        fs::remove_dir(&blocker).unwrap();
        assert!(writer.write(&ledger, now));
        assert_eq!((writer.again(), writer.problem(), writer.written()), (None, None, ledger));
    }
}
