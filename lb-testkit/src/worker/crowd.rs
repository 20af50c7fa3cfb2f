//! Many connections at once from one thread.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Instant,
};

use super::{client::Asker, error::other};
use crate::traffic::{FailureKind, Load, Outcome, Report, Response, Transport};

/// Connections that are asked again and again, each question with a number of its own. One that breaks is counted once
/// and not opened again.
pub(super) struct Crowd<'a> {
    load: &'a Load,
    connections: Vec<Connection>,
    report: Report,
}

struct Connection {
    asker: Asker,
    /// Number of its last question.
    number: u64,
}

impl<'a> Crowd<'a> {
    /// Opens the connections, one after the other.
    pub(super) fn open(load: &'a Load, connections: usize) -> Self {
        let mut crowd = Self { load, connections: Vec::with_capacity(connections), report: Report::default() };
        let from = load.from.map(|ip| (ip, 0).into());
        for _ in 0..connections {
            match Asker::open(Transport::Tcp, load.to, from, load.timeout) {
                Ok(asker) => crowd.connections.push(Connection { asker, number: 0 }),
                Err(failure) => crowd.report.record(Err(failure)),
            }
        }
        crowd
    }

    /// Asks each connection once, first all questions, then all answers. How many answers came.
    pub(super) fn exchange(&mut self) -> u64 {
        let Self { load, connections, report } = self;
        let mut answered = 0;
        let mut keep = |connection: &mut Connection, outcome: Result<Option<Response>, _>| match outcome {
            Ok(response) => {
                if let Some(response) = response {
                    answered += 1;
                    report.record(Ok(response));
                }
                true
            }
            Err(failure) => {
                Again::of(connection.asker.as_fd()).add_to(report);
                report.record(Err(failure));
                false
            }
        };
        connections.retain_mut(|connection| {
            let sent = connection.ask().map(|()| None);
            keep(connection, sent)
        });
        connections.retain_mut(|connection| {
            // Waiting for one connection must not shorten the patience with the next.
            let answer = connection.answer(Instant::now() + load.timeout).map(Some);
            keep(connection, answer)
        });
        answered
    }

    /// What came of it.
    pub(super) fn close(mut self) -> Report {
        for connection in &self.connections {
            Again::of(connection.asker.as_fd()).add_to(&mut self.report);
        }
        self.report
    }
}

impl Connection {
    fn ask(&mut self) -> Result<(), crate::traffic::Failure> {
        self.number += 1;
        self.asker.send(&format!("/{}", self.number))
    }

    /// The answer to the last question and to no other.
    fn answer(&mut self, deadline: Instant) -> Outcome {
        let response = self.asker.receive(deadline)?;
        let path = format!("real path=/{}", self.number);
        if response.body.lines().any(|line| line.trim_start() == path) {
            return Ok(response);
        }
        let detail = format!("the answer to question {} is another one's: {:?}", self.number, response.body);
        Err(other(FailureKind::Other, detail, Instant::now()))
    }
}

/// Segments that the kernel sent again on a connection, and how many of them had arrived before.
#[derive(Clone, Copy, Default)]
struct Again {
    sent: u64,
    /// The other side said so (duplicate selective acknowledgements, RFC 2883).
    arrived_before: u64,
}

impl Again {
    /// Where they are in the kernel's `struct tcp_info`; libc's is older than the second one (Linux 4.19).
    const SENT: usize = 100;
    const ARRIVED_BEFORE: usize = 216;

    fn of(socket: BorrowedFd<'_>) -> Self {
        let mut info = [0_u8; 256];
        let mut length = info.len() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `info`, which is that large, and both outlive the call.
        let failed = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let number = |at: usize| info[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes).into());
        if failed == 0 {
            Self { sent: number(Self::SENT), arrived_before: number(Self::ARRIVED_BEFORE) }
        } else {
            Self::default()
        }
    }

    fn add_to(self, report: &mut Report) {
        report.retransmitted += self.sent;
        report.lost_segments += self.sent.saturating_sub(self.arrived_before);
    }
}

const _: () = assert!(std::mem::offset_of!(libc::tcp_info, tcpi_total_retrans) == Again::SENT);
