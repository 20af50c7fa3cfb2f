//! What restarts and kills of the agent cost, out of `lb lab restart`.

use serde::Deserialize;

use super::{Figure, Goal, lab};

const CONNECTIONS: u64 = 20_000;
const PACKETS: u64 = 1_000_000;
const RESTARTS: u64 = 100;

/// What we use of `lb lab restart -o json`.
#[derive(Debug, Deserialize)]
struct Interrupted {
    seed: u64,
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    datapath: String,
    slowest_start_ms: f64,
    lost_connections: u64,
    packets: u64,
    lost_packets: u64,
    new_connections: u64,
    failed_new_connections: u64,
    longest_wait_ms: f64,
}

pub(crate) fn measure() -> Result<Vec<Figure>, Box<dyn std::error::Error>> {
    let alone = restart(0)?;
    let interrupted = restart(RESTARTS)?;
    let seed = interrupted.seed;
    let rows = interrupted.rows.iter().zip(&alone.rows);
    Ok(rows.flat_map(|(row, alone)| row.figures(alone, seed)).collect())
}

fn restart(restarts: u64) -> Result<Interrupted, Box<dyn std::error::Error>> {
    let (connections, packets, restarts) = (CONNECTIONS.to_string(), PACKETS.to_string(), restarts.to_string());
    lab(&["restart", "--connections", &connections, "--packets", &packets, "--restarts", &restarts])
}

impl Row {
    fn figures(&self, alone: &Self, seed: u64) -> [Figure; 5] {
        let name = format!("{}, {RESTARTS} SIGTERM and {RESTARTS} SIGKILL, seed {seed}", self.datapath);
        let none = Some(Goal::AtMost(0.0));
        let left_alone = |what: f64| format!("the agent left alone: {what}");
        let figure = |what: &str, goal, measured: f64, unit, baseline: f64, n| {
            Figure::new(format!("{name}: {what}"), goal, measured, unit, left_alone(baseline), n)
        };
        let lost = |row: &Self| [row.lost_connections, row.lost_packets, row.failed_new_connections].map(|n| n as f64);
        let ([connections, packets, new], before) = (lost(self), lost(alone));
        [
            figure("connections lost", none, connections, "", before[0], CONNECTIONS),
            figure("packets lost", none, packets, "", before[1], self.packets),
            figure("new connections failed", none, new, "", before[2], self.new_connections),
            figure(
                "longest wait for an answer",
                None,
                self.longest_wait_ms,
                "ms",
                alone.longest_wait_ms,
                self.packets / 2,
            ),
            figure("slowest start", None, self.slowest_start_ms, "ms", alone.slowest_start_ms, 2 * RESTARTS),
        ]
    }
}
