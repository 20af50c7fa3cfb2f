//! How a frontend with backends chooses: its chains. Pure.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr},
    affinity::Affinity,
    id::{FrontendId, SetId},
    state::{Frontend, State, Target},
};

use crate::iptables::rules::{
    names::{Chain, MARK_MASQ, MARK_SOURCE, RecentList},
    notes::{Run, SetNote},
    restore::Restore,
};

/// Longest time-out of the `recent` module: it multiplies seconds by the kernel's tick rate, at most 1000, in 32 bits.
pub(crate) const MAX_RECENT_SECONDS: u64 = (u32::MAX / 1000) as u64;

/// How a frontend chooses.
pub(crate) struct Choice {
    addr: FrontendAddr,
    id: FrontendId,
    affinity: Option<Affinity>,
    set: SetId,
    /// The set's slots; behind them those backends that are draining, each with a run of none.
    runs: Vec<Run>,
    /// Where each run leads.
    ends: Vec<End>,
}

#[derive(Clone, Copy)]
struct End {
    backend: BackendAddr,
    chain: Chain,
    /// Whether no earlier run leads there.
    first: bool,
}

impl Choice {
    /// That of `addr`, if it has backends.
    pub(crate) fn new(state: &State, addr: FrontendAddr) -> Option<Self> {
        let Frontend { id, target: Target::Set(set), affinity, .. } = *state.frontends.get(&addr)? else { return None };
        let mut choice = Self { addr, id, affinity, set, runs: Vec::new(), ends: Vec::new() };
        let mut seen = BTreeSet::new();
        let content = state.sets.get(&set)?;
        for &id in &*content.slots {
            if let Some(run) = choice.runs.last_mut().filter(|run| run.backend == id) {
                run.slots += 1;
                continue;
            }
            let backend = state.backends.get(&id)?;
            choice.runs.push(Run { backend: id, local: backend.local, slots: 1 });
            let chain = Chain::endpoint(addr, backend.addr);
            choice.ends.push(End { backend: backend.addr, chain, first: seen.insert(id) });
        }
        for &id in &*content.draining {
            let backend = state.backends.get(&id)?;
            choice.runs.push(Run { backend: id, local: backend.local, slots: 0 });
            let chain = Chain::endpoint(addr, backend.addr);
            choice.ends.push(End { backend: backend.addr, chain, first: true });
        }
        Some(choice)
    }

    /// Writes its chains.
    pub(crate) fn write(&self, out: &mut Restore) {
        self.service_chain(out);
        for (run, end) in self.members() {
            self.endpoint_chain(out, run, end);
        }
    }

    /// Each backend once.
    fn members(&self) -> impl Iterator<Item = (Run, End)> {
        self.runs.iter().copied().zip(self.ends.iter().copied()).filter(|(_, end)| end.first)
    }

    /// Marks, then known clients, then the draw: each run takes its share of what the runs before it left. No packet
    /// gets as far as the rules for backends that are draining, which only say that these have flows.
    fn service_chain(&self, out: &mut Restore) {
        let svc = Chain::service(self.addr);
        let mut note = SetNote::new(self.set, &self.runs);
        out.owned(self.addr, format_args!("-A {svc}{} -j {MARK_SOURCE}", note.next()));
        if let Some(affinity) = self.affinity {
            let seconds = recent_seconds(affinity);
            for (run, End { chain, .. }) in self.members().filter(|(run, _)| run.slots > 0) {
                let (note, list) = (note.next(), self.list(run, affinity));
                let recent = format_args!("-m recent --rcheck --seconds {seconds} --reap {list}");
                out.owned(self.addr, format_args!("-A {svc}{note} {recent} -j {chain}"));
            }
        }
        let mut left: u64 = self.runs.iter().map(|run| u64::from(run.slots)).sum();
        for (run, End { chain, .. }) in self.runs.iter().zip(&self.ends) {
            let share = Share { of: left, slots: run.slots.into() };
            left -= share.slots;
            out.owned(self.addr, format_args!("-A {svc}{}{share} -j {chain}", note.next()));
        }
    }

    fn endpoint_chain(&self, out: &mut Restore, run: Run, end: End) {
        let End { backend: BackendAddr { ip, port, protocol }, chain, .. } = end;
        out.owned(self.addr, format_args!("-A {chain} -s {} -j {MARK_MASQ}", Host(ip)));
        let dnat = format_args!("-j DNAT --to-destination {}", SocketAddr::new(ip, port));
        match self.affinity {
            None => out.owned(self.addr, format_args!("-A {chain} -p {protocol} {dnat}")),
            Some(affinity) => {
                let list = self.list(run, affinity);
                out.owned(self.addr, format_args!("-A {chain} -p {protocol} -m recent --set {list} {dnat}"));
            }
        }
    }

    fn list(&self, run: Run, affinity: Affinity) -> List {
        List { name: RecentList(self.id, run.backend), family: self.addr.family(), affinity }
    }
}

/// Options that name a list of clients, and say what is one.
struct List {
    name: RecentList,
    family: Family,
    affinity: Affinity,
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--name {}", self.name)?;
        let Affinity { prefix_v4, prefix_v6, .. } = self.affinity;
        match self.family {
            Family::V4 if prefix_v4 < 32 => {
                let bits = u32::MAX.checked_shl(32 - u32::from(prefix_v4)).unwrap_or(0);
                write!(f, " --mask {}", Ipv4Addr::from(bits))?;
            }
            Family::V6 if prefix_v6 < 128 => {
                let bits = u128::MAX.checked_shl(128 - u32::from(prefix_v6)).unwrap_or(0);
                write!(f, " --mask {}", Ipv6Addr::from(bits))?;
            }
            Family::V4 | Family::V6 => {}
        }
        f.write_str(" --rsource")
    }
}

/// Whole seconds for the `recent` module, at least one.
fn recent_seconds(affinity: Affinity) -> u64 {
    let seconds = affinity.timeout.as_secs().saturating_add(u64::from(affinity.timeout.subsec_nanos() > 0));
    seconds.clamp(1, MAX_RECENT_SECONDS)
}

/// A probability as the `statistic` module keeps it, in 31 bits.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    pub(crate) of: u64,
    pub(crate) slots: u64,
}

impl Share {
    /// Two probabilities that differ by less are the same: `iptables-save` prints eleven digits of 31 bits.
    pub(crate) const EXACT: f64 = 1.5 / (1u64 << 31) as f64;

    /// Its numerator over 2^31.
    pub(crate) const fn bits(self) -> u64 {
        ((self.slots << 32) / self.of).div_ceil(2)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.slots == self.of {
            return Ok(());
        }
        // Eleven digits are what `iptables-save` prints, and enough to find the 31 bits again.
        write!(f, " -m statistic --mode random --probability {:.11}", self.bits() as f64 / f64::from(1u32 << 31))
    }
}

/// An address with the prefix length of one host, as `iptables-save` prints it.
pub(crate) struct Host(pub(crate) IpAddr);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, if self.0.is_ipv4() { 32 } else { 128 })
    }
}
