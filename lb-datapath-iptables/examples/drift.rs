//! How long it takes from somebody else's edit until the kernel holds again what it should, through the trait alone: watcher,
//! inspection of the suspects, repair. In a network namespace of its own; needs root.
//!
//! ```text
//! cargo run --release -p lb-datapath-iptables --example drift -- SERVICES ROUNDS [CLASS]
//! ```
//!
//! Prints one line of JSON for each class of edit. The time counts from before the edit is sent.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use lb_core::{
    Backend, BackendAddr, BackendId, BackendSet, Datapath, Expected, Frontend, FrontendAddr, FrontendId, Inspection,
    Labels, Lookup, Protocol, SetId, State, Target, diff,
};
use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sched::{CloneFlags, unshare};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let services: u32 = arguments.next().map_or(Ok(1_000), |word| word.parse())?;
    let rounds: u32 = arguments.next().map_or(Ok(100), |word| word.parse())?;
    let only = arguments.next().unwrap_or_default();
    unshare(CloneFlags::CLONE_NEWNET)?;
    run("ip link set lo up")?;
    let state = state(services);
    let labels = Labels::new();
    let mut datapath = NftablesDatapath::open(&NftablesConfig::default())?;
    let plan = diff(&State::default(), &state, &labels);
    let start = Instant::now();
    datapath.apply(&plan)?;
    println!(r#"{{"class":"sync, for comparison","services":{services},"ms":{:.1}}}"#, millis(start.elapsed()));
    let expected = Expected { state: &state, labels: &labels };
    let start = Instant::now();
    assert_eq!(datapath.inspect(expected, Inspection::Everything)?, []);
    println!(r#"{{"class":"full inspection","services":{services},"ms":{:.1}}}"#, millis(start.elapsed()));
    let mut rig = Rig { datapath, state: &state, labels: &labels };
    for edit in Edit::ALL.into_iter().filter(|edit| edit.name().contains(&only)) {
        rig.measure(edit, services, rounds)?;
    }
    Ok(())
}

/// What somebody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    FlushRuleset,
    DeleteTable,
    FlushChain,
    DeleteSlot,
    ChangeSlot,
    AddFrontend,
    DeleteRoute,
}

impl Edit {
    const ALL: [Self; 7] = [
        Self::DeleteSlot,
        Self::ChangeSlot,
        Self::AddFrontend,
        Self::FlushChain,
        Self::DeleteRoute,
        Self::DeleteTable,
        Self::FlushRuleset,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::FlushRuleset => "nft flush ruleset",
            Self::DeleteTable => "nft delete table",
            Self::FlushChain => "deleted rules",
            Self::DeleteSlot => "deleted element",
            Self::ChangeSlot => "changed element",
            Self::AddFrontend => "added element",
            Self::DeleteRoute => "deleted route",
        }
    }

    /// Carries it out and returns when it began.
    fn carry_out(self, socket: &Socket, n: u32) -> Result<Instant, Failure> {
        const NEW_ELEMENT: u8 = 12;
        const DELETE_ELEMENT: u8 = 14;
        let table = text(1, "lb");
        let slots = |rest: &[u8]| [table.clone(), text(2, "slots4"), nest(3, &nest(1, rest))].concat();
        let slot = nest(1, &attribute(1, &slot_key(n)));
        let messages: Vec<(u8, u8, Vec<u8>)> = match self {
            Self::FlushRuleset => vec![(2, 0, Vec::new())],
            Self::DeleteTable => vec![(2, 1, table)],
            Self::FlushChain => vec![(8, 1, [table, text(2, "prerouting")].concat())],
            Self::DeleteSlot => vec![(DELETE_ELEMENT, 1, slots(&slot))],
            Self::ChangeSlot => {
                let value = nest(2, &attribute(1, &[192, 0, 2, 1, 0, 80, 0, 0]));
                vec![(DELETE_ELEMENT, 1, slots(&slot)), (NEW_ELEMENT, 1, slots(&[slot.clone(), value].concat()))]
            }
            Self::AddFrontend => {
                let key = [&[10, 200, 0, 1][..], &[6, 0, 0, 0], &[0, 80, 0, 0]].concat();
                let verdict = nest(2, &nest(2, &attribute(1, &0_u32.to_be_bytes())));
                let item = nest(3, &nest(1, &[nest(1, &attribute(1, &key)), verdict].concat()));
                vec![(NEW_ELEMENT, 1, [table, text(2, "frontends4"), item].concat())]
            }
            Self::DeleteRoute => {
                let command = format!("ip route del {} table 27746 proto 108", vip(n));
                let start = Instant::now();
                run(&command)?;
                return Ok(start);
            }
        };
        let batch = batch(&messages);
        let start = Instant::now();
        socket.send(&batch, 0)?;
        Ok(start)
    }
}

