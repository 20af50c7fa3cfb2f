//! Cluster addresses: sections 3.1 to 3.4 of what Kubernetes does.

use std::net::IpAddr;

use lb_ipam::{ClusterIpAllocator, ClusterIpError, Family, IpNet, ServiceName};

fn svc(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn allocator(cidrs: &[&str]) -> ClusterIpAllocator {
    let mut allocator = ClusterIpAllocator::new();
    cidrs.iter().for_each(|cidr| allocator.add_cidr(cidr.parse().unwrap()).unwrap());
    allocator
}

/// CIDR, first address that is given unasked, first one that can be asked for, last one that can be given.
#[test]
fn bands_of_kep_3070() {
    for (cidr, dynamic, first, last) in [
        ("10.96.0.0/28", "10.96.0.1", "10.96.0.1", "10.96.0.14"),
        ("10.96.0.0/27", "10.96.0.17", "10.96.0.1", "10.96.0.30"),
        ("10.96.0.0/24", "10.96.0.17", "10.96.0.1", "10.96.0.254"),
        ("10.96.0.0/22", "10.96.0.65", "10.96.0.1", "10.96.3.254"),
        ("10.96.0.0/20", "10.96.1.1", "10.96.0.1", "10.96.15.254"),
        ("10.96.0.0/16", "10.96.1.1", "10.96.0.1", "10.96.255.254"),
        ("10.96.0.0/12", "10.96.1.1", "10.96.0.1", "10.111.255.254"),
        ("fd00::/120", "fd00::11", "fd00::1", "fd00::ff"),
        ("fd00::/112", "fd00::101", "fd00::1", "fd00::ffff"),
        ("fd00::/108", "fd00::101", "fd00::1", "fd00::f:ffff"),
        ("fd00::/64", "fd00::101", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
    ] {
        let mut ips = allocator(&[cidr]);
        let family = Family::of(ip(first));
        assert_eq!(ips.allocate(&svc("auto"), family), Ok(ip(dynamic)), "{cidr}");
        if first != dynamic {
            ips.allocate_at(&svc("first"), ip(first)).unwrap();
        }
        ips.allocate_at(&svc("last"), ip(last)).unwrap();
        let net: IpNet = cidr.parse().unwrap();
        let network = ips.allocate_at(&svc("network"), net.network());
        assert_eq!(network, Err(ClusterIpError::NotInRange { address: net.network() }), "{cidr}");
        if family == Family::V4 {
            let broadcast = ips.allocate_at(&svc("broadcast"), net.broadcast());
            assert_eq!(broadcast, Err(ClusterIpError::NotInRange { address: net.broadcast() }), "{cidr}");
        }
    }
}

#[test]
fn the_kept_band_is_used_when_the_rest_is_taken() {
    let mut ips = allocator(&["10.96.0.0/27"]);
    let given: Vec<IpAddr> = (0..30).map(|n| ips.allocate(&svc(&format!("s{n}")), Family::V4).unwrap()).collect();
    let expected = (17..=30).chain(1..=16).map(|last: u8| IpAddr::from([10, 96, 0, last]));
    assert_eq!(given, expected.collect::<Vec<_>>());
    let full = ips.allocate(&svc("more"), Family::V4).unwrap_err();
    assert_eq!(full.to_string(), "range is full: no IPv4 address is left; add a service CIDR");
    assert!(ips.release(&svc("s3"), given[3]));
    assert_eq!(ips.allocate(&svc("more"), Family::V4), Ok(given[3]));
}

#[test]
fn tiny_cidrs_have_no_address() {
    for cidr in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/128", "255.255.255.255/32"] {
        let family = if cidr.contains(':') { Family::V6 } else { Family::V4 };
        let full = allocator(&[cidr]).allocate(&svc("a"), family);
        assert_eq!(full, Err(ClusterIpError::Full { family }), "{cidr}");
    }
}

#[test]
fn an_address_is_released_by_its_holder_only() {
    let mut ips = allocator(&["10.96.0.0/24"]);
    let address = ips.allocate(&svc("a"), Family::V4).unwrap();
    assert!(!ips.release(&svc("b"), address) && !ips.release(&svc("a"), ip("192.0.2.1")));
    assert_eq!(ips.holder(address), Some(&svc("a")));
    let taken = ips.allocate_at(&svc("b"), address).unwrap_err().to_string();
    assert_eq!(taken, "provided IP is already allocated: service default/a has 10.96.0.17; ask for another one");
    assert_eq!(ips.allocate_at(&svc("a"), address), Ok(()));
    assert!(ips.release(&svc("a"), address));
    assert_eq!(ips.allocate(&svc("b"), Family::V4), Ok(ip("10.96.0.18")), "what was given back rests");
}

#[test]
fn several_cidrs_are_one_ledger() {
    let mut ips = allocator(&["10.96.0.0/28", "10.96.0.0/24", "fd00::/120"]);
    (0..14).for_each(|n| assert!(ips.allocate(&svc(&format!("s{n}")), Family::V4).is_ok()));
    // The first CIDR is full; the second contains it and goes on behind its own kept band.
    assert_eq!(ips.allocate(&svc("x"), Family::V4), Ok(ip("10.96.0.17")));
    assert_eq!(ips.allocate(&svc("x"), Family::V6), Ok(ip("fd00::11")));
    ips.remove_cidr("10.96.0.0/28".parse().unwrap()).unwrap();
    let in_use = ips.remove_cidr("10.96.0.0/24".parse().unwrap()).unwrap_err().to_string();
    assert_eq!(
        in_use,
        "service CIDR 10.96.0.0/24 is in use: service default/s0 has 10.96.0.1; remove the service, or close the CIDR"
    );
    ips.close_cidr("10.96.0.0/24".parse().unwrap());
    let not_ready = ips.allocate(&svc("y"), Family::V4).unwrap_err().to_string();
    assert_eq!(not_ready, "allocator not ready: there is no open service CIDR for IPv4; add one");
    assert_eq!(ips.held().count(), 16);
}

#[test]
fn an_ipv6_cidr_has_64_bits_at_least() {
    assert!(ClusterIpAllocator::new().add_cidr("fd00::/64".parse().unwrap()).is_ok());
    let error = ClusterIpAllocator::new().add_cidr("fd00::/63".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "shortest allowed prefix length for service CIDR is 64, got 63 in fd00::/63");
    assert!(ClusterIpAllocator::new().add_cidr("0.0.0.0/0".parse().unwrap()).is_ok());
}
