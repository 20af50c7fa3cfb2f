//! The use cases and their manifests.

use clap::ValueEnum;
use include_dir::{Dir, include_dir};
use lb_agent::driver::{self, DatapathKind};
use lb_k8s::Snapshot;
use serde::Serialize;

use super::error::RunError;

static MANIFESTS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/manifests");

/// Something that users of Kubernetes expect of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UseCase {
    /// Baseline: services as iptables rules, as kube-proxy writes them.
    IptablesWithoutCilium,
    /// The same services in eBPF, without any iptables or nftables rule.
    KubeProxyReplacement,
    /// A client stays with its backend.
    SessionAffinity,
    /// A service at a port of every node.
    NodePort,
    /// Traffic that stays on the node that it comes to.
    TrafficPolicy,
    /// Services get their addresses from a pool.
    #[value(name = "lb-ipam/basic")]
    #[serde(rename = "lb-ipam/basic")]
    IpamBasic,
    /// A pool that is reserved for services with a label.
    #[value(name = "lb-ipam/important-pool")]
    #[serde(rename = "lb-ipam/important-pool")]
    IpamImportantPool,
    /// A pool from a start to a stop address, which becomes full.
    #[value(name = "lb-ipam/start-stop-range")]
    #[serde(rename = "lb-ipam/start-stop-range")]
    IpamStartStopRange,
    /// A network whose first and last addresses are not assigned.
    #[value(name = "lb-ipam/no-first-last")]
    #[serde(rename = "lb-ipam/no-first-last")]
    IpamNoFirstLast,
    /// A pool of a hundred addresses, and a service that gets the first one.
    #[value(name = "lb-ipam/blue-pool")]
    #[serde(rename = "lb-ipam/blue-pool")]
    IpamBluePool,
}

impl UseCase {
    pub(super) const ALL: [Self; 10] = [
        Self::IptablesWithoutCilium,
        Self::KubeProxyReplacement,
        Self::SessionAffinity,
        Self::NodePort,
        Self::TrafficPolicy,
        Self::IpamBasic,
        Self::IpamImportantPool,
        Self::IpamStartStopRange,
        Self::IpamNoFirstLast,
        Self::IpamBluePool,
    ];

    /// As the command line and the directory of its manifests have it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::IptablesWithoutCilium => "iptables-without-cilium",
            Self::KubeProxyReplacement => "kube-proxy-replacement",
            Self::SessionAffinity => "session-affinity",
            Self::NodePort => "node-port",
            Self::TrafficPolicy => "traffic-policy",
            Self::IpamBasic => "lb-ipam/basic",
            Self::IpamImportantPool => "lb-ipam/important-pool",
            Self::IpamStartStopRange => "lb-ipam/start-stop-range",
            Self::IpamNoFirstLast => "lb-ipam/no-first-last",
            Self::IpamBluePool => "lb-ipam/blue-pool",
        }
    }

    /// The datapath that it is about.
    pub(super) fn datapath(self) -> DatapathKind {
        match self {
            Self::IptablesWithoutCilium => driver::IPTABLES_NFT,
            Self::KubeProxyReplacement
            | Self::SessionAffinity
            | Self::NodePort
            | Self::TrafficPolicy
            | Self::IpamBasic
            | Self::IpamImportantPool
            | Self::IpamStartStopRange
            | Self::IpamNoFirstLast
            | Self::IpamBluePool => driver::EBPF,
        }
    }

    /// What all its manifests say together.
    pub(super) fn snapshot(self) -> Result<Snapshot, RunError> {
        let texts: Vec<&str> = self.manifests().into_iter().map(|(_, text)| text).collect();
        Snapshot::parse("manifests.yaml", &texts.join("\n---\n"))
            .map_err(|source| RunError::Manifests { use_case: self.name(), source })
    }

    /// Names and texts of its manifests.
    pub(super) fn manifests(self) -> Vec<(&'static str, &'static str)> {
        let files = MANIFESTS.get_dir(self.name()).into_iter().flat_map(Dir::files);
        files.filter_map(|file| Some((file.path().file_name()?.to_str()?, file.contents_utf8()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_case_has_manifests_that_are_taken_over_as_they_stand() {
        for use_case in UseCase::ALL {
            assert!(!use_case.manifests().is_empty(), "{}", use_case.name());
            let report = use_case.snapshot().unwrap().allocating_report();
            assert!(report.is_clean(), "{}: {report:?}", use_case.name());
        }
    }

    #[test]
    fn a_use_case_is_called_the_same_everywhere() {
        for use_case in UseCase::ALL {
            assert_eq!(use_case.to_possible_value().unwrap().get_name(), use_case.name());
            assert_eq!(serde_json::to_value(use_case).unwrap(), use_case.name());
        }
        assert_eq!(UseCase::value_variants(), UseCase::ALL);
    }
}
