//! Completions that know the names of the agent's services and pools.
//!
//! The shell runs this program with the words of the command line after `--`; see [`clap_complete::CompleteEnv`].

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use clap_complete::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate, env::Shells};
use lb_agent::api::{Backend, Client, Frontend, Service};

use crate::{exit::Failure, names::full_name, reach::Reach};

/// The script for a shell.
pub(crate) fn script(shell: clap_complete::Shell) -> Result<Vec<u8>, Failure> {
    let name = shell.to_string();
    let shell = Shells::builtins().completer(&name).map(|shell| {
        let mut script = Vec::new();
        shell.write_registration("COMPLETE", "lb", "lb", "lb", &mut script).map(|()| script)
    });
    Ok(shell.ok_or_else(|| Failure::Error(format!("there are no completions for {name}")))??)
}

/// Names of services: of the namespace that the command line names, or with their namespaces.
pub(crate) fn services() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(service_names(&asked_services())))
}

/// Namespaces of services.
pub(crate) fn namespaces() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let services = asked_services();
        let namespaces = services.iter().filter_map(|service| service.name.split_once('/'));
        candidates(namespaces.map(|(namespace, _)| namespace.to_owned()).collect::<BTreeSet<_>>())
    })
}

/// Names of pools.
pub(crate) fn pools() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let pools = agent().and_then(|client| client.pools().ok()).unwrap_or_default();
        candidates(pools.into_iter().map(|pool| pool.name))
    })
}

/// Addresses of backends of the service that the command line names, or of every one.
pub(crate) fn backends() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let backends = agent().and_then(|client| client.backends().ok()).unwrap_or_default();
        let words: Vec<String> = line().iter().filter_map(|word| word.to_str()).map(named_service).collect();
        let is_named = |backend: &&Backend| words.contains(&backend.service);
        let all = || backends.iter();
        let addresses = |of: &mut dyn Iterator<Item = &Backend>| -> BTreeSet<String> {
            of.map(|backend| SocketAddr::new(backend.ip, backend.port).to_string()).collect()
        };
        let named = addresses(&mut all().filter(is_named));
        candidates(if named.is_empty() { addresses(&mut all()) } else { named })
    })
}

/// The service that a word may name.
fn named_service(word: &str) -> String {
    let name = word.split_once(':').map_or(word, |(name, _)| name);
    full_name(name, namespace(line().into_iter()).as_deref()).unwrap_or_default()
}

/// Protocols, names of services, and behind a name with a colon the ports of the service.
pub(crate) fn explained() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let Some(current) = current.to_str() else { return Vec::new() };
        let services = asked_services();
        let names: Vec<String> = match current.split_once(':') {
            Some((name, _)) => {
                let wanted = named_service(name);
                let service = services.iter().find(|service| service.name == wanted);
                let ports: BTreeSet<String> = service.into_iter().flat_map(|it| &it.frontends).map(port).collect();
                ports.into_iter().map(|port| format!("{name}:{port}")).collect()
            }
            None => service_names(&services).into_iter().chain(["tcp", "udp", "sctp"].map(String::from)).collect(),
        };
        candidates(names.into_iter().filter(|name| name.starts_with(current)))
    })
}

/// The name of a port, or its number.
fn port(frontend: &Frontend) -> String {
    if frontend.port_name.is_empty() { frontend.port.to_string() } else { frontend.port_name.clone() }
}

fn asked_services() -> Vec<Service> {
    agent().and_then(|client| client.services().ok()).unwrap_or_default()
}

fn service_names(services: &[Service]) -> Vec<String> {
    let namespace = namespace(line().into_iter());
    let name = |service: &Service| match &namespace {
        Some(namespace) => Some(service.name.strip_prefix(namespace)?.strip_prefix('/')?.to_owned()),
        None => Some(shortest(&service.name).to_owned()),
    };
    services.iter().filter_map(name).collect()
}

/// A name without `default/`, which may be omitted.
fn shortest(name: &str) -> &str {
    name.strip_prefix("default/").unwrap_or(name)
}

fn candidates(names: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// How long a user waits for names. Short: the shell does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// The agent of the command line that is completed. Without one there are no names, and no error either.
fn agent() -> Option<Client> {
    let client = reach(line().into_iter(), |name| std::env::var_os(name)).client().ok()?;
    Some(client.with_patience(PATIENCE))
}

/// The words of the command line that is completed.
fn line() -> Vec<OsString> {
    std::env::args_os().skip_while(|word| word != "--").skip(1).collect()
}

/// The namespace that an unfinished command line names.
fn namespace(words: impl Iterator<Item = OsString>) -> Option<String> {
    let words: Vec<OsString> = words.collect();
    let short = words.windows(2).filter(|pair| pair[0] == "-n").map(|pair| pair[1].clone()).next_back();
    let joined = || words.iter().filter_map(|word| word.to_str()?.strip_prefix("-n")).find(|rest| !rest.is_empty());
    let named = flag(&words, "--namespace").or(short).and_then(|word| word.into_string().ok());
    named.or_else(|| joined().map(|rest| rest.strip_prefix('=').unwrap_or(rest).to_owned()))
}

/// The value of a long flag.
fn flag(words: &[OsString], name: &str) -> Option<OsString> {
    let of = |(index, word): (usize, &OsString)| match word.to_str()?.strip_prefix(name)? {
        "" => words.get(index + 1).cloned(),
        rest => rest.strip_prefix('=').map(OsString::from),
    };
    words.iter().enumerate().filter_map(of).next_back()
}

/// The flags of an unfinished command line, over the environment.
fn reach(words: impl Iterator<Item = OsString>, variable: impl Fn(&str) -> Option<OsString>) -> Reach {
    let words: Vec<OsString> = words.collect();
    let given = |name: &str, variable_name: &str| {
        let variable = || variable(variable_name).filter(|value| !value.is_empty());
        flag(&words, name).or_else(variable).map(PathBuf::from)
    };
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
        assert_eq!(reach(words("lb status"), |_| Some("".into())).socket, None, "an empty variable is none");
    }

    #[test]
    fn the_namespace_is_that_of_the_last_flag() {
        let of = |line: &str| namespace(line.split(' ').map(OsString::from));
        assert_eq!(of("lb svc get -n shop "), Some("shop".into()));
        assert_eq!(of("lb svc get -nshop "), Some("shop".into()));
        assert_eq!(of("lb svc get --namespace=shop "), Some("shop".into()));
        assert_eq!(of("lb svc get web"), None);
    }
}
