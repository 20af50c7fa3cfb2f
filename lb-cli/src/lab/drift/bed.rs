//! A cluster whose datapath others change.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use lb_agent::{
    api::{Client, DriftNews, DriftOutcome},
    driver::{
        DatapathKind, Setting,
        lab::{self, ForeignEdit, Scene},
    },
};
use lb_testkit::{
    lab::{Held, Node, Origin},
    traffic::{Request, Transport},
};

use super::{
    super::{checks::targets, cluster::Cluster, error::RunError, interrupt},
    result::{Fate, Times},
};

/// How long a repair may take. Iptables is compared only now and then.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much longer the agents may take to carry each service out. Three share the machine.
const PER_SERVICE: Duration = Duration::from_millis(10);
/// How often it is looked whether the user has seen enough.
const LOOK_UP: Duration = Duration::from_millis(200);
/// Shortest time from one edit to the next.
const PACE: Duration = Duration::from_millis(550);
/// Connections that are held from each place while edits are made.
const CONNECTIONS: usize = 50;
/// New connections after the edits of a kind.
const NEW: usize = 20;
/// The node whose datapath is changed: clients outside go through it.
const NODE: usize = 0;

/// A node whose datapath is changed, and those who notice.
pub(super) struct Bed<'a> {
    cluster: &'a Cluster,
    node: Node<'a>,
    scene: Scene,
    agent: Client,
    /// When the agent said that it repaired something.
    repairs: Receiver<Instant>,
}

impl<'a> Bed<'a> {
    pub(super) fn new(cluster: &'a Cluster, kind: DatapathKind) -> Result<Self, RunError> {
        let node = cluster.lab().node(NODE);
        let agent = cluster.ask(NODE)?;
        let frontend = targets(cluster).into_iter().find(SocketAddr::is_ipv4);
        let frontend =
            frontend.ok_or(RunError::Lacks { use_case: "kube-proxy-replacement", what: "an IPv4 address" })?;
        let pin_dir = if kind.reads(Setting::PinDir) { node.pin_dir()? } else { Default::default() };
        let (told, repairs) = channel();
        let watch = agent.watch_drift().map_err(|source| RunError::Agent { node: node.name().into(), source })?;
        thread::spawn(move || {
            let repaired = |news: &DriftNews| matches!(news, DriftNews::Difference(record) if record.status == DriftOutcome::Repaired);
            // It ends with the agent.
            watch.flatten().filter(repaired).take_while(|_| told.send(Instant::now()).is_ok()).for_each(drop);
        });
        Ok(Self { cluster, node, scene: Scene { kind, pin_dir, frontend }, agent, repairs })
    }

