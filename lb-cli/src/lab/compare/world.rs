//! The services that are compared.

use std::net::{IpAddr, SocketAddr};

use lb_core::{
    endpoint::{Endpoint, EndpointSlice},
    model::Change,
    name::NodeName,
    node::NodeFacts,
    service::{Algorithm, Service},
    table::TableSize,
};
use lb_testkit::worlds::{FRONTEND_PORT, World};

/// Which of the two groups of real servers is behind the last service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    A,
    B,
}

impl Group {
    pub(super) const BOTH: [Self; 2] = [Self::A, Self::B];
    /// Servers in each: the backends of every service.
    pub(super) const SERVERS: usize = 4;

    /// First letter of its servers' names.
    pub(super) const fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }

    /// Where change number `change` leads, counted from 0. The world begins with [`Group::A`].
    pub(super) const fn after(change: u32) -> Self {
        if change.is_multiple_of(2) { Self::B } else { Self::A }
    }
}

/// Equal services with made-up backends, except for the last one, whose backends are there.
#[derive(Clone, Debug)]
pub(super) struct Compared {
    world: World,
    servers_node: NodeName,
    groups: [Vec<IpAddr>; 2],
    maglev: u32,
}

/// Slots of the services that ask for Maglev: the least that there are.
const MAGLEV_SLOTS: u32 = 251;

impl Compared {
    /// `services` of which the first `maglev` ask for Maglev.
    pub(super) fn new(services: u32, maglev: u32, servers_node: NodeName, groups: [Vec<IpAddr>; 2]) -> Self {
        Self { world: World::of(services), servers_node, groups, maglev }
    }

    /// How many services there are.
    pub(super) const fn services(&self) -> u32 {
        self.world.services
    }

    /// Where clients of the last service connect to.
    pub(super) fn frontend(&self) -> SocketAddr {
        SocketAddr::new(self.world.vip(self.last()), FRONTEND_PORT)
    }

    /// The only slice of the last service, with the servers of a group.
    pub(super) fn last_slice(&self, group: Group) -> EndpointSlice {
        let endpoint = |&ip: &IpAddr| Endpoint { node: Some(self.servers_node.clone()), ..Endpoint::new(ip) };
        EndpointSlice {
            endpoints: self.groups[group as usize].iter().map(endpoint).collect(),
            ..self.world.slice(self.last(), [])
        }
    }

    /// Every service with its slice.
    pub(super) fn objects(&self) -> impl Iterator<Item = (Service, EndpointSlice)> {
        let world = self.world;
        (0..world.services).map(move |n| {
            let slice = if n == self.last() { self.last_slice(Group::A) } else { world.slice(n, 0..world.endpoints) };
            (self.service(n), slice)
        })
    }

    fn service(&self, n: u32) -> Service {
        let service = self.world.service(n);
        if n >= self.maglev {
            return service;
        }
        Service { algorithm: Some(Algorithm::Maglev), table_size: TableSize::new(MAGLEV_SLOTS).ok(), ..service }
    }

    /// Every change that makes the world on a node.
    pub(super) fn changes(&self, node: NodeFacts) -> impl Iterator<Item = Change> {
        let objects = self.objects();
        let objects =
            objects.flat_map(|(service, slice)| [Change::UpsertService(service), Change::ReplaceEndpoints(slice)]);
        std::iter::once(Change::SetNode(node)).chain(objects)
    }

    const fn last(&self) -> u32 {
        self.world.services.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lb_core::{
        model::{Model, Settings},
        reconciler::Reconciler,
        state::State,
    };

    use super::*;

    fn compared(services: u32) -> Compared {
        let group = |third: u8| (10..14).map(|last| IpAddr::from([10, 244, third, last])).collect();
        Compared::new(services, 2, NodeName::new("servers"), [group(0), group(1)])
    }

    #[test]
    fn no_two_services_share_a_backend_and_the_last_has_the_servers() {
        let mut model = Reconciler::new(Model::new(Settings::default(), lb_core::datapath::Capabilities::all("test")));
        model.handle_observed(State::default());
        let world = compared(10);
        for change in world.changes(NodeFacts::default()) {
            model.handle_change(change).unwrap();
        }
        let plan = model.poll_plan(lb_core::time::Instant::default()).unwrap().unwrap();
        let mut state = State::default();
        plan.ops.iter().for_each(|op| state.apply_op(op));
        assert_eq!((state.frontends.len(), state.sets.len(), state.backends.len()), (10, 10, 40));
        let real = state.backends.values().filter(|backend| backend.addr.ip.to_string().starts_with("10.244.0."));
        assert_eq!(real.count(), 4);
        assert_eq!(world.frontend(), "10.96.0.10:80".parse().unwrap());
    }

    #[test]
    fn a_change_replaces_every_endpoint_of_the_last_service() {
        let world = compared(3);
        let ips = |group| world.last_slice(group).endpoints.iter().map(|e| e.ip).collect::<BTreeSet<_>>();
        assert_eq!(ips(Group::A).len(), Group::SERVERS);
        assert!(ips(Group::A).is_disjoint(&ips(Group::B)));
        assert_eq!(world.last_slice(Group::A).name, world.last_slice(Group::B).name);
        assert_eq!((Group::after(0), Group::after(1)), (Group::B, Group::A));
    }
}
