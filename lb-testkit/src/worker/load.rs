//! Much traffic from one worker.

use std::{
    net::SocketAddr,
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

/// What others may know of a load under way, and tell it.
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
        while self.goes_on() {
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
        while self.goes_on() {
            let begun = Instant::now();
            let outcome = self.one(&mut socket);
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

    fn goes_on(&self) -> bool {
        let started = self.started.fetch_add(1, Ordering::Relaxed);
        !self.progress.stop.load(Ordering::Relaxed)
            && match self.load.until {
                Until::Requests(most) => started < most,
                Until::Elapsed(limit) => self.start.elapsed() < limit,
                Until::Stopped => true,
            }
    }

    fn one(&self, socket: &mut Option<Asker>) -> Outcome {
        let Load { to, timeout, .. } = *self.load;
        let from = self.load.from.map(|ip| SocketAddr::new(ip, 0));
        match self.load.kind {
            LoadKind::NewConnections => client::request(&self.request(Transport::Tcp)),
            LoadKind::Datagrams => client::request(&self.request(Transport::Udp)),
            LoadKind::ConnectOnly => client::connect_only(to, from, timeout).map(|latency| nobody(to, latency)),
            LoadKind::LongLived | LoadKind::Crowd(_) => self.again(socket, Transport::Tcp),
            LoadKind::DatagramStream => self.again(socket, Transport::Udp),
        }
    }

    fn request(&self, transport: Transport) -> Request {
        let mut request = Request::over(transport, self.load.to).timeout(self.load.timeout);
        request.from = self.load.from.map(|ip| SocketAddr::new(ip, 0));
        request
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
