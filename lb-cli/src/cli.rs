//! The command line.

use std::{
    ffi::{OsStr, OsString},
    net::IpAddr,
    path::PathBuf,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, builder::NonEmptyStringValueParser};
use lb_agent::{
    api::Entry,
    config::{DEFAULT_STATE_DIR, Settings, period::Period},
    driver::{self, DatapathKind},
};

use crate::{
    completions,
    exit::Failure,
    names::{NamespaceArgs, OwnNamespaceArgs},
    output::{Format, ListFormat},
    reach::Reach,
};

const ROOT_HELP: &str = "Examples:\n  lb check ./manifests\n  lb agent --manifests /etc/lb --datapath ebpf\n  \
    lb status\n  lb service list\n  lb explain web\n\n\
    Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 difference found.";

/// Service load balancing on this node: the same services on eBPF, nftables or iptables.
#[derive(Debug, Parser)]
#[command(name = "lb", version, max_term_width = 120, arg_required_else_help = true, after_help = ROOT_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command line of this process. An error or the help ends it.
pub(crate) fn parse() -> Cli {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let variable = |name: &OsStr| std::env::var_os(name);
    parse_from(&arguments, variable).unwrap_or_else(|error| error.exit())
}

/// An empty variable counts as none.
fn parse_from(
    arguments: &[OsString],
    variable: impl Fn(&OsStr) -> Option<OsString> + Copy,
) -> Result<Cli, clap::Error> {
    let some = with_variables(Cli::command(), &|name| variable(name).is_some_and(|value| !value.is_empty()));
    let parsed = some.try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| {
        if !error.use_stderr() {
            return error;
        }
        // The usage in an error names what was given, and a variable is not.
        let none = with_variables(Cli::command(), &|_| false);
        let alone = none.try_get_matches_from(arguments).err();
        alone.filter(|alone| alone.kind() == error.kind()).unwrap_or(error)
    })
}

/// The same command line where only the variables that are `wanted` count.
fn with_variables(command: clap::Command, wanted: &dyn Fn(&OsStr) -> bool) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if !wanted(name) => arg.env(None::<&'static str>),
        _ => arg,
    });
    command.mut_subcommands(|sub| with_variables(sub, wanted))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Agent(Box<AgentArgs>),
    /// Show the services of the agent.
    #[command(
        subcommand,
        visible_aliases = ["services", "svc"],
        after_help = "Examples:\n  lb service list\n  lb svc get shop/web\n  lb svc describe web -n shop"
    )]
    Service(ServiceCommand),
    /// Show the backends of the agent.
    #[command(
        subcommand,
        visible_alias = "backends",
        after_help = "Examples:\n  lb backend list\n  lb backend list shop/web -w"
    )]
    Backend(BackendCommand),
    /// Show the address pools of the agent, and which service holds which address.
    #[command(
        subcommand,
        visible_alias = "pools",
        after_help = "Examples:\n  lb pool list\n  lb pool get blue-pool\n  lb pool explain 20.0.20.100\n  \
            lb pool plan -f smaller-pool.yaml"
    )]
    Pool(PoolCommand),
    Status(StatusArgs),
    Explain(ExplainArgs),
    Drift(DriftArgs),
    Check(CheckArgs),
    Cleanup(CleanupFlags),
    #[cfg(feature = "lab")]
    Lab(LabArgs),
    Version(VersionArgs),
    Completions(CompletionsArgs),
    /// Print the manual page.
    #[command(after_help = "Example:\n  lb man | man -l -")]
    Man,
}

/// Serve the services of a manifest directory until SIGTERM or SIGINT.
///
/// The agent reads the .yaml, .yml and .json files of the directory and watches it. A file that cannot be parsed costs
/// only itself: what it held before stays in force. An invalid object is refused alone. `lb status` shows both. When the
/// agent stops, the datapath keeps serving what it has, and the next agent adopts it without a gap.
///
/// On SIGHUP, the agent reads every manifest and the configuration file again. `log-level` and `zone` take effect at
/// once; for other settings, the log says that they need a restart.
///
/// The agent prints the line `ready` on standard output when the services of the first snapshot are in the datapath.
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
    /// YAML file with the same settings. A flag wins over the file, and an unknown key is an error.
    #[arg(long, value_name = "FILE", env = "LB_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
}

