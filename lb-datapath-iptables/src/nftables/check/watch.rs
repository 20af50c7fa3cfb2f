//! Watches for changes that others make to the table and the routes.

use std::{
    task::Waker,
    time::{Duration, Instant},
};

use lb_core::datapath::{DatapathError, Watcher};
use lb_netlink::{Delivery, Listener, Message, Protocol, string, wait};

use crate::{
    netfilter::*,
    nftables::{
        change::errors::failure,
        check::suspects::{SharedSuspects, Suspects},
        table::{decode, layout::Set},
    },
    routes::{self, RouteChange, RouteFilter},
};

/// Listens in the network namespace of the thread that opened it.
pub(crate) struct NetfilterWatcher {
    tables: Listener,
    routes: Listener,
    filter: ChangeFilter,
}

/// Notes the objects of notifications that concern the datapath.
struct ChangeFilter {
    table: String,
    route_filter: RouteFilter,
    suspects: SharedSuspects,
}

impl NetfilterWatcher {
    /// `own` is the address of the socket that makes the datapath's own changes to the table.
    pub(crate) fn open(
        table: &str,
        own: u32,
        route_filter: RouteFilter,
        suspects: SharedSuspects,
    ) -> lb_netlink::Result<Self> {
        let tables = Listener::open(Protocol::Netfilter, &[NFNLGRP_NFTABLES], Some(own))?;
        suspects.add_listener(tables.pause());
        Ok(Self {
            tables,
            routes: Listener::open(Protocol::Route, &routes::GROUPS, Some(route_filter.port))?,
            filter: ChangeFilter { table: table.to_owned(), route_filter, suspects },
        })
    }

    /// Reads every notification; says whether one concerns the datapath.
    fn read(&mut self) -> lb_netlink::Result<bool> {
        let (mut noticed, filter) = (false, &self.filter);
        let tables = self.tables.read(|message| noticed |= filter.ruleset(&message))?;
        let routes = self.routes.read(|message| noticed |= filter.route(&message))?;
        if [tables, routes].contains(&Delivery::Overrun) {
            *filter.suspects.lock() = Suspects::everything();
            noticed = true;
        }
        Ok(noticed)
    }

    fn listen(&mut self, timeout: Duration) -> lb_netlink::Result<bool> {
        let start = Instant::now();
        loop {
            if self.read()? {
                return Ok(true);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            wait(&[&self.tables, &self.routes], left)?;
            if self.routes.take_wake() {
                return Ok(false);
            }
        }
    }
}

impl Watcher for NetfilterWatcher {
    fn wait(&mut self, timeout: Duration) -> Result<bool, DatapathError> {
        self.listen(timeout).map_err(|error| {
            *self.filter.suspects.lock() = Suspects::everything();
            failure("listening to changes of tables and routes", error)
        })
    }

    fn waker(&self) -> Option<Waker> {
        Some(self.routes.waker())
    }
}

impl ChangeFilter {
    /// Notes the object of a notification about nf_tables; says whether it concerns the datapath.
    fn ruleset(&self, message: &Message<'_>) -> bool {
        let Some(&family) = message.payload.first() else { return false };
        let object = body(message.payload);
        let named = |kind| object.find(kind).and_then(string);
        // The first attribute is the table in messages about every kind of object.
        if message.kind == NFT_MSG_NEWGEN || family != NFPROTO_INET || named(NFTA_TABLE_NAME) != Some(&self.table) {
            return false;
        }
        let mut suspects = self.suspects.lock();
        if !matches!(message.kind, NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM) {
            suspects.ruleset = true;
            return true;
        }
        match named(NFTA_SET_ELEM_LIST_SET).and_then(Set::from_name) {
            None => suspects.ruleset = true,
            Some(Set::Affinity(..)) => return false,
            Some(set) => {
                let elements = decode::raw_elements(set, message.payload);
                elements.into_iter().for_each(|element| suspects.add_key(set, element.key));
            }
        }
        true
    }

    fn route(&self, message: &Message<'_>) -> bool {
        let Some(told) = self.route_filter.change(message) else { return false };
        let mut suspects = self.suspects.lock();
        match told {
            RouteChange::Route(place, vip, there) => drop(suspects.routes.insert((place, vip), there)),
            RouteChange::Rules => suspects.routing_rules = true,
            RouteChange::Owners => suspects.owners = true,
            RouteChange::Loopback => *suspects = Suspects::everything(),
        }
        true
    }
}
