//! What about the machine an operator should know: datapaths of other agents, devices, the state directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_core::{node::NodeFacts, time::Instant};

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
/// How long until other datapaths are looked for again when nothing is wrong. Listing chains takes its time where
/// there are tens of thousands, and changes of services wait meanwhile.
const USUAL: Duration = Duration::from_secs(600);
/// How long until devices are looked at again though none changed: sysctls change without a notification.
const DEVICES: Duration = Duration::from_secs(60);

/// Condition: an uplink is not there.
const UPLINK_GONE: &str = "UplinkGone";

/// Condition: another host has an address of a service.
const ADDRESS_SHARED: &str = "AddressOfAnotherHost";
/// Most addresses that the condition names.
const MOST_NAMED: usize = 3;

/// A condition of the agent, or `None` when it is over.
pub(crate) type Finding = (&'static str, Option<String>);

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
        }
    }

    /// When to look.
    pub(crate) fn due(&self) -> Instant {
        self.due.min(self.devices_due)
    }

    /// A device came, went or changed.
    pub(crate) fn devices_changed(&mut self) {
        self.devices_due = Instant::default();
    }

    /// Before the datapath serves: what must not wait until then.
    pub(crate) fn look_early(&mut self) -> Vec<Finding> {
        let found = vec![("StateNotWritten", self.record())];
        self.log(&found);
        found
    }

    /// Looks at what is due; `vips` are the addresses of services.
    pub(crate) fn look(&mut self, now: Instant, vips: impl FnOnce() -> BTreeSet<IpAddr>) -> Vec<Finding> {
        self.devices_due = now + DEVICES;
        let mut found = if self.kind.carries_packets() { self.devices() } else { Vec::new() };
        if self.due <= now {
            let rest = [
                ("StateNotWritten", self.record()),
                ("DatapathLeft", self.leftovers.clean()),
                ("ForeignDatapath", self.foreign_datapath()),
            ];
            let is_wrong = rest.iter().any(|(_, problem)| problem.is_some());
            self.due = now + if is_wrong { RETRY } else { USUAL };
            found.extend(rest);
            if self.kind.carries_packets() {
                match netlink::neighbours().and_then(|neighbours| Ok((neighbours, netlink::devices()?))) {
                    Ok((neighbours, devices)) => found.push((ADDRESS_SHARED, shared(&vips(), &neighbours, &devices))),
                    Err(error) => tracing::debug!(%error, "neighbours cannot be listed"),
                }
            }
        }
        self.log(&found);
        found
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

/// The addresses of services that other hosts have answered for.
fn shared(vips: &BTreeSet<IpAddr>, neighbours: &[Neighbour], devices: &BTreeMap<u32, String>) -> Option<String> {
    let found: BTreeMap<IpAddr, &Neighbour> =
        neighbours.iter().filter(|neighbour| vips.contains(&neighbour.ip)).map(|it| (it.ip, it)).collect();
    let name = |(ip, Neighbour { link, device, .. }): (&IpAddr, &&Neighbour)| match devices.get(device) {
        Some(device) => format!("{ip} ({link} on {device})"),
        None => format!("{ip} ({link})"),
    };
    let named: Vec<String> = found.iter().take(MOST_NAMED).map(name).collect();
    let more = match found.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!found.is_empty()).then(|| {
        format!(
            "another host answers for {}{more}: this node load balances the ports of services at such an address and \
             leaves all other ports to that host; if it neither is a node nor announces the address for the cluster, \
             give the service another address",
            named.join(", ")
        )
    })
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
    fn an_address_that_another_host_answers_for_is_named_with_that_host() {
        let ip = |last| IpAddr::from([10, 200, 2, last]);
        let neighbour = |last| Neighbour { ip: ip(last), link: format!("02:00:00:00:00:{last}"), device: 2 };
        let devices = BTreeMap::from([(2, "eth0".to_owned())]);
        let told = |vips: &[u8], neighbours: &[u8]| {
            let neighbours: Vec<Neighbour> = neighbours.iter().copied().map(neighbour).collect();
            shared(&vips.iter().copied().map(ip).collect(), &neighbours, &devices)
        };
        assert_eq!(told(&[11], &[12]), None);
        assert_eq!(told(&[], &[12]), None);
        let one = told(&[11, 12], &[12, 13]).unwrap();
        assert!(one.starts_with("another host answers for 10.200.2.12 (02:00:00:00:00:12 on eth0): "), "{one}");
        let many = told(&[11, 12, 13, 14, 15], &[15, 14, 13, 12, 11, 11]).unwrap();
        assert!(many.contains("10.200.2.13 (02:00:00:00:00:13 on eth0) and 2 more: "), "{many}");
    }
}
