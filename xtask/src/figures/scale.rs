//! Figures of 10,000 services of four backends each, out of `lb lab compare`.

use super::{
    Figure, Goal,
    compare::{Comparison, Row},
};

const SMALL: u32 = 10;
const LARGE: u32 = 10_000;
const MAGLEV: u32 = 1_000;
/// As many as a 99th percentile takes to mean something.
const CHANGES: u32 = 200;
const DATAPATHS: [&str; 2] = ["ebpf", "nftables"];
/// kube-proxy's shape, as the baseline of the same run.
const SHAPE: &str = "iptables-legacy";

pub(crate) fn measure() -> Result<Vec<Figure>, Box<dyn std::error::Error>> {
    let datapaths = DATAPATHS.join(",");
    let (sizes, changes) = (format!("{SMALL},{LARGE}"), CHANGES.to_string());
    let random = Comparison::measure(&[
        "--services",
        &sizes,
        "--datapaths",
        &datapaths,
        "--changes",
        &changes,
        "--rounds",
        "3",
    ])?;
    let (size, with_maglev) = (LARGE.to_string(), MAGLEV.to_string());
    let (few, shapes) = ("2", format!("{datapaths},{SHAPE}"));
    let maglev = Comparison::measure(&[
        "--services",
        &size,
        "--datapaths",
        &shapes,
        "--maglev",
        &with_maglev,
        "--changes",
        few,
        "--rounds",
        "1",
    ])?;
    let shape = maglev.row(SHAPE, LARGE)?;
    let mut figures = Vec::new();
    for datapath in DATAPATHS {
        figures.extend(of(datapath, &random, &maglev, shape)?);
    }
    Ok(figures)
}

fn of(datapath: &str, random: &Comparison, maglev: &Comparison, shape: &Row) -> Result<Vec<Figure>, String> {
    let (small, large) = (random.row(datapath, SMALL)?, random.row(datapath, LARGE)?);
    let mixed = maglev.row(datapath, LARGE)?;
    let (with_maglev, memory) = if datapath == "ebpf" { (0.5, 120.0) } else { (1.0, 100.0) };
    let name = |what: &str| format!("{datapath}: {what}");
    let at_most = |bound| Some(Goal::AtMost(bound));
    let sync_beside = format!("{SHAPE}: {:.2} s", shape.sync_ms / 1e3);
    let n = &random.n;
    let p99_of = |row: &Row, beside: &Row| {
        let baseline = format!(
            "{} services: {:.2} ms; medians {:.2}, {:.2} ms",
            beside.services, beside.change_p99_ms, row.change_ms, beside.change_ms
        );
        Figure::new(
            name(&format!("p99 of one change, {} services", row.services)),
            at_most(5.0),
            row.change_p99_ms,
            "ms",
            baseline,
            n.changes,
        )
    };
    let kernel = format!("kernel: {:.1} MiB; at {SMALL} services {:.1} MiB", large.kernel_mib, small.rss_mib);
    Ok(vec![
        Figure::new(name("sync"), at_most(0.3), large.sync_ms / 1e3, "s", sync_beside.clone(), n.syncs),
        Figure::new(
            name(&format!("sync, {MAGLEV} of them on Maglev")),
            at_most(with_maglev),
            mixed.sync_ms / 1e3,
            "s",
            sync_beside,
            maglev.n.syncs,
        ),
        p99_of(small, large),
        p99_of(large, small),
        Figure::new(
            name("manifests on disk to ready"),
            at_most(3.0),
            large.ready_ms / 1e3,
            "s",
            format!("{SHAPE}: {:.2} s", shape.ready_ms / 1e3),
            1,
        ),
        Figure::new(name("agent"), at_most(memory), large.rss_mib, "MiB", kernel, 1),
    ])
}
