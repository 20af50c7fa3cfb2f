//! Every datapath through the conformance suite.
//!
//! As root, those that carry packets are not run without `--ignored` (or `--include-ignored`). As anybody else they are
//! run in a user namespace, except for eBPF; where the kernel has none for us, they are ignored.

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use lb_core::{
    addr::{Family, FrontendKind, Protocol},
    datapath::Capabilities,
    faulty::{Faults, Faulty},
    memory::MemoryDatapath,
};
use lb_datapath_ebpf::{DestroySockets, EbpfConfig, EbpfDatapath, SocketBalancing};
use lb_datapath_iptables::{
    iptables::{IptablesConfig, IptablesDatapath, Variant},
    nftables::{NftablesConfig, NftablesDatapath},
};
use lb_testkit::{
    conformance::{Subject, Tally, cases, trials},
    lab::{Privilege, enter_user_namespace},
};
use libtest_mimic::{Arguments, Failed, Trial};

/// What somebody who is not root has to see pass.
const CARRIED: [&str; 4] = ["memory", "nftables", "iptables_nft", "iptables_legacy"];
/// Cases in which it matters whose sockets are translated.
const OF_SOCKETS: [&str; 15] = [
    "everybody_reaches_a_cluster_address",
    "everybody_reaches_node_ports",
    "a_pod_reaches_itself_through_its_service",
    "a_pod_reaches_itself_through_every_frontend",
    "a_service_without_local_endpoints_is_silent_under_policy_local",
    "other_ports_and_plain_addresses_are_left_alone",
    "other_ports_of_another_hosts_address_are_that_hosts",
    "other_ports_of_an_ingress_address_are_dropped",
    "a_backend_on_the_node_itself_sees_its_clients",
    "source_ranges_guard_every_frontend",
    "all_endpoints_are_replaced_at_once",
    "no_request_fails_while_endpoints_change",
    "connected_sockets_of_the_node_leave_a_backend_that_left",
    "a_client_sticks_to_its_backend",
    "external_policy_local_on_every_kind_of_frontend",
];
/// Cases of three nodes that are about what a datapath holds rather than about its packets.
const OF_STATE: [&str; 4] = [
    "node_ports_follow_the_addresses_of_a_node",
    "a_service_that_loses_its_backends_leaves_others_alone",
    "services_and_agents_that_come_back",
    "an_external_address_that_no_node_has",
];
/// Set for all trials, and not only those of [`is_played`].
const ALL: &str = "LB_TESTKIT_ALL";
/// The cases that a datapath that carries nothing would hold up longest.
const SLOWEST: [&str; 7] = [
    "a_backend_of_weight_zero_takes_nothing",
    "hundreds_of_services_are_told_apart",
    "everybody_reaches_a_cluster_address",
    "services_that_share_backends_keep_their_ports_apart",
    "a_deleted_service_answers_no_more_and_others_do",
    "established_connections_survive_scaling_up_and_down",
    "a_restart_changes_nothing_and_breaks_nothing",
];
/// Set for a program that runs the datapaths that carry nothing, and no other.
const IDLE: &str = "LB_TESTKIT_IDLE";
/// Somebody who may do nothing special.
const NOBODY: u32 = 65534;

