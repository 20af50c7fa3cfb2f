//! What would become of manifests, without an agent.
//!
//! The same code as in an agent reads them, assigns addresses and decides: a source, an allocator whose ledger is empty
//! and written nowhere, and a datapath in memory that has the capabilities of a kind.
//!
//! ```
//! use lb_agent::{check::check_text, config::Config, driver};
//! use lb_core::node::NodeFacts;
//!
//! let config = Config::new(driver::MEMORY, NodeFacts::default(), "", "");
//! let checked = check_text("web.yaml", "
//! apiVersion: v1
//! kind: Service
//! metadata: { name: web }
//! spec: { clusterIP: not-an-address, ports: [{ port: 80 }] }
//! ", &config)?;
//! assert!(!checked.is_accepted());
//! assert_eq!((checked.refused[0].file.as_str(), checked.refused[0].line), ("web.yaml", Some(5)));
//! # Ok::<(), lb_agent::check::CheckError>(())
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use lb_core::{
    datapath::DatapathError,
    memory::MemoryDatapath,
    model::Change,
    name::{ServiceName, SourceName},
};
use lb_k8s::{Batch, Finding as Found, Manifests, Origin, Report, Snapshot, SnapshotError, Unread};
use serde::Serialize;

use crate::{
    allocation::{Allocation, OTHER_CLASS},
    api::{Condition, Pool, Service, remarks::NO_SERVICE, view},
    config::Config,
    driver::DatapathKind,
    engine::Engine,
    source::{Grant, ManifestDirectory, News, Source, SourceError, Sources, Waker},
};

/// What would become of manifests.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Checked {
    /// Why the manifests would be rejected as a whole.
    pub rejected: Option<String>,
    /// Services, as an agent would list them.
    pub services: Vec<Service>,
    /// Pools, as an agent would list them.
    pub pools: Vec<Pool>,
    /// Files that could not be read as a whole, and documents that are no objects.
    pub unread: Vec<Finding>,
    /// Objects that would be refused.
    pub refused: Vec<Finding>,
    /// Fields that would have no effect.
    pub unsupported: Vec<Finding>,
    /// Objects that are not for an agent.
    pub skipped: Vec<Finding>,
    /// Conditions of the agent that no object has: endpoint slices whose service is not there.
    pub conditions: Vec<Condition>,
    /// Directory entries that would not be read.
    pub ignored_files: Vec<String>,
    /// How many more findings there are than those that are listed.
    pub unlisted: usize,
    /// How many findings there are, those included that are not listed.
    pub totals: Totals,
}

/// Numbers of findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// Files and documents that could not be read.
    pub unread: usize,
    /// Objects that would be refused.
    pub refused: usize,
    /// Fields that would have no effect.
    pub unsupported: usize,
    /// Objects that are not for an agent.
    pub skipped: usize,
}

/// A remark about an object, and where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The file; empty if it is not known.
    pub file: String,
    /// Line of the file, from 1, if it is known: not for a conflict between objects.
    pub line: Option<u64>,
    /// Character of the line, from 1, if it is known.
    pub column: Option<u64>,
    /// The object, such as `Service default/web`; empty if the message names it.
    pub object: String,
    /// Path of the field, such as `spec.ports[0].port`; empty when it is about the whole object.
    pub field: String,
    /// What it is and what to do.
    pub message: String,
    /// Whether more is let in by this than the object asks for.
    pub exposes: bool,
    /// All of it in one line, as an agent logs it.
    pub text: String,
}

/// Why manifests cannot be checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The kind of datapath does not say what it can do.
    #[error("datapath {0} does not say what it can do before it is opened: check without it")]
    Datapath(DatapathKind),
    /// There is nothing to check.
    #[error("{place} holds no manifests{hint}")]
    NoManifests {
        /// The directory, file or text.
        place: String,
        /// What is read of a directory, and what is not.
        hint: String,
    },
    /// The directory or file cannot be read.
    #[error("{}: the manifests cannot be read: {source}", .path.display())]
    Unreadable {
        /// The directory or file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The datapath in memory refused.
    #[error("trying the manifests failed: {}", .0.report())]
    Failed(DatapathError),
}

