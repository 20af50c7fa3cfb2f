//! Addresses and ports, as they lie in a packet.

/// An address, IPv4 as IPv4-mapped IPv6: four words, each as its bytes lie in a packet.
pub type Addr = [u32; 4];

/// A port, as its bytes lie in a packet.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

impl Port {
    /// The port with this number.
    #[inline(always)]
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// Its number.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// The third word of an IPv4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// The IPv4-mapped form of an IPv4 address.
#[inline(always)]
#[must_use]
pub const fn map_v4(ip: [u8; 4]) -> Addr {
    [0, 0, MAPPED, u32::from_ne_bytes(ip)]
}

/// The IPv4 address inside, if `addr` is IPv4-mapped.
#[inline(always)]
#[must_use]
pub const fn unmap_v4(addr: Addr) -> Option<[u8; 4]> {
    match addr {
        [0, 0, MAPPED, ip] => Some(ip.to_ne_bytes()),
        _ => None,
    }
}

/// Whether `addr` is a loopback address: in 127.0.0.0/8, or `::1`.
#[inline(always)]
#[must_use]
pub const fn is_loopback(addr: Addr) -> bool {
    match addr {
        [0, 0, MAPPED, ip] => ip.to_ne_bytes()[0] == 127,
        [0, 0, 0, last] => last == 1_u32.to_be(),
        _ => false,
    }
}

/// Whether no host may send a packet with the source `addr` into a network: a loopback, a multicast, the broadcast or the
/// unspecified address, or one in 0.0.0.0/8. The kernel drops such packets (`ip_route_input_slow`, `ip6_rcv_core`).
///
/// <https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/route.c>,
/// <https://elixir.bootlin.com/linux/v6.18/source/net/ipv6/ip6_input.c>
#[inline(always)]
#[must_use]
pub const fn is_martian(addr: Addr) -> bool {
    match addr {
        [0, 0, MAPPED, ip] => ip == u32::MAX || matches!(ip.to_ne_bytes()[0], 0 | 127 | 224..=239),
        [0, 0, 0, last] => last == 0 || last == 1_u32.to_be(),
        [first, ..] => first.to_ne_bytes()[0] == 0xff,
    }
}

/// The address with these bytes.
#[must_use]
pub fn from_octets(octets: [u8; 16]) -> Addr {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}

/// The bytes of an address.
#[must_use]
pub fn octets(addr: Addr) -> [u8; 16] {
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = addr.map(u32::to_ne_bytes);
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn martians_of_both_families() {
        for ip in [[0; 4], [0, 1, 2, 3], [127, 0, 0, 1], [127, 9, 9, 9], [224, 0, 0, 1], [239, 255, 0, 1], [255; 4]] {
            assert!(is_martian(map_v4(ip)), "{ip:?}");
        }
        for ip in [[1, 0, 0, 0], [10, 0, 0, 1], [126, 0, 0, 1], [128, 0, 0, 1], [223, 0, 0, 1], [240, 0, 0, 1]] {
            assert!(!is_martian(map_v4(ip)), "{ip:?}");
        }
        let v6 = |first, last| from_octets([first, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let low = |last| from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        for martian in [v6(0xff, 1), low(0), low(1)] {
            assert!(is_martian(martian), "{martian:?}");
        }
        for other in [v6(0x20, 1), v6(0xfe, 1), low(2)] {
            assert!(!is_martian(other), "{other:?}");
        }
    }

    #[test]
    fn loopback_addresses_of_both_families() {
        let one = from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert!(is_loopback(map_v4([127, 0, 0, 1])) && is_loopback(map_v4([127, 9, 9, 9])) && is_loopback(one));
        for other in [map_v4([126, 0, 0, 1]), map_v4([0; 4]), [0; 4], from_octets([1; 16])] {
            assert!(!is_loopback(other), "{other:?}");
        }
    }
}
