//! A cluster in a few words.
//!
//! Pools: `name [block, block] afl=No sel=color:red+tier:In:web,db off refused=no_good t=5 prio=10 noauto odd
//! avoid=10.0.0.1 quota=3 quarantine=0 drain=60`. Services: `ns/name fam=Prefer:v4,v6 req=10.0.0.1,garbage key=k
//! xns=a,b etp=Local ports=tcp/80,udp/53 podsel=app:x lbl=color:red,tier:web class=c type=NodePort t=3 only=pool
//! prefer=pool st=10.0.0.1`. What a service got: `10.0.0.1 ff::1 satisfied`, `- out_of_ips`, or `untouched`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_ipam::{
    Allocator, Block, Classes, Edit, Expression, Family, FamilyPolicy, MemoryLedger, Namespaces, Operator, Outcome,
    Pool, PoolChoice, PoolName, PoolStatus, Protocol, Released, Request, RequestedAddress, Selector, ServiceName,
    Settings, Sharing, Status, Timestamp, TrafficPolicy,
};

/// Pools, services with their statuses, and an allocator.
#[derive(Clone)]
pub(crate) struct World {
    settings: Settings,
    pools: BTreeMap<PoolName, Pool>,
    services: BTreeMap<ServiceName, Request>,
    /// Those of them that whoever starts cannot read.
    unreadable: BTreeSet<ServiceName>,
    pub(crate) allocator: Allocator,
    pub(crate) now: Timestamp,
    /// Status writes of the last run.
    pub(crate) writes: usize,
    /// Ledger writes of the last run.
    pub(crate) ledger_writes: usize,
    /// Addresses that services lost in the last run.
    pub(crate) released: Vec<Released>,
}

impl World {
    /// A cluster with these families: `v4`, `v6`, `v4+v6` or `none`.
    pub(crate) fn new(families: &str) -> Self {
        let families = [("v4", Family::V4), ("v6", Family::V6)].into_iter().filter(|(name, _)| families.contains(name));
        let settings = Settings::default().with_families(families.map(|(_, family)| family));
        Self {
            allocator: Allocator::new(settings.clone(), MemoryLedger::default()),
            settings,
            pools: BTreeMap::new(),
            services: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            now: Timestamp::from_secs(1_000_000),
            writes: 0,
            ledger_writes: 0,
            released: Vec::new(),
        }
    }

    /// Changes the rules.
    pub(crate) fn rules(&mut self, change: impl FnOnce(&mut Settings)) -> &mut Self {
        change(&mut self.settings);
        self.allocator.handle_edit(Edit::SetSettings(self.settings.clone()));
        self
    }

    /// Adds or replaces a pool, and reconciles.
    pub(crate) fn pool(&mut self, text: &str) -> &mut Self {
        self.tell_pool(text).run()
    }

    pub(crate) fn tell_pool(&mut self, text: &str) -> &mut Self {
        let pool = parse_pool(text);
        self.pools.insert(pool.name.clone(), pool.clone());
        self.allocator.handle_edit(Edit::UpsertPool(pool));
        self
    }

    /// Removes a pool, and reconciles.
    pub(crate) fn no_pool(&mut self, name: &str) -> &mut Self {
        self.tell_no_pool(name).run()
    }

    pub(crate) fn tell_no_pool(&mut self, name: &str) -> &mut Self {
        self.pools.remove(&PoolName::new(name));
        self.allocator.handle_edit(Edit::RemovePool(PoolName::new(name)));
        self
    }

    /// Adds or replaces a service, and reconciles. Its status stays what it was.
    pub(crate) fn service(&mut self, text: &str) -> &mut Self {
        self.tell_service(text).run()
    }

    /// Adds services `d/s0`, `d/s1` and so on, one after the other.
    pub(crate) fn services(&mut self, count: usize) -> &mut Self {
        for number in 0..count {
            self.service(&format!("d/s{number}"));
        }
        self
    }