/// A datapath and what it should hold.
struct Rig<'a> {
    datapath: NftablesDatapath,
    state: &'a State,
    labels: &'a Labels,
}

impl Rig<'_> {
    fn measure(&mut self, edit: Edit, services: u32, rounds: u32) -> Result<(), Failure> {
        let expected = Expected { state: self.state, labels: self.labels };
        let mut watcher = self.datapath.watcher()?.ok_or("no watcher")?;
        assert_eq!(self.datapath.inspect(expected, Inspection::Suspects)?, []);
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let (began, beginnings) = mpsc::channel();
        let (repaired, next) = mpsc::channel();
        let mut times = Vec::new();
        std::thread::scope(|scope| -> Result<(), Failure> {
            scope.spawn(move || {
                for n in 0..rounds {
                    let start = edit.carry_out(&socket, n % services).expect("the edit takes");
                    if began.send(start).is_err() || next.recv().is_err() {
                        break;
                    }
                }
            });
            for _ in 0..rounds {
                while !watcher.wait(Duration::from_secs(10))? {}
                let found = self.datapath.inspect(expected, Inspection::Suspects)?;
                assert!(!found.is_empty(), "{edit:?} was not found");
                self.datapath.repair(expected, &found)?;
                let end = Instant::now();
                times.push(end.duration_since(beginnings.recv()?));
                assert_eq!(self.datapath.inspect(expected, Inspection::Everything)?, [], "after {edit:?}");
                repaired.send(())?;
            }
            Ok(())
        })?;
        times.sort_unstable();
        let at = |share: f64| millis(times[((times.len() - 1) as f64 * share) as usize]);
        println!(
            r#"{{"class":"{}","services":{services},"n":{rounds},"p50_ms":{:.2},"p99_ms":{:.2},"max_ms":{:.2}}}"#,
            edit.name(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
        Ok(())
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn vip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a60_0000 + n)
}

/// `services` services with four backends each, that no other has.
fn state(services: u32) -> State {
    let mut state = State::default();
    for n in 0..services {
        let id = n + 1;
        let backends: Vec<BackendId> = (0..4).filter_map(|slot| BackendId::new(4 * n + slot + 1)).collect();
        for &backend in &backends {
            let ip = IpAddr::from(Ipv4Addr::from_bits(0x0b00_0000 + backend.get()));
            let addr = BackendAddr::new(ip, 8080, Protocol::Tcp);
            state.backends.insert(backend, Backend { addr, local: false });
        }
        let (Some(set), Some(frontend)) = (SetId::new(id), FrontendId::new(id)) else { continue };
        state.sets.insert(set, Arc::new(BackendSet { lookup: Lookup::Random, slots: backends.into() }));
        let addr = FrontendAddr::new(vip(n).into(), 80, Protocol::Tcp);
        state.frontends.insert(addr, Frontend { id: frontend, target: Target::Set(set), affinity: None });
    }
    state
}

/// Key of slot 2 of service `n`.
fn slot_key(n: u32) -> Vec<u8> {
    [&vip(n).octets()[..], &[6, 0, 0, 0], &[0, 80, 0, 0], &2_u32.to_ne_bytes()].concat()
}

fn run(command: &str) -> Result<(), Failure> {
    let status = Command::new("sh").arg("-ec").arg(command).status()?;
    if status.success() { Ok(()) } else { Err(format!("`{command}` failed").into()) }
}

/// A batch of nf_tables' messages: type, family, attributes.
fn batch(messages: &[(u8, u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = message(0x10, 0, &[0, 0, 0, 10]);
    for (kind, family, attributes) in messages {
        let body = [&[*family, 0, 0, 0][..], attributes].concat();
        bytes.extend(message(10 << 8 | u16::from(*kind), 0x400, &body));
    }
    bytes.extend(message(0x11, 0, &[0, 0, 0, 10]));
    bytes
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 16).expect("a short message");
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &(flags | 1).to_ne_bytes(), &[0; 8], body].concat()
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).expect("a short attribute");
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nest(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | 0x8000, attributes)
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}
