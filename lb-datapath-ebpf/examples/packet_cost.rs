//! What a packet costs in `lb_ingress`, for one eBPF object or for two side by side.
//!
//! ```sh
//! cargo run --release -p lb-datapath-ebpf --example packet_cost -- lb-datapath-ebpf/src/lb.bpf.o [OTHER.bpf.o]
//! ```
//!
//! It needs root. It makes a network namespace of its own by `unshare --net`, loads each object with maps of its own,
//! and runs packets through `BPF_PROG_TEST_RUN`, a block for one object and a block for the other, in turns. The kernel
//! runs a packet that a program has rewritten again as it is, so every packet that is rewritten is a call of its own.
//! The median includes the two clock readings that the kernel makes around a call.
//!
//! Prints one line for each figure, with tabs: `insns PROGRAM COUNT [OTHER]` and `ns PACKET MEDIAN [OTHER] N`.

use std::{env, error::Error, process::Command};

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, PerCpuValues, lpm_trie::Key},
    programs::{Program, SchedClassifier},
};
use lb_datapath_ebpf_abi::{
    Addr, BackendValue, FAMILY_V4, FAMILY_V6, Facts, FrontendKey, FrontendValue, LOOKUP_RANDOM, NODE_KEY, NodeValue,
    Pod, Port, PrefixBytes, TARGET_REJECT, TARGET_SET, WORK_WORDS, filter_bit, from_octets, map_v4,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Set in the copy of this program that runs in a namespace of its own.
const INSIDE: &str = "LB_PACKET_COST_INSIDE";
const ROUNDS: usize = 100;
/// Calls for one object before it is the other one's turn.
const BLOCK: usize = 100;

const TCP: u8 = 6;
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
    let uplink = Device::new()?;
    let mut subjects = objects.iter().map(|path| Subject::load(path)).collect::<Outcome<Vec<_>>>()?;
    for name in subjects[0].programs() {
        let counts = subjects.iter().map(|subject| subject.instructions(&name)).collect::<Outcome<Vec<_>>>()?;
        println!("insns\t{name}\t{}", counts.join("\t"));
    }
    for packet in PACKETS {
        let mut samples = vec![Vec::new(); subjects.len()];
        for subject in &mut subjects {
            packet.prepare(subject, &uplink)?;
        }
        for round in 0..ROUNDS {
            for turn in 0..subjects.len() {
                let at = (round + turn) % subjects.len();
                for call in round * BLOCK..(round + 1) * BLOCK {
                    samples[at].push(packet.run(&mut subjects[at], &uplink, call)?);
                }
            }
        }
        let medians: Vec<_> = samples.iter_mut().map(|samples| median(samples).to_string()).collect();
        println!("ns\t{}\t{}\t{}", packet.name, medians.join("\t"), samples[0].len());
    }
    Ok(())
}

fn median(samples: &mut [u128]) -> u128 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// A kind of packet.
struct Case {
    name: &'static str,
    /// Last byte of the destination: which frontend it is for.
    frontend: u8,
    is_v4: bool,
    kind: Kind,
}

enum Kind {
    /// No frontend has the address: the packet stays as it is, and can be run many times in one call.
    Foreign,
    /// A packet of a flow that is there.
    Established,
    /// The first packet of a flow.
    New,
    /// A packet for a frontend without backends.
    Refused,
}

const PACKETS: [Case; 8] = [
    Case { name: "none of the frontends, IPv4", frontend: 99, is_v4: true, kind: Kind::Foreign },
    Case { name: "none of the frontends, IPv6", frontend: 99, is_v4: false, kind: Kind::Foreign },
    Case { name: "established flow, IPv4", frontend: 1, is_v4: true, kind: Kind::Established },
    Case { name: "established flow, IPv6", frontend: 1, is_v4: false, kind: Kind::Established },
    Case { name: "new flow, IPv4", frontend: 1, is_v4: true, kind: Kind::New },
    Case { name: "new flow, IPv6", frontend: 1, is_v4: false, kind: Kind::New },
    Case { name: "refused and counted, IPv4", frontend: 2, is_v4: true, kind: Kind::Refused },
    Case { name: "refused and counted, IPv6", frontend: 2, is_v4: false, kind: Kind::Refused },
];

impl Case {
    /// Starts the flow that an established packet belongs to: a handshake.
    fn prepare(&self, subject: &mut Subject, uplink: &Device) -> Outcome<()> {
        if matches!(self.kind, Kind::Established) {
            subject.run(&self.frame(uplink, SYN, 0), uplink, 1, TCX_REDIRECT)?;
            subject.run(&self.answer(uplink), uplink, 1, TCX_REDIRECT)?;
        }
        Ok(())
    }

