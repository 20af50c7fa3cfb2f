//! Expressions that load registers: addresses, ports, keys of maps, hashes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_core::{addr::Family, affinity::Affinity, flow_hash::FLOW_SEED};

use crate::{
    netfilter::{NFT_REG32_00, nfproto},
    nftables::table::{
        choice::{How, Pick},
        expr::{Expr, Layer, Register},
        layout::first_slot,
    },
};

/// The first of sixteen registers.
pub(crate) const R0: Register = NFT_REG32_00;

/// Registers that an address of `family` takes.
pub(crate) const fn width(family: Family) -> Register {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// Loads the key of [`Set::Slots`](super::layout::Set::Slots).
pub(crate) fn slot(pick: &Pick, to: Register) -> Vec<Expr> {
    let slot = to + width(pick.family) + 2;
    let mut load = Vec::new();
    match (pick.how, pick.affinity) {
        (How::Random, _) => load.push(number(pick, true, slot)),
        (How::Turn(_), _) => load.push(number(pick, false, slot)),
        (How::Hash, None) => load.extend(hash_flow(pick, slot)),
        (How::Hash, Some(affinity)) => load.extend(hash_client(pick, affinity, slot)),
    }
    load.extend(frontend(pick.family, to));
    load
}

fn number(pick: &Pick, random: bool, to: Register) -> Expr {
    Expr::Number { random, modulus: pick.slots, first: first_slot(pick.scope), to }
}

/// The flow hash, from the last registers: an IPv6 flow takes ten of the sixteen.
pub(crate) fn hash_flow(pick: &Pick, to: Register) -> Vec<Expr> {
    let width = width(pick.family);
    let words = 2 * width + 2;
    let from = R0 + 16 - words;
    vec![
        source(pick.family, from),
        port(0, from + width),
        destination(pick.family, from + width + 1),
        port(2, from + 2 * width + 1),
        hash(pick, from, words, to),
    ]
}

fn hash_client(pick: &Pick, affinity: Affinity, to: Register) -> Vec<Expr> {
    let mut load = client(pick.family, affinity, R0);
    load.push(hash(pick, R0, width(pick.family), to));
    load
}

fn hash(pick: &Pick, from: Register, words: Register, to: Register) -> Expr {
    let (modulus, first) = (pick.slots, first_slot(pick.scope));
    Expr::Hash { from, bytes: u32::from(words) * 4, modulus, seed: FLOW_SEED, first, to }
}

/// Loads the key of [`Set::Affinity`](super::layout::Set::Affinity).
pub(crate) fn record(family: Family, affinity: Affinity, to: Register) -> Vec<Expr> {
    let mut load = client(family, affinity, to);
    load.extend(frontend(family, to + width(family)));
    load
}

/// Loads the key of [`Set::Frontends`](super::layout::Set::Frontends).
pub(crate) fn frontend(family: Family, to: Register) -> [Expr; 3] {
    let width = width(family);
    [destination(family, to), Expr::TransportProtocol { to: to + width }, port(2, to + width + 1)]
}

/// Loads the client: the source address, masked.
fn client(family: Family, affinity: Affinity, to: Register) -> Vec<Expr> {
    let mut load = vec![source(family, to)];
    let (prefix, all) = match family {
        Family::V4 => (affinity.prefix_v4, 32),
        Family::V6 => (affinity.prefix_v6, 128),
    };
    if prefix < all {
        load.push(Expr::Mask { register: to, mask: mask(family, prefix) });
    }
    load
}

fn mask(family: Family, prefix: u8) -> Vec<u8> {
    octets(masked(
        match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::BROADCAST),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
        },
        prefix,
    ))
}

/// `ip` with all but the first `prefix` bits cleared.
fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & !u32::MAX.checked_shr(prefix).unwrap_or(0)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::MAX.checked_shr(prefix).unwrap_or(0)).into(),
    }
}

/// The bytes of an address.
fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Ends the rule for packets of the other family.
pub(crate) fn only(family: Family) -> Vec<Expr> {
    vec![Expr::NetworkProtocol { to: R0 }, Expr::Compare { not: false, register: R0, with: vec![nfproto(family)] }]
}

/// Loads the source address.
pub(crate) fn source(family: Family, to: Register) -> Expr {
    match family {
        Family::V4 => Expr::Payload { layer: Layer::Network, offset: 12, bytes: 4, to },
        Family::V6 => Expr::Payload { layer: Layer::Network, offset: 8, bytes: 16, to },
    }
}

/// Loads the destination address.
pub(crate) fn destination(family: Family, to: Register) -> Expr {
    match family {
        Family::V4 => Expr::Payload { layer: Layer::Network, offset: 16, bytes: 4, to },
        Family::V6 => Expr::Payload { layer: Layer::Network, offset: 24, bytes: 16, to },
    }
}

/// Loads the source port (`offset` 0) or the destination port (2).
pub(crate) fn port(offset: u32, to: Register) -> Expr {
    Expr::Payload { layer: Layer::Transport, offset, bytes: 2, to }
}

/// Translates to the address in the registers from `address` on, and the port behind it.
pub(crate) fn dnat(family: Family, address: Register) -> Expr {
    Expr::Dnat { family, address, port: address + width(family) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_keep_the_prefix() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(masked(ip("10.1.2.3"), 0), ip("0.0.0.0"));
        assert_eq!(masked(ip("10.1.2.3"), 25), ip("10.1.2.0"));
        assert_eq!(masked(ip("10.1.2.3"), 32), ip("10.1.2.3"));
        assert_eq!(masked(ip("fd01:2:3:4:5::1"), 56), ip("fd01:2:3::"));
        assert_eq!(masked(ip("fd01::1"), 128), ip("fd01::1"));
    }
}
