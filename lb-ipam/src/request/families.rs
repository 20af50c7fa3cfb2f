//! Which families a service gets.

use lb_core::addr::Family;

use crate::{Settings, range::FAMILIES};

/// How many families a service wants, as Kubernetes' `ipFamilyPolicy` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FamilyPolicy {
    /// One: the first that it lists, or else the first that is enabled. Also the meaning of no policy at all.
    #[default]
    SingleStack,
    /// Every enabled one of those it lists, or of both.
    PreferDualStack,
    /// Both.
    RequireDualStack,
}

/// Families in an order, each at most once. Lives on the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FamilyList([Option<Family>; 2]);

impl FamilyList {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Family> + '_ {
        self.0.iter().flatten().copied()
    }

    pub(crate) const fn first(&self) -> Option<Family> {
        self.0[0]
    }

    pub(crate) fn len(&self) -> usize {
        self.iter().count()
    }

    pub(crate) fn contains(&self, family: Family) -> bool {
        self.0.contains(&Some(family))
    }
}

impl Extend<Family> for FamilyList {
    fn extend<I: IntoIterator<Item = Family>>(&mut self, families: I) {
        for family in families {
            let place = if self.contains(family) { None } else { self.0.iter_mut().find(|place| place.is_none()) };
            place.map(|place| place.replace(family));
        }
    }
}

impl FromIterator<Family> for FamilyList {
    fn from_iter<I: IntoIterator<Item = Family>>(families: I) -> Self {
        let mut list = Self::default();
        list.extend(families);
        list
    }
}

/// The consequence of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FamiliesWanted {
    /// One address of each of these.
    pub(crate) wanted: FamilyList,
    /// These cannot be had, because they are not enabled.
    pub(crate) disabled: FamilyList,
}

/// The families that a service gets addresses of, and those whose refusal its status reports.
///
/// One family is taken as it is listed, enabled or not: that it has no pool says more than that it is disabled. Of
/// preferred families a disabled one is left out in silence as long as another is left. A required one never is.
pub(crate) fn families_wanted(policy: FamilyPolicy, listed: &[Family], settings: &Settings) -> FamiliesWanted {
    let enabled = |family: &Family| settings.enables(*family);
    let preferred = if listed.is_empty() { &FAMILIES } else { listed };
    let (wanted, disabled): (FamilyList, FamilyList) = match policy {
        FamilyPolicy::SingleStack => {
            let one = listed.first().copied().or_else(|| FAMILIES.into_iter().find(enabled));
            let none = if one.is_none() { FAMILIES.into_iter().collect() } else { FamilyList::default() };
            return FamiliesWanted { wanted: one.into_iter().collect(), disabled: none };
        }
        FamilyPolicy::PreferDualStack => preferred.iter().copied().partition(enabled),
        FamilyPolicy::RequireDualStack => preferred.iter().copied().chain(FAMILIES).partition(enabled),
    };
    let in_silence = policy == FamilyPolicy::PreferDualStack && wanted.first().is_some();
    FamiliesWanted { wanted, disabled: if in_silence { FamilyList::default() } else { disabled } }
}
