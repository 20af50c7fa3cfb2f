//! The datapath itself.

use std::{collections::BTreeSet, io, os::fd::AsFd, path::Path, sync::Arc, time::Duration};

use ipnet::IpNet;
use lb_core::{
    addr::{Family, FrontendKind, Protocol},
    datapath::{
        AffinityCapability, ApplyError, Atomicity, Capabilities, Counters, Datapath, DatapathError, Devices, Evicted,
        Eviction, MapUsage, Role, Watcher,
    },
    decision::Packet,
    drift::{Drift, DriftClass, Expected, Inspection, compare},
    id::HeldIds,
    kernel::KernelAnswer,
    node::NodeFacts,
    plan::{Op, Plan},
    service::Algorithm,
    state::{Lookup, State},
};
use lb_datapath_ebpf_abi as abi;

use crate::{
    ask,
    config::{DestroySockets, EbpfConfig, SocketBalancing},
    counters::{MapCounters, SharedFilled},
    drift::{repair, scan::Scanner, watch::PinWatcher},
    error::EbpfError,
    evict,
    features::KernelFeatures,
    left_alone::{self, LeftAlone, Seen},
    object::Object,
    pins::{
        anchors::{Anchors, SharedAnchors},
        clsact::{Clsact, Way},
        directories::{self, Pins},
        links::{self, Ingress},
        missing::MissingPins,
        ownership::{self, Left},
        resize,
        sizes::KeptSize,
    },
    privileges,
    programs::{DryRun, INGRESS, Programs},
    reasons::ReasonCounters,
    state::{
        ids,
        layout::{REASONS, SOCK_COUNTS},
        loads::Loads,
        lower::{self, MAX_SLOTS},
        maps::{Maps, reading},
        mirror::{Filled, Mirror},
        ports::Ports,
        restore::Restored,
        sockets::Sockets,
        sweep::Sweeper,
        write::Store,
    },
    sys,
};

/// Services in eBPF: socket hooks of a cgroup, and packets at the ingress of devices.
///
/// Everything is pinned: dropping the value, or the death of the process, leaves the services working, and opening the
/// same pin directory again takes them over without a packet or a connection noticing. [`Datapath::cleanup`] removes
/// everything; after it, the next [`Datapath::apply`] starts anew.
#[derive(Debug)]
pub struct EbpfDatapath {
    config: EbpfConfig,
    kernel: Option<Kernel>,
    shared: SharedAnchors,
    filled: SharedFilled,
    missing: Option<MissingPins>,
    /// Why the flows of some sockets cannot be cut, although the configuration asks for it.
    drain_problem: Option<DatapathError>,
}

/// What is in the kernel, and its mirror in this process.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) maps: Maps,
    pub(crate) mirror: Mirror,
    pub(crate) programs: Programs,
    pub(crate) features: KernelFeatures,
    kept: Vec<KeptSize>,
    pub(crate) role: u32,
    pub(crate) sockets: Sockets,
    pub(crate) scanner: Scanner,
    pub(crate) dry: Option<DryRun>,
    pub(crate) sweeper: Sweeper,
    /// Entries that were found unreadable when the maps were opened; the first inspection reports them.
    pub(crate) unreadable: Vec<Drift>,
}

impl EbpfDatapath {
    /// Loads the programs, attaches them, and takes over what an earlier process pinned in the same directory.
    ///
    /// Devices are looked up in the network namespace of the calling thread. A pod's device that is not there is left
    /// out, and out of [`config`](Self::config): devices of pods come and go. So is one whose packets begin neither with an
    /// Ethernet header nor with that of IP.
    ///
    /// # Errors
    /// When the directory is in use, belongs to another user, holds pins of other programs or is in no BPF file system,
    /// when the kernel is older than 6.6, and when a cgroup or an uplink does not exist, or an uplink is of such a type.
    pub fn open(config: EbpfConfig) -> Result<Self, DatapathError> {
        let (shared, filled) = (SharedAnchors::default(), SharedFilled::default());
        let everywhere = config.destroy_sockets == DestroySockets::All;
        let drain_problem = everywhere.then(evict::hindrance).flatten();
        let mut datapath = Self { config, kernel: None, shared, filled, missing: None, drain_problem };
        datapath.kernel()?;
        Ok(datapath)
    }

