//! A client, a node and two backends, each in a network namespace that only this process holds.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    panic,
    process::Command,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

/// How long something may take that should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long silence is listened to.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);

/// A network namespace; it ends with the last descriptor, socket and process in it.
pub(crate) struct Netns(File);

impl Netns {
    pub(crate) fn create() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            // IPv6 addresses answer at once.
            std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    /// Runs `f` inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            inside.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
        })
    }

    /// Runs a command inside and returns what it printed.
    pub(crate) fn sh(&self, command: &str) -> String {
        self.run(|| {
            let output = Command::new("sh").arg("-ec").arg(command).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "`{command}`: {} {errors}", output.status);
            String::from_utf8(output.stdout).unwrap()
        })
    }

    pub(crate) fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// The network: `client` 10.1.0.2 – `node` – `backends` 10.2.1.2 and 10.2.2.2, the same with fd01:: and fd02:n::.
pub(crate) struct Net {
    pub(crate) client: Netns,
    pub(crate) node: Netns,
    pub(crate) backends: [Netns; 2],
}

/// Port of every server.
pub(crate) const PORT: u16 = 8080;

impl Net {
    pub(crate) fn new() -> Self {
        let net = Self { client: Netns::create(), node: Netns::create(), backends: [Netns::create(), Netns::create()] };
        net.node.sh(
            "ip link set lo up
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0",
        );
        net.cable(&net.client, "vc", "10.1.0", "fd01");
        for (n, backend) in (1..).zip(&net.backends) {
            net.cable(backend, &format!("v{n}"), &format!("10.2.{n}"), &format!("fd02:{n}"));
            serve(backend, n);
        }
        net
    }

    fn cable(&self, far: &Netns, near: &str, v4: &str, v6: &str) {
        self.node.sh(&format!(
            "ip link add {near} type veth peer name eth0 netns {}
             ip link set {near} up
             ip addr add {v4}.1/24 dev {near}
             ip addr add {v6}::1/64 dev {near} nodad",
            far.path()
        ));
        far.sh(&format!(
            "ip link set lo up
             ip link set eth0 up
             ip addr add {v4}.2/24 dev eth0
             ip addr add {v6}::2/64 dev eth0 nodad
             ip route add default via {v4}.1
             ip route add default via {v6}::1"
        ));
    }
}

/// Starts a server that answers `NAME SOURCE`, over TCP and UDP.
pub(crate) fn serve(netns: &Netns, name: usize) {
    serve_on(netns, name, PORT);
}

/// The same on another port.
pub(crate) fn serve_on(netns: &Netns, name: usize, port: u16) {
    netns.run(move || {
        let tcp = TcpListener::bind(("::", port)).unwrap();
        let udp = UdpSocket::bind(("::", port)).unwrap();
        let answer = move |peer: SocketAddr| format!("b{name} {}", peer.ip().to_canonical());
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap();
                thread::spawn(move || {
                    let _ = stream.write_all(answer(peer).as_bytes());
                    let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                });
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(answer(peer).as_bytes(), peer);
            }
        });
    });
}

/// One TCP connection: what the server said.
pub(crate) fn tcp(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    say(&mut stream)
}

/// What the server of a fresh connection says.
pub(crate) fn say(stream: &mut TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// One UDP question from a new port.
pub(crate) fn udp(to: SocketAddr) -> io::Result<String> {
    let socket = udp_socket(to)?;
    ask(&socket, PATIENCE)
}

/// A UDP socket that is connected.
pub(crate) fn udp_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u8; 16].into() };
    udp_socket_from(SocketAddr::new(any, 0), to)
}

/// The same from a certain address.
pub(crate) fn udp_socket_from(from: SocketAddr, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(from)?;
    socket.connect(to)?;
    Ok(socket)
}

/// One UDP question.
///
/// A packet that the node's own output hook refuses fails with EPERM when it is sent; what refused it says comes next.
pub(crate) fn ask(socket: &UdpSocket, patience: Duration) -> io::Result<String> {
    socket.set_read_timeout(Some(patience))?;
    match socket.send(b"?") {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
