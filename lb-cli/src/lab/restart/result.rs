//! What interruptions cost.

use std::{fs, time::Duration};

use lb_agent::driver::DatapathKind;
use lb_testkit::traffic::Report;
use serde::Serialize;

use super::traffic::Counted;
use crate::output::{Table, printable};

/// Everything that was counted.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RestartReport {
    pub(super) passed: bool,
    kernel: String,
    cpus: usize,
    seed: u64,
    seconds: f64,
    rows: Vec<Row>,
}

/// One datapath.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    datapath: DatapathKind,
    passed: bool,
    /// How often the agent got SIGTERM.
    restarts: u32,
    /// How often it got SIGKILL.
    kills: u32,
    /// Longest time until a new agent was ready.
    slowest_start_ms: f64,
    connections: u32,
    /// Long-lived connections that were reset, closed, or silent.
    lost_connections: u64,
    /// Packets with data, of long-lived connections and datagrams.
    packets: u64,
    /// Datagrams without an answer, and TCP segments that had to be sent again because they did not arrive.
    lost_packets: u64,
    datagrams: u64,
    lost_datagrams: u64,
    lost_segments: u64,
    /// All segments that were sent again: with the lost ones, those whose acknowledgement was late.
    retransmitted: u64,
    new_connections: u64,
    failed_new_connections: u64,
    /// Longest time that anybody waited for an answer.
    longest_wait_ms: f64,
    /// One of the losses, in words.
    example: Option<String>,
}

impl RestartReport {
    pub(super) fn new(seed: u64, took: Duration, rows: Vec<Row>) -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            passed: rows.iter().all(|row| row.passed),
            kernel: kernel.trim().into(),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            seed,
            seconds: took.as_secs_f64().round(),
            rows,
        }
    }

    pub(super) fn table(&self) -> String {
        let mut table = Table::new([
            "DATAPATH",
            "RESULT",
            "SIGTERM",
            "SIGKILL",
            "START MS",
            "CONNECTIONS",
            "LOST",
            "PACKETS",
            "LOST",
            "NEW",
            "FAILED",
            "LONGEST WAIT MS",
        ]);
        self.rows.iter().for_each(|row| table.row(row.cells()));
        let examples = self.rows.iter().filter_map(|row| Some((row.datapath, row.example.as_ref()?)));
        let examples: String = examples.map(|(kind, text)| format!("{kind}: {}\n", printable(text))).collect();
        let Self { kernel, cpus, seed, seconds, .. } = self;
        format!("{table}{examples}\nkernel {kernel}, {cpus} CPUs; seed {seed}; {seconds} s in all\n")
    }
}

impl Row {
    pub(super) fn new(
        datapath: DatapathKind,
        connections: u32,
        restarts: u32,
        slowest_start: Duration,
        counted: Counted,
    ) -> Self {
        let packets = counted.packets();
        let Counted { connections: held, datagrams, new } = counted;
        let failures = [&held, &datagrams, &new].map(Report::failed);
        let example = [&held, &datagrams, &new].into_iter().find_map(|report| report.example.as_ref());
        let waits = [&held, &datagrams, &new].map(|report| report.latencies.max());
        Self {
            datapath,
            passed: failures == [0; 3] && held.lost_segments == 0,
            restarts,
            kills: restarts,
            slowest_start_ms: millis(slowest_start),
            connections,
            lost_connections: held.failed(),
            packets,
            lost_packets: datagrams.failed() + held.lost_segments,
            datagrams: datagrams.answered(),
            lost_datagrams: datagrams.failed(),
            lost_segments: held.lost_segments,
            retransmitted: held.retransmitted,
            new_connections: new.answered(),
            failed_new_connections: new.failed(),
            longest_wait_ms: millis(waits.into_iter().max().unwrap_or_default()),
            example: example.map(ToString::to_string),
        }
    }

    fn cells(&self) -> [String; 12] {
        [
            self.datapath.to_string(),
            if self.passed { "passed".into() } else { "FAILED".into() },
            self.restarts.to_string(),
            self.kills.to_string(),
            format!("{:.0}", self.slowest_start_ms),
            self.connections.to_string(),
            self.lost_connections.to_string(),
            self.packets.to_string(),
            self.lost_packets.to_string(),
            self.new_connections.to_string(),
            self.failed_new_connections.to_string(),
            format!("{:.0}", self.longest_wait_ms),
        ]
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

#[cfg(test)]
mod tests {
    use lb_agent::driver;
    use lb_testkit::traffic::{Failure, FailureKind, Response};

    use super::*;

    fn row(outcomes: [bool; 3], lost_segments: u64) -> Row {
        let [connections, datagrams, new] = outcomes.map(|fine| {
            let mut report = Report::default();
            report.record(if fine { Ok(answer()) } else { Err(failure()) });
            report
        });
        let connections = Report { retransmitted: lost_segments + 1, lost_segments, ..connections };
        Row::new(driver::NFTABLES, 3, 2, Duration::from_millis(7), Counted { connections, datagrams, new })
    }

    fn answer() -> Response {
        let nobody = "192.0.2.1:1".parse().unwrap();
        let latency = Duration::from_millis(3);
        Response { pod: "a".into(), client: nobody, peer: nobody, local: nobody, latency, body: String::new() }
    }

    fn failure() -> Failure {
        Failure { kind: FailureKind::Reset, detail: "read".into(), after: Duration::ZERO }
    }

    #[test]
    fn any_loss_is_a_failure_and_is_shown() {
        assert!(row([true; 3], 0).passed);
        assert!(!row([true; 3], 1).passed, "a segment did not arrive");
        for lost in 0..3 {
            let row = row(std::array::from_fn(|index| index != lost), 0);
            assert!(!row.passed);
            let report = RestartReport::new(1, Duration::from_secs(1), vec![row]);
            assert!(!report.passed && report.table().contains("nftables: reset after 0ns: read"), "{}", report.table());
        }
    }

    #[test]
    fn a_message_and_its_answer_are_two_packets() {
        let row = row([true; 3], 0);
        assert_eq!((row.packets, row.new_connections, row.longest_wait_ms), (4, 1, 3.0));
    }
}
