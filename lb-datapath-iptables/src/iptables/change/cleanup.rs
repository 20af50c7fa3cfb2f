//! Removal of everything that we ever wrote. Pure.

use std::fmt::Write as _;

use crate::iptables::rules::{names::PREFIX, saved::SavedTable};

/// Input of `iptables-restore --noflush` that removes the chains of lb and the jumps to them from `table`; `None` if
/// there are none.
pub(crate) fn removal(table: &str, saved: &SavedTable) -> Option<String> {
    let ours: Vec<&str> = saved.chains().map(|(chain, _)| chain).filter(|chain| chain.starts_with(PREFIX)).collect();
    let mut text = format!("*{table}\n");
    for chain in &ours {
        writeln!(text, ":{chain} - [0:0]").expect("a string takes every text");
    }
    let mut jumps = 0;
    for (chain, rules) in saved.chains().filter(|(chain, _)| !chain.starts_with(PREFIX)) {
        for rule in rules.iter().filter(|rule| rule.target().is_some_and(|target| target.starts_with(PREFIX))) {
            writeln!(text, "-D {chain} {rule}").expect("a string takes every text");
            jumps += 1;
        }
    }
    for chain in &ours {
        writeln!(text, "-X {chain}").expect("a string takes every text");
    }
    text.push_str("COMMIT\n");
    (jumps > 0 || !ours.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_go_before_the_chains_and_others_rules_stay() {
        let saved = SavedTable::parse(
            "*nat\n:OUTPUT ACCEPT [0:0]\n:LB-SERVICES - [0:0]\n:KUBE-SERVICES - [0:0]\n\
             -A OUTPUT -j KUBE-SERVICES\n-A OUTPUT -m comment --comment \"a \\\"b\" -j LB-SERVICES\n\
             -A LB-SERVICES -j RETURN\nCOMMIT\n",
        );
        assert_eq!(
            removal("nat", &saved).as_deref(),
            Some(
                "*nat\n:LB-SERVICES - [0:0]\n-D OUTPUT -m comment --comment \"a \\\"b\" -j LB-SERVICES\n\
                 -X LB-SERVICES\nCOMMIT\n"
            )
        );
    }

    #[test]
    fn nothing_of_ours_means_nothing_to_do() {
        assert_eq!(removal("nat", &SavedTable::parse("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n")), None);
    }
}
