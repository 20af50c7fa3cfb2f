//! How much memory manifests take: `cargo run --release -p lb-k8s --example memory [SERVICES] [one|many|list]`.
//!
//! Writes that many services (10,000 by default) with a slice of four endpoints each into one file, a file each, or one
//! list, and reads them in this process: resident memory and what of it is in use, step by step.

mod common;

use std::{error::Error, fs, path::Path, process::Command};

use common::manifest;
use lb_core::{
    datapath::Capabilities,
    model::{Model, Settings},
    name::SourceName,
};
use lb_k8s::Manifests;

/// Says that this process is the one that reads, and what.
const READ: &str = "LB_EXAMPLE_READ";

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(directory) = std::env::var_os(READ) {
        return read(Path::new(&directory));
    }
    let services: u32 = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let layout = std::env::args().nth(2).unwrap_or_else(|| "one".into());
    let directory = tempfile::tempdir()?;
    let texts = (0..services).map(manifest).collect::<Result<Vec<_>, _>>()?;
    let path = |name: &str| directory.path().join(name);
    match layout.as_str() {
        "one" => fs::write(path("all.yaml"), texts.concat())?,
        "list" => fs::write(path("list.yaml"), list(&texts.concat()))?,
        _ => texts.iter().zip(0..).try_for_each(|(text, n)| fs::write(path(&format!("{n:05}.yaml")), text))?,
    }
    println!("{services} services, {layout}, {} KiB", texts.iter().map(String::len).sum::<usize>() / 1024);
    let status = Command::new(std::env::current_exe()?).env(READ, directory.path()).status()?;
    if status.success() { Ok(()) } else { Err("the reader failed".into()) }
}

/// One object with all others inside it.
fn list(text: &str) -> String {
    let item = |document: &str| {
        let lines = document.trim_start_matches('\n').lines().enumerate();
        lines.map(|(number, line)| format!("{}{line}\n", if number == 0 { "- " } else { "  " })).collect::<String>()
    };
    let items: String = text.split("---\n").filter(|document| !document.trim().is_empty()).map(item).collect();
    format!("apiVersion: v1\nkind: List\nitems:\n{items}")
}

fn read(directory: &Path) -> Result<(), Box<dyn Error>> {
    say("nothing read");
    let mut manifests = Manifests::new(SourceName("manifests".into()));
    let start = std::time::Instant::now();
    let batch = manifests.reload(&[directory]);
    println!("read in {:?}", start.elapsed());
    assert!(batch.report.is_clean(), "{:?}", batch.report.rejected);
    say("read, with its changes");
    let mut model = Model::new(Settings::default(), Capabilities::all("example"));
    for change in batch.changes {
        model.apply(change)?;
    }
    say("changes in a model");
    drop(model);
    say("model gone");
    println!("{} services", manifests.services().count());
    drop(manifests);
    say("all gone");
    Ok(())
}

fn say(what: &str) {
    // SAFETY: it only reads the allocator's own counters.
    let heap = unsafe { libc::mallinfo2() };
    let of = |name: &str| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
        line.map_or("unknown".into(), |line| line.trim().to_owned())
    };
    let (used, free) = ((heap.uordblks + heap.hblkhd) / 1024, heap.fordblks / 1024);
    println!(
        "{what:24} resident {:>10}, at most {:>10}; heap: {used} kB used, {free} kB free",
        of("VmRSS:"),
        of("VmHWM:")
    );
}
