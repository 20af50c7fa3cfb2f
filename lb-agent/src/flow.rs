//! Packets as people write them.

use std::net::{IpAddr, SocketAddr};

use lb_core::{Entry, NodeFacts, Packet, Protocol, Wanted};

/// What is wrong with a packet.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    #[error("protocol `{0}` is not known, expected tcp, udp or sctp")]
    Protocol(String),
    #[error("{field} `{text}` is not ADDRESS:PORT, such as 10.0.0.1:80 or [fd00::1]:80")]
    Address { field: &'static str, text: String },
    #[error("{field} `{text}` has port 0, expected 1..=65535")]
    PortZero { field: &'static str, text: String },
    #[error("backend `{0}` is neither ADDRESS:PORT nor ADDRESS, such as 10.0.0.1:80, [fd00::1]:80 or fd00::1")]
    Backend(String),
    #[error("source {from} and destination {to} are of different families")]
    Families { from: IpAddr, to: IpAddr },
    #[error("entry `{0}` is not known, expected socket, pod or uplink")]
    Entry(String),
}

/// A packet out of its four parts. Without `entry` it enters where its source is at home: a node's own address at a
/// socket, a pod's at the pod's device, any other at an uplink.
pub fn parse(
    protocol: &str,
    source: &str,
    destination: &str,
    entry: Option<&str>,
    node: &NodeFacts,
) -> Result<Packet, FlowError> {
    let protocol = parse_protocol(protocol)?;
    let source = parse_address("source", source)?;
    let destination = parse_address("destination", destination)?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(FlowError::Families { from: source.ip(), to: destination.ip() });
    }
    let entry = match entry {
        Some(entry) => parse_entry(entry)?,
        None => entry_of(source.ip(), node),
    };
    Ok(Packet {
        entry,
        protocol,
        source: source.ip(),
        source_port: source.port(),
        destination: destination.ip(),
        destination_port: destination.port(),
    })
}

/// A backend, with or without its port.
pub fn parse_backend(text: &str) -> Result<Wanted, FlowError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Wanted { ip: address.ip().to_canonical(), port: Some(address.port()) });
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let ip: IpAddr = bare.parse().map_err(|_| FlowError::Backend(text.into()))?;
    Ok(Wanted { ip: ip.to_canonical(), port: None })
}

fn entry_name(entry: Entry) -> &'static str {
    match entry {
        Entry::Socket => "socket",
        Entry::PodDevice => "pod",
        Entry::Uplink => "uplink",
    }
}

fn entry_of(source: IpAddr, node: &NodeFacts) -> Entry {
    if node.ips.contains(&source) || source.is_loopback() {
        Entry::Socket
    } else if node.is_pod(source) {
        Entry::PodDevice
    } else {
        Entry::Uplink
    }
}

fn parse_protocol(text: &str) -> Result<Protocol, FlowError> {
    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let found = known.into_iter().find(|protocol| protocol.as_str().eq_ignore_ascii_case(text));
    found.ok_or_else(|| FlowError::Protocol(text.into()))
}

fn parse_entry(text: &str) -> Result<Entry, FlowError> {
    let known = [Entry::Socket, Entry::PodDevice, Entry::Uplink];
    known.into_iter().find(|&entry| entry_name(entry) == text).ok_or_else(|| FlowError::Entry(text.into()))
}

fn parse_address(field: &'static str, text: &str) -> Result<SocketAddr, FlowError> {
    let address: SocketAddr = text.parse().map_err(|_| FlowError::Address { field, text: text.into() })?;
    if address.port() == 0 {
        return Err(FlowError::PortZero { field, text: text.into() });
    }
    // What a socket of both families says of an IPv4 peer.
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeFacts {
        NodeFacts {
            ips: vec!["192.0.2.1".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            ..NodeFacts::default()
        }
    }

    #[test]
    fn a_packet_enters_where_its_source_is_at_home() {
        let entry = |source| parse("tcp", source, "10.96.0.1:80", None, &node()).unwrap().entry;
        assert_eq!(entry("192.0.2.1:4000"), Entry::Socket);
        assert_eq!(entry("10.244.3.4:4000"), Entry::PodDevice);
        assert_eq!(entry("198.51.100.1:4000"), Entry::Uplink);
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        let packet = parse("tcp", "[::ffff:10.244.3.4]:4000", "10.96.0.1:80", None, &node()).unwrap();
        assert_eq!((packet.source, packet.entry), ("10.244.3.4".parse().unwrap(), Entry::PodDevice));
    }

    #[test]
    fn what_is_said_wins() {
        let packet = parse("UDP", "[fd00::1]:53", "[fd00::2]:53", Some("socket"), &node()).unwrap();
        assert_eq!((packet.entry, packet.protocol, packet.source_port), (Entry::Socket, Protocol::Udp, 53));
    }

    #[test]
    fn a_backend_may_lack_its_port() {
        let backend = |text| parse_backend(text).map(|wanted| wanted.to_string());
        assert_eq!(backend("10.244.0.5:8080").as_deref(), Ok("10.244.0.5:8080"));
        assert_eq!(backend("::ffff:10.244.0.5").as_deref(), Ok("10.244.0.5"));
        assert_eq!(
            (backend("[fd00::5]").as_deref(), backend("[fd00::5]:1").as_deref()),
            (Ok("fd00::5"), Ok("[fd00::5]:1"))
        );
        assert_eq!(backend("httpd-1"), Err(FlowError::Backend("httpd-1".into())));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let error = |protocol, source, destination, entry| {
            parse(protocol, source, destination, entry, &node()).unwrap_err().to_string()
        };
        let good = "10.0.0.1:1";
        assert!(error("icmp", good, good, None).contains("`icmp`"));
        assert!(error("tcp", "10.0.0.1", good, None).starts_with("source `10.0.0.1` is not ADDRESS:PORT"));
        assert!(error("tcp", good, "[::1]", None).starts_with("destination `[::1]`"));
        assert!(error("tcp", good, "10.0.0.1:0", None).contains("port 0"));
        assert!(error("tcp", good, "[::1]:1", None).contains("different families"));
        assert!(error("tcp", good, good, Some("door")).contains("`door`"));
    }
}
