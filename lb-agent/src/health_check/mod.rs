//! Health-check node ports: each node tells a load balancer in front of the nodes whether it has endpoints.
//!
//! A service of type LoadBalancer whose external traffic policy is Local names a port. This agent answers there by
//! HTTP, whatever the datapath. [`HealthChecks`] decides which ports are open and what is said on them; [`board`] is
//! what is said; [`server`] says it.

mod board;
mod claims;
mod server;
#[cfg(test)]
mod tests;
pub(crate) mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_core::{
    addr::{FrontendAddr, Protocol, Scope},
    model::Model,
    name::ServiceName,
    reconciler::{FrontendStatus, Reconciler},
    service::Service,
    time::{Backoff, Instant},
};

pub(crate) use board::{Answer, Board, Check};
use claims::Claims;
pub(crate) use server::Server;

/// Condition of services whose health check nobody answers.
pub(crate) const UNANSWERED: &str = "HealthCheckUnanswered";

/// First wait before a port that cannot be opened is tried again; it doubles up to the longest.
const MIN_RETRY: Duration = Duration::from_millis(200);
/// Longest wait before a port that cannot be opened is tried again.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Opens ports for health checks.
pub(crate) trait Ports: Send {
    /// Answers on `port` of these addresses until the returned value is dropped; or why nobody can. An address that is
    /// unspecified is every one of its family, and is passed over where the kernel lacks the family.
    fn open(&mut self, ips: &[IpAddr], port: u16) -> Result<Door, String>;
}

/// An open port.
pub(crate) type Door = Box<dyn Send>;

/// Opens no port: for manifests that are only checked.
pub(crate) struct NoPorts;

impl Ports for NoPorts {
    fn open(&mut self, _: &[IpAddr], _: u16) -> Result<Door, String> {
        Ok(Box::new(()))
    }
}

/// Keeps the ports and the [`Board`] as the services want them.
pub(crate) struct HealthChecks {
    ports: Box<dyn Ports>,
    claims: Claims,
    /// Services of which a frontend is not in the datapath as it should be, and since when.
    waiting: BTreeMap<ServiceName, Instant>,
    doors: BTreeMap<u16, DoorState>,
    /// Why health checks are not answered, as it was last said.
    problems: BTreeMap<ServiceName, String>,
}

/// One port that services claim.
struct DoorState {
    owner: ServiceName,
    /// The addresses that it is open at.
    ips: Vec<IpAddr>,
    door: Result<Door, String>,
    retry: Backoff,
}

