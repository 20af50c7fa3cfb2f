//! What the lab has to know about a kind of datapath: whether it runs without root, and how other tools disturb it.

use std::{collections::BTreeSet, io, net::SocketAddr, path::PathBuf, process::Command};

use super::DatapathKind;

/// What `lb lab` has to know about a kind of datapath.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct LabFacts {
    /// Whether it runs in a user namespace. Default: [`WithoutRoot::Never`].
    pub without_root: WithoutRoot,
    /// Whether a pod's sockets are translated, so that a pod whose sockets are not is a second path. Default: no.
    pub translates_sockets: bool,
    /// Programs that list its rules: `nft`, or names that end in `-save`. Default: none, it has no rules.
    pub rule_listers: &'static [&'static str],
    /// Program that prints its rules in the order in which packets pass them. Default: none, packets pass no list.
    pub rule_list: Option<&'static str>,
    /// What other tools do to it in `lb lab drift`. Default: nothing.
    pub edits: &'static [ForeignEdit],
    /// What others see of it: the same before an edit and after its repair. Default: nothing.
    pub seen: fn(&Scene) -> io::Result<BTreeSet<String>>,
}

impl Default for LabFacts {
    fn default() -> Self {
        Self {
            without_root: WithoutRoot::Never,
            translates_sockets: false,
            rule_listers: &[],
            rule_list: None,
            edits: &[],
            seen: |_| Ok(BTreeSet::new()),
        }
    }
}

/// Whether a datapath runs in a user namespace, where its user is root of nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WithoutRoot {
    /// It does not.
    Never,
    /// It does, whatever the number of services.
    Always,
    /// It does, and an update is one message that has to fit into the buffer of a socket.
    Buffer {
        /// Setting that bounds the buffer, as `sysctl` names it.
        sysctl: &'static str,
        /// Bytes that fit for each byte of the setting.
        factor: u64,
        /// Bytes of a service with four endpoints, rounded up.
        per_service: u64,
    },
}

/// Where edits are made. To be used in the network namespace of the node.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The datapath that is disturbed.
    pub kind: DatapathKind,
    /// Where it is pinned, if it is.
    pub pin_dir: PathBuf,
    /// IPv4 frontend of a service.
    pub frontend: SocketAddr,
}

/// One thing that another tool does.
#[derive(Clone, Copy)]
pub struct ForeignEdit {
    /// What it is called in reports.
    pub name: &'static str,
    /// The program that has to be installed.
    pub program: &'static str,
    /// Program and arguments for round `n`, found out before the clock starts. Rounds take their objects in turn.
    pub command: fn(&Scene, usize) -> io::Result<Vec<String>>,
}

/// Runs a program that must succeed, and returns what it prints.
///
/// # Errors
/// When it cannot be started or fails; the message has its standard error.
pub fn run(arguments: &[String]) -> io::Result<String> {
    let Some((program, rest)) = arguments.split_first() else { return Ok(String::new()) };
    let output = Command::new(program).args(rest).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", arguments.join(" "), said.trim())))
}

pub(super) fn words(line: &str) -> Vec<String> {
    line.split(' ').map(Into::into).collect()
}

/// One of those that there are, in turn.
pub(super) fn nth<T>(mut found: Vec<T>, round: usize, what: &str) -> io::Result<T> {
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no {what} to be edited")));
    }
    Ok(found.swap_remove(round % found.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_edited_takes_turns() {
        assert_eq!(nth(vec![1, 2], 3, "rule").ok(), Some(2));
        assert!(nth(Vec::<u8>::new(), 0, "rule").unwrap_err().to_string().contains("no rule"));
    }
}
