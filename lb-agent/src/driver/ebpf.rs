//! The driver of eBPF, which attaches to devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_core::datapath::{Capabilities, Datapath, DatapathError, Devices, ErrorKind};
use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath, SocketBalancing};

use super::{Attachments, Driver, Exclusion, OpenDatapath, Setting, counted, unseen};
use crate::{
    config::{DestroySockets, sockets::SocketLb},
    host::{mounts, netlink, place::bpf_file_system, state_dir::Used},
};

pub(super) struct Ebpf;

impl Driver for Ebpf {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn about(&self) -> &'static str {
        "eBPF programs on sockets and devices; Linux 5.15 or later"
    }

    fn open(&self, attachments: &Attachments) -> Result<Box<dyn OpenDatapath>, DatapathError> {
        let hidden = mounts::hidden_sys().filter(|_| bpf_file_system(&attachments.pin_dir).is_none());
        if let Some(hint) = hidden {
            let problem = format!("{} is in no BPF file system: {hint}", attachments.pin_dir.display());
            return Err(DatapathError::new(ErrorKind::Invalid, problem));
        }
        Ok(Box::new(OnDevices::open(attachments)?))
    }

    fn capabilities(&self, attachments: &Attachments) -> Option<Capabilities> {
        let everywhere = attachments.destroy_sockets == DestroySockets::All;
        let sockets = balancing(attachments.sockets.balanced).capability();
        Some(EbpfDatapath::usual_capabilities().with_drain(everywhere).with_sockets(sockets))
    }

    /// Removes the pins; it needs neither cgroup nor devices.
    fn cleanup(&self, pin_dir: &Path) -> Result<(), DatapathError> {
        EbpfDatapath::remove(pin_dir)
    }

    fn traces(&self, pin_dir: &Path) -> Result<Option<Vec<String>>, DatapathError> {
        let pins = pins(pin_dir).map_err(unseen("listing pins"))?;
        let Some(pins) = pins else { return Ok(Some(Vec::new())) };
        Ok(Some(vec![format!("{} in {}", counted(pins.len(), "pin"), pin_dir.display())]))
    }

    /// Programs at the ingress of devices that none of the known pin directories holds. Those of sockets belong to
    /// cgroups, which network namespaces share.
    fn unknown(&self, known: &[Used]) -> Result<Vec<String>, DatapathError> {
        let mut known_programs = BTreeSet::new();
        for used in known.iter().filter(|used| used.datapath == self.name()) {
            known_programs.extend(EbpfDatapath::pinned_programs(used.pin_dir())?);
        }
        let mut at: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (_, device) in netlink::devices().map_err(unseen("listing devices"))? {
            let attached = EbpfDatapath::attached_programs(&device)?;
            for program in attached.into_iter().filter(|program| !known_programs.contains(program)) {
                at.entry(program).or_default().push(device.clone());
            }
        }
        let pin_dirs = if at.is_empty() { Vec::new() } else { self.pin_dirs()? };
        let described = at.into_iter().map(|(program, devices)| {
            let holds =
                |dir: &&PathBuf| EbpfDatapath::pinned_programs(dir).is_ok_and(|pinned| pinned.contains(&program));
            let pinned = pin_dirs.iter().find(holds).map(|dir| {
                let dir = dir.display();
                format!(", pinned in {dir}, which `lb cleanup --datapath ebpf --pin-dir {dir}` removes")
            });
            format!("program {program} on {}{}", devices.join(", "), pinned.unwrap_or_default())
        });
        Ok(described.collect())
    }

    fn pin_dirs(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let mounted = mounts::bpf().map_err(unseen("listing BPF file systems"))?;
        let mut found = Vec::new();
        for root in mounted {
            find_pins(&root, PIN_DEPTH, &mut found);
        }
        Ok(found)
    }

    fn minimum_kernel(&self) -> Option<(u32, u32)> {
        // What the verifiers before it cannot follow.
        Some((5, 15))
    }

    fn settings(&self) -> &'static [Setting] {
        &[
            Setting::Device,
            Setting::PodDevice,
            Setting::Cgroup,
            Setting::DestroySockets,
            Setting::Sockets,
            Setting::PinDir,
            Setting::Maglev,
        ]
    }

    fn privileges(&self) -> &'static str {
        "CAP_NET_ADMIN and CAP_BPF"
    }

    /// Nobody says what changes in a map.
    fn drift_interval(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Its pin directory is its lock.
    fn exclusion(&self) -> Exclusion {
        Exclusion::Datapath
    }

    #[cfg(feature = "lab")]
    fn lab(&self) -> super::lab::LabFacts {
        lab::FACTS
    }
}

