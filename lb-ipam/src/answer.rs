//! Answers: what a service gets.

use alloc::{borrow::Cow, string::String, vec::Vec};
use core::{fmt::Write as _, net::IpAddr};

use crate::{PoolName, Reason, Refusal};

/// What a service gets and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its addresses, in the order in which it asked for them or lists their families.
    pub granted: Vec<Granted>,
    /// What it asked for in vain.
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

    /// What its status should say: the addresses, and one condition that lists every refusal.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut message = String::new();
        for (at, refusal) in self.refused.iter().enumerate() {
            let comma = if at == 0 { "" } else { "; " };
            // A String takes everything.
            let _ = write!(message, "{comma}{refusal}");
        }
        let reason = self.refused.first().map_or(Reason::SATISFIED, |refusal| refusal.reason().as_str());
        let condition = Condition { satisfied: self.is_satisfied(), reason: reason.into(), message };
        Status { addresses: self.addresses().collect(), condition: Some(condition) }
    }
}

/// One address that a service has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The address.
    pub address: IpAddr,
    /// Whose it is; `None` for an address that is kept because the pool that it may be in cannot be read.
    pub pool: Option<PoolName>,
}

/// What the status of a service says, before or after.
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
    /// Every refusal, empty if there is none.
    pub message: String,
}
