//! What the agent knows beyond the reconciler: what sources say, and what is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use lb_core::{
    model::Change,
    name::{SliceName, SourceName},
    plan::PlanId,
};
use lb_k8s::{Finding, Report};

use crate::api::{Manifests, Source};

/// What the reconciler does not know.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) ready: bool,
    /// In the order of precedence.
    pub(super) sources: Vec<SourceNotes>,
    /// What all sources together did not take over.
    pub(super) report: Arc<Report>,
    /// Slices that the model refused, and why.
    pub(super) refused_slices: BTreeMap<SliceName, String>,
    /// Conditions of the agent, by type.
    pub(super) problems: BTreeMap<&'static str, String>,
    /// Conditions of sources, by source and type.
    pub(super) source_problems: BTreeMap<(SourceName, &'static str), String>,
    pub(super) devices: Vec<String>,
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
        log_report(source, &notes.report, &report);
        notes.reads += 1;
        notes.report = report;
        self.report = match &*self.sources {
            [only] => Arc::clone(&only.report),
            several => Arc::new(joined(several.iter().map(|notes| &*notes.report))),
        };
    }

    /// Why sources are rejected as a whole: each of them, by name if there are several.
    pub(super) fn rejections(&self) -> impl Iterator<Item = String> {
        let is_several = self.sources.len() > 1;
        self.sources.iter().filter_map(move |notes| {
            let error = notes.report.rejected.as_ref()?;
            Some(if is_several { format!("source {}: {error}", notes.name) } else { error.to_string() })
        })
    }
}

/// What several sources did not take over; who is rejected as a whole is asked of each.
fn joined<'a>(reports: impl Iterator<Item = &'a Report>) -> Report {
    let mut all = Report::default();
    for report in reports {
        all.skipped.extend_from_slice(&report.skipped);
        all.unsupported.extend_from_slice(&report.unsupported);
        all.refused.extend_from_slice(&report.refused);
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
        skipped: lines(&report.skipped),
        unsupported: lines(&report.unsupported),
        refused: lines(&report.refused),
        ignored_files: report.ignored_files.clone(),
    }
}

pub(super) fn source(notes: &SourceNotes) -> Source {
    let report = &notes.report;
    Source {
        name: notes.name.0.to_string(),
        place: notes.place.clone(),
        listed: notes.listed,
        reads: notes.reads,
        rejected: report.rejected.as_ref().map(ToString::to_string),
        skipped: report.skipped.len(),
        unsupported: report.unsupported.len(),
        refused: report.refused.len(),
    }
}

/// Logs what `before` did not say.
fn log_report(source: &SourceName, before: &Report, report: &Report) {
    let source = &source.0;
    if let Some(error) = &report.rejected {
        tracing::warn!(%source, %error, "the manifests are rejected; the last good state stays in force");
        return;
    }
    let known = Reported::of(before.refused.iter().map(|refusal| &refusal.finding));
    for refusal in report.refused.iter().filter(|refusal| !known.has(&refusal.finding)) {
        tracing::warn!(%source, %refusal, "an object is refused");
    }
    let known = Reported::of(&before.unsupported);
    for finding in report.unsupported.iter().filter(|finding| !known.has(finding)) {
        tracing::info!(%source, %finding, "a field has no effect");
    }
    tracing::debug!(%source, skipped = report.skipped.len(), "the manifests are read");
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
                 spec: {{clusterIP: 10.96.0.1, loadBalancerSourceRanges: [10.0.0.0/8], ports: [{{port: 80}}]}}}}\n"
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
    fn each_source_that_is_rejected_is_named() {
        let rejected = || Manifests::new(SourceName("x".into())).update(Snapshot::parse("web.yaml", "{")).report;
        let mut notes = of_sources(["a", "b"]);
        notes.take_report(&SourceName("b".into()), Some(rejected()), &[]);
        notes.take_report(&SourceName("a".into()), Some(rejected()), &[]);
        let said: Vec<String> = notes.rejections().collect();
        assert!(said[0].starts_with("source a: web.yaml:1:") && said[1].starts_with("source b: "), "{said:?}");
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
