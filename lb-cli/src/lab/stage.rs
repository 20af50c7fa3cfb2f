//! A cluster whose manifests change, and what its agents make of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use ipnet::IpNet;
use lb_agent::{
    api::{Client, ClientError},
    driver::DatapathKind,
};
use lb_k8s::Snapshot;
use lb_testkit::{
    lab::{Node, Origin},
    traffic::{Load, LoadKind, Report, Until},
};
use nix::sys::signal::Signal;

use super::{
    error::RunError,
    expectation::{Checks, Seen},
    fleet::Fleet,
    lb_ipam::View,
    use_case::UseCase,
    wait,
};

/// The node that the pools' addresses are routed to, and whose agent is restarted.
pub(super) const ENTRY: usize = 0;
/// What all pools are in.
const ROUTED: [&str; 2] = ["20.0.0.0/16", "fd00:20::/32"];

/// A running cluster.
pub(super) struct Stage {
    use_case: UseCase,
    fleet: Fleet,
    /// Every manifest of the use case.
    files: BTreeMap<&'static str, &'static str>,
    /// Those that are applied.
    applied: BTreeMap<&'static str, String>,
}

/// What came of traffic while an agent was restarted.
pub(super) struct Kept {
    pub(super) messages: u64,
    pub(super) connections: u64,
    pub(super) failed: u64,
    pub(super) example: Option<String>,
}

impl Stage {
    /// Builds the cluster of a use case, applies all its manifests but `later`, and starts the agents.
    pub(super) fn start(use_case: UseCase, datapath: DatapathKind, later: &[&'static str]) -> Result<Self, RunError> {
        let fleet = Fleet::build(&use_case.snapshot()?, datapath)?;
        let files: BTreeMap<_, _> = use_case.manifests().into_iter().collect();
        let mut stage = Self { use_case, fleet, files, applied: BTreeMap::new() };
        let first: Vec<_> = stage.files.keys().copied().filter(|file| !later.contains(file)).collect();
        stage.announce(ENTRY)?;
        stage.apply(&first)?;
        stage.fleet.start_agents()?;
        Ok(stage)
    }

    /// Routes the addresses of services and of all pools to a node, for clients outside, as BGP or an announcement on the
    /// segment would.
    pub(super) fn announce(&self, node: usize) -> Result<(), RunError> {
        self.fleet.lab().route_services_via(node)?;
        for prefix in ROUTED.into_iter().filter_map(|text| text.parse::<IpNet>().ok()) {
            self.fleet.lab().route_via(prefix, node)?;
        }
        Ok(())
    }

    /// Adds manifests, all in one moment.
    pub(super) fn apply(&mut self, files: &[&'static str]) -> Result<(), RunError> {
        for file in files {
            let text = self.files.get(file).ok_or_else(|| self.lacks("a file that is to be applied"))?;
            self.applied.insert(file, (*text).to_owned());
        }
        self.publish()
    }

    /// Removes one.
    pub(super) fn delete(&mut self, file: &str) -> Result<(), RunError> {
        self.applied.remove(file).ok_or_else(|| self.lacks("a file that is to be deleted"))?;
        self.publish()
    }

    /// Replaces the first `from` in one by `to`.
    pub(super) fn edit(&mut self, file: &str, from: &str, to: &str) -> Result<(), RunError> {
        let lacks = self.lacks("a text that is to be edited");
        let text = self.applied.get_mut(file).filter(|text| text.contains(from)).ok_or(lacks)?;
        *text = text.replacen(from, to, 1);
        self.publish()
    }

    pub(super) fn lacks(&self, what: &'static str) -> RunError {
        RunError::Lacks { use_case: self.use_case.name(), what }
    }

    /// Publishes the manifests with the first `from` in one of them replaced by `to`. What is applied stays as it was, and
    /// is back with [`publish`](Self::publish).
    pub(super) fn publish_with(&self, file: &str, from: &str, to: &str) -> Result<(), RunError> {
        let text = self.applied.get(file).filter(|text| text.contains(from));
        let edited = text.ok_or_else(|| self.lacks("a text that is to be edited"))?.replacen(from, to, 1);
        let texts = self.applied.iter().map(|(name, text)| if *name == file { &edited } else { text });
        self.publish_texts(texts)
    }

    /// Publishes what is applied.
    pub(super) fn publish(&self) -> Result<(), RunError> {
        self.publish_texts(self.applied.values())
    }

    /// One file, so that no agent sees half of a change: which services come together decides who is served first.
    fn publish_texts<'a>(&self, texts: impl Iterator<Item = &'a String>) -> Result<(), RunError> {
        let texts: Vec<&str> = texts.map(String::as_str).collect();
        let text = texts.join("\n---\n");
        let snapshot = Snapshot::parse("manifests.yaml", &text)
            .map_err(|source| RunError::Manifests { use_case: self.use_case.name(), source })?;
        let slices = self.fleet.endpoint_slices(&snapshot)?;
        self.fleet.write("manifests.yaml", &format!("{text}\n---\n{slices}"))
    }

    /// Whether the datapath lacks what the services ask for, as their conditions say. Notes it; otherwise notes that every
    /// agent carries every service.
    pub(super) fn is_left_out(&self, checks: &mut Checks<'_>) -> Result<bool, RunError> {
        let lacks = self.lacks_of_datapath()?;
        if let Some(lacks) = &lacks {
            checks.leave_out(lacks.clone());
        } else {
            checks.check("every agent carries every service", || self.is_settled())?;
        }
        Ok(lacks.is_some())
    }

    /// What the services ask for and the datapath does not have.
    fn lacks_of_datapath(&self) -> Result<Option<String>, RunError> {
        let mut lacks = BTreeSet::new();
        for (_, services) in self.ask_all(Client::services)? {
            let conditions = services.into_iter().flat_map(|service| service.conditions);
            lacks.extend(conditions.filter(|it| it.kind == "Degraded").map(|it| it.message));
        }
        let lacks: Vec<String> = lacks.into_iter().collect();
        Ok((!lacks.is_empty()).then(|| lacks.join("; ")))
    }

    fn is_settled(&self) -> Result<Seen, RunError> {
        let all = self.ask_all(Client::status)?;
        let wrong = all.iter().find(|(_, status)| !status.settled || !status.conditions.is_empty());
        Ok(match wrong {
            Some((node, status)) => Err(format!("{node}: settled {}, {:?}", status.settled, status.conditions)),
            None => Ok(format!("{} agents", all.len())),
        })
    }

    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        self.fleet.lab().nodes()
    }

