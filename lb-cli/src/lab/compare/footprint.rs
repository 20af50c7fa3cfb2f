//! What a real agent takes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lb_agent::driver::DatapathKind;
use lb_k8s::write;
use lb_testkit::lab::{Node, Program};

use super::{
    super::fleet,
    error::{CompareError, Result, system},
    memory::{self, MemoryGroup},
    subject::POD_DEVICES,
    world::Compared,
};

/// How long an agent may take until everything is in its datapath.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long it may take to stop.
const STOP: Duration = Duration::from_secs(10);
/// Services per file: a directory of few files, each well below what one snapshot may hold.
const PER_FILE: usize = 500;

/// What an agent takes when it serves everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footprint {
    /// Resident memory, in MiB.
    pub(super) rss_mib: f64,
    /// From its start until it is ready.
    pub(super) ready: Duration,
    /// Kernel memory that is charged to it, in MiB; `None` where that is not accounted.
    pub(super) charged_mib: Option<f64>,
}

/// Runs an agent on a node until it is ready, measures it, and stops it.
pub(super) fn measure(kind: DatapathKind, node: Node<'_>, manifests: &Path) -> Result<Footprint> {
    let group = MemoryGroup::new(node.cgroup());
    let started = Instant::now();
    let mut agent = start(kind, node, manifests)?;
    if let Some(group) = &group {
        group.enter(agent.pid())?;
    }
    if agent.wait_for_line(PATIENCE, |line| line == "ready").is_none() {
        return Err(not_ready(kind, &agent));
    }
    let ready = started.elapsed();
    let rss_mib = memory::resident(agent.pid())?;
    let charged_mib = group.as_ref().and_then(MemoryGroup::kernel);
    agent.terminate(STOP)?;
    Ok(Footprint { rss_mib, ready, charged_mib })
}

fn start(kind: DatapathKind, node: Node<'_>, manifests: &Path) -> Result<Program> {
    let run_dir = node.run_dir()?;
    let mut command = Command::new(std::env::current_exe().map_err(system("finding this program"))?);
    command.arg("agent").arg("--datapath").arg(kind.name()).arg("--manifests").arg(manifests);
    command.arg("--socket").arg(run_dir.join("lb.sock")).arg("--state-dir").arg(run_dir.join("state"));
    let facts = node.facts();
    command.args(["--node", node.name()]);
    for ip in facts.ips {
        command.args(["--node-ip", &ip.to_string()]);
    }
    for cidr in facts.cluster_cidrs {
        command.args(["--cluster-cidr", &cidr.to_string()]);
    }
    command.args(fleet::attachments(node, kind, [POD_DEVICES].into_iter())?);
    Ok(node.spawn(command)?)
}

fn not_ready(kind: DatapathKind, agent: &Program) -> CompareError {
    let output = agent.output();
    let last: Vec<&str> = output.lines().rev().take(3).collect();
    let cause = format!("it is not ready after {PATIENCE:?}; its last words: {}", last.join(" | "));
    CompareError::Datapath { datapath: kind, action: "starting an agent", cause }
}

/// Writes the world for agents into `directory`, which it makes.
pub(super) fn write_manifests(world: &Compared, directory: PathBuf) -> Result<PathBuf> {
    let failed =
        |message: String| CompareError::Manifests { services: world.services(), directory: directory.clone(), message };
    fs::create_dir_all(&directory).map_err(|error| failed(error.to_string()))?;
    let objects: Vec<_> = world.objects().collect();
    for (index, chunk) in objects.chunks(PER_FILE).enumerate() {
        let mut text = String::new();
        for (service, slice) in chunk {
            text.push_str(&write::service(service).map_err(|error| failed(error.to_string()))?);
            text.push_str(&write::endpoint_slice(slice).map_err(|error| failed(error.to_string()))?);
        }
        fs::write(directory.join(format!("{index:04}.yaml")), text).map_err(|error| failed(error.to_string()))?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use lb_core::name::NodeName;
    use lb_k8s::Snapshot;

    use super::*;

    #[test]
    fn agents_read_back_what_was_written() {
        let group = |third: u8| (10..14).map(|last| [10, 244, third, last].into()).collect();
        let world = Compared::new(501, 2, NodeName::new("servers"), [group(0), group(1)]);
        let directory = tempfile::tempdir().unwrap();
        let written = write_manifests(&world, directory.path().join("manifests")).unwrap();
        assert_eq!(fs::read_dir(&written).unwrap().count(), 2);
        let snapshot = Snapshot::read(&[written]).unwrap();
        let (mut services, mut slices): (Vec<_>, Vec<_>) = world.objects().unzip();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        slices.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(snapshot.services().eq(&services));
        assert!(snapshot.endpoint_slices().eq(&slices));
    }
}