fn main() -> ExitCode {
    lb_testkit::run_if_worker();
    if Privilege::current() == Privilege::None
        && let Err(error) = enter_user_namespace()
    {
        eprintln!("conformance: {}", lb_testkit::report(&error));
    }
    let tally = Tally::default();
    if env::var_os(IDLE).is_some() {
        let offload_on = trials([idle(), modest(), quiet()], &tally)
            .into_iter()
            .filter(|trial| trial.name().contains("::offload_on::"));
        let slowest = offload_on.filter(|trial| SLOWEST.iter().any(|case| trial.name().ends_with(case)));
        return libtest_mimic::run(&Arguments::from_args(), slowest.collect()).exit_code();
    }
    let subjects = [
        memory(),
        poor_memory(),
        faulty_memory(),
        ebpf(),
        ebpf_clsact(),
        ebpf_sockets("ebpf_host", SocketBalancing::Host),
        ebpf_sockets("ebpf_off", SocketBalancing::Off),
        nftables(),
        iptables("iptables_nft", Variant::Nft),
        iptables("iptables_legacy", Variant::Legacy),
    ];
    for name in OF_SOCKETS.iter().chain(&OF_STATE) {
        assert!(cases().iter().any(|case| case.name == *name), "no case is called {name}");
    }
    let all = env::var_os(ALL).is_some();
    let trials = trials(subjects, &tally).into_iter().filter(|trial| all || is_played(trial.name()));
    let mut trials: Vec<Trial> = trials.map(unless_too_large).collect();
    if Privilege::current() == Privilege::Root {
        trials.push(Trial::test("conformance_without_root", without_root).with_ignored_flag(true));
    }
    let needs_root = Privilege::current() != Privilege::UserNamespace;
    trials.push(Trial::test("a_datapath_that_carries_nothing_fails_soon", fails_soon).with_ignored_flag(needs_root));
    let (all, need_root) = (trials.len(), trials.iter().filter(|trial| trial.has_ignored_flag()).count());
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    println!("conformance: {all} trials, {need_root} of them need root and run with --ignored");
    print!("{tally}");
    conclusion.exit_code()
}

/// Whether a trial is played by default. What is left out is the same programs at another hook, more of the same packets,
/// or three nodes without offloads where it does not matter who computes checksums.
fn is_played(trial: &str) -> bool {
    let Some((subject, rest)) = trial.split_once("::") else { return true };
    let Some((offload, name)) = rest.split_once("::") else { return true };
    let several_nodes = || cases().iter().any(|case| case.name == name && case.nodes > 2);
    let offload_on = offload == "offload_on";
    match subject {
        "ebpf" => offload_on || !OF_STATE.contains(&name),
        "ebpf_clsact" => offload_on && !several_nodes(),
        "ebpf_host" | "ebpf_off" => offload_on && OF_SOCKETS.contains(&name),
        _ => offload_on || !several_nodes(),
    }
}

/// `iptables-nft-restore` stays with `net.core.wmem_default` in a user namespace, too little for hundreds of services.
fn unless_too_large(trial: Trial) -> Trial {
    let is_large =
        trial.name().starts_with("iptables_nft::") && trial.name().ends_with("::hundreds_of_services_are_told_apart");
    let guest = Privilege::current() == Privilege::UserNamespace;
    if is_large && guest { trial.with_ignored_flag(true) } else { trial }
}

/// A case is over soon after its first flow was lost. It is over soon as well if silence is all that is promised: then
/// it passes.
fn fails_soon() -> Result<(), Failed> {
    /// About two seconds for each case; without a bound, one alone takes more than a minute.
    const SOON: Duration = Duration::from_secs(100);
    let mut command = Command::new("/proc/self/exe");
    command.env(IDLE, "1").args(["--include-ignored", "--test-threads", "1"]);
    let start = Instant::now();
    let output = command.output()?;
    let (took, text) = (start.elapsed(), String::from_utf8_lossy(&output.stdout));
    let of = |subject: &str, outcome: &str| {
        let lines = text.lines().filter(|line| line.contains(&format!("{subject}::")) && line.ends_with(outcome));
        lines.count() == SLOWEST.len()
    };
    let right = of("test idle", "FAILED") && of("test modest", "FAILED") && of("test quiet", "ok");
    if right && took < SOON { Ok(()) } else { Err(format!("{took:?}: {text}").into()) }
}

