//! Pools and tables that are full, floods, and backends that come and go: at a tenth of the sizes that `cargo xtask
//! nightly` runs with `LB_FULL_SIZES=1`. Every test prints what it has reached.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    ops::Range,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::mpsc,
    thread,
    time::Instant,
};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    datapath::Datapath,
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    id::{BackendId, FrontendId, SetId},
    model::{Change, Model, Settings},
    name::{ServiceName, SliceName},
    reconciler::Reconciler,
    service::{Algorithm, Service, ServicePort},
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
    table::TableSize,
    time::Instant as Moment,
};
use lb_datapath_ebpf::{EbpfDatapath, Reason};
use lb_datapath_ebpf_abi::{self as abi, Pod};
use lb_testkit::packets::{Addresses, Frame, Ip, Payload, Ports, Reading, Segment};
use socket2::{Domain, Socket, Type};

use crate::{
    bpf::{self, Map},
    capacity::{CASES, MOST, services, usage},
    common::{PATIENCE, PinDir, UPLINK, World, ask_on, turn},
    flows::{Cluster, VIP, addr},
};

/// A number at its full size, or a tenth of it.
fn sized(full: u32) -> u32 {
    if std::env::var_os("LB_FULL_SIZES").is_some() { full } else { full / 10 }
}

/// Lets every thread with files of its own have many.
fn many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit outlives the calls.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    let (found, wanted) = (limit.rlim_max, sized(12_000));
    assert!(found >= wanted.into(), "{found} files are allowed, {wanted} needed: raise `ulimit -Hn`");
}

/// Gives this thread a table of files of its own, with none of the others' in it: their limit is the table's.
fn own_files() {
    // SAFETY: nothing that this thread uses from now on was opened before.
    let done = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_UNSHARE as i32) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// The kernel, for lines of figures.
fn kernel() -> String {
    format!("kernel {}", std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim())
}

/// Connections of clients outside, whose packets the program of the uplink sees one by one.
struct Handshakes {
    program: OwnedFd,
    device: u32,
    mac: [u8; 6],
}

impl Handshakes {
    fn new(cluster: &Cluster) -> Self {
        const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
        cluster.world.node.ip(&format!("link set {UPLINK} address 02:00:00:00:00:01"));
        // SAFETY: the name is a string.
        let device = cluster.world.node.run(|| unsafe { libc::if_nametoindex(c"uplink".as_ptr()) });
        let path = cluster.pins.0.join(format!("v1/links/lb_ingress_{device}"));
        Self { program: bpf::program_at(&path), device, mac: MAC }
    }

    /// Sends a segment; returns the ends of the one that comes out, or `None` if it is dropped.
    fn send(&self, source: SocketAddr, destination: SocketAddr, flags: u8) -> Option<[SocketAddr; 2]> {
        const DROP: i32 = 2;
        let ports = Ports { source: source.port(), destination: destination.port() };
        let addresses = Addresses::new(source.ip(), destination.ip()).unwrap();
        let segment = Payload::Tcp(Segment { flags, ..Segment::new(ports) });
        let frame = Frame::new(self.mac, [2; 6], Ip::new(addresses, segment)).bytes();
        let (verdict, out) = bpf::test_run(&self.program, &frame, self.device);
        if verdict == DROP {
            return None;
        }
        let ip = Reading::of(&out).ip.unwrap();
        let Ports { source, destination } = ip.ports().unwrap();
        Some([SocketAddr::new(ip.addresses.source(), source), SocketAddr::new(ip.addresses.destination(), destination)])
    }

    /// The source that a new connection gets, which is established then; `None` if it gets none.
    fn connect(&self, client: SocketAddr, vip: SocketAddr) -> Option<SocketAddr> {
        let [source, backend] = self.send(client, vip, Segment::SYN)?;
        self.send(backend, source, Segment::SYN | Segment::ACK)?;
        self.send(client, vip, Segment::ACK)?;
        Some(source)
    }
}

