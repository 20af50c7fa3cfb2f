//! Maps that are full: what does not fit is refused by name, and nothing is served in part.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use ipnet::IpNet;
use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::{ApplyError, Datapath, ErrorKind, MapUsage},
    plan::{Labels, diff},
    sources::{RangePolicy, SourceRanges},
    state::{Guard, GuardedTraffic, Lookup, State, Target},
};
use lb_datapath_ebpf::{Capacities, EbpfDatapath};
use lb_datapath_ebpf_abi as abi;

use crate::{
    bpf::Map,
    common::{Cgroup, Namespace, PinDir, ask_tcp, ask_udp, config, serve, state, turn},
};

/// Services that fit.
pub(crate) const MOST: usize = 100;
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
        apply(&mut self.datapath, desired)
    }

    fn answers(&self, frontend: &FrontendAddr) -> bool {
        let vip = SocketAddr::new(frontend.ip, frontend.port);
        self.space.run(|| match frontend.protocol {
            Protocol::Udp => ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), vip).is_ok(),
            _ => ask_tcp(vip).is_ok(),
        })
    }

    fn usage(&self, map: &str) -> MapUsage {
        usage(&self.datapath, map)
    }
}

fn apply(datapath: &mut EbpfDatapath, desired: &State) -> Result<(), ApplyError> {
    let observed = datapath.observe().unwrap();
    datapath.apply(&diff(&observed, desired, &Labels::default()))
}

pub(crate) fn usage(datapath: &EbpfDatapath, map: &str) -> MapUsage {
    datapath.map_usage().unwrap().into_iter().find(|usage| usage.name == map).unwrap()
}

/// Services with a backend and a source range each, of which none is shared.
pub(crate) fn services(count: usize, first: usize, protocol: Protocol) -> State {
    let addrs: Vec<[SocketAddr; 2]> = (first..first + count)
        .map(|n| [format!("10.96.1.{n}:80"), format!("127.0.1.{n}:8001")].map(|addr| addr.parse().unwrap()))
        .collect();
    let services: Vec<_> = addrs.iter().map(|[vip, backend]| (*vip, protocol, std::slice::from_ref(backend))).collect();
    let mut state = state(&services, Lookup::Random, None);
    let ranges = Arc::new(SourceRanges::new(RangePolicy::Allow, ["192.0.2.0/24".parse().unwrap()]));
    for frontend in state.frontends.values_mut() {
        frontend.guard = Some(Guard { ranges: ranges.clone(), traffic: GuardedTraffic::All });
    }
    state
}

/// Everything that a frontend needs is there.
fn is_whole(state: &State, frontend: &FrontendAddr) -> bool {
    let Some(Target::Set(set)) = state.frontends.get(frontend).map(|frontend| frontend.target) else { return false };
    state.sets.get(&set).is_some_and(|set| set.backends().iter().all(|id| state.backends.contains_key(id)))
}

/// A map, and services of which [`MOST`] fill it.
pub(crate) struct Case {
    pub(crate) map: &'static str,
    /// The setting that makes it larger.
    setting: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) limit: fn(&mut Capacities),
}

const fn case(map: &'static str, setting: &'static str, protocol: Protocol, limit: fn(&mut Capacities)) -> Case {
    Case { map, setting, protocol, limit }
}

/// Every map that services fill, apart from `ADDRESSES`, which is as large as `FRONTENDS` and has no more in it, and
/// `TURNS`, which is so beside `SETS`.
pub(crate) const CASES: [Case; 6] = [
    case("FRONTENDS", "frontends", Protocol::Tcp, |c| c.frontends = MOST as u32),
    case("BACKENDS", "backends", Protocol::Tcp, |c| c.backends = MOST as u32),
    case("SETS", "sets", Protocol::Tcp, |c| c.sets = MOST as u32),
    case("SLOTS", "slots", Protocol::Tcp, |c| c.slots = 4 * MOST as u32),
    case("MEMBERS", "members", Protocol::Udp, |c| c.members = MOST as u32),
    case("SOURCES", "sources", Protocol::Tcp, |c| c.sources = MOST as u32),
];