impl Checked {
    /// Whether nothing would be refused, and every file is read.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.rejected.is_none() && self.totals.refused + self.totals.unread == 0
    }

    /// Whether, besides, every object would take effect as it stands: no field without effect, no object skipped, no
    /// condition. That a service is of another class is no shortcoming.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let findings = self.totals.unsupported + self.totals.skipped;
        let on_objects = self.services.iter().map(|service| &service.conditions);
        let on_objects = on_objects.chain(self.pools.iter().map(|pool| &pool.conditions));
        let mut all = on_objects.flatten().chain(&self.conditions);
        self.is_accepted() && findings == 0 && all.all(|condition| condition.kind == OTHER_CLASS)
    }
}

/// Checks a directory, or a file, as an agent with this configuration would read it. Of the configuration, facts about
/// the node, the datapath and the load-balancer classes matter; nothing of it is opened.
///
/// # Errors
/// When the directory or file cannot be read or holds no manifests, or the kind of datapath does not say what it can do.
pub fn check(manifests: &Path, config: &Config) -> Result<Checked, CheckError> {
    let is_directory =
        can_read(manifests).map_err(|source| CheckError::Unreadable { path: manifests.into(), source })?;
    let mut source = ManifestDirectory::new(manifests);
    // Pods of all nodes together would be in each other's way.
    if config.node.name.is_some() {
        source.set_node(&config.node);
    }
    let news = source.poll();
    let hint = |report: &Report| match (is_directory, &*report.ignored_files) {
        (false, _) => String::new(),
        (true, []) => ": give a directory that has .yaml, .yml or .json files itself".to_owned(),
        (true, [first, ..]) => {
            format!(": give a directory that has .yaml, .yml or .json files itself; it has entries like {first}")
        }
    };
    check_content(&news, || manifests.display().to_string(), hint)?;
    let origins = origins(&news, |name| source.origin(name));
    run(Read { source, news: Some(news) }, &origins, config)
}

/// Checks one text that is called `file` in messages: JSON if that ends in `.json`, YAML otherwise. What cannot be read
/// costs only itself, as in a directory.
///
/// # Errors
/// When it holds no manifests, or the kind of datapath does not say what it can do.
pub fn check_text(file: &str, text: &str, config: &Config) -> Result<Checked, CheckError> {
    let source = SourceName("manifests".into());
    let mut manifests = Manifests::new(source).allocating();
    if let Some(node) = &config.node.name {
        manifests = manifests.on_node(Some(node.clone()));
    }
    let Batch { changes, edits, report } = manifests.update(Snapshot::parse_readable(file, text));
    let news = News::default().with_changes(changes).with_edits(edits).with_report(report);
    check_content(&news, || file.to_owned(), |_| String::new())?;
    let origins = origins(&news, |name| manifests.service_origin(name));
    run(Read { source: Text(manifests), news: Some(news) }, &origins, config)
}

/// Whether the path is a directory, if the directory or file can be read.
fn can_read(path: &Path) -> io::Result<bool> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        fs::read_dir(path)?;
    } else if metadata.is_file() {
        File::open(path)?;
    }
    Ok(metadata.is_dir())
}

/// Whether there is anything to check: a pipeline whose first part failed must not pass.
fn check_content(news: &News, place: impl Fn() -> String, hint: impl Fn(&Report) -> String) -> Result<(), CheckError> {
    let Some(report) = &news.report else { return Ok(()) };
    if report.documents > 0 || report.rejected.is_some() {
        return Ok(());
    }
    Err(CheckError::NoManifests { place: place(), hint: hint(report) })
}

/// Where services stand.
type Origins = BTreeMap<String, Origin>;

