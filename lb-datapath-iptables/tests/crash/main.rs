//! Processes that are killed in the middle of a change leave each frontend as before or as after it, and the next start
//! finishes the change. Run as root, with the feature:
//! `cargo test -p lb-datapath-iptables --features crash-points --test crash -- --ignored`.
//!
//! `LB_CRASH_RANDOM` is how often each backend is killed at a random time; 20 unless set.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv6Addr},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    affinity::Affinity,
    datapath::Datapath,
    drift::{Drift, Expected, Inspection},
    id::{BackendId, FrontendId, SetId},
    node::NodeFacts,
    plan::{Labels, diff},
    state::{Answer, Backend, BackendSet, Frontend, Lookup, State, Target},
};
use lb_datapath_iptables::{
    iptables::{IptablesConfig, IptablesDatapath, Variant},
    nftables::{NftablesConfig, NftablesDatapath},
};
use nix::sched::{CloneFlags, setns, unshare};

/// What the child does: `KIND SCENARIO`.
const TASK: &str = "LB_CRASH_TASK";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    FirstStart,
    Change,
    Cleanup,
    Repair,
    Forever,
}

const KINDS: [Kind; 3] = [Kind::Nftables, Kind::IptablesNft, Kind::IptablesLegacy];
const SCENARIOS: [Scenario; 5] =
    [Scenario::FirstStart, Scenario::Change, Scenario::Cleanup, Scenario::Repair, Scenario::Forever];

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn nftables_at_every_point() {
    at_every_point(Kind::Nftables);
}

#[test]
#[ignore = "needs root: network namespaces and iptables-nft"]
fn iptables_nft_at_every_point() {
    at_every_point(Kind::IptablesNft);
}

