//! The lab itself: that it carries traffic, tells the truth about it, and goes without a trace.
//!
//! Not run by root without `--ignored` (or `--include-ignored`). Anybody else runs it in a user namespace, except for
//! what needs cgroups; where the kernel has no such namespace for us, everything is ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::IpAddr,
    panic::{self, AssertUnwindSafe},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use lb_core::addr::Family;
use lb_testkit::{
    LabError,
    lab::{Lab, LabId, Offload, Origin, PodSpec, Privilege, enter_user_namespace, leftovers},
    traffic::{FailureKind, Load, LoadKind, Request, Transport, Until},
};
use libtest_mimic::{Arguments, Failed, Trial};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected];
const OWN_A_LAB: &str = "own-a-lab-until-killed";

fn main() -> ExitCode {
    lb_testkit::run_if_worker();
    if std::env::args().nth(1).as_deref() == Some(OWN_A_LAB) {
        own_a_lab();
    }
    if Privilege::current() == Privilege::None
        && let Err(error) = enter_user_namespace()
    {
        eprintln!("lab: {}", lb_testkit::report(&error));
    }
    let needs_root = [
        root_trial("three_nodes_and_twelve_pods_are_built_in_under_a_second", built_in_time),
        trial("everybody_reaches_pods_with_offloads_on", || everybody_reaches_pods(Offload::On)),
        trial("everybody_reaches_pods_with_offloads_off", || everybody_reaches_pods(Offload::Off)),
        trial("offloads_are_what_was_asked_for", offloads_are_what_was_asked_for),
        trial("two_labs_with_the_same_addresses_do_not_cross", two_labs_do_not_cross),
        trial("the_echo_says_who_it_is_and_whom_it_sees", the_echo_tells),
        trial("a_keep_alive_connection_serves_any_http_client", any_http_client),
        trial("loads_are_counted_right", loads_are_counted_right),
        trial("a_load_runs_until_it_is_stopped", a_load_runs_until_it_is_stopped),
        trial("held_connections_report_which_broke", held_connections_report_which_broke),
        trial("failures_have_their_kinds", failures_have_their_kinds),
        trial("prefixes_are_routed_to_the_chosen_node", prefixes_are_routed),
        root_trial("tasks_are_in_the_cgroup_of_their_node", tasks_are_in_their_cgroups),
        root_trial("programs_run_on_a_node_with_their_output_captured", programs_run_on_a_node),
        trial("pods_come_and_go", pods_come_and_go),
        root_trial("a_closed_lab_leaves_no_trace", a_closed_lab_leaves_no_trace),
        trial("a_panic_leaves_no_trace", a_panic_leaves_no_trace),
        trial("kill_9_and_a_new_lab_leave_no_trace", kill_9_leaves_no_trace),
    ];
    libtest_mimic::run(&Arguments::from_args(), needs_root.into()).exit_code()
}

fn trial(name: &str, test: impl FnOnce() -> Result<(), LabError> + Send + 'static) -> Trial {
    Trial::test(name, || test().map_err(|error| Failed::from(lb_testkit::report(&error))))
        .with_ignored_flag(Privilege::current() != Privilege::UserNamespace)
}

/// One that looks at cgroups, or at the time that something takes: beside other tests it takes longer.
fn root_trial(name: &str, test: impl FnOnce() -> Result<(), LabError> + Send + 'static) -> Trial {
    trial(name, test).with_ignored_flag(true)
}

fn small() -> Result<Lab, LabError> {
    Lab::builder().nodes(2).pods_per_node(1).build()
}

fn built_in_time() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(3).pods_per_node(4).build()?;
    println!("3 nodes, 12 pods: {:?}", lab.build_time());
    assert!(lab.build_time() < Duration::from_secs(1), "{:?}", lab.build_time());
    Ok(())
}

fn everybody_reaches_pods(offload: Offload) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).pods_per_node(2).offload(offload).build()?;
    let inside = [Origin::Pod(0), Origin::PodPackets(0), Origin::Node(0), Origin::NodePackets(0)];
    for origin in inside.into_iter().chain([Origin::Client, Origin::Beyond]) {
        for (pod, family, transport) in every(lab.pods(), FAMILIES, TRANSPORTS) {
            let client = lab.client(origin);
            let to = pod.socket(family, 8080);
            let answer = client.request(&Request::over(transport, to))?;
            let answer = answer.unwrap_or_else(|failure| panic!("{origin:?} to {to} over {transport:?}: {failure}"));
            assert_eq!(answer.pod, pod.name(), "{origin:?} to {to} over {transport:?}");
            assert_eq!(answer.client.ip(), client.ip(family), "{origin:?} to {to} over {transport:?}");
            assert_eq!(answer.client.port(), answer.local.port());
            assert_eq!(answer.peer, to);
        }
    }
    Ok(())
}