fn origins<'a>(news: &News, of: impl Fn(&ServiceName) -> Option<&'a Origin>) -> Origins {
    let of_change = |change: &Change| match change {
        Change::UpsertService(service) => Some((service.name.to_string(), of(&service.name)?.clone())),
        _ => None,
    };
    news.changes.iter().filter_map(of_change).collect()
}

/// A source that was polled once already.
struct Read<S> {
    source: S,
    news: Option<News>,
}

impl<S: Source> Source for Read<S> {
    fn name(&self) -> SourceName {
        self.source.name()
    }

    fn start(&mut self, waker: Waker) -> Result<(), SourceError> {
        self.source.start(waker)
    }

    fn poll(&mut self) -> News {
        self.news.take().unwrap_or_default()
    }

    fn grant(&mut self, grants: &[Grant]) -> Vec<Change> {
        self.source.grant(grants)
    }
}

/// Manifests in a text.
struct Text(Manifests);

impl Source for Text {
    fn name(&self) -> SourceName {
        SourceName("manifests".into())
    }

    fn start(&mut self, _: Waker) -> Result<(), SourceError> {
        Ok(())
    }

    fn poll(&mut self) -> News {
        News::default()
    }

    fn grant(&mut self, grants: &[Grant]) -> Vec<Change> {
        self.0.grant(grants.iter().map(|grant| (grant.service.clone(), grant.addresses.clone())))
    }
}

fn run(source: impl Source + 'static, origins: &Origins, config: &Config) -> Result<Checked, CheckError> {
    let capabilities =
        config.datapath.capabilities(&config.attachments).ok_or(CheckError::Datapath(config.datapath))?;
    let named = [(source.name(), source.place())];
    let sources = Sources::new(vec![Box::new(source)], Allocation::in_memory(config));
    let datapath = Box::new(MemoryDatapath::with_capabilities(capabilities));
    let mut engine = Engine::new(&with_node_address(config), &named, datapath, Box::new(|| {}));
    let shared = engine.shared();
    let delivery = sources.poll(0);
    let report = delivery.as_ref().and_then(|delivery| delivery.report.clone()).unwrap_or_default();
    delivery.into_iter().for_each(|delivery| shared.take_news(delivery));
    engine.settle().map_err(CheckError::Failed)?;

    let (mut services, mut status, mut pools) = (shared.services(), shared.status(), sources.allocation().pools());
    sources.allocation().describe(&mut services);
    sources.allocation().describe_status(&mut status);
    shared.describe_pools(&mut pools);
    let refusals = report.refused.iter().chain(&report.also_refused);
    let mut refused: Vec<Finding> = refusals.map(|it| located(&it.finding, it.to_string())).collect();
    let known = refused.iter().map(|finding| finding.text.clone());
    let known: BTreeSet<String> = known.chain(view::further_refused(&report).map(|it| it.message)).collect();
    let conditions = status.conditions.iter().filter(|it| it.kind == NO_SERVICE).cloned().collect();
    let conflicts = status.conditions.into_iter().filter(|it| it.kind == "Refused" && !known.contains(&it.message));
    refused.extend(conflicts.map(|condition| conflict(condition.message, &services, origins)));
    // Of objects that are skipped, those that let more in are known by their kind.
    let (exposing_skipped, exposing_fields) =
        report.exposing.iter().cloned().partition::<Vec<_>, _>(|it| it.object.kind != "Service" && it.field.is_empty());
    let all = |listed: &[Arc<Found>], further: &[Arc<Found>]| -> Vec<Finding> {
        listed.iter().chain(further).map(|it| located(it, it.to_string())).collect()
    };
    let (unsupported, skipped) = (all(&report.unsupported, &exposing_fields), all(&report.skipped, &exposing_skipped));
    let totals = Totals {
        unread: report.unread.len() + report.unlisted.unread,
        refused: refused.len() - report.also_refused.len() + report.unlisted.refused,
        unsupported: report.unsupported.len() + report.unlisted.unsupported,
        skipped: report.skipped.len() + report.unlisted.skipped,
    };
    Ok(Checked {
        rejected: report.rejected.as_ref().map(|error| lb_core::error::report(&**error)),
        services,
        pools,
        unread: report.unread.iter().map(unread).collect(),
        refused,
        unsupported,
        skipped,
        conditions,
        ignored_files: report.ignored_files.clone(),
        unlisted: report.unlisted.sum() - report.exposing.len() - report.also_refused.len(),
        totals,
    })
}

