//! Questions to the thread that owns the datapath, and alarms of the watcher.

use std::{io, sync::mpsc::Sender, time::Duration};

use lb_core::{
    decision::{Packet, decide},
    kernel::KernelAnswer,
    runner::{Alarm, Watch},
};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::{TimeVal, TimeValLike},
    },
    time::{ClockId, clock_gettime},
};

use crate::{
    api::DriftReport,
    config::DriftMode,
    engine::{Engine, Event},
};

/// A question that only the datapath can answer. Whoever asked may have gone meanwhile.
pub(crate) enum DatapathQuery {
    /// Inspect everything now.
    Inspect(Sender<Result<DriftReport, String>>),
    /// What becomes of this packet?
    Ask(Packet, Sender<Result<Option<Verified>, String>>),
}

/// What the kernel says of a packet, and what should become of it.
pub(crate) struct Verified {
    pub(crate) answer: KernelAnswer,
    pub(crate) decision: lb_core::decision::Decision,
    /// Why the packet does not arrive although the datapath does what it should.
    pub(crate) lost: Option<String>,
    /// Whether everything that is known had been carried out.
    pub(crate) settled: bool,
}

/// Those who wait for an inspection.
#[derive(Default)]
pub(crate) struct ReportWaiters(Vec<Sender<Result<DriftReport, String>>>);

impl Engine {
    /// Has itself told when others change what the datapath holds, if the datapath can tell. Not being told is no
    /// reason not to serve.
    pub(crate) fn watch_for_drift(&mut self, events: &Sender<Event>) -> io::Result<()> {
        if self.shared.drift_mode() == DriftMode::Off {
            return Ok(());
        }
        match self.datapath.datapath_mut().watcher() {
            Ok(None) => Ok(()),
            Ok(Some(watcher)) => {
                self.shared.runner_mut().handle_watching();
                let events = events.clone();
                self.watch = Some(Watch::start(watcher, move |alarm| events.send(Event::Alarm(alarm)).is_ok())?);
                Ok(())
            }
            Err(error) => {
                let problem = error.report();
                tracing::warn!(problem, "changes by other tools are not noticed until the next full inspection");
                self.shared.set_problem("DriftNotWatched", Some(problem));
                Ok(())
            }
        }
    }

    pub(crate) fn handle_alarm(&self, alarm: Alarm) {
        let now = self.shared.now();
        match alarm {
            Alarm::Suspicion(taken) => {
                // What happens from now on deserves another alarm.
                drop(taken);
                self.shared.runner_mut().handle_suspicion(now);
            }
            Alarm::Missed(error) => {
                let problem = error.report();
                tracing::warn!(problem, "changes by other tools may have been missed; inspecting everything");
                self.shared.runner_mut().handle_missed(now);
                self.shared.set_problem("DriftNotWatched", Some(problem));
            }
            Alarm::Back => {
                self.shared.runner_mut().handle_watching();
                self.shared.set_problem("DriftNotWatched", None);
            }
        }
    }

    pub(crate) fn handle_query(&mut self, question: DatapathQuery) {
        match question {
            DatapathQuery::Inspect(reply) if self.shared.is_ready() => {
                self.asked.0.push(reply);
                self.shared.runner_mut().inspect_now();
            }
            DatapathQuery::Inspect(reply) => {
                let why = "the agent is not ready: what the datapath should hold is not known yet, see `lb status`";
                let _ = reply.send(Err(why.into()));
            }
            DatapathQuery::Ask(packet, reply) => {
                let _ = reply.send(self.verify(&packet));
            }
        }
    }

    pub(super) fn verify(&mut self, packet: &Packet) -> Result<Option<Verified>, String> {
        self.check_forwarding();
        let answer = self.datapath.datapath_mut().ask(packet).map_err(|error| error.report())?;
        let runner = self.shared.runner();
        let reconciler = runner.reconciler();
        Ok(answer.map(|answer| {
            let decision = decide(reconciler.model(), packet, &answer.flow, self.shared.now());
            let lost = (self.forwarding)().disagreement(reconciler.model(), packet, &decision);
            Verified { answer, decision, lost, settled: reconciler.is_settled() }
        }))
    }

    /// Answers those who wait for an inspection, if this is the one.
    pub(crate) fn answer_asked(&mut self, report: Option<Result<DriftReport, String>>) {
        let Some(report) = report else { return };
        for reply in std::mem::take(&mut self.asked.0) {
            let _ = reply.send(report.clone());
        }
    }
}