#[test]
#[ignore = "needs root: network namespaces and iptables-legacy"]
fn iptables_legacy_at_every_point() {
    at_every_point(Kind::IptablesLegacy);
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn nftables_at_random_times() {
    at_random_times(Kind::Nftables);
}

#[test]
#[ignore = "needs root: network namespaces and iptables-nft"]
fn iptables_nft_at_random_times() {
    at_random_times(Kind::IptablesNft);
}

#[test]
#[ignore = "needs root: network namespaces and iptables-legacy"]
fn iptables_legacy_at_random_times() {
    at_random_times(Kind::IptablesLegacy);
}

#[test]
#[ignore = "needs root: network namespaces and iptables-legacy"]
fn a_restore_ends_with_the_process_that_started_it() {
    // A restore that says who it is when it has read its input, and takes its time.
    let slow = "#!/bin/sh\ncat >/dev/null\necho $$ >\"$LB_SLOW_RESTORE.new\"\nmv \"$LB_SLOW_RESTORE.new\" \"$LB_SLOW_RESTORE\"\nexec sleep 1000\n";
    let netns = Netns::create();
    let dir = std::env::temp_dir().join(format!("lb-slow-restore-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let (program, told) = (dir.join("iptables-legacy-restore"), dir.join("told"));
    std::fs::write(&program, slow).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let mut command = Kind::IptablesLegacy.command(Scenario::FirstStart);
    let mut child = netns.run(|| command.env("PATH", path).env("LB_SLOW_RESTORE", &told).spawn().unwrap());
    wait_until("the restore has its input", || told.exists());
    let restore: u32 = std::fs::read_to_string(&told).unwrap().trim().parse().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the restore is gone", || !is_running(restore));
    std::fs::remove_dir_all(dir).unwrap();
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "waited 30 s until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process runs; one that nobody has waited for does not.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X'])))
}

/// Not a test of its own: what the others start.
#[test]
#[ignore = "needs root: it is started by the other tests"]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let kind = KINDS.into_iter().find(|kind| task.contains(&format!("{kind:?}"))).unwrap();
    let scenario = SCENARIOS.into_iter().find(|scenario| task.ends_with(&format!("{scenario:?}"))).unwrap();
    let mut datapath = kind.open();
    match scenario {
        Scenario::FirstStart => become_state(&mut *datapath, &first()),
        Scenario::Change => become_state(&mut *datapath, &second()),
        Scenario::Cleanup => datapath.cleanup().unwrap(),
        Scenario::Repair => {
            let (state, labels) = (first(), Labels::new());
            let expected = Expected { state: &state, labels: &labels };
            datapath.observe().unwrap();
            let found = datapath.inspect(expected, Inspection::Everything).unwrap();
            datapath.repair(expected, &found).unwrap();
        }
        Scenario::Forever => {
            eprintln!("ready");
            loop {
                become_state(&mut *datapath, &second());
                become_state(&mut *datapath, &first());
            }
        }
    }
}

fn at_every_point(kind: Kind) {
    let (nothing, first, second) = (State::default(), first(), second());
    for (scenario, before, after) in [
        (Scenario::FirstStart, &nothing, &first),
        (Scenario::Change, &first, &second),
        (Scenario::Cleanup, &first, &nothing),
        (Scenario::Repair, &first, &first),
    ] {
        let netns = Netns::create();
        let mut points = 0;
        loop {
            let mut datapath = netns.run(|| kind.open());
            become_state(&mut *datapath, before);
            if scenario == Scenario::FirstStart {
                datapath.cleanup().unwrap();
            }
            if scenario == Scenario::Repair {
                netns.run(|| kind.damage());
            }
            let status = netns.run(|| kind.start(scenario, Some(points + 1))).wait().unwrap();
            check(kind, &netns, before, after, scenario, &format!("{kind:?} {scenario:?} at {}", points + 1));
            if status.signal() != Some(9) {
                assert!(status.success(), "{status}");
                break;
            }
            points += 1;
        }
        println!("{kind:?} {scenario:?}: killed at {points} points");
        assert!(points >= 2, "{kind:?} {scenario:?}");
    }
}

fn at_random_times(kind: Kind) {
    let times: u32 = std::env::var("LB_CRASH_RANDOM").map_or(20, |number| number.parse().unwrap());
    let netns = Netns::create();
    let (first, second) = (first(), second());
    let (mut as_first, mut as_second, mut seed) = (0, 0, 0x9e37_79b9_u64);
    for n in 0..times {
        become_state(&mut *netns.run(|| kind.open()), &first);
        let mut child = netns.run(|| kind.start(Scenario::Forever, None));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"));
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let deadline = Instant::now() + Duration::from_micros((seed >> 33) % 120_000);
        thread::sleep(deadline - Instant::now());
        child.kill().unwrap();
        child.wait().unwrap();
        let found = check(kind, &netns, &first, &second, Scenario::Change, &format!("{kind:?}, kill {n}"));
        as_first += u32::from(found.frontends == first.frontends);
        as_second += u32::from(found.frontends == second.frontends);
    }
    println!("{kind:?}: {times} kills at random times, {as_first} as before, {as_second} as after");
}

/// Each frontend is as before or as after, and the next start leads to what it should be. Returns what was found.
fn check(kind: Kind, netns: &Netns, before: &State, after: &State, scenario: Scenario, when: &str) -> State {
    let mut datapath = netns.run(|| kind.open());
    let found = datapath.observe().unwrap_or_else(|error| panic!("{when}: {}", error.report()));
    let addrs: BTreeSet<FrontendAddr> = before.frontends.keys().chain(after.frontends.keys()).copied().collect();
    for addr in addrs {
        for hash in [0, 0x1234_5678, 0x8765_4321, u32::MAX] {
            let (is, was, will) = (found.answer(&addr, hash), before.answer(&addr, hash), after.answer(&addr, hash));
            // A table that a tool damaged answers nothing until it is repaired.
            let gone = scenario == Scenario::Repair && is == Answer::NotAFrontend;
            assert!(is == was || is == will || gone, "{when}: {addr} is {is:?}, was {was:?}, should be {will:?}");
        }
    }
    if scenario == Scenario::Cleanup {
        datapath.cleanup().unwrap();
    } else {
        datapath.apply(&diff(&found, after, &Labels::new())).unwrap();
    }
    let mut fresh = netns.run(|| kind.open());
    assert_eq!(fresh.observe().unwrap().frontends, after.frontends, "{when}");
    assert_eq!(drift(&mut *fresh, after), [], "{when}");
    found
}

fn drift(datapath: &mut dyn Datapath, state: &State) -> Vec<Drift> {
    let labels = Labels::new();
    datapath.inspect(Expected { state, labels: &labels }, Inspection::Everything).unwrap()
}

fn become_state(datapath: &mut dyn Datapath, state: &State) {
    let found = datapath.observe().unwrap();
    datapath.apply(&diff(&found, state, &Labels::new())).unwrap();
}

impl Kind {
    fn open(self) -> Box<dyn Datapath> {
        let iptables =
            |variant| Box::new(IptablesDatapath::open(&IptablesConfig::default().with_variant(variant)).unwrap());
        match self {
            Self::Nftables => Box::new(NftablesDatapath::open(&NftablesConfig::default()).unwrap()),
            Self::IptablesNft => iptables(Variant::Nft),
            Self::IptablesLegacy => iptables(Variant::Legacy),
        }
    }

    /// What somebody else does before a repair.
    fn damage(self) {
        let command = match self {
            Self::Nftables => {
                "nft flush map inet lb slots4; nft flush chain inet lb output; ip route flush table 27746"
            }
            Self::IptablesNft => {
                "iptables-nft -t nat -F LB-SERVICES; ip6tables-nft -t nat -D PREROUTING -j LB-SERVICES"
            }
            Self::IptablesLegacy => {
                "iptables-legacy -t nat -F LB-SERVICES; ip6tables-legacy -t nat -D PREROUTING -j LB-SERVICES"
            }
        };
        assert!(Command::new("sh").arg("-ec").arg(command).status().unwrap().success(), "{command}");
    }

    /// Starts this program as a child that carries out `scenario`, and kills itself at a point.
    fn start(self, scenario: Scenario, at: Option<u32>) -> Child {
        let mut command = self.command(scenario);
        match at {
            Some(point) => command.env("LB_CRASH_AT", point.to_string()),
            None => command.env_remove("LB_CRASH_AT").stderr(Stdio::piped()),
        };
        command.spawn().unwrap()
    }

    fn command(self, scenario: Scenario) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture"]);
        command.env(TASK, format!("{self:?} {scenario:?}")).stdout(Stdio::null());
        command
    }
}

/// A network namespace that ends with this value.
struct Netns(File);

impl Netns {
    fn create() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        })
    }
}

