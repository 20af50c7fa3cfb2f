//! A process that ends at any point leaves every frontend as it was before or as it should be, and the next start ends
//! in the state that is wanted.
//!
//! Each trial starts this binary again as a child that kills itself, and looks at the kernel afterwards.
//! `LB_CRASH_KILLS` is the number of kills at random times, 10 unless told.
#![expect(clippy::unwrap_used, reason = "tests")]

mod states;

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use lb_core::{
    datapath::Datapath,
    drift::{Expected, Inspection},
    plan::{Labels, diff},
    state::State,
};
use lb_datapath_ebpf::{Capacities, EbpfConfig, EbpfDatapath, crash_points};
use libtest_mimic::{Arguments, Trial};

use crate::states::{HASHES, VIP, after, before};

const ROLE: &str = "LB_CRASH_CHILD";
const PIN_DIR: &str = "LB_CRASH_PIN_DIR";
const CGROUP: &str = "LB_CRASH_CGROUP";
const PORT: &str = "LB_CRASH_PORT";
/// The point of a change alone, counted from where it begins.
const CHANGE_AT: &str = "LB_CRASH_CHANGE_AT";

fn main() {
    if let Ok(role) = env::var(ROLE) {
        return child(&role);
    }
    let trials = [
        ("a_change", a_change as fn()),
        ("a_restart_with_a_change", a_restart_with_a_change),
        ("a_first_start", a_first_start),
        ("a_cleanup", a_cleanup),
        ("a_change_of_sizes", a_change_of_sizes),
        ("at_random_times", at_random_times),
    ];
    let trial = |(name, run): (&str, fn())| {
        let job = move || {
            run();
            Ok(())
        };
        Trial::test(name, job).with_kind("needs root").with_ignored_flag(true)
    };
    let mut arguments = Arguments::from_args();
    // They share a cgroup and the processors.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.into_iter().map(trial).collect()).exit();
}

/// Does what `role` says; it may be killed anywhere.
fn child(role: &str) {
    let config = config(Path::new(&env::var(PIN_DIR).unwrap()), Path::new(&env::var(CGROUP).unwrap()));
    let port = env::var(PORT).unwrap().parse().unwrap();
    let (before, after) = (before(port), after(port));
    match role {
        "start" => become_(&mut EbpfDatapath::open(config).unwrap(), &before),
        "restart" => become_(&mut EbpfDatapath::open(config).unwrap(), &after),
        "change" => {
            let mut datapath = EbpfDatapath::open(config).unwrap();
            become_(&mut datapath, &before);
            crash_points::arm(env::var(CHANGE_AT).ok().map(|at| at.parse().unwrap()));
            become_(&mut datapath, &after);
        }
        "larger" => become_(&mut EbpfDatapath::open(config.with_capacities(LARGER)).unwrap(), &before),
        "cleanup" => EbpfDatapath::remove(&config.pin_dir).unwrap(),
        "loop" => {
            let mut datapath = EbpfDatapath::open(config).unwrap();
            println!("ready");
            loop {
                become_(&mut datapath, &before);
                become_(&mut datapath, &after);
            }
        }
        other => panic!("no such role: {other}"),
    }
    println!("{}", crash_points::passed());
}

/// Makes the datapath hold `state`, whatever it holds.
fn become_(datapath: &mut EbpfDatapath, state: &State) {
    let labels = Labels::default();
    let observed = datapath.observe().unwrap();
    datapath.apply(&diff(&observed, state, &labels)).unwrap();
    let found = datapath.inspect(Expected { state, labels: &labels }, Inspection::Everything).unwrap();
    assert_eq!(found, []);
}

const CAPACITIES: Capacities = Capacities {
    frontends: 1024,
    backends: 1024,
    sets: 1024,
    members: 1024,
    slots: 4096,
    sources: 1024,
    sockets: 1024,
    affinity: 1024,
    flows: 1024,
    fragments: 1024,
};
/// Some maps are larger and some are smaller.
const LARGER: Capacities =
    Capacities { frontends: 512, slots: 8192, sockets: 2048, affinity: 512, flows: 2048, ..CAPACITIES };

fn config(pin_dir: &Path, cgroup: &Path) -> EbpfConfig {
    EbpfConfig::new(cgroup).with_pin_dir(pin_dir).with_capacities(CAPACITIES)
}

/// A pin directory, a cgroup with this process in it, and a server that all backends are.
struct Ground {
    pin_dir: PathBuf,
    cgroup: PathBuf,
    port: u16,
}

