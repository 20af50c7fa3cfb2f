//! Nodes side by side on one kernel.

use lb_core::model::Change;

use super::{Case, cases};
use crate::conformance::{
    Stage, Verdict,
    probe::Probe,
    service::{WEB, endpoints, web},
};

pub(super) const CASES: [Case; 1] = cases![two_labs_with_the_same_addresses_do_not_cross];

/// The same VIP with other backends in each: `decide` of either model says which.
fn two_labs_with_the_same_addresses_do_not_cross(stage: &mut Stage) -> Verdict {
    stage.lab()?;
    let mut other = stage.another()?;
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    other.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &["b", "d"]))])?;
    for _ in 0..4 {
        for probe in Probe::everywhere(WEB) {
            stage.probe(probe)?;
            other.probe(probe)?;
        }
    }
    stage.change([Change::ReplaceEndpoints(endpoints("web", &[]))])?;
    for probe in Probe::everywhere(WEB) {
        stage.probe(probe)?;
        other.probe(probe)?;
    }
    Ok(())
}
