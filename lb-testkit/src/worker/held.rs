//! Sockets that stay open between commands.

use std::time::Instant;

use super::{client::Asker, error::other, protocol::Hold};
use crate::traffic::{Failure, FailureKind, Outcome};

/// Sockets to one place. A TCP connection that broke stays broken.
pub(super) struct Held {
    hold: Hold,
    askers: Vec<Result<Asker, Failure>>,
}

impl Held {
    /// Opens the sockets one after the other. Once one cannot be opened, the others are not tried, and fail as it did:
    /// each might take as long.
    pub(super) fn open(hold: Hold) -> Self {
        let mut askers: Vec<Result<Asker, Failure>> = Vec::with_capacity(hold.sockets);
        for _ in 0..hold.sockets {
            let asker = match askers.last() {
                Some(Err(failure)) => Err(failure.clone()),
                _ => Asker::open(hold.transport, hold.to, None, hold.timeout),
            };
            askers.push(asker);
        }
        Self { askers, hold }
    }

    /// Asks on every socket, first all questions, then all answers.
    pub(super) fn exchange(&mut self) -> Vec<Outcome> {
        let start = Instant::now();
        let sent: Vec<_> = self.askers.iter_mut().map(send).collect();
        let answers = self.askers.iter_mut().zip(sent).map(|(asker, sent)| {
            sent?;
            asker.as_mut().map_err(|failure| failure.clone())?.receive(start + self.hold.timeout)
        });
        let outcomes: Vec<Outcome> = answers.collect();
        for (asker, outcome) in self.askers.iter_mut().zip(&outcomes) {
            if let (Ok(Asker::Http(_)), Err(failure)) = (&asker, outcome) {
                let detail = format!("broken since: {}", failure.detail);
                *asker = Err(other(FailureKind::Closed, detail, start));
            }
        }
        outcomes
    }
}

fn send(asker: &mut Result<Asker, Failure>) -> Result<(), Failure> {
    asker.as_mut().map_err(|failure| failure.clone())?.send("/")
}