/// With an address of each family for node ports if the configuration names none. Nobody has these addresses: they are
/// the dummies of RFC 7600 and RFC 9780.
fn with_node_address(config: &Config) -> Config {
    let mut config = config.clone();
    if config.node.ips.is_empty() {
        config.node.ips =
            vec![IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 1))];
    }
    config
}

fn located(found: &Found, text: String) -> Finding {
    Finding {
        file: found.object.origin.file.to_string(),
        line: found.position.map(|position| position.line),
        column: found.position.map(|position| position.column),
        object: found.object.to_string(),
        field: found.field.clone(),
        message: found.message.clone(),
        exposes: found.exposes,
        text,
    }
}

fn unread(unread: &Unread) -> Finding {
    let position = match &*unread.error {
        SnapshotError::Syntax { position, .. } | SnapshotError::NotAnObject { position, .. } => *position,
        SnapshotError::Type(finding) => return located(finding, unread.to_string()),
        _ => None,
    };
    Finding {
        file: unread.error.file().into(),
        line: position.map(|position| position.line),
        column: position.map(|position| position.column),
        message: lb_core::error::report(&*unread.error),
        text: unread.to_string(),
        ..Finding::default()
    }
}

/// An object that is valid in itself, and that the others leave no room for.
fn conflict(message: String, services: &[Service], origins: &Origins) -> Finding {
    let is_it = |service: &&Service| {
        service.conditions.iter().any(|condition| condition.kind == "Refused" && condition.message == message)
    };
    let service = services.iter().find(is_it).and_then(|service| Some((service, origins.get(&service.name)?)));
    let Some((service, origin)) = service else {
        return Finding { text: message.clone(), message, ..Finding::default() };
    };
    Finding {
        file: origin.file.to_string(),
        object: format!("Service {}", service.name),
        text: format!("{origin}: {message}"),
        message,
        ..Finding::default()
    }
}

#[cfg(test)]
mod tests {
    use lb_core::node::NodeFacts;

    use super::*;
    use crate::{
        api::FrontendStatus,
        config::{
            DestroySockets,
            sockets::{SocketLb, SocketService},
        },
        driver::{self, Attachments},
        testing::WEB,
    };

    const POOL: &str = "{apiVersion: lb/v1, kind: IPPool, metadata: {name: p}, spec: {blocks: [192.0.2.7/32]}}\n";

    fn config(datapath: DatapathKind) -> Config {
        Config::new(datapath, NodeFacts::default(), "", "")
    }

    fn checked(text: &str) -> Checked {
        check_text("all.yaml", text, &config(driver::MEMORY)).unwrap()
    }

