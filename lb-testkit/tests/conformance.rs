//! Every datapath through the conformance suite.
//!
//! Those that carry packets need root and are not run without `--ignored` (or `--include-ignored`).

use std::process::ExitCode;

use lb_core::{Capabilities, Faults, Faulty, MemoryDatapath};
use lb_datapath_ebpf::{EbpfConfig, EbpfDatapath};
use lb_datapath_iptables::{
    iptables::{IptablesConfig, IptablesDatapath, Variant},
    nftables::{NftablesConfig, NftablesDatapath},
};
use lb_testkit::conformance::{Subject, Tally, trials};
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    lb_testkit::run_if_worker();
    let tally = Tally::default();
    let subjects = [
        memory(),
        poor_memory(),
        faulty_memory(),
        ebpf(),
        nftables(),
        iptables("iptables_nft", Variant::Nft),
        iptables("iptables_legacy", Variant::Legacy),
    ];
    let trials = trials(subjects, &tally);
    let (all, need_root) = (trials.len(), trials.iter().filter(|trial| trial.has_ignored_flag()).count());
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    println!("conformance: {all} trials, {need_root} of them need root and run with --ignored");
    print!("{tally}");
    conclusion.exit_code()
}

fn memory() -> Subject {
    Subject::state_only("memory", || Box::new(MemoryDatapath::default()))
}

/// Memory that claims to be able to do as little as any datapath may.
fn poor_memory() -> Subject {
    Subject::state_only("poor_memory", || {
        let all = Capabilities::all("memory");
        let least = Capabilities { algorithms: vec![lb_core::Algorithm::Random], affinity: None, ..all };
        Box::new(MemoryDatapath::with_capabilities(least))
    })
}

fn faulty_memory() -> Subject {
    const SEED: u64 = 2;
    Subject::state_only("faulty_memory", || {
        let faults = Faults { refused_frontends: 200, interrupted_plans: 300, failed_observations: 300 };
        Box::new(Faulty::new(MemoryDatapath::default(), faults, SEED))
    })
}

fn ebpf() -> Subject {
    Subject::packets("ebpf", |node| {
        let config = EbpfConfig {
            pin_dir: node.pin_dir.clone(),
            pod_devices: node.pod_devices.clone(),
            uplink_devices: node.uplink_devices.clone(),
            ..EbpfConfig::new(&node.cgroup)
        };
        Ok(Box::new(EbpfDatapath::open(config)?))
    })
}

fn nftables() -> Subject {
    Subject::packets("nftables", |_| Ok(Box::new(NftablesDatapath::open(&NftablesConfig::default())?)))
}

fn iptables(name: &str, variant: Variant) -> Subject {
    Subject::packets(name, move |node| {
        let lock_file = Some(node.run_dir.join("xtables.lock"));
        Ok(Box::new(IptablesDatapath::open(&IptablesConfig { variant, lock_file, ..IptablesConfig::default() })?))
    })
}
