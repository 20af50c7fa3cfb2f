//! Figures of lb-core.

use std::{collections::BTreeMap, hint::black_box};

use lb_core::{
    addr::BackendAddr,
    decision::{FlowView, decide},
    maglev::{self, CiliumSeed, HashFamily},
    model::Change,
    table::TableSize,
    time::Instant,
};
use lb_testkit::worlds::{World, backend, backends};

use super::{Figure, Goal, median};

const SIPHASH: HashFamily = HashFamily::SipHash(*b"0123456789abcdef");
const SEED: u64 = 0x6c62_2026;

pub(crate) fn measure() -> Vec<Figure> {
    eprintln!("seed {SEED:#x}");
    let mut figures = maglev_builds();
    figures.push(decide_flat());
    figures.extend(plans());
    figures.extend(disruption());
    figures
}

/// Katran's V2 builder takes 1.7 ms for its table of this size, Cilium's 92 ms.
fn maglev_builds() -> Vec<Figure> {
    let size = TableSize::new(65_521).expect("a table size");
    let (equal, mut weighted) = (backends(1000), backends(1000));
    for (n, (_, weight)) in (0u16..).zip(&mut weighted) {
        *weight = 50 + n % 100;
    }
    let cilium = HashFamily::Cilium(CiliumSeed::default());
    let goal = Some(Goal::AtMost(1.7));
    let textbook = median(5, || drop(black_box(textbook(&equal, size.get())))) * 1e3;
    let figure = |what: &str, goal, backends: &[(BackendAddr, u16)], family| {
        let ours = median(51, || drop(black_box(maglev::table(black_box(backends), size, family)))) * 1e3;
        let baseline = format!("permutations written out as in the paper: {textbook:.1} ms");
        let name = format!("Maglev table, 65,521 slots x 1,000 backends{what}");
        Figure::new(name, goal, ours, "ms", baseline, 51)
    };
    vec![
        figure("", goal, &equal, &SIPHASH),
        figure(", Cilium's", goal, &equal, &cilium),
        figure(", Cilium's, weights 50 to 149", None, &weighted, &cilium),
    ]
}

/// The paper's pseudo-code: every permutation in full, then turns.
fn textbook(backends: &[(BackendAddr, u16)], size: u32) -> Vec<u32> {
    let permutations: Vec<Vec<u32>> = (0..backends.len() as u64)
        .map(|n| {
            let hash = splitmix(n);
            let (offset, skip) = (hash as u32 % size, (hash >> 32) as u32 % (size - 1) + 1);
            (0..u64::from(size)).map(|j| ((u64::from(offset) + j * u64::from(skip)) % u64::from(size)) as u32).collect()
        })
        .collect();
    let mut next = vec![0; backends.len()];
    let mut table = vec![u32::MAX; size as usize];
    let mut filled = 0;
    loop {
        for (index, permutation) in (0u32..).zip(&permutations) {
            let cursor: &mut usize = &mut next[index as usize];
            while table[permutation[*cursor] as usize] != u32::MAX {
                *cursor += 1;
            }
            table[permutation[*cursor] as usize] = index;
            filled += 1;
            if filled == size {
                return table;
            }
        }
    }
}

