//! The capabilities that the datapath needs, and no more.

use lb_core::{
    addr::Protocol,
    datapath::{Datapath, ErrorKind},
    plan::{Labels, diff},
    state::Lookup,
};
use lb_datapath_ebpf::EbpfDatapath;

use crate::common::{Cgroup, Namespace, POD_DEVICES, PinDir, ask_tcp, config, serve, state, turn};

const VIP: &str = "10.96.0.1:80";
const BACKEND: &str = "127.0.0.1:8001";
/// Name and number, and whether the least set has it.
const CAPABILITIES: [(&str, u32, bool); 4] =
    [("CAP_NET_ADMIN", 12, true), ("CAP_BPF", 39, true), ("CAP_PERFMON", 38, true), ("CAP_SYS_ADMIN", 21, false)];

/// Gives up every capability of this thread but those of `set`.
fn keep(set: u64) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // `_LINUX_CAPABILITY_VERSION_3`; no process means this thread.
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let (low, high) = (set as u32, (set >> 32) as u32);
    // Effective, permitted and inheritable, the lower halves first.
    let data = [[low, low, 0], [high, high, 0]];
    // SAFETY: the header and the data are as long as this version of them is.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn the_least_set_is_enough_and_any_other_names_what_is_missing() {
    let _turn = turn();
    let space = Namespace::new("c");
    for device in POD_DEVICES {
        space.ip(&format!("link add {device} type veth peer name {device}x"));
    }
    let backend = BACKEND.parse().unwrap();
    let job = space.run(|| serve(backend, "a"));
    space.spawn(job);
    let cgroup = Cgroup::joined();
    for chosen in 0..1_u32 << CAPABILITIES.len() {
        let held: Vec<_> =
            CAPABILITIES.iter().enumerate().filter(|(at, _)| chosen >> at & 1 == 1).map(|(_, known)| *known).collect();
        let has = |name: &str| held.iter().any(|(held, ..)| *held == name);
        let missing: Vec<_> = CAPABILITIES
            .iter()
            .filter(|(name, _, least)| *least && !has(name) && (*name == "CAP_NET_ADMIN" || !has("CAP_SYS_ADMIN")))
            .map(|(name, ..)| *name)
            .collect();
        for force_clsact in [false, true] {
            let pins = PinDir::new();
            let config = config(&pins, &cgroup).with_force_clsact(force_clsact).with_pod_devices(POD_DEVICES);
            let outcome = space.run(|| {
                keep(held.iter().fold(0, |set, (_, number, _)| set | 1 << number));
                let mut datapath = EbpfDatapath::open(config)?;
                let vip = VIP.parse().unwrap();
                let desired = state(&[(vip, Protocol::Tcp, &[backend])], Lookup::Random, None);
                let observed = datapath.observe()?;
                datapath.apply(&diff(&observed, &desired, &Labels::default())).unwrap();
                let answer = ask_tcp(vip).unwrap();
                datapath.cleanup().map(|()| answer)
            });
            match outcome {
                Ok(answer) => {
                    assert!(missing.is_empty(), "{held:?} was enough");
                    assert!(answer.starts_with('a'), "{answer}");
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Permission, "{held:?}: {}", error.report());
                    let named = format!("the process lacks {};", missing.join(" and "));
                    assert!(!missing.is_empty() && error.report().starts_with(&named), "{held:?}: {}", error.report());
                    assert_eq!(error.report().lines().count(), 1);
                }
            }
        }
    }
}
