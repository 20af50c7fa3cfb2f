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
    fn loopback_addresses_of_both_families() {
        let one = from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert!(is_loopback(map_v4([127, 0, 0, 1])) && is_loopback(map_v4([127, 9, 9, 9])) && is_loopback(one));
        for other in [map_v4([126, 0, 0, 1]), map_v4([0; 4]), [0; 4], from_octets([1; 16])] {
            assert!(!is_loopback(other), "{other:?}");
        }
    }
}
