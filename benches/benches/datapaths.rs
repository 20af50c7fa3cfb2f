//! How long each datapath takes to carry a plan out, in a kernel without any other service. The datapath is the only
//! parameter. Needs root.

use std::{
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion};
use lb_core::{
    addr::Family,
    datapath::{Datapath, DatapathError},
    model::Change,
    plan::{Labels, Plan, diff},
    state::State,
};
use lb_datapath_ebpf::{Capacities, EbpfConfig, EbpfDatapath, map_writes};
use lb_datapath_iptables::{
    iptables::{IptablesConfig, IptablesDatapath, Variant, restore_input},
    nftables::{NftablesConfig, NftablesDatapath, operations},
};
use lb_testkit::{
    lab::{Lab, Node},
    worlds::World,
};

const SIZES: [u32; 2] = [10, 1_000];
const LOWERED: u32 = 10_000;

type Open = fn(Node<'_>) -> Result<Box<dyn Datapath>, DatapathError>;

const DATAPATHS: [(&str, Open); 4] = [
    ("ebpf", open_ebpf),
    ("nftables", |_| Ok(Box::new(NftablesDatapath::open(&NftablesConfig::default())?))),
    ("iptables-nft", |_| open_iptables(Variant::Nft)),
    ("iptables-legacy", |_| open_iptables(Variant::Legacy)),
];

fn main() -> ExitCode {
    lb_testkit::run_if_worker();
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    lowering(&mut criterion);
    let nodes = DATAPATHS.iter().fold(Lab::builder(), |builder, (name, _)| builder.node(*name));
    let lab = match nodes.build() {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("needs root: {}", lb_testkit::report(&error));
            return ExitCode::FAILURE;
        }
    };
    for (node, (name, open)) in lab.nodes().zip(DATAPATHS) {
        first_plan(&mut criterion, name, node, open);
        one_change(&mut criterion, name, node, open);
    }
    criterion.final_summary();
    ExitCode::SUCCESS
}

fn open_ebpf(node: Node<'_>) -> Result<Box<dyn Datapath>, DatapathError> {
    let pin_dir = node.pin_dir().expect("there is a BPF file system");
    let config = EbpfConfig::new(node.cgroup()).with_pin_dir(pin_dir).with_uplink_devices([node.uplink()]);
    Ok(Box::new(EbpfDatapath::open(config)?))
}

fn open_iptables(variant: Variant) -> Result<Box<dyn Datapath>, DatapathError> {
    Ok(Box::new(IptablesDatapath::open(&IptablesConfig::default().with_variant(variant))?))
}

/// Question: what does the first plan cost, and how does that grow? Baseline: 10 services; the other datapaths.
fn first_plan(c: &mut Criterion, name: &str, node: Node<'_>, open: Open) {
    let mut group = c.benchmark_group("first plan");
    for size in SIZES {
        let plan = Worlds::new(World::of(size)).first;
        group.bench_function(BenchmarkId::new(name, size), |b| {
            b.iter_custom(|times| (0..times).map(|_| apply_once(node, open, &plan)).sum());
        });
    }
    group.finish();
}

/// How long `plan` takes, from nothing and to nothing.
fn apply_once(node: Node<'_>, open: Open, plan: &Plan) -> Duration {
    let took = node.run(|| {
        let mut datapath = open(node)?;
        datapath.observe()?;
        let start = Instant::now();
        datapath.apply(plan).expect("a first plan is carried out");
        let took = start.elapsed();
        datapath.cleanup().map(|()| took)
    });
    took.expect("the node has a namespace").expect("the datapath opens and cleans up")
}

/// Question: does one change cost what changed, or what there is? Baseline: 10 services.
fn one_change(c: &mut Criterion, name: &str, node: Node<'_>, open: Open) {
    let mut group = c.benchmark_group("one endpoint");
    for size in SIZES {
        let worlds = Worlds::new(World::of(size));
        group.bench_function(BenchmarkId::new(name, size), |b| {
            b.iter_custom(|times| node.run(|| changes(node, open, &worlds, times)).expect("the node has a namespace"));
        });
    }
    group.finish();
}

/// How long `times` changes take, there and back.
fn changes(node: Node<'_>, open: Open, worlds: &Worlds, times: u64) -> Duration {
    let mut datapath = open(node).expect("the datapath opens");
    datapath.observe().expect("the kernel can be read");
    datapath.apply(&worlds.first).expect("a first plan is carried out");
    let start = Instant::now();
    for turn in 0..times {
        let plan = if turn % 2 == 0 { &worlds.there } else { &worlds.back };
        datapath.apply(plan).expect("a change is carried out");
    }
    let took = start.elapsed();
    datapath.cleanup().expect("everything can be removed");
    took
}

/// Question: what does a first plan cost before the kernel sees it, at the size where iptables hurts? Baseline: the
/// other datapaths. Needs no root.
fn lowering(c: &mut Criterion) {
    let Worlds { state, first, .. } = Worlds::new(World::of(LOWERED));
    let (config, capacities) = (IptablesConfig::default(), Capacities::default());
    let mut group = c.benchmark_group("lowering");
    group.bench_function(BenchmarkId::new("ebpf", LOWERED), |b| {
        b.iter(|| map_writes(black_box(&first), &capacities).expect("it fits"));
    });
    group.bench_function(BenchmarkId::new("nftables", LOWERED), |b| b.iter(|| operations(black_box(&first))));
    group.bench_function(BenchmarkId::new("iptables", LOWERED), |b| {
        b.iter(|| restore_input(black_box(&config), Family::V4, black_box(&state), &Labels::new()));
    });
    group.finish();
}

/// Plans of one world: everything from nothing, and one endpoint of the last service replaced and restored.
struct Worlds {
    state: State,
    first: Plan,
    there: Plan,
    back: Plan,
}

impl Worlds {
    fn new(world: World) -> Self {
        let (mut model, mut desired) = world.build();
        let state = desired.state().clone();
        let last = world.services - 1;
        let changed = world.slice(last, (1..world.endpoints).chain([world.endpoints]));
        let touched = model.apply(Change::ReplaceEndpoints(changed)).expect("a world has no conflicts");
        desired.update(&model, &touched).expect("there are ids");
        let plan = |from: &State, to: &State| diff(from, to, &Labels::new());
        Self {
            first: plan(&State::default(), &state),
            there: plan(&state, desired.state()),
            back: plan(desired.state(), &state),
            state,
        }
    }
}