/// How many of so many newcomers find no port out of `pool`, if a pick that is taken is followed by `next`.
fn by_rule(pool: u32, newcomers: u32, mut roll: impl FnMut() -> u32, next: impl Fn(u32) -> u32) -> u32 {
    const ATTEMPTS: u32 = 32;
    let mut taken = vec![false; pool as usize];
    let failed = (0..newcomers).filter(|_| {
        let mut pick = roll() % pool;
        for _ in 0..ATTEMPTS {
            if !std::mem::replace(&mut taken[pick as usize], true) {
                return false;
            }
            pick = next(pick);
        }
        true
    });
    failed.count() as u32
}

/// Seed of everything that is random here; the programs throw dice of their own.
const SEED: u32 = 1;

/// Random numbers, the same ones for the same seed (Marsaglia, *Xorshift RNGs*, 2003).
fn random(seed: u32) -> impl FnMut() -> u32 {
    let mut x = seed;
    move || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x
    }
}

/// Nobody leaves. The two rules are those that take the neighbour of a port that is taken: the next number, after the
/// last one the first; and the next number scaled into the pool as if it were any number of 16 bits.
#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn ports_of_translated_sources_last_for_longer_than_by_rules_of_neighbours() {
    let _turn = turn();
    let pool = sized(28_970);
    let first_local = 1_024 + pool;
    let world = World::new();
    world.node.sysctl("ipv4/ip_local_port_range", &format!("{first_local} 65535"));
    let mut cluster = Cluster::with_capacities(world, &[UPLINK], |c| c.flows = 131_072);
    cluster.serve_at(VIP, &["10.244.0.2:8080"]);
    let handshakes = Handshakes::new(&cluster);
    let vip = addr(VIP);
    let mut sources = BTreeMap::new();
    let mut failed = 0;
    let mut tried = 0;
    cluster.world.node.run(|| {
        for percent in [50, 75, 90, 100] {
            let newcomers = pool * percent / 100;
            for number in tried..newcomers {
                let client = Ipv4Addr::new(192, 0, 2, 2 + (number / 10_000) as u8);
                let client = SocketAddr::new(client.into(), 20_000 + (number % 10_000) as u16);
                match handshakes.connect(client, vip) {
                    Some(source) => assert_eq!(sources.insert(source, client), None, "one source for two"),
                    None => failed += 1,
                }
            }
            tried = newcomers;
            let wrapped = by_rule(pool, newcomers, random(SEED), |pick| (pick + 1) % pool);
            let scaled = by_rule(pool, newcomers, random(SEED), |pick| (pool + pick).div_ceil(2).min(pool - 1));
            println!(
                "{}: {percent} % of {pool} ports: of {newcomers} newcomers {failed} without a port; by the next port \
                 {wrapped}, by the next one scaled {scaled}, seed {SEED}",
                kernel()
            );
            assert!(failed <= wrapped && failed <= scaled, "{percent} %");
            assert!(percent > 75 || failed <= 1 + newcomers / 10_000, "{percent} %: {failed}");
        }
    });
    assert_eq!(cluster.stopped(Reason::PacketNoSourcePort), u64::from(failed));
    // Those who have one keep it.
    let lost = cluster.world.node.run(|| {
        let is_lost = |(source, client): &(&SocketAddr, &SocketAddr)| {
            handshakes.send(**client, vip, Segment::ACK).is_none_or(|[found, _]| found != **source)
        };
        sources.iter().filter(is_lost).count()
    });
    assert_eq!(lost, 0, "of {}", sources.len());
}

/// Connections of the client to [`VIP`], by packets.
struct Established {
    ask: mpsc::Sender<()>,
    lost: mpsc::Receiver<usize>,
}