    /// The content of the maps that are pinned in `pin_dir`, read without taking them over or locking the directory.
    ///
    /// # Errors
    /// When a map is missing, or is another one.
    pub fn read(pin_dir: &Path) -> Result<State, DatapathError> {
        let maps = Maps::open(&pin_dir.join(abi::LAYOUT).join("maps"), Ports::default())?;
        Ok(Restored::new(&maps.snapshot()?, maps.limits()).mirror.state)
    }

    /// The configuration, with the devices that were attached and detached since.
    #[must_use]
    pub const fn config(&self) -> &EbpfConfig {
        &self.config
    }

    /// What the kernel was found to offer when the datapath was opened; `None` after
    /// [`cleanup`](Datapath::cleanup), until something is applied. Show it to people: it says what is served in another
    /// way than on a newer kernel.
    #[must_use]
    pub fn kernel_features(&self) -> Option<KernelFeatures> {
        self.kernel.as_ref().map(|kernel| kernel.features)
    }

    /// Maps that are larger than [`capacities`](EbpfConfig::capacities) asks for, because an earlier process made them and
    /// more is in use than would fit. Tell people: their setting has no effect yet. Other maps got the size that is asked
    /// for when the datapath was opened, with everything in them.
    #[must_use]
    pub fn kept_sizes(&self) -> Vec<KeptSize> {
        let Some(kernel) = &self.kernel else { return Vec::new() };
        kernel.kept.clone()
    }

    /// Pins that were missing when the datapath was opened, although an earlier process had left others. Tell people:
    /// established connections may have been lost.
    #[must_use]
    pub const fn missing_pins(&self) -> Option<&MissingPins> {
        self.missing.as_ref()
    }

    /// Why drain policies are not carried out, although [`DestroySockets::All`] asks for it: the kernel or the privileges
    /// of this process do not suffice. Tell people: services that have such policies are degraded.
    #[must_use]
    pub const fn drain_problem(&self) -> Option<&DatapathError> {
        self.drain_problem.as_ref()
    }

    /// Removes everything that a datapath with this pin directory put into the kernel, without opening it first. A
    /// missing directory is no error.
    ///
    /// # Errors
    /// When a datapath has it open, or a pin cannot be removed.
    pub fn remove(pin_dir: &Path) -> Result<(), DatapathError> {
        Ok(directories::remove(pin_dir)?)
    }

    /// Ids of the programs of this crate that are attached to the ingress of the device called `name`, whoever attached
    /// them, and by whatever hook. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// When the device is not in the network namespace of the calling thread, or the kernel refuses.
    pub fn attached_programs(name: &str) -> Result<Vec<u32>, DatapathError> {
        let gone = |source| EbpfError::NoDevice { name: name.into(), source };
        let examine = |source| EbpfError::Examine { name: INGRESS, source };
        let device = sys::device(name).map_err(gone)?;
        let mut found = Vec::new();
        let by_tcx =
            if sys::has_tcx().map_err(examine)? { sys::programs_of(device).map_err(examine)? } else { Vec::new() };
        let filters =
            Clsact::open().and_then(|clsact| clsact.filters(Way { device, leaves: false })).map_err(examine)?;
        for id in by_tcx.into_iter().chain(filters.into_iter().map(|filter| filter.prog)) {
            match sys::prog_by_id(id).and_then(|fd| sys::prog_info(fd.as_fd())) {
                Ok(info) if info.name == INGRESS => found.push(id),
                // Another program, or one that was detached meanwhile.
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(examine(error).into()),
            }
        }
        Ok(found)
    }

