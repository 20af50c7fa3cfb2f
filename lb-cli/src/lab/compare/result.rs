//! What a comparison comes to.

use lb_agent::driver::DatapathKind;
use serde::Serialize;

/// All of it. Keys are only ever added.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Comparison {
    /// Release of the kernel.
    pub(super) kernel: String,
    /// Processors that it may use.
    pub(super) cpus: usize,
    /// How often everything was measured.
    pub(super) n: Counts,
    /// Decides the order within rounds.
    pub(super) seed: u64,
    /// How long all of it took.
    pub(super) seconds: f64,
    /// One per datapath and size.
    pub(super) rows: Vec<Row>,
    /// `direct` and `floor`, one of each per size.
    pub(super) baselines: Vec<PathRow>,
    /// Further paths through the same datapaths: `ebpf-tcx`, one per size.
    pub(super) extras: Vec<PathRow>,
    /// What somebody who reads the numbers should know about this run.
    pub(super) notes: Vec<String>,
}

/// How often everything was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// Rounds; each measures every path once.
    pub(super) rounds: u32,
    /// Connections, one after the other, per path and round: what the latencies are of.
    pub(super) connects: u32,
    /// Clients that connect in parallel.
    pub(super) lanes: usize,
    /// Connections of each of them per path and round: what the rates are of.
    pub(super) lane_connects: u32,
    /// Changes per datapath and size.
    pub(super) changes: u32,
    /// Most syncs per datapath and size; a slow one is done once.
    pub(super) syncs: u32,
    /// Services that ask for Maglev with 251 slots.
    pub(super) maglev: u32,
}

/// One datapath at one size.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Which.
    pub(super) datapath: DatapathKind,
    /// Number of services, four backends each.
    pub(super) services: u32,
    /// From the first plan to the kernel's last acknowledgement.
    pub(super) sync_ms: f64,
    /// From an event to the first connection that lands on a new endpoint.
    pub(super) change_ms: f64,
    /// The same, 99th percentile.
    pub(super) change_p99_ms: f64,
    /// The part of it until the kernel's last acknowledgement.
    pub(super) commit_ms: f64,
    /// The same, 99th percentile.
    pub(super) commit_p99_ms: f64,
    /// Rules that a packet may have to walk.
    pub(super) rules: u64,
    /// Elements of maps and sets.
    pub(super) elements: u64,
    /// From the start of an agent with manifests on disk until it is ready.
    pub(super) ready_ms: f64,
    /// Resident memory of an agent that serves all of it.
    pub(super) rss_mib: f64,
    /// What the kernel holds for it.
    pub(super) kernel_mib: f64,
    /// What a client notices.
    #[serde(flatten)]
    pub(super) speed: Speed,
}

/// What a client notices on one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Speed {
    /// Median of a new TCP connection.
    pub(super) connect_p50_us: f64,
    /// 99th percentile.
    pub(super) connect_p99_us: f64,
    /// Median against direct in the same round.
    pub(super) connect_p50_ratio: f64,
    /// Median against the netfilter floor in the same round.
    pub(super) connect_floor_ratio: f64,
    /// Connections per second.
    pub(super) cps: f64,
    /// Rate against direct in the same round.
    pub(super) cps_ratio: f64,
    /// Rate against the netfilter floor in the same round.
    pub(super) cps_floor_ratio: f64,
    /// Connections that failed.
    pub(super) failures: u64,
}

/// One path without a row of its own.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PathRow {
    /// Which.
    pub(super) name: &'static str,
    /// Number of services around it.
    pub(super) services: u32,
    /// What a client notices.
    #[serde(flatten)]
    pub(super) speed: Speed,
}

/// Same client, server and route; no program, table, rule or connection tracking on the way.
pub(super) const DIRECT: &str = "direct";
/// One service, one rule that translates its destination.
pub(super) const FLOOR: &str = "floor";
/// A client outside of the cgroup, so that eBPF sees packets alone.
pub(super) const EBPF_PACKETS: &str = "ebpf-tcx";

