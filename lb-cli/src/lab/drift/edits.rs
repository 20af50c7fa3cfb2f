//! What other tools do to a datapath here.

use lb_agent::driver::{DatapathKind, lab::ForeignEdit};

/// What can be done to a datapath here, and what cannot for want of a program.
pub(super) fn edits(kind: DatapathKind) -> (Vec<ForeignEdit>, Vec<String>) {
    let (can, cannot): (Vec<ForeignEdit>, Vec<ForeignEdit>) =
        kind.lab().edits.iter().partition(|edit| is_installed(edit.program));
    let left_out =
        cannot.iter().map(|edit| format!("{kind}, {}: left out, {} is not installed", edit.name, edit.program));
    (can, left_out.collect())
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|path| path.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use lb_agent::driver;

    use super::*;

    #[test]
    fn memory_is_nobody_elses_to_edit() {
        assert_eq!(edits(driver::MEMORY).0.len(), 0);
    }
}
