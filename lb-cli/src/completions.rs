//! Completions that know the names of the agent's services and pools.
//!
//! The shell runs this program with the words of the command line after `--`; see [`clap_complete::CompleteEnv`].

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap_complete::{ArgValueCandidates, CompletionCandidate, env::Shells};
use lb_agent::api::Client;

use crate::{exit::Failure, reach::Reach};

/// The script for a shell.
pub(crate) fn script(shell: clap_complete::Shell) -> Result<Vec<u8>, Failure> {
    let name = shell.to_string();
    let shell = Shells::builtins().completer(&name).map(|shell| {
        let mut script = Vec::new();
        shell.write_registration("COMPLETE", "lb", "lb", "lb", &mut script).map(|()| script)
    });
    Ok(shell.ok_or_else(|| Failure::Error(format!("there are no completions for {name}")))??)
}

/// Names of services.
pub(crate) fn services() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(service_names(&agent())))
}

/// Names of pools.
pub(crate) fn pools() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let pools = agent().and_then(|client| client.pools().ok()).unwrap_or_default();
        candidates(pools.into_iter().map(|pool| pool.name).collect())
    })
}

/// Protocols, and names of services.
pub(crate) fn explained() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let mut names = service_names(&agent());
        names.extend(["tcp", "udp", "sctp"].map(String::from));
        candidates(names)
    })
}

fn service_names(client: &Option<Client>) -> Vec<String> {
    let services = client.as_ref().and_then(|client| client.services().ok()).unwrap_or_default();
    services.into_iter().map(|service| shortest(&service.name).to_owned()).collect()
}

/// A name without `default/`, which may be omitted.
fn shortest(name: &str) -> &str {
    name.strip_prefix("default/").unwrap_or(name)
}

fn candidates(names: Vec<String>) -> Vec<CompletionCandidate> {
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// How long a user waits for names. Short: the shell does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// The agent of the command line that is completed. Without one there are no names, and no error either.
fn agent() -> Option<Client> {
    let words = std::env::args_os().skip_while(|word| word != "--");
    let client = reach(words, |name| std::env::var_os(name)).client().ok()?;
    Some(client.with_patience(PATIENCE))
}

/// The flags of an unfinished command line, over the environment.
fn reach(words: impl Iterator<Item = OsString>, variable: impl Fn(&str) -> Option<OsString>) -> Reach {
    let words: Vec<OsString> = words.collect();
    let flag = |name: &str| -> Option<PathBuf> {
        let of = |(index, word): (usize, &OsString)| match word.to_str()?.strip_prefix(name)? {
            "" => words.get(index + 1).map(PathBuf::from),
            rest => rest.strip_prefix('=').map(PathBuf::from),
        };
        words.iter().enumerate().filter_map(of).next_back()
    };
    let given = |name: &str, variable_name: &str| flag(name).or_else(|| variable(variable_name).map(PathBuf::from));
    Reach { socket: given("--socket", "LB_SOCKET"), config: given("--config", "LB_CONFIG") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_that_of_the_command_line_or_of_the_environment() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>().into_iter();
        let nothing = |_: &str| None;
        let reached = |line: &str| reach(words(line), nothing).socket;
        assert_eq!(reached("-- lb service get --socket /a.sock"), Some("/a.sock".into()));
        assert_eq!(reached("-- lb --socket=/a.sock service get"), Some("/a.sock".into()));
        assert_eq!(reached("-- lb service get"), None);
        let from_variable =
            reach(words("-- lb service get --config /c"), |name| (name == "LB_SOCKET").then(|| "/b.sock".into()));
        assert_eq!(from_variable.socket, Some("/b.sock".into()));
        assert_eq!(from_variable.config, Some("/c".into()));
    }
}
