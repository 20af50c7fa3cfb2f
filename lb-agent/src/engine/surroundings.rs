//! What about the machine an operator should know: datapaths of other agents, devices, the state directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_core::{name::ServiceName, node::NodeFacts, time::Instant};

use crate::{
    config::Config,
    driver::{self, DatapathKind, Setting},
    engine::leftovers::Leftovers,
    host::{
        netlink::{self, Neighbour},
        place::Whereabouts,
        state_dir::{Remembered, StateDir, Used},
    },
};

/// How long until what is wrong is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How many times as long as a look at other datapaths took until the next one. Listing chains takes its time where there
/// are tens of thousands, and changes of services wait meanwhile.
const REST: u32 = 200;
/// The longest time until other datapaths are looked for again.
const AT_LAST: Duration = Duration::from_secs(600);
/// How long until neighbours are looked at again while there are services.
const NEIGHBOURS: Duration = Duration::from_secs(10);
/// The shortest time between two looks at neighbours, however often services change.
const PAUSE: Duration = Duration::from_secs(1);
/// How long until devices are looked at again though none changed: sysctls change without a notification.
const DEVICES: Duration = Duration::from_secs(60);

/// Condition: an uplink is not there.
const UPLINK_GONE: &str = "UplinkGone";

/// Condition: another host has an address of a service.
pub(crate) const ADDRESS_SHARED: &str = "AddressOfAnotherHost";
/// Most addresses that the condition names, and most services of each.
const MOST_NAMED: usize = 3;

