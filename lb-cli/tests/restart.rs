//! Traffic while the agent is restarted and killed, as `lb lab restart` counts it.

use std::process::{Command, Output};

use serde_json::Value;

#[test]
#[ignore = "needs root: it builds a cluster out of network namespaces"]
fn nothing_is_lost_on_ebpf_while_the_agent_is_restarted_and_killed() {
    nothing_is_lost("ebpf");
}

#[test]
#[ignore = "needs root: it builds a cluster out of network namespaces"]
fn nothing_is_lost_on_nftables_while_the_agent_is_restarted_and_killed() {
    nothing_is_lost("nftables");
}

fn nothing_is_lost(datapath: &str) {
    let size = ["--connections", "500", "--packets", "20000", "--restarts", "10", "-o", "json"];
    let output = restart(&[&["--datapaths", datapath], &size[..]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).expect("it writes JSON");
    let row = &report["rows"][0];
    let lost = ["lost_connections", "lost_packets", "lost_datagrams", "lost_segments", "failed_new_connections"];
    assert_eq!(lost.map(|key| row[key].as_u64()), [Some(0); 5], "{report:#}");
    assert_eq!((row["restarts"].as_u64(), row["kills"].as_u64()), (Some(10), Some(10)));
    assert!(row["packets"].as_u64() >= Some(20_000) && row["new_connections"].as_u64() > Some(0), "{report:#}");
    assert_eq!((output.status.code(), &report["passed"]), (Some(0), &true.into()));
}

#[test]
fn nothing_can_be_lost_on_memory() {
    let output = restart(&["--datapaths", "memory"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), message.contains("memory carries no packets")), (Some(2), true), "{message}");
}

#[test]
fn numbers_are_checked() {
    for arguments in [["--connections", "2"], ["--connections", "50001"], ["--restarts", "-1"], ["--packets", "many"]] {
        let output = restart(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}

fn restart(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command.args(["lab", "restart"]).args(arguments).output().expect("lb starts")
}
