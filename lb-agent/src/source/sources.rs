//! All sources of an agent and the allocator that serves them, and the thread that brings their news to the engine.

use std::{
    collections::BTreeSet,
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_core::{
    model::Change,
    name::{ServiceName, SourceName},
};
use lb_ipam::{Edit, PoolName, Timestamp};
use lb_k8s::Report;

use super::{
    Grant, News, Preview, Source, SourceError, Waker,
    listing::FirstListings,
    precedence::{Effective, Precedence},
    unread::Unread,
    waker::Bell,
};
use crate::{
    allocation::{self, Allocation, PlannedEdits, Settled},
    api::PoolPlan,
    engine::Event,
    host::clock::timestamp,
};

/// Most objects that a condition names.
const MAX_NAMED: usize = 5;

/// News of one source for the engine, addresses included.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The source.
    pub(crate) source: SourceName,
    /// Changes of the model, those that addresses make among them.
    pub(crate) changes: Vec<Change>,
    /// What was not taken over; `None` if it is as it was.
    pub(crate) report: Option<Arc<Report>>,
    /// Conditions of sources that begin or, without a message, end.
    pub(crate) conditions: Vec<(SourceName, &'static str, Option<String>)>,
    /// Dropped with the delivery. Nothing more is read until then, so that a datapath that is slower than edits does
    /// not make news pile up.
    pub(crate) _accepted: Option<Sender<()>>,
}

/// Sources and allocator. Polled by one thread, and asked by those that answer.
///
/// Whoever takes both locks takes that of the sources first.
pub(crate) struct Sources {
    sources: Mutex<Following>,
    allocation: Mutex<Allocation>,
    bell: Arc<Bell>,
}

/// The sources and how far they are.
struct Following {
    sources: Vec<Box<dyn Source>>,
    names: Vec<SourceName>,
    /// Sources whose first listing is not complete.
    listing: BTreeSet<usize>,
    /// When the first of them had news. The order in which they are read says nothing about who comes first.
    began: Option<Timestamp>,
    /// Changes of first listings, which wait for each other: until all are known, nobody can say who gets an address.
    first: FirstListings,
    /// What could never be read.
    unread: Unread,
    /// Only of several sources; one has nobody to compete with.
    precedence: Option<Precedence>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Sources {
    /// Sources, the first one before the others, and the allocator that serves them.
    pub(crate) fn new(sources: Vec<Box<dyn Source>>, allocation: Allocation) -> Self {
        let names: Vec<SourceName> = sources.iter().map(|source| source.name()).collect();
        let following = Following {
            listing: (0..sources.len()).collect(),
            began: None,
            first: FirstListings::default(),
            unread: Unread::default(),
            precedence: (sources.len() > 1).then(Precedence::default),
            sources,
            names,
        };
        Self { sources: Mutex::new(following), allocation: Mutex::new(allocation), bell: Arc::default() }
    }

    /// Begins to follow every source.
    ///
    /// # Errors
    /// When two sources have one name, or what the first source that cannot start says.
    pub(crate) fn start(&self) -> Result<(), SourceError> {
        let mut following = self.following();
        let mut names = BTreeSet::new();
        if let Some(twice) = following.names.iter().find(|name| !names.insert(*name)) {
            return Err(format!("two sources are named `{twice}`: give each of them a name of its own").into());
        }
        for (index, source) in following.sources.iter_mut().enumerate() {
            let waker = Waker::new(Arc::clone(&self.bell), index);
            source.start(waker.clone())?;
            waker.wake();
        }
        Ok(())
    }

    /// Brings news to the engine, on a thread of its own, until nobody takes it or [`close`](Self::close).
    pub(crate) fn follow(self: &Arc<Self>, events: Sender<Event>) -> io::Result<JoinHandle<()>> {
        let sources = Arc::clone(self);
        let follow = move || {
            let _last_words = LastWords { sources: &sources, events: &events };
            while !sources.bell.is_closed() && sources.step(sources.bell.wait(sources.patience()), &events) {}
            sources.close();
        };
        thread::Builder::new().name("sources".into()).spawn(follow)
    }

    /// Has every source look at everything once more.
    pub(crate) fn reload(&self) {
        let mut following = self.following();
        for (index, source) in following.sources.iter_mut().enumerate() {
            source.reload();
            Waker::new(Arc::clone(&self.bell), index).wake();
        }
    }

    /// Ends the thread that follows; sources learn it when they wake it.
    pub(crate) fn close(&self) {
        self.bell.close();
    }

    /// Polls sources that have news, or does what is due; false if nobody takes it.
    fn step(&self, woken: BTreeSet<usize>, events: &Sender<Event>) -> bool {
        if woken.is_empty() {
            return self.poll_allocation().is_none_or(|delivery| deliver(delivery, events));
        }
        woken.into_iter().all(|index| self.poll(index).is_none_or(|delivery| deliver(delivery, events)))
    }

    /// What one source has to say and what its services get; `None` if it has no news.
    pub(crate) fn poll(&self, index: usize) -> Option<Delivery> {
        let mut following = self.following();
        // Reading takes its time, and nobody who asks about addresses waits for it.
        let news = following.sources.get_mut(index)?.poll();
        if news.is_empty() {
            return None;
        }
        let News { changes, edits, report, conditions } = news;
        if let Some(report) = &report {
            following.unread.note(index, report);
        }
        let Effective { changes, edits } = following.effective(index, changes, edits);
        let changes = self.allocate(&mut following, index, changes, edits, timestamp());
        let source = following.names[index].clone();
        let conditions = conditions.into_iter().map(|(kind, message)| (source.clone(), kind, message));
        let conditions = conditions.chain(following.shadow_conditions()).collect();
        Some(Delivery { source, changes, report, conditions, _accepted: None })
    }

    /// What has to be done by now though no source has news.
    pub(crate) fn poll_allocation(&self) -> Option<Delivery> {
        let mut following = self.following();
        let settled = self.allocation().poll(timestamp())?;
        let changes = following.carry_out(&settled);
        let source = following.names.first()?.clone();
        let is_news = !changes.is_empty();
        is_news.then(|| Delivery { source, changes, report: None, conditions: Vec::new(), _accepted: None })
    }

    /// How long there is nothing to [`poll_allocation`](Self::poll_allocation).
    fn patience(&self) -> Option<Duration> {
        self.allocation().patience(timestamp())
    }

    /// Lets the allocator see news, and returns the changes with what services get.
    fn allocate(
        &self,
        following: &mut Following,
        index: usize,
        mut changes: Vec<Change>,
        mut edits: Vec<Edit>,
        now: Timestamp,
    ) -> Vec<Change> {
        let now = if following.listing.is_empty() { now } else { *following.began.get_or_insert(now) };
        let mut allocation = self.allocation();
        edits.extend(following.unread.end(&changes, &edits));
        let is_due = allocation.handle_edits(edits, &changes, now);
        if following.listing.is_empty() {
            if is_due {
                let settled = allocation.settle(now);
                drop(allocation);
                changes.extend(following.carry_out(&settled));
            }
            changes.extend(following.unread.let_frontends_go());
            return changes;
        }
        if changes.iter().any(|change| matches!(change, Change::InitDone(_))) {
            following.listing.remove(&index);
        }
        following.first.add(changes);
        if !following.listing.is_empty() {
            return Vec::new();
        }
        let kept = following.unread.keep(allocation.holders(), &following.first.services());
        allocation.handle_edits(kept, &[], now);
        let settled = allocation.settle_first(following.unread.is_empty(), now);
        drop(allocation);
        let mut granted = following.carry_out(&settled);
        granted.extend(following.unread.keep_frontends());
        following.first.finish(granted)
    }

    /// What would happen if these manifests joined the first source that holds manifests, and these pools went.
    ///
    /// # Errors
    /// When they would be rejected as a whole, or make no sense together, and why.
    pub(crate) fn plan(&self, file: &str, text: &str, removed: &[PoolName]) -> Result<PoolPlan, String> {
        let following = self.following();
        let preview = following.sources.iter().find_map(|source| source.preview(file, text));
        let Preview { edits, report } =
            preview.unwrap_or_else(|| Err("no source of this agent holds manifests".into()))?;
        if let Some(both) = allocation::contradiction(&edits, removed) {
            return Err(format!("pool `{both}` is in {file} and is to be removed: it can only be one of the two"));
        }
        let unread = report.unread.iter().map(ToString::to_string);
        let refused = report.refused.iter().chain(&report.also_refused);
        let planned = PlannedEdits {
            edits: removed.iter().cloned().map(Edit::RemovePool).chain(edits).collect(),
            refused: unread.chain(refused.map(ToString::to_string)).collect(),
            unsupported: report.unsupported.iter().chain(&report.exposing).map(ToString::to_string).collect(),
        };
        Ok(self.allocation().plan(planned, timestamp()))
    }

    pub(crate) fn allocation(&self) -> MutexGuard<'_, Allocation> {
        self.allocation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn following(&self) -> MutexGuard<'_, Following> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Following {
    /// What counts of what a source says.
    fn effective(&mut self, index: usize, changes: Vec<Change>, edits: Vec<Edit>) -> Effective {
        // The engine has said `InitStart` for every source. The end of a listing comes last, under the name of the
        // source.
        let is_marker = |change: &Change| matches!(change, Change::InitStart(_) | Change::InitDone(_));
        let is_done = changes.iter().any(|change| matches!(change, Change::InitDone(_)));
        let changes: Vec<Change> = changes.into_iter().filter(|change| !is_marker(change)).collect();
        let mut effective = match &mut self.precedence {
            Some(precedence) => precedence.take(index, changes, edits),
            None => Effective { changes, edits },
        };
        effective.changes.extend(is_done.then(|| Change::InitDone(self.names[index].clone())));
        effective
    }

    /// Tells every source what its services get, and returns the changes that this makes. A source does not hear of
    /// services that another source has: it would take their addresses for those of its own object.
    fn carry_out(&mut self, settled: &Settled) -> Vec<Change> {
        let mut all = Vec::new();
        for index in 0..self.sources.len() {
            let grants: Vec<Grant> = settled.grants.iter().filter(|it| self.has(index, &it.service)).cloned().collect();
            let statuses: Vec<_> = settled.statuses.iter().filter(|(name, _)| self.has(index, name)).cloned().collect();
            let source = &mut self.sources[index];
            let changes = source.grant(&grants);
            if !statuses.is_empty() {
                source.publish(&statuses);
            }
            all.extend(self.effective(index, changes, Vec::new()).changes);
        }
        all
    }

    /// Whether the service of this name is that of this source, as far as it is known.
    fn has(&self, index: usize, service: &ServiceName) -> bool {
        self.precedence.as_ref().is_none_or(|it| it.owner_of_service(service) == Some(index))
    }

    /// Conditions that name objects which are not served because a source before theirs has one of the same name.
    fn shadow_conditions(&self) -> Vec<(SourceName, &'static str, Option<String>)> {
        let Some(precedence) = &self.precedence else { return Vec::new() };
        let shadowed = precedence.shadowed();
        let of = |(index, name): (usize, &SourceName)| {
            let message = shadowed.get(&index).map(|objects| shadowed_by_name(name, objects));
            (name.clone(), "Shadowed", message)
        };
        self.names.iter().enumerate().map(of).collect()
    }
}

fn shadowed_by_name(source: &SourceName, objects: &[String]) -> String {
    let named = objects.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = match objects.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "source {source}: {named}{more} are not served, because a source before it has objects of the same names; rename \
         one of each two"
    )
}

/// Says so if a source panics, since the thread ends with it.
struct LastWords<'a> {
    sources: &'a Sources,
    events: &'a Sender<Event>,
}

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let Some(source) = self.sources.following().names.first().cloned() else { return };
        let problem = "a source panicked, and no source is followed any more: start the agent again".to_owned();
        let conditions = vec![(source.clone(), "SourcesNotFollowed", Some(problem))];
        let last = Delivery { source, changes: Vec::new(), report: None, conditions, _accepted: None };
        // Nobody listens when the agent is on its way out already.
        drop(self.events.send(Event::News(last)));
    }
}

/// Waits until the engine has taken the news; false if it never will.
fn deliver(delivery: Delivery, events: &Sender<Event>) -> bool {
    let (accepted, taken) = mpsc::channel();
    let is_sent = events.send(Event::News(Delivery { _accepted: Some(accepted), ..delivery })).is_ok();
    // Nothing is ever sent: the other end is dropped.
    let _ = taken.recv();
    is_sent
}

#[cfg(test)]
mod tests;
