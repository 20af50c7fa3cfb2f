//! How long it takes from somebody else's edit until the kernel holds again what it should, through the trait alone:
//! watcher, inspection of the suspects, repair. In a network namespace of its own; needs root.
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
    addr::{BackendAddr, FrontendAddr, Protocol},
    datapath::Datapath,
    drift::{Expected, Inspection},
    id::{BackendId, FrontendId, SetId},
    plan::{Labels, diff},
    state::{Backend, BackendSet, Frontend, Lookup, State, Target},
};
use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};
use lb_netlink::{Protocol as NetlinkProtocol, Socket, Writer};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REQUEST};
use nix::{
    libc,
    sched::{CloneFlags, unshare},
};

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
    fn carry_out(self, socket: &mut Socket, n: u32) -> Result<Instant, Failure> {
        if self == Self::DeleteRoute {
            let command = format!("ip route del {} table 27746 proto 108", vip(n));
            let start = Instant::now();
            run(&command)?;
            return Ok(start);
        }
        let mut batch = Writer::default();
        marker(&mut batch, libc::NFNL_MSG_BATCH_BEGIN);
        self.write(&mut batch, n);
        let last = batch.messages() - 1;
        batch.flag_last(netlink_packet_core::NLM_F_ACK);
        marker(&mut batch, libc::NFNL_MSG_BATCH_END);
        let start = Instant::now();
        let refused = socket.transaction(batch, last)?;
        if refused.is_empty() { Ok(start) } else { Err(format!("{self:?} was refused: {refused:?}").into()) }
    }

    /// Writes the edit as messages of nf_tables.
    fn write(self, batch: &mut Writer, n: u32) {
        let slot = slot_key(n);
        match self {
            Self::FlushRuleset => message(batch, libc::NFT_MSG_DELTABLE, libc::AF_UNSPEC, |_| {}),
            Self::DeleteTable => message(batch, libc::NFT_MSG_DELTABLE, libc::NFPROTO_INET, |w| w.put_str(TABLE, "lb")),
            Self::FlushChain => message(batch, libc::NFT_MSG_DELRULE, libc::NFPROTO_INET, |w| {
                w.put_str(TABLE, "lb");
                w.put_str(OBJECT, "prerouting");
            }),
            Self::DeleteSlot => element(batch, libc::NFT_MSG_DELSETELEM, "slots4", &slot, |_| {}),
            Self::ChangeSlot => {
                element(batch, libc::NFT_MSG_DELSETELEM, "slots4", &slot, |_| {});
                element(batch, libc::NFT_MSG_NEWSETELEM, "slots4", &slot, |w| {
                    w.nest(DATA, |w| w.put(VALUE, &[192, 0, 2, 1, 0, 80, 0, 0]));
                });
            }
            Self::AddFrontend => {
                // The first register of a value is not part of it; the others say `drop`.
                let (key, drop) = ([10, 200, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0], [0, 1 << 29, 0, 0, 0_u32]);
                let drop = drop.map(u32::to_ne_bytes).concat();
                element(batch, libc::NFT_MSG_NEWSETELEM, "frontends4", &key, |w| {
                    w.nest(DATA, |w| w.put(VALUE, &drop));
                });
            }
            Self::DeleteRoute => unreachable!("a route is not in a table of nf_tables"),
        }
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
        let mut socket = Socket::open(NetlinkProtocol::Netfilter)?;
        let (began, beginnings) = mpsc::channel();
        let (repaired, next) = mpsc::channel();
        let mut times = Vec::new();
        std::thread::scope(|scope| -> Result<(), Failure> {
            scope.spawn(move || {
                for n in 0..rounds {
                    let start = edit.carry_out(&mut socket, n % services).expect("the edit takes");
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
        state.sets.insert(set, Arc::new(BackendSet::new(Lookup::Random, backends)));
        let addr = FrontendAddr::new(vip(n).into(), 80, Protocol::Tcp);
        state.frontends.insert(addr, Frontend::new(frontend, Target::Set(set)));
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

/// `NFTA_…_TABLE`, the same for all objects.
const TABLE: u16 = 1;
/// `NFTA_RULE_CHAIN`, `NFTA_SET_ELEM_LIST_SET`.
const OBJECT: u16 = 2;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
const ELEMENTS: u16 = 3;
/// `NFTA_LIST_ELEM`.
const ITEM: u16 = 1;
/// `NFTA_SET_ELEM_KEY`.
const KEY: u16 = 1;
/// `NFTA_SET_ELEM_DATA`.
const DATA: u16 = 2;
/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;

/// The beginning or the end of a batch.
fn marker(batch: &mut Writer, kind: i32) {
    let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    batch.message(kind as u16, NLM_F_REQUEST, &[0, 0, high, low], |_| {});
}

fn message(batch: &mut Writer, kind: i32, family: i32, attributes: impl FnOnce(&mut Writer)) {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    batch.message(kind, NLM_F_REQUEST | NLM_F_CREATE, &[family as u8, 0, 0, 0], attributes);
}

fn element(batch: &mut Writer, kind: i32, set: &str, key: &[u8], rest: impl FnOnce(&mut Writer)) {
    message(batch, kind, libc::NFPROTO_INET, |w| {
        w.put_str(TABLE, "lb");
        w.put_str(OBJECT, set);
        w.nest(ELEMENTS, |w| {
            w.nest(ITEM, |w| {
                w.nest(KEY, |w| w.put(VALUE, key));
                rest(w);
            });
        });
    });
}
