//! Removes established flows that were silent for too long. `CT_LIVE` evicts nothing, so somebody has to. Then connections
//! are counted anew.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_core::addr::Protocol;
use lb_datapath_ebpf_abi::{self as abi, Pod};

use super::{layout::CT_LIVE, loads::Loads};
use crate::{
    error::EbpfError,
    sys::{self, RawMap},
};

/// Time between two sweeps: the shortest time that an established flow is silent is four times as long.
const PERIOD: Duration = Duration::from_secs(30);

/// A thread that sweeps the table every [`PERIOD`] until it is dropped.
#[derive(Debug)]
pub(crate) struct Sweeper {
    stop: Arc<Stop>,
    loads: Arc<Loads>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    wakes: Condvar,
}

impl Stop {
    /// Whether it was stopped within `time`.
    fn within(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.wakes.wait_timeout_while(stopped, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Sweeper {
    /// Starts the thread, which has a descriptor of its own. It counts connections at once, and after each sweep.
    pub(crate) fn start(flows: &RawMap, loads: Loads) -> Result<Self, EbpfError> {
        let failed = |source| EbpfError::Map { name: CT_LIVE, what: "sweeping", source };
        let flows = flows.try_clone().map_err(failed)?;
        let stop = Arc::<Stop>::default();
        let (waits, loads) = (Arc::clone(&stop), Arc::new(loads));
        let counts = Arc::clone(&loads);
        let sweeps = move || {
            counts.recount();
            while !waits.within(PERIOD) {
                // The next sweep finds what this one could not read or remove.
                let _ = sweep(&flows, sys::monotonic().as_nanos() as u64);
                counts.recount();
            }
        };
        let thread = thread::Builder::new().name("lb-flows".into()).spawn(sweeps).map_err(failed)?;
        Ok(Self { stop, loads, thread: Some(thread) })
    }

    /// Counts the connections of backends now.
    pub(crate) fn recount(&self) {
        self.loads.recount();
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        *self.stop.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.wakes.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has stopped, too.
            let _ = thread.join();
        }
    }
}

/// Removes the flows of the table that are over at `now`, by the monotonic clock in nanoseconds. Returns how many
/// entries it removed.
///
/// # Errors
/// When the kernel does not let the map be read or written.
pub(crate) fn sweep(flows: &RawMap, now: u64) -> io::Result<usize> {
    let page = flows.dump()?;
    let mut removed = 0;
    for (key, value) in page.iter() {
        let Some((key, value)) = abi::CtKey::from_bytes(key).zip(abi::CtValue::from_bytes(value)) else { continue };
        if !is_over(&key, &value, now) {
            continue;
        }
        // A packet may have come since the table was read.
        let read =
            |key: &abi::CtKey| io::Result::Ok(flows.lookup(key.bytes())?.as_deref().and_then(abi::CtValue::from_bytes));
        if !read(&key)?.is_some_and(|value| is_over(&key, &value, now)) {
            continue;
        }
        removed += usize::from(flows.delete(key.bytes()).is_ok());
        let other = value.mirror(key.protocol);
        if read(&other)?.is_some_and(|value| value.mirror(key.protocol) == key) {
            removed += usize::from(flows.delete(other.bytes()).is_ok());
        }
    }
    Ok(removed)
}

/// Whether an entry has lost its claim. The client's half does not know the state of the flow. Packets of both directions
/// touch it together with the half for replies, with which it is removed; alone, it is left for as long as any state could
/// last.
pub(crate) fn is_over(key: &abi::CtKey, value: &abi::CtValue, now: u64) -> bool {
    let lifetime = match (value.flags & abi::CT_REPLY != 0, Protocol::from_number(key.protocol)) {
        (true, _) => value.lifetime(key.protocol),
        (false, Some(Protocol::Udp)) => abi::UDP_IDLE_NS,
        (false, Some(Protocol::Sctp)) => abi::SCTP_IDLE_NS,
        (false, Some(Protocol::Tcp) | None) => abi::TCP_IDLE_NS,
    };
    now.saturating_sub(value.last_ns) >= lifetime
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweeper_stops_at_once() {
        let stop = Stop::default();
        assert!(!stop.within(Duration::ZERO));
        *stop.stopped.lock().unwrap() = true;
        assert!(stop.within(Duration::from_secs(3600)));
    }

    #[test]
    fn each_half_is_over_when_its_flow_is() {
        let key = |protocol| {
            let port = abi::Port::new(1);
            abi::CtKey { src: [1; 4], dst: [2; 4], sport: port, dport: port, protocol, pad: [0; 3] }
        };
        let sides = abi::CtValue { client: abi::SIDE_SEEN, server: abi::SIDE_SEEN, ..abi::CtValue::EMPTY };
        let reply = abi::CtValue { flags: abi::CT_REPLY, ..sides };
        let half = abi::CtValue { server: abi::SIDE_SEEN | abi::SIDE_FIN, ..reply };
        let cut = abi::CtValue { flags: abi::CT_REPLY | abi::CT_CUT, ..reply };
        for (protocol, value, lifetime) in [
            (6, reply, abi::TCP_IDLE_NS),
            (6, half, abi::TCP_HALF_CLOSED_NS),
            (6, cut, abi::TCP_CLOSED_NS),
            (17, reply, abi::UDP_IDLE_NS),
            (132, reply, abi::SCTP_IDLE_NS),
            (132, half, abi::SCTP_CLOSING_NS),
            (132, cut, abi::SCTP_CLOSED_NS),
            (132, abi::CtValue::EMPTY, abi::SCTP_IDLE_NS),
            (6, abi::CtValue::EMPTY, abi::TCP_IDLE_NS),
            (17, abi::CtValue::EMPTY, abi::UDP_IDLE_NS),
        ] {
            let value = abi::CtValue { last_ns: 7, ..value };
            assert!(!is_over(&key(protocol), &value, 6 + lifetime), "{value:?}");
            assert!(is_over(&key(protocol), &value, 7 + lifetime), "{value:?}");
        }
    }
}
