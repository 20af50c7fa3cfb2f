//! Converts between the model's types and the keys and values of the maps.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr, Protocol, Scope},
    affinity::Affinity,
    id::{FrontendId, SetId},
    name::NodeName,
    node::NodeFacts,
    sources::{RangePolicy, SourceRanges},
    state::{Backend, Frontend, Guard, GuardedTraffic, Lookup, OtherPorts, Target},
};
use lb_datapath_ebpf_abi as abi;

use crate::state::{heap::Extent, ports::Ports};

// Programs cannot depend on lb-core, which allocates.
const _: () = assert!(abi::FLOW_SEED == lb_core::flow_hash::FLOW_SEED);

/// The model asks for something that the maps cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Inexpressible {
    #[error("{0} is an IPv4-mapped IPv6 address, which cannot be told from the IPv4 address; use that")]
    Mapped(IpAddr),
    #[error("affinity time-out {0:?} is longer than {max:?}", max = Duration::from_nanos(u64::MAX))]
    Timeout(Duration),
    #[error("the node has {found} {what}, at most {max} fit")]
    Facts { what: &'static str, found: usize, max: usize },
}

/// A map holds something that no version with this layout writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unreadable entry of {len} bytes {start}")]
pub(crate) struct Corrupt {
    len: usize,
    start: String,
}

impl Corrupt {
    /// The first bytes of a key or a value, for reports.
    pub(crate) fn of(entry: &impl abi::Pod) -> Self {
        const SHOWN: usize = 16;
        let bytes = entry.bytes();
        let mut start: String = bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
        if bytes.len() > SHOWN {
            start.push('…');
        }
        Self { len: bytes.len(), start }
    }
}

pub(crate) fn addr(ip: IpAddr) -> Result<abi::Addr, Inexpressible> {
    match ip {
        IpAddr::V4(v4) => Ok(abi::map_v4(v4.octets())),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(Inexpressible::Mapped(ip)),
        IpAddr::V6(v6) => Ok(abi::from_octets(v6.octets())),
    }
}

pub(crate) fn ip(addr: abi::Addr) -> IpAddr {
    abi::unmap_v4(addr).map_or_else(|| Ipv6Addr::from(abi::octets(addr)).into(), IpAddr::from)
}

pub(crate) fn frontend_key(frontend: &FrontendAddr) -> Result<abi::FrontendKey, Inexpressible> {
    Ok(abi::FrontendKey {
        addr: addr(frontend.ip)?,
        port: abi::Port::new(frontend.port),
        protocol: frontend.protocol.number(),
        scope: match frontend.scope {
            Scope::External => abi::SCOPE_ANY,
            Scope::Internal => abi::SCOPE_INTERNAL,
        },
        pad: 0,
    })
}

pub(crate) fn frontend_addr(key: &abi::FrontendKey) -> Result<FrontendAddr, Corrupt> {
    let corrupt = || Corrupt::of(key);
    let protocol = Protocol::from_number(key.protocol).ok_or_else(corrupt)?;
    let scope = match key.scope {
        abi::SCOPE_ANY => Scope::External,
        abi::SCOPE_INTERNAL => Scope::Internal,
        _ => return Err(corrupt()),
    };
    let addr = FrontendAddr { scope, ..FrontendAddr::new(ip(key.addr), key.port.number(), protocol) };
    // Several keys can read as one address, but an address is written in one way.
    if frontend_key(&addr).as_ref() == Ok(key) { Ok(addr) } else { Err(corrupt()) }
}

