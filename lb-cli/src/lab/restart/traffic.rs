//! Traffic through the service, from everywhere, all the time.

use std::{
    thread,
    time::{Duration, Instant},
};

use lb_testkit::{
    lab::{Lab, Origin, Running},
    traffic::{Load, LoadKind, Report, Until},
};

use super::{
    super::{error::RunError, interrupt},
    bed::{CLIENTS, SERVICE},
};

/// A pod's sockets, a pod's packets, and a client that is not in the cluster: translated at `connect`, on the way, and
/// on the way with a source that is translated too.
const ORIGINS: [Origin; 3] = [Origin::Pod(CLIENTS[0]), Origin::PodPackets(CLIENTS[1]), Origin::Beyond];
/// Sockets with datagrams from each origin.
const DATAGRAM_SOCKETS: usize = 4;
/// A lane's shortest time from one datagram, or new connection, to the next.
const PACE: Duration = Duration::from_millis(2);
/// Shortest time from one round of all connections to the next.
const ROUND: Duration = Duration::from_millis(50);
/// An answer that is not there by then is lost.
const LOST: Duration = Duration::from_secs(5);
/// How long the first round of all connections may take.
const OPENING: Duration = Duration::from_secs(120);
/// A message that is answered is two packets with data.
const PACKETS: u64 = 2;

/// Loads under way.
pub(super) struct Traffic<'lab> {
    connections: Vec<Running<'lab>>,
    datagrams: Vec<Running<'lab>>,
    new: Vec<Running<'lab>>,
}

/// What came of the traffic.
pub(super) struct Counted {
    /// Messages on long-lived connections.
    pub(super) connections: Report,
    pub(super) datagrams: Report,
    /// New connections with one request each.
    pub(super) new: Report,
}

impl<'lab> Traffic<'lab> {
    /// Begins; every long-lived connection has had an answer when this returns.
    pub(super) fn start(lab: &'lab Lab, connections: u32) -> Result<Self, RunError> {
        let start = |load: &Load| -> Result<Vec<Running<'lab>>, RunError> {
            ORIGINS.into_iter().map(|origin| Ok(lab.client(origin).start_load(load)?)).collect()
        };
        let load = |kind| Load { timeout: LOST, ..Load::new(kind, SERVICE).until(Until::Stopped) };
        let mut crowds = Vec::new();
        for (share, origin) in shares(connections).into_iter().zip(ORIGINS) {
            let crowd = load(LoadKind::Crowd(share)).interval(ROUND);
            crowds.push(lab.client(origin).start_load(&crowd)?);
        }
        await_answers(&crowds, connections)?;
        Ok(Self {
            connections: crowds,
            datagrams: start(&load(LoadKind::DatagramStream).lanes(DATAGRAM_SOCKETS).interval(PACE))?,
            new: start(&load(LoadKind::NewConnections).interval(PACE))?,
        })
    }

    /// Packets with data so far, of long-lived connections and datagrams.
    pub(super) fn packets(&self) -> Result<u64, RunError> {
        let loads = self.connections.iter().chain(&self.datagrams);
        loads.map(|load| Ok(load.answered()? * PACKETS)).sum()
    }

    pub(super) fn stop(self) -> Result<Counted, RunError> {
        let stop = |loads: Vec<Running<'lab>>| -> Result<Report, RunError> {
            let mut total = Report::default();
            for load in loads {
                total.merge(load.stop()?);
            }
            Ok(total)
        };
        Ok(Counted { new: stop(self.new)?, datagrams: stop(self.datagrams)?, connections: stop(self.connections)? })
    }
}

impl Counted {
    pub(super) fn packets(&self) -> u64 {
        (self.connections.answered() + self.datagrams.answered()) * PACKETS
    }
}

/// As equal as can be.
fn shares(connections: u32) -> [usize; ORIGINS.len()] {
    let (count, all) = (ORIGINS.len(), connections as usize);
    std::array::from_fn(|index| all / count + usize::from(index < all % count))
}

fn await_answers(crowds: &[Running<'_>], connections: u32) -> Result<(), RunError> {
    let deadline = Instant::now() + OPENING;
    loop {
        interrupt::check()?;
        let answered = crowds.iter().map(Running::answered).sum::<Result<u64, _>>()?;
        if answered >= u64::from(connections) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(RunError::NotOpened { connections, answered, waited: OPENING });
        }
        // The pace of looking.
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_is_somebodys() {
        assert_eq!(shares(20_000), [6667, 6667, 6666]);
        assert_eq!(shares(3), [1, 1, 1]);
    }
}