    /// Ids of the programs that are pinned, or whose links are, in `pin_dir`, in the layout of this version; none if there is no such
    /// directory.
    ///
    /// # Errors
    /// When a pin cannot be examined.
    pub fn pinned_programs(pin_dir: &Path) -> Result<BTreeSet<u32>, DatapathError> {
        let links = pin_dir.join(abi::LAYOUT).join("links");
        if !links.is_dir() {
            return Ok(BTreeSet::new());
        }
        let mut found = BTreeSet::new();
        for path in directories::entries(&links)? {
            match sys::open_pin(&path).and_then(|fd| links::program(fd.as_fd())) {
                Ok(program) => drop(found.insert(program)),
                // It was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(directories::failed("examining", &path)(error).into()),
            }
        }
        Ok(found)
    }

    /// A reader of the programs' counters: why packets of frontends were not forwarded, and why calls of sockets
    /// failed. `None` after [`cleanup`](Datapath::cleanup), until something is applied.
    ///
    /// ```no_run
    /// # let datapath = lb_datapath_ebpf::EbpfDatapath::open(lb_datapath_ebpf::EbpfConfig::new("/sys/fs/cgroup"))?;
    /// if let Some(counters) = datapath.reason_counters()? {
    ///     for (reason, count) in counters.read()? {
    ///         println!("lb_stopped_total{{reason=\"{}\"}} {count}", reason.name());
    ///     }
    /// }
    /// # Ok::<(), lb_core::datapath::DatapathError>(())
    /// ```
    ///
    /// # Errors
    /// When the process has no descriptor left, or `/sys` does not say how many processors there are.
    pub fn reason_counters(&self) -> Result<Option<ReasonCounters>, DatapathError> {
        let anchors = self.shared.lock();
        let Some(anchors) = anchors.as_ref() else { return Ok(None) };
        anchors.map(REASONS)?.map(ReasonCounters::new).transpose()
    }

    /// Leaves the sockets of one network namespace to packets, or has them sent to backends again where they state their
    /// destination. Sockets that are connected already stay as they are. It outlives this process, until
    /// [`cleanup`](Datapath::cleanup), and concerns namespaces that
    /// [`EbpfConfig::socket_balancing`] includes. Default: on for every namespace.
    ///
    /// `cookie` is what [`netns_cookie`](Self::netns_cookie) says inside of the namespace. It is never that of another
    /// namespace, until the machine starts anew. Up to 4,096 namespaces fit.
    ///
    /// # Errors
    /// When the map is full, or the kernel refuses.
    pub fn set_socket_balancing(&mut self, cookie: u64, on: bool) -> Result<(), DatapathError> {
        Ok(self.kernel()?.sockets.skip(cookie, !on)?)
    }

    /// Leaves the sockets of exactly those network namespaces to packets that have an address in one of `prefixes`, as
    /// they are now, in place of all that were [left alone](Self::set_socket_balancing) before. Those of the processes of
    /// [`EbpfConfig::cgroup`] are looked into, and those in `/run/netns`; never that of the calling thread, and no process
    /// that shares it is left alone. Call it again when pods come and go.
    /// Without prefixes, no namespace is looked at.
    ///
    /// It needs `CAP_SYS_ADMIN`, `CAP_SYS_PTRACE` and the host's PID namespace. What could not be looked at is part of the answer.
    ///
    /// # Errors
    /// When the map is full, or the kernel refuses.
    pub fn leave_alone(&mut self, prefixes: &[IpNet]) -> Result<LeftAlone, DatapathError> {
        let seen = match prefixes {
            [] => Seen::default(),
            prefixes => left_alone::look(&self.config.cgroup, prefixes),
        };
        let namespaces = self.kernel()?.sockets.skip_all(seen.meant, seen.hidden.is_some())?;
        Ok(LeftAlone { namespaces, hidden: seen.hidden })
    }

