//! Answers to the requests on the socket.

use std::{
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use hyper::{Method, StatusCode};
use lb_core::decision::Packet;
use lb_ipam::PoolName;
use serde::de::DeserializeOwned;

use crate::{
    api::{
        self, Pool, Reply, Request, Service, Status,
        query::{self, AddressQuery, PlanQuery, PoolQuery},
    },
    engine::{
        Event,
        inspection::{DatapathQuery, Verified},
        state::AgentState,
    },
    source::Sources,
};

/// How long the datapath may take to answer. Less than a client waits.
const PATIENCE: Duration = Duration::from_secs(8);

/// Everything that answers are made of.
pub(crate) struct Answers {
    shared: Arc<AgentState>,
    sources: Arc<Sources>,
    events: Sender<Event>,
}

impl Answers {
    pub(crate) fn new(shared: Arc<AgentState>, sources: Arc<Sources>, events: Sender<Event>) -> Self {
        Self { shared, sources, events }
    }

    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let refused = |why: String| Reply::problem(StatusCode::METHOD_NOT_ALLOWED, why);
        let answered = match (request.method(), request.uri().path()) {
            (&Method::POST, "/v1/pools/plan") => self.plan(request),
            (_, "/v1/pools/plan") => Err(refused("use POST, with the manifests as body".into())),
            (&Method::GET, path) => self.get(path, request.uri().query()),
            (method, _) => Err(refused(format!("method {method} is not known here, use GET"))),
        };
        answered.unwrap_or_else(|problem| problem)
    }

    fn get(&self, path: &str, query: Option<&str>) -> Result<Reply, Reply> {
        let shared = &self.shared;
        Ok(match path {
            "/v1/services" => Reply::ok(&self.services()),
            "/v1/backends" => Reply::ok(&shared.backends()),
            "/v1/status" => Reply::ok(&self.status()),
            "/v1/pools" => Reply::ok(&self.pools()),
            "/v1/pools/get" => self.pool(&asked::<PoolQuery>(query)?.name)?,
            "/v1/pools/explain" => Reply::ok(&self.sources.allocation().explain(asked::<AddressQuery>(query)?.address)),
            "/v1/drift" => Reply::ok(&self.ask(DatapathQuery::Inspect).map_err(unavailable)?),
            "/v1/drift/watch" => {
                let lines = shared.watch_drift();
                Reply::stream(lines.ok_or_else(|| unavailable("too many clients watch drift already".into()))?)
            }
            "/v1/explain" => self.explain(&asked(query)?)?,
            _ => return Err(unknown(format!("there is no {path} here"))),
        })
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

    fn pool(&self, name: &str) -> Result<Reply, Reply> {
        let detail = self.sources.allocation().pool(name);
        let mut detail = detail.ok_or_else(|| unknown_pool(name))?;
        self.shared.describe_pools(std::slice::from_mut(&mut detail.pool));
        Ok(Reply::ok(&detail))
    }

    fn plan(&self, request: &Request) -> Result<Reply, Reply> {
        let text = std::str::from_utf8(request.body())
            .map_err(|error| misunderstood(format!("the manifests are not UTF-8: {error}")))?;
        let PlanQuery { file, remove } = asked(request.uri().query())?;
        let removed: Vec<PoolName> = remove.iter().map(|name| PoolName::new(name)).collect();
        if let Some(name) = self.sources.allocation().unknown(&removed) {
            return Err(unknown_pool(name.as_str()));
        }
        let plan = self.sources.plan(&file, text, &removed).map_err(misunderstood)?;
        Ok(Reply::ok(&plan))
    }

    fn explain(&self, question: &api::ExplainQuery) -> Result<Reply, Reply> {
        let packet = question.packet(self.shared.runner().reconciler().model().node());
        let packet = packet.map_err(|error| misunderstood(error.to_string()))?;
        let verified = if question.verify { Some(self.verify(packet)?) } else { None };
        Ok(Reply::ok(&self.shared.explain(&packet, verified.as_ref(), question.why_not)))
    }

    fn verify(&self, packet: Packet) -> Result<Verified, Reply> {
        match self.ask(|reply| DatapathQuery::Ask(packet, reply)) {
            Ok(Some(verified)) => Ok(verified),
            Ok(None) => {
                let kind = self.shared.kind();
                let problem = format!("datapath {kind} cannot be asked what becomes of a packet");
                Err(Reply::problem(StatusCode::NOT_IMPLEMENTED, problem))
            }
            Err(problem) => Err(unavailable(format!("the datapath cannot be asked: {problem}"))),
        }
    }

    /// Asks the thread of the datapath.
    fn ask<T>(&self, question: impl FnOnce(Sender<Result<T, String>>) -> DatapathQuery) -> Result<T, String> {
        let (reply, answer) = channel();
        let stopping = || "the agent is stopping".to_owned();
        self.events.send(Event::Query(question(reply))).map_err(|_| stopping())?;
        answer.recv_timeout(PATIENCE).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err(format!(
                "the datapath was busy for {} s, or nobody knows what it holds; see `lb status`",
                PATIENCE.as_secs()
            )),
            RecvTimeoutError::Disconnected => Err(stopping()),
        })
    }
}

/// The question in a query.
fn asked<T: DeserializeOwned>(query: Option<&str>) -> Result<T, Reply> {
    query::read(query).map_err(misunderstood)
}

fn misunderstood(problem: String) -> Reply {
    Reply::problem(StatusCode::BAD_REQUEST, problem)
}

fn unknown(problem: String) -> Reply {
    Reply::problem(StatusCode::NOT_FOUND, problem)
}

fn unknown_pool(name: &str) -> Reply {
    unknown(format!("the agent knows no pool `{name}`"))
}

fn unavailable(problem: String) -> Reply {
    Reply::problem(StatusCode::SERVICE_UNAVAILABLE, problem)
}
