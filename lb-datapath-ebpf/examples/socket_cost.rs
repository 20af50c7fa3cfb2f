//! What the programs of sockets cost a `connect()`, for one eBPF object or for two side by side.
//!
//! ```sh
//! cargo run --release -p lb-datapath-ebpf --example socket_cost -- lb-datapath-ebpf/src/lb.bpf.o [OTHER.bpf.o]
//! ```
//!
//! It needs root and cgroup2. It makes a network namespace by `unshare --net` and a cgroup of its own, loads each object
//! with maps of its own, and connects to a server on the loopback device: to its address without any program, with one
//! that does nothing, and with those of the object; and through frontends, of which there are 5,000. Blocks of 2,500
//! calls take turns in every round. A connected UDP socket runs the same programs as a TCP socket, without the
//! handshake around them, so small differences show there.
//!
//! Prints one line for each figure, with tabs: `ns CASE MEDIAN [OTHER] N` for medians of `connect()` and `close()` and of
//! the mean time of each program, and `ratio CASE MEDIAN [OTHER] N` for `connect()` beside one without any program, round
//! by round.

mod raw;

use std::{
    cell::Cell,
    collections::BTreeMap,
    env,
    error::Error,
    fs::{self, File},
    io,
    net::{TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    process::Command,
    thread,
    time::Instant,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap},
    programs::{CgroupAttachMode, Program, cgroup_sock::CgroupSockLinkId, cgroup_sock_addr::CgroupSockAddrLinkId},
    sys::{Stats, enable_stats},
};
use lb_datapath_ebpf_abi::{
    Addr, BackendValue, FrontendKey, FrontendValue, LOOKUP_RANDOM, Pod, Port, SCOPE_ANY, TARGET_SET, filter_bit, map_v4,
};

use raw::{bpf_fd, load, number, returning};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Set in the copy of this program that runs in a namespace of its own.
const INSIDE: &str = "LB_SOCKET_COST_INSIDE";
const ROUNDS: usize = 60;
/// Calls of one case before it is the next one's turn.
const BLOCK: u32 = 2_500;
const SERVICES: u32 = 5_000;
/// Port of every frontend.
const PORT: u16 = 80;

fn main() -> Outcome<()> {
    let objects: Vec<String> = env::args().skip(1).collect();
    if objects.is_empty() || objects.len() > 2 {
        return Err("usage: socket_cost OBJECT [OTHER]".into());
    }
    if env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(env::current_exe()?).args(&objects).env(INSIDE, "1");
        let status = command.status()?;
        return if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) };
    }
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if !status.success() {
        return Err(format!("ip link set lo up: {status}").into());
    }
    let cgroup = Cgroup::joined()?;
    let servers = [Server::udp()?, Server::tcp()?];
    let mut subjects = objects.iter().map(|path| Subject::load(path, &servers)).collect::<Outcome<Vec<_>>>()?;
    for server in &servers {
        measure(server, &cgroup, &mut subjects)?;
        measure_programs(server, &cgroup, &mut subjects)?;
    }
    Ok(())
}