/// This very program, started by nobody, runs what a user namespace is enough for.
fn without_root() -> Result<(), Failed> {
    // Nobody may not be let into the directory of the build.
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let program = directory.path().join("conformance");
    lb_testkit::copy_program(&std::env::current_exe()?, &program)?;
    let mut command = Command::new(program);
    command
        .args(["--test-threads", "2", "--skip", "offload_off"])
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir(directory.path());
    let output = command.output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let tally = |subject: &str| text.lines().find(|line| line.starts_with(&format!("conformance: {subject}: ")));
    let all_ran = |subject| tally(subject).is_some_and(|line| line.contains(", failed 0,") && !line.contains("run 0,"));
    if output.status.success() && CARRIED.into_iter().all(all_ran) {
        return Ok(());
    }
    Err(format!("{}: {text}", output.status).into())
}

fn memory() -> Subject {
    Subject::state_only("memory", || Box::new(MemoryDatapath::default()))
}

/// Memory that claims to be able to do as little as any datapath may.
fn poor_memory() -> Subject {
    Subject::state_only("poor_memory", || {
        let least =
            Capabilities::all("memory").with_algorithms([lb_core::service::Algorithm::Random]).with_affinity(None);
        Box::new(MemoryDatapath::with_capabilities(least))
    })
}

/// Claims everything and carries nothing.
fn idle() -> Subject {
    Subject::packets("idle", |_| Ok(Box::new(MemoryDatapath::default())))
}

/// Claims no more than a first attempt may, and carries nothing.
fn modest() -> Subject {
    Subject::packets("modest", |_| {
        let capabilities = Capabilities::new("modest")
            .with_protocols([Protocol::Tcp])
            .with_families([Family::V4])
            .with_frontends([FrontendKind::ClusterIp]);
        Ok(Box::new(MemoryDatapath::with_capabilities(capabilities)))
    })
}

/// Claims nothing, so that silence is what is expected of it.
fn quiet() -> Subject {
    Subject::packets("quiet", |_| Ok(Box::new(MemoryDatapath::with_capabilities(Capabilities::new("quiet")))))
}

fn faulty_memory() -> Subject {
    const SEED: u64 = 2;
    Subject::state_only("faulty_memory", || {
        let faults =
            Faults { refused_frontends: 200, interrupted_plans: 300, failed_observations: 300, ..Faults::default() };
        Box::new(Faulty::new(MemoryDatapath::default(), faults, SEED))
    })
}

fn ebpf() -> Subject {
    ebpf_with("ebpf", false)
}

/// As on a kernel without TCX.
fn ebpf_clsact() -> Subject {
    ebpf_with("ebpf_clsact", true)
}

fn ebpf_with(name: &str, force_clsact: bool) -> Subject {
    Subject::packets(name, move |node| {
        let config = EbpfConfig::new(&node.cgroup)
            .with_pin_dir(&node.pin_dir)
            .with_pod_devices(&node.pod_devices)
            .with_uplink_devices(&node.uplink_devices)
            .with_destroy_sockets(DestroySockets::All)
            .with_force_clsact(force_clsact);
        Ok(Box::new(EbpfDatapath::open(config)?))
    })
    .root_only()
}

/// The other sockets go to virtual addresses, and their packets are translated.
fn ebpf_sockets(name: &str, balancing: SocketBalancing) -> Subject {
    Subject::packets(name, move |node| {
        let config = EbpfConfig::new(&node.cgroup)
            .with_pin_dir(&node.pin_dir)
            .with_pod_devices(&node.pod_devices)
            .with_uplink_devices(&node.uplink_devices)
            .with_destroy_sockets(DestroySockets::All)
            .with_socket_balancing(balancing);
        Ok(Box::new(EbpfDatapath::open(config)?))
    })
    .root_only()
}

fn nftables() -> Subject {
    Subject::packets("nftables", |node| {
        let config = NftablesConfig::default().with_uplink_devices(&node.uplink_devices);
        Ok(Box::new(NftablesDatapath::open(&config)?))
    })
}

fn iptables(name: &str, variant: Variant) -> Subject {
    Subject::packets(name, move |node| {
        let lock_file = node.run_dir.join("xtables.lock");
        let config = IptablesConfig::default().with_variant(variant).with_lock_file(lock_file);
        Ok(Box::new(IptablesDatapath::open(&config)?))
    })
}