impl Case {
    /// Applies services of which this many are too many: they are refused by name, and each of the others is whole.
    /// Returns those that are served.
    pub(crate) fn overload(&self, datapath: &mut EbpfDatapath, desired: &State, excess: usize) -> Vec<FrontendAddr> {
        let Self { map, setting, .. } = self;
        let failed = apply(datapath, desired).err().map(|error| error.failed).unwrap_or_default();
        let refused: BTreeSet<_> = failed.iter().map(|(frontend, _)| *frontend).collect();
        assert_eq!(refused.len(), excess, "{map}: {failed:?}");
        for (frontend, cause) in &failed {
            assert_eq!(cause.kind(), ErrorKind::Capacity, "{map}: {frontend}: {cause}");
            let text = cause.to_string();
            assert!(text.contains(map) && text.contains(&format!("`{setting}`")), "{map}: {text}");
        }
        let observed = datapath.observe().unwrap();
        for frontend in desired.frontends.keys() {
            let served = !refused.contains(frontend);
            assert_eq!(is_whole(&observed, frontend), served, "{map}, {excess} too many: {frontend}");
            assert_eq!(observed.frontends.contains_key(frontend), served, "{map}, {excess} too many: {frontend}");
        }
        let usage = usage(datapath, map);
        assert_eq!((usage.entries, usage.percent(), usage.evicts), (usage.capacity, 100, false), "{map}: {usage:?}");
        observed.frontends.into_keys().collect()
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_full_map_refuses_by_name_and_serves_nothing_in_part() {
    let _turn = turn();
    for case in &CASES {
        let mut capacities =
            Capacities { slots: 65_536, sockets: 4_096, affinity: 4_096, flows: 8_192, ..Default::default() };
        (case.limit)(&mut capacities);
        let mut host = Host::new(capacities);
        for count in [MOST, MOST + 1, 2 * MOST] {
            let desired = services(count, 1, case.protocol);
            // One that is refused would be silent until the time-out.
            let served = case.overload(&mut host.datapath, &desired, count - MOST);
            assert_eq!(served.len(), MOST);
            assert!(served.iter().all(|frontend| host.answers(frontend)), "{} at {count}", case.map);
        }
        // What was refused has left nothing behind: as many others fit.
        host.apply(&State::default()).unwrap();
        let others = services(MOST, 100, case.protocol);
        host.apply(&others).unwrap();
        assert_eq!(host.datapath.observe().unwrap(), others, "{}", case.map);
        assert!(others.frontends.keys().all(|frontend| host.answers(frontend)), "{}", case.map);
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_map_grows_with_all_that_it_has_and_shrinks_to_what_is_in_use() {
    const FEW: usize = 16;
    let _turn = turn();
    let capacities = Capacities { frontends: 32, slots: 64, flows: 1024, ..Default::default() };
    let mut host = Host::new(capacities);
    let services = services(FEW, 1, Protocol::Tcp);
    host.apply(&services).unwrap();
    let all = |host: &Host| services.frontends.keys().all(|frontend| host.answers(frontend));
    host = host.reopened(Capacities { frontends: 64, slots: 128, sources: 128, ..capacities });
    assert_eq!(host.datapath.kept_sizes(), []);
    let usage = host.usage("FRONTENDS");
    assert_eq!((usage.entries, usage.capacity), (FEW as u64, 64));
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
        [
            told("FRONTENDS", 64, 8, FEW),
            told("SLOTS", 128, 32, 4 * FEW),
            told("ADDRESSES", 64, 8, FEW),
            told("SOURCES", 128, 8, FEW)
        ]
    );
    assert!(all(&host));
    host = host.reopened(Capacities { frontends: FEW as u32, slots: 64, ..capacities });
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

/// A trie hands out its elements in another way than a hash map.
#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn source_ranges_are_counted_one_by_one() {
    const RANGES: u32 = 10_000;
    let _turn = turn();
    let capacities = Capacities { slots: 64, flows: 1024, ..Default::default() };
    let mut host = Host::new(capacities);
    let prefixes = (0..RANGES).map(|n| IpNet::new(Ipv4Addr::from_bits(n << 8).into(), 32).unwrap());
    let ranges = Arc::new(SourceRanges::new(RangePolicy::Deny, prefixes));
    let mut services = services(1, 1, Protocol::Tcp);
    for frontend in services.frontends.values_mut() {
        frontend.guard = Some(Guard { ranges: ranges.clone(), traffic: GuardedTraffic::All });
    }
    host.apply(&services).unwrap();
    assert_eq!(host.usage("SOURCES").entries, u64::from(RANGES));
    // Nobody has looked at what is there yet.
    let host = host.reopened(capacities);
    assert_eq!(host.usage("SOURCES").entries, u64::from(RANGES));
}
