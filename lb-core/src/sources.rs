//! Source ranges: which clients a service lets in.

use alloc::vec::Vec;
use core::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::addr::Family;

/// The sources that a service lets in, or keeps out.
///
/// A prefix speaks of sources of its own family only. A list without a prefix of a family lets nobody of that family in
/// under [`Allow`](RangePolicy::Allow), and everybody under [`Deny`](RangePolicy::Deny).
///
/// ```
/// use lb_core::sources::{RangePolicy, SourceRanges};
///
/// let office = SourceRanges::new(RangePolicy::Allow, ["192.0.2.0/24".parse()?]);
/// assert!(office.admit("192.0.2.7".parse()?) && !office.admit("198.51.100.7".parse()?));
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRanges {
    policy: RangePolicy,
    prefixes: Vec<IpNet>,
}

/// What the prefixes of [`SourceRanges`] are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RangePolicy {
    /// Those who are let in.
    #[default]
    Allow,
    /// Those who are kept out.
    Deny,
}

impl SourceRanges {
    /// Ranges of these prefixes in any order. Host bits do not matter, and a prefix inside of another one adds nothing.
    #[must_use]
    pub fn new(policy: RangePolicy, prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let mut all: Vec<IpNet> = prefixes.into_iter().map(|prefix| prefix.trunc()).collect();
        // Of two prefixes one of which contains the other, the larger one comes first.
        all.sort_unstable_by_key(|prefix| (prefix.network(), prefix.prefix_len()));
        let mut prefixes: Vec<IpNet> = Vec::with_capacity(all.len());
        for prefix in all {
            if !prefixes.last().is_some_and(|last| last.contains(&prefix)) {
                prefixes.push(prefix);
            }
        }
        Self { policy, prefixes }
    }

    /// What the prefixes are.
    #[must_use]
    pub const fn policy(&self) -> RangePolicy {
        self.policy
    }

    /// The prefixes, without host bits, in order of address. None contains another one.
    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    /// The prefix that `source` is in.
    #[must_use]
    pub fn prefix_of(&self, source: IpAddr) -> Option<&IpNet> {
        self.prefixes.iter().find(|prefix| prefix.contains(&source))
    }

    /// Whether `source` is let in.
    #[must_use]
    pub fn admit(&self, source: IpAddr) -> bool {
        self.prefix_of(source).is_some() == (self.policy == RangePolicy::Allow)
    }

    /// Whether any source of `family` is kept out.
    #[must_use]
    pub fn restrict(&self, family: Family) -> bool {
        let mut of_family = self.prefixes.iter().filter(|prefix| Family::of(prefix.addr()) == family);
        match self.policy {
            RangePolicy::Allow => !of_family.any(|prefix| prefix.prefix_len() == 0),
            RangePolicy::Deny => of_family.next().is_some(),
        }
    }
}

impl RangePolicy {
    /// Lower-case name, as manifests write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for RangePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The policy and the prefixes, such as `allow 10.0.0.0/8, 192.0.2.0/24`; at most eight of them, and how many more.
impl fmt::Display for SourceRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(f, "{}", self.policy)?;
        for (n, prefix) in self.prefixes.iter().take(SHOWN).enumerate() {
            write!(f, "{} {prefix}", if n == 0 { "" } else { "," })?;
        }
        match self.prefixes.len().saturating_sub(SHOWN) {
            0 if self.prefixes.is_empty() => f.write_str(" nobody"),
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString};

    use super::*;

    fn ranges(policy: RangePolicy, prefixes: &[&str]) -> SourceRanges {
        SourceRanges::new(policy, prefixes.iter().map(|prefix| prefix.parse().unwrap()))
    }

    #[test]
    fn equal_ranges_are_written_in_one_way() {
        let one = ranges(RangePolicy::Allow, &["192.0.2.0/24", "10.1.2.3/8", "10.9.0.0/16", "::1/0", "10.0.0.0/8"]);
        let other = ranges(RangePolicy::Allow, &["fd00::/8", "::/0", "10.0.0.0/8", "192.0.2.0/24"]);
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "allow 10.0.0.0/8, 192.0.2.0/24, ::/0");
    }

    #[test]
    fn a_prefix_speaks_of_its_own_family() {
        let ip = |ip: &str| ip.parse().unwrap();
        let allow = ranges(RangePolicy::Allow, &["0.0.0.0/0"]);
        assert!(allow.admit(ip("192.0.2.1")) && !allow.admit(ip("2001:db8::1")));
        assert!(!allow.restrict(Family::V4) && allow.restrict(Family::V6));
        let deny = ranges(RangePolicy::Deny, &["::/0"]);
        assert!(deny.admit(ip("192.0.2.1")) && !deny.admit(ip("2001:db8::1")));
        assert!(!deny.restrict(Family::V4) && deny.restrict(Family::V6));
    }

    #[test]
    fn an_empty_list_allows_nobody_and_denies_nobody() {
        for (policy, admits, says) in
            [(RangePolicy::Allow, false, "allow nobody"), (RangePolicy::Deny, true, "deny nobody")]
        {
            let ranges = ranges(policy, &[]);
            assert_eq!(ranges.admit("192.0.2.1".parse().unwrap()), admits);
            assert_eq!((ranges.restrict(Family::V4), ranges.to_string().as_str()), (!admits, says));
        }
    }

    #[test]
    fn a_long_list_is_cut_where_people_read_it() {
        let many: Vec<_> = (0..10).map(|n| format!("10.{n}.0.0/16").parse().unwrap()).collect();
        let says = SourceRanges::new(RangePolicy::Deny, many).to_string();
        assert!(says.starts_with("deny 10.0.0.0/16, 10.1.0.0/16, ") && says.ends_with(" and 2 more"), "{says}");
    }
}
