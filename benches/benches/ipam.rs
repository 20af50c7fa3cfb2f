//! What addresses cost. Each bench states its question and what it is compared with.
#![expect(missing_docs, reason = "criterion's macros")]

use std::{
    collections::BTreeMap,
    hint::black_box,
    net::IpAddr,
    time::{Duration, Instant},
};

use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use lb_ipam::{
    Allocator, ClusterIpAllocator, Edit, Family, FamilyPolicy, MemoryLedger, Pool, Request, RequestedAddress, Selector,
    ServiceName, Settings, Status, Timestamp,
};

const HELD: u32 = 100_000;
const IMPORTED: u32 = 50_000;
const POOLS: u32 = 10_000;
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const V4: &str = "10.16.0.0/12";
const V6: &str = "2001:db8::/64";

fn pool(block: &str) -> Pool {
    Pool { quarantine: Duration::ZERO, ..Pool::new("pool", &[block]) }
}

fn request(number: u32, family: Family) -> Request {
    let created = Timestamp::from_secs(number.into());
    let families = vec![family];
    Request {
        created,
        families,
        family_policy: FamilyPolicy::SingleStack,
        ..Request::new("bench", &format!("s{number:07}"))
    }
}

/// An allocator in which every second address is held, `HELD` altogether: as fragmented as can be.
fn fragmented(block: &str, family: Family) -> Allocator {
    let settings = Settings::default().with_sticky(Duration::ZERO);
    let mut allocator = Allocator::new(settings, MemoryLedger::default());
    allocator.handle_edit(Edit::UpsertPool(pool(block)));
    for number in 0..2 * HELD {
        allocator.handle_edit(Edit::UpsertService(request(number, family)));
    }
    let _ = allocator.reconcile(NOW);
    for number in (0..2 * HELD).step_by(2) {
        allocator.handle_edit(Edit::RemoveService(request(number, family).service));
    }
    let _ = allocator.reconcile(NOW);
    allocator
}

/// Time of `rounds` runs of `run`, each with an input made beforehand.
fn timed<T>(rounds: u64, mut make: impl FnMut(u64) -> T, mut run: impl FnMut(T)) -> Duration {
    let inputs: Vec<T> = (0..rounds).map(&mut make).collect();
    let start = Instant::now();
    inputs.into_iter().for_each(&mut run);
    start.elapsed()
}

/// Question: what does one service cost to come or go among 100,000, from the edit to the status? Goal: 2 µs each.
/// Baseline: a bitmap over the /12, which knows no holder, pool, or service.
fn one_service(c: &mut Criterion) {
    let mut group = c.benchmark_group("ipam one service");
    // As many in every sample: a few by themselves find nothing in the caches.
    group.sampling_mode(SamplingMode::Flat);
    for (name, block, family) in [("IPv4 /12", V4, Family::V4), ("IPv6 /64", V6, Family::V6)] {
        let mut full = fragmented(block, family);
        for what in ["allocate", "free"] {
            group.bench_function(BenchmarkId::new(what, name), |b| {
                b.iter_custom(|rounds| churn(&mut full, family, rounds, what));
            });
        }
    }
    let mut bitmap = Bitmap::fragmented();
    for what in ["allocate", "free"] {
        group.bench_function(BenchmarkId::new(what, "bitmap"), |b| b.iter_custom(|rounds| bitmap.churn(rounds, what)));
    }
    group.finish();
}

/// Services in turn come and go, a thousand at a time, each with a reconcile of its own; says how long one half of it
/// took.
fn churn(allocator: &mut Allocator, family: Family, rounds: u64, what: &str) -> Duration {
    let mut total = Duration::ZERO;
    for first in (0..rounds).step_by(1000) {
        let batch = (rounds - first).min(1000);
        let number = |n: u64| 2 * HELD + u32::try_from(n).expect("a thousand");
        let come = timed(
            batch,
            |n| request(number(n), family),
            |request| {
                allocator.handle_edit(Edit::UpsertService(request));
                let _ = black_box(allocator.reconcile(NOW));
            },
        );
        let go = timed(
            batch,
            |n| request(number(n), family).service,
            |service| {
                allocator.handle_edit(Edit::RemoveService(service));
                let _ = black_box(allocator.reconcile(NOW));
            },
        );
        total += if what == "allocate" { come } else { go };
    }
    total
}

/// One bit for each address of the /12.
struct Bitmap(Vec<u64>);