/// Measures every case with one kind of socket, and prints it.
fn measure(server: &Server, cgroup: &Cgroup, subjects: &mut [Subject]) -> Outcome<()> {
    let calls = Calls::default();
    let mut samples: BTreeMap<(&str, usize), Vec<(u64, u64)>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut note = |case, subject, sample| samples.entry((case, subject)).or_default().push(sample);
        let bare = server.block(|| calls.peer(BARE, server))?;
        let empty = {
            let _link = empty_program(cgroup)?;
            server.block(|| calls.peer(BARE, server))?
        };
        for (at, subject) in subjects.iter_mut().enumerate() {
            note(BARE, at, bare);
            note(EMPTY, at, empty);
            let links = subject.attach(cgroup)?;
            note(MISS, at, server.block(|| calls.peer(MISS, server))?);
            note(HIT, at, server.block(|| calls.peer(HIT, server))?);
            note(SAME, at, server.block(|| calls.peer(SAME, server))?);
            subject.detach(links)?;
        }
    }
    let kind = server.name;
    for case in [BARE, EMPTY, MISS, HIT, SAME] {
        let of = |pick: fn(&(u64, u64)) -> u64| {
            let medians = (0..subjects.len()).map(|at| median(samples[&(case, at)].iter().map(pick)).to_string());
            medians.collect::<Vec<_>>().join("\t")
        };
        let count = ROUNDS * BLOCK as usize;
        println!("ns\tconnect() of {kind}, {case}\t{}\t{count}", of(|sample| sample.0));
        println!("ns\tclose() of {kind}, {case}\t{}\t{count}", of(|sample| sample.1));
    }
    for case in [MISS, HIT, SAME] {
        let ratios = (0..subjects.len()).map(|at| {
            let pairs = samples[&(case, at)].iter().zip(&samples[&(BARE, at)]);
            let mut ratios: Vec<f64> = pairs.map(|(hit, bare)| hit.0 as f64 / bare.0 as f64).collect();
            ratios.sort_by(f64::total_cmp);
            format!("{:.3}", ratios[ratios.len() / 2])
        });
        println!("ratio\tconnect() of {kind}, {case}\t{}\t{ROUNDS}", ratios.collect::<Vec<_>>().join("\t"));
    }
    Ok(())
}

/// Prints what each program takes by itself, as the kernel counts it: with its two clock readings around each run.
fn measure_programs(server: &Server, cgroup: &Cgroup, subjects: &mut [Subject]) -> Outcome<()> {
    let _counting = enable_stats(Stats::RunTime)?;
    let calls = Calls::default();
    let mut samples: BTreeMap<(String, &str), Vec<Vec<u64>>> = BTreeMap::new();
    let count = subjects.len();
    for _ in 0..ROUNDS {
        for (at, subject) in subjects.iter_mut().enumerate() {
            let links = subject.attach(cgroup)?;
            for case in [MISS, HIT, SAME] {
                let before = subject.runs()?;
                server.block(|| calls.peer(case, server))?;
                for (name, (ns, runs)) in subject.runs()? {
                    let (old_ns, old_runs) = before.get(&name).copied().unwrap_or_default();
                    if let Some(mean) = (ns - old_ns).checked_div(runs - old_runs) {
                        samples.entry((name, case)).or_insert_with(|| vec![Vec::new(); count])[at].push(mean);
                    }
                }
            }
            subject.detach(links)?;
        }
    }
    for ((name, case), samples) in samples {
        // A program that one of the objects does not have cannot be compared.
        if samples.iter().any(Vec::is_empty) {
            continue;
        }
        let medians: Vec<_> = samples.into_iter().map(|samples| median(samples.into_iter()).to_string()).collect();
        println!("ns\t{name} of {}, {case}\t{}\t{ROUNDS}", server.name, medians.join("\t"));
    }
    Ok(())
}

/// The peers that calls state: frontends take turns from one block to the next.
#[derive(Default)]
struct Calls(Cell<u32>);

impl Calls {
    fn peer(&self, case: &str, server: &Server) -> ([u8; 4], u16) {
        match case {
            HIT => (vip(self.0.replace(self.0.get() + 1) % SERVICES), PORT),
            SAME => (vip(0), PORT),
            _ => ([127, 0, 0, 1], server.port),
        }
    }
}

const BARE: &str = "no program";
const EMPTY: &str = "a program that does nothing";
const MISS: &str = "to an address that is no frontend";
const HIT: &str = "through one of 5,000 frontends after the other";
const SAME: &str = "through one frontend of 5,000";

fn vip(number: u32) -> [u8; 4] {
    [10, 96, (number >> 8) as u8, number as u8]
}

