//! Figures of the datapaths, out of `lb lab compare`.

use std::process::{Command, Stdio};

use serde::Deserialize;

use super::{Figure, Goal};

const SMALL: u32 = 10;
const LARGE: u32 = 5_000;

/// What we use of a row of `lb lab compare -o json`.
#[derive(Debug, Deserialize)]
struct Row {
    datapath: String,
    services: u32,
    sync_ms: f64,
    change_ms: f64,
    connect_p50_us: f64,
    connect_p50_ratio: f64,
    cps_ratio: f64,
}

#[derive(Debug, Deserialize)]
struct Comparison {
    n: Repeats,
    rows: Vec<Row>,
}

/// How often everything was measured.
#[derive(Debug, Deserialize)]
struct Repeats {
    rounds: u64,
    connects: u64,
    changes: u64,
    syncs: u64,
}

pub(crate) fn measure() -> Result<Vec<Figure>, Box<dyn std::error::Error>> {
    let sizes = format!("{SMALL},{LARGE}");
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--release", "--package", "lb-agent", "--bin", "lb", "--"]);
    command.args(["lab", "compare", "--services", &sizes, "-o", "json"]).stdout(Stdio::piped());
    let output = command.spawn()?.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("lb lab compare: {}", output.status).into());
    }
    let comparison: Comparison = serde_json::from_slice(&output.stdout)?;
    let row = |datapath: &str, services| {
        let found = comparison.rows.iter().find(|row| row.datapath == datapath && row.services == services);
        found.ok_or_else(|| format!("lb lab compare gave no row for {datapath} at {services} services"))
    };
    let mut figures = Vec::new();
    for datapath in ["ebpf", "nftables"] {
        figures.extend(flat(row(datapath, SMALL)?, row(datapath, LARGE)?, &comparison.n));
    }
    figures.push(growing(row("iptables-nft", SMALL)?, row("iptables-nft", LARGE)?, &comparison.n));
    Ok(figures)
}

fn flat(small: &Row, large: &Row, n: &Repeats) -> Vec<Figure> {
    let name = &large.datapath;
    let connects = |row: &Row| {
        format!("{} services: {:.1} us, {:.2} x direct", row.services, row.connect_p50_us, row.connect_p50_ratio)
    };
    vec![
        Figure::new(
            format!("{name}: p50 of a connection, {LARGE} services against {SMALL}"),
            Some(Goal::AtMost(1.25)),
            large.connect_p50_ratio / small.connect_p50_ratio,
            "ratio",
            connects(small),
            n.rounds * n.connects,
        ),
        Figure::new(
            format!("{name}: p50 of a connection against direct"),
            None,
            large.connect_p50_ratio,
            "ratio",
            connects(large),
            n.rounds * n.connects,
        ),
        Figure::new(
            format!("{name}: connections per second against direct"),
            None,
            large.cps_ratio,
            "ratio",
            "direct of the same run: 1",
            n.rounds,
        ),
        Figure::new(
            format!("{name}: sync of {LARGE} services"),
            None,
            large.sync_ms,
            "ms",
            format!("{SMALL} services: {:.1} ms", small.sync_ms),
            n.syncs,
        ),
        Figure::new(
            format!("{name}: one change among {LARGE}"),
            None,
            large.change_ms,
            "ms",
            format!("among {SMALL}: {:.1} ms", small.change_ms),
            n.changes,
        ),
    ]
}

fn growing(small: &Row, large: &Row, n: &Repeats) -> Figure {
    let baseline = format!("{} services: {:.2} x direct", small.services, small.connect_p50_ratio);
    let growth = large.connect_p50_ratio / small.connect_p50_ratio;
    Figure::new(
        format!("iptables-nft: p50 of a connection, {LARGE} services against {SMALL}"),
        Some(Goal::AtLeast(1.5)),
        growth,
        "ratio",
        baseline,
        n.rounds * n.connects,
    )
}
