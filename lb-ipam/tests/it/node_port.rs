//! Node ports: section 3.5 of what Kubernetes does.

use lb_ipam::{NodePortAllocator, NodePortError, PortUse, Protocol, ServiceName};

const TCP: PortUse = PortUse::Port(Protocol::Tcp);
const UDP: PortUse = PortUse::Port(Protocol::Udp);

fn svc(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

/// Range, and the first port that is given unasked.
#[test]
fn bands_of_kep_3668() {
    for (range, dynamic) in [
        (NodePortAllocator::DEFAULT_RANGE, 30_086),
        (30_000..=30_014, 30_000),
        (30_000..=30_015, 30_000), // all of it is kept, and used when the rest, nothing, is taken
        (30_000..=30_016, 30_016),
        (1..=u16::MAX, 129),
        (65_535..=65_535, 65_535),
    ] {
        let mut ports = NodePortAllocator::new(range.clone()).unwrap();
        assert_eq!(ports.allocate(&svc("a"), TCP), Ok(dynamic), "{range:?}");
    }
}

#[test]
fn the_kept_band_is_used_when_the_rest_is_taken() {
    let mut ports = NodePortAllocator::new(30_000..=30_019).unwrap();
    let given: Vec<u16> = (0..20).map(|n| ports.allocate(&svc(&format!("s{n}")), TCP).unwrap()).collect();
    assert_eq!(given, (30_016..=30_019).chain(30_000..=30_015).collect::<Vec<_>>());
    assert_eq!(ports.allocate(&svc("more"), TCP), Err(NodePortError::Full));
}

#[test]
fn a_number_belongs_to_one_service_which_may_use_it_once_for_each_protocol() {
    let mut ports = NodePortAllocator::new(NodePortAllocator::DEFAULT_RANGE).unwrap();
    ports.allocate_at(&svc("dns"), UDP, 30_053).unwrap();
    ports.allocate_at(&svc("dns"), TCP, 30_053).unwrap();
    for (service, usage) in [("dns", TCP), ("dns", PortUse::HealthCheck), ("web", PortUse::Port(Protocol::Sctp))] {
        let taken = ports.allocate_at(&svc(service), usage, 30_053).unwrap_err().to_string();
        assert!(taken.starts_with("provided port is already allocated: service default/dns has 30053/"), "{taken}");
    }
    assert!(ports.release(&svc("dns"), UDP, 30_053) && !ports.release(&svc("dns"), UDP, 30_053));
    assert_eq!(ports.holder(30_053), Some(&svc("dns")));
    assert!(!ports.release(&svc("web"), TCP, 30_053) && ports.release(&svc("dns"), TCP, 30_053));
    assert_eq!((ports.holder(30_053), ports.held().count()), (None, 0));
}

#[test]
fn health_checks_have_ports_of_the_same_range() {
    let mut ports = NodePortAllocator::new(30_000..=30_001).unwrap();
    assert_eq!(ports.allocate(&svc("a"), PortUse::HealthCheck), Ok(30_000));
    assert_eq!(ports.allocate(&svc("a"), TCP), Ok(30_001));
    assert!(ports.allocate_at(&svc("a"), TCP, 30_000).is_err() && ports.allocate_at(&svc("a"), UDP, 30_000).is_ok());
}

#[test]
fn ports_outside_the_range_and_ranges_that_are_none() {
    let mut ports = NodePortAllocator::new(NodePortAllocator::DEFAULT_RANGE).unwrap();
    let outside = ports.allocate_at(&svc("a"), TCP, 32_768).unwrap_err().to_string();
    assert_eq!(outside, "provided port is not in the valid range. The range of valid ports is 30000-32767");
    #[expect(clippy::reversed_empty_ranges, reason = "that is the subject")]
    for range in [0..=10, 10..=9] {
        assert!(matches!(NodePortAllocator::new(range), Err(NodePortError::BadRange { .. })));
    }
}
