//! Established connections go on while maps get other sizes.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lb_core::{
    addr::Protocol,
    datapath::Datapath,
    plan::{Labels, diff},
    state::{Lookup, State},
};
use lb_datapath_ebpf::{Capacities, EbpfConfig, EbpfDatapath, SocketBalancing};

use crate::common::{
    Cgroup, Namespace, PATIENCE, POD_DEVICES, PinDir, UPLINK, World, ask_on, ask_udp, config, serve, state, turn,
};

const VIP: &str = "10.96.0.1:80";
const PODS: [&str; 2] = ["10.244.0.2:8080", "10.244.1.2:8080"];

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Clients that ask without a pause, each by its own kind of flow.
struct Traffic {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start() -> Self {
        Self { stop: Arc::default(), asked: Arc::default(), threads: Vec::new() }
    }

    /// `ask` asks once on each of its flows and says what went wrong.
    fn add(&mut self, space: &Namespace, mut ask: impl FnMut() -> Vec<String> + Send + 'static, flows: u64) {
        let (stop, asked) = (Arc::clone(&self.stop), Arc::clone(&self.asked));
        let (send, receive) = std::sync::mpsc::channel();
        space.spawn(move || {
            let mut failed = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                failed.extend(ask());
                asked.fetch_add(flows, Ordering::Relaxed);
                // The datapath needs a processor, too.
                thread::sleep(Duration::from_millis(1));
            }
            let _ = send.send(failed);
        });
        self.threads.push(thread::spawn(move || receive.recv().unwrap()));
    }

    /// Waits until every flow was asked some times more.
    fn goes_on(&self) {
        let (before, deadline) = (self.asked.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(30));
        while self.asked.load(Ordering::Relaxed) < before + 1_000 {
            assert!(Instant::now() < deadline, "nothing is answered any more");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How often was asked, and what went wrong.
    fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (self.asked.load(Ordering::Relaxed), failed)
    }
}

fn streams(count: usize) -> Vec<TcpStream> {
    (0..count)
        .map(|_| {
            let mut stream = TcpStream::connect_timeout(&addr(VIP), PATIENCE).unwrap();
            ask_on(&mut stream).unwrap();
            stream
        })
        .collect()
}

fn ask_all(streams: &mut [TcpStream]) -> Vec<String> {
    let told = |stream: &mut TcpStream| {
        let asked = ask_on(stream);
        let peer = stream.peer_addr();
        match (asked, peer) {
            (Ok(answer), Ok(peer)) if !answer.is_empty() && peer == addr(VIP) => None,
            other => Some(format!("TCP: {other:?}")),
        }
    };
    streams.iter_mut().filter_map(told).collect()
}

/// Each socket keeps its backend, and hears the virtual address.
fn ask_datagrams(sockets: &[(UdpSocket, String)]) -> Vec<String> {
    let told = |(socket, backend): &(UdpSocket, String)| match ask_udp(socket, addr(VIP)) {
        Ok((answer, from)) if answer == *backend && from == addr(VIP) => None,
        other => Some(format!("UDP to {backend}: {other:?}")),
    };
    sockets.iter().filter_map(told).collect()
}

fn datagrams(count: usize) -> Vec<(UdpSocket, String)> {
    let socket = |_| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let (backend, _) = ask_udp(&socket, addr(VIP)).unwrap();
        (socket, backend)
    };
    (0..count).map(socket).collect()
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn established_flows_go_on_while_every_map_grows_and_shrinks() {
    const EACH: usize = 64;
    let _turn = turn();
    let (world, pins, cgroup) = (World::new(), PinDir::new(), Cgroup::joined());
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let job = world.pods[i].run(|| serve(addr(PODS[i]), name));
        world.pods[i].spawn(job);
    }
    let mut config: EbpfConfig = config(&pins, &cgroup).with_socket_balancing(SocketBalancing::Host);
    config.pod_devices = POD_DEVICES.map(String::from).to_vec();
    config.uplink_devices = vec![UPLINK.into()];
    let small = config.capacities;
    let open = |capacities: Capacities| {
        let config = config.clone().with_capacities(capacities);
        world.node.run(|| EbpfDatapath::open(config)).unwrap()
    };
    let mut datapath = open(small);
    let backends = PODS.map(addr);
    let services = [Protocol::Tcp, Protocol::Udp].map(|protocol| (addr(VIP), protocol, &backends[..]));
    let desired = State { node: World::facts(), ..state(&services, Lookup::Random, None) };
    datapath.apply(&diff(&State::default(), &desired, &Labels::default())).unwrap();

    let mut traffic = Traffic::start();
    // By packets from outside, and by the sockets of the node.
    for space in [&world.client, &world.node] {
        let mut tcp = space.run(|| streams(EACH));
        let udp = space.run(|| datagrams(EACH));
        traffic.add(space, move || ask_all(&mut tcp), EACH as u64);
        traffic.add(space, move || ask_datagrams(&udp), EACH as u64);
    }
    let large = Capacities {
        frontends: 2 * small.frontends,
        backends: 2 * small.backends,
        sets: 2 * small.sets,
        members: 2 * small.members,
        slots: 2 * small.slots,
        sources: 2 * small.sources,
        affinity: 2 * small.affinity,
        sockets: 2 * small.sockets,
        flows: 2 * small.flows,
        fragments: 2 * small.fragments,
    };
    let mut changes = 0;
    for capacities in [large, small, large, small] {
        traffic.goes_on();
        drop(datapath);
        datapath = open(capacities);
        assert_eq!(datapath.kept_sizes(), []);
        let usage = datapath.map_usage().unwrap();
        let capacity = |name: &str| usage.iter().find(|map| map.name == name).unwrap().capacity;
        assert_eq!((capacity("CT"), capacity("SLOTS")), (capacities.flows.into(), capacities.slots.into()));
        assert_eq!(datapath.observe().unwrap(), desired);
        changes += 1;
    }
    traffic.goes_on();
    let (asked, failed) = traffic.stop();
    assert_eq!(failed, [""; 0], "of {asked}");
    println!("0 lost of {asked} requests on {} flows, {changes} changes of every size", 4 * EACH);
}