fn median(samples: impl Iterator<Item = u64>) -> u64 {
    let mut samples: Vec<u64> = samples.collect();
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// What sockets of one kind connect to.
struct Server {
    name: &'static str,
    kind: libc::c_int,
    protocol: u8,
    port: u16,
    /// Keeps the port of a server whose kind has no connections.
    _socket: Option<UdpSocket>,
}

impl Server {
    fn udp() -> Outcome<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let port = socket.local_addr()?.port();
        Ok(Self { name: "UDP", kind: libc::SOCK_DGRAM, protocol: 17, port, _socket: Some(socket) })
    }

    fn tcp() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        // A segment that finds the queue full would come again after a second.
        // SAFETY: the descriptor is that of a listener.
        if unsafe { libc::listen(listener.as_raw_fd(), 4096) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        thread::spawn(move || listener.incoming().for_each(drop));
        Ok(Self { name: "TCP", kind: libc::SOCK_STREAM, protocol: 6, port, _socket: None })
    }

    /// Medians of `connect()` and `close()` over one block of calls.
    fn block(&self, to: impl Fn() -> ([u8; 4], u16)) -> Outcome<(u64, u64)> {
        let calls = (0..BLOCK).map(|_| self.connect(to())).collect::<Outcome<Vec<_>>>()?;
        Ok((median(calls.iter().map(|call| call.0)), median(calls.iter().map(|call| call.1))))
    }

    /// Nanoseconds of one `connect()` and one `close()`.
    fn connect(&self, (ip, port): ([u8; 4], u16)) -> Outcome<(u64, u64)> {
        let addr = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip) },
            sin_zero: [0; 8],
        };
        // SAFETY: the call takes numbers.
        let fd = unsafe { libc::socket(libc::AF_INET, self.kind | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // Closed by a reset, so that no port has to wait.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let size = size_of::<libc::linger>() as libc::socklen_t;
        // SAFETY: the option is as long as `size` says.
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size) };
        let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        let start = Instant::now();
        // SAFETY: the address is as long as `size` says.
        let outcome = unsafe { libc::connect(fd, (&raw const addr).cast(), size) };
        let connected = start.elapsed();
        if outcome != 0 {
            return Err(format!("connecting to {ip:?}, port {port}: {}", io::Error::last_os_error()).into());
        }
        let start = Instant::now();
        drop(socket);
        Ok((connected.as_nanos() as u64, start.elapsed().as_nanos() as u64))
    }
}

/// A cgroup with this process in it.
struct Cgroup {
    path: PathBuf,
    parent: PathBuf,
}

impl Cgroup {
    fn joined() -> Outcome<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).ok_or("no cgroup2 is mounted")?;
        let parent = PathBuf::from(mount.split(' ').nth(4).ok_or("a line of mountinfo is too short")?);
        let path = parent.join(format!("lb-socket-cost-{}", std::process::id()));
        fs::create_dir(&path)?;
        let cgroup = Self { path, parent };
        fs::write(cgroup.path.join("cgroup.procs"), "0")?;
        Ok(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.parent.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.path);
    }
}

/// A `connect4` program of two instructions, attached until the result is dropped.
fn empty_program(cgroup: &Cgroup) -> Outcome<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
    const BPF_CGROUP_INET4_CONNECT: u32 = 10;
    let program = load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, &returning(1))?;
    let directory = File::open(&cgroup.path)?;
    Ok(bpf_fd(BPF_LINK_CREATE, &mut [number(&program), number(&directory), BPF_CGROUP_INET4_CONNECT, 0])?)
}

/// A loaded object with 5,000 frontends of one backend each, for each kind of socket.
struct Subject(Ebpf);

/// What is attached.
enum Link {
    Addr(String, CgroupSockAddrLinkId),
    Sock(String, CgroupSockLinkId),
}

impl Subject {
    fn load(path: &str, servers: &[Server]) -> Outcome<Self> {
        let mut ebpf = EbpfLoader::new().load_file(path).map_err(|error| format!("{path}: {error}"))?;
        let names: Vec<String> = ebpf.programs().map(|(name, _)| name.into()).collect();
        for name in names {
            match ebpf.program_mut(&name).ok_or("a program has gone")? {
                Program::CgroupSockAddr(program) => program.load()?,
                Program::CgroupSock(program) => program.load()?,
                _ => {}
            }
        }
        let mut subject = Self(ebpf);
        for (at, server) in (0..).zip(servers) {
            subject.fill(at * SERVICES, server)?;
        }
        Ok(subject)
    }

