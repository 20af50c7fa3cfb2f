//! What earlier agents left of other datapaths.
//!
//! They would go on serving what they had. They go once the new datapath serves, so that there is no gap.

use std::{path::PathBuf, time::Duration};

use lb_core::time::Instant;

use crate::driver::DatapathKind;
use crate::host::{
    owner::Owner,
    state_dir::{Record, StateDir, Used},
};

/// How long until a clean-up that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Datapaths to clean up, and the state directory that remembers them.
pub(crate) struct Leftovers {
    state_dir: StateDir,
    socket: PathBuf,
    left: Vec<Used>,
    /// Kinds that are not built in.
    kinds: Vec<DatapathKind>,
    due: Instant,
}

impl Leftovers {
    pub(crate) fn new(state_dir: StateDir, socket: PathBuf, left: Vec<Used>, kinds: Vec<DatapathKind>) -> Self {
        Self { state_dir, socket, left, kinds, due: Instant::default() }
    }

    /// When to try, unless everything is clean.
    pub(crate) fn due(&self) -> Option<Instant> {
        (!self.left.is_empty()).then_some(self.due)
    }

    /// Cleans up what can be, and says of the rest what to do.
    pub(crate) fn clean(&mut self, now: Instant) -> Option<String> {
        let mut problems = Vec::new();
        for used in std::mem::take(&mut self.left) {
            match self.remove(&used) {
                Ok(()) => tracing::warn!(
                    datapath = %used.datapath,
                    pin_dir = used.pin_dir.as_ref().map(|path| path.display().to_string()),
                    "cleaned up the datapath of an earlier agent"
                ),
                Err(error) => {
                    let how = self.advice(&used);
                    tracing::warn!(left = %used, error, how, "the datapath of an earlier agent cannot be cleaned up");
                    problems.push(format!("datapath {used} still serves what it had: {error}; {how}"));
                    self.left.push(used);
                }
            }
        }
        self.due = now + RETRY;
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    fn remove(&self, used: &Used) -> Result<(), String> {
        // Somebody may have cleaned it up by hand meanwhile.
        let record = Record::read(self.state_dir.path()).map_err(|error| lb_core::error::report(&error))?;
        if !record.used.contains(used) {
            return Ok(());
        }
        let kind = used.kind_among(&self.kinds).ok_or("this agent does not have that kind of datapath")?;
        let _owner = Owner::claim(kind).map_err(|error| lb_core::error::report(&error))?;
        kind.cleanup(used.pin_dir()).map_err(|error| error.report())?;
        Record::forget(self.state_dir.path(), used).map_err(|error| lb_core::error::report(&error))
    }

    /// What a user can do. `lb cleanup` knows the kinds that are built in.
    fn advice(&self, used: &Used) -> String {
        if used.kind().is_none() {
            return format!("run an agent that has the kind {}, and let it clean up", used.datapath);
        }
        let pin_dir = used.pin_dir.as_ref().map(|path| format!(" --pin-dir {}", path.display())).unwrap_or_default();
        let (state_dir, socket) = (self.state_dir.path().display(), self.socket.display());
        format!(
            "run `lb cleanup --force --datapath {}{pin_dir} --state-dir {state_dir} --socket {socket}`",
            used.datapath
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::driver;

    #[test]
    fn what_cannot_be_removed_says_what_to_run_and_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = StateDir::claim(&directory.path().join("state")).unwrap();
        // A directory, but on no BPF file system.
        let pin_dir = directory.path().join("pins");
        std::fs::create_dir(&pin_dir).unwrap();
        state_dir.begin(&Used::new(driver::EBPF, Some(&pin_dir)), true).unwrap();
        let left = state_dir.begin(&Used::new(driver::MEMORY, None), false).unwrap();
        let mut leftovers = Leftovers::new(state_dir, "/s".into(), left, Vec::new());
        let problem = leftovers.clean(Instant::default()).unwrap();
        let command = format!("`lb cleanup --force --datapath ebpf --pin-dir {} ", pin_dir.display());
        assert!(problem.contains(&command) && problem.contains("BPF file system"), "{problem}");
        assert_eq!(leftovers.due(), Some(Instant::default() + RETRY));
        std::fs::remove_dir(&pin_dir).unwrap();
        assert_eq!((leftovers.clean(Instant::default()), leftovers.due()), (None, None));
        assert!(Record::read(Path::new(&directory.path().join("state"))).unwrap().used.is_empty());
    }
}
