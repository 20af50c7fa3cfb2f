//! Flows that go on although their backend left.

use std::collections::BTreeMap;

use lb_core::{
    addr::FrontendAddr,
    datapath::{DatapathError, Evicted},
};

/// What could not be ended the last time, by frontend.
#[derive(Debug, Default)]
pub(super) struct Remaining {
    frontends: BTreeMap<FrontendAddr, (u64, String)>,
    /// Why nothing could be ended at all.
    failed: Option<String>,
}

impl Remaining {
    /// Takes in what came of ending the flows of these frontends.
    pub(super) fn note(&mut self, frontends: &[FrontendAddr], outcome: &Result<Evicted, DatapathError>) {
        let evicted = match outcome {
            Ok(evicted) => evicted,
            Err(error) => {
                self.failed = Some(error.report());
                return;
            }
        };
        self.failed = None;
        for addr in frontends {
            self.frontends.remove(addr);
        }
        for remaining in &evicted.remaining {
            let known = self.frontends.entry(remaining.frontend).or_insert((0, remaining.cause.report()));
            known.0 += remaining.flows;
        }
    }

    /// What there is to say, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        if let Some(why) = &self.failed {
            return Some(format!("flows whose backend left cannot be ended: {why}"));
        }
        let (first, (_, why)) = self.frontends.first_key_value()?;
        let (flows, others) = (self.frontends.values().map(|(flows, _)| flows).sum::<u64>(), self.frontends.len() - 1);
        let others = match others {
            0 => String::new(),
            1 => " and 1 other frontend".into(),
            others => format!(" and {others} other frontends"),
        };
        Some(format!("flows to {first}{others} go on with a backend that left, up to {flows} in all: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use lb_core::{
        addr::Protocol,
        datapath::{self, ErrorKind},
    };

    use super::*;

    fn addr(last: u8) -> FrontendAddr {
        FrontendAddr::new([10, 96, 0, last].into(), 53, Protocol::Udp)
    }

    fn evicted(remaining: &[(u8, u64)]) -> Result<Evicted, DatapathError> {
        let remaining = remaining.iter().map(|&(last, flows)| datapath::Remaining {
            frontend: addr(last),
            flows,
            cause: DatapathError::new(ErrorKind::Unsupported, "elsewhere"),
        });
        Ok(Evicted { remaining: remaining.collect(), ..Evicted::default() })
    }

    #[test]
    fn what_goes_on_is_said_until_it_has_ended() {
        let mut remaining = Remaining::default();
        remaining.note(&[addr(1), addr(2)], &evicted(&[(1, 2), (2, 3)]));
        let said =
            "flows to 10.96.0.1:53/udp and 1 other frontend go on with a backend that left, up to 5 in all: elsewhere";
        assert_eq!(remaining.problem().as_deref(), Some(said));
        remaining.note(&[addr(3)], &evicted(&[]));
        assert_eq!(remaining.problem().as_deref(), Some(said), "another frontend says nothing about these");
        remaining.note(&[addr(2)], &evicted(&[]));
        let said = "flows to 10.96.0.1:53/udp go on with a backend that left, up to 2 in all: elsewhere";
        assert_eq!(remaining.problem().as_deref(), Some(said));
        remaining.note(&[addr(1)], &evicted(&[(1, 1)]));
        assert!(remaining.problem().is_some_and(|said| said.contains("up to 1 in all")), "a later look counts anew");
        remaining.note(&[addr(1)], &evicted(&[]));
        assert_eq!(remaining.problem(), None);
    }

    #[test]
    fn a_failure_is_said_until_it_works_again() {
        let mut remaining = Remaining::default();
        remaining.note(&[addr(1)], &Err(DatapathError::new(ErrorKind::System, "no memory")));
        assert_eq!(remaining.problem().as_deref(), Some("flows whose backend left cannot be ended: no memory"));
        remaining.note(&[addr(1)], &evicted(&[]));
        assert_eq!(remaining.problem(), None);
    }
}
