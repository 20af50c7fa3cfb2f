//! A thread that waits for a watcher.

use alloc::{boxed::Box, sync::Arc, vec, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    task::Waker,
    time::Duration,
};
use std::{
    io,
    thread::{self, JoinHandle},
    time::Instant,
};

use crate::{
    datapath::{DatapathError, Watcher},
    time::Backoff,
};

/// How long a watcher that can be woken is left alone.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one that cannot be woken is left alone: it has no other way to learn that nobody listens any more.
const TURN: Duration = Duration::from_secs(1);
/// After a watcher that failed.
const BACKOFF: Backoff<Instant> = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));

/// What a watcher says.
#[derive(Debug)]
pub enum Alarm {
    /// Others changed something: see [`Runner::handle_suspicion`](super::Runner::handle_suspicion). No further one comes
    /// until the guard is dropped.
    Suspicion(AlarmGuard),
    /// The watcher cannot watch now, or missed something, and why: see
    /// [`Runner::handle_missed`](super::Runner::handle_missed).
    Missed(DatapathError),
    /// It watches again: see [`Runner::handle_watching`](super::Runner::handle_watching).
    Back,
}

/// Comes with an alarm. Drop it when the alarm was taken.
#[derive(Debug)]
pub struct AlarmGuard(Arc<AtomicBool>);

impl Drop for AlarmGuard {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A thread that waits for a [`Watcher`]. Dropping this ends the thread.
pub struct Watch {
    ends: Arc<AtomicBool>,
    waker: Option<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Calls `on_alarm` in a thread of its own whenever `watcher` notices something, until that returns `false`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        watcher: Box<dyn Watcher>,
        mut on_alarm: impl FnMut(Alarm) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (ends, waker) = (Arc::<AtomicBool>::default(), watcher.waker());
        let patience = if waker.is_some() { PATIENCE } else { TURN };
        let mut guard = Guard { watcher, waits: Arc::default(), backoff: BACKOFF };
        let told_to_end = Arc::clone(&ends);
        let follow = move || {
            while !told_to_end.load(Ordering::Acquire) {
                let said = guard.watcher.wait(patience);
                if !guard.report(said).into_iter().all(&mut on_alarm) {
                    return;
                }
                let pause = Instant::now() + guard.backoff.delay();
                while !told_to_end.load(Ordering::Acquire) && Instant::now() < pause {
                    thread::park_timeout(pause.saturating_duration_since(Instant::now()));
                }
            }
        };
        let thread = thread::Builder::new().name("drift".into()).spawn(follow)?;
        Ok(Self { ends, waker, thread: Some(thread) })
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Drop for Watch {
    /// Waits for the thread if its watcher can be woken.
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        if let Some(waker) = self.waker.take() {
            waker.wake();
            // A watcher that panicked has nothing left to end.
            drop(thread.join());
        }
    }
}

struct Guard {
    watcher: Box<dyn Watcher>,
    /// Whether an alarm waits to be taken.
    waits: Arc<AtomicBool>,
    backoff: Backoff<Instant>,
}

impl Guard {
    fn report(&mut self, said: Result<bool, DatapathError>) -> Vec<Alarm> {
        match said {
            Err(error) => {
                self.backoff.fail(Instant::now());
                vec![Alarm::Missed(error)]
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
    use alloc::{collections::VecDeque, task::Wake};
    use std::sync::{Condvar, Mutex, mpsc};

    use super::*;
    use crate::datapath::ErrorKind;

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

    fn name(alarm: &Alarm) -> &'static str {
        match alarm {
            Alarm::Suspicion(_) => "suspicion",
            Alarm::Missed(why) if why.report() == "overrun" => "missed",
            Alarm::Missed(_) => "something else",
            Alarm::Back => "back",
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
        let (alarms, inbox) = mpsc::channel();
        let _watch = Watch::start(Box::new(script), move |alarm| alarms.send(alarm).is_ok()).unwrap();
        let heard: Vec<&str> = inbox.iter().take(4).map(|alarm| name(&alarm)).collect();
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

    /// Notices nothing, for as long as it may, and says when somebody waits.
    #[derive(Default)]
    struct Bell {
        state: Mutex<(bool, bool)>,
        changed: Condvar,
    }

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.state.lock().unwrap().1 = true;
            self.changed.notify_all();
        }
    }

    struct Deaf(Arc<Bell>);

    impl Watcher for Deaf {
        fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError> {
            let mut state = self.0.state.lock().unwrap();
            state.0 = true;
            self.0.changed.notify_all();
            let (mut state, _) = self.0.changed.wait_timeout_while(state, timeout, |state| !state.1).unwrap();
            state.1 = false;
            Ok(false)
        }

        fn waker(&self) -> Option<Waker> {
            Some(Arc::clone(&self.0).into())
        }
    }

    #[test]
    fn a_watcher_that_waits_is_woken_at_the_end() {
        let bell = Arc::new(Bell::default());
        let watch = Watch::start(Box::new(Deaf(Arc::clone(&bell))), |_| true).unwrap();
        drop(bell.changed.wait_while(bell.state.lock().unwrap(), |state| !state.0).unwrap());
        let start = Instant::now();
        drop(watch);
        assert!(start.elapsed() < PATIENCE / 2, "the thread waited until its time was over");
        assert_eq!(Arc::strong_count(&bell), 1, "the thread has ended");
    }
}
