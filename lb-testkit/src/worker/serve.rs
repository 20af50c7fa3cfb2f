//! The worker's side of the pipe.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::{
    client,
    held::Held,
    load::{self, Progress},
    protocol::{Answer, Command, Envelope, Reply},
    server::{self, Running},
};

/// Carries out commands until standard input ends, each on its own thread.
pub(super) fn run() -> ! {
    raise_descriptor_limit();
    let worker = Arc::new(Worker::default());
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        worker.start(serde_json::from_str(&line).expect("the owner is this executable and writes commands alone"));
    }
    process::exit(0)
}

/// Moves the calling thread into the namespace at `path`.
pub(super) fn enter(path: &str) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("opening {path} failed: {error}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| format!("entering {path} failed: {error}"))
}

fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With the lower limit, a large load reports its failures itself.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[derive(Default)]
struct Worker {
    servers: Mutex<HashMap<String, Running>>,
    held: Mutex<HashMap<u64, Arc<Mutex<Held>>>>,
    next_held: AtomicU64,
    loads: Mutex<HashMap<u64, Arc<Progress>>>,
}

impl Worker {
    fn start(self: &Arc<Self>, Envelope { number, command }: Envelope) {
        // Registered before the next command is read, which may be the one that stops it.
        let progress = Arc::new(Progress::default());
        if matches!(command, Command::Load { .. }) {
            lock(&self.loads).insert(number, Arc::clone(&progress));
        }
        let worker = Arc::clone(self);
        thread::spawn(move || {
            let answer = catch_unwind(AssertUnwindSafe(|| worker.carry_out(command, &progress)))
                .unwrap_or_else(|_| Err("the command panicked".into()));
            lock(&worker.loads).remove(&number);
            say(&Reply { number, answer });
        });
    }

    fn carry_out(&self, command: Command, progress: &Progress) -> Result<Answer, String> {
        match command {
            Command::Serve(serve) => {
                let name = serve.who.pod.clone();
                lock(&self.servers).insert(name, server::start(serve)?);
                Ok(Answer::Done)
            }
            Command::StopServing(name) => {
                let server = lock(&self.servers).remove(&name);
                server.map(|_| Answer::Done).ok_or_else(|| format!("nothing serves as `{name}`"))
            }
            Command::Request { netns, request } => {
                enter(&netns)?;
                Ok(Answer::Outcome(client::request(&request)))
            }
            Command::Hold { netns, hold } => {
                enter(&netns)?;
                Ok(self.hold(Held::open(hold)))
            }
            Command::Exchange(id) => {
                let held = lock(&self.held).get(&id).cloned().ok_or_else(|| format!("no sockets are held as {id}"))?;
                Ok(Answer::Outcomes(lock(&held).exchange()))
            }
            Command::Release(id) => {
                lock(&self.held).remove(&id);
                Ok(Answer::Done)
            }
            Command::Load { netns, load } => load::run(&netns, &load, progress).map(Answer::Report),
            Command::StopLoad(number) => {
                // One that has ended on its own needs no stopping.
                if let Some(progress) = lock(&self.loads).get(&number) {
                    progress.stop.store(true, Ordering::Relaxed);
                }
                Ok(Answer::Done)
            }
            Command::CountLoad(number) => {
                let answered = lock(&self.loads).get(&number).map(|it| it.answered.load(Ordering::Relaxed));
                answered.map(Answer::Count).ok_or_else(|| format!("load {number} has ended on its own"))
            }
            Command::Connect { netns, race } => {
                load::race(&netns, &race).map(|(latencies, errors)| Answer::Connects(latencies, errors))
            }
        }
    }

    fn hold(&self, mut held: Held) -> Answer {
        let outcomes = held.exchange();
        let id = self.next_held.fetch_add(1, Ordering::Relaxed);
        lock(&self.held).insert(id, Arc::new(Mutex::new(held)));
        Answer::Held { id, outcomes }
    }
}

fn say(reply: &Reply) {
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    // Without a listener there is nobody to tell.
    let _ = io::stdout().lock().write_all(&line);
}

/// A panic in one command leaves what others hold usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
