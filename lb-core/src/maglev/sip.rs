//! Permutations from a keyed hash, weights as shares of a turn.

use alloc::vec::Vec;
use core::{hash::Hasher, net::IpAddr};

use siphasher::sip128::{Hasher128, SipHasher24};

use super::{Filling, Walk};
use crate::{addr::BackendAddr, table::TableSize};

pub(super) fn table(backends: &[(BackendAddr, u16)], size: TableSize, key: &[u8; 16]) -> Vec<u32> {
    let mut turns: Vec<Turn> = (0u32..)
        .zip(backends)
        .filter(|(_, (_, weight))| *weight > 0)
        .map(|(index, (addr, weight))| Turn {
            walk: Walk::new(index, hash(*addr, key), size),
            weight: (*weight).into(),
            credit: 0,
        })
        .collect();
    turns.sort_unstable_by_key(|turn| backends[turn.walk.index as usize].0);
    let Some(heaviest) = turns.iter().map(|turn| turn.weight).max() else {
        return Vec::new();
    };
    let mut filling = Filling::new(size);
    loop {
        for turn in &mut turns {
            turn.credit += turn.weight;
            if turn.credit < heaviest {
                continue;
            }
            turn.credit -= heaviest;
            filling.take(&mut turn.walk);
            if filling.is_full() {
                return filling.slots;
            }
        }
    }
}

/// A backend and what it has saved up for its next slot.
struct Turn {
    walk: Walk,
    weight: u32,
    credit: u32,
}

fn hash(addr: BackendAddr, key: &[u8; 16]) -> (u64, u64) {
    let mut hasher = SipHasher24::new_with_key(key);
    match addr.ip {
        IpAddr::V4(ip) => hasher.write(&ip.octets()),
        IpAddr::V6(ip) => hasher.write(&ip.octets()),
    }
    hasher.write(&addr.port.to_be_bytes());
    hasher.write(&[addr.protocol.number()]);
    let hash = hasher.finish128();
    (hash.h1, hash.h2)
}