impl Ground {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is mounted");
        let name = format!("lbcrash{}", std::process::id());
        let cgroup = Path::new(mount.split(' ').nth(4).unwrap()).join(&name);
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || listener.incoming().for_each(drop));
        Self { pin_dir: Path::new("/sys/fs/bpf").join(name), cgroup, port }
    }

    fn command(&self, role: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(ROLE, role).env(PIN_DIR, &self.pin_dir).env(CGROUP, &self.cgroup);
        command.env(PORT, self.port.to_string()).env("RUST_BACKTRACE", "0");
        command
    }

    /// Runs a child to its end: what it printed, if it was not killed.
    fn run(&self, role: &str, at: Option<(&str, u64)>) -> Option<u64> {
        let mut command = self.command(role);
        if let Some((name, at)) = at {
            command.env(name, at.to_string());
        }
        let output = command.output().unwrap();
        if killed(output.status) {
            return None;
        }
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{role} at {at:?}: {text}");
        Some(String::from_utf8_lossy(&output.stdout).trim().parse().unwrap())
    }

    /// Every frontend answers as in one of the states, and the one that lasts can be connected to.
    fn check(&self, states: &[State], what: &str) {
        let found = EbpfDatapath::read(&self.pin_dir).unwrap_or_else(|error| panic!("{what}: {}", error.report()));
        for addr in states.iter().flat_map(|state| state.frontends.keys()).chain(found.frontends.keys()) {
            for hash in HASHES {
                let answer = found.answer(addr, hash);
                let known = states.iter().any(|state| state.answer(addr, hash) == answer);
                assert!(known, "{what}: {addr} answers {answer:?}");
            }
        }
    }

    fn connects(&self, what: &str) {
        let vip: SocketAddr = VIP.parse().unwrap();
        TcpStream::connect_timeout(&vip, Duration::from_secs(2)).unwrap_or_else(|error| panic!("{what}: {error}"));
    }

    /// The next start ends in the state that is wanted.
    fn converges(&self, what: &str) {
        assert!(self.run("restart", None).is_some(), "{what}");
        assert_eq!(EbpfDatapath::read(&self.pin_dir).unwrap(), after(self.port), "{what}");
        self.connects(what);
    }

    fn states(&self) -> [State; 2] {
        [before(self.port), after(self.port)]
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = EbpfDatapath::remove(&self.pin_dir);
        let parent = self.cgroup.parent().unwrap();
        let _ = fs::write(parent.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGKILL)
}

/// Points from 1 on until a child ends by itself, each looked at.
fn every_point(mut at: impl FnMut(u64) -> bool) -> u64 {
    let last = (1..1000).find(|point| !at(*point)).expect("a child ends");
    assert!(last > 1, "no point was passed");
    last - 1
}

/// Each child starts where the one before it was killed: every start is one after a crash, too.
fn a_change() {
    let ground = Ground::new();
    let points = every_point(|point| {
        let ended = ground.run("change", Some((CHANGE_AT, point)));
        ground.check(&ground.states(), &format!("change, point {point}"));
        ground.connects(&format!("change, point {point}"));
        ended.is_none()
    });
    println!("change: {points} points");
}

fn a_restart_with_a_change() {
    let ground = Ground::new();
    ground.run("start", None).unwrap();
    let points = every_point(|point| {
        let ended = ground.run("restart", Some(("LB_CRASH_AT", point)));
        ground.check(&ground.states(), &format!("restart, point {point}"));
        ground.connects(&format!("restart, point {point}"));
        // Most points are before the change: it is undone only where one was made.
        if EbpfDatapath::read(&ground.pin_dir).unwrap() != before(ground.port) {
            ground.run("start", None).unwrap();
        }
        ended.is_none()
    });
    println!("restart with a change: {points} points");
}

fn a_first_start() {
    let ground = Ground::new();
    let points = every_point(|point| {
        let what = format!("first start, point {point}");
        let ended = ground.run("start", Some(("LB_CRASH_AT", point)));
        if ground.pin_dir.join("v1/maps/TURNS").exists() && ground.pin_dir.join("v1/links/lb_connect4").exists() {
            ground.check(&[State::default(), before(ground.port)], &what);
        }
        if point % 8 == 1 || long() {
            ground.converges(&what);
        }
        EbpfDatapath::remove(&ground.pin_dir).unwrap();
        assert!(!ground.pin_dir.exists(), "{what}");
        ended.is_none()
    });
    println!("first start: {points} points");
}

