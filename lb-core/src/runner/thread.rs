//! A thread that runs a datapath.

use alloc::{boxed::Box, sync::Arc};
use core::{fmt, time::Duration};
use std::{
    io,
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
};

use super::{Alarm, DriftMode, Event, Next, Runner, Watch};
use crate::{datapath::Datapath, model::Change, time::Instant};

/// Most messages that are taken in at once.
const MAX_MESSAGES: usize = 1000;

impl Runner {
    /// Runs `datapath` in a thread of its own, and a watcher of it in another one, until the [`Handle`] says stop.
    ///
    /// `on_event` is called in that thread with each event, so it must not block. A channel's `send` does not.
    ///
    /// ```
    /// use std::sync::mpsc;
    ///
    /// use lb_core::{
    ///     datapath::Datapath,
    ///     memory::MemoryDatapath,
    ///     model::{Change, Model, Settings},
    ///     name::{ServiceName, SourceName},
    ///     node::NodeFacts,
    ///     runner::{Event, Runner},
    ///     service::Service,
    /// };
    ///
    /// let datapath = Box::new(MemoryDatapath::default());
    /// let node = NodeFacts { ips: vec!["192.0.2.1".parse()?], ..NodeFacts::default() };
    /// let files = SourceName("files".into());
    /// let runner = Runner::new(Model::new(Settings::default(), datapath.capabilities()), node, [files.clone()]);
    ///
    /// let (sender, events) = mpsc::channel();
    /// let handle = runner.spawn(datapath, move |event| drop(sender.send(event)))?;
    /// handle.change(Change::UpsertService(Service::new(ServiceName::new("default", "web"))))?;
    /// handle.change(Change::InitDone(files))?;
    /// assert!(events.iter().any(|event| matches!(event, Event::Ready)));
    /// let mut datapath = handle.stop()?;
    /// # datapath.observe()?;
    /// # Ok::<(), Box<dyn core::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn spawn(
        self,
        mut datapath: Box<dyn Datapath>,
        mut on_event: impl FnMut(Event) + Send + 'static,
    ) -> io::Result<Handle> {
        let (inbox, messages) = mpsc::channel();
        let wants_watch = self.drifts.mode() != DriftMode::Off;
        let runner = Arc::new(RwLock::new(self));
        let shared = Shared(Arc::clone(&runner));
        let watch = match if wants_watch { datapath.watcher() } else { Ok(None) } {
            Ok(None) => None,
            Ok(Some(watcher)) => {
                shared.write().handle_watching();
                let inbox = inbox.clone();
                Some(Watch::start(watcher, move |alarm| inbox.send(Message::Alarm(alarm)).is_ok())?)
            }
            Err(error) => {
                on_event(Event::NotWatched(error));
                None
            }
        };
        let worker = Worker { datapath, runner: shared, start: std::time::Instant::now(), on_event, _watch: watch };
        let thread = thread::Builder::new().name("datapath".into()).spawn(move || worker.run(&messages))?;
        Ok(Handle { inbox, runner: Shared(runner), thread: Some(thread) })
    }
}

/// A runner in a thread of its own. Dropping this ends the thread after the plan that it is at, and does not wait for
/// that. The datapath goes on serving what it holds.
pub struct Handle {
    inbox: Sender<Message>,
    runner: Shared,
    thread: Option<JoinHandle<Box<dyn Datapath>>>,
}

/// The thread has ended, because something in it panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the thread of the datapath has ended: the datapath or the receiver of events panicked")]
pub struct Stopped;

impl Handle {
    /// Hands a change over and does not wait. A change that the model refuses is an [`Event::Refused`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn change(&self, change: Change) -> Result<(), Stopped> {
        self.inbox.send(Message::Change(Box::new(change))).map_err(|_| Stopped)
    }

    /// Inspects everything as soon as possible; see [`Runner::inspect_now`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn inspect_now(&self) -> Result<(), Stopped> {
        self.inbox.send(Message::Inspect).map_err(|_| Stopped)
    }

    /// Calls `work` with the datapath in its thread, between two plans, and does not wait: to attach to a
    /// [device](Datapath::on_devices), to [ask](Datapath::ask), or to take a [role](Datapath::set_role). What `work` has to
    /// say goes through a channel of yours. Plans are the runner's to carry out.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn with_datapath(&self, work: impl FnOnce(&mut dyn Datapath) + Send + 'static) -> Result<(), Stopped> {
        self.inbox.send(Message::Work(Box::new(work))).map_err(|_| Stopped)
    }

    /// The runner, to read: its model, and what is known of frontends and of drift. Drop the guard soon, since the
    /// thread cannot go on meanwhile.
    #[must_use]
    pub fn runner(&self) -> impl core::ops::Deref<Target = Runner> + '_ {
        self.runner.read()
    }

    /// Carries out what was handed over, ends the thread and returns the datapath, which goes on serving. This blocks
    /// until then: for as long as a plan takes. What the datapath refused is not waited for.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn stop(mut self) -> Result<Box<dyn Datapath>, Stopped> {
        self.inbox.send(Message::Stop).map_err(|_| Stopped)?;
        self.thread.take().ok_or(Stopped)?.join().map_err(|_| Stopped)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Nobody listens if the thread has ended already.
        drop(self.inbox.send(Message::Stop));
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// Written by the thread of the datapath alone.
struct Shared(Arc<RwLock<Runner>>);

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Runner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Runner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the user of a handle does with the datapath.
type Work = Box<dyn FnOnce(&mut dyn Datapath) + Send>;

