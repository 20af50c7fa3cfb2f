//! How long what other tools change stays changed, out of `lb lab drift`.

use serde::Deserialize;

use super::{Figure, Goal, lab};

const SMALL: u32 = 10;
const LARGE: u32 = 1_000;

/// What we use of `lb lab drift -o json`.
#[derive(Debug, Deserialize)]
struct Disturbed {
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    datapath: String,
    edit: String,
    edits: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    tool_p50_ms: f64,
    connections: u64,
    survived: u64,
    failed: u64,
}

pub(crate) fn measure() -> Result<Vec<Figure>, Box<dyn std::error::Error>> {
    let mut figures = Vec::new();
    for (datapaths, services, edits) in [
        ("nftables", SMALL, 100),
        ("ebpf", SMALL, 20),
        ("iptables-nft,iptables-legacy", SMALL, 5),
        ("nftables,ebpf", LARGE, 5),
    ] {
        let (services_text, edits) = (services.to_string(), edits.to_string());
        let size = ["--services", &services_text, "--edits", &edits];
        let disturbed: Disturbed = lab(&[&["drift", "--datapaths", datapaths], &size[..]].concat())?;
        figures.extend(disturbed.rows.iter().flat_map(|row| row.figures(services)));
    }
    Ok(figures)
}

impl Row {
    fn figures(&self, services: u32) -> [Figure; 2] {
        let name = format!("{}, {services} services, {}", self.datapath, self.edit);
        let tool =
            format!("p50 {:.1}, max {:.1}; the tool itself: {:.1} ms", self.p50_ms, self.max_ms, self.tool_p50_ms);
        let lost = self.connections - self.survived + self.failed;
        let asked = format!("{} held, and new ones", self.connections);
        [
            Figure::new(format!("{name}: repaired, p99"), self.goal(services), self.p99_ms, "ms", tool, self.edits),
            Figure::new(
                format!("{name}: connections lost"),
                Some(Goal::AtMost(0.0)),
                lost as f64,
                "",
                asked,
                self.connections,
            ),
        ]
    }

    /// What is watched is repaired within 100 ms; map contents are scanned every 5 s. A flush of many services is as
    /// long as writing them, and iptables cannot be watched: only reported.
    fn goal(&self, services: u32) -> Option<Goal> {
        match self.datapath.as_str() {
            "nftables" if services == SMALL => Some(Goal::AtMost(100.0)),
            "ebpf" if self.edit == "bpftool map delete" => Some(Goal::AtMost(5_500.0)),
            "ebpf" if services == SMALL => Some(Goal::AtMost(100.0)),
            _ => None,
        }
    }
}