    fn service(name: &str, spec: &str) -> String {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: 80}}], {spec}}}}}\n"
        )
    }

    fn names(findings: &[Finding]) -> Vec<(&str, Option<u64>)> {
        findings.iter().map(|finding| (&*finding.object, finding.line)).collect()
    }

    #[test]
    fn what_would_be_served_is_listed_as_an_agent_does() {
        let checked = checked(WEB);
        assert!(checked.is_accepted() && checked.is_clean(), "{checked:#?}");
        let frontend = &checked.services[0].frontends[0];
        assert_eq!((frontend.backends.active, &frontend.status), (2, &FrontendStatus::Active));
    }

    #[test]
    fn every_fate_is_told_apart_with_its_place() {
        let text = WEB.to_owned()
            + &service("bad", "clusterIP: not-an-address")
            + &service("open", "clusterIP: 10.96.0.2, loadBalancerSourceRange: [10.0.0.0/8]")
            + "---\n{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: rs}}\n"
            + &service("thief", "clusterIP: 10.96.0.1");
        let checked = checked(&text);
        assert!(!checked.is_accepted());
        let refused = names(&checked.refused);
        assert_eq!(refused[0], ("Service default/bad", Some(6)));
        assert_eq!(refused[1], ("Service default/web", None));
        assert!(
            checked.refused[1].text.starts_with("all.yaml: document 1: service default/web claims"),
            "{checked:#?}"
        );
        assert_eq!(refused.len(), 2, "{:?}", checked.refused);
        assert_eq!(names(&checked.unsupported), [("Service default/open", Some(8))]);
        assert_eq!(names(&checked.skipped).len(), 1);
        assert!(checked.skipped[0].object.contains("ReplicaSet"), "{:?}", checked.skipped);
    }

    #[test]
    fn addresses_are_assigned_from_pools_and_nothing_is_written() {
        let wants = |name, ip| service(name, &format!("type: LoadBalancer, clusterIP: {ip}"));
        let only = checked(&(POOL.to_owned() + &wants("a", "10.96.0.1")));
        assert_eq!(only.services[0].external_ips, ["192.0.2.7".parse::<std::net::IpAddr>().unwrap()]);
        let kinds = |checked: &Checked, at: usize| -> Vec<String> {
            checked.services[at].conditions.iter().map(|condition| condition.kind.clone()).collect()
        };
        assert!(!kinds(&only, 0).contains(&"Unsatisfied".into()), "{only:#?}");
        let both = checked(&(POOL.to_owned() + &wants("a", "10.96.0.1") + &wants("b", "10.96.0.2")));
        assert!(both.is_accepted() && !both.is_clean());
        assert!(kinds(&both, 1).contains(&"Unsatisfied".into()), "{both:#?}");
    }

    #[test]
    fn drain_policies_are_judged_by_where_sockets_are_ended() {
        let text =
            WEB.replace("metadata: {name: web}, spec", "metadata: {name: web, annotations: {lb/drain: cut}}, spec");
        assert_ne!(text, WEB);
        let is_clean = |kind: DatapathKind, destroy_sockets| {
            let attachments = Attachments::default().with_destroy_sockets(destroy_sockets);
            check_text("all.yaml", &text, &config(kind).with_attachments(attachments)).unwrap().is_clean()
        };
        for (destroy_sockets, clean) in
            [(DestroySockets::All, true), (DestroySockets::Host, false), (DestroySockets::Off, false)]
        {
            assert_eq!(is_clean(driver::EBPF, destroy_sockets), clean, "{destroy_sockets:?}");
            assert!(is_clean(driver::NFTABLES, destroy_sockets), "conntrack knows every flow");
        }
    }

    #[test]
    fn node_ports_are_judged_by_which_sockets_are_balanced() {
        let text = service("np", "type: NodePort, clusterIP: 10.96.0.1")
            .replace("{port: 80}", "{port: 80, nodePort: 30080}")
            + "---\n"
            + &WEB.split_once("---\n").unwrap().1.replace(": web}", ": np}");
        for (balanced, clean) in [(SocketLb::All, true), (SocketLb::Host, true), (SocketLb::Off, false)] {
            let sockets = SocketService { balanced, ..SocketService::default() };
            let config = config(driver::EBPF).with_attachments(Attachments::default().with_sockets(sockets));
            let checked = check_text("np.yaml", &text, &config).unwrap();
            assert_eq!(checked.is_clean(), clean, "{balanced:?}: {:?}", checked.services);
        }
    }

    #[test]
    fn node_ports_are_judged_without_a_node_address() {
        let text = service("np", "type: NodePort, externalTrafficPolicy: Local, clusterIP: 10.96.0.1")
            .replace("{port: 80}", "{port: 80, nodePort: 30080}")
            + "---\n"
            + &WEB.split_once("---\n").unwrap().1.replace(": web}", ": np}");
        let conditions = |config: &Config| {
            let checked = check_text("np.yaml", &text, config).unwrap();
            assert!(checked.is_accepted() && checked.services.len() == 1, "{checked:#?}");
            (checked.is_clean(), checked.services[0].conditions.clone())
        };
        let with_address = |kind| {
            let ips = vec!["192.0.2.1".parse().unwrap()];
            Config::new(kind, NodeFacts { ips, ..NodeFacts::default() }, "", "")
        };
        for kind in [driver::NFTABLES, driver::IPTABLES_NFT, driver::EBPF, driver::MEMORY] {
            assert_eq!(conditions(&config(kind)), conditions(&with_address(kind)), "{kind}");
        }
        assert!(!conditions(&config(driver::NFTABLES)).0);
    }

    #[test]
    fn source_ranges_are_judged_by_the_kind_of_datapath() {
        let text = service("open", "clusterIP: 10.96.0.2, loadBalancerSourceRanges: [10.0.0.0/8]");
        let degraded = |kind| {
            let checked = check_text("open.yaml", &text, &config(kind)).unwrap();
            assert!(checked.is_accepted() && checked.unsupported.is_empty(), "{checked:#?}");
            let conditions = checked.services[0].conditions.iter().filter(|it| it.kind == "Degraded");
            conditions.map(|it| it.message.clone()).collect::<Vec<_>>()
        };
        let says = "source ranges are not supported by this datapath, every source is let in";
        for kind in [driver::NFTABLES, driver::IPTABLES_NFT] {
            assert_eq!(degraded(kind), [says], "{kind}");
        }
        assert_eq!(degraded(driver::MEMORY), [""; 0]);
    }

    #[test]
    fn findings_beyond_the_limit_are_counted_and_those_that_matter_are_listed() {
        let many = lb_k8s::limits::MAX_FINDINGS_PER_FILE + 500;
        let sloppy = |n: usize| service(&format!("s{n}"), "clusterIP: None, bogus: 1");
        let open = service("yy", "clusterIP: 10.96.0.1, loadBalancerSourceRange: [10.0.0.0/8]");
        let policy = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}}\n";
        let text = (0..many).map(sloppy).collect::<String>() + &open + policy;
        let accepted = checked(&text);
        assert!(accepted.is_accepted() && !accepted.is_clean());
        assert_eq!((accepted.totals.unsupported, accepted.totals.skipped, accepted.unlisted), (many + 1, 1, 500));
        let exposing = accepted.unsupported.iter().chain(&accepted.skipped).filter(|it| it.exposes);
        let exposing: Vec<&str> = exposing.map(|it| &*it.object).collect();
        assert_eq!(exposing, ["Service default/yy", "NetworkPolicy deny"]);
        let last = accepted.services.last().unwrap();
        assert_eq!((&*last.name, &*last.conditions[0].kind), ("default/yy", "Degraded"));
        let refused = checked(&(text + &service("zz", "clusterIP: nonsense")));
        assert!(!refused.is_accepted());
        assert_eq!((refused.totals.refused, &*refused.refused[0].object), (1, "Service default/zz"));
        assert_eq!(refused.refused.len(), 1, "{:?}", refused.refused);
    }

    #[test]
    fn a_datapath_that_lacks_something_is_known_without_being_opened() {
        let maglev = "{apiVersion: v1, kind: Service, metadata: {name: m, annotations: {lb/algorithm: maglev}}, \
                      spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n---\n";
        let text = maglev.to_owned() + &WEB.split_once("---\n").unwrap().1.replace(": web}", ": m}");
        let of = |kind| check_text("m.yaml", &text, &config(kind)).unwrap();
        assert!(of(driver::MEMORY).is_clean() && of(driver::NFTABLES).is_clean() && of(driver::EBPF).is_clean());
        let iptables = of(driver::IPTABLES_NFT);
        assert!(iptables.is_accepted() && !iptables.is_clean());
        assert_eq!(iptables.services[0].conditions[0].kind, "Degraded");
    }

    #[test]
    fn a_text_is_checked_as_a_file_of_the_same_content() {
        for broken in ["---\nreplicas: 1\n", "---\nkind: service\napiVersion: v1\n", "---\na: [1\n"] {
            let text = WEB.to_owned() + broken;
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("all.yaml");
            fs::write(&file, &text).unwrap();
            let told = |checked: Checked| {
                let services: Vec<String> = checked.services.into_iter().map(|service| service.name).collect();
                let unread: Vec<_> =
                    checked.unread.into_iter().map(|finding| (finding.line, finding.column, finding.message)).collect();
                (checked.rejected, services, unread)
            };
            let of_text = checked(&text);
            assert!(of_text.rejected.is_none() && of_text.unread.len() == 1 && !of_text.is_accepted(), "{of_text:#?}");
            let place = |told: (_, _, Vec<(_, _, String)>), file: &str| {
                let unread: Vec<_> =
                    told.2.into_iter().map(|(line, column, says)| (line, column, says.replace(file, "FILE"))).collect();
                (told.0, told.1, unread)
            };
            let of_file = told(check(&file, &config(driver::MEMORY)).unwrap());
            assert_eq!(place(told(of_text), "all.yaml"), place(of_file, file.to_str().unwrap()), "{broken}");
        }
        let served = checked(&(WEB.to_owned() + "---\nreplicas: 1\n"));
        assert_eq!(served.services[0].frontends[0].status, FrontendStatus::Active, "a document costs only itself");
    }

    #[test]
    fn a_directory_is_checked_as_its_source_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("web.yaml"), WEB).unwrap();
        fs::write(directory.path().join("README.md"), "#").unwrap();
        let checked = check(directory.path(), &config(driver::MEMORY)).unwrap();
        assert_eq!((checked.services.len(), checked.ignored_files.len()), (1, 1));
        assert!(checked.is_clean(), "a file that is no manifest by name is no fault");
        fs::write(directory.path().join("values.yaml"), "replicas: 1\n").unwrap();
        let broken = check(directory.path(), &config(driver::MEMORY)).unwrap();
        assert!(!broken.is_accepted() && broken.services.len() == 1, "a file costs only itself");
        assert!(broken.unread[0].file.ends_with("values.yaml") && broken.unread[0].line == Some(1), "{broken:#?}");
        let missing = check(&directory.path().join("missing"), &config(driver::MEMORY)).unwrap_err().to_string();
        assert!(missing.contains("/missing: the manifests cannot be read: No such file"), "{missing}");
    }

    #[test]
    fn nothing_to_check_is_an_error() {
        for text in ["", " \n", "# kubectl failed\n---\n"] {
            let error = check_text("standard input", text, &config(driver::MEMORY)).unwrap_err();
            assert_eq!(error.to_string(), "standard input holds no manifests", "{text:?}");
        }
        let list = "{apiVersion: v1, kind: List, items: []}\n";
        assert!(checked(list).is_clean(), "an empty list is a manifest");
        let directory = tempfile::tempdir().unwrap();
        let error = || check(directory.path(), &config(driver::MEMORY)).unwrap_err().to_string();
        assert!(error().ends_with(" holds no manifests: give a directory that has .yaml, .yml or .json files itself"));
        fs::create_dir(directory.path().join("prod")).unwrap();
        assert!(error().contains("files itself; it has entries like ") && error().contains("prod"), "{}", error());
        fs::write(directory.path().join("empty.yaml"), "# nothing\n").unwrap();
        assert!(error().contains(" holds no manifests"), "{}", error());
        fs::write(directory.path().join("list.yaml"), list).unwrap();
        assert!(check(directory.path(), &config(driver::MEMORY)).unwrap().is_clean());
    }
}
