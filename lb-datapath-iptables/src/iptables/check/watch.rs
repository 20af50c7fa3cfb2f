//! Watches for changes that others make to the rules and the routes.
//!
//! With iptables-nft the kernel sends notifications about nf_tables, which name the process that made a change. With
//! iptables-legacy nothing sends notifications, so the watcher reads the number and the size of the entries.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use lb_core::{
    addr::Family,
    datapath::{DatapathError, ErrorKind, Watcher},
};
use lb_netlink::{Delivery, Listener, Message, Protocol, string, u32_be, wait};
use netlink_packet_core::NLM_F_APPEND;

use crate::{
    iptables::{
        check::sizes::{Size, Sizes},
        rules::{hooks::Hook, names::PREFIX},
    },
    netfilter::*,
    routes::{self, RouteFilter},
};

/// Between two looks at the size of the tables of iptables-legacy.
const PERIOD: Duration = Duration::from_millis(500);
/// Processes of lb that are remembered.
const PROCESSES: usize = 64;

/// Shared between a datapath, its programs and its watcher.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedSuspects(Arc<Mutex<Suspects>>);

impl SharedSuspects {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Suspects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a process of lb.
    pub(crate) fn started(&self, process: u32) {
        let mut suspects = self.lock();
        if suspects.processes.len() >= PROCESSES {
            suspects.processes.pop_front();
        }
        suspects.processes.push_back(process);
    }
}

/// Objects that others may have changed.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// The rules of these families.
    pub(crate) families: BTreeSet<Family>,
    /// Routes and routing rules.
    pub(crate) routes: bool,
    /// Sizes of the tables as the last change by lb left them. Empty while one is on its way.
    pub(crate) sizes: BTreeMap<(Family, &'static str), Size>,
    processes: VecDeque<u32>,
}

pub(crate) const TABLES: [&str; 2] = ["nat", "filter"];

/// How the watcher learns of changed rules.
pub(crate) enum Rules {
    /// By the notifications of the kernel: iptables-nft.
    Notified(Listener),
    /// By the sizes of the tables, from time to time: iptables-legacy.
    Polled(Sizes),
}

/// Watches over one datapath.
pub(crate) struct IptablesWatcher {
    rules: Rules,
    routes: Listener,
    route_filter: RouteFilter,
    families: Vec<Family>,
    shared: SharedSuspects,
    /// Families that a transaction touches whose author is not known yet.
    touched: BTreeSet<Family>,
}

impl IptablesWatcher {
    /// A listener for iptables-nft, in the network namespace of the calling thread.
    pub(crate) fn notified() -> io::Result<Rules> {
        Ok(Rules::Notified(Listener::open(Protocol::Netfilter, &[NFNLGRP_NFTABLES], None)?))
    }

    /// Watches in the network namespace of the calling thread.
    pub(crate) fn open(
        rules: Rules,
        route_filter: RouteFilter,
        families: &[Family],
        shared: SharedSuspects,
    ) -> io::Result<Self> {
        Ok(Self {
            rules,
            routes: Listener::open(Protocol::Route, &routes::GROUPS, Some(route_filter.port))?,
            route_filter,
            families: families.to_vec(),
            shared,
            touched: BTreeSet::new(),
        })
    }

    fn look(&mut self) -> io::Result<bool> {
        let routes = self.look_at_routes()?;
        Ok(self.look_at_rules()? || routes)
    }

    fn look_at_routes(&mut self) -> io::Result<bool> {
        let (mut noticed, filter) = (false, &self.route_filter);
        let heard = self.routes.read(|message| noticed |= filter.change(&message).is_some())?;
        noticed |= heard == Delivery::Overrun;
        self.shared.lock().routes |= noticed;
        Ok(noticed)
    }

