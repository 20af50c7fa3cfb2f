//! Programs that run on a node, such as the agent.

use std::{
    io::{BufRead, BufReader, Read},
    os::fd::{AsFd, FromRawFd, OwnedFd},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Netns, spawn::Spawner};
use crate::error::{LabError, errno, system};

/// A program that runs on a node. Its output is captured; it is killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    /// Readable when the process has ended.
    ended: OwnedFd,
    output: Arc<Output>,
}

impl Program {
    pub(super) fn start(
        spawner: &Spawner,
        mut command: Command,
        netns: &Netns,
        cgroup: Option<&std::path::Path>,
    ) -> Result<Self, LabError> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawner.spawn(command, Some(netns), cgroup)?;
        let ended = pidfd(child.id()).map_err(system(format!("watching `{name}`")))?;
        let output = Arc::new(Output::default());
        output.capture(child.stdout.take());
        output.capture(child.stderr.take());
        Ok(Self { name, child, ended, output })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, to standard output and standard error as they came.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.lock().lines.join("\n")
    }

    /// Waits for a line that `wanted` accepts and returns it; `None` if it does not come within `wait` or the
    /// program closes its output before.
    pub fn wait_for_line(&self, wait: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        self.output.wait_for_line(wait, wanted)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).map_err(errno(format!("sending {signal} to `{}`", self.name)))
    }

    /// Waits for its end; `None` if it still runs after `wait`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(&mut self, wait: Duration) -> Result<Option<ExitStatus>, LabError> {
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        let action = format!("waiting for `{}`", self.name);
        poll(&mut [PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)], timeout).map_err(errno(action.clone()))?;
        self.child.try_wait().map_err(system(action))
    }

    /// Asks it to end with SIGTERM; kills it if it still runs after `wait`, and then `None` comes back.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn terminate(&mut self, wait: Duration) -> Result<Option<ExitStatus>, LabError> {
        if let Some(status) = self.wait(Duration::ZERO)? {
            return Ok(Some(status));
        }
        self.signal(Signal::SIGTERM)?;
        let status = self.wait(wait)?;
        if status.is_none() {
            self.child.kill().map_err(system(format!("killing `{}`", self.name)))?;
        }
        Ok(status)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines of a program, in the order of their coming.
#[derive(Debug, Default)]
struct Output {
    text: Mutex<Text>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    lines: Vec<String>,
    open: usize,
}

impl Output {
    fn capture(self: &Arc<Self>, pipe: Option<impl Read + Send + 'static>) {
        let Some(pipe) = pipe else { return };
        self.lock().open += 1;
        let output = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                output.lock().lines.push(String::from_utf8_lossy(&line).into_owned());
                output.changed.notify_all();
            }
            output.lock().open -= 1;
            output.changed.notify_all();
        });
    }

    fn wait_for_line(&self, wait: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + wait;
        let mut seen = 0;
        let mut text = self.lock();
        loop {
            if let Some(line) = text.lines[seen..].iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            seen = text.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || text.open == 0 {
                return None;
            }
            text = self.changed.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A descriptor for a process (Linux 5.3). The process is a child of this one and not yet waited for, so its id is its
/// own.
fn pidfd(pid: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(std::io::Error::other)?;
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
