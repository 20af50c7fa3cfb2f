//! What lb has in netfilter and in the routing tables of this thread's network namespace, whoever put it there.
//!
//! Listing is done here and not by a datapath: it must not need the programs, modules and kernel that serving needs.

use std::{collections::BTreeSet, fs, io, process::Command};

use lb_netlink::{Protocol, Socket, Writer, attributes, string};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage},
    rule::{RuleAttribute, RuleMessage},
};
use nix::libc;

/// Text in the userdata of every table that lb makes, before the version of its layout.
const TABLE_MARKER: &[u8] = b"lb layout ";
/// Beginning of the name of every chain that lb makes with iptables.
const CHAIN_PREFIX: &str = "LB-";
/// Upper half of the metric of every route that lb makes; the lower half is the number of its routing table.
const METRIC: u32 = 0x6c62_0000;

const NFT_MSG_GETTABLE: u16 = nf_tables(libc::NFT_MSG_GETTABLE);
const NFT_MSG_GETCHAIN: u16 = nf_tables(libc::NFT_MSG_GETCHAIN);
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;

const fn nf_tables(message: libc::c_int) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | message as u16
}

/// Names of the tables of family inet that lb made.
pub(crate) fn tables() -> io::Result<BTreeSet<String>> {
    let found = dump(NFT_MSG_GETTABLE, libc::NFPROTO_INET, |payload| {
        let table = attributes(payload);
        let userdata = table.find(NFTA_TABLE_USERDATA)?;
        // A comment: its type, its length and its text.
        userdata.get(2..)?.starts_with(TABLE_MARKER).then_some(())?;
        table.find(NFTA_TABLE_NAME).and_then(string).map(Into::into)
    })?;
    Ok(found.into_iter().collect())
}

/// Chains of nf_tables that lb made with iptables-nft, as `ip nat LB-SERVICES`.
pub(crate) fn chains() -> io::Result<Vec<String>> {
    let of = |family, name| {
        dump(NFT_MSG_GETCHAIN, family, move |payload| {
            let chain = attributes(payload);
            let (table, chain) = (chain.find(NFTA_CHAIN_TABLE), chain.find(NFTA_CHAIN_NAME));
            let (table, chain) = (table.and_then(string)?, chain.and_then(string)?);
            chain.starts_with(CHAIN_PREFIX).then(|| format!("{name} {table} {chain}"))
        })
    };
    Ok([of(libc::NFPROTO_IPV4, "ip")?, of(libc::NFPROTO_IPV6, "ip6")?].concat())
}

/// Chains of x_tables that lb made with iptables-legacy, in the same form. Runs no program and loads no module unless
/// the tables exist.
pub(crate) fn legacy_chains() -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for (names, program, family) in [
        ("/proc/thread-self/net/ip_tables_names", "iptables-legacy-save", "ip"),
        ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save", "ip6"),
    ] {
        let tables = match fs::read_to_string(names) {
            Ok(tables) => tables,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for table in ["nat", "filter"].into_iter().filter(|table| tables.lines().any(|line| line == *table)) {
            let output = Command::new(program).args(["-t", table]).output().map_err(|error| {
                io::Error::new(error.kind(), format!("running {program} failed ({error}); is iptables installed?"))
            })?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(io::Error::other(format!("{program} -t {table} failed: {said}")));
            }
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            found.extend(saved_chains(&text).map(|chain| format!("{family} {table} {chain}")));
        }
    }
    Ok(found)
}

/// The chains of lb in the output of `iptables-save`.
fn saved_chains(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let name = line.strip_prefix(':')?.split(' ').next()?;
        name.starts_with(CHAIN_PREFIX).then_some(name)
    })
}

/// Routes that lb made for the routing table of this number, and routing rules that lead to one of `tables`.
pub(crate) fn routes(of: u32, tables: &[u32]) -> io::Result<(usize, usize)> {
    let metric = METRIC | of & 0xffff;
    let routes = route_dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let routes = routes.iter().filter(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => route.attributes.contains(&RouteAttribute::Priority(metric)),
        _ => false,
    });
    let rules = route_dump(RouteNetlinkMessage::GetRule(RuleMessage::default()))?;
    let leads_there = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Table(to) if tables.contains(to));
    let rules = rules.iter().filter(|answer| match answer {
        RouteNetlinkMessage::NewRule(rule) => rule.attributes.iter().any(leads_there),
        _ => false,
    });
    Ok((routes.count(), rules.count()))
}

fn route_dump(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    Ok(Socket::open(Protocol::Route)?.dump_all(&request)?)
}

/// A dump of nf_tables. A kernel without nf_tables has none of it.
fn dump(kind: u16, family: libc::c_int, read: impl Fn(&[u8]) -> Option<String>) -> io::Result<Vec<String>> {
    let header = [family as u8, 0, 0, 0];
    let each = |found: &mut Vec<String>, message: lb_netlink::Message<'_>| {
        found.extend(message.payload.get(header.len()..).and_then(&read));
    };
    let nothing = |_: &mut Writer| {};
    let dumped = Socket::open(Protocol::Netfilter).and_then(|mut socket| socket.dump(kind, &header, nothing, each));
    match dumped {
        Err(error)
            if matches!(
                error.errno(),
                Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL | libc::EAFNOSUPPORT)
            ) =>
        {
            Ok(Vec::new())
        }
        found => Ok(found?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_lb_are_told_from_all_others() {
        let saved =
            "*nat\n:PREROUTING ACCEPT [0:0]\n:LB-SERVICES - [0:0]\n:LB2 - [0:0]\n-A PREROUTING -j LB-SERVICES\n";
        assert_eq!(saved_chains(saved).collect::<Vec<_>>(), ["LB-SERVICES"]);
    }
}
