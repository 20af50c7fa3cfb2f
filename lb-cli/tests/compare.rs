//! `lb lab compare`, run as a user runs it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

const DATAPATHS: [&str; 4] = ["ebpf", "nftables", "iptables-nft", "iptables-legacy"];

#[test]
#[ignore = "needs root: it builds a cluster out of network namespaces"]
fn ten_services_are_compared_on_every_datapath() {
    let report = tempfile::tempdir().unwrap();
    let comparison = compare(report.path());

    let rows = comparison["rows"].as_array().unwrap();
    let datapaths: Vec<&str> = rows.iter().filter_map(|row| row["datapath"].as_str()).collect();
    assert_eq!(datapaths, DATAPATHS);
    for row in rows {
        let measured = [
            "sync_ms",
            "change_ms",
            "commit_ms",
            "rss_mib",
            "connect_p50_us",
            "connect_p99_us",
            "connect_p50_ratio",
            "connect_floor_ratio",
            "cps",
            "cps_ratio",
            "cps_floor_ratio",
        ];
        for key in measured {
            assert!(row[key].as_f64().is_some_and(|value| value > 0.0), "{key} of {row}");
        }
        assert_eq!((row["services"].as_u64(), row["failures"].as_u64()), (Some(10), Some(0)), "{row}");
        assert!(row["connect_p99_us"].as_f64() >= row["connect_p50_us"].as_f64(), "{row}");
    }
    let rules = |index: usize| rows[index]["rules"].as_u64().unwrap();
    assert_eq!(rules(0), 0, "eBPF has no rules");
    assert!(rules(1) > 0 && rules(2) > 100, "{rows:?}");
    assert!(rows[0]["elements"].as_u64() >= Some(10), "{rows:?}");
    for (baseline, name) in comparison["baselines"].as_array().unwrap().iter().zip(["direct", "floor"]) {
        assert_eq!(baseline["name"], name);
        assert!(baseline["cps"].as_f64().is_some_and(|rate| rate > 0.0), "{baseline}");
    }
    assert_eq!(comparison["baselines"][0]["connect_p50_ratio"], 1.0);

    let json: Value = serde_json::from_slice(&fs::read(report.path().join("compare.json")).unwrap()).unwrap();
    assert_eq!(json, comparison);
    assert!(fs::read_to_string(report.path().join("compare.html")).unwrap().contains("<svg"));
    let figure = fs::read_to_string(report.path().join("comparison.svg")).unwrap();
    assert!(DATAPATHS.iter().all(|datapath| figure.contains(&format!("\n{datapath} "))), "{figure}");
}

/// Runs it with few rounds. Asserts that nothing is left.
fn compare(report: &Path) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command.args(["lab", "compare", "--services", "10", "--rounds", "2", "-o", "json", "--report"]).arg(report);
    let child = command.stdout(Stdio::piped()).spawn().expect("lb starts");
    let pid = child.id();
    let output = child.wait_with_output().expect("its output can be read");
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(left_by(pid), Vec::<String>::new());
    serde_json::from_slice(&output.stdout).expect("it writes JSON")
}

/// Directories that name the process as their owner.
fn left_by(pid: u32) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4)).chain(["/run", "/sys/fs/bpf"]);
    let names = mounts.flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.file_name());
    let owned = format!("-{pid}-");
    names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("lb-") && name.contains(&owned))
        .collect()
}

#[test]
#[ignore = "needs root: it builds a cluster out of network namespaces"]
fn it_ends_well_where_nobody_reads_its_progress() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command.args(["lab", "compare", "--datapaths", "nftables", "--services", "10", "--rounds", "2"]);
    let status = command.stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn nothing_can_be_compared_with_memory() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_lb")).args(["lab", "compare", "--datapaths", "memory"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("memory"));
}

#[test]
fn sizes_are_checked() {
    for services in ["0", "ten", "100001", ""] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
        let output = command.args(["lab", "compare", "--services", services]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{services}");
    }
}
