//! What a packet costs in `lb_ingress`, for one eBPF object or for two side by side.
//!
//! ```sh
//! cargo run --release -p lb-datapath-ebpf --example packet_cost -- lb-datapath-ebpf/src/lb.bpf.o [OTHER.bpf.o]
//! ```
//!
//! It needs root. It makes a network namespace of its own by `unshare --net`, with routes and neighbours, loads each
//! object with maps of its own, and runs packets through `BPF_PROG_TEST_RUN`, a block for one object and a block for the
//! other, in turns.
//!
//! Packets of nobody and of established flows are restored after each run, and what that takes is measured in the same
//! round and subtracted ([`driver`]): their figures are net. Packets that start a flow or are refused change what the
//! next one meets, so that each is a call of its own. Their figures include the two clock readings that the kernel makes
//! around a call.
//!
//! Prints one line for each figure, with tabs: `insns PROGRAM COUNT [OTHER]`, `net PACKET MEDIAN [OTHER] N` and
//! `ns PACKET MEDIAN [OTHER] N`.

mod raw;

#[path = "raw/driver.rs"]
mod driver;

use std::{env, error::Error, os::fd::AsFd, process::Command};

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, PerCpuValues, lpm_trie::Key},
    programs::{Program, SchedClassifier},
};
use driver::Driver;
use lb_datapath_ebpf_abi::{
    Addr, BackendValue, FAMILY_V4, FAMILY_V6, Facts, FrontendKey, FrontendValue, LOOKUP_RANDOM, MEMBER_TAKES,
    MemberKey, NODE_KEY, NodeValue, Pod, Port, PrefixBytes, TARGET_REJECT, TARGET_SET, WORK_WORDS, filter_bit,
    from_octets, map_v4,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Set in the copy of this program that runs in a namespace of its own.
const INSIDE: &str = "LB_PACKET_COST_INSIDE";
const ROUNDS: usize = 100;
/// Calls for one object before it is the other one's turn.
const BLOCK: usize = 100;
/// Rounds of packets that are restored, and how often such a packet is run in each of them.
const NET_ROUNDS: usize = 400;
const REPEAT: u32 = 5_000;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const TCX_NEXT: i32 = -1;
const TCX_REDIRECT: i32 = 7;

fn main() -> Outcome<()> {
    let objects: Vec<String> = env::args().skip(1).collect();
    if objects.is_empty() || objects.len() > 2 {
        return Err("usage: packet_cost OBJECT [OTHER]".into());
    }
    if env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(env::current_exe()?).args(&objects).env(INSIDE, "1");
        let status = command.status()?;
        return if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) };
    }
    let devices = Devices::new()?;
    let mut subjects = objects.iter().map(|path| Subject::load(path)).collect::<Outcome<Vec<_>>>()?;
    for name in subjects[0].programs() {
        let counts = subjects.iter().map(|subject| subject.instructions(&name)).collect::<Outcome<Vec<_>>>()?;
        println!("insns\t{name}\t{}", counts.join("\t"));
    }
    for case in &RESTORED {
        case.measure(&mut subjects, &devices)?;
    }
    for case in &SINGLE {
        case.measure(&mut subjects, &devices)?;
    }
    Ok(())
}

/// The order in which subjects take their turns in a round.
fn turns(round: usize, subjects: usize) -> impl Iterator<Item = usize> {
    (0..subjects).map(move |turn| (round + turn) % subjects)
}

fn medians<T: Ord + ToString>(samples: &mut [Vec<T>]) -> String {
    let medians = samples.iter_mut().map(|samples| {
        samples.sort_unstable();
        samples[samples.len() / 2].to_string()
    });
    medians.collect::<Vec<_>>().join("\t")
}

/// A packet that is the same in every run.
struct Restored {
    name: &'static str,
    is_v4: bool,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Neither address is one of a frontend, a backend or a flow.
    Foreign,
    /// A packet of a backend to somebody else.
    Direct,
    /// A packet of a client whose source is translated.
    Request(u8),
    /// The answer of the backend to such a client.
    Answer(u8),
}

