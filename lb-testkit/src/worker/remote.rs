//! The owner's side of the pipe.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use super::protocol::{Answer, Command, Envelope, Reply};
use crate::error::{LabError, system};

type Waiting = Arc<Mutex<HashMap<u64, Sender<Result<Answer, String>>>>>;

/// A worker process. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Remote {
    name: String,
    child: Mutex<Child>,
    commands: Mutex<ChildStdin>,
    waiting: Waiting,
    next: AtomicU64,
}

/// A command under way.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) number: u64,
    answer: Receiver<Result<Answer, String>>,
}

impl Remote {
    /// Takes over a worker whose standard input and output are pipes.
    pub(crate) fn new(name: String, mut child: Child) -> Result<Self, LabError> {
        let (Some(commands), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(LabError::WorkerGone { worker: name });
        };
        let waiting = Waiting::default();
        thread::spawn({
            let waiting = Arc::clone(&waiting);
            move || listen(replies, &waiting)
        });
        Ok(Self { name, child: Mutex::new(child), commands: Mutex::new(commands), waiting, next: AtomicU64::new(0) })
    }

    pub(crate) fn call(&self, command: Command, wait: Duration) -> Result<Answer, LabError> {
        let token = self.begin(command)?;
        self.finish(&token, wait)
    }

    /// Sends a command without waiting for its answer.
    pub(crate) fn begin(&self, command: Command) -> Result<Token, LabError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = mpsc::channel();
        lock(&self.waiting).insert(number, sender);
        let mut line = serde_json::to_vec(&Envelope { number, command })
            .map_err(|error| system("writing a command")(error.into()))?;
        line.push(b'\n');
        match lock(&self.commands).write_all(&line) {
            Ok(()) => Ok(Token { number, answer }),
            Err(_) => Err(self.gone()),
        }
    }

    pub(crate) fn finish(&self, token: &Token, wait: Duration) -> Result<Answer, LabError> {
        match token.answer.recv_timeout(wait) {
            Ok(answer) => answer.map_err(|message| LabError::Worker { worker: self.name.clone(), message }),
            Err(RecvTimeoutError::Timeout) => Err(LabError::WorkerSilent { worker: self.name.clone(), waited: wait }),
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    fn gone(&self) -> LabError {
        LabError::WorkerGone { worker: self.name.clone() }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // One that has ended already cannot be killed.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Hands replies to those who wait. At the end of the worker everyone learns that nothing comes any more.
fn listen(replies: ChildStdout, waiting: &Waiting) {
    for line in BufReader::new(replies).lines().map_while(Result::ok) {
        if let Ok(Reply { number, answer }) = serde_json::from_str(&line)
            && let Some(sender) = lock(waiting).remove(&number)
        {
            // Whoever gave up waiting does not need it.
            let _ = sender.send(answer);
        }
    }
    lock(waiting).clear();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
