//! What came of the use cases.

use std::{fs, path::Path};

use serde::Serialize;

use super::{expectation::Expectation, side_by_side::Row, use_case::UseCase};
use crate::{
    exit::Failure,
    kind::DatapathKind,
    output::{Table, printable},
};

/// What came of one use case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CaseReport {
    pub(super) use_case: UseCase,
    pub(super) datapath: DatapathKind,
    pub(super) passed: bool,
    pub(super) expectations: Vec<Expectation>,
}

/// What came of all of them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FullReport {
    pub(super) passed: bool,
    pub(super) use_cases: Vec<CaseReport>,
    /// The same manifests on every datapath.
    pub(super) datapaths: Vec<Row>,
}

impl CaseReport {
    pub(super) fn table(&self) -> String {
        let mut table = Table::new(["", "EXPECTATION", "SEEN"]);
        for Expectation { name, passed, detail } in &self.expectations {
            let mark = if *passed { "ok" } else { "FAILED" };
            table.row([mark.into(), name.clone(), detail.clone()]);
        }
        let end = if self.passed { "passed" } else { "FAILED" };
        format!("{} on {}: {end}\n{table}", self.use_case.name(), self.datapath)
    }
}

impl FullReport {
    pub(super) fn table(&self) -> String {
        let cases: Vec<String> = self.use_cases.iter().map(CaseReport::table).collect();
        let mut table = Table::new([
            "DATAPATH",
            "RESULT",
            "READY MS",
            "RULES",
            "ELEMENTS",
            "P50 US",
            "P99 US",
            "DIRECT P50 US",
            "RATIO",
        ]);
        for row in &self.datapaths {
            table.row(row.cells());
        }
        let failures: String =
            self.datapaths.iter().flat_map(Row::failures).map(|line| printable(&line) + "\n").collect();
        format!("{}\nThe same manifests on every datapath:\n{table}{failures}", cases.join("\n"))
    }
}

/// Writes `report` to `report.json` in `directory`, which is made if need be.
pub(super) fn save(directory: &Path, report: &impl Serialize) -> Result<(), Failure> {
    let path = directory.join("report.json");
    let text = serde_json::to_string_pretty(report).map_err(Failure::error)?;
    let saved = fs::create_dir_all(directory).and_then(|()| fs::write(&path, text + "\n"));
    saved.map_err(|error| Failure::Error(format!("writing {} failed: {error}", path.display())))
}
