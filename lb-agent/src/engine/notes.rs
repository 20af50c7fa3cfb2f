//! What the agent knows beyond the reconciler: what sources say, and what is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use lb_core::{
    addr::FrontendAddr,
    model::{Change, Model},
    name::{ServiceName, SliceName, SourceName},
    plan::PlanId,
    reconciler::Reconciler,
};
use lb_k8s::{Finding, Report};

use crate::api::{
    Manifests, Network, Source, Unlisted,
    remarks::{self, UnreadSlices},
    view,
};

/// What the reconciler does not know.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) ready: bool,
    /// In the order of precedence.
    pub(super) sources: Vec<SourceNotes>,
    /// What all sources together did not take over.
    pub(super) report: Arc<Report>,
    /// Why services have no backends, as it was logged.
    pub(super) endpoint_remarks: BTreeMap<ServiceName, Vec<String>>,
    /// Slices that the model refused, and why.
    pub(super) refused_slices: BTreeMap<SliceName, String>,
    /// Conditions of the agent, by type.
    pub(super) problems: BTreeMap<&'static str, String>,
    /// What there is to say of services with an address that another host answers for.
    pub(super) addresses_shared: BTreeMap<String, String>,
    /// Conditions of sources, by source and type.
    pub(super) source_problems: BTreeMap<(SourceName, &'static str), String>,
    /// Frontends that are kept without a service, as it was logged.
    pub(super) kept: BTreeSet<FrontendAddr>,
    pub(super) devices: Vec<String>,
    pub(super) network: Network,
    pub(super) plan: PlanId,
    pub(super) took: Duration,
}

/// What is known of a source.
pub(super) struct SourceNotes {
    pub(super) name: SourceName,
    pub(super) place: String,
    /// How often it was read.
    pub(super) reads: u64,
    pub(super) listed: bool,
    pub(super) report: Arc<Report>,
}

impl Notes {
    /// A condition of a source begins, changes, or ends; each is logged once.
    pub(super) fn set_source_problem(&mut self, source: SourceName, kind: &'static str, problem: Option<String>) {
        let key = (source, kind);
        let before = self.source_problems.get(&key);
        match problem {
            Some(problem) if before != Some(&problem) => {
                tracing::warn!(source = %key.0.0, condition = kind, problem, "a source has a problem");
                self.source_problems.insert(key, problem);
            }
            None if before.is_some() => {
                tracing::info!(source = %key.0.0, condition = kind, "a problem of a source is over");
                self.source_problems.remove(&key);
            }
            Some(_) | None => {}
        }
    }

    pub(super) fn take_report(&mut self, source: &SourceName, report: Option<Arc<Report>>, changes: &[Change]) {
        // First listings end together, with the news of the source that was the last.
        for change in changes {
            if let Change::InitDone(name) = change {
                self.sources.iter_mut().filter(|notes| notes.name == *name).for_each(|notes| notes.listed = true);
            }
        }
        let Some(notes) = self.sources.iter_mut().find(|notes| notes.name == *source) else { return };
        let Some(report) = report else { return };
        log_report(source, notes.listed, &notes.report, &report);
        notes.reads += 1;
        notes.report = report;
        self.report = match &*self.sources {
            [only] => Arc::clone(&only.report),
            several => Arc::new(joined(several.iter().map(|notes| &*notes.report))),
        };
    }

    /// What each source did not take over.
    pub(super) fn reports(&self) -> Vec<(SourceName, Arc<Report>)> {
        self.sources.iter().map(|notes| (notes.name.clone(), Arc::clone(&notes.report))).collect()
    }

