//! Answers: what a service gets and what it does not.

mod reason;
pub(crate) mod refusal;
pub(crate) mod refusing_pools;

use alloc::{borrow::Cow, string::String, vec::Vec};
use core::{fmt::Write as _, net::IpAddr};

pub use reason::Reason;
pub use refusal::{Cause, PoolRefusal, Refusal, Requested, ReservedBy};
pub use refusing_pools::RefusingPools;

use crate::PoolName;

/// The result of a reconcile for one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its addresses, in the order in which it asked for them or lists their families.
    pub granted: Vec<Allocation>,
    /// The requests that were refused.
    pub refused: Vec<Refusal>,
}

impl Answer {
    /// Whether it got everything that it asked for.
    #[must_use]
    pub const fn is_satisfied(&self) -> bool {
        self.refused.is_empty()
    }

    /// Its addresses alone.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.granted.iter().map(|granted| granted.address)
    }

    /// The status to write: the addresses, and one condition. The condition lists every refusal, or as many as
    /// [`Condition::MAX_MESSAGE`] allows and the number of the others.
    #[must_use]
    pub fn status(&self) -> Status {
        let reason = self.refused.first().map_or(Reason::SATISFIED, |refusal| refusal.reason().as_str());
        let condition =
            Condition { satisfied: self.is_satisfied(), reason: reason.into(), message: message(&self.refused) };
        Status { addresses: self.addresses().collect(), condition: Some(condition) }
    }
}

/// The refusals as sentences. The first is cut if it does not fit by itself.
fn message(refused: &[Refusal]) -> String {
    /// Bytes that are kept for the number of omitted refusals.
    const REST: usize = 64;
    let mut message = String::new();
    for (at, refusal) in refused.iter().enumerate() {
        let end = message.len();
        // A String takes everything.
        let _ = write!(message, "{}{refusal}", if at == 0 { "" } else { "; " });
        let rest = if at + 1 == refused.len() { 0 } else { REST };
        if message.len() <= Condition::MAX_MESSAGE - rest {
            continue;
        }
        let end = if at == 0 { message.floor_char_boundary(Condition::MAX_MESSAGE - REST) } else { end };
        message.truncate(end);
        message.push_str(if at == 0 { "\u{2026}" } else { "" });
        let left_out = refused.len() - at.max(1);
        if left_out > 0 {
            let _ = write!(message, "; and {left_out} more refused");
        }
        break;
    }
    message
}

/// One address that a service has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The address.
    pub address: IpAddr,
    /// Its pool; `None` for an address that is kept because the pool that it may be in cannot be read.
    pub pool: Option<PoolName>,
}

/// The status of a service, as read or to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The condition `cilium.io/IPAMRequestSatisfied`, if there is one.
    pub condition: Option<Condition>,
}

impl Status {
    /// A status with addresses and nothing else, as other allocators leave it.
    #[must_use]
    pub fn of(addresses: &[IpAddr]) -> Self {
        Self { addresses: addresses.to_vec(), condition: None }
    }

    /// Whether writing `other` over it would change nothing but the order of addresses.
    pub(crate) fn says(&self, other: &Self) -> bool {
        let sorted = |status: &Self| {
            let mut addresses = status.addresses.clone();
            addresses.sort_unstable();
            addresses
        };
        self.condition == other.condition && (self.addresses == other.addresses || sorted(self) == sorted(other))
    }
}

/// Whether a service is satisfied, as its status says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether it got everything that it asked for.
    pub satisfied: bool,
    /// [`Reason::SATISFIED`], or the code of the first refusal.
    pub reason: Cow<'static, str>,
    /// Every refusal, empty if there is none. At most [`MAX_MESSAGE`](Self::MAX_MESSAGE) bytes.
    pub message: String,
}

impl Condition {
    /// Most bytes of a message: as many characters Kubernetes takes.
    pub const MAX_MESSAGE: usize = 32 << 10;
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec::Vec};

    use super::*;
    use crate::{Cause, Requested};

    fn refused(texts: impl IntoIterator<Item = String>) -> Vec<Refusal> {
        texts.into_iter().map(|by| Refusal { asked: Requested::More, cause: Cause::Claimed { by } }).collect()
    }

    /// How long the texts of 256 refusals are, and what the message ends in.
    #[test]
    fn a_message_says_how_many_refusals_it_leaves_out() {
        let sentence = format!("{}", refused([String::new()])[0]).len();
        let fits = (Condition::MAX_MESSAGE + 2) / 256 - 2 - sentence;
        for length in [1, fits, fits + 1, 2 * fits, 400, 30_000] {
            let message = message(&refused((0..256).map(|_| "x".repeat(length))));
            let said = message.matches("answers for it").count();
            assert!(message.len() <= Condition::MAX_MESSAGE, "{length}: {}", message.len());
            assert_eq!(said == 256, length <= fits, "{length}: {said}");
            // Nothing is left out that there is room for.
            assert!(said == 256 || message.len() + length + sentence + 64 > Condition::MAX_MESSAGE, "{length}: {said}");
            let end = format!("; and {} more refused", 256 - said);
            assert!(message.ends_with(if said == 256 { "clear the conflict" } else { &end }), "{length}: {said}");
        }
    }

    #[test]
    fn one_refusal_that_is_too_long_is_cut_between_two_characters() {
        for start in ["", "a", "ab", "abc"] {
            let texts = || [format!("{start}{}", "\u{1F980}".repeat(20_000)), "b".into()];
            let cut = message(&refused(texts()));
            assert!(cut.len() <= Condition::MAX_MESSAGE && cut.len() > Condition::MAX_MESSAGE - 100, "{}", cut.len());
            assert!(cut.ends_with("\u{1F980}\u{2026}; and 1 more refused"), "{start}");
            let alone = message(&refused(texts().into_iter().take(1)));
            assert!(alone.ends_with("\u{1F980}\u{2026}"), "{start}");
        }
    }

    #[test]
    fn what_is_no_address_is_repeated_in_part() {
        let refusal = Refusal { asked: Requested::Text("\u{fc}".repeat(200)), cause: Cause::Unreadable };
        let start = format!("`{}\u{2026}`: is not an IP address", "\u{fc}".repeat(128));
        assert!(message(&[refusal]).starts_with(&start));
    }

    #[test]
    fn what_fits_exactly_is_not_cut() {
        let sentence = message(&refused([String::new()])).len();
        let text = |more: usize| "x".repeat(Condition::MAX_MESSAGE - sentence + more);
        assert_eq!(message(&refused([text(0)])).len(), Condition::MAX_MESSAGE);
        assert!(message(&refused([text(1)])).ends_with('\u{2026}'));
    }
}