const RESTORED: [Restored; 12] = [
    Restored { name: "none of ours, IPv4", is_v4: true, kind: Kind::Foreign },
    Restored { name: "none of ours, IPv6", is_v4: false, kind: Kind::Foreign },
    Restored { name: "a backend's to somebody else, IPv4", is_v4: true, kind: Kind::Direct },
    Restored { name: "a backend's to somebody else, IPv6", is_v4: false, kind: Kind::Direct },
    Restored { name: "established SNAT flow, TCP request, IPv4", is_v4: true, kind: Kind::Request(TCP) },
    Restored { name: "established SNAT flow, TCP request, IPv6", is_v4: false, kind: Kind::Request(TCP) },
    Restored { name: "established SNAT flow, TCP answer, IPv4", is_v4: true, kind: Kind::Answer(TCP) },
    Restored { name: "established SNAT flow, TCP answer, IPv6", is_v4: false, kind: Kind::Answer(TCP) },
    Restored { name: "established SNAT flow, UDP request, IPv4", is_v4: true, kind: Kind::Request(UDP) },
    Restored { name: "established SNAT flow, UDP request, IPv6", is_v4: false, kind: Kind::Request(UDP) },
    Restored { name: "established SNAT flow, UDP answer, IPv4", is_v4: true, kind: Kind::Answer(UDP) },
    Restored { name: "established SNAT flow, UDP answer, IPv6", is_v4: false, kind: Kind::Answer(UDP) },
];

impl Restored {
    fn measure(&self, subjects: &mut [Subject], devices: &Devices) -> Outcome<()> {
        let expected = if matches!(self.kind, Kind::Foreign | Kind::Direct) { TCX_NEXT } else { TCX_REDIRECT };
        let mut drivers = Vec::new();
        for subject in &mut *subjects {
            let (frame, device) = self.frame(subject, devices)?;
            drivers.push(Driver::new(subject.ingress()?.fd()?.as_fd(), frame, device.context())?);
        }
        let mut samples = vec![Vec::new(); drivers.len()];
        for round in 0..NET_ROUNDS {
            for at in turns(round, drivers.len()) {
                samples[at].push(drivers[at].run(REPEAT, expected)?);
            }
        }
        println!("net\t{}\t{}\t{NET_ROUNDS}", self.name, medians(&mut samples));
        Ok(())
    }

    /// The packet, and the device that it comes in through. The flow that it belongs to is there.
    fn frame<'a>(&self, subject: &mut Subject, devices: &'a Devices) -> Outcome<(Vec<u8>, &'a Device)> {
        let (protocol, is_answer) = match self.kind {
            Kind::Foreign => return Ok((self.ends(99).frame(&devices.uplink, TCP, ACK), &devices.uplink)),
            Kind::Direct => {
                let src = if self.is_v4 { vec![10, 244, 0, 2] } else { v6(0x244, 2).to_vec() };
                return Ok((Ends { src, ..self.ends(99) }.frame(&devices.pods, TCP, ACK), &devices.pods));
            }
            Kind::Request(protocol) => (protocol, false),
            Kind::Answer(protocol) => (protocol, true),
        };
        let request = |flags| self.ends(1).frame(&devices.uplink, protocol, flags);
        let sent = subject.run(&request(SYN), &devices.uplink, TCX_REDIRECT)?.frame;
        let answer = |flags| Ends::of(&sent, self.is_v4).mirror().frame(&devices.pods, protocol, flags);
        subject.run(&answer(SYN | ACK), &devices.pods, TCX_REDIRECT)?;
        subject.run(&request(ACK), &devices.uplink, TCX_REDIRECT)?;
        Ok(if is_answer { (answer(ACK), &devices.pods) } else { (request(ACK), &devices.uplink) })
    }

    /// From a client outside of the pods to a frontend, or to nobody.
    fn ends(&self, frontend: u8) -> Ends {
        let (src, dst) = if self.is_v4 {
            (vec![198, 51, 100, 1], vec![10, 96, 0, frontend])
        } else {
            (v6(3, 1).to_vec(), v6(0x96, frontend).to_vec())
        };
        Ends { src, dst, sport: 10_000, dport: 80 }
    }
}

