//! Chains that end packets of lb's flows that conntrack can make nothing of. Pure.
//!
//! Such a packet has no flow, so only its ends tell whether it belongs to one of lb's. A rule names each TCP frontend,
//! and each TCP backend. They are spread over chains by the last four bits of the address, so that a change writes a
//! sixteenth of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use lb_core::{
    addr::{Family, Protocol},
    state::State,
};

use crate::iptables::rules::{
    choice::Host,
    names::{INVALID, INVALID_FORWARD, INVALID_FROM, INVALID_TO},
    restore::Restore,
    saved::{Rule, SavedTable},
};

/// Which end of a packet a rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// To a frontend.
    To,
    /// From a backend.
    From,
}

impl End {
    const fn chain(self) -> &'static str {
        match self {
            Self::To => INVALID_TO,
            Self::From => INVALID_FROM,
        }
    }

    /// The options for its address and its port.
    const fn options(self) -> (&'static str, &'static str) {
        match self {
            Self::To => ("-d", "--dport"),
            Self::From => ("-s", "--sport"),
        }
    }
}

/// A chain for the addresses that end in the same four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bucket(End, u8);

impl Bucket {
    fn all() -> impl Iterator<Item = Self> {
        [End::To, End::From].into_iter().flat_map(|end| (0..16).map(move |bits| Self(end, bits)))
    }

    fn of(end: End, ip: IpAddr) -> Self {
        let last = match ip {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        Self(end, last & 0xf)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.0.chain(), self.1)
    }
}

/// The ends of one family that rules name.
#[derive(Debug, Default)]
pub(crate) struct Ends(BTreeMap<Bucket, BTreeSet<SocketAddr>>);

impl Ends {
    pub(crate) fn of(state: &State, family: Family) -> Self {
        let mut ends = Self::default();
        let tcp = |protocol, ip| protocol == Protocol::Tcp && Family::of(ip) == family;
        for addr in state.frontends.keys().filter(|addr| tcp(addr.protocol, addr.ip)) {
            ends.insert(End::To, addr.ip, addr.port);
        }
        for backend in state.backends.values().filter(|backend| tcp(backend.addr.protocol, backend.addr.ip)) {
            ends.insert(End::From, backend.addr.ip, backend.addr.port);
        }
        ends
    }

    fn insert(&mut self, end: End, ip: IpAddr, port: u16) {
        self.0.entry(Bucket::of(end, ip)).or_default().insert(SocketAddr::new(ip, port));
    }

    /// Whether other rules are needed than for `before`.
    pub(crate) fn differ(&self, before: &Self) -> bool {
        self.0 != before.0
    }

    /// Whether the table has the rules for these ends and no others. It has not if a restore ended between its two tables.
    pub(crate) fn are_in(&self, filter: &SavedTable) -> bool {
        Bucket::all().all(|bucket| {
            let (address, port) = bucket.0.options();
            let rules = filter.rules(&bucket.to_string());
            let end = |rule: &Rule| {
                let ip = rule.value(address)?.split('/').next()?.parse().ok()?;
                Some(SocketAddr::new(ip, rule.value(port)?.parse().ok()?))
            };
            let there: BTreeSet<SocketAddr> = rules.iter().filter_map(end).collect();
            rules.len() == there.len() && self.0.get(&bucket).map_or(there.is_empty(), |ends| *ends == there)
        })
    }

    /// Writes the chains whose rules differ from those for `before`, or all of them.
    pub(crate) fn write(&self, before: Option<&Self>, out: &mut Restore) {
        let differs = |bucket: &Bucket| before.is_none_or(|before| before.0.get(bucket) != self.0.get(bucket));
        let written: Vec<Bucket> = Bucket::all().filter(differs).collect();
        for bucket in &written {
            out.line(format_args!(":{bucket} - [0:0]"));
        }
        for bucket in written {
            let (address, port) = bucket.0.options();
            for end in self.0.get(&bucket).into_iter().flatten() {
                let (ip, number) = (Host(end.ip()), end.port());
                out.line(format_args!("-A {bucket} {address} {ip} -p tcp -m tcp {port} {number} -j DROP"));
            }
        }
    }
}

/// Writes the chains that lead there: for packets that begin or end on the node, and for those that pass. An answer that
/// passes goes to a pod, since every other source is translated to the node's own.
pub(crate) fn write_dispatch(family: Family, pods: &[IpNet], out: &mut Restore) {
    for chain in [INVALID, INVALID_FORWARD, INVALID_TO, INVALID_FROM] {
        out.line(format_args!(":{chain} - [0:0]"));
    }
    for end in [End::To, End::From] {
        out.line(format_args!("-A {INVALID} -p tcp -j {}", end.chain()));
    }
    out.line(format_args!("-A {INVALID_FORWARD} -p tcp -j {INVALID_TO}"));
    for cidr in pods.iter().filter(|cidr| Family::of(cidr.network()) == family) {
        out.line(format_args!("-A {INVALID_FORWARD} -d {} -p tcp -j {INVALID_FROM}", cidr.trunc()));
    }
    for bucket @ Bucket(end, bits) in Bucket::all() {
        let last = match family {
            Family::V4 => format!("0.0.0.{bits}/0.0.0.15"),
            Family::V6 if bits == 0 => "::/::f".to_owned(),
            Family::V6 => format!("::{bits:x}/::f"),
        };
        out.line(format_args!("-A {} {} {last} -j {bucket}", end.chain(), end.options().0));
    }
}
