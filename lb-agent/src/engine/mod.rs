//! The thread that owns the datapath.

mod addresses;
pub(crate) mod devices;
pub(crate) mod drift;
mod forwarding;
pub(crate) mod inspection;
#[cfg(test)]
mod kept_tests;
pub(crate) mod leftovers;
#[cfg(test)]
mod maglev_tests;
mod networks;
mod notes;
mod pods;
mod remaining;
mod settings;
pub(crate) mod state;
pub(crate) mod surroundings;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use lb_core::{
    datapath::{ApplyError, DatapathError, Evicted},
    kernel::Forwarding,
    model::{Change, Model, Settings},
    name::SourceName,
    plan::Plan,
    runner::{self, Alarm, Runner, Watch},
    time::Instant,
};

use crate::{
    api::Network,
    config::Config,
    driver::OpenDatapath,
    engine::{
        addresses::AddressReader,
        inspection::{DatapathQuery, ReportWaiters, processor_time},
        remaining::Remaining,
        settings::ReadSettings,
        state::AgentState,
        surroundings::Surroundings,
    },
    health_check::{HealthChecks, NoPorts, Server},
    host::{self, netlink::Networks},
    source::Delivery,
};

/// Something that happened.
pub(crate) enum Event {
    /// A source has news, or services get other addresses.
    News(Delivery),
    /// Devices came, went or changed.
    Devices,
    /// What is known of changes that others make to the datapath.
    Alarm(Alarm),
    /// Somebody asks what only the datapath knows.
    Query(DatapathQuery),
    /// It is time to go, and why.
    Stop(String),
}

/// What the thread of the datapath owns.
pub(crate) struct Engine {
    pub(crate) datapath: Box<dyn OpenDatapath>,
    pub(crate) shared: Arc<AgentState>,
    surroundings: Option<Surroundings>,
    pub(crate) health_checks: HealthChecks,
    /// Called when it is ready.
    on_ready: Option<Box<dyn FnOnce() + Send>>,
    /// Those who wait for an inspection.
    pub(crate) asked: ReportWaiters,
    /// What waits for changes that others make.
    pub(crate) watch: Option<Watch>,
    /// Reads whether the kernel forwards packets.
    pub(crate) forwarding: fn() -> Forwarding,
    /// Reads the networks that the node is connected to, and its own addresses.
    networks: fn() -> io::Result<Networks>,
    /// Reads the addresses of the node, if they are followed.
    addresses: Option<AddressReader>,
    /// What was last said about forwarding.
    not_forwarded: Option<String>,
    /// Reads settings of the kernel for devices.
    pub(crate) settings: ReadSettings,
    /// What it read last.
    network: Network,
    /// Devices that lead out of the node.
    uplinks: Vec<String>,
    /// What was last said about settings.
    bad_settings: BTreeMap<&'static str, String>,
    /// Whether sources are translated to addresses of the node.
    carries_packets: bool,
    /// What was last said about such addresses.
    no_address: Option<String>,
    /// What was last said about addresses that a setting names.
    node_ip_elsewhere: Option<String>,
    /// Flows that could not be ended.
    remaining: Remaining,
    /// When to look for pods whose sockets are left alone; `None`: when devices change.
    pods_due: Option<Instant>,
    /// What was last said about them.
    not_left_alone: Option<String>,
}

/// Most events that are taken in at once.
const MAX_EVENTS: usize = 1000;

/// What the settings of the agent say about every service.
fn model_settings(config: &Config) -> Settings {
    Settings::default()
        .with_algorithm(config.algorithm)
        .with_maglev(config.maglev)
        .with_node_port_addresses(config.node_port_addresses.clone())
        .with_answer_ping(config.answer_ping)
        .with_external_ips_of_node(config.external_ips_of_node)
}

