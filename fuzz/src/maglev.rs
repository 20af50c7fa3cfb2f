//! Tables of Maglev.

use std::collections::BTreeMap;

use lb_core::{
    addr::{BackendAddr, Protocol},
    maglev::{CiliumSeed, HashFamily, table},
    table::TableSize,
};

/// Builds the table of the backends that the bytes name, three for each: two of the address, one of the weight.
///
/// Of lb's hashes, every slot has a backend that has weight, and every such backend a share of about its weight. Of
/// Cilium's, every slot has a backend. The order in which backends are named makes no difference to either.
///
/// # Panics
/// When one of this does not hold.
pub fn maglev(data: &[u8]) {
    let backend = |bytes: &[u8]| Some((*bytes.first()?, *bytes.get(1)?, *bytes.get(2)?));
    let named: BTreeMap<BackendAddr, u16> = data
        .chunks_exact(3)
        .take(48)
        .filter_map(backend)
        .map(|(high, low, weight)| (addr([10, 0, high, low]), u16::from(weight)))
        .collect();
    let backends: Vec<_> = named.into_iter().collect();
    let Ok(size) = TableSize::new(TableSize::PRIMES[2]) else { return };
    let slots = whichever_order(&backends, size, &HashFamily::default());
    let weights: u32 = backends.iter().map(|&(_, weight)| u32::from(weight)).sum();
    assert_eq!(slots.len(), if weights == 0 { 0 } else { size.get() as usize });
    if weights > 0 {
        check_shares(&backends, &slots, weights);
    }
    let slots = whichever_order(&backends, size, &HashFamily::Cilium(CiliumSeed::default()));
    assert_eq!(slots.len(), if backends.is_empty() { 0 } else { size.get() as usize });
}

/// The table of the backends, after one of the same in another order.
fn whichever_order(backends: &[(BackendAddr, u16)], size: TableSize, family: &HashFamily) -> Vec<u32> {
    let slots = table(backends, size, family);
    let turned: Vec<_> = backends.iter().rev().copied().collect();
    let last = backends.len().saturating_sub(1);
    let other: Vec<_> = table(&turned, size, family).iter().map(|&slot| last as u32 - slot).collect();
    assert_eq!(slots, other, "the order of {backends:?} makes a difference");
    slots
}

fn addr(ip: [u8; 4]) -> BackendAddr {
    BackendAddr { ip: ip.into(), port: 80, protocol: Protocol::Tcp }
}

fn check_shares(backends: &[(BackendAddr, u16)], slots: &[u32], weights: u32) {
    let mut counts = vec![0_u32; backends.len()];
    for &slot in slots {
        counts[slot as usize] += 1;
    }
    let heaviest = backends.iter().map(|&(_, weight)| u32::from(weight)).max().unwrap_or(0);
    for (&(_, weight), &count) in backends.iter().zip(&counts) {
        assert!(weight > 0 || count == 0, "{backends:?}: {counts:?}");
        // Turns are taken until the table is full: the last round may give one more, or leave one out.
        let share = slots.len() as u32 * u32::from(weight) / weights;
        let slack = 2 + slots.len() as u32 * heaviest / weights / 50;
        assert!(count.abs_diff(share) <= slack, "{backends:?}: {count} slots, expected about {share}: {counts:?}");
    }
}
