//! What came of the use cases.

use std::{fs, path::Path};

use lb_agent::driver::DatapathKind;
use serde::Serialize;

use super::{error::RunError, expectation::Expectation, side_by_side::Row, use_case::UseCase};
use crate::{
    exit::Failure,
    output::{Table, printable},
};

/// What came of one use case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CaseReport {
    pub(super) use_case: UseCase,
    pub(super) datapath: DatapathKind,
    pub(super) passed: bool,
    /// What the datapath lacks, if the use case is about that. Nothing is promised then, and nothing passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) left_out: Option<String>,
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
    pub(super) fn cannot_run(use_case: UseCase, datapath: DatapathKind, error: &RunError) -> Self {
        let expectations = vec![Expectation::cannot_run(datapath, error)];
        Self { use_case, datapath, passed: false, left_out: None, expectations }
    }

    pub(super) fn table(&self) -> String {
        let name = format!("{} on {}", self.use_case.name(), self.datapath);
        if let Some(lacks) = &self.left_out {
            return format!("{name}: LEFT OUT, the datapath lacks what this is about\n{}\n", printable(lacks));
        }
        let end = if self.passed { "passed" } else { "FAILED" };
        format!("{name}: {end}\n{}", self.rows())
    }

    fn rows(&self) -> Table {
        let about_decisions = self.expectations.iter().any(|expectation| expectation.decided.is_some());
        let mut table = Table::new(["", "EXPECTATION", "SEEN", "DECIDED"]);
        for Expectation { name, passed, detail, decided } in &self.expectations {
            let mark = if *passed { "ok" } else { "FAILED" };
            table.row([mark.into(), name.clone(), detail.clone(), decided.clone().unwrap_or_default()]);
        }
        if about_decisions { table } else { table.without_last_column() }
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

/// Makes `directory`, before minutes are spent on what could not be saved.
pub(super) fn prepare(directory: &Path) -> Result<(), Failure> {
    fs::create_dir_all(directory)
        .map_err(|error| Failure::Error(format!("making the directory {} failed: {error}", directory.display())))
}

/// Writes `report` to `report.json` in `directory`.
pub(super) fn save(directory: &Path, report: &impl Serialize) -> Result<(), Failure> {
    let path = directory.join("report.json");
    let text = serde_json::to_string_pretty(report).map_err(Failure::error)?;
    fs::write(&path, text + "\n").map_err(|error| Failure::Error(format!("writing {} failed: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_agent::driver;

    #[test]
    fn a_datapath_that_cannot_run_is_a_row_that_failed() {
        let error = RunError::Lacks { use_case: "a", what: "everything" };
        let row = Row::cannot_run(driver::IPTABLES_NFT, &error);
        let case = CaseReport::cannot_run(UseCase::SessionAffinity, driver::IPTABLES_NFT, &error);
        let text = FullReport { passed: false, use_cases: vec![case], datapaths: vec![row.clone()] }.table();
        assert!(text.contains("FAILED   it runs"), "{text}");
        assert!(text.contains("iptables-nft: it runs: the manifests of a lack everything"), "{text}");
        assert_eq!(serde_json::to_value(row).unwrap()["ready_ms"], serde_json::Value::Null);
    }

    #[test]
    fn a_use_case_that_is_left_out_has_not_passed_and_says_why() {
        let kind = driver::NFTABLES;
        let case = |left_out| {
            let expectations = Vec::new();
            CaseReport { use_case: UseCase::NodePort, datapath: kind, passed: false, left_out, expectations }
        };
        let text = case(Some("NodePort frontends are not supported".into())).table();
        assert!(text.starts_with("node-port on nftables: LEFT OUT"), "{text}");
        assert!(text.contains("NodePort frontends are not supported"), "{text}");
        assert!(serde_json::to_value(case(None)).unwrap().get("left_out").is_none());
    }

    #[test]
    fn decisions_have_a_column_of_their_own_where_there_are_any() {
        let expectation = |decided: Option<&str>| Expectation {
            name: "a flow".into(),
            passed: true,
            detail: "httpd-0 32".into(),
            decided: decided.map(Into::into),
        };
        let case = |expectations| CaseReport {
            use_case: UseCase::NodePort,
            datapath: driver::EBPF,
            passed: true,
            left_out: None,
            expectations,
        };
        assert!(!case(vec![expectation(None)]).table().contains("DECIDED"));
        let text = case(vec![expectation(None), expectation(Some("node-0: httpd-0"))]).table();
        assert!(text.contains("DECIDED") && text.contains("node-0: httpd-0"), "{text}");
    }

    #[test]
    fn a_directory_that_cannot_be_is_known_beforehand() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(prepare(&file.path().join("report")).is_err());
        let parent = tempfile::tempdir().unwrap();
        prepare(&parent.path().join("a/b")).unwrap();
        save(&parent.path().join("a/b"), &1).unwrap();
        assert_eq!(fs::read_to_string(parent.path().join("a/b/report.json")).unwrap(), "1\n");
    }
}
