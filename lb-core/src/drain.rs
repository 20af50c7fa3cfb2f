//! What becomes of established flows whose backend takes no new ones.

use core::{fmt, time::Duration};

use crate::Instant;

/// What becomes of established TCP and SCTP flows whose backend is gone, going, unhealthy, or taken out by an operator.
///
/// A backend that is well, but not for this node (by traffic policy or topology), keeps its flows whatever the policy.
/// UDP has no connections to keep: a flow moves to another backend as soon as its own takes no new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DrainPolicy {
    /// They stay with their backend for as long as they live.
    #[default]
    Keep,
    /// They stay for so long after the backend took its last new flow, then they are cut. At least a second.
    For(Duration),
    /// They are cut at once: the client is refused when it next sends.
    Cut,
}

impl DrainPolicy {
    /// Whether a flow may stay at `now` with a backend that takes no new flows since `since`; not known counts as `now`.
    #[must_use]
    pub fn keeps(self, since: Option<Instant>, now: Instant) -> bool {
        match self {
            Self::Keep => true,
            Self::For(time) => now.since(since.unwrap_or(now)) < time,
            Self::Cut => false,
        }
    }
}

impl fmt::Display for DrainPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::For(time) => write!(f, "{} s", time.as_secs()),
            Self::Cut => f.write_str("cut"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_drain_is_half_open() {
        let at = |seconds| Instant::new(Duration::from_secs(seconds));
        let policy = DrainPolicy::For(Duration::from_secs(30));
        assert!(policy.keeps(Some(at(100)), at(129)) && !policy.keeps(Some(at(100)), at(130)));
        assert!(policy.keeps(None, at(1000)), "not known since when");
        assert!(DrainPolicy::Keep.keeps(Some(at(0)), at(u64::MAX)) && !DrainPolicy::Cut.keeps(None, at(0)));
    }
}