    pub(crate) fn tell_service(&mut self, text: &str) -> &mut Self {
        let mut request = parse_service(text);
        let before = self.services.get(&request.service);
        if request.created == Timestamp::default() {
            let made = self.services.len() as u64 + 100;
            request.created = before.map_or(Timestamp::from_secs(made), |before| before.created);
        }
        if let Some(before) = before.filter(|_| request.published == Status::default()) {
            request.published = before.published.clone();
        }
        self.tell(request)
    }

    pub(crate) fn tell(&mut self, request: Request) -> &mut Self {
        self.unreadable.remove(&request.service);
        self.services.insert(request.service.clone(), request.clone());
        self.allocator.handle_edit(Edit::UpsertService(request));
        self
    }

    /// From now on the service cannot be read, and reconciles.
    pub(crate) fn garbled(&mut self, service: &str) -> &mut Self {
        self.tell_garbled(service).run()
    }

    pub(crate) fn tell_garbled(&mut self, service: &str) -> &mut Self {
        self.unreadable.insert(name(service));
        self.allocator.handle_edit(Edit::KeepService(name(service)));
        self
    }

    /// Removes a service, and reconciles.
    pub(crate) fn gone(&mut self, service: &str) -> &mut Self {
        self.tell_gone(service).run()
    }

    pub(crate) fn tell_gone(&mut self, service: &str) -> &mut Self {
        self.services.remove(&name(service));
        self.unreadable.remove(&name(service));
        self.allocator.handle_edit(Edit::RemoveService(name(service)));
        self
    }

    pub(crate) fn later(&mut self, secs: u64) -> &mut Self {
        self.now = self.now + Duration::from_secs(secs);
        self.run()
    }

    /// Reconciles and writes statuses. Afterwards neither another reconcile nor a restart changes anything, in whatever
    /// order everything is told.
    pub(crate) fn run(&mut self) -> &mut Self {
        let outcome = self.allocator.reconcile(self.now);
        assert!(!outcome.unfinished && outcome.failed.is_empty());
        (self.writes, self.ledger_writes) = (outcome.writes.len(), outcome.ledger_writes);
        self.released = outcome.released;
        for (service, status) in outcome.writes {
            let request = self.services.get_mut(&service).expect("a status of a service that there is");
            assert_ne!(request.published, status, "{service}: written without a change");
            request.published = status;
        }
        assert_eq!(self.allocator.reconcile(self.now), Outcome::default(), "a second reconcile");
        for reversed in [false, true] {
            let mut again = self.clone();
            let outcome = again.start(reversed);
            assert_eq!(outcome, Outcome::default(), "a restart, reversed: {reversed}");
        }
        self.check_counts();
        self
    }

    /// Starts a new allocator over the ledger and tells it everything.
    fn start(&mut self, reversed: bool) -> Outcome {
        let ledger = self.allocator.ledger().clone();
        self.allocator = Allocator::new(self.settings.clone(), ledger);
        let pools = self.pools.values().cloned().map(Edit::UpsertPool);
        let readable = self.services.values().filter(|request| !self.unreadable.contains(&request.service));
        let kept = self.unreadable.iter().cloned().map(Edit::KeepService);
        let services = readable.cloned().map(Edit::UpsertService).chain(kept);
        let mut edits: Vec<_> = pools.chain(services).collect();
        if reversed {
            edits.reverse();
        }
        edits.into_iter().for_each(|edit| self.allocator.handle_edit(edit));
        self.allocator.reconcile(self.now)
    }

    /// Restarts, in both orders; the same must come of both.
    pub(crate) fn restart(&mut self) -> &mut Self {
        let mut reversed = self.clone();
        let outcome = self.start(false);
        assert_eq!(reversed.start(true), outcome);
        (self.writes, self.ledger_writes) = (outcome.writes.len(), outcome.ledger_writes);
        self.released = outcome.released;
        for (service, status) in outcome.writes {
            self.services.get_mut(&service).expect("a known service").published = status;
        }
        self
    }

    /// The ledger is lost; statuses are all that is left.
    pub(crate) fn lose_ledger(&mut self) -> &mut Self {
        self.allocator = Allocator::new(self.settings.clone(), MemoryLedger::default());
        self
    }