    /// Waits until `wanted` accepts what each agent says: all of it, or what the last one that is asked lacks.
    pub(super) fn until(
        &self,
        wanted: impl Fn(&View) -> Result<(), String>,
    ) -> Result<Result<Vec<View>, String>, RunError> {
        let mut views = Vec::new();
        for node in self.nodes() {
            let seen = wait::until(|| {
                let view = View::of(&self.fleet, node)?;
                Ok(wanted(&view).map(|()| view).map_err(|lack| format!("{}: {lack}", node.name())))
            })?;
            match seen {
                Ok(view) => views.push(view),
                Err(lack) => return Ok(Err(lack)),
            }
        }
        Ok(Ok(views))
    }

    /// Asks the agent of each node.
    pub(super) fn ask_all<T>(
        &self,
        ask: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Result<Vec<(String, T)>, RunError> {
        let answer = |node: Node<'_>| {
            let answer = ask(&self.fleet.ask(node.index())?);
            let answer = answer.map_err(|source| RunError::Agent { node: node.name().into(), source })?;
            Ok((node.name().to_owned(), answer))
        };
        self.nodes().map(answer).collect()
    }

    /// Ends the agent of the node that all traffic from outside comes to, once with each signal, while clients outside
    /// and on the node talk to `to`.
    pub(super) fn interrupt(&mut self, to: SocketAddr, signals: &[Signal]) -> Result<Kept, RunError> {
        let long = Load::new(LoadKind::LongLived, to).lanes(LANES).interval(Duration::from_millis(1));
        let short = Load::new(LoadKind::NewConnections, to).interval(Duration::from_millis(2));
        let started = self.fleet.restart(ENTRY, signals, |lab| {
            let mut started = Vec::new();
            for origin in [Origin::Beyond, Origin::Node(ENTRY)] {
                for load in [&long, &short] {
                    started.push(lab.client(origin).start_load(&load.clone().until(Until::Stopped))?);
                }
            }
            for load in &started {
                // A load that is not answered shows in what it reports.
                let _ = wait::until(|| {
                    let answered = load.answered()?;
                    Ok(if answered < ANSWERED { Err(format!("{answered} answers")) } else { Ok(()) })
                })?;
            }
            Ok(started)
        })?;
        let reports: Vec<Report> = started.into_iter().map(|load| load.stop()).collect::<Result<_, _>>()?;
        let sum = |first: usize| reports.iter().skip(first).step_by(2).map(Report::answered).sum();
        let example = reports.iter().find_map(|report| report.example.as_ref());
        Ok(Kept {
            messages: sum(0),
            connections: sum(1),
            failed: reports.iter().map(Report::failed).sum(),
            example: example.map(ToString::to_string),
        })
    }
}

/// Long-lived connections of each client.
pub(super) const LANES: usize = 4;
/// Answers to each client before anything is interrupted.
const ANSWERED: u64 = 20;
