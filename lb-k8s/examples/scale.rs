//! How long manifests take from disk to changes: `cargo run --release -p lb-k8s --example scale [SERVICES]`.
//!
//! Writes that many services (10,000 by default) with a slice of four endpoints each, once into one file and once into
//! a file per service, and reads them back.

mod common;

use std::{error::Error, fs, path::Path, time::Instant};

use common::manifest;
use lb_core::name::SourceName;
use lb_k8s::Manifests;

fn main() -> Result<(), Box<dyn Error>> {
    let services: u32 = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let start = Instant::now();
    let texts = (0..services).map(manifest).collect::<Result<Vec<_>, _>>()?;
    println!("rendered {services} services in {:?}", start.elapsed());

    let one = directory.path().join("one");
    fs::create_dir(&one)?;
    fs::write(one.join("all.yaml"), texts.concat())?;
    measure("one file", &one, services)?;

    let many = directory.path().join("many");
    fs::create_dir(&many)?;
    for (index, text) in texts.iter().enumerate() {
        fs::write(many.join(format!("{index:05}.yaml")), text)?;
    }
    measure("a file per service", &many, services)
}

fn measure(what: &str, directory: &Path, services: u32) -> Result<(), Box<dyn Error>> {
    let mut manifests = Manifests::new(SourceName("manifests".into()));
    let start = Instant::now();
    let batch = manifests.reload(&[directory]);
    println!("{what}: read to {} changes in {:?}", batch.changes.len(), start.elapsed());
    assert_eq!(batch.changes.len(), 2 * services as usize + 2);
    drop(batch);
    let start = Instant::now();
    let again = manifests.reload(&[directory]);
    println!("{what}: looked at again in {:?}", start.elapsed());
    assert!(again.changes.is_empty() && again.report.is_clean());

    let last = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .max_by_key(|path| path.as_ref().ok().cloned());
    let last = last.ok_or("the directory is empty")??;
    let changed = fs::read_to_string(&last)?.replace("port: 8080", "port: 8081");
    fs::write(&last, changed)?;
    let start = Instant::now();
    let batch = manifests.reload_files(&[last]);
    println!("{what}: one file that changed read to {} changes in {:?}", batch.changes.len(), start.elapsed());
    println!("{what}: resident at most {}", resident());
    Ok(())
}

fn resident() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.map_or("unknown".into(), |line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
}