/// The value of a frontend; `set` is where its set lies and how a slot is picked, if it has one.
pub(crate) fn frontend_value(
    frontend: &Frontend,
    set: Option<(Extent, u32, Lookup)>,
) -> Result<abi::FrontendValue, Inexpressible> {
    let affinity = frontend.affinity.as_ref();
    let timeout = affinity.map_or(Duration::ZERO, |affinity| affinity.timeout);
    let (extent, slots, picked) = set.unwrap_or((Extent { first: 0, chunks: 0 }, 0, Lookup::Random));
    Ok(abi::FrontendValue {
        id: frontend.id.get(),
        set: if let Target::Set(id) = frontend.target { id.get() } else { 0 },
        first: extent.first,
        slots,
        affinity_ns: u64::try_from(timeout.as_nanos()).map_err(|_| Inexpressible::Timeout(timeout))?,
        affinity: u8::from(affinity.is_some()),
        prefix_v4: affinity.map_or(0, |affinity| affinity.prefix_v4),
        prefix_v6: affinity.map_or(0, |affinity| affinity.prefix_v6),
        lookup: lookup(picked),
        target: match frontend.target {
            Target::Set(_) => abi::TARGET_SET,
            Target::Reject => abi::TARGET_REJECT,
            Target::Drop => abi::TARGET_DROP,
        },
        flags: flags(frontend),
        leaves_sockets: u8::from(frontend.leaves_sockets),
        pad: 0,
    })
}

/// What the flags of a frontend's value say.
fn flags(frontend: &Frontend) -> u8 {
    let guard = frontend.guard.as_ref().map_or(0, |guard| {
        let denies = guard.ranges.policy() == RangePolicy::Deny;
        let outside = guard.traffic == GuardedTraffic::Outside;
        abi::FRONTEND_SOURCES | flag_if(denies, abi::FRONTEND_DENIES) | flag_if(outside, abi::FRONTEND_GUARDS_OUTSIDE)
    });
    let others = match frontend.other_ports {
        OtherPorts::Pass => 0,
        OtherPorts::Reject => abi::FRONTEND_REJECTS_OTHERS,
        OtherPorts::Drop => abi::FRONTEND_DROPS_OTHERS,
    };
    guard
        | others
        | flag_if(frontend.keeps_source, abi::FRONTEND_KEEPS_SOURCE)
        | flag_if(frontend.translates_pods, abi::FRONTEND_TRANSLATES_PODS)
        | flag_if(frontend.answers_ping, abi::FRONTEND_ANSWERS_PING)
}

const fn flag_if(is: bool, flag: u8) -> u8 {
    if is { flag } else { 0 }
}

/// What `ADDRESSES` says about an address whose frontends say this.
pub(crate) fn address_value(others: OtherPorts, answers_ping: bool) -> u8 {
    let others = match others {
        OtherPorts::Pass => 0,
        OtherPorts::Reject => abi::ADDRESS_REJECTS,
        OtherPorts::Drop => abi::ADDRESS_DROPS,
    };
    others | flag_if(answers_ping, abi::ADDRESS_ANSWERS_PING)
}

/// Keys of the prefixes of a frontend's source ranges.
pub(crate) fn source_keys(frontend: &Frontend) -> impl Iterator<Item = abi::SourceKey> {
    let id = frontend.id.get();
    frontend.guard.iter().flat_map(move |guard| {
        let frontend = if guard.ranges.policy() == RangePolicy::Deny { id | abi::SOURCES_DENIED } else { id };
        guard.ranges.prefixes().iter().map(move |prefix| {
            let (key, _) = cidr(prefix);
            abi::SourceKey { bits: 32 + key.bits, frontend, addr: key.addr }
        })
    })
}

/// The prefix of a key.
pub(crate) fn source(key: &abi::SourceKey) -> Result<IpNet, Corrupt> {
    let corrupt = || Corrupt::of(key);
    let bits = key.bits.checked_sub(32).ok_or_else(corrupt)?;
    let (ip, bits) = match (ip(key.addr), bits.checked_sub(96)) {
        (IpAddr::V4(ip), Some(bits)) => (ip.into(), bits),
        _ => (IpAddr::V6(abi::octets(key.addr).into()), bits),
    };
    let prefix = IpNet::new(ip, u8::try_from(bits).map_err(|_| corrupt())?).map_err(|_| corrupt())?;
    // Several keys can read as one prefix, but a prefix is written in one way.
    if cidr(&prefix).0 == (abi::CidrKey { bits: key.bits - 32, addr: key.addr }) { Ok(prefix) } else { Err(corrupt()) }
}