    /// Logs why services have no backends from now on, and what of it is over.
    pub(super) fn note_endpoints(&mut self, model: &Model, services: BTreeSet<ServiceName>) {
        let (mut came, mut went) = (Vec::new(), Vec::new());
        let unread = UnreadSlices::of(&self.reports());
        for service in services {
            let remarks = remarks::of_endpoints(model, &unread, &service);
            let before = match remarks.is_empty() {
                true => self.endpoint_remarks.remove(&service).unwrap_or_default(),
                false => self.endpoint_remarks.insert(service.clone(), remarks.clone()).unwrap_or_default(),
            };
            if !before.is_empty() && remarks.is_empty() {
                went.push(service);
            } else if before != remarks {
                came.push((service, remarks));
            }
        }
        if came.len() > MAX_LOGGED {
            tracing::info!(services = came.len(), "services without backends; see `lb service list`");
            came.clear();
        }
        for (service, why) in came {
            tracing::info!(%service, why = why.join("; "), "a service or some of its frontends have no backends");
        }
        if went.len() > MAX_LOGGED {
            tracing::info!(services = went.len(), "services have endpoints that fit, or are gone");
            went.clear();
        }
        for service in went {
            tracing::info!(%service, "{}", remark_is_over(model, &service));
        }
    }

    /// Logs which frontends are kept without a service from now on, and of which that is over.
    pub(super) fn note_kept(&mut self, reconciler: &Reconciler) {
        let kept = reconciler.kept();
        if self.kept == *kept {
            return;
        }
        let came: Vec<_> = kept.difference(&self.kept).collect();
        if !came.is_empty() {
            let frontends = view::few(&came);
            tracing::warn!(
                frontends,
                "frontends are kept as they were found, because some manifests are not read and no other one has them"
            );
        }
        let desired = &reconciler.desired().frontends;
        let (served, gone): (Vec<_>, Vec<_>) = self.kept.difference(kept).partition(|addr| desired.contains_key(addr));
        if !served.is_empty() {
            tracing::info!(frontends = view::few(&served), "frontends that were kept belong to services again");
        }
        if !gone.is_empty() {
            let frontends = view::few(&gone);
            tracing::info!(frontends, "frontends that were kept are removed, because no manifest has them");
        }
        self.kept.clone_from(kept);
    }

    /// Why sources are rejected as a whole, or files of theirs, by name if there are several: at most a few for each.
    pub(super) fn rejections(&self) -> impl Iterator<Item = String> {
        let is_several = self.sources.len() > 1;
        self.sources.iter().flat_map(move |notes| {
            let unread = &notes.report.unread;
            let more = unread.len().saturating_sub(MAX_UNREAD) + notes.report.unlisted.unread;
            let more =
                (more > 0).then(|| format!("{more} more files or documents are not read; see `lb status --verbose`"));
            let rejected = notes.report.rejected.iter().map(ToString::to_string);
            let said = rejected.chain(unread.iter().take(MAX_UNREAD).map(ToString::to_string)).chain(more);
            said.map(move |error| if is_several { format!("source {}: {error}", notes.name) } else { error })
        })
    }
}

/// Why there is nothing to say about the endpoints of a service any more.
fn remark_is_over(model: &Model, service: &ServiceName) -> &'static str {
    let is_refused = || model.refused().any(|(name, _)| name == service);
    match model.service(service) {
        Some(served) if model.frontends(served).next().is_none() => "the service needs no endpoints any more",
        Some(_) => "the service has endpoints that fit",
        None if is_refused() => "the service of these endpoint slices is refused",
        None => "the service and its endpoint slices are gone",
    }
}

/// Most services that are logged one by one.
const MAX_LOGGED: usize = 10;

/// Most files that conditions name of those that are not read.
const MAX_UNREAD: usize = 5;

/// What several sources did not take over; who is rejected as a whole is asked of each.
fn joined<'a>(reports: impl Iterator<Item = &'a Report>) -> Report {
    let mut all = Report::default();
    for report in reports {
        all.unread.extend_from_slice(&report.unread);
        all.skipped.extend_from_slice(&report.skipped);
        all.unsupported.extend_from_slice(&report.unsupported);
        all.refused.extend_from_slice(&report.refused);
        all.exposing.extend_from_slice(&report.exposing);
        all.also_refused.extend_from_slice(&report.also_refused);
        all.unlisted += report.unlisted;
        all.ignored_files.extend_from_slice(&report.ignored_files);
    }
    all
}

