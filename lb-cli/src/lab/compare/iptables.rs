//! Where the last service is in the chain that every new connection walks.

use std::{net::IpAddr, process::Command};

use lb_agent::driver::DatapathKind;
use lb_testkit::lab::Node;

use super::error::{CompareError, Result, system};

/// Where the rule of a service is in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RulePosition {
    /// Counted from 1.
    pub(super) position: usize,
    /// Rules of services in the chain.
    pub(super) services: usize,
}

/// Finds the rule for `vip`; `None` for a datapath without such a chain.
pub(super) fn position(kind: DatapathKind, node: Node<'_>, vip: IpAddr) -> Result<Option<RulePosition>> {
    let Some(program) = kind.lab().rule_list else { return Ok(None) };
    let output = node.run(|| Command::new(program).args(["-t", "nat"]).output())?;
    let output = output.map_err(system(format!("running {program}")))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(CompareError::Program { program, message });
    }
    Ok(find(&String::from_utf8_lossy(&output.stdout), vip))
}

fn find(saved: &str, vip: IpAddr) -> Option<RulePosition> {
    let rules = saved.lines().filter(|line| line.starts_with("-A LB-SERVICES ") && line.contains(" -d "));
    let wanted = format!(" -d {vip}/32 ");
    let mut services = 0;
    let mut position = None;
    for rule in rules {
        services += 1;
        if rule.contains(&wanted) {
            position = Some(services);
        }
    }
    position.map(|position| RulePosition { position, services })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_that_of_the_rule_with_the_address() {
        let saved = "*nat\n-A PREROUTING -j LB-SERVICES\n-A LB-SERVICES -d 10.96.0.1/32 -p tcp -j LB-SVC-A\n\
                     -A LB-SERVICES -d 10.96.0.10/32 -p tcp -j LB-SVC-B\n-A LB-SVC-A -j LB-SEP-A\nCOMMIT\n";
        assert_eq!(find(saved, "10.96.0.10".parse().unwrap()), Some(RulePosition { position: 2, services: 2 }));
        assert_eq!(find(saved, "10.96.0.1".parse().unwrap()), Some(RulePosition { position: 1, services: 2 }));
        assert_eq!(find(saved, "10.96.0.2".parse().unwrap()), None);
    }
}
