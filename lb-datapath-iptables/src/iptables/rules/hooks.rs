//! Jumps from built-in chains to those of lb.

use crate::iptables::rules::names::{FILTER, INVALID, INVALID_FORWARD, POSTROUTING, SERVICES};

/// A jump from a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    NatPrerouting,
    NatOutput,
    NatPostrouting,
    FilterInput,
    FilterForward,
    FilterOutput,
    InvalidInput,
    InvalidForward,
    InvalidOutput,
}

impl Hook {
    pub(crate) const ALL: [Self; 9] = [
        Self::NatPrerouting,
        Self::NatOutput,
        Self::NatPostrouting,
        Self::FilterInput,
        Self::FilterForward,
        Self::FilterOutput,
        Self::InvalidInput,
        Self::InvalidForward,
        Self::InvalidOutput,
    ];

    pub(crate) const fn in_filter(self) -> bool {
        match self {
            Self::NatPrerouting | Self::NatOutput | Self::NatPostrouting => false,
            Self::FilterInput | Self::FilterForward | Self::FilterOutput => true,
            Self::InvalidInput | Self::InvalidForward | Self::InvalidOutput => true,
        }
    }

    /// Whether it decides on packets that conntrack can make nothing of, so that frontends work without it.
    pub(crate) const fn is_for_invalid(self) -> bool {
        matches!(self, Self::InvalidInput | Self::InvalidForward | Self::InvalidOutput)
    }

    /// The built-in chain.
    pub(crate) const fn chain(self) -> &'static str {
        match self {
            Self::NatPrerouting => "PREROUTING",
            Self::NatOutput | Self::FilterOutput | Self::InvalidOutput => "OUTPUT",
            Self::NatPostrouting => "POSTROUTING",
            Self::FilterInput | Self::InvalidInput => "INPUT",
            Self::FilterForward | Self::InvalidForward => "FORWARD",
        }
    }

    /// Where it leads.
    pub(crate) const fn target(self) -> &'static str {
        match self {
            Self::NatPrerouting | Self::NatOutput => SERVICES,
            Self::NatPostrouting => POSTROUTING,
            Self::FilterInput | Self::FilterForward | Self::FilterOutput => FILTER,
            Self::InvalidInput | Self::InvalidOutput => INVALID,
            Self::InvalidForward => INVALID_FORWARD,
        }
    }

    /// The rule without its chain. Only the first packet of a flow needs the filter.
    pub(crate) const fn rule(self) -> &'static str {
        match self {
            Self::NatPrerouting | Self::NatOutput => "-j LB-SERVICES",
            Self::NatPostrouting => "-j LB-POSTROUTING",
            Self::FilterInput | Self::FilterForward | Self::FilterOutput => "-m conntrack --ctstate NEW -j LB-FILTER",
            Self::InvalidInput | Self::InvalidOutput => "-m conntrack --ctstate INVALID -j LB-INVALID",
            Self::InvalidForward => "-m conntrack --ctstate INVALID -j LB-INVALID-FORWARD",
        }
    }
}
