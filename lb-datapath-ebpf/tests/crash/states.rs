//! Two states, one of which becomes the other.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use lb_core::{
    addr::{
        BackendAddr, FrontendAddr,
        Protocol::{self, Tcp, Udp},
    },
    affinity::Affinity,
    id::{BackendId, FrontendId, SetId},
    node::NodeFacts,
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
};

/// A frontend that has backends in both states.
pub(crate) const VIP: &str = "10.96.0.1:80";

/// Flows that are tried.
pub(crate) const HASHES: [u32; 5] = [0, 1 << 29, 1 << 30, 1 << 31, u32::MAX];

/// A frontend of every kind.
pub(crate) fn before(port: u16) -> State {
    let sets =
        [set(1, Lookup::Hash, &[1, 2, 1, 2]), set(2, Lookup::Random, &[11, 12]), set(3, Lookup::RoundRobin, &[1])];
    let frontends = [
        frontend(1, Tcp, Target::Set(id(1)), None),
        frontend(2, Udp, Target::Set(id(2)), None),
        frontend(3, Tcp, Target::Set(id(3)), Some(Affinity::default())),
        frontend(4, Tcp, Target::Reject, None),
        frontend(5, Tcp, Target::Set(id(3)), None),
        frontend(6, Tcp, Target::Set(id(1)), None),
    ];
    state(port, &[1, 2, 11, 12], sets, frontends, "10.244.0.0/16")
}

/// Other backends, other tables; one frontend is gone, one is new, one gets affinity on a table that was there.
pub(crate) fn after(port: u16) -> State {
    let sets = [
        set(1, Lookup::Hash, &[1, 2, 1, 2]),
        set(11, Lookup::Hash, &[2, 3, 4, 2, 3, 4, 2]),
        set(12, Lookup::Random, &[12, 13]),
        set(13, Lookup::RoundRobin, &[4, 3]),
    ];
    let frontends = [
        frontend(1, Tcp, Target::Set(id(11)), None),
        frontend(2, Udp, Target::Set(id(12)), None),
        frontend(3, Tcp, Target::Set(id(13)), None),
        frontend(4, Tcp, Target::Set(id(13)), None),
        frontend(6, Tcp, Target::Set(id(1)), Some(Affinity::default())),
        frontend(7, Tcp, Target::Drop, None),
    ];
    state(port, &[1, 2, 3, 4, 12, 13], sets, frontends, "10.0.0.0/8")
}

fn state<const S: usize, const F: usize>(
    port: u16,
    backends: &[u8],
    sets: [(SetId, Arc<BackendSet>); S],
    frontends: [(FrontendAddr, Frontend); F],
    cidr: &str,
) -> State {
    let backend = |number: &u8| {
        let protocol = if *number > 10 { Udp } else { Tcp };
        let addr = BackendAddr::new(Ipv4Addr::new(127, 0, 0, *number).into(), port, protocol);
        (BackendId::new(u32::from(*number)).unwrap(), Backend { addr, local: true })
    };
    State {
        backends: backends.iter().map(backend).collect(),
        sets: BTreeMap::from(sets),
        frontends: BTreeMap::from(frontends),
        node: NodeFacts {
            name: None,
            ips: vec![Ipv4Addr::new(192, 0, 2, 1).into()],
            cluster_cidrs: vec![cidr.parse().unwrap()],
        },
    }
}

fn id(number: u32) -> SetId {
    SetId::new(number).unwrap()
}

fn set(number: u32, lookup: Lookup, backends: &[u32]) -> (SetId, Arc<BackendSet>) {
    let slots: Vec<_> = backends.iter().map(|backend| BackendId::new(*backend).unwrap()).collect();
    (id(number), Arc::new(BackendSet::new(lookup, slots)))
}

fn frontend(number: u8, protocol: Protocol, target: Target, affinity: Option<Affinity>) -> (FrontendAddr, Frontend) {
    let addr = FrontendAddr::new(Ipv4Addr::new(10, 96, 0, number).into(), 80, protocol);
    (addr, Frontend { affinity, ..Frontend::new(FrontendId::new(u32::from(number)).unwrap(), target) })
}
