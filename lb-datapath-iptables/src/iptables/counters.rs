//! How many rules a packet may meet.

use std::sync::Arc;

use lb_core::{
    addr::Family,
    datapath::{Counters, DatapathError, KernelUsage},
};

use crate::iptables::{
    rules::{
        names::{NODE, PREFIX},
        saved::SavedTable,
    },
    tools::Tools,
};

/// Counts rules by reading them back.
pub(crate) struct RuleCounters {
    pub(crate) tools: Arc<dyn Tools>,
    pub(crate) families: Vec<Family>,
}

impl Counters for RuleCounters {
    fn usage(&self) -> Result<KernelUsage, DatapathError> {
        let mut rules = 0;
        for &family in &self.families {
            for table in ["nat", "filter"] {
                rules += count(&SavedTable::parse(&self.tools.save(family, table)?));
            }
        }
        Ok(KernelUsage { rules, elements: 0, bytes: None })
    }
}

/// Rules in the chains of lb and jumps to them.
fn count(table: &SavedTable) -> u64 {
    let counted = table.chains().filter(|(chain, _)| *chain != NODE).map(|(chain, rules)| {
        let ours = chain.starts_with(PREFIX);
        rules.iter().filter(|rule| ours || rule.target().is_some_and(|target| target.starts_with(PREFIX))).count()
    });
    counted.sum::<usize>() as u64
}