/// A packet that finds something else each time.
struct Single {
    name: &'static str,
    /// Last byte of the destination: which frontend it is for. The second one has no backends.
    frontend: u8,
    is_v4: bool,
}

const SINGLE: [Single; 4] = [
    Single { name: "new flow, IPv4", frontend: 1, is_v4: true },
    Single { name: "new flow, IPv6", frontend: 1, is_v4: false },
    Single { name: "refused and counted, IPv4", frontend: 2, is_v4: true },
    Single { name: "refused and counted, IPv6", frontend: 2, is_v4: false },
];

impl Single {
    fn measure(&self, subjects: &mut [Subject], devices: &Devices) -> Outcome<()> {
        let mut samples = vec![Vec::new(); subjects.len()];
        for round in 0..ROUNDS {
            for at in turns(round, subjects.len()) {
                for call in round * BLOCK..(round + 1) * BLOCK {
                    samples[at].push(self.run(&mut subjects[at], &devices.uplink, call)?);
                }
            }
        }
        println!("ns\t{}\t{}\t{}", self.name, medians(&mut samples), samples[0].len());
        Ok(())
    }

    /// Nanoseconds of call number `call`. Each is of another flow of a pod, which keeps its source.
    fn run(&self, subject: &mut Subject, uplink: &Device, call: usize) -> Outcome<u128> {
        let (src, dst) = if self.is_v4 {
            (vec![10, 244, 7, 7], vec![10, 96, 0, self.frontend])
        } else {
            (v6(0x244, 7).to_vec(), v6(0x96, self.frontend).to_vec())
        };
        let ends = Ends { src, dst, sport: 10_001 + call as u16, dport: 80 };
        subject.allow_answers()?;
        Ok(subject.run(&ends.frame(uplink, TCP, SYN), uplink, TCX_REDIRECT)?.ns)
    }
}

/// Source and destination of a packet.
#[derive(Debug, PartialEq, Eq)]
struct Ends {
    src: Vec<u8>,
    dst: Vec<u8>,
    sport: u16,
    dport: u16,
}

impl Ends {
    fn of(frame: &[u8], is_v4: bool) -> Self {
        let (at, size) = if is_v4 { (26, 4) } else { (22, 16) };
        let (src, rest) = frame[at..].split_at(size);
        let (dst, ports) = rest.split_at(size);
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        Self { src: src.into(), dst: dst.into(), sport: port(0), dport: port(2) }
    }

    fn mirror(self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }

    /// An Ethernet frame that comes in through `device`.
    fn frame(&self, device: &Device, protocol: u8, flags: u8) -> Vec<u8> {
        let transport = if protocol == TCP { 20 } else { 8 };
        let mut frame = [&device.address[..], &[2, 0, 0, 0, 0, 1]].concat();
        if self.src.len() == 4 {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 20 + transport, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, transport, protocol, 64]);
        }
        frame.extend([&self.src[..], &self.dst].concat());
        frame.extend([self.sport, self.dport].map(u16::to_be_bytes).concat());
        match protocol {
            TCP => frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0x12, 0x34, 0, 0]),
            _ => frame.extend([0, transport, 0x12, 0x34]),
        }
        frame
    }
}