/// A condition of the agent, or `None` when it is over.
pub(crate) type Finding = (&'static str, Option<String>);

/// Services by their addresses.
pub(crate) type ServicesAt = BTreeMap<IpAddr, BTreeSet<ServiceName>>;

/// Looks at the machine. Each condition is logged when it begins, changes and ends.
pub(crate) struct Surroundings {
    state_dir: StateDir,
    /// What this agent itself has in the kernel.
    used: Used,
    is_recorded: bool,
    leftovers: Leftovers,
    kind: DatapathKind,
    kinds: Vec<DatapathKind>,
    node: NodeFacts,
    uplinks: Vec<String>,
    /// Conditions that hold.
    told: BTreeMap<&'static str, String>,
    /// Those of them that the kind of datapath found.
    hindrances: BTreeSet<&'static str>,
    due: Instant,
    devices_due: Instant,
    neighbours_due: Instant,
    /// When neighbours may be looked at again.
    neighbours_rested: Instant,
}

impl Surroundings {
    pub(crate) fn new(
        config: &Config,
        used: Used,
        state_dir: StateDir,
        remembered: Remembered,
        kinds: Vec<DatapathKind>,
    ) -> Self {
        let Remembered { others, unwritten } = remembered;
        announce_switch(&used, &others, &kinds);
        let leftovers = Leftovers::new(&config.state_dir, &config.socket, others, kinds.clone());
        Self {
            state_dir,
            used,
            is_recorded: unwritten.is_none(),
            leftovers,
            kind: config.datapath,
            kinds,
            node: config.node.clone(),
            uplinks: config.uplinks.clone(),
            told: BTreeMap::new(),
            hindrances: BTreeSet::new(),
            due: Instant::default(),
            devices_due: Instant::default(),
            neighbours_due: Instant::default(),
            neighbours_rested: Instant::default(),
        }
    }

    /// When to look.
    pub(crate) fn due(&self) -> Instant {
        self.due.min(self.devices_due).min(self.neighbours_due)
    }

    /// A device came, went or changed.
    pub(crate) fn devices_changed(&mut self) {
        self.devices_due = Instant::default();
    }

    /// The addresses of the node changed.
    pub(crate) fn node_changed(&mut self, node: NodeFacts) {
        self.node = node;
        self.devices_changed();
    }

    /// Services came, went or changed, and their addresses with them.
    pub(crate) fn services_changed(&mut self) {
        self.neighbours_due = self.neighbours_due.min(self.neighbours_rested);
    }

    /// Before the datapath serves: what must not wait until then.
    pub(crate) fn look_early(&mut self) -> Vec<Finding> {
        let found = vec![("StateNotWritten", self.record())];
        self.log(&found);
        found
    }

    /// Looks at what is due, except neighbours.
    pub(crate) fn look(&mut self, now: Instant) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.devices_due <= now {
            self.devices_due = now + DEVICES;
            found.extend(if self.kind.carries_packets() { self.devices() } else { Vec::new() });
        }
        if self.due <= now {
            let began = std::time::Instant::now();
            let rest = [
                ("StateNotWritten", self.record()),
                ("DatapathLeft", self.leftovers.clean()),
                ("ForeignDatapath", self.foreign_datapath()),
            ];
            let is_wrong = rest.iter().any(|(_, problem)| problem.is_some());
            self.due = now + if is_wrong { RETRY } else { rest_after(began.elapsed()) };
            found.extend(rest);
        }
        self.log(&found);
        found
    }

    /// Looks at neighbours if that is due: the condition of the agent, and what there is to say of each service.
    /// `services_at` finds the services at addresses, and is `None` if there are no services at all.
    pub(crate) fn look_at_neighbours(
        &mut self,
        now: Instant,
        services_at: impl FnOnce(&BTreeSet<IpAddr>) -> Option<ServicesAt>,
    ) -> Option<(Finding, BTreeMap<String, String>)> {
        if self.neighbours_due > now {
            return None;
        }
        (self.neighbours_due, self.neighbours_rested) = (now + AT_LAST, now + PAUSE);
        if !self.kind.carries_packets() {
            return None;
        }
        let listed = netlink::neighbours().and_then(|neighbours| Ok((neighbours, netlink::devices()?)));
        let (neighbours, devices) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                tracing::debug!(%error, "neighbours cannot be listed");
                self.neighbours_due = now + NEIGHBOURS;
                return None;
            }
        };
        let services = services_at(&neighbours.iter().map(|neighbour| neighbour.ip).collect());
        if services.is_some() {
            self.neighbours_due = now + NEIGHBOURS;
        }
        let (problem, of_services) = shared(&services.unwrap_or_default(), &neighbours, &devices);
        let finding = (ADDRESS_SHARED, problem);
        self.log(std::slice::from_ref(&finding));
        Some((finding, of_services))
    }

    fn devices(&mut self) -> Vec<Finding> {
        let mut found = Vec::new();
        match netlink::devices() {
            Ok(devices) => {
                let present: BTreeSet<&String> = devices.values().collect();
                let gone: Vec<&str> =
                    self.uplinks.iter().filter(|device| !present.contains(device)).map(String::as_str).collect();
                found.push((UPLINK_GONE, (!gone.is_empty()).then(|| self.uplinks_gone(&gone))));
            }
            Err(error) => tracing::debug!(%error, "devices cannot be listed"),
        }
        let hindrances = self.kind.hindrances(&self.node);
        let names = hindrances.iter().map(|(name, _)| *name).collect();
        let before = std::mem::replace(&mut self.hindrances, names);
        found.extend(before.difference(&self.hindrances).map(|name| (*name, None)));
        found.extend(hindrances.into_iter().map(|(name, problem)| (name, Some(problem))));
        found
    }

    fn uplinks_gone(&self, gone: &[&str]) -> String {
        let (devices, are) = (gone.join(", "), if gone.len() == 1 { "is" } else { "are" });
        let then = if self.kind.reads(Setting::Device) {
            "traffic that enters through it is not load balanced; the agent attaches to it as soon as it is back"
        } else {
            "traffic does not enter this node through it, and the addresses of this node may be gone with it"
        };
        format!("{devices}, named by --device or with a default route when the agent started, {are} gone: {then}")
    }

    /// Records what the agent uses, unless that is done.
    fn record(&mut self) -> Option<String> {
        if self.is_recorded {
            return None;
        }
        let error = self.state_dir.remember(&self.used).err();
        self.is_recorded = error.is_none();
        let why = lb_core::error::report(&error?);
        Some(format!(
            "{why}; as long as that is so, `lb cleanup` and the next agent do not know of datapath {}",
            self.used
        ))
    }

    /// Datapaths that neither this agent nor the state directory knows.
    fn foreign_datapath(&self) -> Option<String> {
        if !self.kind.carries_packets() {
            return None;
        }
        let known: Vec<Used> = self.leftovers.left().iter().chain([&self.used]).cloned().collect();
        let kinds: BTreeSet<DatapathKind> = driver::carrying().into_iter().chain(self.kinds.iter().copied()).collect();
        let mut found = Vec::new();
        for kind in kinds {
            match kind.unknown(&known) {
                Ok(unknown) => found.extend(unknown.into_iter().map(|what| format!("{kind}: {what}"))),
                Err(error) => tracing::debug!(%kind, error = error.report(), "other datapaths cannot be looked for"),
            }
        }
        (!found.is_empty()).then(|| {
            format!(
                "this network namespace has another datapath of lb, which may send connections to backends that are gone: \
                 {}; stop its agent, or, if it has none, remove it",
                found.join("; ")
            )
        })
    }

    fn log(&mut self, found: &[Finding]) {
        for (condition, problem) in found {
            match problem {
                Some(problem) if self.told.get(condition) != Some(problem) => {
                    tracing::warn!(condition, problem, "the machine has a problem");
                    self.told.insert(condition, problem.clone());
                }
                None if self.told.remove(condition).is_some() => {
                    tracing::info!(condition, "a problem of the machine is over");
                }
                Some(_) | None => {}
            }
        }
    }
}

/// How long until other datapaths are looked for again, after a look that took this long and found nothing wrong.
fn rest_after(took: Duration) -> Duration {
    took.saturating_mul(REST).clamp(RETRY, AT_LAST)
}

