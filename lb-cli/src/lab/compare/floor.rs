//! The netfilter floor: one service, one rule.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use lb_testkit::lab::Node;

use super::error::{CompareError, Result, system};

/// Translates connections to `service` to one of `servers` at random, with the least that nftables needs for it.
pub(super) fn install(node: Node<'_>, service: SocketAddr, servers: &[IpAddr], port: u16) -> Result<()> {
    let ruleset = ruleset(service, servers, port);
    node.run(|| load(&ruleset))?
}

fn load(ruleset: &str) -> Result<()> {
    let failed = || system("running `nft -f -` (is nftables installed?)");
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = nft.spawn().map_err(failed())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(ruleset.as_bytes()).map_err(failed())?;
    }
    let output = child.wait_with_output().map_err(failed())?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CompareError::Program { program: "nft -f -", message })
}

fn ruleset(service: SocketAddr, servers: &[IpAddr], port: u16) -> String {
    let mut map = String::new();
    for (index, ip) in servers.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(map, "{}{index} : {ip}", if index > 0 { ", " } else { "" });
    }
    let (vip, vip_port, count) = (service.ip(), service.port(), servers.len());
    format!(
        "table ip floor {{\n\
         \tchain prerouting {{\n\
         \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
         \t\tip daddr {vip} tcp dport {vip_port} dnat to numgen random mod {count} map {{ {map} }}:{port}\n\
         \t}}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ruleset_is_one_rule() {
        let servers = ["10.244.0.10".parse().unwrap(), "10.244.0.11".parse().unwrap()];
        let text = ruleset("10.96.0.10:80".parse().unwrap(), &servers, 8080);
        let rules: Vec<&str> = text.lines().filter(|line| line.contains("dnat to")).collect();
        assert_eq!(
            rules,
            [
                "\t\tip daddr 10.96.0.10 tcp dport 80 dnat to numgen random mod 2 map { 0 : 10.244.0.10, 1 : 10.244.0.11 }:8080"
            ]
        );
    }
}
