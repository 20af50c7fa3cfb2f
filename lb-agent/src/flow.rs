//! Addresses of packets and backends, as people write them.

use std::net::{IpAddr, SocketAddr};

use lb_core::{
    decision::{BackendQuery, Entry},
    node::NodeFacts,
};

/// A part of a packet that cannot be meant. The message does not name the part: its reader knows which one it wrote.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// The protocol is not one of those that services have.
    #[error("`{0}` is not known, expected tcp, udp or sctp")]
    Protocol(String),
    /// The text is not an address with a port.
    #[error("`{0}` is not ADDRESS:PORT, such as 10.0.0.1:80 or [fd00::1]:80")]
    Address(String),
    /// No packet goes to port 0 or comes from it.
    #[error("`{0}` has port 0, expected 1..=65535")]
    PortZero(String),
    /// The text is not an address, with or without a port.
    #[error("`{0}` is neither ADDRESS:PORT nor ADDRESS, such as 10.0.0.1:80, [fd00::1]:80 or fd00::1")]
    Backend(String),
    /// No packet goes from one family to the other.
    #[error("source {from} and destination {to} are of different families")]
    Families {
        /// Sender.
        from: IpAddr,
        /// Receiver.
        to: IpAddr,
    },
}

/// Sender or receiver of a packet: `ADDRESS:PORT`, an IPv6 address in brackets. An IPv4-mapped address becomes IPv4, as
/// a socket of both families reports an IPv4 peer.
///
/// # Errors
/// When the text is something else, or the port is 0.
pub fn parse_end(text: &str) -> Result<SocketAddr, FlowError> {
    let end: SocketAddr = text.parse().map_err(|_| FlowError::Address(text.into()))?;
    if end.port() == 0 {
        return Err(FlowError::PortZero(text.into()));
    }
    Ok(SocketAddr::new(end.ip().to_canonical(), end.port()))
}

/// A backend: `ADDRESS:PORT`, or `ADDRESS` for any port. Brackets around an IPv6 address without a port may be left
/// out.
///
/// # Errors
/// When the text is neither.
pub fn parse_backend(text: &str) -> Result<BackendQuery, FlowError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(BackendQuery { ip: address.ip().to_canonical(), port: Some(address.port()) });
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let ip: IpAddr = bare.parse().map_err(|_| FlowError::Backend(text.into()))?;
    Ok(BackendQuery { ip: ip.to_canonical(), port: None })
}

pub(crate) fn same_family(from: IpAddr, to: IpAddr) -> Result<(), FlowError> {
    if from.is_ipv4() == to.is_ipv4() { Ok(()) } else { Err(FlowError::Families { from, to }) }
}

/// Where a packet enters: that of an address of the node at a socket, that of a pod at the device of the pod, any other
/// at an uplink.
pub(crate) fn entry_of(source: IpAddr, node: &NodeFacts) -> Entry {
    if node.ips.contains(&source) || source.is_loopback() {
        Entry::Socket
    } else if node.is_pod(source) {
        Entry::PodDevice
    } else {
        Entry::Uplink
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn an_end_has_an_address_and_a_port() {
        assert_eq!(parse_end("[::ffff:10.0.0.1]:80"), Ok("10.0.0.1:80".parse().unwrap()));
        assert_eq!(parse_end("10.0.0.1:0"), Err(FlowError::PortZero("10.0.0.1:0".into())));
        for text in ["10.0.0.1", "[::1]", "::1:80", "httpd-1:80"] {
            assert_eq!(parse_end(text), Err(FlowError::Address(text.into())));
        }
    }
}