/// The affinity of the frontend with this value, if it has any.
pub(crate) fn affinity(value: &abi::FrontendValue) -> Option<Affinity> {
    (value.affinity != 0).then(|| Affinity {
        timeout: Duration::from_nanos(value.affinity_ns),
        prefix_v4: value.prefix_v4,
        prefix_v6: value.prefix_v6,
    })
}

/// The frontend with this value; `sources` are its keys in `SOURCES`, by the number in them.
pub(crate) fn frontend(value: &abi::FrontendValue, sources: &BTreeMap<u32, Vec<IpNet>>) -> Result<Frontend, Corrupt> {
    let corrupt = || Corrupt::of(value);
    let target = match value.target {
        abi::TARGET_SET => Target::Set(SetId::new(value.set).ok_or_else(corrupt)?),
        abi::TARGET_REJECT => Target::Reject,
        abi::TARGET_DROP => Target::Drop,
        _ => return Err(corrupt()),
    };
    let is = |flag| value.flags & flag != 0;
    let other_ports = match (is(abi::FRONTEND_REJECTS_OTHERS), is(abi::FRONTEND_DROPS_OTHERS)) {
        (false, false) => OtherPorts::Pass,
        (true, false) => OtherPorts::Reject,
        (false, true) => OtherPorts::Drop,
        (true, true) => return Err(corrupt()),
    };
    let guard = is(abi::FRONTEND_SOURCES).then(|| {
        let (policy, number) = if is(abi::FRONTEND_DENIES) {
            (RangePolicy::Deny, value.id | abi::SOURCES_DENIED)
        } else {
            (RangePolicy::Allow, value.id)
        };
        let prefixes = sources.get(&number).into_iter().flatten().copied();
        let traffic = if is(abi::FRONTEND_GUARDS_OUTSIDE) { GuardedTraffic::Outside } else { GuardedTraffic::All };
        Guard { ranges: Arc::new(SourceRanges::new(policy, prefixes)), traffic }
    });
    Ok(Frontend {
        affinity: affinity(value),
        leaves_sockets: value.leaves_sockets != 0,
        guard,
        other_ports,
        keeps_source: is(abi::FRONTEND_KEEPS_SOURCE),
        translates_pods: is(abi::FRONTEND_TRANSLATES_PODS),
        answers_ping: is(abi::FRONTEND_ANSWERS_PING),
        ..Frontend::new(FrontendId::new(value.id).ok_or_else(corrupt)?, target)
    })
}

pub(crate) const fn lookup(lookup: Lookup) -> u8 {
    match lookup {
        Lookup::Random => abi::LOOKUP_RANDOM,
        Lookup::LeastConnections => abi::LOOKUP_LEAST,
        Lookup::RoundRobin => abi::LOOKUP_ROUND_ROBIN,
        Lookup::Hash => abi::LOOKUP_HASH,
    }
}

pub(crate) fn model_lookup(value: &abi::SetValue) -> Result<Lookup, Corrupt> {
    match value.lookup {
        abi::LOOKUP_RANDOM => Ok(Lookup::Random),
        abi::LOOKUP_ROUND_ROBIN => Ok(Lookup::RoundRobin),
        abi::LOOKUP_HASH => Ok(Lookup::Hash),
        abi::LOOKUP_LEAST => Ok(Lookup::LeastConnections),
        _ => Err(Corrupt::of(value)),
    }
}

