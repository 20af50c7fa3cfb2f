//! Connections of backends, counted anew.
//!
//! The programs count a connection when it begins and when it ends. They do not see the end of a UDP flow that falls
//! silent, of an entry that the kernel evicts, and of a flow that user space cuts. So user space counts what is there from
//! time to time, and puts the counters right.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Mutex, PoisonError},
};

use lb_datapath_ebpf_abi::{self as abi, CtKey, CtValue, LoadKey, Pod, SockFlow};

use super::{
    layout::{LOADS, SOCK_COUNTS},
    maps::Maps,
    sweep::is_over,
};
use crate::{
    error::EbpfError,
    sys::{self, RawMap},
};

/// The counters, and the maps whose entries say what they should be.
#[derive(Debug)]
pub(crate) struct Loads {
    loads: RawMap,
    /// Established flows, and the others.
    flows: [RawMap; 2],
    sock_flows: RawMap,
    sock_counts: RawMap,
    /// One thread at a time puts counters right.
    turn: Mutex<()>,
}

/// A number for each backend.
type Counts = BTreeMap<u32, u64>;

impl Loads {
    /// Those of `maps`, by descriptors of its own.
    pub(crate) fn new(maps: &Maps) -> Result<Self, EbpfError> {
        let clone = |name, map: &RawMap| {
            map.try_clone().map_err(|source| EbpfError::Map { name, what: "counting connections with", source })
        };
        let [(live_name, live), (new_name, new)] = maps.flows();
        Ok(Self {
            loads: clone(LOADS, maps.loads())?,
            flows: [clone(live_name, live)?, clone(new_name, new)?],
            sock_flows: clone("SOCK_FLOWS", maps.sock_flows())?,
            sock_counts: clone(SOCK_COUNTS, maps.sock_counts())?,
            turn: Mutex::default(),
        })
    }

    /// Counts what is there, and puts counters right that say something else. Nothing is read if there are no counters.
    ///
    /// What the programs count between the reading and the writing of a counter, some microseconds, is lost until the next
    /// time.
    pub(crate) fn recount(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // The next time finds what could not be read or written this time.
        let _ = self.correct(sys::monotonic().as_nanos() as u64);
    }

    fn correct(&self, now: u64) -> io::Result<()> {
        let before = self.counted()?;
        if before.is_empty() {
            return Ok(());
        }
        let found = self.found(now)?;
        let after = self.counted()?;
        let known = before.keys().chain(after.keys()).chain(found.keys());
        for backend in known.copied().collect::<std::collections::BTreeSet<_>>() {
            let of = |counts: &Counts| counts.get(&backend).copied().unwrap_or(0);
            match judge(of(&before), of(&found), of(&after)) {
                Judgement::Right => {}
                Judgement::Unused => self.remove(backend)?,
                Judgement::Off(by) => self.add(backend, by)?,
            }
        }
        Ok(())
    }

    /// The sums of the counters.
    fn counted(&self) -> io::Result<Counts> {
        let mut sums = Counts::new();
        each(&self.loads, |key: LoadKey, count: u64| {
            let sum = sums.entry(key.backend).or_default();
            *sum = sum.wrapping_add(count);
        })?;
        Ok(sums)
    }

    /// Connections that are there.
    fn found(&self, now: u64) -> io::Result<Counts> {
        let mut counts = self.flows(now)?;
        let mut add = |backend| *counts.entry(backend).or_default() += 1;
        each(&self.sock_counts, |_: u64, backend: u32| add(backend))?;
        each(&self.sock_flows, |_: abi::SockKey, flow: SockFlow| {
            if flow.counted != 0 && now.saturating_sub(flow.last_ns) < abi::UDP_IDLE_NS {
                add(flow.backend);
            }
        })?;
        Ok(counts)
    }

    /// Flows of packets that count, both of whose entries are there, and which are not over.
    ///
    /// A flow that is established or closed meanwhile moves from one table to the other, and is found in one of three looks.
    fn flows(&self, now: u64) -> io::Result<Counts> {
        let (mut clients, mut replies) = (HashMap::new(), HashMap::new());
        let [live, new] = &self.flows;
        for table in [new, live, new] {
            each(table, |key: CtKey, value: CtValue| {
                if value.flags & abi::CT_COUNTED == 0 {
                    return;
                }
                let other = value.mirror(key.protocol);
                if value.flags & abi::CT_REPLY == 0 {
                    clients.insert(key, (other, value.backend));
                } else {
                    replies.insert(key, (other, value.is_closed() || is_over(&key, &value, now)));
                }
            })?;
        }
        let mut counts = Counts::new();
        for (client, (reply, backend)) in clients {
            if replies.get(&reply) == Some(&(client, false)) {
                *counts.entry(backend).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// Adds to a counter of a backend.
    fn add(&self, backend: u32, by: u64) -> io::Result<()> {
        let key = LoadKey { backend, lane: 0 };
        let found = self.loads.lookup(key.bytes())?.as_deref().and_then(u64::from_bytes).unwrap_or(0);
        self.loads.update(key.bytes(), found.wrapping_add(by).bytes()).map_err(|stopped| stopped.cause)
    }

    /// Removes the counters of a backend.
    fn remove(&self, backend: u32) -> io::Result<()> {
        for lane in 0..abi::LOAD_LANES {
            self.loads.remove(LoadKey { backend, lane }.bytes())?;
        }
        Ok(())
    }
}

/// What is to be done about the counters of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// Nothing.
    Right,
    /// They say that there is nothing, and so it is.
    Unused,
    /// They need this added.
    Off(u64),
}

/// Judges the sums of counters `before` and `after` connections were counted. What began or ended meanwhile may be among
/// those that were `found` or not.
fn judge(before: u64, found: u64, after: u64) -> Judgement {
    let (least, most) = ((before as i64).min(after as i64), (before as i64).max(after as i64));
    match found as i64 {
        0 if (least, most) == (0, 0) => Judgement::Unused,
        found if (least..=most).contains(&found) => Judgement::Right,
        _ => Judgement::Off(found.wrapping_sub(after)),
    }
}

fn each<K: Pod, V: Pod>(map: &RawMap, mut look: impl FnMut(K, V)) -> io::Result<()> {
    let mut read = |key: &[u8], value: &[u8]| {
        if let Some((key, value)) = K::from_bytes(key).zip(V::from_bytes(value)) {
            look(key, value);
        }
        Ok(())
    };
    map.each(&mut read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_put_right_unless_connections_came_and_went() {
        assert_eq!(judge(0, 0, 0), Judgement::Unused);
        assert_eq!(judge(3, 3, 3), Judgement::Right);
        assert_eq!(judge(3, 4, 5), Judgement::Right, "both are new, one of them was found");
        assert_eq!(judge(5, 4, 3), Judgement::Right);
        assert_eq!(judge(0, 0, 1), Judgement::Right);
        assert_eq!(judge(3, 1, 3), Judgement::Off(2_u64.wrapping_neg()));
        assert_eq!(judge(3, 7, 4), Judgement::Off(3));
        assert_eq!(judge(2_u64.wrapping_neg(), 0, 2_u64.wrapping_neg()), Judgement::Off(2));
        assert_eq!(judge(1_u64.wrapping_neg(), 0, 1), Judgement::Right);
    }
}
