//! A client that connects and asks all the time until another group of servers answers.
//!
//! Cgroup hooks see processes, so it is one of its own: this program, started again under another name.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use lb_agent::driver::DatapathKind;
use lb_testkit::lab::{Netns, Node, Program};
use nix::{
    libc,
    sched::{CloneFlags, setns},
    sys::socket::{setsockopt, sockopt},
    time::{ClockId, clock_gettime},
};

use super::{
    error::{CompareError, Result, system},
    subject::Committed,
    world::Group,
};
use crate::output;

/// Name of the process.
const MARK: &str = "lb-compare-probe";
/// How long a change may take to have an effect, and how long a probe lives at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one connection may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A client that waits for a change.
#[derive(Debug)]
pub(super) struct Probe {
    program: Program,
    kind: DatapathKind,
}

/// What a client saw of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    /// From the event to the end of the first `connect` to one of the new servers.
    pub(super) after: Duration,
    /// Requests that failed meanwhile.
    pub(super) failures: u64,
}

impl Probe {
    /// Starts asking `to` from a pod's namespace, in its node's cgroup; returns when servers of `group` answer.
    pub(super) fn start(
        kind: DatapathKind,
        node: Node<'_>,
        netns: &Netns,
        to: SocketAddr,
        group: Group,
    ) -> Result<Self> {
        let executable = std::env::current_exe().map_err(system("finding this program"))?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
        let mut command = Command::new(executable);
        command.arg0(MARK).args([path, to.to_string()]);
        let probe = Self { program: node.spawn(command)?, kind };
        match probe.program.wait_for_line(PATIENCE, |line| line == Seen::From(group.letter()).to_string()) {
            Some(_) => Ok(probe),
            None => Err(probe.no_effect()),
        }
    }

    /// Waits for the effect of a change that led to `group`.
    pub(super) fn effect(self, committed: Committed, group: Group) -> Result<Effect> {
        let line = self.program.wait_for_line(PATIENCE, |line| line.starts_with("to "));
        match line.as_deref().and_then(Seen::parse) {
            Some(Seen::To { letter, at, failures }) if letter == group.letter() => {
                Ok(Effect { after: at.saturating_sub(committed.event), failures })
            }
            _ => Err(self.no_effect()),
        }
    }

    fn no_effect(&self) -> CompareError {
        let said = format!("the client said {:?}", self.program.output());
        CompareError::NoEffect { datapath: self.kind, waited: PATIENCE, said }
    }
}

/// Time that is the same for every process of the machine.
pub(super) fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).expect("Linux always has a monotonic clock")
}

/// Turns this process into a probe if it was started as one.
pub(crate) fn run_if_probe() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    if arguments.next()? != MARK {
        return None;
    }
    Some(match run(arguments.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::say(format_args!("{MARK}: {error}"));
            ExitCode::FAILURE
        }
    })
}

fn run(arguments: Vec<OsString>) -> io::Result<()> {
    let [netns, to] = arguments.as_slice() else { return Err(io::Error::other("two arguments are needed")) };
    let to = to.to_string_lossy().parse().map_err(io::Error::other)?;
    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    let start = Instant::now();
    let mut seen = None;
    let mut failures = 0;
    while start.elapsed() < PATIENCE {
        match (ask(to), seen) {
            (Err(_), _) => failures += u64::from(seen.is_some()),
            (Ok((_, letter)), None) => {
                println!("{}", Seen::From(letter));
                seen = Some(letter);
            }
            (Ok((at, letter)), Some(before)) if letter != before => {
                println!("{}", Seen::To { letter, at, failures });
                return Ok(());
            }
            (Ok(_), Some(_)) => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "nothing changed"))
}

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Servers of this group answer.
    From(char),
    /// Now servers of another group do.
    To { letter: char, at: Duration, failures: u64 },
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::From(letter) => write!(f, "from {letter}"),
            Self::To { letter, at, failures } => write!(f, "to {letter} {} {failures}", at.as_nanos()),
        }
    }
}

impl Seen {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (kind, letter) = (words.next()?, words.next()?.chars().next()?);
        match kind {
            "from" => Some(Self::From(letter)),
            "to" => Some(Self::To {
                letter,
                at: Duration::from_nanos(words.next()?.parse().ok()?),
                failures: words.next()?.parse().ok()?,
            }),
            _ => None,
        }
    }
}

/// Connects, asks who answers, and resets. When the connection stood, and the first letter of the server's name.
fn ask(to: SocketAddr) -> io::Result<(Duration, char)> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    let at = monotonic();
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: last\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => answer.extend_from_slice(&buffer[..length]),
        }
        if let Some(letter) = server(&answer) {
            return Ok((at, letter));
        }
    }
}

/// First letter of the server's name, once that has come.
fn server(answer: &[u8]) -> Option<char> {
    let text = String::from_utf8_lossy(answer);
    text.split_once("Hostname: ")?.1.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_probe_says_is_understood() {
        for seen in [Seen::From('a'), Seen::To { letter: 'b', at: Duration::from_nanos(12_345), failures: 2 }] {
            assert_eq!(Seen::parse(&seen.to_string()), Some(seen));
        }
        assert_eq!(Seen::parse("to b"), None);
        assert_eq!(Seen::parse(""), None);
    }

    #[test]
    fn the_server_is_known_once_its_name_has_come() {
        assert_eq!(server(b"HTTP/1.1 200 OK\r\n\r\nHostname: "), None);
        assert_eq!(server(b"HTTP/1.1 200 OK\r\n\r\n\nHostname: a-3\n"), Some('a'));
    }
}