    /// Further services, of which only the datapath knows: nobody asks them anything.
    pub(super) fn add_services(&self, services: u32) -> Result<(), RunError> {
        let directory = self.cluster.lab().run_dir()?;
        let draft = directory.join("services.yaml");
        let place = directory.join("manifests").join("services.yaml");
        let text: String = (0..services).map(manifest).collect();
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &place));
        written.map_err(|source| RunError::File { path: place, source })?;
        let patience = PATIENCE + PER_SERVICE * services;
        let deadline = Instant::now() + patience;
        loop {
            interrupt::check()?;
            let status = self.agent.status().map_err(|source| self.silent(source))?;
            if status.settled && status.counts.services > services as usize {
                return Ok(());
            }
            if Instant::now() > deadline {
                let (node, services) = (self.node.name().into(), services as usize + 1);
                return Err(RunError::TooMany { node, services, waited: patience });
            }
            // The pace of looking.
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn repeat(&self, edit: &ForeignEdit, times: u32) -> Result<Times, RunError> {
        let mut measured = Times::default();
        for round in 0..times as usize {
            interrupt::check()?;
            let next = Instant::now() + PACE;
            self.once(edit, round, &mut measured)?;
            // The next one would wait for as long, and find what this one left.
            if measured.not_repaired > 0 {
                break;
            }
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(measured)
    }

    fn once(&self, edit: &ForeignEdit, round: usize, measured: &mut Times) -> Result<(), RunError> {
        let failed = |source| RunError::Rules { action: format!("{} on {}", edit.name, self.node.name()), source };
        let before = self.listing().map_err(failed)?;
        let scene = &self.scene;
        let tool = self.node.run(|| (edit.command)(scene, round))?.map_err(failed)?;
        self.repairs.try_iter().for_each(drop);
        let start = Instant::now();
        self.node.run(|| lab::run(&tool))?.map_err(failed)?;
        measured.tools.push(start.elapsed());
        match self.repair(start + PATIENCE)? {
            Some(at) if self.is_again(&before)? => measured.repairs.push(at.saturating_duration_since(start)),
            Some(_) | None => measured.not_repaired += 1,
        }
        Ok(())
    }

    /// When the agent said that it repaired something, if it does until then.
    fn repair(&self, deadline: Instant) -> Result<Option<Instant>, RunError> {
        loop {
            interrupt::check()?;
            match self.repairs.recv_timeout(LOOK_UP) {
                Ok(at) => return Ok(Some(at)),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// Whether what others see is what they saw before, now or a little later: one edit may be several differences.
    fn is_again(&self, before: &BTreeSet<String>) -> Result<bool, RunError> {
        let deadline = Instant::now() + PATIENCE;
        let failed = |source| RunError::Rules { action: format!("listing rules of {}", self.node.name()), source };
        while self.listing().map_err(failed)? != *before {
            interrupt::check()?;
            if Instant::now() > deadline {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn listing(&self) -> io::Result<BTreeSet<String>> {
        let scene = &self.scene;
        self.node.run(|| (scene.kind.lab().seen)(scene)).map_err(io::Error::other)?
    }

    /// Connections from the node itself and from outside through it.
    pub(super) fn hold(&self) -> Result<Vec<Held<'a>>, RunError> {
        let from = [Origin::Node(NODE), Origin::Beyond];
        let client = |origin| self.cluster.lab().client(origin);
        Ok(from
            .into_iter()
            .map(|origin| client(origin).hold(Transport::Tcp, self.scene.frontend, CONNECTIONS))
            .collect::<Result<_, _>>()?)
    }

    pub(super) fn fate(&self, held: &[Held<'_>]) -> Result<Fate, RunError> {
        let mut fate = Fate::default();
        for held in held {
            fate.connections += held.opened().iter().filter(|outcome| outcome.is_ok()).count();
            fate.survived += held.exchange()?.iter().filter(|outcome| outcome.is_ok()).count();
        }
        for origin in [Origin::Node(NODE), Origin::Beyond] {
            let outcomes = self.cluster.lab().client(origin).requests(&Request::http(self.scene.frontend), NEW)?;
            fate.failed += outcomes.iter().filter(|outcome| outcome.is_err()).count();
        }
        Ok(fate)
    }

    fn silent(&self, source: lb_agent::api::ClientError) -> RunError {
        RunError::Agent { node: self.node.name().into(), source }
    }
}

fn manifest(n: u32) -> String {
    let ip = format!("10.112.{}.{}", n / 250, 1 + n % 250);
    let backends: Vec<String> = (0..4)
        .map(|backend| format!("{{addresses: [10.244.{}.{}]}}", 128 + n / 60 % 100, 1 + n % 60 * 4 + backend))
        .collect();
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: filler-{n}, namespace: lab}}, \
         spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}}}\n---\n\
         {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: filler-{n}, namespace: lab, \
         labels: {{kubernetes.io/service-name: filler-{n}}}}}, addressType: IPv4, ports: [{{port: 8080, protocol: TCP}}], \
         endpoints: [{}]}}\n",
        backends.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use lb_k8s::Snapshot;

    use super::*;

    #[test]
    fn filling_services_are_valid_and_distinct() {
        let text: String = (0..1000).map(manifest).collect();
        let snapshot = Snapshot::parse("services.yaml", &text).unwrap();
        let ips: BTreeSet<_> = snapshot.services().flat_map(|service| service.cluster_ips.clone()).collect();
        assert_eq!(ips.len(), 1000);
    }
}
