//! A node, two pods and a client, as network namespaces; and what states and servers the tests need.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use lb_core::{
    addr::{BackendAddr, FrontendAddr, Protocol},
    affinity::Affinity,
    id::{BackendId, FrontendId, SetId},
    node::NodeFacts,
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
};
use lb_datapath_ebpf::{Capacities, EbpfConfig};

use crate::bpf;

/// Tests take turns: a cgroup and its hooks are the process's.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: OnceLock<Mutex<()>> = OnceLock::new();
    TURN.get_or_init(Mutex::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A name that no other test of any process has.
pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("lbe{what}{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A directory of the cgroup2 hierarchy.
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
    parent: Option<PathBuf>,
}

impl Cgroup {
    /// A new one without tasks.
    pub(crate) fn empty() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is mounted");
        let path = Path::new(mount.split(' ').nth(4).unwrap()).join(unique("cg"));
        fs::create_dir(&path).unwrap();
        Self { path, parent: None }
    }

    /// A new one with this process in it.
    pub(crate) fn joined() -> Self {
        let mut cgroup = Self::empty();
        cgroup.parent = cgroup.path.parent().map(Path::to_path_buf);
        cgroup.join();
        cgroup
    }

    /// Puts this process in.
    pub(crate) fn join(&self) {
        fs::write(self.path.join("cgroup.procs"), "0").unwrap();
    }

    /// Takes this process out.
    pub(crate) fn leave(&self) {
        if let Some(parent) = &self.parent {
            fs::write(parent.join("cgroup.procs"), "0").unwrap();
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Some(parent) = &self.parent {
            let _ = fs::write(parent.join("cgroup.procs"), "0");
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// A pin directory that is removed at the end.
pub(crate) struct PinDir(pub(crate) PathBuf);

impl PinDir {
    pub(crate) fn new() -> Self {
        let root = Path::new("/sys/fs/bpf");
        if !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" /sys/fs/bpf ") {
            run("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"]);
        }
        Self(root.join(unique("pin")))
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        let _ = lb_datapath_ebpf::EbpfDatapath::remove(&self.0);
    }
}

pub(crate) fn config(pins: &PinDir, cgroup: &Cgroup) -> EbpfConfig {
    let capacities = Capacities { slots: 65_536, sockets: 4_096, affinity: 4_096, flows: 8_192, ..Default::default() };
    // The whole suite can be run as on a kernel without TCX.
    let clsact = std::env::var_os("LB_FORCE_CLSACT").is_some();
    EbpfConfig::new(&cgroup.path).with_pin_dir(&pins.0).with_capacities(capacities).with_force_clsact(clsact)
}

/// A network namespace, removed at the end.
pub(crate) struct Namespace(String);

impl Namespace {
    pub(crate) fn new(what: &str) -> Self {
        let name = unique(what);
        run("ip", &["netns", "add", &name]);
        run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        Self(name)
    }

    pub(crate) fn ip(&self, command: &str) {
        let args: Vec<_> = ["-n", &self.0].into_iter().chain(command.split(' ')).collect();
        run("ip", &args);
    }

    /// What `tc` says.
    pub(crate) fn tc(&self, command: &str) -> String {
        // `tc -n` would hide the BPF file system.
        let output = self.run(|| Command::new("tc").args(command.split(' ')).output().unwrap());
        assert!(output.status.success(), "tc {command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `job` on a thread inside.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    job()
                })
                .join()
                .unwrap()
        })
    }

    /// Starts `job` on a thread of its own inside.
    pub(crate) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let name = self.0.clone();
        let (entered, wait) = mpsc::channel();
        thread::spawn(move || {
            enter(&name);
            entered.send(()).unwrap();
            job();
        });
        wait.recv().unwrap();
    }

    fn enter(&self) {
        enter(&self.0);
    }

    pub(crate) fn sysctl(&self, path: &str, value: &str) {
        self.run(|| fs::write(Path::new("/proc/sys/net").join(path), value).unwrap());
    }

    /// Connects this namespace with `other` by a pair of devices that are up.
    pub(crate) fn join(&self, device: &str, other: &Self, peer: &str) {
        self.ip(&format!("link add {device} type veth peer name {peer} netns {}", other.0));
        self.ip(&format!("link set {device} up"));
        other.ip(&format!("link set {peer} up"));
    }
}