/// The value of a backend, as it is for this node.
pub(crate) fn backend_value(backend: &Backend, node: &NodeFacts) -> Result<abi::BackendValue, Inexpressible> {
    Ok(abi::BackendValue {
        addr: addr(backend.addr.ip)?,
        port: abi::Port::new(backend.addr.port),
        protocol: backend.addr.protocol.number(),
        local: u8::from(backend.local),
        host: u8::from(node.ips.contains(&backend.addr.ip)),
        pad: [0; 3],
    })
}

pub(crate) fn backend(value: &abi::BackendValue) -> Result<Backend, Corrupt> {
    let known = Protocol::from_number(value.protocol);
    let protocol = known.ok_or_else(|| Corrupt::of(value))?;
    let addr = BackendAddr::new(ip(value.addr), value.port.number(), protocol);
    Ok(Backend { addr, local: value.local != 0 })
}

pub(crate) fn node_value(node: &NodeFacts, ports: Ports) -> Result<abi::NodeValue, Inexpressible> {
    let snat = |family| node.primary_ip(family).map(addr).transpose();
    let (v4, v6) = (snat(Family::V4)?, snat(Family::V6)?);
    let many = |family| u8::from(node.ips.iter().filter(|ip| Family::of(**ip) == family).count() > 1);
    Ok(abi::NodeValue {
        snat_v4: v4.unwrap_or_default(),
        snat_v6: v6.unwrap_or_default(),
        has_v4: u8::from(v4.is_some()),
        has_v6: u8::from(v6.is_some()),
        nat_first: ports.first,
        nat_ports: ports.count(),
        many_v4: many(Family::V4),
        many_v6: many(Family::V6),
        facts: facts(node)?,
    })
}

fn facts(node: &NodeFacts) -> Result<abi::Facts, Inexpressible> {
    let name = node.name.as_ref().map_or("", NodeName::as_str);
    let mut facts = abi::Facts {
        name: [0; abi::Facts::NAME],
        name_len: name.len() as u32,
        has_name: u32::from(node.name.is_some()),
        ips_len: node.ips.len() as u32,
        cidrs_len: node.cluster_cidrs.len() as u32,
        ips: [[0; 4]; abi::Facts::IPS],
        cidrs: [abi::PrefixBytes { addr: [0; 4], bits: 0 }; abi::Facts::CIDRS],
    };
    fits("bytes in its name", name.len(), abi::Facts::NAME)?;
    fits("addresses", node.ips.len(), abi::Facts::IPS)?;
    fits("prefixes of pods", node.cluster_cidrs.len(), abi::Facts::CIDRS)?;
    facts.name[..name.len()].copy_from_slice(name.as_bytes());
    for (place, &ip) in facts.ips.iter_mut().zip(&node.ips) {
        *place = addr(ip)?;
    }
    for (place, cidr) in facts.cidrs.iter_mut().zip(&node.cluster_cidrs) {
        *place = abi::PrefixBytes { addr: addr(cidr.addr())?, bits: cidr.prefix_len().into() };
    }
    Ok(facts)
}

const fn fits(what: &'static str, found: usize, max: usize) -> Result<(), Inexpressible> {
    if found <= max { Ok(()) } else { Err(Inexpressible::Facts { what, found, max }) }
}

pub(crate) fn node(value: &abi::NodeValue) -> Result<NodeFacts, Corrupt> {
    let corrupt = || Corrupt::of(value);
    let facts = &value.facts;
    let name = facts.name.get(..facts.name_len as usize).ok_or_else(corrupt)?;
    let name = std::str::from_utf8(name).map_err(|_| corrupt())?;
    let ips = facts.ips.get(..facts.ips_len as usize).ok_or_else(corrupt)?;
    let cidrs = facts.cidrs.get(..facts.cidrs_len as usize).ok_or_else(corrupt)?;
    let cidr = |prefix: &abi::PrefixBytes| IpNet::new(ip(prefix.addr), prefix.bits as u8).map_err(|_| corrupt());
    Ok(NodeFacts {
        name: (facts.has_name != 0).then(|| NodeName::new(name)),
        ips: ips.iter().copied().map(ip).collect(),
        cluster_cidrs: cidrs.iter().map(cidr).collect::<Result<_, _>>()?,
    })
}