    /// Adds the condition of an allocator to the status of a service.
    pub(crate) fn tell_condition(&mut self, service: &str) -> &mut Self {
        let mut request = self.services[&name(service)].clone();
        let reason = lb_ipam::Reason::SATISFIED.into();
        request.published.condition = Some(lb_ipam::Condition { satisfied: true, reason, message: String::new() });
        self.tell(request)
    }

    /// The next start finds the ledger of the other world.
    pub(crate) fn take_ledger(&mut self, other: &Self) -> &mut Self {
        self.allocator = other.allocator.clone();
        self
    }

    /// What the status of a service says.
    pub(crate) fn got(&self, service: &str) -> String {
        let status = &self.services[&name(service)].published;
        let mut words: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
        if words.is_empty() {
            words.push("-".to_owned());
        }
        match &status.condition {
            Some(condition) => words.push(condition.reason.to_string()),
            None if status.addresses.is_empty() => return "untouched".to_owned(),
            None => words.push("without condition".to_owned()),
        }
        words.join(" ")
    }

    /// Asserts what services got, row by row.
    pub(crate) fn shows(&mut self, rows: &[(&str, &str)]) -> &mut Self {
        for (service, expected) in rows {
            assert_eq!(self.got(service), *expected, "{service}");
        }
        self
    }

    /// Asserts how many statuses the last run wrote.
    pub(crate) fn wrote(&mut self, writes: usize) -> &mut Self {
        assert_eq!(self.writes, writes, "status writes");
        self
    }

    /// Addresses of a service.
    pub(crate) fn addresses(&self, service: &str) -> Vec<IpAddr> {
        self.services[&name(service)].published.addresses.clone()
    }

    /// The message of a service's condition.
    pub(crate) fn message(&self, service: &str) -> String {
        let condition = &self.services[&name(service)].published.condition;
        condition.as_ref().expect("a condition").message.clone()
    }

    pub(crate) fn status(&self, pool: &str) -> PoolStatus {
        self.allocator.pool(&PoolName::new(pool)).expect("a pool")
    }

    /// `total used free reserved` of a pool.
    pub(crate) fn counts(&self, pool: &str) -> (u128, u128, u128, u128) {
        let counts = self.status(pool).counts;
        (counts.total, counts.used, counts.free, counts.reserved)
    }

    fn check_counts(&self) {
        for status in self.allocator.pools() {
            let counts = status.counts;
            let sum = counts.used + counts.quarantined + counts.draining + counts.conflict;
            assert_eq!(counts.total, sum.saturating_add(counts.free), "{}: {counts:?}", status.name);
            let both = |count: fn(&lb_ipam::Counts) -> u128| count(&status.ipv4).saturating_add(count(&status.ipv6));
            let sums = (both(|c| c.total), both(|c| c.used), both(|c| c.quarantined), both(|c| c.reserved));
            assert_eq!(sums, (counts.total, counts.used, counts.quarantined, counts.reserved), "{}", status.name);
        }
    }
}

pub(crate) fn name(text: &str) -> ServiceName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    ServiceName::new(namespace, name)
}

fn parse_pool(text: &str) -> Pool {
    let (name, rest) = text.split_once(" [").expect("name [blocks]");
    let (blocks, options) = rest.split_once(']').expect("]");
    let blocks: Vec<&str> = blocks.split(',').map(str::trim).filter(|block| !block.is_empty()).collect();
    let mut pool = Pool::new(name, &blocks);
    for (key, value) in options.split_whitespace().map(|option| option.split_once('=').unwrap_or((option, ""))) {
        let number = || value.parse::<u64>().expect("a number");
        match key {
            "afl" => pool.allow_first_last = value == "Yes",
            "sel" => pool.selectors.push(parse_selector(value)),
            "off" => pool.disabled = true,
            "refused" => pool.refused = Some(value.replace('_', " ")),
            "noauto" => pool.auto_assign = false,
            "odd" => pool.avoid_zero_and_255 = true,
            "avoid" => pool.avoid = value.split(',').map(Block::parse).collect(),
            "t" => pool.created = Timestamp::from_secs(number()),
            "prio" => pool.priority = Some(value.parse().expect("a number")),
            "quota" => pool.namespace_quota = Some(number()),
            "quarantine" => pool.quarantine = Duration::from_secs(number()),
            "drain" => pool.drain = Duration::from_secs(number()),
            other => panic!("pool option {other}"),
        }
    }
    pool
}