impl Bitmap {
    fn fragmented() -> Self {
        let mut bitmap = Self(vec![0; (1 << 20) / 64]);
        (1..2 * HELD).step_by(2).for_each(|number| bitmap.0[number as usize / 64] |= 1 << (number % 64));
        bitmap
    }

    fn allocate(&mut self) -> Option<u32> {
        let (at, word) = self.0.iter_mut().enumerate().find(|(_, word)| **word != u64::MAX)?;
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        Some(u32::try_from(at).ok()? * 64 + bit)
    }

    fn free(&mut self, number: u32) {
        self.0[number as usize / 64] &= !(1 << (number % 64));
    }

    fn churn(&mut self, rounds: u64, what: &str) -> Duration {
        let mut total = Duration::ZERO;
        for first in (0..rounds).step_by(1000) {
            let mut given = Vec::with_capacity(1000);
            let come = timed((rounds - first).min(1000), |_| (), |()| given.extend(black_box(self.allocate())));
            let start = Instant::now();
            given.into_iter().for_each(|number| self.free(black_box(number)));
            total += if what == "allocate" { come } else { start.elapsed() };
        }
        total
    }
}

/// Question: what does a service cost that comes and goes among 10,000 pools, each for a team of its own? Baseline: one
/// pool.
fn many_pools(c: &mut Criterion) {
    let mut group = c.benchmark_group("ipam many pools");
    for (name, pools) in [("1 pool", 1), ("10000 pools", POOLS)] {
        let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
        (0..pools).for_each(|number| allocator.handle_edit(Edit::UpsertPool(team_pool(number))));
        let _ = allocator.reconcile(NOW);
        let member = || Request { labels: team(pools - 1), ..request(0, Family::V4) };
        group.bench_function(BenchmarkId::new("come and go", name), |b| {
            b.iter_batched(member, |request| come_and_go(&mut allocator, request), BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn team(number: u32) -> BTreeMap<String, String> {
    [("app".into(), "web".into()), ("team".into(), format!("t{number}"))].into()
}

fn team_pool(number: u32) -> Pool {
    let selector = Selector { match_labels: team(number), ..Selector::default() };
    let block = format!("10.{}.{}.0/28", number / 256, number % 256);
    Pool { selectors: vec![selector], ..Pool::new(&format!("team-{number}"), &[&block]) }
}

fn come_and_go(allocator: &mut Allocator, request: Request) {
    let service = request.service.clone();
    allocator.handle_edit(Edit::UpsertService(request));
    let _ = black_box(allocator.reconcile(NOW));
    allocator.handle_edit(Edit::RemoveService(service));
    let _ = black_box(allocator.reconcile(NOW));
}

/// Question: what does an address cost that is released, and assigned to the first of 100,000 that wait? Baseline: one
/// that waits.
fn many_waiting(c: &mut Criterion) {
    let mut group = c.benchmark_group("ipam many waiting");
    for (name, waiting) in [("1 waits", 1), ("100000 wait", HELD)] {
        let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
        allocator.handle_edit(Edit::UpsertPool(pool("10.16.0.0/32")));
        (0..=waiting).for_each(|number| allocator.handle_edit(Edit::UpsertService(request(number, Family::V4))));
        let _ = allocator.reconcile(NOW);
        let mut first = 0;
        group.bench_function(BenchmarkId::new("give on", name), |b| {
            b.iter(|| {
                // The first one leaves, the next one gets its address, and a new one waits behind all others.
                allocator.handle_edit(Edit::RemoveService(request(first, Family::V4).service));
                allocator.handle_edit(Edit::UpsertService(request(first + waiting + 1, Family::V4)));
                first += 1;
                let outcome = allocator.reconcile(NOW);
                assert_eq!(outcome.writes.len(), 2, "one gets the address, one is told to wait");
            });
        });
    }
    group.finish();
}

/// Question: what does a restart cost with 50,000 services? Goal: 200 ms, and nothing is written. Baseline: inserting
/// the same services and their addresses into two ordered maps.
fn import(c: &mut Criterion) {
    let mut group = c.benchmark_group("ipam import");
    group.sample_size(10);
    let (ledger, requests) = published();
    group.bench_function(BenchmarkId::new("restart", IMPORTED), |b| {
        let input = || (ledger.clone(), requests.clone());
        b.iter_batched(input, |(ledger, requests)| restart(ledger, requests), BatchSize::LargeInput);
    });
    group.bench_function(BenchmarkId::new("two maps", IMPORTED), |b| {
        b.iter_batched(|| requests.clone(), two_maps, BatchSize::LargeInput);
    });
    group.finish();
}

/// A ledger of 50,000 services and what they say after it was written.
fn published() -> (MemoryLedger, Vec<Request>) {
    let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
    allocator.handle_edit(Edit::UpsertPool(pool(V4)));
    let mut requests: Vec<Request> = (0..IMPORTED).map(|number| request(number, Family::V4)).collect();
    requests.iter().for_each(|request| allocator.handle_edit(Edit::UpsertService(request.clone())));
    let statuses: BTreeMap<ServiceName, Status> = allocator.reconcile(NOW).writes.into_iter().collect();
    requests.iter_mut().for_each(|request| request.published = statuses[&request.service].clone());
    (allocator.into_ledger(), requests)
}

fn restart(ledger: MemoryLedger, requests: Vec<Request>) -> Allocator {
    let mut allocator = Allocator::new(Settings::default(), ledger);
    allocator.handle_edit(Edit::UpsertPool(pool(V4)));
    requests.into_iter().for_each(|request| allocator.handle_edit(Edit::UpsertService(request)));
    let outcome = allocator.reconcile(NOW);
    assert_eq!((outcome.ledger_writes, outcome.writes.len()), (0, 0));
    allocator
}

fn two_maps(requests: Vec<Request>) -> (BTreeMap<ServiceName, Request>, BTreeMap<IpAddr, ServiceName>) {
    let addresses = requests
        .iter()
        .flat_map(|request| request.published.addresses.iter().map(|address| (*address, request.service.clone())));
    let addresses = addresses.collect();
    (requests.into_iter().map(|request| (request.service.clone(), request)).collect(), addresses)
}

/// Question: what does a cluster address cost among 100,000? Baseline: the bitmap above.
fn cluster_ips(c: &mut Criterion) {
    let mut ips = ClusterIpAllocator::new();
    ips.add_cidr(V4.parse().expect("a network")).expect("an IPv4 network of any size");
    let service = ServiceName::new("bench", "s");
    let given: Vec<IpAddr> =
        (0..2 * HELD).map(|_| ips.allocate(&service, Family::V4).expect("a free address")).collect();
    given.iter().step_by(2).for_each(|address| assert!(ips.release(&service, *address)));
    c.bench_function("cluster IP allocate and free", |b| {
        b.iter(|| {
            let address = ips.allocate(&service, Family::V4).expect("a free address");
            ips.release(&service, black_box(address))
        });
    });
}

/// Question: what does an address cost in memory that is held? Addresses are asked for by name, every second one of the
/// block, many for each service, so that the services hardly count. Baseline: the /12's bitmap, an eighth of a byte for
/// every address, held or not; there is none for the /64.
fn memory(c: &mut Criterion) {
    // Kept to the end, so that the second does not live in what the first one freed.
    let mut kept = Vec::new();
    for (name, block, family) in [("IPv4 /12", V4, Family::V4), ("IPv6 /64", V6, Family::V6)] {
        let before = resident();
        let allocator = many_each(block, family);
        let bytes = resident().saturating_sub(before) / HELD as usize;
        println!("ipam memory/{name}: {bytes} bytes for each of {HELD} held addresses");
        kept.push(allocator);
    }
    let bitmap = Bitmap::fragmented().0.len() * 8;
    println!("ipam memory/bitmap: {bitmap} bytes, without holders");
    c.bench_function("ipam memory is printed above", |b| b.iter(resident));
}

fn many_each(block: &str, family: Family) -> Allocator {
    let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
    allocator.handle_edit(Edit::UpsertPool(pool(block)));
    let each = u32::try_from(Request::MAX_ADDRESSES).expect("a small number");
    for service in 0..HELD.div_ceil(each) {
        let numbers = (service * each..HELD.min((service + 1) * each)).map(|number| 2 * number + 1);
        let addresses = numbers.map(|number| RequestedAddress::Address(nth(number, family))).collect();
        allocator.handle_edit(Edit::UpsertService(Request { addresses, ..request(service, family) }));
    }
    let outcome = allocator.reconcile(NOW);
    assert_eq!(outcome.ledger_writes, HELD as usize);
    allocator
}

fn nth(number: u32, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from((0x0a10_0000 + number).to_be_bytes()),
        Family::V6 => IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(number)).to_be_bytes()),
    }
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

criterion_group!(benches, memory, one_service, many_pools, many_waiting, import, cluster_ips);
criterion_main!(benches);
