//! Addresses that a pool may contain but no service can have.

use lb_ipam::{AddressRange, Reservation};

/// Addresses that an [`Allocator`](lb_ipam::Allocator) must reserve, because a manifest with such an address of a
/// service is refused: unspecified, loopback, link-local, multicast and broadcast addresses, and IPv4 addresses written
/// as IPv6.
///
/// ```
/// use lb_ipam::Settings;
/// let settings = Settings::default().with_reserved(lb_k8s::unservable());
/// assert!(settings.reserved.iter().any(|reservation| reservation.why == "a loopback address"));
/// ```
#[must_use]
pub fn unservable() -> Vec<Reservation> {
    let range = |(net, why): (&str, &str)| {
        let range = AddressRange::of_net(net.parse().expect("the networks below are written correctly"));
        Reservation { range, why: why.to_owned() }
    };
    UNSERVABLE.into_iter().map(range).collect()
}

const UNSERVABLE: [(&str, &str); 10] = [
    ("0.0.0.0/32", "the unspecified address"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address"),
    ("224.0.0.0/4", "a multicast address"),
    ("255.255.255.255/32", "the broadcast address"),
    ("::/128", "the unspecified address"),
    ("::1/128", "a loopback address"),
    ("fe80::/10", "a link-local address"),
    ("ff00::/8", "a multicast address"),
    ("::ffff:0:0/96", "an IPv4 address written as IPv6"),
];

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::check;

    #[test]
    fn what_is_reserved_is_what_manifests_cannot_have() {
        let reserved = unservable();
        for Reservation { range, why } in &reserved {
            for ip in [range.first(), range.last()] {
                assert_eq!(check::ip(&ip.to_string()), Err(format!("{ip} is {why} and cannot be served")));
            }
            for ip in [before(range.first()), after(range.last())].into_iter().flatten() {
                let is_reserved = reserved.iter().any(|reservation| reservation.range.contains(ip));
                assert_eq!(check::ip(&ip.to_string()).is_err(), is_reserved, "{ip}");
            }
        }
    }

    fn before(ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(ip) => ip.to_bits().checked_sub(1).map(|bits| std::net::Ipv4Addr::from_bits(bits).into()),
            IpAddr::V6(ip) => ip.to_bits().checked_sub(1).map(|bits| std::net::Ipv6Addr::from_bits(bits).into()),
        }
    }

    fn after(ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(ip) => ip.to_bits().checked_add(1).map(|bits| std::net::Ipv4Addr::from_bits(bits).into()),
            IpAddr::V6(ip) => ip.to_bits().checked_add(1).map(|bits| std::net::Ipv6Addr::from_bits(bits).into()),
        }
    }
}