impl Engine {
    pub(crate) fn new(
        config: &Config,
        sources: &[(SourceName, String)],
        datapath: Box<dyn OpenDatapath>,
        on_ready: Box<dyn FnOnce() + Send>,
    ) -> Self {
        let capabilities = datapath.datapath().capabilities();
        // The source that comes first wins, by name and by address.
        let rank = (0..).zip(sources.iter().rev()).map(|(rank, (name, _))| (name.clone(), rank));
        let settings = model_settings(config).with_priorities(rank);
        let names = sources.iter().map(|(name, _)| name.clone());
        let runner = Runner::new(Model::new(settings, capabilities), config.node.clone(), names);
        let mut runner = runner.with_drift(config.drift.into(), config.drift_interval);
        // A zone claims no address, so it cannot be refused.
        let _ = runner.handle_change(Change::SetZone(config.zone.clone()));
        let shared =
            Arc::new(AgentState::new(runner, config, sources, datapath.datapath().counters(), datapath.facts()));
        let asked = ReportWaiters::default();
        Self {
            datapath,
            shared,
            surroundings: None,
            health_checks: HealthChecks::new(NoPorts),
            on_ready: Some(on_ready),
            asked,
            watch: None,
            forwarding: host::forwarding::read,
            networks: host::netlink::networks,
            addresses: config.follow_addresses.then(|| AddressReader::new(config.uplinks.clone())),
            not_forwarded: None,
            settings: host::settings::read,
            network: Network::default(),
            uplinks: config.uplinks.clone(),
            bad_settings: BTreeMap::new(),
            carries_packets: config.datapath.carries_packets(),
            no_address: None,
            node_ip_elsewhere: None,
            remaining: Remaining::default(),
            pods_due: None,
            not_left_alone: None,
        }
    }

    /// What to look at once this datapath serves; other datapaths are cleaned up then.
    pub(crate) fn look_around_when_ready(&mut self, mut surroundings: Surroundings) {
        surroundings.look_early().into_iter().for_each(|(kind, problem)| self.shared.set_problem(kind, problem));
        self.surroundings = Some(surroundings);
    }

    /// Answers health checks of services on their node ports from now on.
    pub(crate) fn answer_health_checks(&mut self) {
        let shared = self.shared();
        self.health_checks =
            HealthChecks::new(Server::new(move |port| shared.health_checks().answer(port, shared.now())));
    }

    /// What it shares with the other threads.
    pub(crate) fn shared(&self) -> Arc<AgentState> {
        Arc::clone(&self.shared)
    }

    /// Ends well at a signal.
    ///
    /// # Errors
    /// When the datapath was never permitted to do anything.
    pub(crate) fn run(&mut self, inbox: &Receiver<Event>) -> Result<(), DatapathError> {
        self.follow_addresses();
        self.follow_networks();
        loop {
            self.settle()?;
            let event = self.next(inbox);
            if matches!(event, Err(RecvTimeoutError::Disconnected)) {
                return Ok(());
            }
            // What came meanwhile goes into the same plan.
            for event in event.into_iter().chain(inbox.try_iter().take(MAX_EVENTS)) {
                if let Event::Stop(why) = event {
                    tracing::info!(why, "stopping; the datapath keeps serving");
                    return Ok(());
                }
                self.handle(event);
            }
        }
    }

    fn next(&self, inbox: &Receiver<Event>) -> Result<Event, RecvTimeoutError> {
        match self.patience() {
            Some(patience) => inbox.recv_timeout(patience),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::News(news) => self.shared.take_news(news),
            Event::Devices => {
                self.follow_devices();
                self.follow_pods();
                self.follow_addresses();
                self.follow_networks();
                self.follow_settings();
                self.check_forwarding();
            }
            Event::Alarm(alarm) => self.handle_alarm(alarm),
            Event::Query(question) => self.handle_query(question),
            Event::Stop(_) => {}
        }
    }

    /// Without an address of a family, no source of that family can be translated to one.
    pub(crate) fn check_addresses(&mut self) {
        let problem = self.carries_packets.then(|| self.missing_address()).flatten();
        if problem == self.no_address {
            return;
        }
        match &problem {
            Some(problem) => tracing::warn!(problem, "this node lacks an address"),
            None => tracing::info!("this node lacks no address any more"),
        }
        self.shared.set_problem("NoNodeIp", problem.clone());
        self.no_address = problem;
    }

    fn missing_address(&self) -> Option<String> {
        let runner = self.shared.runner();
        if runner.reconciler().model().node().ips.is_empty() {
            return Some(
                "the devices have no global address: give them one, or set --node-ip and start again".to_owned(),
            );
        }
        let family = *runner.reconciler().families_without_node_address().first()?;
        Some(format!(
            "services have {family} addresses and the node has none, so that flows are lost whose source has to be \
             translated: set --node-ip to all addresses of the node and start again"
        ))
    }

    pub(crate) fn follow_devices(&mut self) {
        let problem = self.datapath.follow_devices().err();
        if let Some(problem) = &problem {
            tracing::warn!(problem, "attaching to devices failed");
        }
        self.shared.set_devices(self.datapath.devices().unwrap_or_default());
        self.shared.set_problem("Devices", problem);
        self.surroundings.as_mut().into_iter().for_each(Surroundings::devices_changed);
    }