/// The addresses of services that other hosts have answered for, and the same for each of these services.
fn shared(
    services: &ServicesAt,
    neighbours: &[Neighbour],
    devices: &BTreeMap<u32, String>,
) -> (Option<String>, BTreeMap<String, String>) {
    let found: BTreeMap<IpAddr, (&BTreeSet<ServiceName>, &Neighbour)> = neighbours
        .iter()
        .filter_map(|neighbour| Some((neighbour.ip, (services.get(&neighbour.ip)?, neighbour))))
        .collect();
    let host = |Neighbour { link, device, .. }: &Neighbour| match devices.get(device) {
        Some(device) => format!("{link} on {device}"),
        None => link.clone(),
    };
    let mut of_services: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (ip, (names, neighbour)) in &found {
        for name in *names {
            of_services.entry(name.to_string()).or_default().push(format!("{ip} ({})", host(neighbour)));
        }
    }
    let named = found.iter().map(|(ip, (names, neighbour))| {
        let names = names.iter().map(ToString::to_string).collect();
        format!("{ip} of {} ({})", some_of(names), host(neighbour))
    });
    let problem = (!found.is_empty()).then(|| {
        format!(
            "another host answers for {}: this node load balances the ports of services at such an address and leaves \
             all other ports to that host; if it neither is a node nor announces the address for the cluster, give the \
             service another address",
            some_of(named.collect())
        )
    });
    let of_service = |addresses: Vec<String>| {
        format!(
            "another host answers for {}: this node load balances the ports of services at that address and leaves all \
             other ports to that host; if it neither is a node nor announces the address for the cluster, give the \
             service another address",
            some_of(addresses)
        )
    };
    (problem, of_services.into_iter().map(|(name, addresses)| (name, of_service(addresses))).collect())
}

/// The first of these, and how many more there are.
fn some_of(all: Vec<String>) -> String {
    let more = all.len().saturating_sub(MOST_NAMED);
    let named = all.into_iter().take(MOST_NAMED).collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

/// Before anything goes: whoever reads it in time can go back to the former datapath, whose connections are still there.
fn announce_switch(used: &Used, others: &[Used], kinds: &[DatapathKind]) {
    let uses_conntrack = |used: &Used| used.kind_among(kinds).is_some_and(|kind| kind.uses_conntrack());
    for other in others.iter().filter(|other| other.whereabouts() == Whereabouts::Here) {
        if uses_conntrack(used) && uses_conntrack(other) {
            tracing::info!(from = %other, to = %used, "the datapath is switched; established connections live on");
        } else {
            tracing::warn!(
                from = %other,
                to = %used,
                "the datapath is switched: established connections end when the former datapath is removed, which is as \
                 soon as this one is ready; docs/operations.md says which"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_another_host_answers_for_is_named_with_that_host_and_its_services() {
        let ip = |last| IpAddr::from([10, 200, 2, last]);
        let neighbour = |last| Neighbour { ip: ip(last), link: format!("02:00:00:00:00:{last}"), device: 2 };
        let devices = BTreeMap::from([(2, "eth0".to_owned())]);
        let told = |vips: &[(u8, &[&str])], neighbours: &[u8]| {
            let neighbours: Vec<Neighbour> = neighbours.iter().copied().map(neighbour).collect();
            let names = |names: &[&str]| names.iter().map(|name| ServiceName::new("default", name)).collect();
            let services = vips.iter().map(|&(last, of)| (ip(last), names(of))).collect();
            shared(&services, &neighbours, &devices)
        };
        assert_eq!(told(&[(11, &["a"])], &[12]), (None, BTreeMap::new()));
        assert_eq!(told(&[], &[12]), (None, BTreeMap::new()));
        let (one, of_services) = told(&[(11, &["a"]), (12, &["b", "c"])], &[12, 13]);
        let one = one.unwrap();
        let wanted = "another host answers for 10.200.2.12 of default/b, default/c (02:00:00:00:00:12 on eth0): ";
        assert!(one.starts_with(wanted), "{one}");
        assert_eq!(of_services.keys().collect::<Vec<_>>(), ["default/b", "default/c"]);
        let wanted = "another host answers for 10.200.2.12 (02:00:00:00:00:12 on eth0): ";
        assert!(of_services["default/c"].starts_with(wanted), "{of_services:?}");
        let all: Vec<(u8, &[&str])> = (11..16).map(|last| (last, &["a"][..])).collect();
        let many = told(&all, &[15, 14, 13, 12, 11, 11]).0.unwrap();
        assert!(many.contains("10.200.2.13 of default/a (02:00:00:00:00:13 on eth0) and 2 more: "), "{many}");
    }

    #[test]
    fn other_datapaths_are_looked_for_within_seconds_where_that_is_cheap() {
        let seconds = Duration::from_secs;
        assert_eq!(rest_after(Duration::from_millis(20)), seconds(10));
        assert_eq!(rest_after(Duration::from_millis(500)), seconds(100));
        assert_eq!(rest_after(seconds(30)), seconds(600));
    }
}