    /// Adds a frontend for each address; ids begin after `first`.
    fn fill(&mut self, first: u32, server: &Server) -> Outcome<()> {
        for number in 0..SERVICES {
            let (id, addr, protocol) = (first + number + 1, map_v4(vip(number)), server.protocol);
            let port = Port::new(server.port);
            let backend = BackendValue { addr: map_v4([127, 0, 0, 1]), port, protocol, local: 1, host: 0, pad: [0; 3] };
            self.put::<4, 24>("BACKENDS", &id, &backend)?;
            let mut slots: Array<_, [u8; 16]> = self.0.map_mut("SLOTS").ok_or("no SLOTS")?.try_into()?;
            slots.set(id, fixed([id, 0, 0, 0].bytes())?, 0)?;
            let key = FrontendKey { addr, port: Port::new(PORT), protocol, scope: SCOPE_ANY, pad: 0 };
            let value = FrontendValue {
                id,
                set: id,
                first: id,
                slots: 1,
                affinity_ns: 0,
                affinity: 0,
                prefix_v4: 32,
                prefix_v6: 128,
                lookup: LOOKUP_RANDOM,
                target: TARGET_SET,
                flags: 0,
                leaves_sockets: 0,
                pad: 0,
            };
            self.put::<24, 32>("FRONTENDS", &key, &value)?;
            self.know(addr)?;
            self.know(backend.addr)?;
        }
        Ok(())
    }

    /// Sets the bit of an address in `FILTER`, which earlier objects do not have.
    fn know(&mut self, addr: Addr) -> Outcome<()> {
        let Some(map) = self.0.map_mut("FILTER") else { return Ok(()) };
        let mut pairs: Array<_, [u32; 2]> = map.try_into()?;
        let (word, bit) = filter_bit(addr);
        let mut pair = pairs.get(&(word >> 1), 0)?;
        pair[word as usize & 1] |= bit;
        Ok(pairs.set(word >> 1, pair, 0)?)
    }

    fn put<const K: usize, const V: usize>(&mut self, map: &str, key: &impl Pod, value: &impl Pod) -> Outcome<()> {
        let mut map: HashMap<_, [u8; K], [u8; V]> = self.0.map_mut(map).ok_or("a map is missing")?.try_into()?;
        Ok(map.insert(fixed::<K>(key.bytes())?, fixed::<V>(value.bytes())?, 0)?)
    }

    /// Nanoseconds and runs of each program, while the kernel counts them.
    fn runs(&self) -> Outcome<BTreeMap<String, (u64, u64)>> {
        let mut runs = BTreeMap::new();
        for (name, program) in self.0.programs() {
            let info = match program {
                Program::CgroupSockAddr(program) => program.info()?,
                Program::CgroupSock(program) => program.info()?,
                _ => continue,
            };
            runs.insert(name.into(), (info.run_time().as_nanos() as u64, info.run_count()));
        }
        Ok(runs)
    }

    fn attach(&mut self, cgroup: &Cgroup) -> Outcome<Vec<Link>> {
        let directory = File::open(&cgroup.path)?;
        let mut links = Vec::new();
        for (name, program) in self.0.programs_mut() {
            let mode = CgroupAttachMode::Single;
            match program {
                Program::CgroupSockAddr(program) => {
                    links.push(Link::Addr(name.into(), program.attach(directory.as_fd(), mode)?));
                }
                Program::CgroupSock(program) => {
                    links.push(Link::Sock(name.into(), program.attach(directory.as_fd(), mode)?));
                }
                _ => {}
            }
        }
        Ok(links)
    }

    fn detach(&mut self, links: Vec<Link>) -> Outcome<()> {
        for link in links {
            let (Link::Addr(name, _) | Link::Sock(name, _)) = &link;
            match (self.0.program_mut(name), link) {
                (Some(Program::CgroupSockAddr(program)), Link::Addr(_, link)) => program.detach(link)?,
                (Some(Program::CgroupSock(program)), Link::Sock(_, link)) => program.detach(link)?,
                _ => return Err("a program has gone".into()),
            }
        }
        Ok(())
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Outcome<[u8; N]> {
    Ok(bytes.try_into()?)
}