fn every<A: Copy, B: Copy, C: Copy>(
    first: impl Iterator<Item = A>,
    second: [B; 2],
    third: [C; 3],
) -> impl Iterator<Item = (A, B, C)> {
    first.flat_map(move |a| second.into_iter().flat_map(move |b| third.into_iter().map(move |c| (a, b, c))))
}

fn offloads_are_what_was_asked_for() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).pods_per_node(1).offload(Offload::On).build()?;
    let node = lab.node(0);
    for device in [node.uplink(), &node.pod_devices()[0]] {
        let active = node.active_offloads(device)?;
        assert!(active.contains(&"tx-checksum") && active.contains(&"tso"), "{device}: {active:?}");
    }
    let lab = Lab::builder().nodes(1).pods_per_node(1).offload(Offload::Off).build()?;
    let node = lab.node(0);
    for device in [node.uplink(), &node.pod_devices()[0]] {
        assert_eq!(node.active_offloads(device)?, Vec::<&str>::new(), "{device}");
    }
    Ok(())
}

fn two_labs_do_not_cross() -> Result<(), LabError> {
    let build = |name: &str| Lab::builder().nodes(1).pod(PodSpec::new(name, 0).http(80)).build();
    let labs = [build("red")?, build("blue")?];
    assert_ne!(labs[0].id(), labs[1].id());
    for (lab, name) in labs.iter().zip(["red", "blue"]) {
        let to = lab.pods().next().expect("each has one").socket(Family::V4, 80);
        let report = lab.client(Origin::Client).load(&Load::new(LoadKind::NewConnections, to).requests(50))?;
        assert_eq!((report.backends.get(name), report.failed()), (Some(&50), 0), "{report:?}");
    }
    Ok(())
}

fn the_echo_tells() -> Result<(), LabError> {
    let lab =
        Lab::builder().node("worker").pod(PodSpec::new("echo-1", 0).namespace("shop").http(80).udp(53)).build()?;
    let client = lab.client(Origin::Beyond);
    let pod = lab.pod("echo-1").expect("it was asked for");
    let from = (client.ip(Family::V4), 40_000).into();
    let mut request = Request::http(pod.socket(Family::V4, 80)).from(from);
    request.path = "/cart?item=1".into();
    let answer = client.request(&request)?.expect("reachable");
    assert_eq!(answer.client, from);
    for line in [
        "Hostname: echo-1",
        "\tnode name:\tworker",
        "\tpod namespace:\tshop",
        "\tpod IP:\t10.244.0.10,fd00:10:244::10",
        "\tclient_address=198.51.100.100",
        "\tmethod=GET",
        "\treal path=/cart",
        "\tquery=item=1",
        "\thost=10.244.0.10:80",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "{line:?} is not in {}", answer.body);
    }
    let answer = client.request(&Request::udp(pod.socket(Family::V6, 53)))?.expect("reachable");
    assert!(answer.body.starts_with("Hostname: echo-1\nnode name=worker\nclient_address=fd00:198:51::100\n"));
    Ok(())
}

/// Two requests at once, then a third one that ends the connection, byte by byte as another client would write them.
fn any_http_client() -> Result<(), LabError> {
    let lab = small()?;
    let to = lab.pod("pod-0-0").expect("there").socket(Family::V4, 8080);
    let text = lab.node(0).run(|| {
        let mut stream = std::net::TcpStream::connect(to).expect("reachable");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("not zero");
        let one = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(format!("{one}{}GET /3 HT", one.replace("/1 ", "/2 ")).as_bytes()).expect("open");
        stream.write_all(b"TP/1.1\r\nConnection: close\r\n\r\n").expect("open");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("ends with the connection");
        text
    })?;
    let paths: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("\treal path=")).collect();
    assert_eq!(paths, ["/1", "/2", "/3"]);
    Ok(())
}

