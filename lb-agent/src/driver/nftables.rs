//! The driver of nftables.

use std::path::Path;

use lb_core::{
    datapath::{Capabilities, DatapathError},
    node::NodeFacts,
};
use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};

use super::{Attachments, Driver, OpenDatapath, Setting, route_traces, unseen};
use crate::host::{bridges, netfilter, state_dir::Used};

pub(super) struct Nftables;

impl Driver for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn about(&self) -> &'static str {
        "One flat nftables ruleset, whose maps and sets grow and whose rules do not; Linux 6.3 or later"
    }

    fn open(&self, attachments: &Attachments) -> Result<Box<dyn OpenDatapath>, DatapathError> {
        Ok(Box::new(NftablesDatapath::open(&config(attachments))?))
    }

    fn capabilities(&self, attachments: &Attachments) -> Option<Capabilities> {
        Some(NftablesDatapath::usual_capabilities(&config(attachments)))
    }

    fn traces(&self, _: &Path) -> Result<Option<Vec<String>>, DatapathError> {
        let NftablesConfig { table, route_table, .. } = NftablesConfig::default();
        let tables = netfilter::tables().map_err(unseen("listing tables of nf_tables"))?;
        let mut traces: Vec<String> =
            tables.contains(&table).then(|| format!("table inet {table}")).into_iter().collect();
        traces.extend(route_traces(route_table, &[route_table])?);
        Ok(Some(traces))
    }

    fn unknown(&self, known: &[Used]) -> Result<Vec<String>, DatapathError> {
        let NftablesConfig { table, .. } = NftablesConfig::default();
        let is_known = known.iter().any(|used| used.datapath == self.name());
        let tables = netfilter::tables().map_err(unseen("listing tables of nf_tables"))?;
        let described = tables.iter().filter(|name| !is_known || **name != table).map(|name| {
            let command = if *name == table {
                "lb cleanup --datapath nftables"
            } else {
                &format!("nft delete table inet {name}")
            };
            format!("table inet {name}, which `{command}` removes")
        });
        Ok(described.collect())
    }

    fn hindrances(&self, node: &NodeFacts) -> Vec<(&'static str, String)> {
        bridges::hindrances(node)
    }

    fn minimum_kernel(&self) -> Option<(u32, u32)> {
        // `NFT_MSG_DESTROYSETELEM`.
        Some((6, 3))
    }

    fn settings(&self) -> &'static [Setting] {
        &[Setting::Uplinks, Setting::Maglev]
    }

    fn uses_conntrack(&self) -> bool {
        true
    }

    #[cfg(feature = "lab")]
    fn lab(&self) -> super::lab::LabFacts {
        lab::FACTS
    }
}

fn config(attachments: &Attachments) -> NftablesConfig {
    NftablesConfig::default().with_uplink_devices(&attachments.devices)
}

#[cfg(feature = "lab")]
mod lab {
    use std::{collections::BTreeSet, io};

    use super::super::lab::{ForeignEdit, LabFacts, Scene, WithoutRoot, nth, run, words};

    pub(super) const FACTS: LabFacts = LabFacts {
        // lb asks for as much as it may have, and the kernel doubles that.
        without_root: WithoutRoot::Buffer { sysctl: "net.core.wmem_max", factor: 2, per_service: 800 },
        translates_sockets: false,
        rule_listers: &["nft"],
        rule_list: None,
        edits: &EDITS,
        seen,
    };

    const EDITS: [ForeignEdit; 6] = [
        edit("nft flush ruleset", |_, _| Ok(words("nft flush ruleset"))),
        edit("nft delete table", |_, _| Ok(words("nft delete table inet lb"))),
        edit("nft flush table", |_, _| Ok(words("nft flush table inet lb"))),
        edit("nft delete rule", delete_rule),
        edit("nft delete element", delete_element),
        edit("nft add rule", |_, _| Ok(words("nft insert rule inet lb prerouting accept"))),
    ];

    const fn edit(name: &'static str, command: fn(&Scene, usize) -> io::Result<Vec<String>>) -> ForeignEdit {
        ForeignEdit { name, program: "nft", command }
    }

    /// The generation is another one after each commit; affinity records come and go.
    fn seen(_: &Scene) -> io::Result<BTreeSet<String>> {
        let listed = run(&words("nft -s list ruleset"))?;
        let lines = listed.lines().filter(|line| !line.contains("\"generation\"") && !line.contains("expires"));
        let bare = |line: &str| line.replace("elements = {", "").trim_matches([' ', '\t', ',', '}']).to_owned();
        Ok(lines.map(bare).collect())
    }

    fn delete_rule(_: &Scene, round: usize) -> io::Result<Vec<String>> {
        let listed = run(&words("nft -a list table inet lb"))?;
        let rule = nth(rules(&listed), round, "rule")?;
        Ok(words(&format!("nft delete rule inet lb {} handle {}", rule.0, rule.1)))
    }

    /// Chain and handle of every rule of a listing.
    fn rules(listing: &str) -> Vec<(String, String)> {
        let mut chain = None;
        let mut found = Vec::new();
        for line in listing.lines().map(str::trim) {
            let Some((text, handle)) = line.split_once(" # handle ") else {
                if line == "}" {
                    chain = None;
                }
                continue;
            };
            if let Some(name) = text.strip_prefix("chain ") {
                chain = name.split(' ').next().map(str::to_owned);
            } else if let Some(chain) = chain.as_ref().filter(|_| !text.ends_with('{')) {
                found.push((chain.clone(), handle.to_owned()));
            }
        }
        found
    }

    fn delete_element(scene: &Scene, round: usize) -> io::Result<Vec<String>> {
        let (ip, port) = (scene.frontend.ip(), scene.frontend.port());
        let of = [format!("frontends4 {{ {ip} . tcp . {port} }}"), format!("slots4 {{ {ip} . tcp . {port} . 0 }}")];
        Ok(words(&format!("nft delete element inet lb {}", of[round % of.len()])))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn rules_are_told_from_chains_and_elements() {
            let listing = "table inet lb { # handle 1\n\tmap slots4 { # handle 7\n\t\telements = { 1 : 2 }\n\t}\n\
                           \tchain prerouting { # handle 3\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\
                           \t\tip daddr 10.96.0.1 accept # handle 9\n\t}\n}\n";
            assert_eq!(rules(listing), [("prerouting".to_owned(), "9".to_owned())]);
        }
    }
}
