//! The kernel outside of iptables: routes to VIPs, a path for packets to be refused, conntrack.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_core::{
    addr::BackendAddr,
    datapath::{DatapathError, ErrorKind},
    decision::Packet,
};
use nix::libc;

use crate::{
    conntrack::{Allowed, Conntrack, raise_close_wait},
    iptables::{IptablesConfig, check::drift::RouteDrift, reject_path::RejectPath},
    namespace::Namespace,
    routes::{Foreign, InstalledRoutes, RouteFilter, Routes},
};

/// The kernel outside of iptables.
pub(crate) trait Host: Send {
    /// VIPs that are routed here.
    fn vips(&mut self) -> Result<BTreeSet<IpAddr>, DatapathError>;

    /// Routes these VIPs here, those excepted that belong to somebody else; those that are routed already stay. Returns
    /// those that cannot be routed.
    fn add_vips(&mut self, vips: &[IpAddr]) -> Result<BTreeMap<IpAddr, DatapathError>, DatapathError>;

    /// Stops to route these VIPs.
    fn remove_vips(&mut self, vips: &[IpAddr]) -> Result<(), DatapathError>;

    /// Forgets flows to these frontends whose replies come from elsewhere than allowed.
    fn forget_stale(&mut self, allowed: &Allowed) -> Result<(), DatapathError>;
    /// Ends flows to these frontends whose replies come from elsewhere than allowed; returns how many.
    fn end_flows(&mut self, allowed: &Allowed) -> Result<usize, DatapathError>;

    /// Says which of `vips`, all addresses of the datapath, belong to somebody else.
    fn foreign(&mut self, vips: &BTreeSet<IpAddr>) -> Result<Foreign, DatapathError>;

    /// Has conntrack remember half-closed connections for so long at least, if it can be told so.
    fn raise_close_wait(&mut self, time: Duration);

    /// Every route and routing rule of this datapath.
    fn routes(&mut self) -> Result<InstalledRoutes, DatapathError>;

    /// Whether refused packets find their way.
    fn has_reject_path(&mut self) -> Result<bool, DatapathError>;

    /// Puts back routes and routing rules.
    fn mend(&mut self, drift: &RouteDrift) -> Result<(), DatapathError>;

    /// Where the flow of a packet goes, if conntrack knows it.
    fn backend_of(&mut self, packet: &Packet) -> Result<Option<BackendAddr>, DatapathError>;

    /// Distinguishes notifications about the datapath's routes from others.
    fn route_filter(&self) -> lb_netlink::Result<RouteFilter>;

    /// Removes every route and routing rule.
    fn cleanup(&mut self) -> Result<(), DatapathError>;
}

/// The network namespace of the thread that opened it.
pub(crate) struct Kernel {
    routes: Routes,
    reject_path: RejectPath,
    flows: Conntrack,
    namespace: Option<Namespace>,
}

impl Kernel {
    pub(crate) fn open(config: &IptablesConfig) -> Result<Self, DatapathError> {
        let opening = failure("opening a netlink socket");
        let IptablesConfig { route_table, rule_priority, route_protocol, .. } = *config;
        Ok(Self {
            routes: Routes::open(route_table, rule_priority, route_protocol).map_err(opening)?,
            reject_path: RejectPath::open(config).map_err(opening)?,
            flows: Conntrack::open().map_err(opening)?,
            namespace: Namespace::current().ok(),
        })
    }
}

impl Host for Kernel {
    fn vips(&mut self) -> Result<BTreeSet<IpAddr>, DatapathError> {
        self.routes.observe().map_err(failure("reading routes"))
    }

    fn add_vips(&mut self, vips: &[IpAddr]) -> Result<BTreeMap<IpAddr, DatapathError>, DatapathError> {
        self.reject_path.add().map_err(failure("adding the routing rule for refused packets"))?;
        let refused = self.routes.add(vips).map_err(failure("adding routes"))?;
        let explain = |(vip, error)| (vip, failure(&format!("adding the routes of {vip}"))(error));
        Ok(refused.into_iter().map(explain).collect())
    }

    fn remove_vips(&mut self, vips: &[IpAddr]) -> Result<(), DatapathError> {
        let refused = self.routes.remove(vips).map_err(failure("removing routes"))?;
        match refused.into_iter().next() {
            Some((vip, error)) => Err(failure(&format!("removing the routes of {vip}"))(error)),
            None => Ok(()),
        }
    }

    fn forget_stale(&mut self, allowed: &Allowed) -> Result<(), DatapathError> {
        self.flows.forget_stale(allowed).map(drop).map_err(failure("deleting stale flows"))
    }

    fn end_flows(&mut self, allowed: &Allowed) -> Result<usize, DatapathError> {
        self.flows.end(allowed).map_err(failure("deleting flows"))
    }

    fn foreign(&mut self, vips: &BTreeSet<IpAddr>) -> Result<Foreign, DatapathError> {
        self.routes.foreign(vips).map_err(failure("reading routes"))
    }

    fn raise_close_wait(&mut self, time: Duration) {
        raise_close_wait(self.namespace.as_ref(), time);
    }

    fn routes(&mut self) -> Result<InstalledRoutes, DatapathError> {
        self.routes.everything().map_err(failure("reading routes"))
    }

    fn has_reject_path(&mut self) -> Result<bool, DatapathError> {
        self.reject_path.is_there().map_err(failure("reading routing rules"))
    }

    fn mend(&mut self, drift: &RouteDrift) -> Result<(), DatapathError> {
        let RouteDrift { missing, extra, rules, reject_path, .. } = drift;
        self.routes.repair(missing, extra, rules).map_err(failure("putting routes back"))?;
        if *reject_path {
            self.reject_path.add_again().map_err(failure("adding the routing rule for refused packets"))?;
        }
        Ok(())
    }

    fn backend_of(&mut self, packet: &Packet) -> Result<Option<BackendAddr>, DatapathError> {
        self.flows.backend_of(packet).map_err(failure("asking conntrack"))
    }

    fn route_filter(&self) -> lb_netlink::Result<RouteFilter> {
        let mut route_filter = self.routes.filter()?;
        route_filter.second_port = Some(self.reject_path.port()?);
        Ok(route_filter)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.routes.cleanup().map_err(failure("removing routes"))?;
        self.reject_path.remove().map_err(failure("removing the routing rule for refused packets"))
    }
}

fn failure(doing: &str) -> impl Fn(lb_netlink::Error) -> DatapathError + Copy + '_ {
    move |error| {
        let kind = match error.errno() {
            Some(libc::EPERM | libc::EACCES) => ErrorKind::Permission,
            Some(libc::ENOBUFS | libc::ENOSPC | libc::ENOMEM) => ErrorKind::Capacity,
            Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => ErrorKind::Unsupported,
            _ => ErrorKind::System,
        };
        DatapathError::new(kind, format!("{doing} failed")).with_source(error)
    }
}
