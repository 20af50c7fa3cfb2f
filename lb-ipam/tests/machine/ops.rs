//! What may happen.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use lb_ipam::{
    AddressRange, Block, Family, FamilyPolicy, Namespaces, Pool, PoolChoice, PoolName, Protocol, Request,
    RequestedAddress, Reservation, Selector, ServiceName, Settings, Sharing, Timestamp, TrafficPolicy,
    WhenSharingBreaks,
};
use proptest::prelude::*;

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A pool is added or changed.
    Pool(Box<Pool>),
    /// A pool is removed.
    NoPool(PoolName),
    /// A service is added or changed; its status stays.
    Service(Box<Request>),
    /// A service is removed.
    NoService(ServiceName),
    /// A service cannot be read any more, by whoever starts from now on.
    Garble(ServiceName),
    /// Somebody else writes this address into the status of a service that is no load balancer, and a condition.
    Foreign(ServiceName, IpAddr, bool),
    /// Time passes.
    Wait(Duration),
    /// Everything is brought in order.
    Settle,
    /// The process ends and starts again.
    Restart,
    /// The process ends, the ledger is lost, and it starts again with statuses alone.
    Lose,
    /// From the `n`th write on the ledger fails, once or until the next start, before or after the write is made.
    Fail { nth: u8, once: bool, made: bool },
    /// The process ends while it brings things in order: after the `n`th write, and before any status is written.
    Crash { nth: u8 },
    /// Something else answers for an address, or stops to.
    Claim(IpAddr, bool),
    /// The rules change.
    Rules(Box<Settings>),
}

/// Addresses that blocks are made of.
pub(crate) fn v4(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn v6(last: u16) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => pool().prop_map(|pool| Op::Pool(Box::new(pool))),
        1 => pool_name().prop_map(Op::NoPool),
        12 => service().prop_map(|request| Op::Service(Box::new(request))),
        4 => service_name().prop_map(Op::NoService),
        1 => service_name().prop_map(Op::Garble),
        2 => (service_name(), 0_u8..24, any::<bool>()).prop_map(|(name, last, in_pool)| {
            // With the condition of another allocator only beside an address that cannot be one that was left here.
            Op::Foreign(name, if in_pool { v4(last) } else { IpAddr::from([10, 9, 9, last]) }, !in_pool)
        }),
        2 => prop_oneof![Just(1), Just(30), Just(301), Just(4000)].prop_map(|secs| Op::Wait(Duration::from_secs(secs))),
        14 => Just(Op::Settle),
        1 => Just(Op::Restart),
        1 => Just(Op::Lose),
        1 => (0_u8..6, any::<bool>(), any::<bool>()).prop_map(|(nth, once, made)| Op::Fail { nth, once, made }),
        1 => (0_u8..6).prop_map(|nth| Op::Crash { nth }),
        1 => (0_u8..24, any::<bool>()).prop_map(|(last, claimed)| Op::Claim(v4(last), claimed)),
        1 => rules().prop_map(|settings| Op::Rules(Box::new(settings))),
    ]
}

fn rules() -> impl Strategy<Value = Settings> {
    let reserved = proptest::collection::vec((0_u8..24, 0_u8..4), 0..2);
    (any::<bool>(), reserved).prop_map(|(keep, reserved)| {
        Settings::default()
            .with_when_sharing_breaks(if keep { WhenSharingBreaks::Keep } else { WhenSharingBreaks::Move })
            .with_reserved(reserved.into_iter().map(|(first, more)| reservation(first, first + more)))
    })
}

fn reservation(first: u8, last: u8) -> Reservation {
    let range = AddressRange::new(v4(first), v4(last)).expect("in order");
    Reservation { range, why: "a node".to_owned() }
}

fn pool_name() -> impl Strategy<Value = PoolName> {
    prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(PoolName::new)
}

fn block() -> impl Strategy<Value = Block> {
    let cidr = |address: IpAddr, prefix: u8| Block::parse(&format!("{address}/{prefix}"));
    prop_oneof![
        6 => (0_u8..6, 28_u8..=32).prop_map(move |(at, prefix)| cidr(v4(at * 4), prefix)),
        3 => (0_u8..24, 0_u8..8).prop_map(|(first, more)| Block::Range { start: v4(first), stop: v4(first + more) }),
        2 => (0_u16..4, 125_u8..=128).prop_map(move |(at, prefix)| cidr(v6(at * 4), prefix)),
        1 => (0_u8..24).prop_map(|last| Block::Address(v4(last))),
    ]
}

