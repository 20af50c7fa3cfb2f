//! Changes that others make to the datapath, watched.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread,
    time::Duration,
};

use lb_core::{
    datapath::{DatapathError, Watcher},
    time::Backoff,
};

use crate::engine::Event;

/// How long a watcher is left alone; it has no other way to learn that nobody listens any more.
const PATIENCE: Duration = Duration::from_secs(60);
/// After a watcher that failed.
const BACKOFF: Backoff<std::time::Instant> = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));

/// What a watcher says.
pub(crate) enum Alarm {
    /// Others changed something. No further one comes until this is taken.
    Suspicion(AlarmGuard),
    /// The watcher cannot watch now, or missed something, and why.
    Missed(String),
    /// It watches again.
    Back,
}

/// Comes with an alarm and is dropped when that was taken.
pub(crate) struct AlarmGuard(Arc<AtomicBool>);

impl Drop for AlarmGuard {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Sends [`Event::Alarm`] whenever `watcher` notices something.
pub(crate) fn watch(watcher: Box<dyn Watcher>, events: Sender<Event>) -> io::Result<()> {
    let mut guard = Guard { watcher, waits: Arc::default(), backoff: BACKOFF };
    let follow = move || {
        loop {
            let said = guard.watcher.wait(PATIENCE);
            if !guard.report(said).into_iter().all(|alarm| events.send(Event::Alarm(alarm)).is_ok()) {
                return;
            }
            thread::sleep(guard.backoff.delay());
        }
    };
    thread::Builder::new().name("drift".into()).spawn(follow)?;
    Ok(())
}

struct Guard {
    watcher: Box<dyn Watcher>,
    /// Whether an alarm waits to be taken.
    waits: Arc<AtomicBool>,
    backoff: Backoff<std::time::Instant>,
}

impl Guard {
    fn report(&mut self, said: Result<bool, DatapathError>) -> Vec<Alarm> {
        match said {
            Err(error) => {
                self.backoff.fail(std::time::Instant::now());
                vec![Alarm::Missed(error.report())]
            }
            Ok(noticed) => {
                let back = self.backoff.until().map(|_| Alarm::Back);
                self.backoff.reset();
                let is_news = noticed && !self.waits.swap(true, Ordering::AcqRel);
                let suspicion = is_news.then(|| Alarm::Suspicion(AlarmGuard(Arc::clone(&self.waits))));
                back.into_iter().chain(suspicion).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::mpsc};

    use lb_core::datapath::ErrorKind;

    use super::*;

    /// Says what it was given, and then nothing for as long as it may.
    struct Script(VecDeque<Result<bool, DatapathError>>);

    impl Watcher for Script {
        fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError> {
            self.0.pop_front().unwrap_or_else(|| {
                thread::sleep(timeout);
                Ok(false)
            })
        }
    }

    fn name(event: &Event) -> &'static str {
        match event {
            Event::Alarm(Alarm::Suspicion(_)) => "suspicion",
            Event::Alarm(Alarm::Missed(why)) if why == "overrun" => "missed",
            Event::Alarm(Alarm::Back) => "back",
            _ => "something else",
        }
    }

    #[test]
    fn an_alarm_is_given_once_until_it_is_taken() {
        let mut guard = Guard { watcher: Box::new(Script(VecDeque::new())), waits: Arc::default(), backoff: BACKOFF };
        let first = guard.report(Ok(true));
        assert_eq!((first.len(), guard.report(Ok(true)).len(), guard.report(Ok(false)).len()), (1, 0, 0));
        drop(first);
        assert_eq!(guard.report(Ok(true)).len(), 1);
    }

    #[test]
    fn a_watcher_that_missed_something_says_so_and_goes_on() {
        let error = || Err(DatapathError::new(ErrorKind::System, "overrun"));
        let script = Script([Ok(true), error(), Ok(false), Ok(true)].into());
        let (events, inbox) = mpsc::channel();
        watch(Box::new(script), events).unwrap();
        let heard: Vec<&str> = inbox.iter().take(4).map(|event| name(&event)).collect();
        assert_eq!(heard, ["suspicion", "missed", "back", "suspicion"]);
    }

    #[test]
    fn waits_grow_while_it_fails() {
        let mut guard = Guard { watcher: Box::new(Script(VecDeque::new())), waits: Arc::default(), backoff: BACKOFF };
        let mut waits = Vec::new();
        for _ in 0..12 {
            guard.report(Err(DatapathError::new(ErrorKind::System, "overrun")));
            waits.push(guard.backoff.delay());
        }
        assert_eq!([waits[0], waits[1], waits[11]], [100, 200, 30_000].map(Duration::from_millis));
    }
}
