//! What earlier agents left of other datapaths.
//!
//! They would go on serving what they had. They go once the new datapath serves, so that there is no gap.

use std::path::{Path, PathBuf};

use crate::driver::DatapathKind;
use crate::host::{
    cleanup::{Cleaned, clean_up},
    state_dir::{Record, Used},
};

/// Datapaths to clean up, and the state directory that remembers them.
pub(crate) struct Leftovers {
    state_dir: PathBuf,
    socket: PathBuf,
    left: Vec<Used>,
    /// Kinds that are not built in.
    kinds: Vec<DatapathKind>,
}

impl Leftovers {
    pub(crate) fn new(state_dir: &Path, socket: &Path, left: Vec<Used>, kinds: Vec<DatapathKind>) -> Self {
        Self { state_dir: state_dir.into(), socket: socket.into(), left, kinds }
    }

    /// Those that are not cleaned up.
    pub(crate) fn left(&self) -> &[Used] {
        &self.left
    }

    /// Cleans up what can be, and says of the rest what to do.
    pub(crate) fn clean(&mut self) -> Option<String> {
        let mut problems = Vec::new();
        for used in std::mem::take(&mut self.left) {
            if let Err(problem) = self.remove(&used) {
                problems.push(problem);
                self.left.push(used);
            }
        }
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    fn remove(&self, used: &Used) -> Result<(), String> {
        let serves = |why: String, how: String| format!("datapath {used} still serves what it had: {why}; {how}");
        let failed = |why: String| serves(why, self.command(used));
        // Somebody may have cleaned it up by hand meanwhile.
        let record = Record::read(&self.state_dir).map_err(|error| failed(lb_core::error::report(&error)))?;
        if !record.used.contains(used) {
            return Ok(());
        }
        let Some(kind) = used.kind_among(&self.kinds) else {
            let how = format!("run an agent that has the kind {}, and let it clean up", used.datapath);
            return Err(serves("this agent does not have that kind of datapath".into(), how));
        };
        match clean_up(used, kind, false) {
            Cleaned::Removed(what) => {
                let removed = what.join(", ");
                tracing::warn!(datapath = %used, removed, "cleaned up the datapath of an earlier agent");
            }
            Cleaned::Absent(why) => {
                let why = why.as_deref().unwrap_or("nothing of it is there");
                tracing::info!(datapath = %used, why, "forgot the datapath of an earlier agent");
            }
            Cleaned::Failed(why) => return Err(failed(why)),
            Cleaned::NotInspected { why, namespace } => {
                let command = match &namespace {
                    Some(path) => format!("run `nsenter --net={} {}`", path.display(), self.cleanup(used)),
                    None => {
                        format!("run `{}` where it is, or, if it is gone for good, with --forget", self.cleanup(used))
                    }
                };
                return Err(format!("datapath {used} may still serve what it had: {why}; {command}"));
            }
        }
        Record::forget(&self.state_dir, used).map_err(|error| failed(lb_core::error::report(&error)))
    }

    fn command(&self, used: &Used) -> String {
        if used.kind().is_none() {
            return "let an agent that has that kind clean up".into();
        }
        format!("run `{}`", self.cleanup(used))
    }

    /// What a user can do. `lb cleanup` knows the kinds that are built in.
    fn cleanup(&self, used: &Used) -> String {
        let pin_dir = used.pin_dir.as_ref().map(|path| format!(" --pin-dir {}", path.display())).unwrap_or_default();
        let (state_dir, socket) = (self.state_dir.display(), self.socket.display());
        format!("lb cleanup --force --datapath {}{pin_dir} --state-dir {state_dir} --socket {socket}", used.datapath)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        driver,
        host::{place::Place, state_dir::StateDir},
    };

    fn leftovers(used: &Used) -> (tempfile::TempDir, Leftovers) {
        let directory = tempfile::tempdir().unwrap();
        let mut state_dir = StateDir::claim(directory.path()).unwrap();
        state_dir.begin(used, true).unwrap();
        let left = state_dir.begin(&Used::new(driver::MEMORY, None), false).unwrap().others;
        let leftovers = Leftovers::new(directory.path(), Path::new("/s"), left, Vec::new());
        (directory, leftovers)
    }

    #[test]
    fn what_cannot_be_seen_is_neither_removed_nor_forgotten_and_says_what_to_run() {
        let pins = tempfile::tempdir().unwrap();
        // On no BPF file system, as where `ip netns exec` hides it.
        let pin_dir = pins.path().join("pins");
        let (directory, mut leftovers) = leftovers(&Used::here(driver::EBPF, Some(&pin_dir)));
        let problem = leftovers.clean().unwrap();
        let command = format!("`lb cleanup --force --datapath ebpf --pin-dir {} ", pin_dir.display());
        assert!(problem.contains(&command) && problem.contains("does not see the BPF file system"), "{problem}");
        assert_eq!(Record::read(directory.path()).unwrap().used.len(), 1);
        assert_eq!(leftovers.left().len(), 1);
    }

    #[test]
    fn what_did_not_survive_the_boot_is_forgotten() {
        let here = Used::here(driver::NFTABLES, None);
        let place = Place { boot_id: "before".into(), ..here.place.clone().unwrap() };
        let (directory, mut leftovers) = leftovers(&Used { place: Some(place), ..here });
        assert_eq!((leftovers.clean(), leftovers.left()), (None, &[][..]));
        assert!(Record::read(directory.path()).unwrap().used.is_empty());
    }
}