/// `key:value` for a label, `key:Operator:value,value` for an expression, `+` between those that all have to match.
fn parse_selector(text: &str) -> Selector {
    let mut selector = Selector::default();
    for term in text.split('+') {
        match term.split(':').collect::<Vec<_>>()[..] {
            [key, value] => _ = selector.match_labels.insert(key.to_owned(), value.to_owned()),
            [key, operator, values] => {
                let values = values.split(',').filter(|value| !value.is_empty());
                selector.match_expressions.push(Expression::new(key, Operator::parse(operator), values));
            }
            _ => panic!("selector {text}"),
        }
    }
    selector
}

fn parse_service(text: &str) -> Request {
    let (first, options) = text.split_once(' ').unwrap_or((text, ""));
    let service = name(first);
    let mut request = Request::new(service.namespace(), service.name());
    request.ports = [(Protocol::Tcp, 80)].into();
    let label = |value: &str| {
        let label = |text: &str| text.split_once(':').map(|(key, value)| (key.to_owned(), value.to_owned()));
        value.split(',').map(|text| label(text).expect("key:value")).collect::<BTreeMap<_, _>>()
    };
    for (key, value) in options.split_whitespace().map(|option| option.split_once('=').unwrap_or((option, ""))) {
        match key {
            "fam" => (request.family_policy, request.families) = parse_families(value),
            "req" => request.addresses = RequestedAddress::parse_list(value),
            "key" => request.sharing.get_or_insert_with(|| Sharing::new("")).key = value.into(),
            "xns" => {
                request.sharing.get_or_insert_with(|| Sharing::new("")).namespaces =
                    Namespaces::parse(&value.replace(',', ", "));
            }
            "etp" if value == "Local" => request.external_traffic_policy = TrafficPolicy::Local,
            "etp" => request.external_traffic_policy = TrafficPolicy::Cluster,
            "ports" => request.ports = value.split(',').map(parse_port).collect(),
            "podsel" => request.pod_selector = label(value),
            "lbl" => request.labels = label(value),
            "class" => request.class = Some(value.to_owned()),
            "type" => request.load_balancer = value == "LoadBalancer",
            "t" => request.created = Timestamp::from_secs(value.parse().expect("a number")),
            "only" => request.pool = PoolChoice::Only(PoolName::new(value)),
            "prefer" => request.pool = PoolChoice::Prefer(PoolName::new(value)),
            "st" => {
                let addresses: Vec<IpAddr> = value.split(',').map(|ip| ip.parse().expect("an address")).collect();
                request.published = Status::of(&addresses);
            }
            other => panic!("service option {other}"),
        }
    }
    request
}

fn parse_families(text: &str) -> (FamilyPolicy, Vec<Family>) {
    let (policy, listed) = text.split_once(':').unwrap_or((text, ""));
    let policy = match policy {
        "Single" => FamilyPolicy::SingleStack,
        "Prefer" => FamilyPolicy::PreferDualStack,
        "Require" => FamilyPolicy::RequireDualStack,
        other => panic!("policy {other}"),
    };
    let family = |word: &str| if word == "v4" { Family::V4 } else { Family::V6 };
    (policy, listed.split(',').filter(|word| !word.is_empty()).map(family).collect())
}

fn parse_port(text: &str) -> (Protocol, u16) {
    let (protocol, port) = text.split_once('/').expect("protocol/port");
    let protocol = if protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
    (protocol, port.parse().expect("a port"))
}

/// Only services of these classes, and those without one if `unset`.
pub(crate) fn classes(unset: bool, named: &[&str]) -> Classes {
    Classes { unset, named: named.iter().map(|class| (*class).to_owned()).collect() }
}