impl Established {
    fn open(world: &World, count: u32) -> Self {
        let ((ask, asked), (says, lost)) = (mpsc::channel(), mpsc::channel());
        world.client.spawn(move || {
            own_files();
            let mut held: Vec<_> = (0..count).map(|_| Held::open().unwrap()).collect();
            says.send(0).unwrap();
            while asked.recv().is_ok() {
                says.send(held.iter_mut().map(|held| usize::from(!held.is_answered())).sum()).unwrap();
            }
        });
        lost.recv().unwrap();
        Self { ask, lost }
    }

    /// How many of them their backends do not answer any more.
    fn lost(&mut self) -> usize {
        self.ask.send(()).unwrap();
        self.lost.recv().unwrap()
    }
}

/// A connection, and the backend that it was opened to.
struct Held {
    stream: TcpStream,
    backend: String,
}

impl Held {
    fn open() -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&addr(VIP), PATIENCE)?;
        let backend = ask_on(&mut stream)?;
        Ok(Self { stream, backend })
    }

    fn is_answered(&mut self) -> bool {
        ask_on(&mut self.stream).is_ok_and(|name| name == self.backend)
    }
}

/// Backends of a pod.
fn backends_of(pod: u8) -> [SocketAddr; 5] {
    [8_100, 8_101, 8_102, 8_103, 8_104].map(|port| SocketAddr::new(Ipv4Addr::new(10, 244, pod, 2).into(), port))
}

/// Serves at all backends of a pod, from this many threads: each has a part of the connections.
fn serve(world: &World, pod: u8, threads: usize) {
    for _ in 0..threads {
        let (listens, ready) = mpsc::channel();
        world.pods[usize::from(pod)].spawn(move || {
            own_files();
            let listeners = backends_of(pod).map(listen);
            listens.send(()).unwrap();
            answer_all(listeners.into());
        });
        ready.recv().unwrap();
    }
}

/// Listens where another thread may listen as well.
fn listen(at: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(4_096).unwrap();
    socket.into()
}