fn loads_are_counted_right() -> Result<(), LabError> {
    let lab = small()?;
    let pod = lab.pod("pod-1-0").expect("there");
    for kind in [LoadKind::NewConnections, LoadKind::LongLived, LoadKind::Datagrams, LoadKind::DatagramStream] {
        let load = Load::new(kind, pod.socket(Family::V6, 8080)).requests(1003).lanes(5);
        let report = lab.client(Origin::Pod(0)).load(&load)?;
        assert_eq!(report.backends.get("pod-1-0"), Some(&1003), "{kind:?}: {report:?}");
        assert_eq!((report.answered(), report.failed(), report.latencies.count()), (1003, 0, 1003), "{kind:?}");
        assert!(report.latencies.p50() <= report.latencies.p99() && report.latencies.p99() <= report.latencies.max());
    }
    let refused = Load::new(LoadKind::ConnectOnly, pod.socket(Family::V4, 9)).requests(20).lanes(2);
    let report = lab.client(Origin::Client).load(&refused)?;
    assert_eq!((report.answered(), report.failures.get(&FailureKind::Refused)), (0, Some(&20)), "{report:?}");
    let race = [pod.socket(Family::V4, 8080), pod.socket(Family::V6, 8080)];
    let latencies = lab.client(Origin::Client).connect_race(&race, 200)?;
    assert_eq!(latencies.iter().map(|latencies| latencies.count()).collect::<Vec<_>>(), [200, 200]);
    Ok(())
}

fn a_load_runs_until_it_is_stopped() -> Result<(), LabError> {
    let lab = small()?;
    let client = lab.client(Origin::Client);
    let to = lab.pod("pod-0-0").expect("there").socket(Family::V4, 8080);
    let running = client.start_load(&Load::new(LoadKind::NewConnections, to).until(Until::Stopped).lanes(2))?;
    let beside = client.load(&Load::new(LoadKind::Datagrams, to).requests(100))?;
    assert_eq!((beside.answered(), beside.failed()), (100, 0), "{beside:?}");
    let report = running.stop()?;
    assert!(report.answered() > 0 && report.failed() == 0, "{report:?}");
    Ok(())
}

fn held_connections_report_which_broke() -> Result<(), LabError> {
    let lab = small()?;
    let to = lab.pod("pod-1-0").expect("there").socket(Family::V4, 8080);
    let tcp = lab.client(Origin::Client).hold(Transport::Tcp, to, 20)?;
    let udp = lab.client(Origin::Client).hold(Transport::Udp, to, 3)?;
    assert!(tcp.opened().iter().chain(udp.opened()).all(Result::is_ok));
    assert!(tcp.exchange()?.iter().all(Result::is_ok));
    lab.stop_server("pod-1-0")?;
    assert!(tcp.exchange()?.iter().all(Result::is_err));
    assert!(udp.exchange()?.iter().all(|outcome| failure(outcome) == Some(FailureKind::Refused)));
    lab.start_server("pod-1-0")?;
    assert!(tcp.exchange()?.iter().all(|outcome| failure(outcome) == Some(FailureKind::Closed)));
    assert!(udp.exchange()?.iter().all(Result::is_ok));
    Ok(())
}

fn failure(outcome: &lb_testkit::traffic::Outcome) -> Option<FailureKind> {
    outcome.as_ref().err().map(|failure| failure.kind)
}

fn failures_have_their_kinds() -> Result<(), LabError> {
    let lab = small()?;
    let client = lab.client(Origin::Client);
    for (family, nobody) in FAMILIES.into_iter().zip(["10.244.0.99", "fd00:10:244::99"]) {
        let ip: IpAddr = nobody.parse().expect("an address");
        let node = lab.node(0).ip(family);
        for transport in TRANSPORTS {
            let refused = client.request(&Request::over(transport, (node, 9).into()))?;
            assert_eq!(failure(&refused), Some(FailureKind::Refused), "{refused:?}");
        }
        // The node has no route of its own for it, the router sends it back, and so on until its hops are used up.
        let request = Request::http((ip, 80).into()).timeout(Duration::from_millis(500));
        let lost = client.request(&request)?;
        assert!(matches!(failure(&lost), Some(FailureKind::Timeout | FailureKind::Unreachable)), "{lost:?}");
    }
    Ok(())
}

