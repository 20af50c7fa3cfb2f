//! Where the last service is in the chain that every new connection walks.

use std::{net::IpAddr, process::Command};

use lb_agent::driver::DatapathKind;
use lb_testkit::lab::Node;

use super::error::{CompareError, Result, system};

/// A chain's rules, and the place of the one for a service, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) place: usize,
    pub(super) services: usize,
}

/// Finds the rule for `vip`; `None` for a datapath without such a chain.
pub(super) fn place(kind: DatapathKind, node: Node<'_>, vip: IpAddr) -> Result<Option<Place>> {
    let Some(program) = kind.lab().rule_list else { return Ok(None) };
    let output = node.run(|| Command::new(program).args(["-t", "nat"]).output())?;
    let output = output.map_err(system(format!("running {program}")))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(CompareError::Program { program, message });
    }
    Ok(find(&String::from_utf8_lossy(&output.stdout), vip))
}

fn find(saved: &str, vip: IpAddr) -> Option<Place> {
    let rules = saved.lines().filter(|line| line.starts_with("-A LB-SERVICES ") && line.contains(" -d "));
    let wanted = format!(" -d {vip}/32 ");
    let mut services = 0;
    let mut place = None;
    for rule in rules {
        services += 1;
        if rule.contains(&wanted) {
            place = Some(services);
        }
    }
    place.map(|place| Place { place, services })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_that_of_the_rule_with_the_address() {
        let saved = "*nat\n-A PREROUTING -j LB-SERVICES\n-A LB-SERVICES -d 10.96.0.1/32 -p tcp -j LB-SVC-A\n\
                     -A LB-SERVICES -d 10.96.0.10/32 -p tcp -j LB-SVC-B\n-A LB-SVC-A -j LB-SEP-A\nCOMMIT\n";
        assert_eq!(find(saved, "10.96.0.10".parse().unwrap()), Some(Place { place: 2, services: 2 }));
        assert_eq!(find(saved, "10.96.0.1".parse().unwrap()), Some(Place { place: 1, services: 2 }));
        assert_eq!(find(saved, "10.96.0.2".parse().unwrap()), None);
    }
}