/// A service at [`VIP`] beside others, with a source range as they have.
fn beside(mut others: State) -> State {
    const ID: u32 = 1_000;
    let (set, vip, backend) = (SetId::new(ID).unwrap(), addr(VIP), backends_of(0)[0]);
    let (vip, id) = (FrontendAddr::new(vip.ip(), vip.port(), Protocol::Tcp), BackendId::new(ID).unwrap());
    let backend = BackendAddr::new(backend.ip(), backend.port(), Protocol::Tcp);
    let guard = services(1, 1, Protocol::Tcp).frontends.into_values().next().unwrap().guard;
    others.node = World::facts();
    others.backends.insert(id, Backend { addr: backend, local: true });
    others.sets.insert(set, BackendSet::new(Lookup::Random, [id]).into());
    others.frontends.insert(vip, Frontend { guard, ..Frontend::new(FrontendId::new(ID).unwrap(), Target::Set(set)) });
    others
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn full_maps_cost_no_established_flow_and_serve_nothing_in_part() {
    let _turn = turn();
    let established = sized(10_000);
    many_files();
    for case in &CASES {
        let mut cluster = Cluster::with_capacities(World::new(), &[UPLINK], |capacities| {
            (case.limit)(capacities);
            capacities.flows = 4 * established;
        });
        cluster.apply(beside(State::default()));
        serve(&cluster.world, 0, 2);
        let mut flows = Established::open(&cluster.world, established);
        // UDP alone fills `MEMBERS`.
        let own = usize::from(case.protocol == Protocol::Tcp);
        for percent in [100, 101, 200] {
            let excess = MOST * percent / 100 - MOST;
            let desired = beside(services(MOST + excess - own, 1, case.protocol));
            case.overload(&mut cluster.datapath, &desired, excess);
            let lost = flows.lost();
            println!(
                "{}: {} at {percent} % of {MOST}: {excess} services refused, 0 in part; {lost} of {established} \
                 established flows lost",
                kernel(),
                case.map
            );
            assert_eq!(lost, 0, "of {established}");
        }
    }
}

/// Fills a map with entries of nobody.
fn fill<K: Pod, V: Pod>(pins: &PinDir, map: &str, count: u64) {
    let map = Map::open(&pins.0.join("v1/maps").join(map));
    let value = V::from_bytes(&vec![0; size_of::<V>()]).unwrap();
    for number in 0..count {
        let mut key = vec![0; size_of::<K>()];
        key[..8].copy_from_slice(&number.to_be_bytes());
        map.put(&K::from_bytes(&key).unwrap(), &value);
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn maps_that_forget_the_least_recently_used_cost_no_established_flow() {
    type Fill = fn(&PinDir, &str, u64);
    const MAPS: [(&str, Fill); 5] = [
        ("CT", fill::<abi::CtKey, abi::CtValue>),
        ("AFFINITY", fill::<abi::AffinityKey, abi::AffinityValue>),
        ("SOCK_PEERS", fill::<abi::SockKey, abi::SockPeer>),
        ("SOCK_FLOWS", fill::<abi::SockKey, abi::SockFlow>),
        ("FRAGMENTS", fill::<abi::FragmentKey, abi::FragmentValue>),
    ];
    let _turn = turn();
    let established = sized(10_000);
    many_files();
    let mut cluster =
        Cluster::with_capacities(World::new(), &[UPLINK], |capacities| capacities.flows = 4 * established);
    cluster.apply(beside(State::default()));
    serve(&cluster.world, 0, 2);
    let mut flows = Established::open(&cluster.world, established);
    for (map, fill) in MAPS {
        let capacity = usage(&cluster.datapath, map).capacity;
        for percent in [100, 101, 200] {
            let entries = capacity * percent / 100;
            fill(&cluster.pins, map, entries);
            let lost = flows.lost();
            println!(
                "{}: {entries} entries of nobody, {percent} %, into {map}: {lost} of {established} established flows \
                 lost",
                kernel()
            );
            assert_eq!(lost, 0, "{map}: of {established}");
        }
    }
}

/// Those that find no room in the table of established flows count as new.
#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn flows_beyond_the_table_of_established_ones_cost_none_in_it() {
    let _turn = turn();
    let room = sized(10_000);
    many_files();
    // A flow has two entries.
    let mut cluster = Cluster::with_capacities(World::new(), &[UPLINK], |capacities| capacities.flows = 2 * room);
    cluster.apply(beside(State::default()));
    serve(&cluster.world, 0, 2);
    let mut flows = Established::open(&cluster.world, room);
    let entries = Map::open(&cluster.pins.0.join("v1/maps/CT_LIVE")).keys::<abi::CtKey>().len();
    assert_eq!(entries, 2 * room as usize, "the table is full");
    let mut beyond = Vec::new();
    for (percent, more) in [(101, room / 100), (150, room * 49 / 100), (200, room / 2)] {
        beyond.push(Established::open(&cluster.world, more));
        let lost = flows.lost();
        println!("{}: CT_LIVE at {percent} % of {room} flows: {lost} of them lost", kernel());
        assert_eq!(lost, 0, "of {room}");
        // Beyond that, they evict each other.
        if percent <= 150 {
            let lost: usize = beyond.iter_mut().map(Established::lost).sum();
            assert_eq!(lost, 0, "of those beyond");
        }
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_flood_of_syns_costs_no_established_flow() {
    let _turn = turn();
    let (established, syns) = (sized(10_000), sized(200_000));
    many_files();
    // Both tables hold half as many flows as entries.
    let room = sized(81_920);
    let mut cluster = Cluster::with_capacities(World::new(), &[UPLINK], |capacities| capacities.flows = room);
    // One backend would have too few ports.
    let backends = backends_of(0).map(|backend| backend.to_string());
    cluster.serve_at(VIP, &backends.each_ref().map(String::as_str));
    serve(&cluster.world, 0, 2);
    let mut flows = Established::open(&cluster.world, established);
    let started = Instant::now();
    cluster.world.client.run(|| flood(Ipv4Addr::new(10, 96, 0, 1), syns));
    let rate = f64::from(syns) / started.elapsed().as_secs_f64();
    let lost = flows.lost();
    println!(
        "{}: {syns} SYNs of as many ends, {rate:.0} per second, at {room} entries: {lost} of {established} established \
         flows lost",
        kernel()
    );
    assert_eq!(lost, 0, "of {established}");
    let new = Map::open(&cluster.pins.0.join("v1/maps/CT")).keys::<abi::CtKey>().len();
    assert!(new > room as usize / 2 && new <= room as usize, "{new} of {room}: the flood has filled the table");
}

/// Sends SYNs to port 80 of `vip` from as many ends.
fn flood(vip: Ipv4Addr, count: u32) {
    // SAFETY: the call makes a descriptor.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it was just made.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(vip.octets()) },
        sin_zero: [0; 8],
    };
    for number in 0..count {
        let [_, port, high, low] = number.to_be_bytes();
        let ports = Ports { source: 1_024 + u16::from(port), destination: 80 };
        let addresses = Addresses::V4 { source: [198, 18, high, low].into(), destination: vip };
        // The checksums are right: the backend answers.
        let packet = Ip::new(addresses, Payload::Tcp(Segment { flags: Segment::SYN, ..Segment::new(ports) })).bytes();
        // SAFETY: packet and address outlive the call and are as long as is said.
        let sent = unsafe {
            let addr = (&raw const to).cast();
            libc::sendto(fd.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, addr, size_of_val(&to) as u32)
        };
        assert_eq!(sent, packet.len() as isize, "{}", io::Error::last_os_error());
    }
}

/// New connections for each change.
const FRESH: u32 = 12;
/// Most slots of a Maglev table, per cent, that move beyond those that have to, on average.
const MOST_MOVED: f64 = 1.0;

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn churn_of_backends_resets_no_connection_and_moves_few_slots() {
    let _turn = turn();
    let (changes, live) = (sized(10_000), sized(20_000));
    many_files();
    // Flows that are closed keep their ports for a minute, and slots that are not in use any more are kept for a second.
    let mut cluster = Cluster::with_capacities(World::new(), &[UPLINK], |capacities| {
        capacities.flows = 524_288;
        capacities.slots = 2_097_152;
    });
    for pod in 0..2 {
        serve(&cluster.world, pod, 1);
    }
    for host in CLIENTS.into_iter().flatten() {
        cluster.world.client.ip(&format!("addr add 192.0.2.{host}/24 dev eth0"));
    }
    let Cluster { datapath, world, .. } = &mut cluster;
    let mut churn = Churn::new(datapath);
    let ((turns, turn), (ready, opened)) = (mpsc::sync_channel(1), mpsc::channel());
    thread::scope(|scope| {
        let users: Vec<_> = CLIENTS
            .map(|hosts| {
                let (world, ready, turns) = (&*world, ready.clone(), turns.clone());
                scope.spawn(move || {
                    world.client.run(|| {
                        own_files();
                        use_connections(hosts, live / CLIENTS.len() as u32, &ready, &turns)
                    })
                })
            })
            .into();
        drop(turns);
        users.iter().for_each(|_| opened.recv().unwrap());
        let started = Instant::now();
        let done: u32 = (0..changes).zip(&turn).map(|_| churn.change(datapath)).sum();
        let seconds = started.elapsed().as_secs_f64();
        drop(turn);
        let used: Vec<_> = users.into_iter().map(|user| user.join().unwrap()).collect();
        let sum = |what: fn(&Used) -> u32| used.iter().map(what).sum::<u32>();
        let (fresh, failed, broken) = (sum(|used| used.fresh), sum(|used| used.failed), sum(|used| used.broken));
        let per_second = |count: u32| f64::from(count) / seconds;
        println!(
            "{}, seed {SEED}: {done} changes of backends in {seconds:.1} s, {:.0} per second, {live} live and {:.0} new \
             connections per second: {broken} live ones broken, {failed} of {fresh} new ones failed; Maglev moved {:.2} % \
             of slots beyond those that have to",
            kernel(),
            per_second(done),
            per_second(fresh),
            churn.moved()
        );
        assert_eq!((done, broken, failed), (changes, 0, 0));
        assert!(churn.moved() <= MOST_MOVED, "{} %", churn.moved());
    });
}

/// Last bytes of the addresses that new connections of each user come from: one address has too few ports for a minute.
const CLIENTS: [Range<u8>; 2] = [10..14, 14..18];

/// Opens `live` connections, says that they are `ready`, and for each of the `turns` opens new ones and uses some that
/// are open, until nobody takes a turn any more.
fn use_connections(hosts: Range<u8>, live: u32, ready: &mpsc::Sender<()>, turns: &mpsc::SyncSender<()>) -> Used {
    const USED: usize = 4;
    let mut held: Vec<_> = (0..live).map(|_| Held::open().unwrap()).collect();
    ready.send(()).unwrap();
    let (mut used, mut next) = (Used::default(), 0);
    while turns.send(()).is_ok() {
        for _ in 0..FRESH {
            let host = hosts.start + (used.fresh % hosts.len() as u32) as u8;
            let asked = connect_from(Ipv4Addr::new(192, 0, 2, host)).and_then(|mut stream| ask_on(&mut stream));
            used.fresh += 1;
            used.failed += u32::from(asked.is_err());
        }
        for _ in 0..USED {
            next = (next + 1) % held.len();
            used.broken += u32::from(!held[next].is_answered());
        }
    }
    used.broken += held.iter_mut().map(|held| u32::from(!held.is_answered())).sum::<u32>();
    used
}

/// What users of connections have seen.
#[derive(Default)]
struct Used {
    /// New connections.
    fresh: u32,
    /// Those that failed.
    failed: u32,
    /// How often one that was open before had no answer, or that of another backend.
    broken: u32,
}

fn connect_from(source: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source.into(), 0).into())?;
    socket.connect_timeout(&addr(VIP).into(), PATIENCE)?;
    Ok(socket.into())
}

/// Answers every question on every connection with the address of the listener, from one thread.
fn answer_all(listeners: Vec<TcpListener>) {
    // SAFETY: the call makes a descriptor.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    assert!(epoll >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it was just made.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    let watch = |fd: i32| {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: the event outlives the call.
        let done = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    };
    let listeners: HashMap<i32, TcpListener> = listeners.into_iter().map(|l| (l.as_raw_fd(), l)).collect();
    listeners.keys().copied().for_each(watch);
    let mut streams = HashMap::new();
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; 64];
    loop {
        // SAFETY: there is room for as many events.
        let count = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, -1) };
        for event in &events[..usize::try_from(count).unwrap_or(0)] {
            let fd = event.u64 as i32;
            if let Some(listener) = listeners.get(&fd) {
                let Ok((stream, _)) = listener.accept() else { continue };
                watch(stream.as_raw_fd());
                streams.insert(stream.as_raw_fd(), (stream, listener.local_addr().unwrap().to_string()));
            } else if let Some((stream, name)) = streams.get_mut(&fd)
                && !matches!(stream.read(&mut [0; 8]), Ok(1..) if stream.write_all(name.as_bytes()).is_ok())
            {
                streams.remove(&fd);
            }
        }
    }
}