fn prefixes_are_routed() -> Result<(), LabError> {
    let lab = small()?;
    for (family, vip) in FAMILIES.into_iter().zip(["10.96.0.1", "fd00:10:96::1"]) {
        let vip: IpAddr = vip.parse().expect("an address");
        for (node, origin) in [(1, Origin::Client), (0, Origin::Beyond), (0, Origin::Client), (1, Origin::Beyond)] {
            lab.route_services_via(node)?;
            let ear = lab.node(node).run(|| Ear::new().expect("root may listen"))?;
            let request = Request::udp((vip, 53).into()).timeout(Duration::from_millis(1));
            lab.client(origin).request(&request)?.expect_err("nobody answers");
            let from = ear.source_of_packet_to(vip);
            assert_eq!(from, lab.client(origin).ip(family), "{origin:?} via node {node}");
        }
    }
    Ok(())
}

/// Hears every packet of a namespace.
struct Ear(socket2::Socket);

impl Ear {
    fn new() -> std::io::Result<Self> {
        let everything = socket2::Protocol::from(i32::from(0x0003_u16.to_be()));
        let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::DGRAM, Some(everything))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(socket))
    }

    fn source_of_packet_to(mut self, wanted: IpAddr) -> IpAddr {
        loop {
            let mut packet = [0; 2048];
            let length = self.0.read(&mut packet).unwrap_or_else(|error| panic!("no packet to {wanted}: {error}"));
            if let Some((from, to)) = ends(&packet[..length])
                && to == wanted
            {
                return from;
            }
        }
    }
}

/// Source and destination of an IP packet.
fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let at = |start| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(start..start + 4)?).ok()?));
            Some((at(12)?, at(16)?))
        }
        6 => {
            let at = |start| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(start..start + 16)?).ok()?));
            Some((at(8)?, at(24)?))
        }
        _ => None,
    }
}

fn tasks_are_in_their_cgroups() -> Result<(), LabError> {
    let lab = small()?;
    for node in lab.nodes() {
        let [inside, packets] = node.worker_pids().map(cgroup_of);
        assert!(node.cgroup().ends_with(&inside), "{inside} is not {}", node.cgroup().display());
        assert!(!packets.contains(&lab.id().to_string()), "{packets}");
    }
    Ok(())
}

/// Its path in the cgroup2 hierarchy, without the leading slash.
fn cgroup_of(pid: u32) -> String {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    let line = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup2 is mounted");
    line.into()
}

fn programs_run_on_a_node() -> Result<(), LabError> {
    let lab = small()?;
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        lab.node(1).spawn(command)
    };
    let mut program = shell("cat /proc/self/cgroup; cat /proc/net/fib_trie; echo oops >&2; exit 3")?;
    let status = program.wait(Duration::from_secs(10))?.expect("it ends by itself");
    assert_eq!(status.code(), Some(3));
    for wanted in ["node-1", "172.18.0.11", "oops"] {
        let line = program.wait_for_line(Duration::from_secs(5), |line| line.contains(wanted));
        assert!(line.is_some(), "{wanted} is not in {}", program.output());
    }
    let mut program = shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do read x < /dev/zero & wait; done")?;
    assert!(program.wait_for_line(Duration::from_secs(10), |line| line == "ready").is_some());
    let status = program.terminate(Duration::from_secs(10))?.expect("it ends when it is asked to");
    assert!(status.success() && program.wait_for_line(Duration::from_secs(5), |line| line == "bye").is_some());
    Ok(())
}

fn pods_come_and_go() -> Result<(), LabError> {
    let mut lab = small()?;
    lab.add_pod(PodSpec::new("late", 1).http(80))?;
    let to = lab.pod("late").expect("just made").socket(Family::V4, 80);
    assert_eq!(lab.client(Origin::Pod(0)).request(&Request::http(to))?.expect("reachable").pod, "late");
    assert_eq!(lab.node(1).pod_devices(), ["pod0", "pod1"]);
    lab.remove_pod("late")?;
    assert!(lab.pod("late").is_none());
    let request = Request::http(to).timeout(Duration::from_millis(500));
    assert!(lab.client(Origin::Pod(0)).request(&request)?.is_err());
    lab.add_pod(PodSpec::new("later", 1))?;
    assert_eq!(lab.pod("later").expect("just made").ip(Family::V4).to_string(), "10.244.1.12");
    assert!(matches!(lab.add_pod(PodSpec::new("nowhere", 7)), Err(LabError::Unknown(_))));
    Ok(())
}

