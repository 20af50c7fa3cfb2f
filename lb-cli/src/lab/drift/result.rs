//! How long repairs took.

use std::time::Duration;

use lb_agent::driver::DatapathKind;
use serde::Serialize;

use crate::output::Table;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DriftLabReport {
    pub(super) passed: bool,
    pub(super) services: usize,
    pub(super) rows: Vec<Row>,
    /// What could not be tried here.
    pub(super) left_out: Vec<String>,
    /// What else there is to know about the run.
    pub(super) notes: Vec<String>,
}

/// One thing that another tool did to one datapath, again and again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) datapath: DatapathKind,
    pub(super) edit: &'static str,
    /// How often.
    pub(super) edits: usize,
    /// From the start of the tool until the agent had repaired what it did.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
    /// Time that the tool itself took, which is in the above.
    pub(super) tool_p50_ms: f64,
    /// Edits that were not repaired within the time that they may take, or not to what was there before.
    pub(super) not_repaired: usize,
    /// Connections that were established before the first edit.
    pub(super) connections: usize,
    /// Those that still worked after the last one.
    pub(super) survived: usize,
    /// New connections after the edits that failed.
    pub(super) failed: usize,
    pub(super) passed: bool,
}

/// Times of one edit, repeated.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    pub(super) repairs: Vec<Duration>,
    pub(super) tools: Vec<Duration>,
    pub(super) not_repaired: usize,
}

/// What became of connections.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fate {
    pub(super) connections: usize,
    pub(super) survived: usize,
    pub(super) failed: usize,
}

impl Row {
    pub(super) fn new(datapath: DatapathKind, edit: &'static str, times: &Times, fate: Fate) -> Self {
        Self {
            datapath,
            edit,
            edits: times.tools.len(),
            p50_ms: percentile(&times.repairs, 50),
            p99_ms: percentile(&times.repairs, 99),
            max_ms: percentile(&times.repairs, 100),
            tool_p50_ms: percentile(&times.tools, 50),
            not_repaired: times.not_repaired,
            connections: fate.connections,
            survived: fate.survived,
            failed: fate.failed,
            passed: times.not_repaired == 0 && fate.survived == fate.connections && fate.failed == 0,
        }
    }
}

impl DriftLabReport {
    pub(super) fn table(&self) -> String {
        let mut table = Table::new([
            "DATAPATH",
            "EDIT",
            "RESULT",
            "N",
            "P50 MS",
            "P99 MS",
            "MAX MS",
            "TOOL P50 MS",
            "NOT REPAIRED",
            "SURVIVED",
            "NEW FAILED",
        ]);
        for row in &self.rows {
            table.row([
                row.datapath.to_string(),
                row.edit.into(),
                if row.passed { "passed".into() } else { "FAILED".into() },
                row.edits.to_string(),
                format!("{:.1}", row.p50_ms),
                format!("{:.1}", row.p99_ms),
                format!("{:.1}", row.max_ms),
                format!("{:.1}", row.tool_p50_ms),
                row.not_repaired.to_string(),
                format!("{} of {}", row.survived, row.connections),
                row.failed.to_string(),
            ]);
        }
        let lines = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let (left_out, notes) = (lines(&self.left_out), lines(&self.notes));
        format!(
            "{table}{left_out}\n{} services; milliseconds from the start of the tool until the agent had repaired what it did\n{notes}",
            self.services
        )
    }
}

/// The smallest time that so many per cent do not exceed, in milliseconds; 0 without any.
fn percentile(times: &[Duration], per_cent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let rank = (sorted.len() * per_cent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, |time| (time.as_secs_f64() * 1e4).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_agent::driver;

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!([50, 99, 100].map(|p| percentile(&times, p)), [100.0, 198.0, 200.0]);
        assert_eq!((percentile(&times[..1], 99), percentile(&[], 50)), (200.0, 0.0));
    }

    #[test]
    fn any_loss_is_a_failure() {
        let times =
            Times { repairs: vec![Duration::from_millis(5)], tools: vec![Duration::from_millis(2)], not_repaired: 0 };
        let fate = Fate { connections: 2, survived: 2, failed: 0 };
        let row = |times: &Times, fate| Row::new(driver::NFTABLES, "nft flush ruleset", times, fate);
        assert!(row(&times, fate).passed);
        assert!(!row(&Times { not_repaired: 1, ..times.clone() }, fate).passed);
        assert!(!row(&times, Fate { survived: 1, ..fate }).passed);
        assert!(!row(&times, Fate { failed: 1, ..fate }).passed);
        let report = DriftLabReport {
            passed: true,
            services: 3,
            rows: vec![row(&times, fate)],
            left_out: vec!["x".into()],
            notes: Vec::new(),
        };
        assert!(
            report.table().contains("passed   1   5.0      5.0      5.0      2.0           0              2 of 2"),
            "{}",
            report.table()
        );
    }
}