fn lines(of: &[impl ToString]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

pub(super) fn manifests(notes: &SourceNotes) -> Manifests {
    let report = &notes.report;
    Manifests {
        directory: notes.place.clone(),
        reads: notes.reads,
        listed: notes.listed,
        rejected: report.rejected.as_ref().map(ToString::to_string),
        unread: lines(&report.unread),
        skipped: lines(&report.skipped),
        unsupported: lines(&report.unsupported),
        refused: lines(&report.refused),
        ignored_files: report.ignored_files.clone(),
        unlisted: {
            let lb_k8s::Unlisted { unread, skipped, unsupported, refused } = report.unlisted;
            Unlisted { unread, skipped, unsupported, refused }
        },
    }
}

pub(super) fn source(notes: &SourceNotes) -> Source {
    let report = &notes.report;
    let unlisted = report.unlisted;
    Source {
        name: notes.name.0.to_string(),
        place: notes.place.clone(),
        listed: notes.listed,
        reads: notes.reads,
        rejected: report.rejected.as_ref().map(ToString::to_string),
        unread: report.unread.len() + unlisted.unread,
        skipped: report.skipped.len() + unlisted.skipped,
        unsupported: report.unsupported.len() + unlisted.unsupported,
        refused: report.refused.len() + unlisted.refused,
    }
}

/// Logs what `before` did not say, and what it said that is over. `has_state` is whether the source was ever accepted.
fn log_report(source: &SourceName, has_state: bool, before: &Report, report: &Report) {
    let source = &source.0;
    let rejected = |report: &Report| report.rejected.as_ref().map(ToString::to_string);
    match (rejected(before), rejected(report)) {
        (before, Some(error)) => {
            if before.as_ref() != Some(&error) {
                tracing::warn!(%source, error, "the manifests are rejected; {}", instead_of_all(has_state));
            }
            return;
        }
        (Some(before), None) => tracing::info!(%source, before, "the manifests are accepted again"),
        (None, None) => {}
    }
    log_unread(source, before, report);
    let known = Reported::of(before.refused.iter().map(|refusal| &refusal.finding));
    for refusal in report.refused.iter().filter(|refusal| !known.has(&refusal.finding)) {
        tracing::warn!(%source, %refusal, "an object is refused");
    }
    let known = Reported::of(before.unsupported.iter().chain(&before.skipped));
    for finding in report.unsupported.iter().filter(|finding| !known.has(finding)) {
        if finding.exposes {
            tracing::warn!(%source, %finding, "more is let in than a field asks for");
        } else {
            tracing::info!(%source, %finding, "a field has no effect");
        }
    }
    for finding in report.skipped.iter().filter(|finding| finding.exposes && !known.has(finding)) {
        tracing::warn!(%source, %finding, "more is let in than an object asks for");
    }
    log_unlisted(source, before, report);
    let known: BTreeSet<&String> = before.ignored_files.iter().collect();
    for entry in report.ignored_files.iter().filter(|entry| !known.contains(entry)) {
        tracing::info!(%source, entry, "an entry of the directory is not read");
    }
    tracing::debug!(%source, skipped = report.skipped.len(), "the manifests are read");
}

/// What is in force instead of manifests that are rejected.
fn instead_of_all(has_state: bool) -> &'static str {
    if has_state {
        "the last good state stays in force"
    } else {
        "none was accepted before, so that the datapath stays as it is until they are"
    }
}

/// Logs what `before` did not say of objects beyond those that are named one by one: how many they are, and the first.
fn log_unlisted(source: &str, before: &Report, report: &Report) {
    let known = Reported::of(before.exposing.iter().chain(&before.unsupported).chain(&before.skipped));
    let mut exposing = report.exposing.iter().filter(|finding| !known.has(finding));
    if let Some(first) = exposing.next() {
        let objects = exposing.count() + 1;
        tracing::warn!(source, objects, %first, "more is let in than further objects ask for; see `lb service list`");
    }
    let known = Reported::of(before.also_refused.iter().chain(&before.refused).map(|refusal| &refusal.finding));
    let mut refused = report.also_refused.iter().filter(|refusal| !known.has(&refusal.finding));
    if let Some(first) = refused.next() {
        let objects = refused.count() + 1;
        tracing::warn!(source, objects, %first, "further objects are refused; see `lb service list`");
    }
    let (before, findings) = (before.unlisted.sum(), report.unlisted.sum());
    if before != findings {
        tracing::warn!(source, findings, before, "the number of findings that are not named one by one changed");
    }
}

