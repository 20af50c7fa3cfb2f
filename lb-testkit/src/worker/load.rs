//! Much traffic from one worker.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    client::{self, Asker},
    crowd::Crowd,
    protocol::ConnectRace,
    serve::enter,
};
use crate::traffic::{Failure, Latencies, Load, LoadKind, Outcome, Report, Request, Response, Transport, Until};

/// What other threads may read of a load under way, and set.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) stop: AtomicBool,
    /// Requests of all lanes that were answered.
    pub(super) answered: AtomicU64,
}

/// Carries out a load until its end or until `stop`.
pub(super) fn run(netns: &str, load: &Load, progress: &Progress) -> Result<Report, String> {
    let run = Run { load, progress, started: AtomicU64::new(0), start: Instant::now() };
    let reports = thread::scope(|scope| {
        let lanes: Vec<_> = (0..load.lanes).map(|_| scope.spawn(|| enter(netns).map(|()| run.lane()))).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|_| Err("a lane panicked".into()))).collect()
    });
    let reports: Result<Vec<Report>, String> = reports;
    let mut total = Report { elapsed: run.start.elapsed(), ..Report::default() };
    reports?.into_iter().for_each(|report| total.merge(report));
    Ok(total)
}

struct Run<'a> {
    load: &'a Load,
    progress: &'a Progress,
    /// Requests of all lanes.
    started: AtomicU64,
    start: Instant,
}

impl Run<'_> {
    fn lane(&self) -> Report {
        match self.load.kind {
            LoadKind::Crowd(connections) => self.crowd(connections),
            _ => self.one_by_one(),
        }
    }

    fn crowd(&self, connections: usize) -> Report {
        let mut crowd = Crowd::open(self.load, connections);
        while self.next().is_some() {
            let begun = Instant::now();
            let answered = crowd.exchange();
            self.progress.answered.fetch_add(answered, Ordering::Relaxed);
            if answered == 0 {
                break;
            }
            self.pause(begun);
        }
        crowd.close()
    }

    fn one_by_one(&self) -> Report {
        let mut report = Report::default();
        let mut socket = None;
        while let Some(number) = self.next() {
            let begun = Instant::now();
            let outcome = self.one(number, &mut socket);
            let broken = outcome.is_err() && self.load.kind == LoadKind::LongLived;
            self.progress.answered.fetch_add(u64::from(outcome.is_ok()), Ordering::Relaxed);
            report.record(outcome);
            if broken {
                break;
            }
            self.pause(begun);
        }
        report
    }

    /// The number of the next request, `None` if there is none.
    fn next(&self) -> Option<u64> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let goes_on = match self.load.until {
            Until::Requests(most) => number < most,
            Until::Elapsed(limit) => self.start.elapsed() < limit,
            Until::Stopped => true,
        };
        let has_port = self.load.ports.is_none_or(|(first, last)| number <= u64::from(last.saturating_sub(first)));
        (goes_on && has_port && !self.progress.stop.load(Ordering::Relaxed)).then_some(number)
    }

    fn one(&self, number: u64, socket: &mut Option<Asker>) -> Outcome {
        let Load { to, timeout, .. } = *self.load;
        let from = self.load.from.map(|ip| SocketAddr::new(ip, 0));
        match self.load.kind {
            LoadKind::NewConnections => client::request(&self.request(Transport::Tcp, from)),
            LoadKind::Datagrams => client::request(&self.request(Transport::Udp, self.datagram_source(number))),
            LoadKind::ConnectOnly => client::connect_only(to, from, timeout).map(|latency| nobody(to, latency)),
            LoadKind::LongLived | LoadKind::Crowd(_) => self.again(socket, Transport::Tcp),
            LoadKind::DatagramStream => self.again(socket, Transport::Udp),
        }
    }

    fn request(&self, transport: Transport, from: Option<SocketAddr>) -> Request {
        let mut request = Request::over(transport, self.load.to).timeout(self.load.timeout);
        request.from = from;
        request
    }

    fn datagram_source(&self, number: u64) -> Option<SocketAddr> {
        let Load { to, from, ports, .. } = *self.load;
        let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        // `next` returns no number that leads past the last port.
        let port = ports.map_or(0, |(first, _)| first.saturating_add(number as u16));
        (from.is_some() || ports.is_some()).then(|| SocketAddr::new(from.unwrap_or(any), port))
    }

    /// Asks on the lane's socket, opened by the first question.
    fn again(&self, socket: &mut Option<Asker>, transport: Transport) -> Outcome {
        let Load { to, timeout, from, .. } = *self.load;
        let asker = match socket {
            Some(asker) => asker,
            None => socket.insert(Asker::open(transport, to, from.map(|ip| SocketAddr::new(ip, 0)), timeout)?),
        };
        asker.send("/")?;
        asker.receive(Instant::now() + timeout)
    }

    fn pause(&self, begun: Instant) {
        let rest = self.load.interval.saturating_sub(begun.elapsed());
        if !rest.is_zero() {
            // The pace of the load, not a wait for something to happen.
            thread::sleep(rest);
        }
    }
}

/// A connection that asked nothing.
fn nobody(to: SocketAddr, latency: Duration) -> Response {
    Response { pod: String::new(), client: to, peer: to, local: to, latency, body: String::new() }
}

/// Connects to each place in turn. Latencies and the last error of each.
pub(super) fn race(netns: &str, race: &ConnectRace) -> Result<(Vec<Latencies>, Vec<String>), String> {
    enter(netns)?;
    let mut latencies = vec![Latencies::default(); race.to.len()];
    let mut errors = vec![String::new(); race.to.len()];
    for _ in 0..race.rounds {
        for (&to, (latencies, error)) in race.to.iter().zip(latencies.iter_mut().zip(&mut errors)) {
            match client::connect_only(to, None, race.timeout) {
                Ok(latency) => latencies.record(latency),
                Err(failure) => *error = Failure::to_string(&failure),
            }
        }
    }
    Ok((latencies, errors))
}
