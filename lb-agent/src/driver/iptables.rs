//! The drivers of iptables, in its two variants.

use std::{path::Path, time::Duration};

use lb_core::{
    datapath::{Capabilities, DatapathError},
    node::NodeFacts,
};
use lb_datapath_iptables::iptables::{IptablesConfig, IptablesDatapath, Variant};

use super::{Attachments, Driver, OpenDatapath, counted, route_traces, unseen};
use crate::host::{bridges, conntrack, netfilter, state_dir::Used};

/// One variant.
pub(super) struct Iptables(Variant);

impl Iptables {
    pub(super) const NFT: Self = Self(Variant::Nft);
    pub(super) const LEGACY: Self = Self(Variant::Legacy);

    fn config(&self) -> IptablesConfig {
        match self.0 {
            Variant::Nft => IptablesConfig::default(),
            Variant::Legacy => legacy(),
        }
    }

    fn chains(&self) -> Result<Vec<String>, DatapathError> {
        match self.0 {
            Variant::Nft => netfilter::chains(),
            Variant::Legacy => netfilter::legacy_chains(),
        }
        .map_err(unseen("listing chains"))
    }
}

impl Driver for Iptables {
    fn name(&self) -> &'static str {
        match self.0 {
            Variant::Nft => "iptables-nft",
            Variant::Legacy => "iptables-legacy",
        }
    }

    fn about(&self) -> &'static str {
        match self.0 {
            Variant::Nft => "Chains per service and endpoint, as kube-proxy writes them, with iptables-nft",
            Variant::Legacy => "The same chains with iptables-legacy",
        }
    }

    fn open(&self, _: &Attachments) -> Result<Box<dyn OpenDatapath>, DatapathError> {
        Ok(Box::new(IptablesDatapath::open(&self.config())?))
    }

    fn capabilities(&self, _: &Attachments) -> Option<Capabilities> {
        Some(IptablesDatapath::capabilities_of(&self.config()))
    }

    fn traces(&self, _: &Path) -> Result<Option<Vec<String>>, DatapathError> {
        let IptablesConfig { route_table, reject_table, .. } = self.config();
        let chains = self.chains()?;
        let mut traces: Vec<String> =
            (!chains.is_empty()).then(|| counted(chains.len(), "chain")).into_iter().collect();
        traces.extend(route_traces(route_table, &[route_table, reject_table])?);
        Ok(Some(traces))
    }

    /// The names of the chains are fixed, so that there is one datapath of each variant.
    fn unknown(&self, known: &[Used]) -> Result<Vec<String>, DatapathError> {
        if known.iter().any(|used| used.datapath == self.name()) {
            return Ok(Vec::new());
        }
        let chains = self.chains()?;
        let described = chains.first().map(|first| {
            let count = counted(chains.len(), "chain");
            format!("{count}, such as {first}, which `lb cleanup --datapath {}` removes", self.name())
        });
        Ok(described.into_iter().collect())
    }

    fn hindrances(&self, node: &NodeFacts) -> Vec<(&'static str, String)> {
        let mut found = bridges::hindrances(node);
        found.extend(conntrack::hindrances(self.config().close_wait));
        found
    }

    /// The nft variant shares its tables with others, and nobody says what changes in legacy ones.
    fn drift_interval(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn uses_conntrack(&self) -> bool {
        true
    }

    #[cfg(feature = "lab")]
    fn lab(&self) -> super::lab::LabFacts {
        match self.0 {
            Variant::Nft => lab::NFT,
            Variant::Legacy => lab::LEGACY,
        }
    }
}

/// With routes of its own, so that one variant of iptables can be cleaned up while the other serves.
fn legacy() -> IptablesConfig {
    IptablesConfig::default()
        .with_variant(Variant::Legacy)
        .with_route_table(26978)
        .with_reject_table(26979)
        .with_rule_priority(26978)
        .with_route_protocol(106)
}

#[cfg(feature = "lab")]
mod lab {
    use std::{collections::BTreeSet, io};

    use super::super::lab::{ForeignEdit, LabFacts, Scene, WithoutRoot, run, words};

    pub(super) const NFT: LabFacts = LabFacts {
        // `iptables-nft-restore` stays with the default of the kernel.
        without_root: WithoutRoot::Buffer { sysctl: "net.core.wmem_default", factor: 1, per_service: 5600 },
        translates_sockets: false,
        rule_listers: &["iptables-nft-save", "ip6tables-nft-save"],
        rule_list: Some("iptables-nft-save"),
        edits: &edits("iptables-nft"),
        seen,
    };

    pub(super) const LEGACY: LabFacts = LabFacts {
        without_root: WithoutRoot::Always,
        rule_listers: &["iptables-legacy-save", "ip6tables-legacy-save"],
        rule_list: Some("iptables-legacy-save"),
        edits: &edits("iptables-legacy"),
        ..NFT
    };

    const fn edits(program: &'static str) -> [ForeignEdit; 3] {
        [
            ForeignEdit {
                name: "-t nat -F",
                program,
                command: |scene, _| Ok(words(&format!("{} -w -t nat -F", scene.kind))),
            },
            ForeignEdit {
                name: "-F LB-SERVICES",
                program,
                command: |scene, _| Ok(words(&format!("{} -w -t nat -F LB-SERVICES", scene.kind))),
            },
            ForeignEdit {
                name: "-D LB-SERVICES 1",
                program,
                command: |scene, _| Ok(words(&format!("{} -w -t nat -D LB-SERVICES 1", scene.kind))),
            },
        ]
    }

    fn seen(scene: &Scene) -> io::Result<BTreeSet<String>> {
        let listed = run(&[format!("{}-save", scene.kind)])?;
        Ok(listed.lines().filter(|line| line.contains("LB-")).map(Into::into).collect())
    }
}
