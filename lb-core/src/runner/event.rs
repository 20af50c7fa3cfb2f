//! What a runner has to say.

use alloc::vec::Vec;
use core::{fmt, time::Duration};

use super::Inspected;
use crate::{
    addr::{Family, FrontendAddr},
    datapath::{ApplyError, DatapathError, Evicted},
    model::{Claim, ModelError},
    name::{ServiceName, SourceName},
    plan::Plan,
    reconciler::FrontendStatus,
};

/// What a [`Runner`](super::Runner) has to say. `Display` says it in one line.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The datapath was observed, and its state is adopted: what is in it keeps its ids.
    Observed {
        /// Frontends in the datapath.
        frontends: usize,
        /// Backends in the datapath.
        backends: usize,
    },
    /// The datapath could not be observed.
    NotObserved {
        /// Why.
        error: DatapathError,
        /// How long until it is tried again.
        again_in: Duration,
    },
    /// The datapath refused its very first use for want of a privilege. A runner tries again, but that does not help.
    NotPermitted(DatapathError),
    /// A plan was carried out, as a whole or in part. What failed is tried again.
    Applied {
        /// The plan.
        plan: Plan,
        /// What failed, if anything did.
        outcome: Result<(), ApplyError>,
        /// How long the datapath took.
        took: Duration,
    },
    /// Established flows were ended whose backend left; see
    /// [`Reconciler::poll_evictions`](crate::reconciler::Reconciler::poll_evictions).
    Evicted {
        /// Their frontends.
        frontends: Vec<FrontendAddr>,
        /// What ended and what goes on. After an error that may pass, it is tried again.
        outcome: Result<Evicted, DatapathError>,
        /// How long the datapath took.
        took: Duration,
    },
    /// A frontend has another status; `None` if it is gone. Of several changes between two steps, only the last one is
    /// reported.
    Frontend(FrontendAddr, Option<FrontendStatus>),
    /// The first listing of every source is in the datapath, except for frontends that it refused.
    Ready,
    /// These sources are still in their first listing, so nothing is planned. It is said every ten seconds.
    Listing(Vec<SourceName>),
    /// Services have addresses of this family, and the node has none. A datapath that carries packets has nothing to
    /// translate a source to, and loses flows whose backend would answer past the node.
    NoNodeAddress(Family),
    /// The datapath was inspected.
    Inspected(Inspected),
    /// The datapath could not be inspected. It is tried again after a few seconds.
    NotInspected {
        /// Why.
        error: DatapathError,
        /// Whether the inspection was [asked for](super::Runner::inspect_now).
        asked: bool,
    },
    /// The model refused a change that was handed to a thread. What it serves is as before.
    Refused(ModelError),
    /// A service that was refused is served now, or the other way round, without a change of its own.
    Claim(ServiceName, Claim),
    /// Changes by others are not noticed before the next full inspection, or some may have been missed, and why.
    NotWatched(DatapathError),
    /// Changes by others are noticed again.
    Watched,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observed { frontends, backends } => {
                write!(f, "the datapath holds {frontends} frontends and {backends} backends, which are adopted")
            }
            Self::NotObserved { error, again_in } => {
                write!(f, "the datapath cannot be observed, next attempt in {again_in:?}: {}", error.report())
            }
            Self::NotPermitted(error) => write!(f, "using the datapath is not permitted: {}", error.report()),
            Self::Applied { plan, outcome: Ok(()), .. } => write!(f, "plan {} applied: {}", plan.id.0, plan.summary()),
            Self::Applied { plan, outcome: Err(error), .. } => write!(f, "plan {} applied in part: {error}", plan.id.0),
            Self::Evicted { outcome: Ok(evicted), .. } => evicted.fmt(f),
            Self::Evicted { outcome: Err(error), .. } => {
                write!(f, "flows whose backend left cannot be ended: {}", error.report())
            }
            Self::Frontend(addr, None) => write!(f, "frontend {addr} is gone"),
            Self::Frontend(addr, Some(status)) => write!(f, "frontend {addr} is {status}"),
            Self::Ready => f.write_str("every first listing is carried out"),
            Self::Listing(sources) => {
                f.write_str("nothing is planned before `Change::InitDone` ends the first listing of")?;
                sources.iter().try_for_each(|source| write!(f, " `{source}`"))
            }
            Self::NoNodeAddress(family) => write!(
                f,
                "services have {family} addresses and the node has none, so flows that need a translated source are \
                 lost: hand over `Change::SetNode` with an {family} address"
            ),
            Self::Inspected(inspected) => inspected.fmt(f),
            Self::NotInspected { error, .. } => write!(f, "the datapath cannot be inspected: {}", error.report()),
            Self::Refused(error) => write!(f, "a change is refused: {error}"),
            Self::Claim(service, claim) => write!(f, "service {service} {claim}"),
            Self::NotWatched(error) => write!(f, "changes by others may be missed: {}", error.report()),
            Self::Watched => f.write_str("changes by others are noticed again"),
        }
    }
}

impl fmt::Display for Inspected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.changed.iter().chain(&self.new).next() else {
            return write!(f, "inspected: {} differences, none of them new", self.found.len());
        };
        let (found, new, changed) = (self.found.len(), self.new.len() + self.unlisted, self.changed.len());
        write!(f, "inspected: {found} differences, {new} of them new, {changed} with another outcome, the first ")?;
        write!(f, "{}: {}", first.drift, first.outcome)
    }
}