/// Sizes that change from one to the other and back, killed at each point: sockets that are connected keep their peers,
/// and the next start goes on from there.
fn a_change_of_sizes() {
    let ground = Ground::new();
    ground.run("start", None).unwrap();
    let vip: SocketAddr = VIP.parse().unwrap();
    let streams: Vec<_> = (0..20).map(|_| TcpStream::connect(vip).unwrap()).collect();
    let (mut role, mut flips) = ("larger", 0);
    let points = every_point(|point| {
        // Each is followed by a start that finishes it.
        if point % 4 != 1 && !long() {
            return true;
        }
        let what = format!("change of sizes, point {point}");
        let ended = ground.run(role, Some(("LB_CRASH_AT", point)));
        ground.check(&[before(ground.port)], &what);
        ground.connects(&what);
        let lost = streams.iter().filter(|stream| stream.peer_addr().unwrap() != vip).count();
        assert_eq!(lost, 0, "{what}: of {} sockets", streams.len());
        // The next start finishes what this one has begun, and then wants the sizes of old.
        if ended.is_none() {
            (role, flips) = (if role == "larger" { "start" } else { "larger" }, flips + 1);
            let other = if role == "larger" { "start" } else { "larger" };
            ground.run(other, None).unwrap();
        }
        ended.is_none()
    });
    for role in ["start", "larger"] {
        ground.run(role, None).unwrap();
        let dir = ground.pin_dir.join("v1/maps");
        let left: Vec<_> = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().ends_with("_new")), "{left:?}");
        ground.check(&[before(ground.port)], role);
        assert!(streams.iter().all(|stream| stream.peer_addr().unwrap() == vip));
    }
    println!(
        "change of sizes: {points} points, {flips} finished by the next start, 0 of {} sockets lost",
        streams.len()
    );
}

/// A cleanup that is killed after its first or second change, again and again, is killed at each point.
fn a_cleanup() {
    let ground = Ground::new();
    ground.run("start", None).unwrap();
    let points = ground.run("cleanup", None).unwrap();
    assert!(!ground.pin_dir.exists());
    ground.run("start", None).unwrap();
    // A link is detached and then unpinned: after the first change alone it would be detached forever.
    every_point(|attempt| ground.run("cleanup", Some(("LB_CRASH_AT", 1 + attempt % 2))).is_none());
    assert!(!ground.pin_dir.exists());
    for point in (1..=points).step_by(if long() { 1 } else { 8 }) {
        ground.run("start", None).unwrap();
        assert_eq!(ground.run("cleanup", Some(("LB_CRASH_AT", point))), None);
        ground.converges(&format!("cleanup, point {point}"));
    }
    println!("cleanup: {points} points");
}

/// Whether there is time for everything.
fn long() -> bool {
    kills() >= 1000
}

fn kills() -> u64 {
    env::var("LB_CRASH_KILLS").ok().map_or(10, |kills| kills.parse().unwrap())
}

fn at_random_times() {
    let ground = Ground::new();
    ground.run("restart", None).unwrap();
    let (mut dice, mut starting, mut starts) = (Dice(99), 0, Vec::new());
    for kill in 0..kills() {
        let mut child = ground.command("loop").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if kill % 2 == 0 {
            starting += 1;
            thread::sleep(Duration::from_micros(dice.below(300_000)));
        } else {
            let start = Instant::now();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n", "{}", errors(&mut child));
            starts.push(start.elapsed());
            thread::sleep(Duration::from_micros(dice.below(20_000)));
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(killed(status), "kill {kill}: {status}: {}", errors(&mut child));
        ground.check(&ground.states(), &format!("kill {kill}"));
        ground.connects(&format!("kill {kill}"));
    }
    ground.converges("the last start");
    let changing = starts.len();
    println!("random times: {starting} kills from the start on, {changing} between changes, all frontends old or new");
    starts.sort();
    let [median, late, last] = [changing / 2, changing * 99 / 100, changing - 1].map(|at| starts[at]);
    println!(
        "random times: {changing} starts after a kill took {median:?} in the median, p99 {late:?}, at most {last:?}"
    );
}

fn errors(child: &mut Child) -> String {
    let mut text = String::new();
    let read: io::Result<usize> = child.stderr.as_mut().unwrap().read_to_string(&mut text);
    read.unwrap();
    text
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
