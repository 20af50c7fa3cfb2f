//! Types and lengths of the keys and values of sets.

use std::fmt;

use lb_core::addr::Family;

use crate::{
    netfilter::*,
    nftables::table::{
        choice::CHOICE,
        layout::{Set, block},
    },
};

/// Types and lengths of a set, as the kernel lists them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// `NFT_SET_*`.
    pub(crate) flags: u32,
    /// Data type of the key, by its number in `nft`.
    pub(crate) key: u32,
    /// Bytes of the key.
    pub(crate) key_length: u32,
    /// Data type of the values, 0 for a set that is no map.
    pub(crate) data: u32,
    /// Bytes of a value, 0 for verdicts: their length is the kernel's own.
    pub(crate) data_length: u32,
}

/// Data types of libnftables ([`datatype.h`]): the kernel keeps them for `nft list`.
///
/// [`datatype.h`]: https://git.netfilter.org/nftables/tree/include/datatype.h
const TYPE_INTEGER: u32 = 4;
const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_MARK: u32 = 19;
const TYPE_IFNAME: u32 = 41;

impl Shape {
    /// The shape of a set of the table.
    pub(crate) fn of(set: Set) -> Self {
        let (flags, key, data): (u32, Vec<u32>, Vec<u32>) = match set {
            Set::Frontends(_, family) => (NFT_SET_MAP, frontend(family), vec![TYPE_MARK; 1 + CHOICE / 4]),
            Set::Picks(_) => (NFT_SET_MAP, vec![TYPE_MARK; CHOICE / 4], vec![NFT_DATA_VERDICT]),
            Set::Addresses(family) => (NFT_SET_MAP, vec![ip(family)], vec![TYPE_MARK; 1 + CHOICE / 4]),
            Set::Slots(family) => (NFT_SET_MAP, slot(family, TYPE_INTEGER), backend(family)),
            // `nft list` cannot show an integer without a `typeof`, and the userdata has no room for the `typeof` of a
            // block.
            Set::Tables(family) => (NFT_SET_MAP, slot(family, TYPE_MARK), vec![TYPE_INTEGER]),
            Set::Affinity(_, family) => (
                NFT_SET_MAP | NFT_SET_TIMEOUT | NFT_SET_EVAL,
                vec![ip(family), ip(family), TYPE_INET_PROTOCOL, TYPE_INET_SERVICE],
                backend(family),
            ),
            Set::Cluster(family) => (NFT_SET_INTERVAL, vec![ip(family)], vec![]),
            Set::Uplinks => (0, vec![TYPE_IFNAME], vec![]),
            Set::KeptSources(family) | Set::TranslatedPods(family) => (0, frontend(family), vec![]),
            Set::Hairpin(family) => (0, vec![ip(family), ip(family)], vec![]),
            Set::Backends(family) => (0, backend(family), vec![]),
            Set::Notes => (0, vec![TYPE_MARK, TYPE_MARK], vec![]),
        };
        let data_length = match set {
            Set::Picks(_) => 0,
            Set::Tables(family) => block(family) * length(&backend(family)),
            _ => length(&data),
        };
        Self { flags, key: concatenation(&key), key_length: length(&key), data: concatenation(&data), data_length }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flags, key, key_length, data, data_length } = self;
        write!(f, "flags {flags:#x}, key type {key:#x} of {key_length} bytes, ")?;
        write!(f, "data type {data:#x} of {data_length} bytes")
    }
}

const fn ip(family: Family) -> u32 {
    match family {
        Family::V4 => TYPE_IPADDR,
        Family::V6 => TYPE_IP6ADDR,
    }
}

fn backend(family: Family) -> Vec<u32> {
    vec![ip(family), TYPE_INET_SERVICE]
}

fn frontend(family: Family) -> Vec<u32> {
    vec![ip(family), TYPE_INET_PROTOCOL, TYPE_INET_SERVICE]
}

fn slot(family: Family, number: u32) -> Vec<u32> {
    let mut types = frontend(family);
    types.push(number);
    types
}

/// libnftables writes a concatenation as one number, six bits for each type.
fn concatenation(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| if types.len() == 1 { *one } else { all << 6 | one })
}

/// Each type is padded to whole registers.
fn length(types: &[u32]) -> u32 {
    types.iter().map(|&one| if matches!(one, TYPE_IP6ADDR | TYPE_IFNAME) { 16 } else { 4 }).sum()
}
