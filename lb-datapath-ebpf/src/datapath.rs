//! The datapath itself.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_core::{
    AffinityCapability, Algorithm, ApplyError, Atomicity, Capabilities, Counters, Datapath, DatapathError, Family,
    FrontendKind, Plan, Protocol, Role, SocketCapability, SocketHash, State,
};
use lb_datapath_ebpf_abi as abi;

use crate::{
    config::EbpfConfig,
    counters::MapCounters,
    error::EbpfError,
    links::Links,
    lower::{self, MAX_SLOTS},
    maps::{self, Maps},
    mirror::Mirror,
    pin::{self, Pins},
    programs::Programs,
    sys,
    write::Store,
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
    elements: Arc<AtomicU64>,
}

/// What is in the kernel, and what we know of it.
#[derive(Debug)]
struct Kernel {
    maps: Maps,
    mirror: Mirror,
    programs: Programs,
    links: Links,
    pins: Pins,
}

impl EbpfDatapath {
    /// Loads the programs, attaches them, and takes over what an earlier process pinned in the same directory.
    ///
    /// Devices are looked up in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the directory is in use, belongs to somebody else or is in no BPF file system, when the kernel is older than
    /// 6.6, and when a cgroup or device does not exist.
    pub fn open(config: EbpfConfig) -> Result<Self, DatapathError> {
        let mut datapath = Self { config, kernel: None, elements: Arc::default() };
        datapath.kernel()?;
        Ok(datapath)
    }

    /// What it was opened with, devices attached and detached since included.
    #[must_use]
    pub const fn config(&self) -> &EbpfConfig {
        &self.config
    }

    /// Serves packets that come in through the device called `name`, of a pod that has just come; again is nothing.
    /// Devices that are gone are forgotten.
    ///
    /// # Errors
    /// When the device is not in the network namespace of the calling thread, or cannot be attached to.
    pub fn attach_device(&mut self, name: &str) -> Result<(), DatapathError> {
        let Kernel { programs, links, .. } = self.kernel()?;
        links.attach_device(programs, name)?;
        links.keep_attached_devices()?;
        let EbpfConfig { pod_devices, uplink_devices, .. } = &mut self.config;
        if !pod_devices.iter().chain(&*uplink_devices).any(|known| known == name) {
            pod_devices.push(name.into());
        }
        Ok(())
    }

    /// Leaves packets alone that come in through the device called `name`, which may be gone.
    ///
    /// # Errors
    /// When its pin cannot be removed.
    pub fn detach_device(&mut self, name: &str) -> Result<(), DatapathError> {
        self.kernel()?.links.detach_device(name)?;
        self.config.pod_devices.retain(|known| known != name);
        self.config.uplink_devices.retain(|known| known != name);
        Ok(())
    }

    /// Removes everything that a datapath with this pin directory put into the kernel, without opening it first.
    /// Nothing there is nothing to do.
    ///
    /// # Errors
    /// When a datapath has it open, or a pin cannot be removed.
    pub fn remove(pin_dir: &Path) -> Result<(), DatapathError> {
        Ok(pin::remove(pin_dir)?)
    }

    /// What is in the kernel, loaded if it is not there.
    fn kernel(&mut self) -> Result<&mut Kernel, EbpfError> {
        let kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => Kernel::load(&self.config)?,
        };
        self.elements.store(kernel.mirror.elements(), Ordering::Relaxed);
        Ok(self.kernel.insert(kernel))
    }
}

impl Kernel {
    /// Loads everything. A failure leaves what an earlier process pinned as it was, and nothing if there was nothing.
    fn load(config: &EbpfConfig) -> Result<Self, EbpfError> {
        let pins = Pins::create(&config.pin_dir)?;
        let adopted = maps::check(&pins.maps())?;
        match Parts::load(config, &pins, adopted) {
            Ok(Parts { maps, mirror, programs, links }) => Ok(Self { maps, mirror, programs, links, pins }),
            Err(error) => {
                if !adopted {
                    // The first error says more than one about what it left.
                    let _ = pins.remove();
                }
                Err(error)
            }
        }
    }
}