/// `fd00:<net>::<host>`.
fn v6(net: u16, host: u8) -> [u8; 16] {
    let [high, low] = net.to_be_bytes();
    [0xfd, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
}

/// The devices that packets come in through.
struct Devices {
    uplink: Device,
    pods: Device,
}

impl Devices {
    /// Makes them in the namespace of this process, with routes through them, and with the neighbours that those name.
    fn new() -> Outcome<Self> {
        for line in [
            "link set lo up",
            "link add uplink type veth peer name client",
            "link add pods type veth peer name pod",
            "link set client up",
            "link set uplink up",
            "link set pod up",
            "link set pods up",
            "addr add 192.0.2.1/24 dev uplink",
            "addr add 10.244.0.1/24 dev pods",
            "addr add fd00:2::1/64 dev uplink nodad",
            "addr add fd00:244::1/64 dev pods nodad",
            "route add 10.244.7.0/24 dev uplink",
            "route add default via 192.0.2.2",
            "route add default via fd00:2::2",
            "neigh add 192.0.2.2 lladdr 02:00:00:00:00:01 dev uplink",
            "neigh add fd00:2::2 lladdr 02:00:00:00:00:01 dev uplink",
            "neigh add 10.244.0.2 lladdr 02:00:00:00:00:01 dev pods",
            "neigh add fd00:244::2 lladdr 02:00:00:00:00:01 dev pods",
        ] {
            command("ip", &line.split(' ').collect::<Vec<_>>())?;
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        Ok(Self { uplink: Device::named("uplink")?, pods: Device::named("pods")? })
    }
}

struct Device {
    index: u32,
    address: [u8; 6],
}

impl Device {
    fn named(name: &str) -> Outcome<Self> {
        let text = command("ip", &["-o", "link", "show", "dev", name])?;
        let (index, rest) = text.split_once(':').ok_or("`ip link` shows no index")?;
        let address = rest.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
        let address = address.ok_or("`ip link` shows no address")?;
        let bytes = address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
        let address = bytes.try_into().map_err(|_| "the address of the device has not six bytes")?;
        Ok(Self { index: index.trim().parse()?, address })
    }

    /// `__sk_buff` up to its `ifindex`, the only field that is not zero.
    fn context(&self) -> Vec<u8> {
        [&[0; 40][..], &self.index.to_ne_bytes()].concat()
    }
}

fn command(program: &str, args: &[&str]) -> Outcome<String> {
    let output = Command::new(program).args(args).output()?;
    if !output.status.success() {
        return Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A loaded object with one backend.
struct Subject(Ebpf);

impl Subject {
    fn load(path: &str) -> Outcome<Self> {
        let mut ebpf = EbpfLoader::new().load_file(path).map_err(|error| format!("{path}: {error}"))?;
        let names: Vec<String> = ebpf.programs().map(|(name, _)| name.into()).collect();
        for name in names {
            match ebpf.program_mut(&name).ok_or("a program has gone")? {
                Program::CgroupSockAddr(program) => program.load()?,
                Program::CgroupSock(program) => program.load()?,
                Program::SchedClassifier(program) => program.load()?,
                _ => return Err(format!("{path}: {name} is of another type").into()),
            }
        }
        let mut subject = Self(ebpf);
        subject.fill()?;
        Ok(subject)
    }

    /// A backend for each family and protocol, in a set of its own; two frontends, one with that set and one without
    /// backends; and a node with an address of each family.
    fn fill(&mut self) -> Outcome<()> {
        let ends = [
            (map_v4([10, 244, 0, 2]), [1, 2].map(|last| map_v4([10, 96, 0, last]))),
            (from_octets(v6(0x244, 2)), [1, 2].map(|last| from_octets(v6(0x96, last)))),
        ];
        let cases = ends.into_iter().flat_map(|ends| [TCP, UDP].map(|protocol| (protocol, ends)));
        for (id, (protocol, (addr, [vip, closed]))) in (1..).zip(cases) {
            [addr, vip, closed].into_iter().try_for_each(|addr| self.know(addr))?;
            let backend = BackendValue { addr, port: Port::new(8080), protocol, local: 1, host: 0, pad: [0; 3] };
            self.put::<4, 24>("BACKENDS", &id, &backend)?;
            let mut slots: Array<_, [u8; 16]> = self.0.map_mut("SLOTS").ok_or("no SLOTS")?.try_into()?;
            slots.set(id, fixed([id, 0, 0, 0].bytes())?, 0)?;
            self.put::<8, 1>("MEMBERS", &MemberKey { set: id, backend: id }, &MEMBER_TAKES)?;
            self.frontend(vip, protocol, id, TARGET_SET)?;
            self.frontend(closed, protocol, 0, TARGET_REJECT)?;
        }
        for addr in [map_v4([192, 0, 2, 1]), from_octets(v6(2, 1))] {
            self.know(addr)?;
        }
        self.put::<4, { size_of::<NodeValue>() }>("NODE", &NODE_KEY, &node())?;
        let mut cidrs: LpmTrie<_, [u8; 16], u8> = self.0.map_mut("CIDRS").ok_or("no CIDRS")?.try_into()?;
        cidrs.insert(&Key::new(96 + 16, fixed(map_v4([10, 244, 0, 0]).bytes())?), FAMILY_V4, 0)?;
        cidrs.insert(&Key::new(32, v6(0x244, 0)), FAMILY_V6, 0)?;
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

    fn frontend(&mut self, addr: Addr, protocol: u8, set: u32, target: u8) -> Outcome<()> {
        let key = FrontendKey { addr, port: Port::new(80), protocol, scope: 0, pad: 0 };
        let value = FrontendValue {
            id: 1,
            set,
            first: set,
            slots: 1,
            affinity_ns: 0,
            affinity: 0,
            prefix_v4: 32,
            prefix_v6: 128,
            lookup: LOOKUP_RANDOM,
            target,
            flags: 0,
            leaves_sockets: 0,
            pad: 0,
        };
        self.put::<24, 32>("FRONTENDS", &key, &value)
    }

    fn put<const K: usize, const V: usize>(&mut self, map: &str, key: &impl Pod, value: &impl Pod) -> Outcome<()> {
        let mut map: HashMap<_, [u8; K], [u8; V]> = self.0.map_mut(map).ok_or("a map is missing")?.try_into()?;
        Ok(map.insert(fixed::<K>(key.bytes())?, fixed::<V>(value.bytes())?, 0)?)
    }

    /// Makes the programs forget how often they have answered: they would not answer so often.
    fn allow_answers(&mut self) -> Outcome<()> {
        let Some(map) = self.0.map_mut("WORK") else { return Ok(()) };
        let mut work = PerCpuArray::<_, [u64; WORK_WORDS]>::try_from(map)?;
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| format!("{what}: {error}"))?;
        Ok(work.set(0, PerCpuValues::try_from(vec![[0; WORK_WORDS]; cpus])?, 0)?)
    }

    fn programs(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.programs().map(|(name, _)| name.to_owned()).collect();
        names.sort_unstable();
        names
    }

    /// Instructions that the verifier looked at; `-` for a program that an earlier object does not have.
    fn instructions(&self, name: &str) -> Outcome<String> {
        let info = match self.0.program(name) {
            Some(Program::CgroupSockAddr(program)) => program.info()?,
            Some(Program::CgroupSock(program)) => program.info()?,
            Some(Program::SchedClassifier(program)) => program.info()?,
            _ => return Ok("-".into()),
        };
        let count = info.verified_instruction_count().ok_or("the kernel does not say what the verifier did")?;
        Ok(count.to_string())
    }

    fn ingress(&self) -> Outcome<&SchedClassifier> {
        Ok(self.0.program("lb_ingress").ok_or("no lb_ingress")?.try_into()?)
    }

    /// Runs `frame`, which comes in through `device`.
    fn run(&mut self, frame: &[u8], device: &Device, verdict: i32) -> Outcome<Run> {
        let (context, mut out) = (device.context(), vec![0; frame.len() + 64]);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = self.ingress()?.test_run(options)?;
        if result.return_value as i32 != verdict {
            return Err(format!("verdict {}, expected {verdict}", result.return_value as i32).into());
        }
        Ok(Run { ns: result.duration.as_nanos(), frame: out })
    }
}

/// What one run of a packet took, and what became of it.
struct Run {
    ns: u128,
    frame: Vec<u8>,
}

fn fixed<const N: usize>(bytes: &[u8]) -> Outcome<[u8; N]> {
    Ok(bytes.try_into()?)
}

fn node() -> NodeValue {
    NodeValue {
        snat_v4: map_v4([192, 0, 2, 1]),
        snat_v6: from_octets(v6(2, 1)),
        has_v4: 1,
        has_v6: 1,
        nat_first: 1024,
        nat_ports: 28_976,
        many_v4: 0,
        many_v6: 0,
        facts: Facts {
            name: [0; Facts::NAME],
            name_len: 0,
            has_name: 0,
            ips_len: 0,
            cidrs_len: 0,
            ips: [[0; 4]; Facts::IPS],
            cidrs: [PrefixBytes { addr: [0; 4], bits: 0 }; Facts::CIDRS],
        },
    }
}