    /// What the backend answers to the first packet of flow 0.
    fn answer(&self, uplink: &Device) -> Vec<u8> {
        let mut frame = self.frame(uplink, SYN | ACK, 0);
        let (from, to, size) = if self.is_v4 { (26, 30, 4) } else { (22, 38, 16) };
        frame.copy_within(from..from + size, to);
        let backend = if self.is_v4 { vec![10, 244, 0, 2] } else { v6(0x244, 2).to_vec() };
        frame[from..from + size].copy_from_slice(&backend);
        let ports = to + size;
        frame.copy_within(ports..ports + 2, ports + 2);
        frame[ports..ports + 2].copy_from_slice(&8080_u16.to_be_bytes());
        frame
    }

    /// Nanoseconds of call number `call`.
    fn run(&self, subject: &mut Subject, uplink: &Device, call: usize) -> Outcome<u128> {
        match self.kind {
            Kind::Foreign => subject.run(&self.frame(uplink, ACK, 0), uplink, 1000, TCX_NEXT),
            Kind::Established => subject.run(&self.frame(uplink, ACK, 0), uplink, 1, TCX_REDIRECT),
            Kind::New => subject.run(&self.frame(uplink, SYN, call + 1), uplink, 1, TCX_REDIRECT),
            Kind::Refused => {
                subject.allow_answers()?;
                subject.run(&self.frame(uplink, SYN, call), uplink, 1, TCX_REDIRECT)
            }
        }
    }

    /// An Ethernet frame; `flow` gives each flow a source port of its own. The source is a pod, which keeps its
    /// address.
    fn frame(&self, uplink: &Device, flags: u8, flow: usize) -> Vec<u8> {
        let mut frame = [&uplink.address[..], &[2, 0, 0, 0, 0, 1]].concat();
        if self.is_v4 {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
            frame.extend([10, 244, 7, 7, 10, 96, 0, self.frontend]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, TCP, 64]);
            frame.extend(v6(0x244, 7));
            frame.extend(v6(0x96, self.frontend));
        }
        frame.extend((10_000 + flow as u16).to_be_bytes());
        frame.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame
    }
}

/// `fd00:<net>::<host>`.
fn v6(net: u16, host: u8) -> [u8; 16] {
    let [high, low] = net.to_be_bytes();
    [0xfd, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
}

/// The device that packets come in through.
struct Device {
    index: u32,
    address: [u8; 6],
}

impl Device {
    /// Makes it, and a route to the backend behind another one, in the namespace of this process.
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
            "route add 10.244.7.0/24 dev uplink",
            "addr add fd00:2::1/64 dev uplink nodad",
            "addr add fd00:244::1/64 dev pods nodad",
        ] {
            command("ip", &line.split(' ').collect::<Vec<_>>())?;
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        let text = command("ip", &["-o", "link", "show", "dev", "uplink"])?;
        let (index, rest) = text.split_once(':').ok_or("`ip link` shows no index")?;
        let address = rest.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
        let address = address.ok_or("`ip link` shows no address")?;
        let bytes = address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
        let address = bytes.try_into().map_err(|_| "the address of the device has not six bytes")?;
        Ok(Self { index: index.trim().parse()?, address })
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

    fn fill(&mut self) -> Outcome<()> {
        for (id, addr) in [(1, map_v4([10, 244, 0, 2])), (2, from_octets(v6(0x244, 2)))] {
            self.know(addr)?;
            let backend = BackendValue { addr, port: Port::new(8080), protocol: TCP, local: 1, host: 0, pad: [0; 3] };
            self.put::<4, 24>("BACKENDS", &id, &backend)?;
            let mut slots: Array<_, [u8; 16]> = self.0.map_mut("SLOTS").ok_or("no SLOTS")?.try_into()?;
            slots.set(id, fixed([id, 0, 0, 0].bytes())?, 0)?;
        }
        for (set, vip) in [(1, map_v4([10, 96, 0, 1])), (2, from_octets(v6(0x96, 1)))] {
            self.frontend(vip, set, TARGET_SET)?;
        }
        for vip in [map_v4([10, 96, 0, 2]), from_octets(v6(0x96, 2))] {
            self.frontend(vip, 0, TARGET_REJECT)?;
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

    fn frontend(&mut self, addr: Addr, set: u32, target: u8) -> Outcome<()> {
        self.know(addr)?;
        let key = FrontendKey { addr, port: Port::new(80), protocol: TCP, scope: 0, pad: 0 };
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
            pad: [0; 2],
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

    /// Runs `frame` as it is, `repeat` times in one call; returns nanoseconds of one run.
    fn run(&mut self, frame: &[u8], device: &Device, repeat: u32, verdict: i32) -> Outcome<u128> {
        /// `__sk_buff` up to its `ifindex`, the only field that is not zero.
        const CONTEXT: usize = 44;
        let mut context = [0; CONTEXT];
        context[CONTEXT - 4..].copy_from_slice(&device.index.to_ne_bytes());
        let program: &SchedClassifier = self.0.program("lb_ingress").ok_or("no lb_ingress")?.try_into()?;
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat, ..TestRunOptions::default() };
        let result = program.test_run(options)?;
        if result.return_value as i32 != verdict {
            return Err(format!("verdict {}, expected {verdict}", result.return_value as i32).into());
        }
        Ok(result.duration.as_nanos())
    }
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
