//! The comparison as columns.

use std::fmt::Write as _;

use super::result::{Comparison, PathRow, Row, Speed};
use crate::output::Table;

/// One block of lines per size, with its baselines.
pub(super) fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    let mut table = Table::new([
        "SERVICES",
        "DATAPATH",
        "SYNC ms",
        "CHANGE ms",
        "P99 ms",
        "COMMIT ms",
        "RULES",
        "ELEMENTS",
        "READY ms",
        "RSS MiB",
        "KERNEL MiB",
        "P50 us",
        "P99 us",
        "P50/DIRECT",
        "P50/FLOOR",
        "CONN/s",
        "CONN/DIRECT",
        "CONN/FLOOR",
    ]);
    for size in comparison.sizes() {
        for path in comparison.baselines.iter().filter(|path| path.services == size) {
            table.row(path_cells(path));
        }
        for row in comparison.rows.iter().filter(|row| row.services == size) {
            table.row(row_cells(row));
        }
        for path in comparison.extras.iter().filter(|path| path.services == size) {
            table.row(path_cells(path));
        }
    }
    // Writing to a string cannot fail.
    let _ = write!(text, "{table}\n{}\n", how(comparison));
    for note in &comparison.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// How it was measured, in one line.
pub(super) fn how(comparison: &Comparison) -> String {
    let n = &comparison.n;
    let rounds = u64::from(n.rounds);
    format!(
        "kernel {}, {} CPUs; medians of {} rounds; per path and size {} connections one by one and {} on {} lanes; {} \
         changes; ratios within a round; seed {}; {:.0} s in all",
        comparison.kernel,
        comparison.cpus,
        rounds,
        thousands(rounds * u64::from(n.connects)),
        thousands(rounds * u64::from(n.lane_connects) * n.lanes as u64),
        n.lanes,
        n.changes,
        comparison.seed,
        comparison.seconds,
    )
}

const COLUMNS: usize = 18;

fn row_cells(row: &Row) -> [String; COLUMNS] {
    let [p50, p99, direct, floor, cps, cps_direct, cps_floor] = speed_cells(&row.speed);
    [
        row.services.to_string(),
        row.datapath.to_string(),
        number(row.sync_ms),
        number(row.change_ms),
        number(row.change_p99_ms),
        number(row.commit_ms),
        row.rules.to_string(),
        row.elements.to_string(),
        number(row.ready_ms),
        number(row.rss_mib),
        number(row.kernel_mib),
        p50,
        p99,
        direct,
        floor,
        cps,
        cps_direct,
        cps_floor,
    ]
}

fn path_cells(path: &PathRow) -> [String; COLUMNS] {
    let none = String::new;
    let [p50, p99, direct, floor, cps, cps_direct, cps_floor] = speed_cells(&path.speed);
    [
        path.services.to_string(),
        path.name.to_owned(),
        none(),
        none(),
        none(),
        none(),
        none(),
        none(),
        none(),
        none(),
        none(),
        p50,
        p99,
        direct,
        floor,
        cps,
        cps_direct,
        cps_floor,
    ]
}

fn speed_cells(speed: &Speed) -> [String; 7] {
    [
        format!("{:.1}", speed.connect_p50_us),
        format!("{:.1}", speed.connect_p99_us),
        format!("{:.2}", speed.connect_p50_ratio),
        format!("{:.2}", speed.connect_floor_ratio),
        format!("{:.0}", speed.cps),
        format!("{:.2}", speed.cps_ratio),
        format!("{:.2}", speed.cps_floor_ratio),
    ]
}

/// Three significant digits, and never an exponent.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        small if small < 9.995 => format!("{value:.2}"),
        middle if middle < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// With commas.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::result::tests::example, *};

    #[test]
    fn every_size_has_its_baselines_and_datapaths() {
        let text = table(&example());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("SERVICES   DATAPATH"), "{text}");
        let names: Vec<&str> = lines[1..6].iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(names, ["direct", "floor", "ebpf", "iptables-nft", "ebpf-tcx"]);
        assert!(lines[4].contains(" 1.01 "), "{text}");
        assert!(
            text.contains("kernel 6.18.0 <test>, 2 CPUs; medians of 20 rounds; per path and size 4,000 connections one by one and 40,000 on 4 lanes; 8")
        );
        assert!(text.ends_with("note: 5 < 6 & \"quoted\"\n"), "{text}");
    }

    #[test]
    fn numbers_keep_three_digits() {
        let numbers = [0.0, 0.1234, 9.996, 12.34, 99.96, 23_456.7].map(number);
        assert_eq!(numbers, ["0.00", "0.12", "10.0", "12.3", "100", "23457"]);
    }
}
