//! The state that a datapath should hold, derived from the model.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::ToString,
    sync::Arc,
    vec::Vec,
};
use core::time::Duration;

use crate::{
    addr::{BackendAddr, Family, FrontendAddr, FrontendKind, Protocol, Scope},
    affinity::Affinity,
    id::{BackendId, FrontendId, HeldIds, IdTable, IdsExhausted, SetId},
    model::{Model, ServiceFrontend},
    name::{ServiceName, ServicePortName},
    plan::{self, Labels, Touched},
    selection::{Reason, Selection},
    service::{Algorithm, DrainPolicy, Service, ServicePort, TrafficPolicy},
    state::{Backend, BackendSet, Frontend, Guard, Lookup, OtherPorts, State, Target},
    table::{self, TableSize, TableSpec},
};

/// The state that a datapath should hold, kept up to date service by service.
///
/// Ids are stable. A frontend or backend keeps its id as long as its address and owner stay, equal backend sets share
/// one id and one table, and [`adopt`](Self::adopt) takes over the ids of an earlier process.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    state: State,
    labels: Labels,
    owners: BTreeMap<FrontendAddr, ServicePortName>,
    frontends_of: BTreeMap<ServiceName, BTreeSet<FrontendAddr>>,
    frontend_ids: IdTable<FrontendAddr, FrontendId>,
    backend_ids: IdTable<BackendAddr, BackendId>,
    set_ids: IdTable<SetKey, SetId>,
    installed_sets: BTreeMap<BackendSet, SetId>,
    contents: BTreeMap<SetId, Arc<Content>>,
    frontends_in_set: BTreeMap<SetId, usize>,
    sets_with_backend: BTreeMap<BackendId, usize>,
    claims: BTreeMap<FrontendAddr, Claim>,
    frontends_that_say_local: BTreeMap<BackendAddr, usize>,
    /// Installed frontends that stay though no service claims them.
    kept: BTreeSet<FrontendAddr>,
    /// Of frontends whose flows may have to end.
    staying: BTreeMap<FrontendAddr, Staying>,
    /// Frontends of which that may have changed.
    staying_touched: BTreeSet<FrontendAddr>,
}

/// The established flows of a frontend that stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Staying {
    /// Backends whose flows stay for as long as they live.
    pub(crate) backends: Arc<BTreeSet<BackendAddr>>,
    /// What becomes of flows to other backends. UDP flows leave at once.
    pub(crate) policy: DrainPolicy,
}

/// Where the backends of a frontend run, according to its endpoints. Two services may disagree about one backend. It is
/// local if any of them says so, whichever came first.
#[derive(Clone, Debug)]
struct Claim {
    content: Arc<Content>,
    /// Of each of its [backends](Content::backends).
    local: Arc<[bool]>,
}

impl Claim {
    fn backends(&self) -> impl Iterator<Item = (BackendAddr, bool)> {
        self.content.backends().zip(self.local.iter().copied())
    }
}

/// A set before its backends have ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Content {
    spec: TableSpec,
    /// In order of address.
    draining: Vec<BackendAddr>,
}

