//! Facts about the node, and the role of the datapath.

use crate::{Addr, Pod};

/// The only key of `NODE`.
pub const NODE_KEY: u32 = 0;
/// The only key of `ROLE`.
pub const ROLE_KEY: u32 = 0;

/// Value of `ROLE`: new and established flows.
pub const ROLE_ACTIVE: u32 = 0;
/// Value of `ROLE`: nothing.
pub const ROLE_STANDBY: u32 = 1;
/// Value of `ROLE`: established flows only.
pub const ROLE_DRAINING: u32 = 2;

/// Value of `CIDRS`: the prefix is an IPv4 one.
pub const FAMILY_V4: u8 = 4;
/// Value of `CIDRS`: the prefix is an IPv6 one.
pub const FAMILY_V6: u8 = 6;

/// Key of `CIDRS`, a longest-prefix-match trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrKey {
    /// Bits of `addr` that count, 0..=128; an IPv4 prefix has 96 more than it is written with.
    pub bits: u32,
    /// Address.
    pub addr: Addr,
}

/// Value of `NODE`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeValue {
    /// Source of translated IPv4 flows.
    pub snat_v4: Addr,
    /// Source of translated IPv6 flows.
    pub snat_v6: Addr,
    /// 1 if there is a `snat_v4`.
    pub has_v4: u8,
    /// 1 if there is a `snat_v6`.
    pub has_v6: u8,
    /// First port that a translated source may have.
    pub nat_first: u16,
    /// How many there are from `nat_first` on.
    pub nat_ports: u16,
    /// 1 if the node has several IPv4 addresses: the route says which one a translated flow comes from.
    pub many_v4: u8,
    /// 1 if the node has several IPv6 addresses.
    pub many_v6: u8,
    /// The facts in full. User space reads them after a restart; of programs, only packets to frontends on the node's own
    /// addresses do.
    pub facts: Facts,
}

/// The node's facts as the model states them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: [u8; Self::NAME],
    /// Bytes of the name.
    pub name_len: u32,
    /// 1 if it has a name.
    pub has_name: u32,
    /// Number of addresses.
    pub ips_len: u32,
    /// Number of prefixes.
    pub cidrs_len: u32,
    /// Its addresses.
    pub ips: [Addr; Self::IPS],
    /// Prefixes of the pods.
    pub cidrs: [PrefixBytes; Self::CIDRS],
}

impl Facts {
    /// Most bytes of a name.
    pub const NAME: usize = 256;
    /// Most addresses.
    pub const IPS: usize = 32;
    /// Most prefixes.
    pub const CIDRS: usize = 64;

    /// Whether `addr` is one of the node's.
    #[inline(always)]
    #[must_use]
    pub fn has_ip(&self, addr: Addr) -> bool {
        let known = self.ips_len as usize;
        self.ips.iter().enumerate().take_while(|(at, _)| *at < known).any(|(_, ip)| *ip == addr)
    }
}

/// An address with a prefix length, as it was written.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixBytes {
    /// Address.
    pub addr: Addr,
    /// Bits, 0..=32 for IPv4, 0..=128 for IPv6.
    pub bits: u32,
}

const _: () = assert!(size_of::<CidrKey>() == 20);
const _: () = assert!(size_of::<PrefixBytes>() == 20);
const _: () = assert!(size_of::<Facts>() == 256 + 16 + 32 * 16 + 64 * 20);
const _: () = assert!(size_of::<NodeValue>() == 40 + size_of::<Facts>());

// SAFETY: integers and arrays of them, the sum of whose sizes is the asserted size.
unsafe impl Pod for CidrKey {}
// SAFETY: as above.
unsafe impl Pod for PrefixBytes {}
// SAFETY: as above.
unsafe impl Pod for Facts {}
// SAFETY: as above.
unsafe impl Pod for NodeValue {}
