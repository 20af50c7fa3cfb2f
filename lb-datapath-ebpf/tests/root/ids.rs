//! An id that an old flow has is nobody else's, also after a restart, which only knows the ids of what is installed.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
};

use lb_core::{
    addr::Protocol,
    affinity::Affinity,
    datapath::Datapath,
    endpoint::{Endpoint, EndpointSlice, SlicePort},
    model::{Change, Model, Settings},
    name::{ServiceName, SliceName},
    reconciler::Reconciler,
    service::{Service, ServicePort},
    time::Instant,
};
use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath};
use socket2::{Domain, Socket, Type};

use crate::common::{
    Cgroup, Namespace, PATIENCE, POD_DEVICES, PinDir, UPLINK, World, ask_udp, config, ip, serve, turn,
};

/// A datapath and what drives it; both can start anew.
struct Agent {
    config: EbpfConfig,
    running: Option<(EbpfDatapath, Reconciler)>,
}

impl Agent {
    fn start(config: EbpfConfig, space: &Namespace) -> Self {
        let mut agent = Self { config, running: None };
        agent.restart(space);
        agent
    }

    /// As another process that knows what the maps hold, and nothing else.
    fn restart(&mut self, space: &Namespace) {
        self.running = None;
        let config = self.config.clone();
        let mut datapath = space.run(|| EbpfDatapath::open(config)).unwrap();
        let mut reconciler = Reconciler::new(Model::new(Settings::default(), datapath.capabilities()));
        reconciler.handle_observed_with(datapath.observe().unwrap(), datapath.held_ids().unwrap());
        reconciler.handle_change(Change::SetNode(World::facts())).unwrap();
        self.running = Some((datapath, reconciler));
    }

    fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        let (datapath, reconciler) = self.running.as_mut().unwrap();
        changes.into_iter().for_each(|change| reconciler.handle_change(change).unwrap());
        while let Some(plan) = reconciler.poll_plan(Instant::default()).unwrap() {
            let outcome = datapath.apply(&plan);
            reconciler.handle_applied(plan.id, outcome, Instant::default());
        }
    }
}

fn name(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

/// A service at `vip`, port 80, with these backends.
fn service(who: &str, vip: &str, protocol: Protocol, affinity: Option<Affinity>, backends: &[&str]) -> Vec<Change> {
    let port = ServicePort { name: "p".into(), protocol, port: 80, node_port: None };
    let service = Service { cluster_ips: vec![ip(vip)], ports: vec![port], affinity, ..Service::new(name(who)) };
    let slices = backends.iter().enumerate().map(|(number, backend)| {
        let backend: SocketAddr = backend.parse().unwrap();
        Change::ReplaceEndpoints(EndpointSlice {
            name: SliceName::new("default", &format!("{who}-{number}")),
            service: name(who),
            ports: vec![SlicePort { name: "p".into(), protocol, port: backend.port() }],
            endpoints: vec![Endpoint::new(backend.ip())],
        })
    });
    [Change::UpsertService(service)].into_iter().chain(slices).collect()
}

fn first_word(answer: &str) -> String {
    answer.split(' ').next().unwrap().to_owned()
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a namespace and a cgroup"]
fn datagrams_to_a_service_do_not_go_to_another_one_that_has_the_ids_of_old() {
    const SOCKETS: usize = 16;
    let _turn = turn();
    let (space, pins, cgroup) = (Namespace::new("i"), PinDir::new(), Cgroup::joined());
    space.ip("addr add 10.244.0.2/32 dev lo");
    let backends = ["10.244.0.2:8001", "10.244.0.2:8002", "10.244.0.2:8003", "10.244.0.2:8004"];
    for (backend, name) in backends.into_iter().zip(["a", "b", "c", "d"]) {
        let job = space.run(|| serve(backend.parse().unwrap(), name));
        space.spawn(job);
    }
    let mut agent = Agent::start(config(&pins, &cgroup), &space);
    agent.change(service("one", "10.96.0.1", Protocol::Udp, None, &backends[..3]));
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let sockets: Vec<_> = space.run(|| (0..SOCKETS).map(|_| UdpSocket::bind("10.244.0.2:0").unwrap()).collect());
    let before: Vec<_> = sockets.iter().map(|socket| first_word(&ask_udp(socket, vip).unwrap().0)).collect();
    assert!(before.iter().any(|answer| answer != "a"), "one in 40 million runs: {before:?}");
    agent.change([Change::RemoveService(name("one"))]);
    agent.restart(&space);
    // Counted from 1, backends 2 and 3 would be those of another service, and the set of the first one would be 1 again.
    let one = service("one", "10.96.0.1", Protocol::Udp, None, &backends[3..]);
    let two = service("two", "10.96.0.2", Protocol::Udp, None, &backends[..3]);
    agent.change(one.into_iter().chain(two));
    let after: Vec<_> = sockets.iter().map(|socket| first_word(&ask_udp(socket, vip).unwrap().0)).collect();
    assert_eq!(after, ["d"; SOCKETS], "before: {before:?}");
}

/// What the server says to a connection from `source`.
fn ask_from(source: IpAddr, to: SocketAddr) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"?").unwrap();
    let mut room = [0; 64];
    let count = stream.read(&mut room).unwrap();
    first_word(&String::from_utf8_lossy(&room[..count]))
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn records_of_a_service_that_is_gone_say_nothing_about_another_one() {
    let _turn = turn();
    let (world, pins, cgroup) = (World::new(), PinDir::new(), Cgroup::empty());
    let backends = ["10.244.0.2:8080", "10.244.1.2:8080"];
    for (number, name) in ["a", "b"].into_iter().enumerate() {
        let job = world.pods[number].run(|| serve(backends[number].parse().unwrap(), name));
        world.pods[number].spawn(job);
    }
    let clients: Vec<IpAddr> = (10..42).map(|last| IpAddr::from([192, 0, 2, last])).collect();
    clients.iter().for_each(|client| world.client.ip(&format!("addr add {client}/24 dev eth0")));
    let mut config = config(&pins, &cgroup);
    config.pod_devices = POD_DEVICES.map(String::from).to_vec();
    config.uplink_devices = vec![UPLINK.into()];
    let mut agent = Agent::start(config, &world.node);
    let answers = |vip: &str| -> Vec<String> {
        let vip = SocketAddr::new(ip(vip), 80);
        world.client.run(|| clients.iter().map(|client| ask_from(*client, vip)).collect())
    };
    agent.change(service("one", "10.96.0.1", Protocol::Tcp, Some(Affinity::default()), &backends));
    let before = answers("10.96.0.1");
    agent.change([Change::RemoveService(name("one"))]);
    agent.restart(&world.node);
    agent.change(service("two", "10.96.0.2", Protocol::Tcp, Some(Affinity::default()), &backends));
    let after = answers("10.96.0.2");
    assert_ne!(before, after, "32 fresh choices out of two are the same ones once in four billion runs");
    agent.restart(&world.node);
    assert_eq!(answers("10.96.0.2"), after, "its own records outlive a restart");
}