    /// Has the datapath do what is due, until nothing is.
    pub(crate) fn settle(&mut self) -> Result<(), DatapathError> {
        self.shared.health_checks().set_busy(true, self.shared.now());
        while let Some(event) = self.work() {
            self.take(event)?;
        }
        self.follow_health_checks();
        self.follow_pods_when_due();
        Ok(())
    }

    /// The datapath has done what was due: what load balancers are told follows it.
    fn follow_health_checks(&mut self) {
        let (runner, board, now) = (self.shared.runner(), self.shared.health_checks(), self.shared.now());
        if self.shared.is_ready() {
            self.health_checks.follow(runner.reconciler(), board, now);
        }
        board.set_busy(runner.reconciler().installed().is_none(), now);
    }

    /// Has the datapath do what is due next, and says what came of it.
    ///
    /// The runner is only read while the datapath works: `lb status` is answered meanwhile, however long a plan takes.
    fn work(&mut self) -> Option<runner::Event> {
        loop {
            let task = self.shared.runner_mut().poll_task(self.shared.now());
            self.shared.note_kept();
            self.become_ready();
            let began = processor_time();
            let done = task?.carry_out(&self.shared.runner(), self.datapath.datapath_mut());
            let cpu = processor_time().saturating_sub(began);
            let event = self.shared.runner_mut().handle_done(done, cpu, self.shared.now());
            if event.is_some() {
                return event;
            }
        }
    }

    fn become_ready(&mut self) {
        let ready_now = self.shared.become_ready();
        // What an earlier datapath left keeps serving until this one does, so that no moment is without either.
        self.look_around();
        if ready_now {
            // Who waits for the agent may be asked for endpoints at once.
            self.follow_health_checks();
            tracing::info!("ready");
            self.follow_settings();
            self.check_forwarding();
            self.on_ready.take().into_iter().for_each(|on_ready| on_ready());
        }
    }

    /// Logs an event of the runner, and keeps the conditions that follow from it.
    fn take(&mut self, event: runner::Event) -> Result<(), DatapathError> {
        match event {
            runner::Event::Observed { frontends, backends } => {
                tracing::info!(frontends, backends, "adopting the state of the datapath");
                self.shared.set_problem("DatapathNotObserved", None);
            }
            runner::Event::NotObserved { error, again_in } => {
                let problem = error.report();
                tracing::warn!(error = problem, ?again_in, "the datapath cannot be observed");
                self.shared.set_problem("DatapathNotObserved", Some(problem));
            }
            runner::Event::NotPermitted(error) => return Err(error),
            runner::Event::Applied { plan, outcome, took } => {
                log(&plan, &outcome, took);
                let unknown = outcome.err().and_then(|error| error.unknown);
                if unknown.is_some() {
                    self.shared.health_checks().touch_all();
                }
                self.shared.set_problem("DatapathUnknown", unknown.map(|error| error.report()));
                self.shared.note_plan(plan.id, took);
                self.check_addresses();
                self.judge_settings();
                self.surroundings.as_mut().into_iter().for_each(Surroundings::services_changed);
            }
            runner::Event::Evicted { frontends, outcome, took } => {
                log_evicted(&outcome, took);
                self.remaining.note(&frontends, &outcome);
                self.shared.set_problem("FlowsNotEnded", self.remaining.problem());
            }
            runner::Event::Inspected(inspected) => {
                let report = self.shared.note_inspection(&inspected);
                if !inspected.found.is_empty() {
                    // A frontend that could not be repaired is not as it should be.
                    self.shared.health_checks().touch_all();
                }
                self.shared.set_problem("DriftNotInspected", None);
                self.follow_networks();
                self.judge_settings();
                self.check_forwarding();
                self.answer_asked(report.map(Ok));
            }
            runner::Event::NotInspected { error, asked } => {
                let problem = error.report();
                tracing::warn!(error = problem, "the datapath cannot be inspected");
                self.shared.set_problem("DriftNotInspected", Some(problem.clone()));
                self.answer_asked(asked.then(|| Err(format!("the datapath cannot be inspected: {problem}"))));
            }
            // Every other event is about something that this agent has conditions of its own for.
            event => tracing::debug!(%event, "the runner"),
        }
        Ok(())
    }

    fn look_around(&mut self) {
        let now = self.shared.now();
        let Some(surroundings) = self.surroundings.as_mut().filter(|it| it.due() <= now && self.shared.is_ready())
        else {
            return;
        };
        surroundings.look(now).into_iter().for_each(|(kind, problem)| self.shared.set_problem(kind, problem));
        let shared = surroundings.look_at_neighbours(now, |ips| self.shared.services_at(ips));
        if let Some(((kind, problem), of_services)) = shared {
            self.shared.set_problem(kind, problem);
            self.shared.set_addresses_shared(of_services);
        }
    }

