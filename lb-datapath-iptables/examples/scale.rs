//! What a first sync costs, and reading it back, and one change: through the trait alone, in network namespaces of its
//! own; needs root.
//!
//! ```text
//! cargo run --release -p lb-datapath-iptables --example scale -- SERVICES MAGLEV SLOTS ROUNDS [watched|sync]
//! ```
//!
//! `MAGLEV` of the services have tables of `SLOTS` slots, the others four random ones; each has four backends of its
//! own. With `watched`, somebody listens to changes, as in an agent; with `sync`, nothing but the sync is measured.
//! Prints one line of JSON for each round: wall time in ms, and the processor time of this process for the sync.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    datapath::Datapath,
    drift::{Expected, Inspection},
    id::{BackendId, FrontendId, SetId},
    plan::{Labels, diff},
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
};
use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    },
};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u32| arguments.get(at).map_or(Ok(default), |word| word.parse());
    let (services, maglev, slots, rounds) = (number(0, 10_000)?, number(1, 0)?, number(2, 251)?, number(3, 5)?);
    let is = |what: &str| arguments.get(4).is_some_and(|word| word == what);
    let (watched, only) = (is("watched"), is("sync"));
    let state = state(services, maglev, slots);
    for _ in 0..rounds {
        round(&state, services, watched, only)?;
    }
    Ok(())
}

fn round(state: &State, services: u32, watched: bool, only: bool) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    assert!(up.success());
    let labels = Labels::new();
    let expected = Expected { state, labels: &labels };
    let mut datapath = NftablesDatapath::open(&NftablesConfig::default())?;
    let mut watcher = if watched { datapath.watcher()? } else { None };
    assert_eq!(datapath.observe()?, State::default());
    let plan = diff(&State::default(), state, &labels);
    let (before, start) = (processor()?, Instant::now());
    datapath.apply(&plan)?;
    let (sync, after) = (start.elapsed(), processor()?);
    if only {
        let (user, system) = (after.0 - before.0, after.1 - before.1);
        println!(r#"{{"services":{services},"sync_ms":{:.1},"user_ms":{user},"sys_ms":{system}}}"#, millis(sync));
        return Ok(());
    }
    let heard = watcher.as_mut().map(|watcher| watcher.wait(Duration::ZERO)).transpose()?;
    let start = Instant::now();
    assert_eq!(datapath.inspect(expected, Inspection::Suspects)?, []);
    let suspects = start.elapsed();
    let start = Instant::now();
    assert_eq!(datapath.inspect(expected, Inspection::Everything)?, []);
    let inspect = start.elapsed();
    let (replaced, added) = changes(&mut datapath, state.clone(), services)?;
    let mut second = NftablesDatapath::open(&NftablesConfig::default())?;
    let start = Instant::now();
    let found = second.observe()?;
    let observe = start.elapsed();
    assert_eq!(found.frontends.len(), state.frontends.len());
    println!(
        r#"{{"services":{services},"sync_ms":{:.1},"user_ms":{},"sys_ms":{},"heard":{heard:?},"suspects_ms":{:.1},"inspect_ms":{:.1},"observe_ms":{:.1},"replaced_p50_ms":{:.2},"replaced_max_ms":{:.2},"added_p50_ms":{:.2},"added_max_ms":{:.2}}}"#,
        millis(sync),
        after.0 - before.0,
        after.1 - before.1,
        millis(suspects),
        millis(inspect),
        millis(observe),
        millis(replaced[CHANGES / 2]),
        millis(replaced[CHANGES - 1]),
        millis(added[CHANGES / 2]),
        millis(added[CHANGES - 1]),
    );
    Ok(())
}

const CHANGES: usize = 40;

/// How long it takes to put another backend into a slot of the last services, and to give them one slot more.
fn changes(
    datapath: &mut NftablesDatapath,
    mut state: State,
    services: u32,
) -> Result<(Vec<Duration>, Vec<Duration>), Failure> {
    let (mut replaced, mut added) = (Vec::new(), Vec::new());
    for n in 0..2 * u32::try_from(CHANGES)? {
        let before = state.clone();
        let addr = FrontendAddr::new(vip(services - 1 - n / 2 % services).into(), 80, Protocol::Tcp);
        let Some(frontend) = state.frontends.get_mut(&addr) else { continue };
        let Target::Set(old) = frontend.target else { continue };
        let Some(set) = state.sets.remove(&old) else { continue };
        let mut slots = set.slots.to_vec();
        let Some(backend) = BackendId::new(10_000_000 + n) else { continue };
        let ip = IpAddr::from(Ipv4Addr::from_bits(0x0d00_0000 + n));
        state.backends.insert(backend, Backend { addr: BackendAddr::new(ip, 8080, Protocol::Tcp), local: false });
        if n % 2 == 0 {
            state.backends.remove(&std::mem::replace(&mut slots[1], backend));
        } else {
            slots.push(backend);
        }
        let Some(id) = SetId::new(10_000_000 + n) else { continue };
        state.sets.insert(id, Arc::new(BackendSet::new(set.lookup, slots)));
        frontend.target = Target::Set(id);
        let plan = diff(&before, &state, &Labels::new());
        let start = Instant::now();
        datapath.apply(&plan)?;
        if n % 2 == 0 { &mut replaced } else { &mut added }.push(start.elapsed());
    }
    replaced.sort_unstable();
    added.sort_unstable();
    Ok((replaced, added))
}

/// User and system time in ms.
fn processor() -> Result<(i64, i64), Failure> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().num_milliseconds(), usage.system_time().num_milliseconds()))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn vip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a60_0000 + n)
}

fn state(services: u32, maglev: u32, slots: u32) -> State {
    let mut state = State::default();
    for n in 0..services {
        let id = n + 1;
        let backends: Vec<BackendId> = (0..4).filter_map(|slot| BackendId::new(4 * n + slot + 1)).collect();
        for &backend in &backends {
            let ip = IpAddr::from(Ipv4Addr::from_bits(0x0b00_0000 + backend.get()));
            let addr = BackendAddr::new(ip, 8080, Protocol::Tcp);
            state.backends.insert(backend, Backend { addr, local: false });
        }
        let set = if n < maglev {
            let slots: Vec<_> =
                (0..slots).map(|slot| backends[(slot.wrapping_mul(0x9e37_79b1) >> 30) as usize]).collect();
            BackendSet::new(Lookup::Hash, slots)
        } else {
            BackendSet::new(Lookup::Random, backends)
        };
        let (Some(set_id), Some(frontend)) = (SetId::new(id), FrontendId::new(id)) else { continue };
        state.sets.insert(set_id, Arc::new(set));
        let addr = FrontendAddr::new(vip(n).into(), 80, Protocol::Tcp);
        state.frontends.insert(addr, Frontend::new(frontend, Target::Set(set_id)));
    }
    state
}
