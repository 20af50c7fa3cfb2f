//! What we use of `lb lab compare -o json`.

use serde::Deserialize;

use super::lab;

/// A comparison.
#[derive(Debug, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) n: Repeats,
    pub(crate) rows: Vec<Row>,
    pub(crate) baselines: Vec<Path>,
    pub(crate) extras: Vec<Path>,
}

/// How often everything was measured.
#[derive(Debug, Deserialize)]
pub(crate) struct Repeats {
    pub(crate) rounds: u64,
    pub(crate) connects: u64,
    pub(crate) lanes: u64,
    pub(crate) lane_connects: u64,
    pub(crate) changes: u64,
    pub(crate) syncs: u64,
}

/// One datapath with so many services.
#[derive(Debug, Deserialize)]
pub(crate) struct Row {
    pub(crate) datapath: String,
    pub(crate) services: u32,
    pub(crate) sync_ms: f64,
    pub(crate) change_ms: f64,
    pub(crate) change_p99_ms: f64,
    pub(crate) commit_ms: f64,
    pub(crate) commit_p99_ms: f64,
    pub(crate) ready_ms: f64,
    pub(crate) rules: u64,
    pub(crate) rss_mib: f64,
    pub(crate) kernel_mib: f64,
    #[serde(flatten)]
    pub(crate) speed: Speed,
}

/// A way to the servers that is no datapath's.
#[derive(Debug, Deserialize)]
pub(crate) struct Path {
    pub(crate) name: String,
    pub(crate) services: u32,
    #[serde(flatten)]
    pub(crate) speed: Speed,
}

/// Connections of one row or path.
#[derive(Debug, Deserialize)]
pub(crate) struct Speed {
    pub(crate) connect_p50_us: f64,
    pub(crate) connect_p50_ratio: f64,
    pub(crate) connect_floor_ratio: f64,
    pub(crate) cps_ratio: f64,
    pub(crate) cps_floor_ratio: f64,
    pub(crate) failures: u64,
}

impl Comparison {
    /// Compares, which takes minutes.
    pub(crate) fn measure(args: &[&str]) -> Result<Self, Box<dyn std::error::Error>> {
        lab(&[&["compare"], args].concat())
    }

    pub(crate) fn row(&self, datapath: &str, services: u32) -> Result<&Row, String> {
        let found = self.rows.iter().find(|row| row.datapath == datapath && row.services == services);
        found.ok_or_else(|| format!("lb lab compare gave no row for {datapath} at {services} services"))
    }

    pub(crate) fn path(&self, name: &str, services: u32) -> Result<&Path, String> {
        let found = self.baselines.iter().find(|path| path.name == name && path.services == services);
        found.ok_or_else(|| format!("lb lab compare gave no `{name}` at {services} services"))
    }
}
