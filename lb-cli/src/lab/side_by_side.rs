//! The same manifests on one datapath after the other.

use std::time::Duration;

use lb_agent::driver::DatapathKind;
use lb_core::addr::Family;
use serde::Serialize;

use super::{
    checks::{self, targets},
    cluster::Cluster,
    error::RunError,
    expectation::{Checks, Expectation},
    interrupt,
    use_case::UseCase,
};

/// Connections that are timed, to the service and to a backend in turn.
const ROUNDS: u32 = 500;

/// One datapath.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) datapath: DatapathKind,
    pub(super) passed: bool,
    /// From the start of the agents until the services were in the datapath of every node.
    pub(super) ready_ms: Option<f64>,
    /// Rules on one node.
    pub(super) rules: Option<u64>,
    /// Elements of maps and sets on one node.
    pub(super) elements: Option<u64>,
    /// A new TCP connection through the service, from a pod.
    pub(super) connect_p50_us: Option<f64>,
    pub(super) connect_p99_us: Option<f64>,
    /// The same to a backend itself, interleaved with the former.
    pub(super) direct_p50_us: Option<f64>,
    pub(super) connect_p50_ratio: Option<f64>,
    pub(super) expectations: Vec<Expectation>,
}

/// Runs the manifests of the kube-proxy replacement, which have nothing special, on `datapath`.
pub(super) fn run(datapath: DatapathKind, progress: &dyn Fn(&str)) -> Result<Row, RunError> {
    let cluster = Cluster::start(UseCase::KubeProxyReplacement, datapath)?;
    let mut checks = Checks::new(progress);
    checks::traffic(&cluster, &mut checks)?;
    interrupt::check()?;
    progress("timing connections");
    let [service, direct] = race(&cluster)?;
    let status = cluster.ask(0)?.status();
    let status = status.map_err(|source| RunError::Agent { node: cluster.lab().node(0).name().into(), source })?;
    let usage = status.datapath.usage;
    Ok(Row {
        datapath,
        passed: checks.all.iter().all(|expectation| expectation.passed),
        ready_ms: Some(millis(cluster.ready)),
        rules: usage.map(|usage| usage.rules),
        elements: usage.map(|usage| usage.elements),
        connect_p50_us: Some(micros(service.p50())),
        connect_p99_us: Some(micros(service.p99())),
        direct_p50_us: Some(micros(direct.p50())),
        connect_p50_ratio: Some(service.p50().as_secs_f64() / direct.p50().as_secs_f64().max(f64::EPSILON)),
        expectations: checks.all,
    })
}

/// Connections to the service and to one of its backends, in turn.
fn race(cluster: &Cluster) -> Result<[lb_testkit::traffic::Latencies; 2], RunError> {
    let service = targets(cluster).into_iter().next();
    let backend = cluster.backends.first().and_then(|name| cluster.lab().pod(name));
    let lacks = |what| RunError::Lacks { use_case: UseCase::KubeProxyReplacement.name(), what };
    let service = service.ok_or_else(|| lacks("a cluster address"))?;
    let backend = backend.ok_or_else(|| lacks("a backend"))?;
    let direct = backend.socket(Family::of(service.ip()), cluster.port);
    let timed = cluster.lab().client(cluster.client_origin()).connect_race(&[service, direct], ROUNDS)?;
    <[_; 2]>::try_from(timed).map_err(|_| lacks("two places to connect to"))
}

impl Row {
    /// A datapath that this machine cannot have.
    pub(super) fn cannot_run(datapath: DatapathKind, error: &RunError) -> Self {
        Self {
            datapath,
            passed: false,
            ready_ms: None,
            rules: None,
            elements: None,
            connect_p50_us: None,
            connect_p99_us: None,
            direct_p50_us: None,
            connect_p50_ratio: None,
            expectations: vec![Expectation::cannot_run(datapath, error)],
        }
    }

    pub(super) fn cells(&self) -> [String; 9] {
        let figure = |figure: Option<f64>, digits| figure.map(|it| format!("{it:.digits$}")).unwrap_or_default();
        let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
        [
            self.datapath.to_string(),
            if self.passed { "passed".into() } else { "FAILED".into() },
            figure(self.ready_ms, 0),
            number(self.rules),
            number(self.elements),
            figure(self.connect_p50_us, 1),
            figure(self.connect_p99_us, 1),
            figure(self.direct_p50_us, 1),
            figure(self.connect_p50_ratio, 2),
        ]
    }

    /// Promises that were not kept, a line each.
    pub(super) fn failures(&self) -> impl Iterator<Item = String> {
        let failed = self.expectations.iter().filter(|expectation| !expectation.passed);
        failed.map(|expectation| format!("{}: {}: {}", self.datapath, expectation.name, expectation.detail))
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
