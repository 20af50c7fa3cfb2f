//! The charts of a comparison.

use super::{
    chart::{Chart, Scale, Series},
    result::{Comparison, PathRow, Row, Speed},
};

/// Every chart, in the order of a report.
pub(super) fn all(comparison: &Comparison) -> Vec<Chart> {
    let rows = |value: fn(&Row) -> f64| row_series(comparison, value);
    let chart = |title, unit, scale, series| Chart { title, unit, scale, series };
    vec![
        latency(comparison),
        chart(
            "Connections per second against direct",
            "ratio; direct is 1, higher is better",
            Scale::Linear,
            all_series(comparison, |speed| speed.cps_ratio),
        ),
        sync(comparison),
        chart(
            "One change: event to first connection on a new endpoint",
            "ms, logarithmic; lower is better",
            Scale::Log,
            rows(|row| row.change_ms),
        ),
        chart("Manifests on disk to ready", "ms, logarithmic; lower is better", Scale::Log, rows(|row| row.ready_ms)),
        chart("Kernel memory", "MiB, logarithmic; lower is better", Scale::Log, rows(|row| row.kernel_mib)),
        chart("Resident memory of the agent", "MiB; lower is better", Scale::Linear, rows(|row| row.rss_mib)),
    ]
}

/// What a client waits for a new connection.
pub(super) fn latency(comparison: &Comparison) -> Chart {
    Chart {
        title: "New connection: median against direct",
        unit: "ratio; direct is 1, lower is better",
        scale: Scale::Linear,
        series: all_series(comparison, |speed| speed.connect_p50_ratio),
    }
}

/// How long the kernel takes to take all services.
pub(super) fn sync(comparison: &Comparison) -> Chart {
    Chart {
        title: "First sync of all services",
        unit: "ms, logarithmic; lower is better",
        scale: Scale::Log,
        series: row_series(comparison, |row| row.sync_ms),
    }
}

/// The datapaths, the other ways through them, and the baselines.
fn all_series(comparison: &Comparison, value: fn(&Speed) -> f64) -> Vec<Series> {
    let mut series = row_series(comparison, |row| value(&row.speed));
    series.extend(path_series(&comparison.extras, value));
    series.extend(path_series(&comparison.baselines, value));
    series
}

fn row_series(comparison: &Comparison, value: impl Fn(&Row) -> f64) -> Vec<Series> {
    let of = |kind| {
        let rows = comparison.rows.iter().filter(move |row| row.datapath == kind);
        rows.map(|row| (row.services, value(row))).collect()
    };
    let kinds = comparison.datapaths().into_iter();
    kinds.map(|kind| Series { name: kind.name(), baseline: false, points: of(kind) }).collect()
}

fn path_series(paths: &[PathRow], value: impl Fn(&Speed) -> f64) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for path in paths {
        let point = (path.services, value(&path.speed));
        match series.iter_mut().find(|series| series.name == path.name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name: path.name, baseline: true, points: vec![point] }),
        }
    }
    series
}
