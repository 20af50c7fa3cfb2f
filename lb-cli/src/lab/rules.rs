//! Rules that netfilter has on a node, whoever put them there.

use std::{io, net::IpAddr, process::Command};

use lb_testkit::lab::Node;

use super::error::RunError;

/// Programs that list rules, iptables first, nftables last.
pub(super) const LISTERS: [&str; 5] =
    ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save", "nft"];

/// Rules of one listing that name an address of a service.
#[derive(Debug)]
pub(super) struct ListedRules {
    /// The program.
    pub(super) lister: &'static str,
    /// How many lines.
    pub(super) lines: usize,
}

/// What each of `listers` lists about `ips` on `node`. One that is not installed has nothing to list.
pub(super) fn about(node: Node<'_>, ips: &[IpAddr], listers: &[&'static str]) -> Result<Vec<ListedRules>, RunError> {
    let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
    let mut found = Vec::new();
    for &lister in listers {
        let listing = node.run(|| list(lister))?;
        let action = || format!("running {lister} on {}", node.name());
        let listing = listing.map_err(|source| RunError::Rules { action: action(), source })?;
        let lines = listing.lines().filter(|line| texts.iter().any(|text| names(line, text))).count();
        found.push(ListedRules { lister, lines });
    }
    Ok(found)
}

fn list(program: &str) -> io::Result<String> {
    // Legacy tables are not listed by their names: root of a user namespace may not read which there are.
    let arguments: &[&[&str]] = match program {
        "nft" => &[&["list", "ruleset"]],
        _ if program.contains("legacy") => &[&["-t", "nat"], &["-t", "filter"]],
        _ => &[&[]],
    };
    arguments.iter().map(|arguments| run(program, arguments)).collect()
}

fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Whether `line` names this address and not a longer one.
fn names(line: &str, address: &str) -> bool {
    line.match_indices(address).any(|(at, _)| {
        let part = |c: char| c.is_ascii_hexdigit() || c == '.' || c == ':';
        let after = line[at + address.len()..].chars().next();
        !line[..at].ends_with(part) && !after.is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_not_found_inside_of_another() {
        assert!(names("-A X -d 10.96.0.1/32 -p tcp", "10.96.0.1"));
        assert!(names("10.96.0.1 . tcp . 80 : 7", "10.96.0.1"));
        assert!(!names("-A X -d 10.96.0.10/32 -p tcp", "10.96.0.1"));
        assert!(!names("-A X -d 210.96.0.1/32", "10.96.0.1"));
        assert!(!names("fd00:10:96::20", "fd00:10:96::2"));
    }
}