/// Detaches what is pinned at `path` in a namespace, as other tools do: a link, or the filter whose program it is.
pub(crate) fn detach(space: &Namespace, path: &Path) {
    let pinned = bpf::open(path);
    if bpf::is_link(&pinned) {
        return bpf::detach(&pinned);
    }
    let index = path.to_str().unwrap().rsplit('_').next().unwrap().parse().unwrap();
    let name = space.run(|| {
        let mut name = [0_u8; libc::IF_NAMESIZE];
        // SAFETY: there is room for the name of a device.
        assert!(!unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) }.is_null());
        std::ffi::CStr::from_bytes_until_nul(&name).unwrap().to_str().unwrap().to_owned()
    });
    space.tc(&format!("filter del dev {name} ingress pref {CLSACT_PRIORITY}"));
}

/// Priority of the filters of the datapath.
pub(crate) const CLSACT_PRIORITY: u32 = 0xf000;

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn enter(name: &str) {
    let file = File::open(Path::new("/run/netns").join(name)).unwrap();
    // SAFETY: the descriptor is one of a network namespace; only this thread changes.
    assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A node with two pods and an uplink to a client; both families.
pub(crate) struct World {
    pub(crate) node: Namespace,
    pub(crate) pods: [Namespace; 2],
    pub(crate) client: Namespace,
}

pub(crate) const POD_DEVICES: [&str; 2] = ["pod0", "pod1"];
pub(crate) const UPLINK: &str = "uplink";

impl World {
    pub(crate) fn new() -> Self {
        let node = Namespace::new("n");
        let (pods, client) = ([Namespace::new("p"), Namespace::new("q")], Namespace::new("c"));
        for (i, pod) in pods.iter().enumerate() {
            attach(&node, POD_DEVICES[i], pod, &format!("10.244.{i}"), &format!("fd00:244:{i}:"));
        }
        attach(&node, UPLINK, &client, "192.0.2", "2001:db8:0:");
        node.sysctl("ipv4/ip_forward", "1");
        node.sysctl("ipv6/conf/all/forwarding", "1");
        for device in ["all", POD_DEVICES[0], POD_DEVICES[1], UPLINK] {
            node.sysctl(&format!("ipv4/conf/{device}/rp_filter"), "1");
        }
        Self { node, pods, client }
    }

    pub(crate) fn facts() -> NodeFacts {
        NodeFacts {
            name: None,
            ips: vec![ip("192.0.2.1"), ip("2001:db8::1")],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()],
        }
    }
}

/// A namespace behind a device of the node: the node is `.1`, the other `.2`.
fn attach(node: &Namespace, device: &str, other: &Namespace, v4: &str, v6: &str) {
    node.join(device, other, "eth0");
    node.ip(&format!("addr add {v4}.1/24 dev {device}"));
    node.ip(&format!("addr add {v6}:1/64 dev {device} nodad"));
    other.ip(&format!("addr add {v4}.2/24 dev eth0"));
    other.ip(&format!("addr add {v6}:2/64 dev eth0 nodad"));
    other.ip(&format!("route add default via {v4}.1"));
    other.ip(&format!("-6 route add default via {v6}:1"));
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn backend(id: u32) -> BackendId {
    BackendId::new(id).unwrap()
}

/// A state with one frontend per entry: its address, and its backends.
pub(crate) fn state(
    services: &[(SocketAddr, Protocol, &[SocketAddr])],
    lookup: Lookup,
    affinity: Option<Affinity>,
) -> State {
    let mut state = State::default();
    let mut ids = BTreeMap::new();
    for (number, (vip, protocol, backends)) in (1_u32..).zip(services) {
        for addr in *backends {
            let next = ids.len() as u32 + 1;
            let id = *ids.entry((*addr, *protocol)).or_insert(next);
            let addr = BackendAddr::new(addr.ip(), addr.port(), *protocol);
            state.backends.insert(backend(id), Backend { addr, local: true });
        }
        let target = if backends.is_empty() {
            Target::Reject
        } else {
            let set = SetId::new(number).unwrap();
            let slots: Vec<_> = backends.iter().map(|addr| backend(ids[&(*addr, *protocol)])).collect();
            state.sets.insert(set, Arc::new(BackendSet::new(lookup, slots)));
            Target::Set(set)
        };
        let frontend = Frontend { affinity, ..Frontend::new(FrontendId::new(number).unwrap(), target) };
        state.frontends.insert(FrontendAddr::new(vip.ip(), vip.port(), *protocol), frontend);
    }
    state
}

/// Answers every TCP connection and every datagram to `addr` with `name` and the client's address. Ends with the
/// process.
pub(crate) fn serve(addr: SocketAddr, name: &'static str) -> impl FnOnce() + Send + 'static {
    let tcp = TcpListener::bind(addr);
    let udp = UdpSocket::bind(addr);
    move || {
        let (tcp, udp) = (tcp.unwrap(), udp.unwrap());
        thread::spawn(move || {
            let mut room = [0; 64];
            while let Ok((_, from)) = udp.recv_from(&mut room) {
                let _ = udp.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
            }
        });
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let from = stream.peer_addr().unwrap().ip();
                let mut room = [0; 64];
                while let Ok(1..) = stream.read(&mut room) {
                    let _ = stream.write_all(format!("{name} {from}").as_bytes());
                }
            });
        }
    }
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// What the first segment of a connection comes back with; the kernel would send a second one after a second.
pub(crate) fn first_answer(vip: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&vip, Duration::from_millis(900))
}

