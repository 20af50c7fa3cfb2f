//! An agent of its own in a directory of its own, and the program asking it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{lb, text};

/// How long anything may take on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(20);

/// Directories of a node, removed with it, and the agent that runs there.
pub(crate) struct Node {
    directory: TempDir,
    agent: Option<Child>,
}

impl Node {
    /// A node without an agent, with these manifests.
    pub(crate) fn new(manifests: &[(&str, &str)]) -> Self {
        let node = Self { directory: tempfile::tempdir().unwrap(), agent: None };
        fs::create_dir(node.path("manifests")).unwrap();
        for (name, text) in manifests {
            node.put(name, text);
        }
        node
    }

    /// A node whose agent is ready.
    pub(crate) fn running(manifests: &[(&str, &str)]) -> Self {
        let mut node = Self::new(manifests);
        node.start();
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a manifest in place in one step, as `kubectl` users and the kubelet do.
    pub(crate) fn put(&self, name: &str, text: &str) {
        let draft = self.path("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.path("manifests").join(name)).unwrap();
    }

    /// The command that starts the agent.
    pub(crate) fn agent(&self) -> Command {
        self.agent_in("state")
    }

    /// The same with another state directory.
    pub(crate) fn agent_in(&self, state: &str) -> Command {
        let mut command = lb();
        command.args(["agent", "--datapath", "memory", "--node", "here", "--node-ip", "192.0.2.1"]);
        command.args(["--cluster-cidr", "10.244.0.0/16", "--log-level", "warn"]);
        command.arg("--manifests").arg(self.path("manifests")).arg("--socket").arg(self.path("lb.sock"));
        command.arg("--state-dir").arg(self.path(state));
        command
    }

    /// Starts the agent and waits for its line `ready`.
    pub(crate) fn start(&mut self) {
        let mut agent = self.agent();
        self.start_with(&mut agent);
    }

    /// Starts the agent as `command` says and waits for its line `ready`.
    pub(crate) fn start_with(&mut self, command: &mut Command) {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.adopt(child);
        assert_eq!(line, "ready\n");
    }

    /// Takes over an agent that runs.
    pub(crate) fn adopt(&mut self, agent: Child) {
        self.agent = Some(agent);
    }

    /// Sends a signal to the agent and waits for its end.
    pub(crate) fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.agent.take().unwrap().wait().unwrap()
    }

    /// Sends a signal to the agent, which goes on.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.agent.as_ref().unwrap().id().cast_signed());
        kill(pid, signal).unwrap();
    }

    /// Asks with the program.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        lb().args(arguments).arg("--socket").arg(self.path("lb.sock")).output().unwrap()
    }

    /// The answer to a question that must succeed, as JSON. The state of an agent that is not ready is an answer, too.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ask(&[arguments, &["-o", "json"]].concat());
        let is_answered = output.status.success() || (arguments == ["status"] && output.stderr.is_empty());
        assert!(is_answered, "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Asks until the answer is as it should be.
    pub(crate) fn json_when(&self, arguments: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let value = self.json(arguments);
            if wanted(&value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{arguments:?} still says {value:#}");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}