/// Key and value of a prefix in the trie.
pub(crate) fn cidr(net: &IpNet) -> (abi::CidrKey, u8) {
    let net = net.trunc();
    let (extra, family) = match net {
        IpNet::V4(_) => (96, abi::FAMILY_V4),
        IpNet::V6(_) => (0, abi::FAMILY_V6),
    };
    // Not through `addr`: the prefix `::/0`, truncated, or `::ffff:0:0/96` is one of IPv6.
    let addr = match net.addr() {
        IpAddr::V4(v4) => abi::map_v4(v4.octets()),
        IpAddr::V6(v6) => abi::from_octets(v6.octets()),
    };
    (abi::CidrKey { bits: u32::from(net.prefix_len()) + extra, addr }, family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts_of(name: Option<&str>, ips: &[&str], cidrs: &[&str]) -> NodeFacts {
        NodeFacts {
            name: name.map(NodeName::new),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            cluster_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn a_node_survives_the_map_as_it_was_written() {
        for facts in [
            facts_of(None, &[], &[]),
            facts_of(Some("a"), &["192.0.2.1", "2001:db8::1"], &["10.0.0.7/8", "fd00::/48", "::/0"]),
        ] {
            assert_eq!(node(&node_value(&facts, Ports::default()).unwrap()), Ok(facts));
        }
    }

    #[test]
    fn translated_sources_are_the_first_of_their_family() {
        let value =
            node_value(&facts_of(None, &["2001:db8::1", "192.0.2.1", "192.0.2.2"], &[]), Ports::default()).unwrap();
        assert_eq!((value.has_v4, value.snat_v4), (1, abi::map_v4([192, 0, 2, 1])));
        assert_eq!(value.has_v6, 1);
    }

    #[test]
    fn too_many_addresses_are_refused() {
        let facts = facts_of(None, &["192.0.2.1"; 33], &[]);
        assert_eq!(
            node_value(&facts, Ports::default()),
            Err(Inexpressible::Facts { what: "addresses", found: 33, max: 32 })
        );
    }

    #[test]
    fn what_cannot_be_read_is_shown_as_a_few_bytes() {
        let key = abi::FrontendKey {
            addr: addr("10.96.0.1".parse().unwrap()).unwrap(),
            port: abi::Port::new(80),
            protocol: 99,
            scope: 0,
            pad: 0,
        };
        let error = frontend_addr(&key).unwrap_err();
        assert_eq!(error.to_string(), "unreadable entry of 24 bytes 00000000000000000000ffff0a600001…");
        assert!(frontend_addr(&abi::FrontendKey { protocol: 6, pad: 1, ..key }).is_err());
        assert!(frontend_addr(&abi::FrontendKey { protocol: 6, ..key }).is_ok());
        assert_eq!(Corrupt::of(&7_u32.to_be()).to_string(), "unreadable entry of 4 bytes 00000007");
    }

    #[test]
    fn a_mapped_address_is_refused() {
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(addr(mapped), Err(Inexpressible::Mapped(mapped)));
    }

    #[test]
    fn prefixes_of_both_families_share_the_trie() {
        let key = |cidr: &str| cidr_parts(&cidr.parse().unwrap());
        assert_eq!(key("10.1.2.3/8"), (104, abi::map_v4([10, 0, 0, 0]), abi::FAMILY_V4));
        assert_eq!(key("::/0"), (0, [0; 4], abi::FAMILY_V6));
    }

    fn cidr_parts(net: &IpNet) -> (u32, abi::Addr, u8) {
        let (key, family) = cidr(net);
        (key.bits, key.addr, family)
    }
}
