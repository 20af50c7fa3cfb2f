//! Keeps the file of the ledger up to date, and knows when it is not.

use std::time::Duration;

use lb_core::time::Backoff;
use lb_ipam::{MemoryLedger, Timestamp};

use super::{assignments::Assignments, ledger::LedgerFile, stored::Remembered};

/// After a write that failed.
const BACKOFF: Backoff<Timestamp> = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// The file, and whether it lacks something.
#[derive(Debug)]
pub(super) struct LedgerWriter {
    /// `None` if the ledger is only in memory.
    file: Option<LedgerFile>,
    is_behind: bool,
    /// Those that the file has: see [`Assignments::sightings`].
    sightings: u64,
    backoff: Backoff<Timestamp>,
    /// Why the last write failed.
    problem: Option<String>,
}

impl LedgerWriter {
    /// For a file that has everything so far.
    pub(super) fn new(file: LedgerFile) -> Self {
        Self { file: Some(file), is_behind: false, sightings: 0, backoff: BACKOFF, problem: None }
    }

    /// For a ledger that nobody keeps.
    pub(super) fn to_nowhere() -> Self {
        Self { file: None, is_behind: false, sightings: 0, backoff: BACKOFF, problem: None }
    }

    /// Writes what the file lacks, since `is_changed` or before. Whether it lacks nothing now.
    pub(super) fn write(&mut self, assignments: &Assignments, is_changed: bool, now: Timestamp) -> bool {
        let Some(file) = &self.file else { return true };
        self.is_behind |= is_changed || self.sightings != assignments.sightings();
        if !self.is_behind {
            return true;
        }
        match file.write(assignments.allocator().ledger(), assignments.first_seen()) {
            Ok(()) => {
                self.backoff.reset();
                if self.problem.take().is_some() {
                    tracing::info!("writing the ledger of addresses succeeds again");
                }
                self.is_behind = false;
                self.sightings = assignments.sightings();
            }
            Err(error) => {
                let delay = self.backoff.fail(now);
                let problem = format!(
                    "{error}: services keep the addresses that they have, and get no new ones until it can be written"
                );
                tracing::warn!(problem, again_in = ?delay, "the ledger of addresses cannot be written");
                self.problem = Some(problem);
            }
        }
        !self.is_behind
    }

    /// The ledger on the disk, as far as it can be read.
    pub(super) fn written(&self) -> MemoryLedger {
        let Some(file) = &self.file else { return MemoryLedger::default() };
        let read = file.read().unwrap_or_else(|error| {
            tracing::warn!(error = lb_core::error::report(&error), "the ledger of addresses cannot be read back");
            Remembered::default()
        });
        read.ledger
    }

    /// When to try again, while the file is behind.
    pub(super) fn again(&self) -> Option<Timestamp> {
        self.backoff.until()
    }

    /// Why the file is behind.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use lb_ipam::{Edit, Ledger, Pool, Request, Settings};

    use super::*;

    #[test]
    fn what_cannot_be_written_is_tried_again_later_and_later() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LedgerWriter::new(LedgerFile::in_directory(directory.path()));
        let blocker = directory.path().join("ledger.json.new");
        fs::create_dir(&blocker).unwrap();
        let mut assignments = Assignments::new(Settings::default(), Remembered::default());
        let mut now = Timestamp::from_secs(1000);
        assert!(writer.write(&assignments, false, now) && writer.again().is_none(), "there is nothing to write");
        let edits = vec![
            Edit::UpsertPool(Pool::new("p", &["192.0.2.1/32"])),
            Edit::UpsertService(Request::new("default", "web")),
        ];
        let _ = assignments.take(edits, &[], now);
        assert_eq!(assignments.settle(now).ledger_writes, 1);
        let mut waits = Vec::new();
        for _ in 0..7 {
            assert!(!writer.write(&assignments, true, now));
            let again = writer.again().unwrap();
            waits.push((again.as_millis() - now.as_millis()) / 1000);
            now = again;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert!(writer.problem().unwrap().contains("ledger.json.new: "), "{:?}", writer.problem());
        assert_eq!(writer.written(), MemoryLedger::default());
        fs::remove_dir(&blocker).unwrap();
        assert!(writer.write(&assignments, false, now), "what could not be written still has to be");
        assert_eq!((writer.again(), writer.problem()), (None, None));
        assert!(writer.written().entries().eq(assignments.allocator().ledger().entries()));
    }
}