impl Comparison {
    /// Sizes, in the order of the rows.
    pub(super) fn sizes(&self) -> Vec<u32> {
        let mut sizes: Vec<u32> = self.rows.iter().map(|row| row.services).collect();
        sizes.dedup();
        sizes
    }

    /// Datapaths, in the order of the rows.
    pub(super) fn datapaths(&self) -> Vec<DatapathKind> {
        let mut kinds = Vec::new();
        for row in &self.rows {
            if !kinds.contains(&row.datapath) {
                kinds.push(row.datapath);
            }
        }
        kinds
    }
}

#[cfg(test)]
pub(super) mod tests {
    use lb_agent::driver;

    use super::*;

    /// A made-up comparison of two datapaths at three sizes.
    pub(in super::super) fn example() -> Comparison {
        let speed = |ratio: f64| Speed {
            connect_p50_us: 30.0 * ratio,
            connect_p99_us: 90.0 * ratio,
            connect_p50_ratio: ratio,
            connect_floor_ratio: ratio / 1.2,
            cps: 30_000.0 / ratio,
            cps_ratio: 1.0 / ratio,
            cps_floor_ratio: 1.2 / ratio,
            failures: 0,
        };
        let sizes = [10, 100, 1000];
        let row = |datapath, services: u32, ratio| Row {
            datapath,
            services,
            sync_ms: f64::from(services) / 10.0,
            change_ms: 1.5,
            change_p99_ms: 3.0,
            commit_ms: 1.0,
            commit_p99_ms: 2.0,
            rules: u64::from(services),
            elements: 0,
            ready_ms: 50.0,
            rss_mib: 8.0,
            kernel_mib: 2.5,
            speed: speed(ratio),
        };
        let path = |name, services, ratio| PathRow { name, services, speed: speed(ratio) };
        Comparison {
            kernel: "6.18.0 <test>".into(),
            cpus: 2,
            n: Counts { rounds: 20, connects: 200, lanes: 4, lane_connects: 500, changes: 8, syncs: 3, maglev: 0 },
            seed: 7,
            seconds: 12.5,
            rows: sizes
                .into_iter()
                .flat_map(|n| {
                    let growth = 1.0 + f64::from(n) / 1000.0;
                    [row(driver::EBPF, n, 1.0), row(driver::IPTABLES_NFT, n, growth)]
                })
                .collect(),
            baselines: sizes.into_iter().flat_map(|n| [path(DIRECT, n, 1.0), path(FLOOR, n, 1.2)]).collect(),
            extras: sizes.into_iter().map(|n| path(EBPF_PACKETS, n, 1.1)).collect(),
            notes: vec!["5 < 6 & \"quoted\"".into()],
        }
    }

    #[test]
    fn json_has_the_keys_that_programs_read() {
        let json = serde_json::to_value(example()).unwrap();
        for key in ["kernel", "cpus", "n", "seed", "rows", "baselines"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        let row = &json["rows"][1];
        assert_eq!((row["datapath"].as_str(), row["services"].as_u64()), (Some("iptables-nft"), Some(10)));
        let numbers = [
            "sync_ms",
            "change_ms",
            "change_p99_ms",
            "commit_ms",
            "commit_p99_ms",
            "rules",
            "elements",
            "ready_ms",
            "rss_mib",
            "kernel_mib",
            "connect_p50_us",
            "connect_p99_us",
            "connect_p50_ratio",
            "connect_floor_ratio",
            "cps",
            "cps_ratio",
            "cps_floor_ratio",
        ];
        for key in numbers {
            assert!(row[key].is_number(), "{key}: {row}");
        }
        assert_eq!(json["baselines"][0]["name"], "direct");
        assert!(json["baselines"][1]["connect_p50_ratio"].is_number());
    }

    #[test]
    fn sizes_and_datapaths_come_once() {
        let example = example();
        assert_eq!(example.sizes(), [10, 100, 1000]);
        assert_eq!(example.datapaths(), [driver::EBPF, driver::IPTABLES_NFT]);
    }
}