/// A service on Maglev whose backends leave one at a time, and come back.
struct Churn {
    reconciler: Reconciler,
    roll: Box<dyn FnMut() -> u32>,
    /// The backend that is out.
    out: Option<SocketAddr>,
    /// Backend of each slot.
    slots: Vec<BackendAddr>,
    /// Slots that moved and did not have to, and all slots, of every change.
    beyond: u64,
    all: u64,
}

impl Churn {
    fn new(datapath: &mut EbpfDatapath) -> Self {
        let mut reconciler = Reconciler::new(Model::new(Settings::default(), datapath.capabilities()));
        reconciler.handle_observed(datapath.observe().unwrap());
        let vip = addr(VIP);
        let port = ServicePort { name: "web".into(), protocol: Protocol::Tcp, port: vip.port(), node_port: None };
        let service = Service {
            cluster_ips: vec![vip.ip()],
            ports: vec![port],
            algorithm: Some(Algorithm::Maglev),
            table_size: TableSize::new(4_093).ok(),
            ..Service::new(Self::name())
        };
        reconciler.handle_change(Change::SetNode(World::facts())).unwrap();
        reconciler.handle_change(Change::UpsertService(service)).unwrap();
        let mut churn =
            Self { reconciler, roll: Box::new(random(SEED)), out: None, slots: Vec::new(), beyond: 0, all: 0 };
        churn.apply(datapath);
        churn
    }