/// How deep below the root of a BPF file system pin directories are looked for.
const PIN_DEPTH: usize = 4;

/// Directories below `directory` that hold pins of lb. One that cannot be read holds none that this user may remove.
fn find_pins(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if pins(directory).ok().flatten().is_some_and(|pins| !pins.is_empty()) {
        found.push(directory.into());
        return;
    }
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_pins(&entry.path(), depth, found);
        }
    }
}

/// What is pinned in a pin directory, in the layout of any version; `None` if there is no such directory, or if it has
/// other things in it alone.
fn pins(pin_dir: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let entries = match fs::read_dir(pin_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
    };
    let is_layout = |path: &&PathBuf| {
        let version = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('v'));
        version.is_some_and(|version| version.parse::<u32>().is_ok()) && path.join("links").is_dir()
    };
    let layouts: Vec<&PathBuf> = entries.iter().filter(is_layout).collect();
    if layouts.is_empty() && !entries.is_empty() {
        return Ok(None);
    }
    let mut pins = Vec::new();
    for layout in layouts {
        for part in ["links", "maps"] {
            let directory = layout.join(part);
            if directory.is_dir() {
                pins.extend(fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?);
            }
        }
    }
    Ok(Some(pins))
}

const fn balancing(which: SocketLb) -> SocketBalancing {
    match which {
        SocketLb::All => SocketBalancing::All,
        SocketLb::Host => SocketBalancing::Host,
        SocketLb::Off => SocketBalancing::Off,
    }
}

/// The datapath and the devices that it is attached to.
struct OnDevices {
    datapath: EbpfDatapath,
    settings: Attachments,
    /// By index: a device that comes back under its old name has another one.
    attached: BTreeMap<u32, String>,
    /// How many network namespaces were left alone at the last look.
    left_alone: usize,
}

impl OpenDatapath for OnDevices {
    fn datapath(&self) -> &dyn Datapath {
        &self.datapath
    }

    fn datapath_mut(&mut self) -> &mut dyn Datapath {
        &mut self.datapath
    }

    fn devices(&self) -> Option<Vec<String>> {
        Some(self.attached.values().cloned().collect())
    }

    fn facts(&self) -> Vec<String> {
        let features = self.datapath.kernel_features().map(|features| features.to_string()).unwrap_or_default();
        let kept = self.datapath.kept_sizes();
        features.lines().map(str::to_owned).chain(kept.iter().map(ToString::to_string)).collect()
    }

    fn follow_devices(&mut self) -> Result<(), String> {
        self.follow()
    }

    fn follow_pods(&mut self) -> Result<(), String> {
        let found = self.datapath.leave_alone(&self.settings.sockets.except).map_err(|error| error.report())?;
        let (before, now) = (self.left_alone, found.namespaces);
        if before != now {
            tracing::info!(before, now, "network namespaces of pods whose sockets are left to packets");
            self.left_alone = now;
        }
        found.hidden.map_or(Ok(()), |error| Err(error.report()))
    }

    fn follows_pods(&self) -> bool {
        !self.settings.sockets.except.is_empty()
    }
}

impl OnDevices {
    fn open(settings: &Attachments) -> Result<Self, DatapathError> {
        let attached = present(settings)?;
        let pod_devices = attached.values().filter(|name| !settings.devices.contains(name));
        let config = EbpfConfig::new(&settings.cgroup)
            .with_pin_dir(&settings.pin_dir)
            .with_pod_devices(pod_devices)
            .with_uplink_devices(&settings.devices)
            .with_destroy_sockets(match settings.destroy_sockets {
                DestroySockets::Off => lb_datapath_ebpf::DestroySockets::Off,
                DestroySockets::Host => lb_datapath_ebpf::DestroySockets::Host,
                DestroySockets::All => lb_datapath_ebpf::DestroySockets::All,
            })
            .with_socket_balancing(balancing(settings.sockets.balanced))
            .with_guard_ports(settings.sockets.guard_ports.is_on())
            .with_loopback_node_ports(settings.sockets.loopback_node_ports.is_on())
            .with_node_ports(settings.sockets.node_ports.0.clone());
        let datapath = EbpfDatapath::open(config)?;
        if let Some(missing) = datapath.missing_pins() {
            tracing::warn!("the pins of an earlier process are not complete: {missing}");
        }
        if let Some(problem) = datapath.drain_problem() {
            tracing::warn!(
                problem = problem.report(),
                "--destroy-sockets is all, but drain policies are not supported here: established flows keep their backend"
            );
        }
        // Devices that are left out are tried again, so that the agent says what is wrong with them.
        let is_kept = |name: &String| {
            let config = datapath.config();
            config.pod_devices.iter().chain(&config.uplink_devices).any(|kept| kept == name)
        };
        let attached = attached.into_iter().filter(|(_, name)| is_kept(name)).collect();
        let opened = Self { datapath, settings: settings.clone(), attached, left_alone: 0 };
        for fact in opened.facts() {
            tracing::info!("{fact}");
        }
        Ok(opened)
    }