const SERVICES: u16 = 24;

fn first() -> State {
    state(0)
}

/// The same frontends, but for the first and the last: other backends, more of them, none, affinity.
fn second() -> State {
    state(1)
}

fn state(version: u16) -> State {
    let mut state = State {
        node: NodeFacts { cluster_cidrs: vec!["10.0.0.0/8".parse().unwrap()], ..NodeFacts::default() },
        ..State::default()
    };
    for n in version..SERVICES + version {
        let ip: IpAddr = if n % 2 == 0 {
            [10, 96, 0, u8::try_from(n).unwrap()].into()
        } else {
            Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, n).into()
        };
        let protocol = if n % 3 == 0 { Protocol::Udp } else { Protocol::Tcp };
        let addr = FrontendAddr::new(ip, 80, protocol);
        let id = u32::from(n) + 1;
        let backends = if n % 8 == 7 - version { 0 } else { 2 + (n + version) % 3 };
        let slots: Vec<BackendId> =
            (0..backends).map(|slot| put_backend(&mut state, &addr, n, slot, version)).collect();
        let target = if slots.is_empty() {
            Target::Reject
        } else {
            let set = SetId::new(id + 1_000 * u32::from(version)).unwrap();
            state.sets.insert(set, Arc::new(BackendSet::new(Lookup::Random, slots)));
            Target::Set(set)
        };
        let affinity = (n % 5 == version).then(Affinity::default);
        state.frontends.insert(addr, Frontend { affinity, ..Frontend::new(FrontendId::new(id).unwrap(), target) });
    }
    state
}

fn put_backend(state: &mut State, addr: &FrontendAddr, n: u16, slot: u16, version: u16) -> BackendId {
    let id = BackendId::new(u32::from(1_000 * version + 10 * n + slot) + 1).unwrap();
    let last = u8::try_from(10 * version + slot + 1).unwrap();
    let ip: IpAddr = match addr.ip {
        IpAddr::V4(_) => [10, 1, u8::try_from(n).unwrap(), last].into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd01, n, 0, 0, 0, 0, 0, last.into()).into(),
    };
    state.backends.insert(id, Backend { addr: BackendAddr::new(ip, 8080, addr.protocol), local: slot == 0 });
    id
}
