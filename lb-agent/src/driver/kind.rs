//! Which datapath.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What carries the packets: the value that a change of datapath changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatapathKind {
    /// Programs on sockets and devices; Linux 6.6 or newer.
    Ebpf,
    /// One flat ruleset; everything that grows is a map or set element.
    Nftables,
    /// Chains per service and endpoint, as kube-proxy writes them, through iptables-nft.
    IptablesNft,
    /// The same through iptables-legacy.
    IptablesLegacy,
    /// Remembers everything and carries nothing; needs no privilege.
    Memory,
}

impl DatapathKind {
    /// Those that put something into the kernel.
    pub const KERNEL: [Self; 4] = [Self::Ebpf, Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];

    /// As the command line writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for DatapathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
