//! How a packet leaves that is translated: where it is sent, and what becomes of its hops and its hardware address.

use std::net::IpAddr;

use lb_core::decision::Entry;

use crate::{
    bpf::Outcome,
    reference::View,
    routes::{Route, Routes},
};

pub(crate) const TCX_NEXT: i32 = -1;
pub(crate) const TCX_DROP: i32 = 2;
pub(crate) const TCX_REDIRECT: i32 = 7;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From a client to a backend.
    ToBackend,
    /// From a backend to a client, who is there, if that is known.
    ToClient(Option<Entry>),
}

/// A packet that is translated.
pub(crate) struct Delivery<'a> {
    pub(crate) routes: &'a Routes,
    pub(crate) view: &'a View<'a>,
    pub(crate) direction: Direction,
    /// Of the packet as it came.
    pub(crate) hop_limit: u8,
}

/// One way in which a packet may leave.
#[derive(Clone, Copy, Debug)]
struct Ending {
    verdict: i32,
    /// What it loses of its hops; `None` if it is as it came.
    hops: Option<u8>,
    /// The hardware address that it gets.
    receiver: Option<Receiver>,
}

/// A hardware address.
#[derive(Clone, Copy, Debug)]
enum Receiver {
    This([u8; 6]),
    /// The one that the packet comes from.
    Sender,
}

impl Ending {
    /// It stays with the network stack of the node, translated.
    const PASSED: Self = Self { verdict: TCX_NEXT, hops: Some(0), receiver: None };
    /// It is one of the node itself, and comes in again through the device that it would leave through.
    const TURNED_IN: Self = Self { verdict: TCX_REDIRECT, hops: Some(0), receiver: Some(Receiver::Sender) };
}

impl Delivery<'_> {
    /// Whether a packet from `source` to `destination`, as `with` writes it for a hop limit, came out in one of the ways
    /// that it may. Checksums at `doubtful` may be either form of zero.
    pub(crate) fn check(
        &self,
        frame: &[u8],
        out: &Outcome<'_>,
        (source, destination): (IpAddr, IpAddr),
        with: impl Fn(u8) -> Option<Vec<u8>>,
        doubtful: &[usize],
    ) -> Result<(), String> {
        let mut why = format!("verdict {}", out.verdict);
        for ending in self.endings(source, destination) {
            let bytes = match ending.hops {
                None => Some(frame.to_vec()),
                Some(hops) => self.hop_limit.checked_sub(hops).and_then(&with),
            };
            let mut bytes = bytes.unwrap_or_default();
            match (ending.receiver, bytes.get_mut(..12)) {
                (Some(Receiver::This(mac)), Some(addresses)) => addresses[..6].copy_from_slice(&mac),
                (Some(Receiver::Sender), Some(addresses)) => addresses.copy_within(6.., 0),
                (None, _) | (_, None) => {}
            }
            if ending.verdict == out.verdict && is_same(&bytes, out.frame, doubtful) {
                return Ok(());
            }
            let at: Vec<usize> = (0..bytes.len().min(out.frame.len())).filter(|&i| bytes[i] != out.frame[i]).collect();
            why += &format!("; not {ending:?} and {} bytes, others at {at:?}", bytes.len());
        }
        Err(why)
    }

    fn endings(&self, source: IpAddr, destination: IpAddr) -> Vec<Ending> {
        if self.view.is_left() {
            match self.direction {
                // What the node itself sends to a client is on its way already, unless that is the node, too.
                Direction::ToClient(Some(Entry::Socket)) => return vec![Ending::TURNED_IN],
                Direction::ToClient(Some(_)) => return vec![Ending::PASSED],
                Direction::ToClient(None) => return vec![Ending::PASSED, Ending::TURNED_IN],
                Direction::ToBackend => {}
            }
        }
        let (route, hops) = (self.routes.between(source, destination), self.view.hops());
        let mut endings = Vec::new();
        if matches!(route, Route::Hop | Route::Odd) {
            endings.push(match self.hop_limit > hops {
                true => Ending { verdict: TCX_REDIRECT, hops: Some(hops), receiver: None },
                false => Ending { verdict: TCX_NEXT, hops: None, receiver: None },
            });
        }
        if self.view.is_left() && matches!(route, Route::Local | Route::Odd) {
            endings.push(Ending::TURNED_IN);
        }
        if route != Route::Hop && !(self.view.is_left() && route == Route::Local) {
            endings.push(Ending::PASSED);
        }
        match self.direction {
            Direction::ToClient(Some(Entry::Socket)) if route == Route::Local => self.received(source),
            Direction::ToClient(None | Some(Entry::Socket)) if matches!(route, Route::Local | Route::Odd) => {
                [self.received(source), endings].concat()
            }
            _ => endings,
        }
    }

    /// How a process of the node gets the answer of `frontend`: through the device that leads there, because its socket
    /// may be bound to that.
    fn received(&self, frontend: IpAddr) -> Vec<Ending> {
        let on_device = |mac| Ending { verdict: TCX_REDIRECT, hops: Some(0), receiver: Some(Receiver::This(mac)) };
        let others = self.view.devices.iter().filter(|device| device.index != self.view.device.index);
        match self.routes.of(frontend) {
            Route::Hop if self.routes.is_uplink(frontend) => {
                let uplink = &self.view.devices[0];
                vec![if uplink.index == self.view.device.index { Ending::PASSED } else { on_device(uplink.mac) }]
            }
            // Pods have devices of their own.
            Route::Hop | Route::Odd => others.map(|device| on_device(device.mac)).chain([Ending::PASSED]).collect(),
            Route::Local | Route::Nowhere => vec![Ending::PASSED],
        }
    }
}

/// Whether both are the same, if checksums at `doubtful` may be either form of zero.
fn is_same(expected: &[u8], found: &[u8], doubtful: &[usize]) -> bool {
    if expected == found {
        return true;
    }
    let zero = |at: usize| {
        let zeros = [[0, 0], [0xff, 0xff]];
        let (Some(a), Some(b)) = (expected.get(at..at + 2), found.get(at..at + 2)) else { return false };
        zeros.iter().any(|zero| a == zero) && zeros.iter().any(|zero| b == zero)
    };
    let mut found = found.to_vec();
    for &at in doubtful.iter().filter(|&&at| zero(at)) {
        found[at..at + 2].copy_from_slice(&expected[at..at + 2]);
    }
    expected == found
}