fn pool() -> impl Strategy<Value = Pool> {
    let blocks = prop_oneof![
        9 => proptest::collection::vec(block(), 1..3),
        1 => Just(vec![Block::Unreadable("10.0.0.0/99".to_owned())]),
    ];
    let switches = (any::<bool>(), weighted(1, 6), weighted(5, 6), weighted(1, 6), weighted(1, 6), weighted(1, 12));
    let quota = proptest::option::weighted(0.15, 0_u64..4);
    let choice = (
        prop_oneof![7 => Just(Vec::new()), 3 => proptest::collection::vec(colour(), 1..3)],
        proptest::option::of(0_u32..3),
        0_u64..3,
        quota,
    );
    (pool_name(), blocks, switches, choice).prop_map(|(name, blocks, switches, (colours, priority, created, quota))| {
        let (allow_first_last, disabled, auto_assign, avoid, drain, refused) = switches;
        Pool {
            name,
            created: Timestamp::from_secs(created),
            blocks,
            allow_first_last,
            selectors: colours.iter().map(|colour| Selector::label("colour", colour)).collect(),
            disabled,
            refused: refused.then(|| "no good".to_owned()),
            auto_assign,
            priority,
            namespace_quota: quota,
            drain: Duration::from_secs(if drain { 60 } else { 0 }),
            avoid: if avoid { vec![Block::parse("10.0.0.4-10.0.0.6")] } else { Vec::new() },
            ..Pool::new("", &[])
        }
    })
}

fn weighted(yes: u32, of: u32) -> impl Strategy<Value = bool> {
    proptest::bool::weighted(f64::from(yes) / f64::from(of))
}

fn colour() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("red"), Just("blue")]
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    (prop_oneof![Just("x"), Just("y")], 0_u8..7)
        .prop_map(|(namespace, n)| ServiceName::new(namespace, &format!("s{n}")))
}

fn service() -> impl Strategy<Value = Request> {
    let policy = prop_oneof![
        4 => Just(FamilyPolicy::SingleStack),
        1 => Just(FamilyPolicy::PreferDualStack),
        1 => Just(FamilyPolicy::RequireDualStack),
    ];
    let families = prop_oneof![
        4 => Just(vec![]),
        1 => Just(vec![Family::V6]),
        1 => Just(vec![Family::V6, Family::V4]),
    ];
    let wanted = prop_oneof![
        7 => Just(vec![]),
        2 => proptest::collection::vec((0_u8..24).prop_map(|last| RequestedAddress::Address(v4(last))), 1..3),
        1 => Just(vec![RequestedAddress::Unreadable("garbage".to_owned())]),
    ];
    let namespaces = prop_oneof![
        2 => Just(Namespaces::default()),
        2 => Just(Namespaces::All),
        1 => Just(Namespaces::parse("y")),
    ];
    let key = prop_oneof![Just("k1"), Just("k2")];
    let sharing = (key, namespaces).prop_map(|(key, namespaces)| Sharing { key: key.into(), namespaces });
    let sharing = proptest::option::weighted(0.35, sharing);
    let ports = prop_oneof![Just(vec![80]), Just(vec![81]), Just(vec![82]), Just(vec![80, 82])];
    let choice = prop_oneof![
        6 => Just(PoolChoice::Any),
        2 => pool_name().prop_map(PoolChoice::Prefer),
        1 => pool_name().prop_map(PoolChoice::Only),
    ];
    let rest = (proptest::option::weighted(0.7, colour()), weighted(1, 8), weighted(9, 10), 0_u64..40, choice);
    (service_name(), policy, families, wanted, sharing, ports, rest).prop_map(
        |(
            service,
            family_policy,
            families,
            addresses,
            sharing,
            ports,
            (colour, local, load_balancer, created, pool),
        )| {
            let ports: BTreeSet<_> = ports.into_iter().map(|port| (Protocol::Tcp, port)).collect();
            let mut request = Request::new(service.namespace(), service.name());
            request.labels = colour.into_iter().map(|colour| ("colour".to_owned(), colour.to_owned())).collect();
            request.external_traffic_policy = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
            request.pod_selector = [("app".to_owned(), "x".to_owned())].into();
            let created = Timestamp::from_secs(created);
            Request { created, load_balancer, family_policy, families, addresses, pool, sharing, ports, ..request }
        },
    )
}