enum Message {
    Change(Box<Change>),
    Inspect,
    Work(Work),
    Alarm(Alarm),
    Stop,
}

struct Worker<F> {
    datapath: Box<dyn Datapath>,
    runner: Shared,
    /// The origin of the time that the runner is told.
    start: std::time::Instant,
    on_event: F,
    _watch: Option<Watch>,
}

impl<F: FnMut(Event)> Worker<F> {
    fn run(mut self, messages: &Receiver<Message>) -> Box<dyn Datapath> {
        loop {
            self.settle();
            let first = match self.patience() {
                Some(patience) => messages.recv_timeout(patience),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                return self.datapath;
            }
            // What came meanwhile goes into the same plan.
            for message in first.into_iter().chain(messages.try_iter().take(MAX_MESSAGES)) {
                if matches!(message, Message::Stop) {
                    self.settle();
                    return self.datapath;
                }
                self.handle(message);
            }
        }
    }

    fn handle(&mut self, message: Message) {
        let now = self.now();
        let event = match message {
            Message::Change(change) => self.runner.write().handle_change(*change).err().map(Event::Refused),
            Message::Inspect => {
                self.runner.write().inspect_now();
                None
            }
            Message::Work(work) => {
                work(&mut *self.datapath);
                None
            }
            Message::Alarm(Alarm::Suspicion(taken)) => {
                // What happens from now on deserves another alarm.
                drop(taken);
                self.runner.write().handle_suspicion(now);
                None
            }
            Message::Alarm(Alarm::Missed(error)) => {
                self.runner.write().handle_missed(now);
                Some(Event::NotWatched(error))
            }
            Message::Alarm(Alarm::Back) => {
                self.runner.write().handle_watching();
                Some(Event::Watched)
            }
            Message::Stop => None,
        };
        event.into_iter().for_each(&mut self.on_event);
    }

    /// Does what is due, until nothing is. The runner is only read while the datapath works.
    fn settle(&mut self) {
        loop {
            let next = self.runner.write().poll_next(self.now());
            let event = match next {
                None => return,
                Some(Next::Event(event)) => Some(event),
                Some(Next::Task(task)) => {
                    let began = self.now();
                    let done = task.carry_out(&self.runner.read(), &mut *self.datapath);
                    let now = self.now();
                    self.runner.write().handle_done(done, now.since(began), now)
                }
            };
            event.into_iter().for_each(&mut self.on_event);
        }
    }

    fn now(&self) -> Instant {
        Instant::new(self.start.elapsed())
    }