    /// How long nothing has to be done unless something happens.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let due = self.shared.runner().poll_timeout();
        let surroundings = self.surroundings.as_ref().filter(|_| self.shared.is_ready()).map(Surroundings::due);
        let health_checks = self.health_checks.due();
        let due = due.into_iter().chain(surroundings).chain(health_checks).chain(self.pods_due).min()?;
        // Never nothing: a time that has passed must not make this thread spin.
        Some(due.since(self.shared.now()).max(Duration::from_millis(1)))
    }
}

fn log(plan: &Plan, outcome: &Result<(), ApplyError>, took: Duration) {
    let (id, operations) = (plan.id.0, plan.ops.len());
    match outcome {
        Ok(()) => tracing::debug!(plan = id, operations, ?took, summary = plan.summary(), "plan applied"),
        Err(error) => tracing::warn!(plan = id, operations, ?took, %error, "plan applied in part"),
    }
}

fn log_evicted(outcome: &Result<Evicted, DatapathError>, took: Duration) {
    match outcome {
        Ok(evicted) if evicted.remaining.is_empty() => {
            tracing::debug!(sockets = evicted.sockets, flows = evicted.flows, ?took, "flows ended whose backend left");
        }
        Ok(evicted) => tracing::warn!(
            sockets = evicted.sockets,
            flows = evicted.flows,
            remaining = evicted.count_remaining(),
            ?took,
            %evicted,
            "some flows go on whose backend left"
        ),
        Err(error) => tracing::warn!(error = error.report(), "flows whose backend left cannot be ended"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use lb_core::{
        datapath::{Capabilities, Datapath, ErrorKind, Eviction, Remaining, Role},
        faulty::{Faults, Faulty},
        memory::MemoryDatapath,
        name::SliceName,
        reconciler::Reconciler,
        state::State,
    };

    use super::*;
    use crate::driver;
    use crate::testing;
    use crate::testing::conditions;
    use crate::testing::config;

    fn agent(datapath: impl Datapath + 'static) -> Engine {
        testing::agent(&config(), datapath)
    }

    fn faulty(faults: Faults) -> Faulty<MemoryDatapath> {
        Faulty::new(MemoryDatapath::default(), faults, 1)
    }

    #[test]
    fn a_datapath_of_which_nothing_is_known_is_given_time_and_asked_again() {
        for (faults, condition) in [
            (Faults { interrupted_plans: 1000, ..Faults::default() }, "DatapathUnknown"),
            (Faults { failed_observations: 1000, ..Faults::default() }, "DatapathNotObserved"),
        ] {
            let mut agent = agent(faulty(faults));
            agent.settle().unwrap();
            assert_eq!(conditions(&agent), [condition]);
            assert!(!agent.shared.is_ready());
            let (first, _) = agent.shared.runner().reconciler().poll_timeout().unwrap();
            assert!(agent.patience().unwrap() <= Reconciler::MIN_RETRY_DELAY);
            while agent.shared.runner().reconciler().poll_timeout() == Some((first, "observe the datapath")) {
                agent.settle().unwrap();
            }
            assert!(agent.patience().unwrap() > Reconciler::MIN_RETRY_DELAY, "it failed again");
            agent.datapath = Box::new(MemoryDatapath::default());
            while !agent.shared.is_ready() {
                agent.settle().unwrap();
            }
            assert_eq!(conditions(&agent), Vec::<String>::new());
            assert_eq!(agent.shared.runner().reconciler().poll_timeout(), None);
        }
    }

    #[test]
    fn flows_that_go_on_with_a_backend_that_left_are_a_condition_until_they_have_ended() {
        let manifest = testing::WEB
            .replace("metadata: {name: web}, spec", "metadata: {name: web, annotations: {lb/drain: cut}}, spec");
        assert_ne!(manifest, testing::WEB);
        let stubborn = Arc::new(AtomicBool::new(true));
        let datapath = Stubborn(MemoryDatapath::default(), Arc::clone(&stubborn));
        let mut agent = testing::agent_of(&manifest, &config(), datapath);
        agent.settle().unwrap();
        assert_eq!(conditions(&agent), ["FlowsNotEnded"]);
        // The next look finds them gone.
        stubborn.store(false, Ordering::Relaxed);
        let gone = Change::RemoveEndpoints(SliceName::new("default", "web-1"));
        agent.shared.runner_mut().handle_change(gone).unwrap();
        while conditions(&agent).contains(&"FlowsNotEnded".to_owned()) {
            agent.settle().unwrap();
        }
    }

    /// Memory whose flows do not end while it is told so.
    struct Stubborn(MemoryDatapath, Arc<AtomicBool>);

    impl Datapath for Stubborn {
        fn capabilities(&self) -> Capabilities {
            self.0.capabilities()
        }

        fn observe(&mut self) -> Result<State, DatapathError> {
            self.0.observe()
        }

        fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
            self.0.apply(plan)
        }

        fn evict(&mut self, evictions: &[Eviction]) -> Result<Evicted, DatapathError> {
            let stays = |eviction: &Eviction| Remaining {
                frontend: eviction.frontend,
                flows: 1,
                cause: DatapathError::new(ErrorKind::Unsupported, "they are elsewhere"),
            };
            let evictions = evictions.iter().filter(|_| self.1.load(Ordering::Relaxed));
            Ok(Evicted { remaining: evictions.map(stays).collect(), ..Evicted::default() })
        }

        fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
            self.0.set_role(role)
        }

        fn cleanup(&mut self) -> Result<(), DatapathError> {
            self.0.cleanup()
        }
    }

    #[test]
    fn a_frontend_that_is_refused_does_not_hold_up_readiness() {
        let mut agent = agent(faulty(Faults { refused_frontends: 1000, ..Faults::default() }));
        agent.settle().unwrap();
        assert!(agent.shared.is_ready());
        assert_eq!(conditions(&agent), ["FrontendFailed"]);
        assert!(agent.patience().unwrap() <= Reconciler::MIN_RETRY_DELAY);
    }

    #[test]
    fn what_was_never_permitted_ends_the_agent() {
        let mut agent = agent(Forbidden);
        assert_eq!(agent.settle().unwrap_err().kind(), ErrorKind::Permission);
    }

    #[test]
    fn a_node_without_an_address_of_a_family_that_services_have_says_so() {
        let of = |ips: &[&str], manifests: &str| {
            let mut config = config();
            config.datapath = driver::NFTABLES;
            config.node.ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            let mut agent = testing::agent_of(manifests, &config, MemoryDatapath::default());
            agent.forwarding = Forwarding::default;
            agent.check_addresses();
            agent.settle().unwrap();
            conditions(&agent).into_iter().filter(|kind| kind == "NoNodeIp").count()
        };
        let six = testing::WEB.replace("10.96.0.1,", "'fd96::1',");
        assert_ne!(six, testing::WEB);
        assert_eq!((of(&[], testing::WEB), of(&[], "")), (1, 1));
        assert_eq!((of(&["192.0.2.1"], testing::WEB), of(&["192.0.2.1"], &six)), (0, 1));
        assert_eq!((of(&["2001:db8::1"], testing::WEB), of(&["2001:db8::1"], &six)), (1, 0));
        assert_eq!(of(&["192.0.2.1", "2001:db8::1"], &six), 0);
    }

    #[test]
    fn the_next_agent_takes_over_what_is_there_and_writes_nothing() {
        let kernel = testing::Kernel::default();
        agent(kernel.clone()).settle().unwrap();
        let before = kernel.state();
        let mut next = agent(kernel.clone());
        next.settle().unwrap();
        assert_eq!((next.shared.status().datapath.plan, kernel.state()), (0, before));
        assert!(next.shared.is_ready());
    }

    #[test]
    fn an_agent_that_is_told_to_stop_leaves_something_whole() {
        let kernel = testing::Kernel::default();
        let mut agent = agent(kernel.clone());
        let (events, inbox) = std::sync::mpsc::channel();
        events.send(Event::Stop("SIGTERM".into())).unwrap();
        let source = SourceName("test".into());
        let late = vec![(source.clone(), "NeverHeardOf", Some("it came too late".into()))];
        let news = Delivery { source, changes: Vec::new(), report: None, conditions: late, _accepted: None };
        events.send(Event::News(news)).unwrap();
        agent.run(&inbox).unwrap();
        assert_eq!((kernel.state().dangling(), kernel.state().frontends.len()), (None, 1));
        assert_eq!(conditions(&agent), Vec::<String>::new(), "what comes after the signal is not begun");
    }

    struct Forbidden;

    impl Datapath for Forbidden {
        fn capabilities(&self) -> Capabilities {
            Capabilities::all("forbidden")
        }

        fn observe(&mut self) -> Result<State, DatapathError> {
            Err(DatapathError::new(ErrorKind::Permission, "no"))
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
