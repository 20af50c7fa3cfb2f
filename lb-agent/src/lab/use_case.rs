//! The use cases and their manifests.

use clap::ValueEnum;
use include_dir::{Dir, include_dir};
use serde::Serialize;

use crate::kind::DatapathKind;

static MANIFESTS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../examples/manifests");

/// Something that users of Kubernetes expect of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UseCase {
    /// The baseline: services as iptables rules, as kube-proxy writes them.
    IptablesWithoutCilium,
    /// The same services in eBPF, without a rule.
    KubeProxyReplacement,
    /// A client stays with its backend.
    SessionAffinity,
}

impl UseCase {
    pub(super) const ALL: [Self; 3] = [Self::IptablesWithoutCilium, Self::KubeProxyReplacement, Self::SessionAffinity];

    /// As the command line and the directory of its manifests have it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::IptablesWithoutCilium => "iptables-without-cilium",
            Self::KubeProxyReplacement => "kube-proxy-replacement",
            Self::SessionAffinity => "session-affinity",
        }
    }

    /// The datapath that it is about.
    pub(super) const fn datapath(self) -> DatapathKind {
        match self {
            Self::IptablesWithoutCilium => DatapathKind::IptablesNft,
            Self::KubeProxyReplacement | Self::SessionAffinity => DatapathKind::Ebpf,
        }
    }

    /// Names and texts of its manifests.
    pub(super) fn manifests(self) -> Vec<(&'static str, &'static str)> {
        let files = MANIFESTS.get_dir(self.name()).into_iter().flat_map(Dir::files);
        files.filter_map(|file| Some((file.path().file_name()?.to_str()?, file.contents_utf8()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use lb_k8s::Snapshot;

    use super::*;

    #[test]
    fn every_use_case_has_manifests_that_are_taken_over_as_they_stand() {
        for use_case in UseCase::ALL {
            let manifests = use_case.manifests();
            assert!(!manifests.is_empty(), "{}", use_case.name());
            for (file, text) in manifests {
                let report = Snapshot::parse(file, text).unwrap().report();
                assert!(report.is_clean(), "{} {file}: {report:?}", use_case.name());
            }
        }
    }
}
