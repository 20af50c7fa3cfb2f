//! How long lb-core takes to decide, to build tables and to plan, at the sizes that matter.
#![expect(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use lb_core::{
    decision::{FlowView, decide},
    maglev::{self, CiliumSeed, HashFamily},
    model::Change,
    plan::{Labels, diff},
    service::Algorithm,
    state::State,
    table::TableSize,
    time::Instant,
};
use lb_testkit::worlds::{self, World};

const SIZES: [u32; 3] = [10, 1_000, 10_000];

/// Question: is a decision's cost independent of the number of services? Baseline: 10 services.
fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    for size in SIZES {
        for algorithm in [Algorithm::Random, Algorithm::Maglev] {
            let world = World { algorithm, ..World::of(size) };
            let (model, _) = world.build();
            let packet = world.packet(size - 1);
            group.bench_function(BenchmarkId::new(algorithm.as_str(), size), |b| {
                b.iter(|| decide(black_box(&model), black_box(&packet), &FlowView::default(), Instant::default()));
            });
        }
    }
    group.finish();
}

/// Question: what does a Maglev table cost, in each family? Katran's V2 builder: 1.7 ms for 65,521 slots and 1,000
/// backends; Cilium's: 92 ms.
fn tables(c: &mut Criterion) {
    for (name, family) in
        [("maglev", HashFamily::default()), ("maglev cilium", HashFamily::Cilium(CiliumSeed::default()))]
    {
        let mut group = c.benchmark_group(name);
        group.sample_size(20);
        for (slots, backends) in [(251, 2), (16_381, 100), (65_521, 1_000), (131_071, 1_000)] {
            let size = TableSize::new(slots).expect("a table size");
            let backends = worlds::backends(backends);
            group.bench_function(BenchmarkId::new(backends.len().to_string(), slots), |b| {
                b.iter(|| maglev::table(black_box(&backends), size, &family));
            });
        }
        group.finish();
    }
}

/// Question: what does the first plan cost, and is the plan for one change independent of the number of services?
fn plans(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan");
    group.sample_size(10);
    for size in SIZES {
        let world = World::of(size);
        let (mut model, mut desired) = world.build();
        group.bench_function(BenchmarkId::new("compile all", size), |b| b.iter(|| world.build()));
        group.bench_function(BenchmarkId::new("diff from empty", size), |b| {
            b.iter(|| diff(&State::default(), black_box(desired.state()), &Labels::new()));
        });
        let installed = desired.state().clone();
        let mut turn = 0;
        group.bench_function(BenchmarkId::new("one endpoint", size), |b| {
            b.iter_batched(
                || {
                    turn = (turn + 1) % 8;
                    Change::ReplaceEndpoints(world.slice(size - 1, turn..turn + world.endpoints))
                },
                |change| {
                    let touched = model.apply(change).expect("a world has no conflicts");
                    let touched = desired.update(&model, &touched).expect("there are ids");
                    desired.plan(&installed, &touched)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decisions, tables, plans);
criterion_main!(benches);