impl HealthChecks {
    pub(crate) fn new(ports: impl Ports + 'static) -> Self {
        Self {
            ports: Box::new(ports),
            claims: Claims::default(),
            waiting: BTreeMap::new(),
            doors: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    /// When a port is to be tried again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.doors.values().filter_map(|state| state.retry.until()).min()
    }

    /// Makes ports and answers fit the services that were touched since the last call, as far as the datapath has
    /// their frontends. To be called when the datapath has done what was due.
    pub(crate) fn follow(&mut self, reconciler: &Reconciler, board: &Board, now: Instant) {
        let model = reconciler.model();
        let mut ports: BTreeSet<u16> = self.doors.iter().filter(|(_, it)| it.is_due(now)).map(|it| *it.0).collect();
        let mut names = board.take_touched().unwrap_or_else(|| {
            ports.extend(self.doors.keys());
            self.known(model)
        });
        names.extend(self.waiting.keys().cloned());
        for name in names {
            self.follow_service(reconciler, &name, board, now, &mut ports);
        }
        for port in ports {
            self.follow_port(model, port, board, now);
        }
        self.tell(board);
    }

    /// Every service that has, or had, a health check.
    fn known(&self, model: &Model) -> BTreeSet<ServiceName> {
        let asked = model.services().filter(|service| service.health_check().is_some());
        asked.map(|service| service.name.clone()).chain(self.claims.services().cloned()).collect()
    }

    /// Takes over what `name` claims; `ports` gets the ports that this is about.
    fn follow_service(
        &mut self,
        reconciler: &Reconciler,
        name: &ServiceName,
        board: &Board,
        now: Instant,
        ports: &mut BTreeSet<u16>,
    ) {
        let model = reconciler.model();
        // A frontend of any service may get in the way of a health check.
        let own = model.service(name).into_iter().flat_map(|service| model.frontends(service));
        let own = own.filter(|it| it.addr.protocol == Protocol::Tcp && model.node().ips.contains(&it.addr.ip));
        ports.extend(own.map(|it| it.addr.port).filter(|port| self.doors.contains_key(port)));
        let Some((service, port)) = model.service(name).and_then(|it| Some((it, it.health_check()?))) else {
            self.waiting.remove(name);
            ports.extend(self.claims.remove(name));
            return;
        };
        if !is_in_step(reconciler, service) {
            let since = *self.waiting.entry(name.clone()).or_insert(now);
            self.claims.port_of(name).into_iter().for_each(|port| board.set_behind(port, name, since));
            return;
        }
        self.waiting.remove(name);
        ports.extend(self.claims.set(name, port, model.ready_local_endpoints(service)));
        ports.insert(port);
    }

    /// Opens or closes a port, and says who answers there.
    fn follow_port(&mut self, model: &Model, port: u16, board: &Board, now: Instant) {
        let holder = self.doors.get(&port).map(|state| state.owner.clone());
        let Some((owner, endpoints)) = self.claims.owner(port, holder.as_ref()) else {
            if self.doors.remove(&port).is_some() {
                board.remove(port);
                let service = holder.map(|holder| holder.to_string());
                tracing::info!(port, service, "the health check is not asked for any more, and its port is closed");
            }
            return;
        };
        let (ports, opened) = (&mut self.ports, self.doors.remove(&port));
        let mut state = opened.unwrap_or_else(|| DoorState::closed(&owner));
        let ips = addresses(model);
        if state.ips != ips {
            state = DoorState { ips, ..DoorState::closed(&owner) };
        }
        match (&state.door, obstacle(model, &state.ips, port)) {
            (Ok(_), None) => {}
            (_, Some(obstacle)) => state.fail(port, obstacle, now),
            (Err(_), None) if state.retry.is_over(now) => match ports.open(&state.ips, port) {
                Ok(door) => state.opened(port, &owner, door),
                Err(problem) => state.fail(port, problem, now),
            },
            (Err(_), None) => {}
        }
        state.owner.clone_from(&owner);
        match &state.door {
            Ok(_) => board.set(port, Check { service: owner, endpoints, behind_since: None }),
            Err(_) => board.remove(port),
        }
        self.doors.insert(port, state);
    }

    /// Says which health checks nobody answers, if that changed.
    fn tell(&mut self, board: &Board) {
        let mut problems = BTreeMap::new();
        for (port, state) in &self.doors {
            if let Err(problem) = &state.door {
                problems.insert(state.owner.clone(), problem.clone());
            }
            let losers: Vec<_> = self.claims.of(*port).filter(|service| **service != state.owner).cloned().collect();
            for loser in losers {
                let owner = &state.owner;
                let problem = format!(
                    "health-check node port {port} is that of service {owner}, which had it first, and {loser} claims \
                     it, too: give one of them another number"
                );
                problems.entry(owner.clone()).or_insert_with(|| problem.clone());
                problems.insert(loser, problem);
            }
        }
        if problems == self.problems {
            return;
        }
        for (service, problem) in
            problems.iter().filter(|(service, problem)| self.problems.get(service) != Some(problem))
        {
            tracing::warn!(%service, problem, "a health check has a problem");
        }
        for service in self.problems.keys().filter(|service| !problems.contains_key(service)) {
            tracing::info!(%service, "the problem of a health check is over");
        }
        board.set_problems(problems.clone());
        self.problems = problems;
    }
}

impl DoorState {
    fn closed(owner: &ServiceName) -> Self {
        let retry = Backoff::new(MIN_RETRY, MAX_RETRY);
        Self { owner: owner.clone(), ips: Vec::new(), door: Err(String::new()), retry }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.retry.until().is_some_and(|until| until <= now)
    }

    fn opened(&mut self, port: u16, service: &ServiceName, door: Door) {
        self.door = Ok(door);
        self.retry.reset();
        tracing::info!(port, %service, "the health check of a service is answered");
    }

    fn fail(&mut self, port: u16, problem: String, now: Instant) {
        self.door = Err(format!("health-check node port {port}: {problem}"));
        if self.retry.is_over(now) {
            self.retry.fail(now);
        }
    }
}

/// Whether the datapath has every frontend of `service` through which traffic from outside comes, as it should be.
fn is_in_step(reconciler: &Reconciler, service: &Service) -> bool {
    let model = reconciler.model();
    let external = model.frontends(service).filter(|it| it.kind.is_external() && model.owns(service, it));
    let wanted =
        external.flat_map(|it| [Scope::External, Scope::Internal].map(|scope| FrontendAddr { scope, ..it.addr }));
    let mut desired = wanted.filter(|addr| reconciler.desired().frontends.contains_key(addr));
    reconciler.installed().is_some() && desired.all(|addr| reconciler.status(&addr) == FrontendStatus::Done)
}

/// The addresses at which health checks are answered: those of node ports, if they are chosen; else every one.
fn addresses(model: &Model) -> Vec<IpAddr> {
    let chosen = &model.settings().node_port_addresses;
    if chosen.is_empty() {
        return vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    }
    let ips = model.node().ips.iter().copied();
    ips.filter(|ip| chosen.iter().any(|network| network.contains(ip))).collect()
}

/// Why nobody can be heard on `port` of `ips`: there is no such address, or a frontend takes the packets.
fn obstacle(model: &Model, ips: &[IpAddr], port: u16) -> Option<String> {
    if ips.is_empty() {
        return Some("no address of the node is among those that are chosen for node ports".to_owned());
    }
    let at = |ip: IpAddr| ips.contains(&ip) || ips.iter().any(|of| of.is_unspecified());
    let ips = model.node().ips.iter().filter(|ip| at(**ip));
    let (addr, owner) = ips.map(|&ip| FrontendAddr::new(ip, port, Protocol::Tcp)).find_map(|addr| {
        let owner = model.owner(&addr)?;
        Some((addr, owner))
    })?;
    let (kind, service) = (owner.kind, &owner.port.service);
    Some(format!(
        "{addr} is a {kind} frontend of service {service}, which gets the packets: give one of them another number"
    ))
}