fn a_closed_lab_leaves_no_trace() -> Result<(), LabError> {
    let lab = small()?;
    let (id, cgroup, pins) = (lab.id(), lab.node(0).cgroup().to_owned(), lab.node(0).pin_dir()?);
    let run = lab.node(0).run_dir()?;
    let pids: Vec<u32> = lab.nodes().flat_map(|node| node.worker_pids()).collect();
    assert!(leftovers()?.contains(&id) && cgroup.exists() && run.exists());
    assert!(pins.parent().expect("not the root").exists());
    lab.close()?;
    assert!(!leftovers()?.contains(&id));
    assert!(!cgroup.exists() && !run.exists() && !pins.parent().expect("not the root").exists());
    assert!(pids.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).expect("readable")));
    Ok(())
}

fn a_panic_leaves_no_trace() -> Result<(), LabError> {
    let mut id = None;
    let caught = panic::catch_unwind(AssertUnwindSafe(|| {
        let lab = small().expect("it can be built");
        id = Some(lab.id());
        lab.node(0).run(|| panic!("as a test would")).expect("the namespace is there")
    }));
    assert!(caught.is_err());
    assert!(!leftovers()?.contains(&id.expect("it was built")));
    Ok(())
}

fn kill_9_leaves_no_trace() -> Result<(), LabError> {
    let mut owner = Command::new("/proc/self/exe")
        .arg(OWN_A_LAB)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this very program");
    let Owned { id, workers, namespaces } = Owned::read(&mut owner);
    assert!(leftovers()?.iter().any(|left| left.to_string() == id));
    // As long as they are open here, no other namespace gets their numbers.
    let held = hold(&owner, &namespaces);
    assert_eq!(held.len(), namespaces.len());
    assert!(!holders(&namespaces).is_empty());
    owner.kill().expect("it lives");
    owner.wait().expect("our child");
    let lab = small()?;
    assert!(!leftovers()?.iter().map(LabId::to_string).any(|left| left == id), "{id} is still there");
    for parent in [lab.node(0).cgroup().ancestors().nth(2).expect("two above"), "/run".as_ref(), "/sys/fs/bpf".as_ref()]
    {
        assert!(!parent.join(&id).exists(), "{id} is still in {}", parent.display());
    }
    until(|| workers.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).expect("readable")), "the workers end");
    until(|| holders(&namespaces).is_empty(), "nobody holds a namespace");
    drop(held);
    Ok(())
}

/// What a lab's owner tells about it before it is killed.
struct Owned {
    id: String,
    workers: Vec<String>,
    namespaces: BTreeSet<String>,
}

impl Owned {
    fn read(owner: &mut Child) -> Self {
        let output = owner.stdout.take().expect("a pipe");
        let mut lines = BufReader::new(output).lines().map(|line| line.expect("text"));
        let mut words = || -> Vec<String> { lines.next().expect("a line").split(' ').map(Into::into).collect() };
        let id = words().remove(0);
        Self { id, workers: words(), namespaces: words().into_iter().collect() }
    }
}

fn own_a_lab() -> ! {
    let lab = small().expect("it can be built");
    fs::create_dir(lab.node(0).pin_dir().expect("a BPF file system")).expect("new");
    fs::write(lab.node(1).run_dir().expect("a directory").join("socket"), "").expect("new");
    println!("{}", lab.id());
    let workers: Vec<String> = lab.nodes().flat_map(|node| node.worker_pids()).map(|pid| pid.to_string()).collect();
    println!("{}", workers.join(" "));
    let held = links("/proc/self/fd").filter(|link| link.starts_with("net:"));
    println!("{}", held.collect::<Vec<_>>().join(" "));
    // Until the end of the test, however it comes.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0)
}

/// Namespaces that `owner` has open.
fn hold(owner: &Child, namespaces: &BTreeSet<String>) -> BTreeMap<String, File> {
    let open = fs::read_dir(format!("/proc/{}/fd", owner.id())).expect("it lives");
    let open = open.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = text(fs::read_link(&path).ok()?);
        namespaces.contains(&name).then(|| (name, File::open(path).expect("a namespace")))
    });
    open.collect()
}

/// Other processes that have one of these namespaces open or are in it.
fn holders(namespaces: &BTreeSet<String>) -> Vec<String> {
    let processes =
        fs::read_dir("/proc").expect("mounted").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    processes
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != std::process::id().to_string())
        .filter(|pid| {
            let threads =
                links(&format!("/proc/{pid}/fd")).chain(fs::read_link(format!("/proc/{pid}/ns/net")).ok().map(text));
            threads.into_iter().any(|link| namespaces.contains(&link))
        })
        .collect()
}

fn links(directory: &str) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).map(text)
}

fn text(path: std::path::PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// Polls a condition that the kernel brings about on its own.
fn until(condition: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}