    /// How long nothing has to be done unless something happens.
    fn patience(&self) -> Option<Duration> {
        let due = self.runner.read().poll_timeout()?;
        // Never nothing: a time that has passed must not make this thread spin.
        Some(due.since(self.now()).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec, vec::Vec};

    use super::*;
    use crate::{
        addr::{FrontendAddr, Protocol},
        datapath::{ApplyError, Capabilities, DatapathError, Role},
        faulty::{Faults, Faulty},
        memory::MemoryDatapath,
        model::{Model, ModelError, Settings},
        name::{ServiceName, SourceName},
        node::NodeFacts,
        plan::Plan,
        reconciler::FrontendStatus,
        service::{Service, ServicePort},
        state::State,
    };

    fn source() -> SourceName {
        SourceName("test".into())
    }

    fn runner() -> Runner {
        Runner::new(Model::new(Settings::default(), Capabilities::all("memory")), NodeFacts::default(), [source()])
    }

    fn service(name: &str) -> Service {
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let cluster_ips = vec![[10, 96, 0, 1].into()];
        Service { cluster_ips, ports: vec![port], ..Service::new(ServiceName::new("default", name)) }
    }

    fn vip() -> FrontendAddr {
        FrontendAddr::new([10, 96, 0, 1].into(), 80, Protocol::Tcp)
    }

    fn spawn(datapath: impl Datapath + 'static) -> (Handle, Receiver<Event>) {
        let (sender, events) = mpsc::channel();
        (runner().spawn(Box::new(datapath), move |event| drop(sender.send(event))).unwrap(), events)
    }

    #[test]
    fn changes_go_in_and_events_come_out() {
        let (handle, events) = spawn(MemoryDatapath::default());
        handle.change(Change::UpsertService(service("web"))).unwrap();
        handle.change(Change::UpsertService(service("other"))).unwrap();
        handle.change(Change::InitDone(source())).unwrap();
        let said: Vec<Event> =
            core::iter::from_fn(|| events.recv().ok().filter(|event| !matches!(event, Event::Ready))).collect();
        let taken = |event: &Event| {
            let Event::Refused(ModelError::FrontendTaken { claimant, .. }) = event else { return false };
            *claimant == ServiceName::new("default", "other")
        };
        assert!(said.iter().any(taken), "{said:?}");
        let done = |event: &Event| matches!(event, Event::Frontend(addr, Some(FrontendStatus::Done)) if *addr == vip());
        assert!(said.iter().any(done), "{said:?}");
        assert_eq!(handle.runner().reconciler().status(&vip()), FrontendStatus::Done);
    }

    #[test]
    fn what_was_handed_over_before_the_stop_is_carried_out() {
        let (handle, events) = spawn(MemoryDatapath::default());
        handle.change(Change::InitDone(source())).unwrap();
        handle.change(Change::UpsertService(service("web"))).unwrap();
        let mut datapath = handle.stop().unwrap();
        assert!(datapath.observe().unwrap().frontends.contains_key(&vip()));
        assert!(events.iter().any(|event| matches!(event, Event::Ready)), "and then the stream of events ends");
    }

    #[test]
    fn a_frontend_that_is_refused_is_tried_again_without_a_call() {
        let half = Faults { refused_frontends: 500, ..Faults::default() };
        let (handle, events) = spawn(Faulty::new(MemoryDatapath::default(), half, 1));
        handle.change(Change::UpsertService(service("web"))).unwrap();
        handle.change(Change::InitDone(source())).unwrap();
        let mut refusals = 0;
        for event in events {
            match event {
                Event::Frontend(_, Some(FrontendStatus::Failed { .. })) => refusals += 1,
                Event::Frontend(_, Some(FrontendStatus::Done)) => break,
                _ => {}
            }
        }
        assert!(refusals > 0, "the seed has the first attempt refused");
    }

    #[test]
    fn an_inspection_that_was_asked_for_comes() {
        let (handle, events) = spawn(MemoryDatapath::default());
        handle.change(Change::InitDone(source())).unwrap();
        handle.inspect_now().unwrap();
        assert!(events.iter().any(|event| matches!(event, Event::Inspected(inspected) if inspected.asked)));
    }

    #[test]
    fn whoever_needs_the_datapath_gets_it_between_two_plans() {
        let (handle, _events) = spawn(MemoryDatapath::default());
        let (sender, answer) = mpsc::channel();
        let work = move |datapath: &mut dyn Datapath| {
            let said = (datapath.set_role(Role::Draining).is_ok(), datapath.on_devices().is_some());
            sender.send(said).expect("the test waits for it");
        };
        handle.with_datapath(work).unwrap();
        assert_eq!(answer.recv(), Ok((true, false)));
    }

    #[test]
    fn a_panic_in_the_datapath_is_an_error_and_no_hang() {
        let (handle, events) = spawn(Panics);
        let is_observed = |event: &Event| matches!(event, Event::Observed { .. });
        assert!(!events.iter().any(|event| is_observed(&event)), "the stream of events ends");
        while handle.change(Change::InitDone(source())).is_ok() {}
        assert_eq!(handle.stop().map(drop), Err(Stopped));
        assert!(format!("{Stopped}").contains("panicked"));
    }

    struct Panics;

    impl Datapath for Panics {
        fn capabilities(&self) -> Capabilities {
            Capabilities::all("panics")
        }

        fn observe(&mut self) -> Result<State, DatapathError> {
            panic!("as intended")
        }

        fn apply(&mut self, _: &Plan) -> Result<(), ApplyError> {
            Ok(())
        }

        fn set_role(&mut self, _: Role) -> Result<(), DatapathError> {
            Ok(())
        }

        fn cleanup(&mut self) -> Result<(), DatapathError> {
            Ok(())
        }
    }
}