fn splitmix(n: u64) -> u64 {
    let mut z = n.wrapping_add(SEED).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn decide_flat() -> Figure {
    let cost = |services| {
        let world = World::of(services);
        let (model, _) = world.build();
        let packet = world.packet(services - 1);
        let thousand = || {
            for _ in 0..1000 {
                black_box(decide(black_box(&model), black_box(&packet), &FlowView::default(), Instant::default()));
            }
        };
        median(101, thousand) * 1e6
    };
    let (small, large) = (cost(10), cost(10_000));
    let baseline = format!("10 services: {small:.0} ns, 10,000: {large:.0} ns");
    Figure::new(
        "decide(), 10,000 services against 10",
        Some(Goal::AtMost(2.0)),
        large / small,
        "ratio",
        baseline,
        101_000,
    )
}

/// The plan of one changed endpoint, from the change to the operations.
fn plans() -> Vec<Figure> {
    let cost = |services: u32| {
        let world = World::of(services);
        let (mut model, mut desired) = world.build();
        let mut installed = desired.state().clone();
        let mut turn = 0;
        median(501, || {
            turn = (turn + 1) % 8;
            let change = Change::ReplaceEndpoints(world.slice(services - 1, turn..turn + world.endpoints));
            let touched = model.apply(change).expect("a world has no conflicts");
            let touched = desired.update(&model, &touched).expect("there are ids");
            for op in desired.plan(&installed, &touched).ops {
                installed.apply_op(&op);
            }
        }) * 1e6
    };
    let (small, large) = (cost(10), cost(10_000));
    let baseline = format!("10 services: {small:.1} us, 10,000: {large:.1} us");
    let first = median(5, || drop(black_box(World::of(10_000).build()))) * 1e3;
    vec![
        Figure::new(
            "plan of one endpoint, 10,000 services against 10",
            Some(Goal::AtMost(3.0)),
            large / small,
            "ratio",
            baseline,
            501,
        ),
        Figure::new("model and first state, 10,000 services x 4", None, first, "ms", "none: only reported", 5),
    ]
}

/// Slots that move when a backend comes or goes, beyond those that have to, in per cent of the table.
fn disruption() -> Vec<Figure> {
    const SETS: u64 = 5_000;
    let size = TableSize::new(4093).expect("a table size");
    let table = |backends: &[(BackendAddr, u16)]| -> Vec<BackendAddr> {
        maglev::table(backends, size, &SIPHASH).into_iter().map(|index| backends[index as usize].0).collect()
    };
    let mut extra: Vec<f64> = Vec::new();
    for set in 0..SETS {
        let count = 2 + splitmix(set) % 18;
        let mut backends: Vec<_> =
            (0..count).map(|n| (backend((set * 32 + n) as u32), 1 + (splitmix(set * 100 + n) % 5) as u16)).collect();
        let before = table(&backends);
        backends.remove(splitmix(set + SETS) as usize % backends.len());
        extra.push(avoidable(&before, &table(&backends)) * 100.0);
    }
    let mean = extra.iter().sum::<f64>() / extra.len() as f64;
    let worst = extra.iter().copied().fold(0.0, f64::max);
    let baseline = "slots of the removed backend itself: 0 by definition";
    vec![
        Figure::new(
            "Maglev: other slots moved by a removal, mean",
            Some(Goal::AtMost(1.5)),
            mean,
            "% of M",
            baseline,
            SETS,
        ),
        Figure::new(
            "Maglev: other slots moved by a removal, worst",
            Some(Goal::AtMost(10.0)),
            worst,
            "% of M",
            baseline,
            SETS,
        ),
    ]
}

/// The share of slots that changed hands without need.
fn avoidable(before: &[BackendAddr], after: &[BackendAddr]) -> f64 {
    let count = |table: &[BackendAddr]| {
        let mut count: BTreeMap<BackendAddr, usize> = BTreeMap::new();
        for backend in table {
            *count.entry(*backend).or_default() += 1;
        }
        count
    };
    let (old, new) = (count(before), count(after));
    let moved = before.iter().zip(after).filter(|(a, b)| a != b).count();
    let needed: usize = old.iter().map(|(b, n)| n.saturating_sub(new.get(b).copied().unwrap_or(0))).sum();
    (moved - needed) as f64 / before.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worlds_of_the_figures_are_what_they_say() {
        let world = World::of(10);
        let (model, desired) = world.build();
        assert_eq!((model.services().count(), desired.state().backends.len()), (10, 40));
        assert_eq!(model.service(&world.name(9)).and_then(|s| s.algorithm), Some(lb_core::service::Algorithm::Random));
    }
}
