//! Which families a service gets.

use alloc::vec::Vec;

use lb_core::Family;

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

/// What follows from a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FamiliesWanted {
    /// One address of each of these.
    pub(crate) wanted: Vec<Family>,
    /// These cannot be had, because they are not enabled.
    pub(crate) disabled: Vec<Family>,
}

/// The families that a service gets addresses of, and those that it must be told it cannot have.
///
/// One family is taken as it is listed, enabled or not: that it has no pool says more than that it is disabled. Of
/// preferred families a disabled one is left out in silence as long as another is left. A required one never is.
pub(crate) fn families_wanted(policy: FamilyPolicy, listed: &[Family], settings: &Settings) -> FamiliesWanted {
    let enabled = |family: &Family| settings.enables(*family);
    let both = || if listed.is_empty() { FAMILIES.to_vec() } else { deduplicated(listed) };
    match policy {
        FamilyPolicy::SingleStack => match listed.first().copied().or_else(|| FAMILIES.into_iter().find(enabled)) {
            Some(family) => FamiliesWanted { wanted: [family].into(), disabled: Vec::new() },
            None => FamiliesWanted { wanted: Vec::new(), disabled: FAMILIES.to_vec() },
        },
        FamilyPolicy::PreferDualStack => {
            let (wanted, disabled): (Vec<_>, Vec<_>) = both().into_iter().partition(enabled);
            let disabled = if wanted.is_empty() { disabled } else { Vec::new() };
            FamiliesWanted { wanted, disabled }
        }
        FamilyPolicy::RequireDualStack => {
            let both = both();
            let rest = FAMILIES.into_iter().filter(|family| !both.contains(family));
            let (wanted, disabled) = both.iter().copied().chain(rest).partition(enabled);
            FamiliesWanted { wanted, disabled }
        }
    }
}

fn deduplicated(listed: &[Family]) -> Vec<Family> {
    let mut families = Vec::with_capacity(FAMILIES.len());
    for family in listed {
        if !families.contains(family) {
            families.push(*family);
        }
    }
    families
}
