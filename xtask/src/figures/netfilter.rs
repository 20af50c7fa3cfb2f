//! Figures of nftables against a ruleset of one rule for one service, and the growth of iptables.

use super::{
    Figure, Goal,
    compare::{Comparison, Row},
};

const NFTABLES: &str = "nftables";
const SMALL: u32 = 10;
const LARGE: u32 = 10_000;
/// As far as iptables goes: its first sync with `iptables-nft` takes half a minute there.
const GROWN: u32 = 5_000;
/// As many as a 99th percentile takes to mean something.
const CHANGES: u32 = 200;
const ROUNDS: u32 = 20;
const VARIANTS: [&str; 2] = ["iptables-nft", "iptables-legacy"];

pub(crate) fn measure() -> Result<Vec<Figure>, Box<dyn std::error::Error>> {
    let flat = compare(&[SMALL, LARGE], &[NFTABLES], CHANGES, ROUNDS)?;
    let (small, large) = (flat.row(NFTABLES, SMALL)?, flat.row(NFTABLES, LARGE)?);
    let mut figures = connections(&flat, large)?;
    figures.push(Figure::new(
        format!("nftables, {LARGE} services: sync"),
        Some(Goal::AtMost(100.0)),
        large.sync_ms,
        "ms",
        format!("{SMALL} services: {:.1} ms", small.sync_ms),
        flat.n.syncs,
    ));
    figures.extend([commit(&flat, small, large), commit(&flat, large, small)]);
    let grown = compare(&[SMALL, GROWN], &VARIANTS, 8, ROUNDS)?;
    for variant in VARIANTS {
        figures.extend(growth(&grown, grown.row(variant, SMALL)?, grown.row(variant, GROWN)?));
    }
    Ok(figures)
}

fn compare(
    sizes: &[u32],
    datapaths: &[&str],
    changes: u32,
    rounds: u32,
) -> Result<Comparison, Box<dyn std::error::Error>> {
    let sizes = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (datapaths, changes, rounds) = (datapaths.join(","), changes.to_string(), rounds.to_string());
    let args = ["--services", &sizes, "--datapaths", &datapaths, "--changes", &changes, "--rounds", &rounds];
    Comparison::measure(&args)
}

/// New connections through the last service, beside the one rule of the floor.
fn connections(comparison: &Comparison, row: &Row) -> Result<Vec<Figure>, String> {
    let floor = comparison.path("floor", row.services)?;
    let n = &comparison.n;
    let name = |what: &str| format!("nftables, {} services: {what}, beside one rule", row.services);
    let beside = format!(
        "one rule: {:.1} us, {:.3} x direct; here: {:.1} us, {:.3} x direct",
        floor.speed.connect_p50_us,
        floor.speed.connect_p50_ratio,
        row.speed.connect_p50_us,
        row.speed.connect_p50_ratio
    );
    let per_second = format!(
        "one rule: {:.3} x direct; here: {:.3} x direct; {} connections failed",
        floor.speed.cps_ratio, row.speed.cps_ratio, row.speed.failures
    );
    Ok(vec![
        Figure::new(
            name("p50 of a connection"),
            Some(Goal::AtMost(1.03)),
            row.speed.connect_floor_ratio,
            "ratio",
            beside,
            n.rounds * n.connects,
        ),
        Figure::new(
            name("connections/s"),
            Some(Goal::AtLeast(0.97)),
            row.speed.cps_floor_ratio,
            "ratio",
            per_second,
            n.rounds * n.lanes * n.lane_connects,
        ),
    ])
}

fn commit(comparison: &Comparison, row: &Row, beside: &Row) -> Figure {
    Figure::new(
        format!("nftables, {} services: p99 of the commit of one change", row.services),
        Some(Goal::AtMost(1.0)),
        row.commit_p99_ms,
        "ms",
        format!(
            "{} services: {:.2} ms; medians {:.2}, {:.2} ms",
            beside.services, beside.commit_p99_ms, row.commit_ms, beside.commit_ms
        ),
        comparison.n.changes,
    )
}

/// That it grows is the point: nothing is asked of it.
fn growth(comparison: &Comparison, small: &Row, large: &Row) -> Vec<Figure> {
    let figure = |what: &str, unit, n, value: &dyn Fn(&Row) -> f64| {
        let baseline = format!("{} services: {:.2}", small.services, value(small));
        Figure::new(
            format!("{}, {} services: {what}", large.datapath, large.services),
            None,
            value(large),
            unit,
            baseline,
            n,
        )
    };
    let n = &comparison.n;
    vec![
        figure("p50 of a connection", "x direct", n.rounds * n.connects, &|row| row.speed.connect_p50_ratio),
        figure("connections/s", "x direct", n.rounds * n.lanes * n.lane_connects, &|row| row.speed.cps_ratio),
        figure("sync", "ms", n.syncs, &|row| row.sync_ms),
        figure("commit of one change", "ms", n.changes, &|row| row.commit_ms),
        figure("rules", "", 1, &|row| row.rules as f64),
    ]
}