/// What lies in the directories of pins.
struct Parts {
    maps: Maps,
    mirror: Mirror,
    programs: Programs,
    links: Links,
}

impl Parts {
    fn load(config: &EbpfConfig, pins: &Pins, adopted: bool) -> Result<Self, EbpfError> {
        let programs = Programs::load(&pins.maps(), &config.capacities)?;
        let mut maps = Maps::open(&pins.maps())?;
        let (mut mirror, orphans) = Mirror::restore(&maps.snapshot()?, maps.limits())?;
        // What the earlier process freed last may still be read by a program that it did not wait for.
        if adopted && sys::wait_for_readers().is_err() {
            mirror.heap.rest(maps.now());
        }
        maps.write(&orphans);
        let mut links = Links::new(pins.links());
        links.attach_cgroup(&programs, &config.cgroup)?;
        for device in config.pod_devices.iter().chain(&config.uplink_devices) {
            links.attach_device(&programs, device)?;
        }
        links.keep_attached_devices()?;
        Ok(Self { maps, mirror, programs, links })
    }
}

impl Datapath for EbpfDatapath {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: "ebpf",
            algorithms: vec![Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev],
            protocols: vec![Protocol::Tcp, Protocol::Udp],
            families: vec![Family::V4, Family::V6],
            frontends: vec![FrontendKind::ClusterIp, FrontendKind::LoadBalancer, FrontendKind::ExternalIp],
            external_traffic_policy_local: false,
            affinity: Some(AffinityCapability { prefixes: true, max_timeout: Duration::from_nanos(u64::MAX) }),
            sockets: SocketCapability::Connect { hashes: SocketHash::SocketCookie },
            atomic: Atomicity::Frontend,
            roles: vec![Role::Standby, Role::Active, Role::Draining],
            max_slots: MAX_SLOTS,
            translated_ports: abi::NAT_PORT_FIRST..=abi::NAT_PORT_LAST,
        }
    }

    fn observe(&mut self) -> Result<State, DatapathError> {
        let Some(Kernel { maps, mirror, .. }) = &mut self.kernel else { return Ok(State::default()) };
        let (fresh, _) = Mirror::restore(&maps.snapshot()?, maps.limits()).map_err(EbpfError::from)?;
        if fresh.state != mirror.state {
            // Somebody else has written to the maps: what we knew of free slots is void.
            *mirror = fresh;
            mirror.heap.rest(maps.now());
            self.elements.store(mirror.elements(), Ordering::Relaxed);
        }
        Ok(mirror.state.clone())
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        let Kernel { maps, mirror, .. } = self.kernel().map_err(|error| ApplyError::unknown(error.into()))?;
        let outcome = lower::apply(mirror, maps, plan);
        let elements = mirror.elements();
        self.elements.store(elements, Ordering::Relaxed);
        outcome
    }

    fn set_role(&mut self, role: Role) -> Result<(), DatapathError> {
        let role = match role {
            Role::Active => abi::ROLE_ACTIVE,
            Role::Standby => abi::ROLE_STANDBY,
            Role::Draining => abi::ROLE_DRAINING,
        };
        Ok(self.kernel()?.maps.set_role(role)?)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.elements.store(0, Ordering::Relaxed);
        match self.kernel.take() {
            Some(Kernel { pins, .. }) => Ok(pins.remove()?),
            None => Ok(pin::remove(&self.config.pin_dir)?),
        }
    }

    fn counters(&self) -> Option<Arc<dyn Counters>> {
        let maps: PathBuf = self.kernel.as_ref()?.pins.maps();
        Some(Arc::new(MapCounters::new(&maps, Arc::clone(&self.elements)).ok()?))
    }
}
