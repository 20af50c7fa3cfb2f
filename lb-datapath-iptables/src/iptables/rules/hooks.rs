//! Jumps from built-in chains to those of lb.

use crate::iptables::rules::names::{FILTER, POSTROUTING, SERVICES};

/// A jump from a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    NatPrerouting,
    NatOutput,
    NatPostrouting,
    FilterInput,
    FilterForward,
    FilterOutput,
}

impl Hook {
    pub(crate) const ALL: [Self; 6] = [
        Self::NatPrerouting,
        Self::NatOutput,
        Self::NatPostrouting,
        Self::FilterInput,
        Self::FilterForward,
        Self::FilterOutput,
    ];

    pub(crate) const fn in_filter(self) -> bool {
        match self {
            Self::NatPrerouting | Self::NatOutput | Self::NatPostrouting => false,
            Self::FilterInput | Self::FilterForward | Self::FilterOutput => true,
        }
    }

    /// The built-in chain.
    pub(crate) const fn chain(self) -> &'static str {
        match self {
            Self::NatPrerouting => "PREROUTING",
            Self::NatOutput | Self::FilterOutput => "OUTPUT",
            Self::NatPostrouting => "POSTROUTING",
            Self::FilterInput => "INPUT",
            Self::FilterForward => "FORWARD",
        }
    }

    /// Where it leads.
    pub(crate) const fn target(self) -> &'static str {
        match self {
            Self::NatPrerouting | Self::NatOutput => SERVICES,
            Self::NatPostrouting => POSTROUTING,
            Self::FilterInput | Self::FilterForward | Self::FilterOutput => FILTER,
        }
    }

    /// The rule without its chain. Only the first packet of a flow needs the filter.
    pub(crate) const fn rule(self) -> &'static str {
        match self {
            Self::NatPrerouting | Self::NatOutput => "-j LB-SERVICES",
            Self::NatPostrouting => "-j LB-POSTROUTING",
            Self::FilterInput | Self::FilterForward | Self::FilterOutput => "-m conntrack --ctstate NEW -j LB-FILTER",
        }
    }
}