/// How to reach the agent and how to print its answer.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) reach: Reach,
    /// Format of the answer.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// How to reach the agent and how to print a list of its answer.
#[derive(Debug, Args)]
pub(crate) struct AskListArgs {
    #[command(flatten)]
    pub(crate) reach: Reach,
    /// Format of the answer.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) output: ListFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// List services, one line each.
    ///
    /// On a terminal, a line ends at the right margin: long lists are shortened (`…+3`), and columns are left out.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  lb service list\n  lb service list default/web --frontends\n  lb svc list -n shop -w\n  \
            lb service list -o json\n\n\
            CLUSTER-IP is None for a headless service. EXTERNAL-IP is <pending> for a service of type LoadBalancer that \
            has no address.\n\n\
            Conditions, whose text `-o wide` and `lb service get` print:\n  \
            Degraded      the service gets less than it asks for, or lets in more\n  \
            NoEndpoints   no EndpointSlice fits the service, so it has no backends\n  \
            Refused       the newest version was refused; the last good one, if any, is served\n  \
            Unsupported   a field has no effect\n  \
            Unsatisfied   the service lacks addresses that it asks for: IPAMRequestSatisfied is false\n  \
            OtherClass    the controller of its load-balancer class gives the service its addresses\n  \
            Failed        the datapath refused the frontend; the agent retries"
    )]
    List(ServiceListArgs),
    /// Show one service with the whole text of its conditions.
    #[command(
        after_help = "Examples:\n  lb service get web\n  lb svc get web -n shop -o yaml\n  lb service get shop/web -w"
    )]
    Get(ServiceGetArgs),
    /// Show everything about one service: addresses, frontends, backends, conditions.
    #[command(after_help = "Examples:\n  lb service describe web\n  lb svc describe shop/web -o json")]
    Describe(ServiceDescribeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServiceListArgs {
    /// Only this service; `default/` may be omitted. Exit code 3 if it does not exist.
    #[arg(value_name = "[NAMESPACE/]NAME", value_parser = NonEmptyStringValueParser::new(), add = completions::services())]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    /// Services of every namespace, which is the default without NAME; with NAME, those of that name.
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// Print a line for each frontend: address, port, and its status in the datapath.
    #[arg(long)]
    pub(crate) frontends: bool,
    /// Then print each service that comes, changes or goes, until interrupted. The agent is asked once a second.
    #[arg(long, short, conflicts_with = "frontends")]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) ask: AskListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServiceGetArgs {
    #[command(flatten)]
    pub(crate) service: ServiceName,
    /// Then print the service whenever it changes, until interrupted. The agent is asked once a second.
    #[arg(long, short)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) ask: AskListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServiceDescribeArgs {
    #[command(flatten)]
    pub(crate) service: ServiceName,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// One service.
#[derive(Debug, Args)]
pub(crate) struct ServiceName {
    /// The service; `default/` may be omitted. Exit code 3 if it does not exist.
    #[arg(value_name = "[NAMESPACE/]NAME", value_parser = NonEmptyStringValueParser::new(), add = completions::services())]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) namespace: OwnNamespaceArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// List pools in the order in which the allocator tries them.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  lb pool list\n  lb pool list -o json | jq '.[].counts.available'\n\n\
            IPS AVAILABLE includes quarantined addresses, which are assigned when the pool is otherwise full.\n\n\
            Conditions, whose text `-o wide` and `lb pool get` print:\n  \
            PoolConflict   it overlaps an older pool, or itself: holders keep their addresses, nobody gets a new one\n  \
            PoolInvalid    it is invalid: likewise\n  \
            PoolWarning    something about it may be a mistake"
    )]
    List(PoolListArgs),
    /// Show one pool and its addresses that are held, reserved for somebody else, or set aside.
    #[command(after_help = "Examples:\n  lb pool get blue-pool\n  lb pool get blue-pool -o yaml")]
    Get(PoolGetArgs),
    /// Show the state of an address in the pools: free, held, quarantined or reserved, with its holder and the reason.
    #[command(after_help = "Examples:\n  lb pool explain 20.0.20.100\n  lb pool explain 2001:db8::1 -o json\n\n\
            Exit codes: 0 ok, 1 error, 2 usage, 3 the address is in no pool.")]
    Explain(PoolExplainArgs),
    /// Show which services would get other addresses after an edit, without making it.
    ///
    /// The pools and services of the file replace those of the same name and are added to all others. A document that is
    /// no Kubernetes object is named, and the plan is made without it; a file that cannot be parsed has no plan.
    #[command(after_help = "Examples:\n  lb pool plan -f smaller-pool.yaml\n  \
            kubectl get ippools -o yaml | lb pool plan -f -\n  lb pool plan --remove blue-pool\n  \
            lb pool plan --remove old-name -f new-name.yaml\n\n\
            Exit codes: 0 no service would lose an address, 1 error, or an object would be refused or not read, 2 usage, \
            3 no such pool, 4 a service would lose an address.")]
    Plan(PoolPlanArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PoolListArgs {
    #[command(flatten)]
    pub(crate) ask: AskListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PoolGetArgs {
    /// Name of the pool. Exit code 3 if it does not exist.
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new(), add = completions::pools())]
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
    /// Manifests of the edit; `-` reads standard input.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Pool that the edit removes, alone or together with --file; can be repeated.
    #[arg(long, value_name = "NAME", add = completions::pools())]
    pub(crate) remove: Vec<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackendCommand {
    /// List backends, one line for each backend of each port.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  lb backend list\n  lb backend list default/web -o yaml\n  lb backends list -n shop -w"
    )]
    List(BackendListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BackendListArgs {
    /// Only backends of this service; `default/` may be omitted. Exit code 3 if the service does not exist.
    #[arg(value_name = "[NAMESPACE/]NAME", value_parser = NonEmptyStringValueParser::new(), add = completions::services())]
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    /// Backends of services of every namespace, which is the default without NAME; with NAME, of those of that name.
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// Then print each backend that comes, changes or goes, until interrupted. The agent is asked once a second.
    #[arg(long, short)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) ask: AskListArgs,
}

/// Show the state of the agent: readiness, datapath, manifests, conditions.
///
/// What the manifests ask for and the agent does not do is listed below: objects that are refused or skipped, fields
/// that have no effect, and files that are ignored. Of each kind the first few are shown, with --verbose all that the
/// agent lists.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb status\n  \
    lb status --verbose\n  \
    lb status --wait 2m\n  \
    lb status --config /etc/lb.yaml -o json | jq .ready\n\n\
    Exit codes: 0 the agent is ready, 1 error, or the agent is not ready, 2 usage.")]
pub(crate) struct StatusArgs {
    /// Wait until the agent answers and is ready, at most for TIMEOUT, such as 30s or 2m [default TIMEOUT: 5m].
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, default_missing_value = "5m")]
    pub(crate) wait: Option<Period>,
    /// List everything that is refused, without effect, skipped or ignored.
    #[arg(long, short)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Explain what would become of a packet, or of a new connection to a service, and why.
///
/// The answer lists the steps, the chosen backend, and every other backend with the reason why it is not chosen. It is
/// about the first packet of a flow from a client that the datapath does not know yet. With --verify, it includes what
/// the kernel remembers of the flow and the client.
///
/// For a service, there is an answer for each of its frontends, or for those of PORT: a number or a name. The client is
/// the node itself unless --from names another.
#[derive(Debug, Args)]
#[command(
    override_usage = "lb explain [OPTIONS] <PROTO> <SRC:PORT> <DST:PORT>\n       \
                      lb explain [OPTIONS] <[NAMESPACE/]SERVICE[:PORT]>",
    after_help = "Examples:\n  \
    lb explain tcp 10.244.0.5:40000 10.96.0.10:80\n  \
    lb explain udp '[fd00:10:244::5]:40000' '[fd00:10:96::a]:53' --entry uplink\n  \
    lb explain tcp 10.244.0.5:40000 10.96.0.10:80 --verify\n  \
    lb explain tcp 10.244.0.5:40000 10.96.0.10:80 --why-not 10.244.0.12\n  \
    lb explain web\n  \
    lb explain shop/web:http --from 198.51.100.7 --verify\n\n\
    Exit codes: 0 ok, 1 error (with --verify: also if the datapath cannot be queried), 2 usage, 3 there is no such \
    service or port, or the backend of --why-not does not belong to the service, 4 the kernel disagrees."
)]
pub(crate) struct ExplainArgs {
    /// tcp, udp or sctp; or, alone, a service, whose `default/` may be omitted.
    #[arg(value_name = "PROTO|SERVICE[:PORT]", value_parser = NonEmptyStringValueParser::new(), add = completions::explained())]
    pub(crate) protocol: String,
    /// Source address and port; an IPv6 address in brackets.
    #[arg(value_name = "SRC:PORT", requires = "destination")]
    pub(crate) source: Option<String>,
    /// Destination address and port; an IPv6 address in brackets.
    #[arg(value_name = "DST:PORT", requires = "source")]
    pub(crate) destination: Option<String>,
    /// Client of a service: an address, or `ADDR:PORT` [default: the node itself, port 40000].
    #[arg(long, value_name = "ADDR[:PORT]", conflicts_with = "source")]
    pub(crate) from: Option<String>,
    #[command(flatten)]
    pub(crate) namespace: OwnNamespaceArgs,
    /// Where the packet enters the node [default: depends on the source: socket for an address of the node, pod for one
    /// in a cluster CIDR, uplink for any other].
    #[arg(long, value_name = "WHERE", value_enum)]
    pub(crate) entry: Option<Entry>,
    /// Query the kernel about the same packet, without sending it, and print AGREE or DISAGREE. Exit code 4 if they
    /// disagree.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Explain why this backend is chosen or not. Exit code 3 if it is no backend of the service.
    #[arg(long, value_name = "ADDR[:PORT]", add = completions::backends())]
    pub(crate) why_not: Option<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Compare what the datapath holds with what it should hold.
///
/// The agent inspects everything now. The first list shows what is missing, extra or wrong, with the likely cause and
/// the outcome. The second one shows what was found within the last hour and is repaired or gone. An agent with
/// `--drift repair` repairs what this inspection finds.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb drift\n  \
    lb drift -o json | jq '.now[] | .object'\n  \
    lb drift --watch -o json\n\n\
    Exit codes: 0 no difference, 1 error, 2 usage, 4 a difference, even if it is repaired by now.")]
pub(crate) struct DriftArgs {
    /// Print differences and repairs as they happen, until interrupted; with `-o json`, one line each.
    #[arg(long)]
    pub(crate) watch: bool,
    /// List every object in the table, not only the first 20 of each class.
    #[arg(long, conflicts_with = "watch")]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Remove everything that lb put into the kernel.
///
/// This removes rules, maps, programs, routes and pins, and ends traffic to services. It needs no agent, and is refused
/// while an agent runs with the same socket or state directory. Run it in the network namespace of the agent: the state
/// directory remembers which one that was.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lb cleanup\n  lb cleanup --config /etc/lb.yaml\n  \
    lb cleanup --datapath nftables -o json\n  \
    nsenter --net=/run/netns/blue lb cleanup --state-dir /var/lib/lb-blue\n\n\
    Outcomes:\n  \
    removed         it was there and is not there any more\n  \
    absent          nothing of it was there\n  \
    not-inspected   this process does not see where it is, or it was not asked for; it may be there\n  \
    failed          something of it is there, or may be\n\n\
    Exit codes: 0 ok, 1 something failed, or was not inspected and an agent may have left it, 2 usage.")]
pub(crate) struct CleanupFlags {
    /// Only what this datapath put there [default: all datapaths].
    #[arg(long, value_name = "KIND", value_parser = driver::parser())]
    datapath: Option<DatapathKind>,
    /// Directory where eBPF objects are pinned [default: all directories that agents with this state directory used;
    /// if there are none, that of --config, or /sys/fs/bpf/lb].
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// State directory of the agent [default: that of --config, or /var/lib/lb].
    #[arg(long, value_name = "DIR", env = "LB_STATE_DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,
    /// Clean up even while an agent runs; the agent may restore what is removed.
    #[arg(long)]
    force: bool,
    /// Forget what cannot be inspected, because the network namespace or the BPF file system that it was in is gone.
    /// What can be inspected elsewhere is not forgotten.
    #[arg(long)]
    forget: bool,
    #[command(flatten)]
    ask: AskArgs,
}

impl CleanupFlags {
    /// The same with what the configuration file and the defaults say.
    pub(crate) fn complete(self) -> Result<CleanupArgs, Failure> {
        let settings = self.ask.reach.settings()?;
        Ok(CleanupArgs {
            datapath: self.datapath,
            pin_dir: self.pin_dir,
            usual_pin_dir: settings.pin_dir,
            state_dir: self.state_dir.or(settings.state_dir).unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            force: self.force,
            forget: self.forget,
            ask: Asked { socket: self.ask.reach.socket()?, output: self.ask.output },
        })
    }
}

/// What to clean up, and where.
#[derive(Debug)]
pub(crate) struct CleanupArgs {
    /// Only what this datapath put there.
    pub(crate) datapath: Option<DatapathKind>,
    /// Only this directory of pins.
    pub(crate) pin_dir: Option<PathBuf>,
    /// Directory of pins if no agent left word of one; `None` for the default.
    pub(crate) usual_pin_dir: Option<PathBuf>,
    /// State directory of the agent.
    pub(crate) state_dir: PathBuf,
    /// Whether to clean up while an agent runs.
    pub(crate) force: bool,
    /// Whether to forget what cannot be inspected.
    pub(crate) forget: bool,
    pub(crate) ask: Asked,
}

/// The agent that must not run, and how to print the result.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) socket: PathBuf,
    pub(crate) output: Format,
}

/// Run the use cases in network namespaces and check their promises.
///
/// The lab builds a cluster of three nodes with real servers and clients, and runs this program's agent on every node.
/// It changes nothing outside of its own namespaces and leaves nothing behind. Without root it runs in a user
/// namespace, on nftables and iptables. Exit code 1 if an expectation is not met.
#[cfg(feature = "lab")]
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    lb lab\n  \
    lb lab session-affinity\n  \
    lb lab node-port\n  \
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
    /// Directory for report.json, which is made if it does not exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Format of the result.
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

/// Validate manifests without an agent and say what would become of them.
///
/// This reads the manifests as the agent does and tries them on a datapath that carries nothing, with an empty ledger
/// of addresses. It lists what would be served, and what would be refused, without effect, skipped or ignored, each with
/// file and line. It needs no agent and no privilege, and changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lb check ./manifests\n  lb check ./manifests --datapath nftables --strict\n  \
    kubectl get services,endpointslices -A -o yaml | lb check -\n  lb check --config lb.yaml -o json\n\n\
    Exit codes: 0 nothing is refused and everything is read, 1 error, or something is refused or not read, 2 usage.")]
pub(crate) struct CheckArgs {
    /// Directory of manifests, or a file; `-` reads standard input [default: `manifests` of --config].
    #[arg(value_name = "DIR", required_unless_present = "config", value_hint = clap::ValueHint::AnyPath)]
    pub(crate) path: Option<PathBuf>,
    /// Fail, too, if a field has no effect, an object is skipped, or a service is degraded or lacks an address.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Datapath that would carry the packets: what it lacks is reported [default: that of --config, or one that lacks
    /// nothing].
    #[arg(long, value_name = "KIND", value_parser = driver::parser())]
    pub(crate) datapath: Option<DatapathKind>,
    /// Configuration file of the agent: its manifests, datapath, node name and addresses, cluster and service
    /// CIDRs, and load-balancer classes apply.
    #[arg(long, value_name = "FILE", env = "LB_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// Format of the result.
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// Print the versions of this program and of the agent.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lb version\n  lb version --client\n  lb version -o json\n\n\
    Exit codes: 0 ok, 1 no agent answers, 2 usage.")]
pub(crate) struct VersionArgs {
    /// Only the version of this program, without asking an agent.
    #[arg(long)]
    pub(crate) client: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Print a script that makes a shell complete commands, flags, and names of services and pools.
///
/// The shell asks this program, which asks the agent, so load the script again after an upgrade. Names come from the
/// agent that --socket, --config, LB_SOCKET or LB_CONFIG names.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  source <(lb completions bash)\n  lb completions zsh > ~/.zfunc/_lb\n  \
    lb completions fish | source")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL", value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_has_an_example() {
        fn check(command: &clap::Command) {
            command.get_subcommands().filter(|sub| sub.get_name() != "help").for_each(check);
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no example", command.get_name());
            assert!(help.contains(&format!("{} ", command.get_name())) || help.contains("lb "), "{help}");
        }
        check(&Cli::command());
    }
}