/// What this thread has used, and programs that it ran: iptables is inspected by one.
pub(crate) fn processor_time() -> Duration {
    let own = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    let whole = |time: TimeVal| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or_default());
    let programs = getrusage(UsageWho::RUSAGE_CHILDREN);
    own + programs.map_or(Duration::ZERO, |usage| whole(usage.user_time()) + whole(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{self, Receiver},
        thread::{self, JoinHandle},
    };

    use lb_core::{drift::Inspection, state::State};

    use super::*;
    use crate::api;
    use crate::api::Client;
    use crate::api::ClientError;
    use crate::api::DriftClass;
    use crate::api::DriftNews;
    use crate::api::DriftOutcome;
    use crate::api::ExplainQuery as Explain;
    use crate::api::Listener;
    use crate::api::Protocol;
    use crate::api::WhyNotAnswer;
    use crate::api::answers::Answers;
    use crate::config::Config;
    use crate::flow::parse_backend;
    use crate::testing;
    use crate::testing::Fails;
    use crate::testing::Kernel;
    use crate::testing::agent;
    use crate::testing::conditions;
    use crate::testing::config;

    /// Ready, and inspected once.
    fn ready(config: &Config) -> (Engine, Kernel) {
        let kernel = Kernel::default();
        let mut agent = agent(config, kernel.clone());
        agent.settle().unwrap();
        assert_eq!(kernel.inspections().len(), usize::from(config.drift != DriftMode::Off));
        (agent, kernel)
    }

    fn lose_frontends(state: &mut State) {
        state.frontends.clear();
        state.sets.clear();
    }

    fn alert() -> Config {
        Config { drift: DriftMode::Alert, ..config() }
    }

    fn suspect(agent: &mut Engine) {
        agent.shared.runner_mut().handle_suspicion(agent.shared.now());
    }

    /// Runs until the datapath was inspected once more: an inspection may have to wait for its time.
    fn next_inspection(agent: &mut Engine, kernel: &Kernel) {
        let before = kernel.inspections().len();
        while kernel.inspections().len() == before {
            agent.settle().unwrap();
        }
    }

    fn inspect(agent: &mut Engine) -> Receiver<Result<DriftReport, String>> {
        let (reply, answer) = mpsc::channel();
        agent.handle_query(DatapathQuery::Inspect(reply));
        agent.settle().unwrap();
        answer
    }

    #[test]
    fn what_others_change_is_put_right_and_counted() {
        let (mut agent, kernel) = ready(&config());
        let before = kernel.state();
        kernel.disturb(lose_frontends);
        suspect(&mut agent);
        next_inspection(&mut agent, &kernel);
        assert_eq!(kernel.state(), before);
        let drift = agent.shared.status().drift;
        assert_eq!(
            (drift.open, drift.found.clone(), drift.repaired),
            (0, [(DriftClass::Frontend, 1)].into(), drift.found)
        );
        assert_eq!(conditions(&agent), Vec::<String>::new());
        let suspects = kernel.inspections().into_iter().filter(|inspection| *inspection == Inspection::Suspects);
        assert_eq!(suspects.count(), 2, "once to find it, once to see that it is right");
    }

    #[test]
    fn in_alert_nothing_is_touched() {
        let (mut agent, kernel) = ready(&alert());
        kernel.disturb(lose_frontends);
        let report = inspect(&mut agent).recv().unwrap().unwrap();
        assert_eq!(
            (report.found, report.mode, &report.now[0].status),
            (1, api::DriftMode::Alert, &DriftOutcome::Found)
        );
        assert!(kernel.state().frontends.is_empty());
        assert_eq!(conditions(&agent), ["Drift"]);
    }

    #[test]
    fn in_alert_a_change_that_puts_things_right_ends_the_alert() {
        let (mut agent, kernel) = ready(&alert());
        kernel.disturb(lose_frontends);
        inspect(&mut agent).recv().unwrap().unwrap();
        assert_eq!(conditions(&agent), ["Drift"]);
        agent.shared.take_changes(testing::changes(&testing::WEB.replace("10.0.0.2", "10.0.0.3")));
        next_inspection(&mut agent, &kernel);
        assert_eq!(kernel.state().frontends.len(), 1, "the change was carried out");
        assert_eq!((conditions(&agent), agent.shared.status().drift.open), (Vec::<String>::new(), 0));
    }

    #[test]
    fn nothing_is_inspected_while_nobody_knows_what_should_be_there() {
        let kernel = Kernel::default();
        let mut agent = agent(&config(), kernel.clone());
        suspect(&mut agent);
        let (reply, answer) = mpsc::channel();
        agent.handle_query(DatapathQuery::Inspect(reply));
        assert!(answer.recv().unwrap().unwrap_err().contains("not ready"));
        assert_eq!(kernel.inspections().len(), 0);
    }

    #[test]
    fn off_inspects_when_asked_alone() {
        let (mut agent, kernel) = ready(&Config { drift: DriftMode::Off, ..config() });
        suspect(&mut agent);
        agent.settle().unwrap();
        assert_eq!((agent.patience(), kernel.inspections().len()), (None, 0));
        kernel.disturb(lose_frontends);
        assert_eq!(inspect(&mut agent).recv().unwrap().unwrap().found, 1);
        assert!(kernel.state().frontends.is_empty());
    }

    #[test]
    fn a_datapath_that_cannot_be_inspected_is_a_condition_until_it_can() {
        let (mut agent, kernel) = ready(&config());
        kernel.set_fails(Fails { inspections: true, ..Fails::default() });
        let answer = inspect(&mut agent).recv().unwrap();
        assert_eq!(answer.unwrap_err(), "the datapath cannot be inspected: no");
        assert_eq!(conditions(&agent), ["DriftNotInspected"]);
        kernel.set_fails(Fails::default());
        assert_eq!(inspect(&mut agent).recv().unwrap().unwrap().found, 0);
        assert_eq!(conditions(&agent), Vec::<String>::new());
    }

    #[test]
    fn a_repair_that_is_refused_says_why_and_is_tried_again() {
        let (mut agent, kernel) = ready(&config());
        kernel.set_fails(Fails { repairs: true, ..Fails::default() });
        kernel.disturb(lose_frontends);
        let report = inspect(&mut agent).recv().unwrap().unwrap();
        let said = (&report.now[0].status, report.now[0].detail.as_deref());
        assert_eq!(said, (&DriftOutcome::NotRepaired, Some("no")));
        assert_eq!(conditions(&agent), ["Drift", "FrontendFailed"]);
        assert!(agent.patience().unwrap() <= Duration::from_millis(500));
    }

    /// A running agent and a client that asks it.
    struct Running {
        client: Client,
        kernel: Kernel,
        events: Sender<Event>,
        thread: Option<JoinHandle<()>>,
        _listener: Listener,
        _directory: tempfile::TempDir,
    }

    impl Running {
        fn start(config: &Config) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("lb.sock");
            let listener = Listener::bind(&socket).unwrap();
            let (mut agent, kernel) = ready(config);
            let (events, inbox) = mpsc::channel();
            agent.watch_for_drift(&events).unwrap();
            let answers = Answers::new(agent.shared(), testing::sources(config), events.clone());
            listener.serve(move |request| answers.answer(request)).unwrap();
            let thread = thread::spawn(move || agent.run(&inbox).unwrap());
            let client = Client::new(&socket);
            Self { client, kernel, events, thread: Some(thread), _listener: listener, _directory: directory }
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.events.send(Event::Stop("TEST".into())).unwrap();
            self.thread.take().map(JoinHandle::join);
        }
    }

    fn difference(news: Option<Result<DriftNews, ClientError>>) -> (DriftClass, DriftOutcome) {
        match news.unwrap().unwrap() {
            DriftNews::Difference(record) => (record.class, record.status),
            DriftNews::Unlisted { unlisted } => panic!("{unlisted} too many"),
        }
    }

    #[test]
    fn who_watches_sees_what_is_noticed_and_repaired() {
        let running = Running::start(&config());
        let before = running.kernel.state();
        let mut watch = running.client.watch_drift().unwrap();
        running.kernel.disturb(lose_frontends);
        let said = [difference(watch.next()), difference(watch.next())];
        assert_eq!(said, [DriftOutcome::Found, DriftOutcome::Repaired].map(|status| (DriftClass::Frontend, status)));
        assert_eq!(running.kernel.state(), before);
        let report = running.client.drift().unwrap();
        assert_eq!((report.found, report.now.len(), report.before.len()), (0, 0, 1));
        let status = running.client.status().unwrap();
        assert!(status.drift.watched && status.drift.inspections >= 2);
    }

    #[test]
    fn a_packet_is_verified_and_a_difference_is_said() {
        let running = Running::start(&alert());
        let question = Explain {
            verify: true,
            why_not: Some(parse_backend("10.0.0.2").unwrap()),
            ..Explain::new(Protocol::Tcp, "10.244.0.9:4000".parse().unwrap(), "10.96.0.1:80".parse().unwrap()).unwrap()
        };
        let explanation = running.client.explain(&question).unwrap();
        let verification = explanation.verification.unwrap();
        assert!(verification.agrees && verification.settled, "{verification:?}");
        assert_eq!(verification.kernel, "forwarded to one of 10.0.0.1:8080 (1/2), 10.0.0.2:8080 (1/2)");
        let why_not = explanation.why_not.unwrap();
        assert_eq!((why_not.backend.as_str(), why_not.answer), ("10.0.0.2:8080", WhyNotAnswer::Possible));
        assert_eq!((why_not.slots, why_not.slot_count, why_not.table), (vec![1], 1, 2));
        running.kernel.disturb(lose_frontends);
        let verification = running.client.explain(&question).unwrap().verification.unwrap();
        assert_eq!(verification.disagreements, ["verdict: expected forward, the kernel has pass"]);
        running.kernel.set_fails(Fails { questions: true, ..Fails::default() });
        let error = running.client.explain(&question).unwrap_err().to_string();
        assert_eq!(error, "the agent says: datapath memory cannot be asked what becomes of a packet");
        let mixed = Explain { destination: "[fd00::1]:80".parse().unwrap(), ..question };
        let error = running.client.explain(&mixed).unwrap_err().to_string();
        assert_eq!(error, "the agent says: source 10.244.0.9 and destination fd00::1 are of different families");
    }

    #[test]
    fn too_many_watchers_are_told_so_and_those_that_went_make_room() {
        let running = Running::start(&config());
        let mut watches = Vec::new();
        let refused = loop {
            match running.client.watch_drift() {
                Ok(watch) => watches.push(watch),
                Err(error) => break error,
            }
        };
        assert!(refused.to_string().contains("too many clients watch drift"), "{refused}");
        drop(watches);
        while running.client.watch_drift().is_err() {}
    }
}
