//! Whether everybody is reached who should be.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_testkit::{
    lab::{Lab, Origin},
    traffic::{Load, LoadKind},
};

use super::{error::RunError, expectation::Seen};

/// Connections per backend, so that a fair choice leaves none out: with four backends the odds are 1 in 10^29.
pub(super) const PER_BACKEND: u64 = 60;

/// Opens connections to each place until every one of `backends` should have answered.
pub(super) fn every_backend(
    lab: &Lab,
    origin: Origin,
    targets: &[SocketAddr],
    backends: &[String],
) -> Result<Seen, RunError> {
    let wanted: BTreeSet<&String> = backends.iter().collect();
    let mut details = Vec::new();
    for &to in targets {
        let load = Load::new(LoadKind::NewConnections, to).requests(PER_BACKEND * wanted.len() as u64).lanes(4);
        let report = lab.client(origin).load(&load)?;
        let counts: Vec<String> = report.backends.iter().map(|(pod, count)| format!("{pod} {count}")).collect();
        let detail = format!("{to}: {}", counts.join(", "));
        if let Some(failure) = &report.example {
            return Ok(Err(format!("{detail}; {} connections failed: {failure}", report.failed())));
        }
        if report.backends.keys().collect::<BTreeSet<_>>() != wanted {
            return Ok(Err(format!("{detail}; expected answers from {wanted:?}")));
        }
        details.push(detail);
    }
    Ok(Ok(details.join("; ")))
}