impl Content {
    fn backends(&self) -> impl Iterator<Item = BackendAddr> {
        self.spec.backends.iter().map(|(addr, _)| *addr).chain(self.draining.iter().copied())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SetKey {
    Content(Arc<Content>),
    Installed(SetId),
}

/// A desired frontend before it has ids.
struct DesiredFrontend {
    addr: FrontendAddr,
    owner: ServicePortName,
    target: DesiredTarget,
    staying: Option<Staying>,
    rest: Rest,
}

/// What a desired frontend has beside its id and its target.
struct Rest {
    affinity: Option<Affinity>,
    leaves_sockets: bool,
    keeps_source: bool,
    translates_pods: bool,
    guard: Option<Guard>,
    other_ports: OtherPorts,
    answers_ping: bool,
}

impl Rest {
    fn frontend(self, id: FrontendId, target: Target) -> Frontend {
        let Self { affinity, leaves_sockets, keeps_source, translates_pods, guard, other_ports, answers_ping } = self;
        Frontend {
            affinity,
            leaves_sockets,
            keeps_source,
            translates_pods,
            guard,
            other_ports,
            answers_ping,
            id,
            target,
        }
    }
}

#[derive(Clone)]
enum DesiredTarget {
    Set(Claim),
    Reject,
    Drop,
}

impl Desired {
    /// The state.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Labels of its frontends.
    #[must_use]
    pub const fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The flows of a frontend that stay; `None` if all of them do.
    pub(crate) fn staying(&self, addr: &FrontendAddr) -> Option<&Staying> {
        self.staying.get(addr)
    }

    /// The frontends of which other flows may stay than at the last call.
    pub(crate) fn take_staying_touched(&mut self) -> BTreeSet<FrontendAddr> {
        core::mem::take(&mut self.staying_touched)
    }

    /// Takes over the ids of the installed state. Call it before the first [`update`](Self::update).
    pub fn adopt(&mut self, installed: &State) {
        for (&addr, frontend) in &installed.frontends {
            self.frontend_ids.restore(addr, frontend.id);
        }
        for (&id, backend) in &installed.backends {
            self.backend_ids.restore(backend.addr, id);
        }
        // Nobody knows the specification of an installed set, only its content. It keeps its id under that content
        // until a specification leads to the same slots, and is then found in `add_set`.
        for (&id, set) in &installed.sets {
            if self.set_ids.restore(SetKey::Installed(id), id) {
                self.installed_sets.insert(BackendSet::clone(set), id);
            }
        }
    }

    /// From now on assigns none of these ids. All others that were freed may be assigned again: neither the state of the
    /// datapath nor its flows have them.
    pub fn hold(&mut self, held: HeldIds) {
        let HeldIds { frontends, backends, sets } = held;
        self.frontend_ids.hold(frontends);
        self.backend_ids.hold(backends);
        self.set_ids.hold(sets);
    }

    /// Brings `services` up to date with the model and returns the keys of everything that changed.
    ///
    /// # Errors
    /// When ids run out; the remaining services stay as they were. [`hold`](Self::hold) makes freed ids available again.
    pub fn update(&mut self, model: &Model, services: &BTreeSet<ServiceName>) -> Result<Touched, IdsExhausted> {
        let mut touched = Touched::default();
        if self.state.node != *model.node() {
            self.state.node.clone_from(model.node());
            touched.node = true;
        }
        // Sets are released last. A set that one frontend leaves and another one joins in the same update must not be
        // freed in between: it would come back under a new id, and so would its backends.
        let mut unused = Vec::new();
        let wanted: Vec<_> = services.iter().map(|name| (name, wanted(model, name))).collect();
        // First all that goes, of all services: an address may move from one service to another within one update.
        for (name, frontends) in &wanted {
            let keep: BTreeSet<_> = frontends.iter().map(|f| (f.addr, &f.owner)).collect();
            let gone: Vec<_> = self.frontends_of.get(*name).into_iter().flatten().copied().collect();
            for addr in gone {
                if self.owners.get(&addr).is_none_or(|owner| !keep.contains(&(addr, owner))) {
                    unused.extend(self.remove_frontend(addr, &mut touched));
                }
            }
        }
        let mut all = wanted.into_iter().flat_map(|(name, frontends)| frontends.into_iter().map(move |f| (name, f)));
        let outcome = all.try_for_each(|(name, frontend)| self.upsert_frontend(name, frontend, model, &mut touched));
        // A service has its address in every scope.
        let claimed: Vec<_> = self.kept.iter().copied().filter(|addr| self.is_claimed(addr)).collect();
        unused.extend(claimed.into_iter().filter_map(|addr| self.remove_frontend(addr, &mut touched)));
        for set in unused {
            self.release_set(set, &mut touched);
        }
        outcome.map(|()| touched)
    }

    /// Installed frontends that [`keep`](Self::keep) found, and that no service has claimed since.
    #[must_use]
    pub const fn kept(&self) -> &BTreeSet<FrontendAddr> {
        &self.kept
    }

    /// Takes over every installed frontend that no service claims, as it is, with its set and its backends. A service
    /// that claims the address later replaces the frontend. Call this once, after [`adopt`](Self::adopt) and the first
    /// [`update`](Self::update).
    ///
    /// A frontend that refers to something that is not there is left out, and so is one whose ids others have.
    pub fn keep(&mut self, installed: &State) -> Touched {
        let mut touched = Touched::default();
        for (&addr, frontend) in &installed.frontends {
            if self.is_claimed(&addr) || self.frontend_ids.lookup(&addr) != Some(frontend.id) {
                continue;
            }
            if let Target::Set(id) = frontend.target {
                let Some(claim) = self.keep_set(id, installed, &mut touched) else { continue };
                self.claim(addr, Some(claim), &mut touched);
            }
            self.state.frontends.insert(addr, frontend.clone());
            self.kept.insert(addr);
            touched.frontends.insert(addr);
        }
        touched
    }

    /// Gives up what [`keep`](Self::keep) took over.
    pub fn let_go(&mut self) -> Touched {
        let mut touched = Touched::default();
        for addr in self.kept.clone() {
            if let Some(set) = self.remove_frontend(addr, &mut touched) {
                self.release_set(set, &mut touched);
            }
        }
        touched
    }

    /// The installed set with this id, with one more user; `None` if it is not whole.
    fn keep_set(&mut self, id: SetId, installed: &State, touched: &mut Touched) -> Option<Claim> {
        let set = installed.sets.get(&id)?;
        let whole = |id: &BackendId| {
            let backend = installed.backends.get(id)?;
            (self.backend_ids.lookup(&backend.addr) == Some(*id)).then_some((*id, *backend))
        };
        let taking = set.members().keys().map(whole).collect::<Option<Vec<_>>>()?;
        let draining = set.draining.iter().map(whole).collect::<Option<Vec<_>>>()?;
        match self.state.sets.get(&id) {
            Some(known) if known == set => {}
            None if self.set_ids.lookup(&SetKey::Installed(id)) == Some(id) => {}
            _ => return None,
        }
        let algorithm = match set.lookup {
            Lookup::Random => Algorithm::Random,
            Lookup::RoundRobin => Algorithm::RoundRobin,
            Lookup::Hash => Algorithm::Maglev,
            Lookup::LeastConnections => Algorithm::LeastConnections,
        };
        // It names the backends. Their slots are those of the set, and nothing is computed from these weights.
        let backends = taking.iter().map(|(_, backend)| (backend.addr, 1)).collect();
        let spec = TableSpec { algorithm, size: None, backends };
        let content = Arc::new(Content { spec, draining: draining.iter().map(|(_, backend)| backend.addr).collect() });
        let all = || taking.iter().chain(&draining).copied();
        if !self.state.sets.contains_key(&id) {
            for (backend, _) in all() {
                *self.sets_with_backend.entry(backend).or_insert(0) += 1;
            }
            self.contents.insert(id, Arc::clone(&content));
            self.state.sets.insert(id, Arc::clone(set));
            touched.sets.insert(id);
        }
        for (id, backend) in all() {
            self.state.backends.entry(id).or_insert(backend);
            touched.backends.insert(id);
        }
        *self.frontends_in_set.entry(id).or_insert(0) += 1;
        Some(Claim { content, local: all().map(|(_, backend)| backend.local).collect() })
    }

    /// Whether a service has the address, in whichever scope.
    fn is_claimed(&self, addr: &FrontendAddr) -> bool {
        [Scope::External, Scope::Internal]
            .into_iter()
            .any(|scope| self.owners.contains_key(&FrontendAddr { scope, ..*addr }))
    }

    fn upsert_frontend(
        &mut self,
        service: &ServiceName,
        desired: DesiredFrontend,
        model: &Model,
        touched: &mut Touched,
    ) -> Result<(), IdsExhausted> {
        let DesiredFrontend { addr, owner, target, staying, rest } = desired;
        let (target, claim) = match target {
            DesiredTarget::Set(claim) => (Target::Set(self.use_set(&claim.content, model, touched)?), Some(claim)),
            DesiredTarget::Reject => (Target::Reject, None),
            DesiredTarget::Drop => (Target::Drop, None),
        };
        self.claim(addr, claim, touched);
        let frontend = rest.frontend(self.frontend_ids.id(&addr)?, target);
        // The new set has its user already, so releasing the old one never frees a set that both share.
        let before = self.state.frontends.insert(addr, frontend);
        if before.as_ref() != self.state.frontends.get(&addr) {
            touched.frontends.insert(addr);
        }
        if let Some(Frontend { target: Target::Set(set), .. }) = before {
            self.release_set(set, touched);
        }
        self.kept.remove(&addr);
        self.stay(addr, staying);
        self.labels.insert(addr, owner.to_string().into());
        self.owners.insert(addr, owner);
        self.frontends_of.entry(service.clone()).or_default().insert(addr);
        Ok(())
    }

    /// Removes a frontend and returns its set, which the caller has to release.
    fn remove_frontend(&mut self, addr: FrontendAddr, touched: &mut Touched) -> Option<SetId> {
        let frontend = self.state.frontends.remove(&addr)?;
        touched.frontends.insert(addr);
        self.claim(addr, None, touched);
        self.stay(addr, None);
        self.kept.remove(&addr);
        self.frontend_ids.remove(&addr);
        self.labels.remove(&addr);
        if let Some(owner) = self.owners.remove(&addr)
            && let Some(addrs) = self.frontends_of.get_mut(&owner.service)
        {
            addrs.remove(&addr);
            if addrs.is_empty() {
                self.frontends_of.remove(&owner.service);
            }
        }
        match frontend.target {
            Target::Set(set) => Some(set),
            Target::Reject | Target::Drop => None,
        }
    }

    /// Replaces which flows of a frontend stay.
    fn stay(&mut self, addr: FrontendAddr, new: Option<Staying>) {
        if self.staying.get(&addr) == new.as_ref() {
            return;
        }
        self.staying_touched.insert(addr);
        match new {
            Some(new) => drop(self.staying.insert(addr, new)),
            None => drop(self.staying.remove(&addr)),
        }
    }

    /// The set of this content, with one more user.
    fn use_set(&mut self, content: &Arc<Content>, model: &Model, touched: &mut Touched) -> Result<SetId, IdsExhausted> {
        let id = match self.set_ids.lookup(&SetKey::Content(Arc::clone(content))) {
            Some(id) => id,
            None => self.add_set(content, model, touched)?,
        };
        *self.frontends_in_set.entry(id).or_insert(0) += 1;
        for addr in content.backends() {
            let backend_id = self.backend_ids.id(&addr)?;
            self.state.backends.entry(backend_id).or_insert_with(|| {
                touched.backends.insert(backend_id);
                Backend { addr, local: self.frontends_that_say_local.contains_key(&addr) }
            });
        }
        Ok(id)
    }

    /// Replaces what a frontend says about the location of its backends.
    fn claim(&mut self, addr: FrontendAddr, new: Option<Claim>, touched: &mut Touched) {
        let old = match new.clone() {
            Some(claim) => self.claims.insert(addr, claim),
            None => self.claims.remove(&addr),
        };
        // Count up before counting down: a backend that the frontend keeps calling local never drops to zero in
        // between.
        for (backend, _) in new.iter().flat_map(Claim::backends).filter(|(_, local)| *local) {
            *self.frontends_that_say_local.entry(backend).or_insert(0) += 1;
        }
        for (backend, _) in old.iter().flat_map(Claim::backends).filter(|(_, local)| *local) {
            if let Some(says) = self.frontends_that_say_local.get_mut(&backend) {
                *says -= 1;
                if *says == 0 {
                    self.frontends_that_say_local.remove(&backend);
                }
            }
        }
        for (backend, _) in new.iter().chain(&old).flat_map(Claim::backends) {
            let local = self.frontends_that_say_local.contains_key(&backend);
            let Some(id) = self.backend_ids.lookup(&backend) else { continue };
            if let Some(known) = self.state.backends.get_mut(&id)
                && known.local != local
            {
                known.local = local;
                touched.backends.insert(id);
            }
        }
    }

    fn add_set(&mut self, content: &Arc<Content>, model: &Model, touched: &mut Touched) -> Result<SetId, IdsExhausted> {
        let Content { spec, draining } = &**content;
        let ids = content.backends().map(|addr| self.backend_ids.id(&addr)).collect::<Result<Vec<_>, _>>()?;
        let slots = table::with_ids(&spec.slots(&model.settings().maglev), &ids);
        let mut leaving = ids[ids.len() - draining.len()..].to_vec();
        leaving.sort_unstable();
        let set = BackendSet { lookup: spec.lookup(), slots, draining: leaving.into() };
        let key = SetKey::Content(Arc::clone(content));
        // A set of the same content that an earlier process installed is adopted: nothing is written for it.
        let id = match self.installed_sets.remove(&set) {
            Some(id) => {
                self.set_ids.remove(&SetKey::Installed(id));
                self.set_ids.restore(key, id);
                id
            }
            None => self.set_ids.id(&key)?,
        };
        // Frontends that are kept may have the set already, with its backends.
        if self.contents.insert(id, Arc::clone(content)).is_none() {
            for backend in ids {
                *self.sets_with_backend.entry(backend).or_insert(0) += 1;
            }
        }
        self.state.sets.insert(id, Arc::new(set));
        touched.sets.insert(id);
        Ok(id)
    }

    fn release_set(&mut self, id: SetId, touched: &mut Touched) {
        let Some(users) = self.frontends_in_set.get_mut(&id) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        self.frontends_in_set.remove(&id);
        let set = self.state.sets.remove(&id);
        touched.sets.insert(id);
        let Some(content) = self.contents.remove(&id) else { return };
        for addr in content.backends() {
            self.release_backend(addr, touched);
        }
        let by_content = SetKey::Content(content);
        if self.set_ids.lookup(&by_content) == Some(id) {
            self.set_ids.remove(&by_content);
        } else if let Some(set) = set {
            // It was kept as it was found, and no service had the same one.
            self.set_ids.remove(&SetKey::Installed(id));
            if self.installed_sets.get(&*set) == Some(&id) {
                self.installed_sets.remove(&*set);
            }
        }
    }

    fn release_backend(&mut self, addr: BackendAddr, touched: &mut Touched) {
        let Some(id) = self.backend_ids.lookup(&addr) else { return };
        let Some(users) = self.sets_with_backend.get_mut(&id) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        self.sets_with_backend.remove(&id);
        self.state.backends.remove(&id);
        self.backend_ids.remove(&addr);
        touched.backends.insert(id);
    }

    /// The plan from `installed` to this state, restricted to `touched`.
    #[must_use]
    pub fn plan(&self, installed: &State, touched: &Touched) -> plan::Plan {
        plan::diff_touched(installed, &self.state, &self.labels, touched)
    }
}

/// The desired frontends of a service; none if the model does not serve it.
fn wanted(model: &Model, name: &ServiceName) -> Vec<DesiredFrontend> {
    let Some(service) = model.service(name) else { return Vec::new() };
    let affinity = effective_affinity(model, service);
    let mut tables = Tables { model, service, known: BTreeMap::new() };
    let mut found = Vec::new();
    let served = |frontend: &ServiceFrontend<'_>| model.owns(service, frontend) && model.carries(service, frontend);
    for frontend in model.frontends(service).filter(served) {
        let owner = ServicePortName { service: name.clone(), port: Arc::clone(&frontend.port.name) };
        let ServiceFrontend { addr, kind, port } = frontend;
        for (scope, policy) in scopes(model, service, kind) {
            let (target, staying) = tables.target(port, addr.family(), policy);
            let rest = Rest {
                affinity,
                leaves_sockets: model.leaves_sockets(service),
                // Nothing comes in through an uplink for scope internal.
                keeps_source: scope == Scope::External && kind.is_external() && policy == TrafficPolicy::Local,
                translates_pods: scope == Scope::External && model.translates_pods(kind, policy),
                guard: model.guard(service, kind, addr.family()),
                other_ports: model.says_of_other_ports(kind, addr.ip),
                answers_ping: model.says_of_ping(kind, addr.ip),
            };
            let addr = FrontendAddr { scope, ..addr };
            found.push(DesiredFrontend { addr, owner: owner.clone(), target, staying, rest });
        }
    }
    found
}

/// The scopes that a frontend is programmed for, each with its traffic policy.
///
/// A frontend has one scope for all traffic, unless the external policy is Local. Then traffic from this node and its
/// pods has a scope of its own and may use every backend. A host port belongs to a pod of this node, for all traffic.
pub(crate) fn scopes(model: &Model, service: &Service, kind: FrontendKind) -> Vec<(Scope, TrafficPolicy)> {
    match kind {
        FrontendKind::ClusterIp => return Vec::from([(Scope::External, service.internal_traffic_policy)]),
        FrontendKind::HostPort => return Vec::from([(Scope::External, TrafficPolicy::Local)]),
        FrontendKind::LoadBalancer | FrontendKind::ExternalIp | FrontendKind::NodePort => {}
    }
    let local = service.external_traffic_policy == TrafficPolicy::Local;
    if local && model.capabilities().external_traffic_policy_local {
        return Vec::from([(Scope::External, TrafficPolicy::Local), (Scope::Internal, TrafficPolicy::Cluster)]);
    }
    Vec::from([(Scope::External, TrafficPolicy::Cluster)])
}

/// The affinity that the datapath supports for `service`.
pub(crate) fn effective_affinity(model: &Model, service: &Service) -> Option<Affinity> {
    let (affinity, capability) = (service.affinity?, model.capabilities().affinity?);
    let longest = capability.max_timeout.min(Duration::from_secs(u32::MAX.into()));
    let timeout = Duration::from_secs(affinity.timeout.min(longest).as_secs());
    let cut = Affinity { timeout, ..affinity };
    Some(if capability.prefixes { cut } else { Affinity { prefix_v4: 32, prefix_v6: 128, ..cut } })
}

/// The table that `service` gets for the usable backends of a selection.
pub(crate) fn table_spec(model: &Model, service: &Service, selection: &Selection) -> TableSpec {
    let largest = TableSize::largest_within(model.capabilities().max_slots);
    let size = service.table_size.unwrap_or_else(|| TableSize::for_backends(selection.usable.len()));
    let size = largest.map_or(size, |largest| size.min(largest));
    TableSpec::new(model.algorithm(service), Some(size), &model.settings().maglev, &selection.usable)
}

/// The set for a selection: of UDP, with the backends whose flows stay with them.
fn claim(model: &Model, service: &Service, protocol: Protocol, selection: &Selection) -> Claim {
    let draining = if protocol == Protocol::Udp { &selection.draining[..] } else { &[] };
    let usable = selection.usable.iter().map(|usable| usable.local);
    Claim {
        local: usable.chain(draining.iter().map(|draining| draining.local)).collect(),
        content: Arc::new(Content {
            spec: table_spec(model, service, selection),
            draining: draining.iter().map(|draining| draining.addr).collect(),
        }),
    }
}

/// The flows that stay with a frontend of this selection; `None` if all of them do, or if the datapath ends none.
///
/// It says of each flow what [`decide`](crate::decision::decide) says, but for the time that a drain policy gives.
fn staying(model: &Model, service: &Service, protocol: Protocol, selection: &Selection) -> Option<Staying> {
    if !model.capabilities().evicts {
        return None;
    }
    let usable = selection.usable.iter().map(|usable| usable.addr);
    if protocol == Protocol::Udp {
        let draining = selection.draining.iter().map(|draining| draining.addr);
        let backends = if selection.usable.is_empty() { BTreeSet::new() } else { usable.chain(draining).collect() };
        return Some(Staying { backends: Arc::new(backends), policy: DrainPolicy::Cut });
    }
    let policy = model.drain(service);
    if policy == DrainPolicy::Keep {
        return None;
    }
    let elsewhere = selection.rejected.iter().filter(|(_, why)| Reason::is_about_place(why)).map(|(addr, _)| *addr);
    Some(Staying { backends: Arc::new(usable.chain(elsewhere).collect()), policy })
}

/// Port, protocol, family and policy of frontends.
type TableKey = (Arc<str>, Protocol, Family, TrafficPolicy);

/// Targets of one service; frontends of one port, family and policy share theirs.
struct Tables<'a> {
    model: &'a Model,
    service: &'a Service,
    known: BTreeMap<TableKey, (DesiredTarget, Option<Staying>)>,
}

impl Tables<'_> {
    fn target(
        &mut self,
        port: &ServicePort,
        family: Family,
        policy: TrafficPolicy,
    ) -> (DesiredTarget, Option<Staying>) {
        let key = (Arc::clone(&port.name), port.protocol, family, policy);
        let (model, service) = (self.model, self.service);
        let decide = || {
            let selection = model.selection(service, port, family, policy);
            let target = match (selection.usable.is_empty(), selection.excluded_by_policy) {
                (true, true) => DesiredTarget::Drop,
                (true, false) => DesiredTarget::Reject,
                (false, _) => DesiredTarget::Set(claim(model, service, port.protocol, &selection)),
            };
            (target, staying(model, service, port.protocol, &selection))
        };
        self.known.entry(key).or_insert_with(decide).clone()
    }
}
