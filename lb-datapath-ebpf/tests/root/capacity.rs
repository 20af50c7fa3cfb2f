//! Maps that are full: what does not fit is refused by name, and nothing is served in part.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
};

use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::{ApplyError, Datapath, ErrorKind, MapUsage},
    plan::{Labels, diff},
    state::{Lookup, State, Target},
};
use lb_datapath_ebpf::{Capacities, EbpfDatapath};
use lb_datapath_ebpf_abi as abi;

use crate::{
    bpf::Map,
    common::{Cgroup, Namespace, PinDir, ask_tcp, ask_udp, config, serve, state, turn},
};

/// Services that fit.
const MOST: usize = 16;
const SERVER: &str = "0.0.0.0:8001";

struct Host {
    datapath: EbpfDatapath,
    space: Namespace,
    pins: PinDir,
    cgroup: Cgroup,
}

impl Host {
    fn new(capacities: Capacities) -> Self {
        let space = Namespace::new("f");
        let job = space.run(|| serve(SERVER.parse().unwrap(), "a"));
        space.spawn(job);
        let (pins, cgroup) = (PinDir::new(), Cgroup::joined());
        let config = config(&pins, &cgroup).with_capacities(capacities);
        let datapath = space.run(|| EbpfDatapath::open(config)).unwrap();
        Self { datapath, space, pins, cgroup }
    }

    /// Started anew with other sizes.
    fn reopened(self, capacities: Capacities) -> Self {
        let Self { datapath, space, pins, cgroup } = self;
        drop(datapath);
        let wanted = config(&pins, &cgroup).with_capacities(capacities);
        let datapath = space.run(|| EbpfDatapath::open(wanted)).unwrap();
        Self { datapath, space, pins, cgroup }
    }

    fn apply(&mut self, desired: &State) -> Result<(), ApplyError> {
        let observed = self.datapath.observe().unwrap();
        self.datapath.apply(&diff(&observed, desired, &Labels::default()))
    }

    fn answers(&self, frontend: &FrontendAddr) -> bool {
        let vip = SocketAddr::new(frontend.ip, frontend.port);
        self.space.run(|| match frontend.protocol {
            Protocol::Udp => ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), vip).is_ok(),
            _ => ask_tcp(vip).is_ok(),
        })
    }

    fn usage(&self, map: &str) -> MapUsage {
        self.datapath.map_usage().unwrap().into_iter().find(|usage| usage.name == map).unwrap()
    }
}

/// Services with a backend each, of which none is shared.
fn services(count: usize, first: usize, protocol: Protocol) -> State {
    let addrs: Vec<[SocketAddr; 2]> = (first..first + count)
        .map(|n| [format!("10.96.1.{n}:80"), format!("127.0.1.{n}:8001")].map(|addr| addr.parse().unwrap()))
        .collect();
    let services: Vec<_> = addrs.iter().map(|[vip, backend]| (*vip, protocol, std::slice::from_ref(backend))).collect();
    state(&services, Lookup::Random, None)
}

/// Everything that a frontend needs is there.
fn is_whole(state: &State, frontend: &FrontendAddr) -> bool {
    let Some(Target::Set(set)) = state.frontends.get(frontend).map(|frontend| frontend.target) else { return false };
    state.sets.get(&set).is_some_and(|set| set.backends().iter().all(|id| state.backends.contains_key(id)))
}

type Case = (&'static str, &'static str, Protocol, fn(&mut Capacities));