/// Logs files that are not read from now on, and those that are read again or gone.
fn log_unread(source: &str, before: &Report, report: &Report) {
    let known: BTreeSet<String> = before.unread.iter().map(ToString::to_string).collect();
    for unread in report.unread.iter().map(ToString::to_string).filter(|unread| !known.contains(unread)) {
        tracing::warn!(source, unread, "a manifest is rejected; every other one is in force");
    }
    let files = |report: &Report| report.unread.iter().map(|it| it.error.file().to_owned()).collect::<BTreeSet<_>>();
    for file in files(before).difference(&files(report)) {
        tracing::info!(source, file, "{}", unread_is_over(Path::new(file)));
    }
}

/// Why a file that could not be read is no longer among those that cannot.
fn unread_is_over(file: &Path) -> &'static str {
    if file.exists() { "a manifest is accepted again" } else { "a manifest that was rejected is gone" }
}

/// Findings, wherever their objects stand by now: what moves within a file, or to another one, is no news.
struct Reported<'a>(BTreeSet<FindingKey<'a>>);

/// Kind, namespace, name, field and message.
type FindingKey<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str);

impl<'a> Reported<'a> {
    fn of(findings: impl IntoIterator<Item = &'a Arc<Finding>>) -> Self {
        Self(findings.into_iter().map(|finding| Self::key(finding)).collect())
    }

    fn has(&self, finding: &Finding) -> bool {
        self.0.contains(&Reported::key(finding))
    }

    fn key(finding: &Finding) -> FindingKey<'_> {
        let object = &finding.object;
        (&object.kind, &object.namespace, &object.name, &finding.field, &finding.message)
    }
}

#[cfg(test)]
mod tests {
    use lb_k8s::{Manifests, Snapshot};

    use super::*;

