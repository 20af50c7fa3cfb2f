//! Prefixes as the ranges of an interval set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lb_core::addr::Family;

/// The prefixes of one family as ranges in order, overlapping and adjacent ones made one: the first address, and the
/// first one behind the range unless that would be past the last there is.
pub(crate) fn merged(prefixes: &[IpNet], family: Family) -> Vec<(IpAddr, Option<IpAddr>)> {
    let mut ranges: Vec<(u128, Option<u128>)> = prefixes
        .iter()
        .filter(|prefix| Family::of(prefix.addr()) == family)
        .map(|prefix| (number(prefix.network()), behind(prefix.broadcast())))
        .collect();
    ranges.sort_unstable_by_key(|&(first, _)| first);
    let mut merged: Vec<(u128, Option<u128>)> = Vec::new();
    for (first, end) in ranges {
        match merged.last_mut() {
            Some((_, last)) if last.is_none_or(|last| first <= last) => *last = later(*last, end),
            _ => merged.push((first, end)),
        }
    }
    merged.into_iter().map(|(first, end)| (address(first, family), end.map(|end| address(end, family)))).collect()
}

fn later(a: Option<u128>, b: Option<u128>) -> Option<u128> {
    Some(a?.max(b?))
}

fn behind(last: IpAddr) -> Option<u128> {
    match last {
        IpAddr::V4(ip) => ip.to_bits().checked_add(1).map(u128::from),
        IpAddr::V6(ip) => ip.to_bits().checked_add(1),
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn address(number: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(prefixes: &[&str], family: Family) -> Vec<String> {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let text = |(first, behind): (IpAddr, Option<IpAddr>)| {
            format!("{first}..{}", behind.map_or_else(String::new, |ip| ip.to_string()))
        };
        merged(&prefixes, family).into_iter().map(text).collect()
    }

    #[test]
    fn overlapping_and_adjacent_prefixes_are_one_range() {
        let v4 = ["10.1.0.0/16", "10.0.0.0/16", "10.0.5.0/24", "192.0.2.0/24", "fd00::/64"];
        assert_eq!(ranges(&v4, Family::V4), ["10.0.0.0..10.2.0.0", "192.0.2.0..192.0.3.0"]);
        assert_eq!(ranges(&v4, Family::V6), ["fd00::..fd00:0:0:1::"]);
        assert_eq!(ranges(&[], Family::V4), [""; 0]);
    }

    #[test]
    fn a_range_to_the_end_has_no_address_behind_it() {
        assert_eq!(ranges(&["0.0.0.0/0", "10.0.0.0/8"], Family::V4), ["0.0.0.0.."]);
        assert_eq!(ranges(&["ff00::/8"], Family::V6), ["ff00::.."]);
    }
}