/// The map that is full, the setting that makes it larger, and services of which [`MOST`] fill it.
const CASES: [Case; 5] = [
    ("FRONTENDS", "frontends", Protocol::Tcp, |c| c.frontends = MOST as u32),
    ("BACKENDS", "backends", Protocol::Tcp, |c| c.backends = MOST as u32),
    ("SETS", "sets", Protocol::Tcp, |c| c.sets = MOST as u32),
    ("SLOTS", "slots", Protocol::Tcp, |c| c.slots = 4 * MOST as u32),
    ("MEMBERS", "members", Protocol::Udp, |c| c.members = MOST as u32),
];

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_full_map_refuses_by_name_and_serves_nothing_in_part() {
    let _turn = turn();
    for (map, setting, protocol, limit) in CASES {
        let mut capacities =
            Capacities { slots: 65_536, sockets: 4_096, affinity: 4_096, flows: 8_192, ..Default::default() };
        limit(&mut capacities);
        let mut host = Host::new(capacities);
        host.apply(&services(MOST, 1, protocol)).unwrap();
        let usage = host.usage(map);
        assert_eq!((usage.entries, usage.percent(), usage.evicts), (usage.capacity, 100, false), "{map}: {usage:?}");
        for count in [MOST + 1, 2 * MOST] {
            let desired = services(count, 1, protocol);
            let error = host.apply(&desired).unwrap_err();
            let refused: BTreeSet<_> = error.failed.iter().map(|(frontend, _)| *frontend).collect();
            assert_eq!(refused.len(), count - MOST, "{map} at {count}: {error:?}");
            for (frontend, cause) in &error.failed {
                assert_eq!(cause.kind(), ErrorKind::Capacity, "{map}: {frontend}: {cause}");
                let text = cause.to_string();
                assert!(text.contains(map) && text.contains(&format!("`{setting}`")), "{map}: {text}");
            }
            let observed = host.datapath.observe().unwrap();
            for frontend in desired.frontends.keys() {
                let served = !refused.contains(frontend);
                assert_eq!(is_whole(&observed, frontend), served, "{map} at {count}: {frontend}");
                assert_eq!(observed.frontends.contains_key(frontend), served, "{map} at {count}: {frontend}");
            }
            // One that is refused would be silent until the time-out.
            let served: Vec<_> = observed.frontends.keys().copied().collect();
            assert_eq!(served.len(), MOST);
            assert!(served.iter().all(|frontend| host.answers(frontend)), "{map} at {count}");
        }
        // What was refused has left nothing behind: as many others fit.
        host.apply(&State::default()).unwrap();
        let others = services(MOST, 100, protocol);
        host.apply(&others).unwrap();
        assert_eq!(host.datapath.observe().unwrap(), others, "{map}");
        assert!(others.frontends.keys().all(|frontend| host.answers(frontend)), "{map}");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_map_grows_with_all_that_it_has_and_shrinks_to_what_is_in_use() {
    let _turn = turn();
    let capacities = Capacities { frontends: 32, slots: 64, flows: 1024, ..Default::default() };
    let mut host = Host::new(capacities);
    let services = services(MOST, 1, Protocol::Tcp);
    host.apply(&services).unwrap();
    let all = |host: &Host| services.frontends.keys().all(|frontend| host.answers(frontend));
    host = host.reopened(Capacities { frontends: 64, slots: 128, sources: 128, ..capacities });
    assert_eq!(host.datapath.kept_sizes(), []);
    let usage = host.usage("FRONTENDS");
    assert_eq!((usage.entries, usage.capacity), (MOST as u64, 64));
    assert_eq!(host.datapath.observe().unwrap(), services);
    assert!(all(&host));
    host = host.reopened(Capacities { frontends: 8, slots: 32, sources: 8, ..capacities });
    let kept: Vec<String> = host.datapath.kept_sizes().iter().map(ToString::to_string).collect();
    let told = |map: &str, found, wanted, in_use| {
        format!(
            "map {map} keeps room for {found} elements, though {wanted} are asked for: {in_use} are in use. The next start \
             tries again"
        )
    };
    assert_eq!(
        kept,
        [told("FRONTENDS", 64, 8, MOST), told("SLOTS", 128, 32, 4 * MOST), told("ADDRESSES", 64, 8, MOST)],
        "nothing is in SOURCES"
    );
    assert!(all(&host));
    host = host.reopened(Capacities { frontends: MOST as u32, slots: 64, ..capacities });
    assert_eq!(host.datapath.kept_sizes(), []);
    assert!(all(&host));
    assert_eq!(host.datapath.observe().unwrap(), services);
    host.datapath.cleanup().unwrap();
    assert_eq!(host.datapath.map_usage().unwrap(), []);
}

/// Of a map that programs fill, a part is counted.
#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_use_of_a_map_of_flows_is_estimated_within_a_tenth() {
    let _turn = turn();
    let host = Host::new(Capacities { slots: 64, flows: 131_072, ..Default::default() });
    let map = Map::open(&host.pins.0.join("v1/maps/AFFINITY"));
    for (count, least, most) in [(0, 0, 0), (5_000, 5_000, 5_000), (40_000, 36_000, 44_000)] {
        for n in 0..count {
            let client = abi::map_v4(u32::to_be_bytes(n));
            let key = abi::AffinityKey { client, frontend: 1, kind: abi::CLIENT_ADDRESS, pad: [0; 3] };
            map.put(&key, &abi::AffinityValue { last_ns: 1, backend: 1, pad: 0 });
        }
        let usage = host.usage("AFFINITY");
        assert!(usage.evicts && usage.capacity == 65_536, "{usage:?}");
        assert!((least..=most).contains(&usage.entries), "{count}: {usage:?}");
    }
}