    fn follow(&mut self) -> Result<(), String> {
        let present = present(&self.settings).map_err(|error| error.report())?;
        let mut problems = Vec::new();
        let gone: Vec<(u32, String)> =
            self.attached.iter().filter(|(index, name)| present.get(index) != Some(name)).map(owned).collect();
        for (index, name) in gone {
            match self.datapath.detach_device(&name) {
                Ok(()) => drop(self.attached.remove(&index)),
                Err(error) => problems.push(error.report()),
            }
        }
        let new: Vec<(u32, String)> =
            present.iter().filter(|(index, _)| !self.attached.contains_key(index)).map(owned).collect();
        for (index, name) in new {
            match self.datapath.attach_device(&name) {
                Ok(()) => {
                    tracing::info!(device = name, "attached");
                    self.attached.insert(index, name);
                }
                Err(error) => problems.push(error.report()),
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }
}

fn owned((index, name): (&u32, &String)) -> (u32, String) {
    (*index, name.clone())
}

/// Devices that there are and that are meant.
fn present(settings: &Attachments) -> Result<BTreeMap<u32, String>, DatapathError> {
    let mut devices = netlink::devices()
        .map_err(|error| DatapathError::new(ErrorKind::System, "listing devices failed").with_source(error))?;
    let meant = |name: &str| {
        let named = settings.devices.iter().any(|device| device == name);
        named || (name != "lo" && settings.pod_devices.iter().any(|pattern| pattern.matches(name)))
    };
    devices.retain(|_, name| meant(name));
    Ok(devices)
}

#[cfg(feature = "lab")]
mod lab {
    use std::{collections::BTreeSet, fs, io};

    use super::super::lab::{ForeignEdit, LabFacts, Scene, WithoutRoot, nth, run, words};

    pub(super) const FACTS: LabFacts = LabFacts {
        without_root: WithoutRoot::Never,
        translates_sockets: true,
        rule_listers: &[],
        rule_list: None,
        edits: &EDITS,
        seen,
    };

    const EDITS: [ForeignEdit; 5] = [
        ForeignEdit {
            name: "rm a map's pin",
            program: "rm",
            command: |scene, round| Ok(vec!["rm".into(), pin(scene, "maps", round)?]),
        },
        ForeignEdit {
            name: "rm a link's pin",
            program: "rm",
            command: |scene, round| Ok(vec!["rm".into(), pin(scene, "links", round)?]),
        },
        ForeignEdit {
            name: "rm every pin",
            program: "rm",
            command: |scene, _| Ok(vec!["rm".into(), "-r".into(), layout(scene).display().to_string()]),
        },
        ForeignEdit {
            name: "bpftool link detach",
            program: "bpftool",
            command: |scene, round| {
                Ok([words("bpftool link detach pinned"), vec![pin(scene, "links", round)?]].concat())
            },
        },
        ForeignEdit { name: "bpftool map delete", program: "bpftool", command: delete_entry },
    ];

    /// Where the pins of this layout are.
    fn layout(scene: &Scene) -> std::path::PathBuf {
        scene.pin_dir.join("v1")
    }

    fn seen(scene: &Scene) -> io::Result<BTreeSet<String>> {
        let directory = |name| fs::read_dir(layout(scene).join(name));
        let entries = directory("maps")?.chain(directory("links")?);
        entries.map(|entry| Ok(entry?.path().display().to_string())).collect()
    }

    /// A pin, in turn.
    fn pin(scene: &Scene, directory: &str, round: usize) -> io::Result<String> {
        let entries = fs::read_dir(layout(scene).join(directory))?;
        let mut paths: Vec<String> = entries.flatten().map(|entry| entry.path().display().to_string()).collect();
        paths.sort();
        nth(paths, round, "pin")
    }

    /// The first entry of the map of frontends.
    fn delete_entry(scene: &Scene, _: usize) -> io::Result<Vec<String>> {
        let map = layout(scene).join("maps/FRONTENDS").display().to_string();
        let next = run(&[words("bpftool -j map getnext pinned"), vec![map.clone()]].concat())?;
        let next: serde_json::Value = serde_json::from_str(&next)?;
        let key = next["next_key"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
        let key: Vec<String> = key.map(|byte| byte.trim_start_matches("0x").to_owned()).collect();
        Ok([words("bpftool map delete pinned"), vec![map, "key".into(), "hex".into()], key].concat())
    }
}
