//! How long lb-core takes to decide, to build tables and to plan, at the sizes that matter.
#![expect(missing_docs, reason = "criterion's macros")]

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use lb_core::{
    Algorithm, BackendAddr, Change, Entry, FlowView, Instant, Labels, Packet, Protocol, State, TableSize, decide, diff,
    maglev,
};
use lb_testkit::worlds::{FRONTEND_PORT, World};

const SIZES: [u32; 3] = [10, 1_000, 10_000];

/// Question: is a decision's cost independent of the number of services? Baseline: 10 services.
fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    for size in SIZES {
        for algorithm in [Algorithm::Random, Algorithm::Maglev] {
            let world = World { algorithm, ..World::of(size) };
            let (model, _) = world.build();
            let packet = Packet {
                entry: Entry::PodDevice,
                protocol: Protocol::Tcp,
                source: IpAddr::V4(Ipv4Addr::new(10, 244, 0, 7)),
                source_port: 40_000,
                destination: world.vip(size - 1),
                destination_port: FRONTEND_PORT,
            };
            group.bench_function(BenchmarkId::new(algorithm.as_str(), size), |b| {
                b.iter(|| decide(black_box(&model), black_box(&packet), &FlowView::default(), Instant::default()));
            });
        }
    }
    group.finish();
}

/// Question: what does a Maglev table cost? Katran's V2 builder: 1.7 ms for 65,521 slots and 1,000 backends.
fn tables(c: &mut Criterion) {
    let mut group = c.benchmark_group("maglev");
    group.sample_size(20);
    for (slots, backends) in [(251, 2), (16_381, 100), (65_521, 1_000), (131_071, 1_000)] {
        let size = TableSize::new(slots).expect("a table size");
        let backends: Vec<_> = (0..backends)
            .map(|n| (BackendAddr::new(Ipv4Addr::from_bits(0x0a00_0001 + n).into(), 80, Protocol::Tcp), 100))
            .collect();
        group.bench_function(BenchmarkId::new(backends.len().to_string(), slots), |b| {
            b.iter(|| maglev::table(black_box(&backends), size, b"0123456789abcdef"));
        });
    }
    group.finish();
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