    fn look_at_rules(&mut self) -> io::Result<bool> {
        match &mut self.rules {
            Rules::Polled(sizes) => {
                let mut suspects = self.shared.lock();
                let families: BTreeSet<Family> = differing(sizes, &suspects.sizes)?;
                suspects.families.extend(&families);
                // Reported once: the inspection that follows knows the families.
                suspects.sizes.retain(|(family, _), _| !families.contains(family));
                Ok(!families.is_empty())
            }
            Rules::Notified(listener) => {
                let (touched, shared, mut noticed) = (&mut self.touched, &self.shared, false);
                let heard = listener.read(|message| noticed |= ends_foreign_change(&message, touched, shared))?;
                if heard == Delivery::Overrun {
                    self.touched.clear();
                    self.shared.lock().families.extend(&self.families);
                    noticed = true;
                }
                Ok(noticed)
            }
        }
    }

    fn watch(&mut self, timeout: Duration) -> io::Result<bool> {
        let start = Instant::now();
        loop {
            if self.look()? {
                return Ok(true);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            match &self.rules {
                Rules::Notified(rules) => wait(&[rules, &self.routes], left)?,
                Rules::Polled(_) => wait(&[&self.routes], left.min(PERIOD))?,
            };
            if self.routes.take_wake() {
                return Ok(false);
            }
        }
    }
}

impl Watcher for IptablesWatcher {
    fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError> {
        self.watch(timeout).map_err(|error| {
            let mut suspects = self.shared.lock();
            suspects.families.extend(&self.families);
            suspects.routes = true;
            DatapathError::new(ErrorKind::System, "watching over rules and routes failed").with_source(error)
        })
    }

    fn waker(&self) -> Option<Waker> {
        Some(self.routes.waker())
    }
}

/// Families with a table that is not of the size that it should be of.
fn differing(sizes: &Sizes, known: &BTreeMap<(Family, &'static str), Size>) -> io::Result<BTreeSet<Family>> {
    let mut families = BTreeSet::new();
    for (&(family, table), &size) in known {
        if sizes.of(family, table)? != size {
            families.insert(family);
        }
    }
    Ok(families)
}

/// Notes the family that a notification about nf_tables is about. Says whether the notification ends a transaction of
/// another program that concerns the datapath.
fn ends_foreign_change(message: &Message<'_>, touched: &mut BTreeSet<Family>, shared: &SharedSuspects) -> bool {
    if message.kind != NFT_MSG_NEWGEN {
        touched.extend(concerned(message));
        return false;
    }
    let families = std::mem::take(touched);
    let mut suspects = shared.lock();
    let process = body(message.payload).find(NFTA_GEN_PROC_PID).and_then(u32_be);
    let own = [Some(message.port), process].into_iter().flatten().any(|id| suspects.processes.contains(&id));
    if own || families.is_empty() {
        return false;
    }
    suspects.families.extend(families);
    true
}

/// The family of the datapath's chain, or of a jump to one, that a message may be about.
fn concerned(message: &Message<'_>) -> Option<Family> {
    let family = match *message.payload.first()? {
        NFPROTO_IPV4 => Family::V4,
        NFPROTO_IPV6 => Family::V6,
        _ => return None,
    };
    let object = body(message.payload);
    let named = |kind| object.find(kind).and_then(string).unwrap_or_default();
    let (removal, chain) = match message.kind {
        NFT_MSG_DELTABLE => (true, ""),
        NFT_MSG_NEWCHAIN => (false, named(NFTA_CHAIN_NAME)),
        NFT_MSG_DELCHAIN => (true, named(NFTA_CHAIN_NAME)),
        NFT_MSG_NEWRULE => (false, named(NFTA_RULE_CHAIN)),
        NFT_MSG_DELRULE => (true, named(NFTA_RULE_CHAIN)),
        _ => return None,
    };
    // Neither appended nor inserted behind another: in a built-in chain, that is the place of the jump of lb.
    let first = message.kind == NFT_MSG_NEWRULE
        && message.flags & NLM_F_APPEND == 0
        && object.find(NFTA_RULE_POSITION).is_none();
    let in_front = first && Hook::ALL.iter().any(|hook| hook.chain() == chain);
    // In a foreign chain, only a removed rule can be a jump of this datapath.
    // The first attribute is the table in messages about every kind of object.
    (TABLES.contains(&named(NFTA_TABLE_NAME)) && (removal || in_front || chain.starts_with(PREFIX))).then_some(family)
}