    fn name() -> ServiceName {
        ServiceName::new("test", "churn")
    }

    fn backends() -> Vec<SocketAddr> {
        [backends_of(0), backends_of(1)].concat()
    }

    /// Lets a backend leave, or the one that is out come back. Returns that it is one change.
    fn change(&mut self, datapath: &mut EbpfDatapath) -> u32 {
        let backends = Self::backends();
        self.out = match self.out {
            Some(_) => None,
            None => Some(backends[(self.roll)() as usize % backends.len()]),
        };
        self.apply(datapath);
        1
    }

    fn apply(&mut self, datapath: &mut EbpfDatapath) {
        // A slice for each backend, since their ports differ.
        for (number, backend) in Self::backends().into_iter().enumerate() {
            let is_in = self.out != Some(backend);
            let slice = EndpointSlice {
                name: SliceName::new("test", &format!("churn-{number}")),
                service: Self::name(),
                ports: vec![SlicePort { name: "web".into(), protocol: Protocol::Tcp, port: backend.port() }],
                endpoints: is_in.then(|| Endpoint::new(backend.ip())).into_iter().collect(),
            };
            self.reconciler.handle_change(Change::ReplaceEndpoints(slice)).unwrap();
        }
        while let Some(plan) = self.reconciler.poll_plan(Moment::default()).unwrap() {
            let outcome = datapath.apply(&plan);
            assert!(outcome.is_ok(), "{outcome:?}");
            self.reconciler.handle_applied(plan.id, outcome, Moment::default());
        }
        let before = std::mem::replace(&mut self.slots, slots(&datapath.observe().unwrap()));
        self.beyond += beyond(&before, &self.slots);
        self.all += before.len() as u64;
    }

    /// Share of slots that moved and did not have to, in per cent.
    fn moved(&self) -> f64 {
        100.0 * self.beyond as f64 / self.all as f64
    }
}

/// The backend of each slot.
fn slots(state: &State) -> Vec<BackendAddr> {
    let vip = addr(VIP);
    let frontend = &state.frontends[&FrontendAddr::new(vip.ip(), vip.port(), Protocol::Tcp)];
    let Target::Set(set) = frontend.target else { panic!("{frontend:?}") };
    state.sets[&set].slots.iter().map(|id| state.backends[id].addr).collect()
}

/// How many slots have another backend, less those that have to: what a backend has less than before.
fn beyond(before: &[BackendAddr], after: &[BackendAddr]) -> u64 {
    let count = |slots: &[BackendAddr]| {
        let mut counts = HashMap::new();
        slots.iter().for_each(|backend| *counts.entry(*backend).or_insert(0_u64) += 1);
        counts
    };
    let (old, new) = (count(before), count(after));
    let unavoidable: u64 = old.iter().map(|(b, n)| n.saturating_sub(new.get(b).copied().unwrap_or(0))).sum();
    before.iter().zip(after).filter(|(a, b)| a != b).count() as u64 - unavoidable
}
