//! Other tools change what a datapath holds, as `lb lab drift` does it, and the agent puts it right.

use std::process::{Command, Output};

use serde_json::Value;

#[test]
#[ignore = "needs root: it builds a cluster out of network namespaces"]
fn what_nft_changes_is_repaired_at_once_and_connections_survive() {
    let rows = repaired("nftables");
    let edits: Vec<&str> = rows.iter().map(|row| row["edit"].as_str().unwrap_or_default()).collect();
    assert!(edits.contains(&"nft flush ruleset") && edits.contains(&"nft delete element"), "{edits:?}");
    // Ten times what it takes: other tests run on the machine.
    assert!(rows.iter().all(|row| row["p50_ms"].as_f64() < Some(300.0)), "{rows:#?}");
}

#[test]
#[ignore = "needs root: it builds a cluster out of network namespaces"]
fn pins_links_and_map_entries_are_repaired_and_connections_survive() {
    let rows = repaired("ebpf");
    let at_once: Vec<&Value> = rows.iter().filter(|row| row["edit"] != "bpftool map delete").collect();
    assert!(at_once.len() >= 3 && at_once.iter().all(|row| row["p50_ms"].as_f64() < Some(500.0)), "{rows:#?}");
}

#[test]
#[ignore = "needs root: it builds a cluster out of network namespaces"]
fn flushed_iptables_are_repaired_and_connections_survive() {
    repaired("iptables-nft");
    repaired("iptables-legacy");
}

fn repaired(datapath: &str) -> Vec<Value> {
    let output = drift(&["--datapaths", datapath, "--edits", "2", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let rows = report["rows"].as_array().cloned().unwrap_or_default();
    assert!(!rows.is_empty(), "{report:#}");
    for row in &rows {
        let lost = ["not_repaired", "failed"].map(|key| row[key].as_u64());
        assert_eq!((lost, &row["survived"]), ([Some(0); 2], &row["connections"]), "{row:#}");
    }
    assert_eq!((output.status.code(), &report["passed"]), (Some(0), &true.into()));
    rows
}

#[test]
fn memory_is_nobody_elses_to_change() {
    let output = drift(&["--datapaths", "memory"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), message.contains("nobody else's to change")), (Some(2), true), "{message}");
}

fn drift(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command.args(["lab", "drift"]).args(arguments).output().expect("lb starts")
}