    #[test]
    fn what_was_said_of_an_object_is_no_news_when_it_moves() {
        let report = |text: &str| {
            let source = lb_core::name::SourceName("test".into());
            Manifests::new(source).update(Snapshot::parse("web.yaml", text)).report
        };
        let service = |name: &str| {
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
                 spec: {{clusterIP: 10.96.0.1, loadBalancerSourceRange: [10.0.0.0/8], ports: [{{port: 80}}]}}}}\n"
            )
        };
        let (before, moved, other) =
            (report(&service("web")), report(&format!("# moved\n\n{}", service("web"))), report(&service("api")));
        assert!(!before.unsupported.is_empty(), "the test needs a field that is not carried out");
        assert_ne!(before.unsupported[0].position, moved.unsupported[0].position);
        let known = Reported::of(&before.unsupported);
        assert!(moved.unsupported.iter().all(|finding| known.has(finding)));
        assert!(!other.unsupported.iter().any(|finding| known.has(finding)));
    }

    fn of_sources(names: [&str; 2]) -> Notes {
        let unread = |name: &str| SourceNotes {
            name: SourceName(name.into()),
            place: String::new(),
            reads: 0,
            listed: false,
            report: Arc::default(),
        };
        Notes { sources: names.map(unread).into(), ..Notes::default() }
    }

    #[test]
    fn first_listings_end_for_every_source_that_is_named() {
        let mut notes = of_sources(["a", "b"]);
        let (a, b) = (SourceName("a".into()), SourceName("b".into()));
        notes.take_report(&b, None, &[Change::InitDone(a), Change::InitDone(b.clone())]);
        assert!(notes.sources.iter().all(|notes| notes.listed));
    }

    #[test]
    fn files_that_are_not_read_are_conditions_up_to_a_few() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..MAX_UNREAD + 2 {
            std::fs::write(directory.path().join(format!("{number}.yaml")), "replicas: 1\n").unwrap();
        }
        let report = Manifests::new(SourceName("x".into())).reload(&[directory.path()]).report;
        let mut notes = of_sources(["a", "b"]);
        notes.sources.truncate(1);
        notes.take_report(&SourceName("a".into()), Some(report), &[]);
        let said: Vec<String> = notes.rejections().collect();
        assert_eq!(said.len(), MAX_UNREAD + 1);
        assert!(said[0].contains("0.yaml:1:1: document 1: no Kubernetes object: "), "{said:?}");
        assert!(said[MAX_UNREAD].starts_with("2 more files or documents are not read"), "{said:?}");
        notes.take_report(&SourceName("a".into()), Some(Arc::default()), &[]);
        assert_eq!(notes.rejections().count(), 0);
    }

    #[test]
    fn each_source_that_is_rejected_is_named() {
        let rejected = || Manifests::new(SourceName("x".into())).update(Snapshot::parse("web.yaml", "{")).report;
        let mut notes = of_sources(["a", "b"]);
        notes.take_report(&SourceName("b".into()), Some(rejected()), &[]);
        notes.take_report(&SourceName("a".into()), Some(rejected()), &[]);
        let said: Vec<String> = notes.rejections().collect();
        assert!(said[0].starts_with("source a: web.yaml:1:") && said[1].starts_with("source b: "), "{said:?}");
    }

    #[test]
    fn a_service_without_backends_is_noted_until_its_endpoints_fit() {
        let mut model = Model::default();
        let mut manifests = Manifests::new(SourceName("x".into()));
        let service = "{apiVersion: v1, kind: Service, metadata: {name: web}, \
                       spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n";
        let slice = "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, labels: \
                     {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{port: 80}]}\n";
        let name = ServiceName::new("default", "web");
        let mut notes = Notes::default();
        let mut noted = |text: &str| {
            for change in manifests.update(Snapshot::parse("web.yaml", text)).changes {
                model.apply(change).unwrap();
            }
            notes.note_endpoints(&model, [name.clone()].into());
            notes.endpoint_remarks.get(&name).map(|remarks| remarks.join(" "))
        };
        assert!(noted(service).is_some_and(|why| why.contains("no EndpointSlice names it")));
        assert_eq!(noted(&format!("{service}{slice}")), None);
        assert!(noted(slice).is_some_and(|why| why.contains("there is no Service default/web")));
        assert_eq!(noted(""), None);
    }

    #[test]
    fn what_is_over_is_said_for_each_of_the_two_ways() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("web.yaml");
        assert_eq!(unread_is_over(&file), "a manifest that was rejected is gone");
        std::fs::write(&file, "").unwrap();
        assert_eq!(unread_is_over(&file), "a manifest is accepted again");

        let mut model = Model::default();
        let name = ServiceName::new("default", "web");
        assert_eq!(remark_is_over(&model, &name), "the service and its endpoint slices are gone");
        let mut web = lb_core::service::Service::new(name.clone());
        model.apply(Change::UpsertService(web.clone())).unwrap();
        assert_eq!(remark_is_over(&model, &name), "the service needs no endpoints any more");
        web.cluster_ips = vec!["10.96.0.1".parse().unwrap()];
        web.ports = vec![lb_core::service::ServicePort {
            name: "".into(),
            protocol: lb_core::addr::Protocol::Tcp,
            port: 80,
            node_port: None,
        }];
        model.apply(Change::UpsertService(web)).unwrap();
        assert_eq!(remark_is_over(&model, &name), "the service has endpoints that fit");
    }

    #[test]
    fn no_last_good_state_is_claimed_where_there_never_was_one() {
        assert_eq!(instead_of_all(true), "the last good state stays in force");
        assert!(instead_of_all(false).starts_with("none was accepted before"));
    }

    #[test]
    fn a_condition_of_a_source_ends_alone() {
        let mut notes = Notes::default();
        let (a, b) = (SourceName("a".into()), SourceName("b".into()));
        for source in [&a, &b] {
            notes.set_source_problem(source.clone(), "Shadowed", Some("why".into()));
        }
        notes.set_source_problem(a, "Shadowed", None);
        assert_eq!(notes.source_problems.keys().collect::<Vec<_>>(), [&(b, "Shadowed")]);
    }
}
