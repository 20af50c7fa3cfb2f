//! Permutations and turns as Cilium has them.

use alloc::{format, string::String, vec, vec::Vec};
use core::net::SocketAddr;

use super::{CiliumSeed, Filling, Walk, murmur3};
use crate::{
    addr::{BackendAddr, Protocol},
    table::TableSize,
};

pub(super) fn table(backends: &[(BackendAddr, u16)], size: TableSize, seed: CiliumSeed) -> Vec<u32> {
    let mut named: Vec<(String, u32)> = (0u32..).zip(backends).map(|(n, (addr, _))| (identity(*addr), n)).collect();
    named.sort_unstable();
    let walk = |(name, index): &(String, u32)| Walk::new(*index, murmur3::hash(name.as_bytes(), seed.murmur), size);
    let mut walks: Vec<Walk> = named.iter().map(walk).collect();
    let weights: Vec<u64> = walks.iter().map(|walk| backends[walk.index as usize].1.into()).collect();
    match weights.iter().min().zip(weights.iter().max()) {
        None => Vec::new(),
        // Of equal weights, none is ever ahead of its share when it is its turn.
        Some((least, most)) if least == most => in_turn(&mut walks, size),
        Some(_) if weights.iter().sum::<u64>() / (weights.len() as u64) <= 1 => in_turn(&mut walks, size),
        Some(_) => by_weight(&mut walks, &weights, size),
    }
}

/// The text that Cilium hashes and sorts by: its form of an active backend that external traffic may use.
pub(super) fn identity(addr: BackendAddr) -> String {
    let protocol = match addr.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    format!("[{}/{protocol},State:active]", SocketAddr::new(addr.ip, addr.port))
}

fn in_turn(walks: &mut [Walk], size: TableSize) -> Vec<u32> {
    let mut filling = Filling::new(size);
    loop {
        for walk in &mut *walks {
            filling.take(walk);
            if filling.is_full() {
                return filling.slots;
            }
        }
    }
}

/// The n-th slot is the turn of backend `n mod L`, or of the first one after it that is not ahead of its share.
fn by_weight(walks: &mut [Walk], weights: &[u64], size: TableSize) -> Vec<u32> {
    let mut filling = Filling::new(size);
    let mut shares = Shares::new(weights, size);
    let mut turn = 0;
    for n in 0..size.get() {
        shares.wake(n);
        let taker = shares.next_ready(turn);
        filling.take(&mut walks[taker]);
        shares.paid(taker, n);
        turn = if turn + 1 == walks.len() { 0 } else { turn + 1 };
    }
    filling.slots
}

const NONE: u32 = u32::MAX;

/// Which backends are ahead of their shares, and until when.
///
/// A backend of weight `w` is ready for slot `n` when `(n + 1) × w` has reached its debt, which starts at `w / L` and
/// grows by the sum of weights with each slot. One that is not ready sleeps until the slot from which on it is, which
/// costs less than asking it every time. There is always one ready: the debts of all together never exceed
/// `(n + 1) × sum`.
struct Shares<'a> {
    weights: &'a [u64],
    sum: f64,
    /// Floating point because Cilium's is: its rounding shows in tables.
    debts: Vec<f64>,
    /// A bit per backend.
    ready: Vec<u64>,
    /// Lists of those who wake at a slot: the first of each, and who comes after whom.
    wakes_at: Vec<u32>,
    wakes_after: Vec<u32>,
}

impl<'a> Shares<'a> {
    fn new(weights: &'a [u64], size: TableSize) -> Self {
        let mut ready = vec![0; weights.len().div_ceil(64)];
        for backend in 0..weights.len() {
            ready[backend / 64] |= 1 << (backend % 64);
        }
        Self {
            weights,
            sum: weights.iter().sum::<u64>() as f64,
            debts: weights.iter().map(|&weight| weight as f64 / weights.len() as f64).collect(),
            ready,
            wakes_at: vec![NONE; size.get() as usize],
            wakes_after: vec![NONE; weights.len()],
        }
    }

    /// Wakes the backends that sleep until slot `n`.
    fn wake(&mut self, n: u32) {
        let mut sleeper = self.wakes_at[n as usize];
        while sleeper != NONE {
            self.ready[sleeper as usize / 64] |= 1 << (sleeper % 64);
            sleeper = self.wakes_after[sleeper as usize];
        }
    }

    /// The first ready backend from `start` on, around the end.
    fn next_ready(&self, start: usize) -> usize {
        let mut word = start / 64;
        let mut bits = self.ready[word] & (u64::MAX << (start % 64));
        while bits == 0 {
            word = if word + 1 == self.ready.len() { 0 } else { word + 1 };
            bits = self.ready[word];
        }
        word * 64 + bits.trailing_zeros() as usize
    }

    /// `backend` took slot `n`.
    fn paid(&mut self, backend: usize, n: u32) {
        self.debts[backend] += self.sum;
        let (debt, weight) = (self.debts[backend] as u64, self.weights[backend]);
        if (u64::from(n) + 2) * weight >= debt {
            return;
        }
        self.ready[backend / 64] &= !(1 << (backend % 64));
        if weight == 0 {
            return;
        }
        // Exact, and faster than in integers: the quotient is a slot, far below the precision of a double.
        let quotient = (debt as f64 / weight as f64) as u64;
        let slot = quotient + u64::from(quotient * weight < debt) - 1;
        if let Some(first) = self.wakes_at.get_mut(slot as usize) {
            self.wakes_after[backend] = core::mem::replace(first, backend as u32);
        }
    }
}
