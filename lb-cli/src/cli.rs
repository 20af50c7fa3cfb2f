//! The command line.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser};
use lb_agent::{
    api::Entry,
    config::{DEFAULT_SOCKET, DEFAULT_STATE_DIR, Settings},
    driver::{self, DatapathKind},
};

use crate::output::Format;

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 difference found.";

/// Service load balancing on this node: the same services on eBPF, nftables or iptables.
#[derive(Debug, Parser)]
#[command(name = "lb", version, max_term_width = 120, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Agent(Box<AgentArgs>),
    /// Ask the agent for its services.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Ask the agent for its backends.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Ask the agent for its pools of addresses and who has which.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Ask the agent how it is.
    Status(StatusArgs),
    Explain(ExplainArgs),
    Drift(DriftArgs),
    Cleanup(CleanupArgs),
    #[cfg(feature = "lab")]
    Lab(LabArgs),
    /// Print the completions of a shell.
    Completions(CompletionsArgs),
    /// Print the manual page.
    Man,
}

/// Serve the services of a manifest directory until SIGTERM.
///
/// The directory's .yaml, .yml and .json files are read as one snapshot and watched. A snapshot that cannot be parsed is
/// rejected as a whole and the last good state stays; an invalid object is refused alone. Both are shown by `lb status`.
/// When the agent stops, the datapath goes on working with what it has; the next agent takes it over without a gap.
///
/// Prints the line `ready` on standard output when the services of the first snapshot are in the datapath.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb agent --manifests /etc/lb --datapath ebpf --cluster-cidr 10.244.0.0/16\n  \
    lb agent --manifests ./manifests --datapath memory --socket /tmp/lb.sock --state-dir /tmp/lb\n  \
    lb agent --config /etc/lb.yaml --datapath nftables --drift alert\n\n\
    The configuration file is YAML; its keys are the names of the flags:\n  \
    manifests: /etc/lb\n  datapath: ebpf\n  device: [eth0]\n  cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']")]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// YAML file with the same settings; flags win. Unknown keys are errors.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// How to reach the agent and how to write its answer.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Socket of the agent.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// How to write the answer.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// List services: a line each, or one for each of their frontends.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  lb service list\n  lb service list default/web --frontends\n  lb service list -o json\n\n\
            EXTERNAL-IP is <pending> for a service of type LoadBalancer that has no address.\n\n\
            Conditions:\n  \
            Degraded(…)      served with less than asked for\n  \
            Refused(…)       the newest version was not taken over; the last good one, if any, is served\n  \
            Unsupported(…)   a field that is not carried out\n  \
            Unsatisfied(…)   it lacks addresses that it asks for: IPAMRequestSatisfied is false\n  \
            Failed(…)        the datapath refused the frontend; it is tried again"
    )]
    List(ServiceListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServiceListArgs {
    /// Only this service; `default/` may be left out. Exit code 3 if there is none.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,
    /// A line for each frontend: address, port and what became of it in the datapath.
    #[arg(long)]
    pub(crate) frontends: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// List pools in the order in which they are asked.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  lb pool list\n  lb pool list -o json | jq '.[].counts.available'\n\n\
            IPS AVAILABLE counts addresses at rest, which are given when the pool is otherwise full.\n\n\
            Conditions:\n  \
            PoolConflict(…)   it overlaps an older pool, or itself: who holds an address keeps it, nobody gets a new one\n  \
            PoolInvalid(…)    something is wrong with it: the same\n  \
            PoolWarning(…)    something may be other than meant"
    )]
    List(PoolListArgs),
    /// Show one pool and every address of it that is not simply free.
    #[command(after_help = "Examples:\n  lb pool get blue-pool\n  lb pool get blue-pool -o yaml")]
    Get(PoolGetArgs),
    /// Say what an address is to the pools: free, held and by whom, at rest, reserved and why.
    #[command(after_help = "Examples:\n  lb pool explain 20.0.20.100\n  lb pool explain 2001:db8::1 -o json\n\n\
            Exit codes: 0 ok, 1 error, 2 usage, 3 the address is in no pool.")]
    Explain(PoolExplainArgs),
    /// Say which services would get other addresses if manifests were added, without adding them.
    ///
    /// Their pools and services take the place of those of the same name, or join them; everything else stays.
    #[command(after_help = "Examples:\n  lb pool plan -f smaller-pool.yaml\n  \
            kubectl get ippools -o yaml | lb pool plan -f -\n  lb pool plan --remove blue-pool\n  \
            lb pool plan --remove old-name -f new-name.yaml\n\n\
            Exit codes: 0 no service would lose an address, 1 error, or an object would be refused, 2 usage, 3 no such pool, \
            4 a service would lose an address.")]
    Plan(PoolPlanArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PoolListArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PoolGetArgs {
    /// Name of the pool. Exit code 3 if there is none.
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PoolExplainArgs {
    /// IPv4 or IPv6 address.
    #[arg(value_name = "ADDRESS")]
    pub(crate) address: IpAddr,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PoolPlanArgs {
    /// Manifests; `-` reads standard input.
    #[arg(long, short, value_name = "FILE", required_unless_present = "remove")]
    pub(crate) file: Option<PathBuf>,
    /// Pool that would go, alone or together with --file; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) remove: Vec<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackendCommand {
    /// List backends: a line for each backend of each port.
    #[command(visible_alias = "ls", after_help = "Examples:\n  lb backend list\n  lb backend list default/web -o yaml")]
    List(BackendListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BackendListArgs {
    /// Only backends of this service; `default/` may be left out. Exit code 3 if there is no such service.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lb status\n  lb status -o json | jq .ready")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Ask the agent what would become of a packet, and why.
///
/// The answer has the steps, the choice, and the alternatives with why they are none. It is about the first packet of a
/// flow from a client that the datapath does not know yet; with --verify it is about what the kernel remembers of both.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb explain tcp 10.244.0.5:40000 10.96.0.10:80\n  \
    lb explain udp '[fd00:10:244::5]:40000' '[fd00:10:96::a]:53' --entry uplink\n  \
    lb explain tcp 10.244.0.5:40000 10.96.0.10:80 --verify\n  \
    lb explain tcp 10.244.0.5:40000 10.96.0.10:80 --why-not 10.244.0.12\n\n\
    Exit codes: 0 ok, 1 error (with --verify: also if the datapath cannot be asked), 2 usage, 3 the backend of --why-not \
    is none of the service's, 4 the kernel disagrees.")]
pub(crate) struct ExplainArgs {
    /// tcp, udp or sctp.
    #[arg(value_name = "PROTO")]
    pub(crate) protocol: String,
    /// Who sends; an IPv6 address in brackets.
    #[arg(value_name = "SRC:PORT")]
    pub(crate) source: String,
    /// To whom; an IPv6 address in brackets.
    #[arg(value_name = "DST:PORT")]
    pub(crate) destination: String,
    /// Where the packet enters the node [default: by its source: socket for a node's own address, pod for one in a
    /// cluster CIDR, uplink for any other].
    #[arg(long, value_name = "WHERE", value_enum)]
    pub(crate) entry: Option<Entry>,
    /// Ask the kernel what becomes of the same packet, without sending it, and say whether that is right: AGREE or
    /// DISAGREE. Exit code 4 if it is not.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Say of this backend why it is not, or is, the choice. Exit code 3 if it is no backend of the service.
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub(crate) why_not: Option<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Compare what the datapath holds with what it should hold.
///
/// Has the agent inspect everything now and lists what is missing, extra or wrong, with the likely cause and what the
/// agent did about it, and what was found and is right again within the last hour. An agent with `--drift repair` puts
/// right what this finds.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb drift\n  \
    lb drift -o json | jq '.now[] | .object'\n  \
    lb drift --watch -o json\n\n\
    Exit codes: 0 no difference, 1 error, 2 usage, 4 this inspection found a difference, even if it is repaired by now.")]
pub(crate) struct DriftArgs {
    /// Print differences and repairs as they happen, until interrupted; with `-o json` a line each.
    #[arg(long)]
    pub(crate) watch: bool,
    /// List every object in a table rather than the first 20 of each class.
    #[arg(long, conflicts_with = "watch")]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Remove everything that lb put into the kernel.
///
/// That is rules, maps, programs, routes and pins. It needs no agent; traffic to services ends. While an agent runs with
/// the same socket or state directory it refuses.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lb cleanup\n  lb cleanup --datapath nftables -o json")]
pub(crate) struct CleanupArgs {
    /// Only what this datapath put there [default: every one].
    #[arg(long, value_name = "KIND", value_parser = driver::parser())]
    pub(crate) datapath: Option<DatapathKind>,
    /// Where eBPF objects are pinned [default: wherever agents with this state directory pinned them, or
    /// /sys/fs/bpf/lb].
    #[arg(long, value_name = "DIR")]
    pub(crate) pin_dir: Option<PathBuf>,
    /// State directory of the agent.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// Clean up although an agent runs; it will put things back.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Run the use cases in network namespaces of their own and check what they promise.
///
/// Builds a cluster of three nodes with real servers and clients; every node runs this program's agent. The command needs
/// Linux, touches nothing outside of its own namespaces and leaves nothing behind. Without root it runs in a user
/// namespace, on nftables and iptables. Exit code 1 if an expectation is not met.
#[cfg(feature = "lab")]
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb lab\n  \
    lb lab session-affinity\n  \
    lb lab lb-ipam/blue-pool\n  \
    lb lab kube-proxy-replacement --datapath nftables -o json\n  \
    lb lab --report /tmp/report\n\n\
    Without a use case, all of them run, each on its usual datapath; then the same manifests run on every datapath.")]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    pub(crate) command: Option<LabCommand>,
    /// Use case to run [default: all].
    #[arg(value_name = "USE-CASE", value_enum)]
    pub(crate) use_case: Option<crate::lab::UseCase>,
    /// Datapath to run it on [default: the one that the use case is about].
    #[arg(long, value_name = "KIND", value_parser = driver::parser())]
    pub(crate) datapath: Option<DatapathKind>,
    /// Directory for report.json.
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// How to write the result.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) output: Format,
}

#[cfg(feature = "lab")]
#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    Compare(crate::lab::CompareArgs),
    Restart(crate::lab::RestartArgs),
    Drift(crate::lab::DriftLabArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  lb completions bash > /etc/bash_completion.d/lb")]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    #[arg(value_name = "SHELL", value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