/// Asks over TCP: what the server says.
pub(crate) fn ask_tcp(vip: SocketAddr) -> io::Result<String> {
    ask_on(&mut TcpStream::connect_timeout(&vip, PATIENCE)?)
}

/// Asks once more on a connection.
pub(crate) fn ask_on(stream: &mut TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut room = [0; 64];
    let count = stream.read(&mut room)?;
    Ok(String::from_utf8_lossy(&room[..count]).into_owned())
}

/// Asks over UDP without connecting: what the server says, and from where.
pub(crate) fn ask_udp(socket: &UdpSocket, vip: SocketAddr) -> io::Result<(String, SocketAddr)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"?", vip)?;
    let mut room = [0; 64];
    let (count, from) = socket.recv_from(&mut room)?;
    Ok((String::from_utf8_lossy(&room[..count]).into_owned(), from))
}

/// Makes the device called `name` in this thread's namespace send every packet with its checksum.
pub(crate) fn no_offload(name: &str) {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    switch_off(name, ETHTOOL_STXCSUM);
}

/// Makes the device called `name` in this thread's namespace take and give every segment as a packet of its own.
pub(crate) fn no_segmentation(name: &str) {
    const ETHTOOL_STSO: u32 = 0x1f;
    const ETHTOOL_SGSO: u32 = 0x24;
    const ETHTOOL_SGRO: u32 = 0x2c;
    [ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO].into_iter().for_each(|what| switch_off(name, what));
}

fn switch_off(name: &str, what: u32) {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let mut value = [what, 0];
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..24].copy_from_slice(&(value.as_mut_ptr() as u64).to_ne_bytes());
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: the request is an `ifreq` with a name and the address of a value that outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, request.as_mut_ptr()) };
    assert_eq!(done, 0, "{name}: {}", io::Error::last_os_error());
}

/// A TCP connection from this port, which other sockets of this namespace may have as well.
pub(crate) fn connect_from(source: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    // SAFETY: the call makes a descriptor.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0);
    // SAFETY: it was just made.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let on = 1_i32;
    let name = |addr: SocketAddr| {
        let SocketAddr::V4(addr) = addr else { panic!("{addr}") };
        libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: addr.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
            sin_zero: [0; 8],
        }
    };
    let patience = libc::timeval { tv_sec: PATIENCE.as_secs() as i64, tv_usec: 0 };
    let check = |result: i32| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: options and addresses outlive the calls and are as long as is said.
    unsafe {
        let set = |name, value: *const libc::c_void, len: usize| {
            check(libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value, len as u32))
        };
        set(libc::SO_REUSEADDR, (&raw const on).cast(), size_of_val(&on))?;
        set(libc::SO_SNDTIMEO, (&raw const patience).cast(), size_of_val(&patience))?;
        let (from, to) = (name(source), name(to));
        check(libc::bind(fd.as_raw_fd(), (&raw const from).cast(), size_of_val(&from) as u32))?;
        check(libc::connect(fd.as_raw_fd(), (&raw const to).cast(), size_of_val(&to) as u32))?;
    }
    Ok(fd.into())
}