    /// The cookie of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel is older than 5.14.
    pub fn netns_cookie() -> Result<u64, DatapathError> {
        let cookie = sys::netns_cookie().map_err(|source| EbpfError::Probe { what: "SO_NETNS_COOKIE", source })?;
        Ok(cookie.ok_or(EbpfError::NoNamespace)?)
    }

    /// How full each map is whose size is one of the [capacities](EbpfConfig::capacities), empty after
    /// [`cleanup`](Datapath::cleanup). What programs write is estimated. [`Counters::maps`] says the same from another
    /// thread. It takes some hundred microseconds.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn map_usage(&self) -> Result<Vec<MapUsage>, DatapathError> {
        self.counters().map_or_else(|| Ok(Vec::new()), |counters| counters.maps())
    }

    /// What is in the kernel, loaded if it is not there.
    fn kernel(&mut self) -> Result<&mut Kernel, EbpfError> {
        let kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => {
                let (kernel, anchors, missing) = Kernel::load(&mut self.config)?;
                *self.shared.lock() = Some(anchors);
                self.missing = missing;
                kernel
            }
        };
        self.filled.set(kernel.mirror.filled());
        Ok(self.kernel.insert(kernel))
    }

    /// Pins and links that have changed since they were made.
    fn suspects(&self) -> Result<Vec<Drift>, EbpfError> {
        self.shared.lock().as_ref().map_or(Ok(Vec::new()), Anchors::check)
    }

    fn repair_anchors(&mut self) -> Result<(), EbpfError> {
        let (Some(kernel), Some(anchors)) = (&mut self.kernel, &mut *self.shared.lock()) else { return Ok(()) };
        let Kernel { programs, maps, .. } = kernel;
        for name in anchors.repair(programs)? {
            let is_uplink = self.config.uplink_devices.contains(&name);
            match attach_device(anchors, programs, maps, &name, if is_uplink { UPLINK } else { POD_DEVICE }) {
                Ok(()) => {}
                Err(EbpfError::NoDevice { .. }) => self.config.forget_device(&name),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Kernel {
    /// Loads everything. After a failure the pins of an earlier process are as they were; if there were none, there are
    /// none.
    fn load(config: &mut EbpfConfig) -> Result<(Self, Anchors, Option<MissingPins>), EbpfError> {
        let ports = Ports::free()?;
        privileges::check()?;
        let features = KernelFeatures::detect(config.force_clsact)?;
        let pins = Pins::create(&config.pin_dir)?;
        let Left { usable: adopted, missing } = ownership::check(&pins)?;
        if adopted {
            links::finish(&pins.links())?;
        } else {
            // An earlier start was not finished, or maps are missing that the services need.
            pins.clear()?;
        }
        let dir = config.pin_dir.clone();
        let loaded = Self::load_into(config, pins, adopted, ports, features);
        if loaded.is_err() && !adopted {
            // The first error says more than one about the clean-up.
            let _ = directories::remove(&dir);
        }
        loaded.map(|(kernel, anchors)| (kernel, anchors, missing))
    }

    fn load_into(
        config: &mut EbpfConfig,
        pins: Pins,
        adopted: bool,
        ports: Ports,
        features: KernelFeatures,
    ) -> Result<(Self, Anchors), EbpfError> {
        let (programs, kept) = resize::load(&pins, &Object::new(&features), &config.capacities)?;
        let mut maps = Maps::open(&pins.maps(), ports)?;
        let Restored { mut mirror, fixes, unreadable } = Restored::new(&maps.snapshot()?, maps.limits());
        maps.write(&fixes);
        maps.fill_filter(&mirror)?;
        // A program may still read slots that are freed here, or that the earlier process freed last.
        if adopted && sys::wait_for_readers().is_err() {
            mirror.heap.delay_reuse(maps.now());
        }
        let mut sockets = Sockets::open(&pins.maps())?;
        let counts = mirror.state.sets.values().any(|set| set.lookup == Lookup::LeastConnections);
        sockets.configure(config, counts || !maps.sock_counts().keys().map_err(reading(SOCK_COUNTS))?.is_empty())?;
        let mut anchors = Anchors::new(pins, Ingress::of(features.hook)?)?;
        anchors.attach_cgroup(&programs, &config.cgroup)?;
        attach_devices(&mut anchors, &programs, &mut maps, config)?;
        let role = maps.role()?;
        let sweeper = Sweeper::start(maps.live_flows(), Loads::new(&maps)?)?;
        let scanner = Scanner::default();
        let dry = None;
        let kernel = Self { maps, mirror, programs, features, kept, role, sockets, scanner, dry, sweeper, unreadable };
        Ok((kernel, anchors))
    }

    /// Carries out a plan.
    pub(crate) fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        let counts = |op: &Op| matches!(op, Op::AddSet(_, set) if set.lookup == Lookup::LeastConnections);
        if plan.ops.iter().any(counts) {
            self.sockets.count().map_err(|error| ApplyError::unknown(error.into()))?;
        }
        lower::apply(&mut self.mirror, &mut self.maps, plan)
    }

    /// Takes over what is in the maps if another tool has written to them: the mirror is void then, and so is what it
    /// says of free slots.
    fn adopt(&mut self) -> Result<(), EbpfError> {
        let Restored { mirror: fresh, unreadable, .. } = Restored::new(&self.maps.snapshot()?, self.maps.limits());
        // The first plan writes facts that could not be read when the maps were opened.
        let known = self.mirror.state.node != NodeFacts::default();
        if unreadable.iter().any(|drift| known || drift.class != DriftClass::Node) {
            // No version writes such entries, so there is nothing to take over.
            return repair::entries(self).map_err(|error| EbpfError::Repair(error.to_string()));
        }
        if fresh.state != self.mirror.state {
            self.mirror = fresh;
            self.mirror.heap.delay_reuse(self.maps.now());
        }
        Ok(())
    }
}

/// Attaches the programs of packets to the devices. A pod device that is missing, or of a type whose packets
/// the programs cannot read, is left out; such an uplink is an error.
fn attach_devices(
    anchors: &mut Anchors,
    programs: &Programs,
    maps: &mut Maps,
    config: &mut EbpfConfig,
) -> Result<(), EbpfError> {
    let mut there = Vec::new();
    for name in std::mem::take(&mut config.pod_devices) {
        match attach_device(anchors, programs, maps, &name, POD_DEVICE) {
            Ok(()) => there.push(name),
            Err(EbpfError::NoDevice { .. } | EbpfError::DeviceType { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    config.pod_devices = there;
    for name in &config.uplink_devices {
        attach_device(anchors, programs, maps, name, UPLINK)?;
    }
    keep_attached_devices(anchors, maps)
}

/// What is behind a pod's device. It may be a port of a bridge, now or later.
const POD_DEVICE: u8 = abi::DEVICE_INSIDE | abi::DEVICE_PORT;
/// What is behind a device that leads out of the node.
const UPLINK: u8 = 0;

/// Attaches the programs of packets to a device, after they can know what is behind it.
fn attach_device(
    anchors: &mut Anchors,
    programs: &Programs,
    maps: &mut Maps,
    name: &str,
    kind: u8,
) -> Result<(), EbpfError> {
    let device = sys::device(name).map_err(|source| EbpfError::NoDevice { name: name.into(), source })?;
    maps.put_device(name, device, kind)?;
    anchors.attach_device(programs, name)
}

/// Removes what is left of devices that are gone, or that this process did not attach to.
fn keep_attached_devices(anchors: &mut Anchors, maps: &mut Maps) -> Result<(), EbpfError> {
    anchors.keep_attached_devices()?;
    maps.keep_devices(&anchors.attached_devices())
}

impl EbpfDatapath {
    /// The capabilities of every such datapath, whatever ports the machine leaves to translated flows, on a kernel that
    /// lacks nothing.
    #[must_use]
    pub fn usual_capabilities() -> Capabilities {
        Self::capabilities_with(Ports::default())
    }

    fn capabilities_with(ports: Ports) -> Capabilities {
        let affinity = AffinityCapability { prefixes: true, max_timeout: Duration::from_nanos(u64::MAX) };
        Capabilities::new("ebpf")
            .with_algorithms([Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev, Algorithm::LeastConnections])
            .with_protocols([Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
            .with_families([Family::V4, Family::V6])
            .with_frontends([
                FrontendKind::ClusterIp,
                FrontendKind::LoadBalancer,
                FrontendKind::ExternalIp,
                FrontendKind::NodePort,
                FrontendKind::HostPort,
            ])
            .with_external_traffic_policy_local(true)
            .with_source_ranges(true)
            .with_other_ports(true)
            .with_ping(true)
            .with_affinity(Some(affinity))
            .with_sockets(SocketBalancing::All.capability())
            .with_routed_sources(true)
            .with_drops_forged(true)
            .with_atomic(Atomicity::Frontend)
            .with_roles([Role::Standby, Role::Active, Role::Draining])
            .with_needs_forwarding(true)
            .with_evicts(true)
            .with_max_slots(MAX_SLOTS)
            .with_translated_ports(ports.range())
    }
}

impl Devices for EbpfDatapath {
    fn attach_device(&mut self, name: &str) -> Result<(), DatapathError> {
        self.kernel()?;
        let is_uplink = self.config.uplink_devices.iter().any(|known| known == name);
        let mut anchors = self.shared.lock();
        if let (Some(anchors), Some(Kernel { programs, maps, .. })) = (anchors.as_mut(), &mut self.kernel) {
            attach_device(anchors, programs, maps, name, if is_uplink { UPLINK } else { POD_DEVICE })?;
            keep_attached_devices(anchors, maps)?;
        }
        drop(anchors);
        let EbpfConfig { pod_devices, uplink_devices, .. } = &mut self.config;
        if !pod_devices.iter().chain(&*uplink_devices).any(|known| known == name) {
            pod_devices.push(name.into());
        }
        Ok(())
    }

    fn detach_device(&mut self, name: &str) -> Result<(), DatapathError> {
        self.kernel()?;
        if let (Some(anchors), Some(kernel)) = (self.shared.lock().as_mut(), &mut self.kernel) {
            anchors.detach_device(name)?;
            kernel.maps.keep_devices(&anchors.attached_devices())?;
        }
        self.config.forget_device(name);
        Ok(())
    }
}

impl Datapath for EbpfDatapath {
    fn capabilities(&self) -> Capabilities {
        let drains = self.config.destroy_sockets == DestroySockets::All && self.drain_problem.is_none();
        let ports = self.kernel.as_ref().map_or_else(Ports::default, |kernel| kernel.mirror.limits.ports);
        let uplinks = !self.config.uplink_devices.is_empty();
        let mut capabilities = Self::capabilities_with(ports).with_drain(drains).with_uplinks(uplinks);
        if self.kernel.as_ref().is_some_and(|kernel| !kernel.features.fetch_add) {
            capabilities =
                capabilities.with_algorithms([Algorithm::Random, Algorithm::Maglev, Algorithm::LeastConnections]);
        }
        let routed = self.kernel.as_ref().is_none_or(|kernel| kernel.features.routed_sources);
        capabilities.with_routed_sources(routed).with_sockets(self.config.socket_balancing.capability())
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        let Some(kernel) = &mut self.kernel else { return Ok(State::default()) };
        kernel.adopt()?;
        let (state, filled) = (kernel.mirror.state.clone(), kernel.mirror.filled());
        self.filled.set(filled);
        Ok(state)
    }

    fn held_ids(&mut self) -> Result<HeldIds, DatapathError> {
        let Some(kernel) = &self.kernel else { return Ok(HeldIds::default()) };
        Ok(ids::held(&kernel.maps)?)
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        let kernel = self.kernel().map_err(|error| ApplyError::unknown(error.into()))?;
        let outcome = kernel.apply(plan);
        let filled = kernel.mirror.filled();
        self.filled.set(filled);
        outcome
    }

    fn evict(&mut self, evictions: &[Eviction]) -> Result<Evicted, DatapathError> {
        let Some(kernel) = &self.kernel else { return Ok(Evicted::default()) };
        let evicted = evict::evict(&kernel.maps, &self.config, evictions)?;
        // The programs do not see the end of what was cut here.
        kernel.sweeper.recount();
        Ok(evicted)
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        let role = match role {
            Role::Active => abi::ROLE_ACTIVE,
            Role::Standby => abi::ROLE_STANDBY,
            Role::Draining => abi::ROLE_DRAINING,
        };
        let kernel = self.kernel()?;
        kernel.maps.set_role(role)?;
        kernel.role = role;
        Ok(())
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.filled.set(Filled::default());
        self.kernel = None;
        let anchors = self.shared.lock().take();
        match anchors {
            Some(anchors) => Ok(anchors.remove()?),
            None => Ok(directories::remove(&self.config.pin_dir)?),
        }
    }

    fn inspect(&mut self, expected: Expected<'_>, inspection: Inspection) -> Result<Vec<Drift>, DatapathError> {
        if self.kernel.is_none() {
            return Ok(compare(expected.state, &State::default()));
        }
        let mut found = self.suspects()?;
        found.extend(self.kernel.iter_mut().flat_map(|kernel| std::mem::take(&mut kernel.unreadable)));
        if let (Inspection::Everything, Some(kernel)) = (inspection, &mut self.kernel) {
            let Kernel { maps, mirror, scanner, role, sockets, .. } = kernel;
            found.extend(sockets.check()?);
            found.extend(scanner.scan(maps, mirror)?.into_iter().map(|finding| finding.drift));
            found.extend(repair::role_drift(*role, maps.role()?));
            if mirror.state != *expected.state {
                found.extend(compare(expected.state, &mirror.state));
            }
        }
        Ok(found)
    }

    fn repair(&mut self, expected: Expected<'_>, found: &[Drift]) -> Result<(), ApplyError> {
        self.kernel().map_err(|error| ApplyError::unknown(error.into()))?;
        let anchors = self.repair_anchors().map_err(|error| ApplyError::unknown(error.into()));
        let Some(kernel) = &mut self.kernel else { return anchors };
        let of_anchors =
            |drift: &Drift| matches!(drift.class, DriftClass::Pin | DriftClass::Link | DriftClass::Program);
        let entries = if found.iter().all(of_anchors) { Ok(()) } else { repair::entries(kernel) };
        let outcome = repair::state(kernel, expected);
        let filled = kernel.mirror.filled();
        self.filled.set(filled);
        anchors.and(entries).and(outcome)
    }

    fn on_devices(&mut self) -> Option<&mut dyn Devices> {
        Some(self)
    }

    fn watcher(&mut self) -> Result<Option<Box<dyn Watcher>>, DatapathError> {
        Ok(Some(Box::new(PinWatcher::new(self.shared.clone()))))
    }

    fn ask(&mut self, packet: &Packet) -> Result<Option<KernelAnswer>, DatapathError> {
        let anchors = self.shared.lock();
        match (&mut self.kernel, anchors.as_ref()) {
            (Some(kernel), Some(anchors)) => Ok(Some(ask::ask(kernel, anchors, &self.config, packet)?)),
            _ => Ok(Some(ask::nothing_loaded())),
        }
    }

    fn counters(&self) -> Option<Arc<dyn Counters>> {
        let maps = self.shared.lock().as_ref()?.maps().ok()?;
        Some(Arc::new(MapCounters::new(maps, self.filled.clone())))
    }
}
