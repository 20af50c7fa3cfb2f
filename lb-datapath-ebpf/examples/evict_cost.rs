//! What it costs to end flows, with empty and with full maps.
//!
//! ```sh
//! cargo run --release -p lb-datapath-ebpf --example evict_cost -- [FLOWS] [SOCKETS] [NAMESPACES] [ROUNDS]
//! ```
//!
//! It needs root, and a BPF file system at `/sys/fs/bpf`. It makes a network namespace of its own by `unshare --net` and
//! a cgroup without tasks. Each of the two tables of flows gets `FLOWS` entries of other frontends (default 131,072, all
//! that it holds), and the namespace gets `SOCKETS` connected datagram sockets (default 10,000) which are none of ours.
//! At last, `NAMESPACES` threads (default 100) are in network namespaces of their own, which are looked into as well.
//!
//! Prints one line for each figure, with tabs: `us WHAT MEDIAN LONGEST N`, in microseconds of processor time. A machine
//! with other work takes longer.

use std::{
    env,
    error::Error,
    fs, io,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    process::{self, Command},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use lb_core::{
    addr::{FrontendAddr, Protocol},
    datapath::{Datapath, Eviction},
};
use lb_datapath_ebpf::{DestroySockets, EbpfConfig, EbpfDatapath};
use lb_datapath_ebpf_abi::{CtKey, CtValue, Pod, Port, SockKey, SockPeer, map_v4};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Set in the copy of this program that runs in a namespace of its own.
const INSIDE: &str = "LB_EVICT_COST_INSIDE";
const UDP: u8 = 17;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(env::current_exe()?).args(&arguments).env(INSIDE, "1");
        let status = command.status()?;
        return if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) };
    }
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (flows, sockets) = (number(0, 131_072)?, number(1, 10_000)?);
    let (namespaces, rounds) = (number(2, 100)?, number(3, 50)?);
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if !up.success() {
        return Err(format!("ip link set lo up: {up}").into());
    }
    let mut bed = Bed::new()?;
    bed.measure("empty maps, no sockets", rounds)?;
    bed.fill_flows(flows)?;
    bed.measure(&format!("2 × {flows} entries of flows"), rounds)?;
    let held = bed.connect(sockets)?;
    bed.measure(&format!("2 × {flows} entries of flows, {sockets} sockets of others"), rounds)?;
    drop(held);
    drop(bed);
    let mut bed = Bed::new()?;
    bed.enter_namespaces(namespaces)?;
    bed.measure(&format!("empty maps, {namespaces} more namespaces"), rounds)
}

struct Bed {
    datapath: EbpfDatapath,
    pin_dir: PathBuf,
    cgroup: PathBuf,
    server: UdpSocket,
}

impl Bed {
    fn new() -> Outcome<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lb-evict-cost-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).ok_or("no cgroup2 is mounted")?;
        let mount = mount.split(' ').nth(4).ok_or("no mount point")?;
        let (cgroup, pin_dir) = (PathBuf::from(mount).join(&name), PathBuf::from("/sys/fs/bpf").join(&name));
        fs::create_dir(&cgroup)?;
        let config = EbpfConfig::new(&cgroup).with_pin_dir(&pin_dir).with_destroy_sockets(DestroySockets::All);
        let datapath = EbpfDatapath::open(config)?;
        Ok(Self { datapath, pin_dir, cgroup, server: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))? })
    }

    fn map(&self, name: &str) -> Outcome<MapData> {
        Ok(MapData::from_pin(self.pin_dir.join("v1/maps").join(name))?)
    }

    /// Entries of flows of other frontends.
    fn fill_flows(&self, count: usize) -> Outcome<()> {
        let (new, live) = (Map::LruHashMap(self.map("CT")?), Map::HashMap(self.map("CT_LIVE")?));
        self.fill(HashMap::try_from(new)?, count)?;
        self.fill(HashMap::try_from(live)?, count)
    }

    fn fill(&self, mut map: HashMap<MapData, [u8; 40], [u8; 56]>, count: usize) -> Outcome<()> {
        for n in 0..count as u32 {
            let [_, a, b, c] = n.to_be_bytes();
            let (src, dst) = (map_v4([10, a, b, c]), map_v4([10, 96, 1, 1]));
            let key = CtKey { src, dst, sport: Port::new(4000), dport: Port::new(80), protocol: 6, pad: [0; 3] };
            let value = CtValue { src, dst: map_v4([10, 244, 0, 1]), dport: Port::new(8080), ..CtValue::EMPTY };
            map.insert(bytes::<40>(&key)?, bytes::<56>(&value)?, 0)?;
        }
        Ok(())
    }

    /// Sockets that are connected to one server, none of them through the frontend that is measured.
    fn connect(&self, count: usize) -> Outcome<Vec<UdpSocket>> {
        let sockets = (0..count).map(|_| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(self.server.local_addr()?)?;
            Ok(socket)
        });
        sockets.collect()
    }

    /// Puts this process into the cgroup, and threads of it into namespaces, until it ends.
    fn enter_namespaces(&self, count: usize) -> Outcome<()> {
        fs::write(self.cgroup.join("cgroup.procs"), "0")?;
        for _ in 0..count {
            let (entered, wait) = mpsc::channel();
            thread::spawn(move || {
                // SAFETY: the call takes a flag, and changes nothing but where this thread is.
                let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
                // The receiver waits below.
                let _ = entered.send(if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) });
                loop {
                    thread::park();
                }
            });
            wait.recv()??;
        }
        Ok(())
    }

    /// Ends the flows of a frontend again and again.
    fn measure(&mut self, what: &str, rounds: usize) -> Outcome<()> {
        let frontend = FrontendAddr::new([10, 96, 0, 1].into(), 53, Protocol::Udp);
        let evictions = [Eviction { frontend, keeps: [].into() }];
        let port = self.server.local_addr()?.port();
        let mut peers = HashMap::<_, [u8; 32], [u8; 20]>::try_from(Map::LruHashMap(self.map("SOCK_PEERS")?))?;
        let addr = map_v4(Ipv4Addr::LOCALHOST.octets());
        let key = SockKey { cookie: u64::MAX, addr, port: Port::new(port), protocol: UDP, pad: [0; 5] };
        let peer = SockPeer { addr: map_v4([10, 96, 0, 1]), port: Port::new(53), pad: 0 };
        let mut samples = Vec::new();
        for _ in 0..rounds {
            // There is something to look for, and the kernel has to walk through its table.
            peers.insert(bytes::<32>(&key)?, bytes::<20>(&peer)?, 0)?;
            let start = processor_time()?;
            self.datapath.evict(&evictions)?;
            samples.push(processor_time()?.saturating_sub(start));
        }
        samples.sort_unstable();
        let longest = samples.last().copied().unwrap_or(Duration::ZERO).as_micros();
        println!("us\t{what}\t{}\t{longest}\t{rounds}", samples[samples.len() / 2].as_micros());
        Ok(())
    }
}

/// The processor time of this process: other namespaces are looked into by a thread of their own.
fn processor_time() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` has room for the answer.
    match unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } {
        0 => Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bytes<const N: usize>(value: &impl Pod) -> Outcome<[u8; N]> {
    Ok(value.bytes().try_into()?)
}

impl Drop for Bed {
    fn drop(&mut self) {
        // What is left after an error here is found by its name.
        let _ = self.datapath.cleanup();
        let _ = self.cgroup.parent().map(|parent| fs::write(parent.join("cgroup.procs"), "0"));
        let _ = fs::remove_dir(&self.cgroup);
    }
}
