//! Answers to what is asked on the socket.

use std::{
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use lb_core::{Packet, Wanted};
use lb_ipam::PoolName;

use crate::{
    api::{Pool, Query, Reply, Request, Service, Status},
    engine::{
        Event,
        inspection::{Question, Verified},
        state::Shared,
    },
    flow,
    source::Sources,
};

/// How long the datapath may take to answer. Less than a client waits.
const PATIENCE: Duration = Duration::from_secs(8);

/// What answers need.
pub(crate) struct Answers {
    shared: Arc<Shared>,
    sources: Arc<Sources>,
    events: Sender<Event>,
}

impl Answers {
    pub(crate) fn new(shared: Arc<Shared>, sources: Arc<Sources>, events: Sender<Event>) -> Self {
        Self { shared, sources, events }
    }

    pub(crate) fn answer(&self, request: &Request) -> Reply {
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/pools/plan") => self.plan(request).unwrap_or_else(|reply| reply),
            (_, "/v1/pools/plan") => Reply::problem(405, "use POST, with the manifests as body"),
            ("GET", path) => self.get(path, &request.query),
            (method, _) => Reply::problem(405, format!("method {method} is not known here, use GET")),
        }
    }

    fn get(&self, path: &str, query: &Query) -> Reply {
        let shared = &self.shared;
        match path {
            "/v1/services" => Reply::ok(&self.services()),
            "/v1/backends" => Reply::ok(&shared.backends()),
            "/v1/status" => Reply::ok(&self.status()),
            "/v1/pools" => Reply::ok(&self.pools()),
            "/v1/pools/get" => self.pool(query),
            "/v1/pools/explain" => self.explain_address(query),
            "/v1/drift" => match self.ask(Question::Inspect) {
                Ok(report) => Reply::ok(&report),
                Err(problem) => Reply::problem(503, problem),
            },
            "/v1/drift/watch" => match shared.watch_drift() {
                Some(subscription) => Reply::stream(subscription),
                None => Reply::problem(503, "too many clients watch drift already"),
            },
            "/v1/explain" => self.explain(query).unwrap_or_else(|reply| reply),
            _ => Reply::problem(404, format!("there is no {path} here")),
        }
    }

    fn services(&self) -> Vec<Service> {
        let mut services = self.shared.services();
        self.sources.allocation().describe(&mut services);
        services
    }

    fn status(&self) -> Status {
        let mut status = self.shared.status();
        self.sources.allocation().describe_status(&mut status);
        status
    }

    fn pools(&self) -> Vec<Pool> {
        let mut pools = self.sources.allocation().pools();
        self.shared.describe_pools(&mut pools);
        pools
    }

    fn pool(&self, query: &Query) -> Reply {
        let Some(name) = query.value("name") else { return Reply::problem(400, "name is missing") };
        let detail = self.sources.allocation().pool(name);
        match detail {
            Some(mut detail) => {
                self.shared.describe_pools(std::slice::from_mut(&mut detail.pool));
                Reply::ok(&detail)
            }
            None => Reply::problem(404, format!("the agent knows no pool `{name}`")),
        }
    }

    fn explain_address(&self, query: &Query) -> Reply {
        let address = query.value("address").unwrap_or_default();
        match address.parse() {
            Ok(address) => Reply::ok(&self.sources.allocation().explain(address)),
            Err(_) => Reply::problem(400, format!("address `{address}` is no IP address")),
        }
    }

    fn plan(&self, request: &Request) -> Result<Reply, Reply> {
        let text = std::str::from_utf8(&request.body)
            .map_err(|error| Reply::problem(400, format!("the manifests are not UTF-8: {error}")))?;
        let removed: Vec<PoolName> = request.query.values("remove").map(PoolName::new).collect();
        let unknown = self.sources.allocation().unknown(&removed).cloned();
        if let Some(unknown) = unknown {
            return Err(Reply::problem(404, format!("the agent knows no pool `{unknown}`")));
        }
        let plan = self.sources.plan(request.query.value("file").unwrap_or("request"), text, &removed);
        plan.map(|plan| Reply::ok(&plan)).map_err(|problem| Reply::problem(400, problem))
    }

    fn explain(&self, query: &Query) -> Result<Reply, Reply> {
        let usage = |problem: String| Reply::problem(400, problem);
        let part = |name| query.value(name).unwrap_or_default();
        let packet = {
            let reconciler = self.shared.reconciler();
            let node = reconciler.model().node();
            flow::parse(part("protocol"), part("source"), part("destination"), query.value("entry"), node)
        };
        let packet = packet.map_err(|error| usage(error.to_string()))?;
        let wanted = query.value("why-not").map(flow::parse_backend).transpose();
        let wanted: Option<Wanted> = wanted.map_err(|error| usage(error.to_string()))?;
        let verified = match query.value("verify") {
            None | Some("false") => None,
            Some("true") => Some(self.verify(packet)?),
            Some(other) => return Err(usage(format!("verify `{other}` is neither true nor false"))),
        };
        Ok(Reply::ok(&self.shared.explain(&packet, verified.as_ref(), wanted)))
    }

    fn verify(&self, packet: Packet) -> Result<Verified, Reply> {
        match self.ask(|reply| Question::Ask(packet, reply)) {
            Ok(Some(verified)) => Ok(verified),
            Ok(None) => {
                let kind = self.shared.kind();
                Err(Reply::problem(501, format!("datapath {kind} cannot be asked what becomes of a packet")))
            }
            Err(problem) => Err(Reply::problem(503, format!("the datapath cannot be asked: {problem}"))),
        }
    }

    /// Asks the thread of the datapath.
    fn ask<T>(&self, question: impl FnOnce(Sender<Result<T, String>>) -> Question) -> Result<T, String> {
        let (reply, answer) = channel();
        let stopping = || "the agent is stopping".to_owned();
        self.events.send(Event::Question(question(reply))).map_err(|_| stopping())?;
        answer.recv_timeout(PATIENCE).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err(format!(
                "the datapath was busy for {} s, or nobody knows what it holds; see `lb status`",
                PATIENCE.as_secs()
            )),
            RecvTimeoutError::Disconnected => Err(stopping()),
        })
    }
}
