//! Checks of single values: a value that passes is safe to hand on.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use lb_core::addr::Protocol;

use crate::{
    limits::{MAX_LABEL_LENGTH, MAX_NAME_LENGTH},
    text::quoted,
};

/// Why an object is refused: a field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) field: String,
    pub(crate) message: String,
}

impl Invalid {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "field `{}`: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Puts a check's message onto a field; the field's path is only built when needed.
pub(crate) trait At<T> {
    fn at(self, field: impl FnOnce() -> String) -> Result<T, Invalid>;
}

impl<T> At<T> for Result<T, String> {
    fn at(self, field: impl FnOnce() -> String) -> Result<T, Invalid> {
        self.map_err(|message| Invalid::new(field(), message))
    }
}

/// DNS-1123 label: the names of services, namespaces and service ports.
pub(crate) fn label(name: &str) -> Result<&str, String> {
    let fits = name.len() <= MAX_LABEL_LENGTH && is_dns_label(name);
    fits.then_some(name).ok_or_else(|| {
        format!("{} is not a DNS label (1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends)", quoted(name))
    })
}

/// DNS-1123 subdomain: the names of everything else.
pub(crate) fn subdomain(name: &str) -> Result<&str, String> {
    let fits = name.len() <= MAX_NAME_LENGTH && name.split('.').all(is_dns_label);
    fits.then_some(name).ok_or_else(|| format!("{} is not a DNS name (DNS labels joined by dots)", quoted(name)))
}

fn is_dns_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

/// Key of a label: an optional DNS subdomain and `/`, then a value that is not empty.
pub(crate) fn label_key(key: &str) -> Result<&str, String> {
    let (prefix, name) = key.split_once('/').unwrap_or(("x", key));
    let fits = subdomain(prefix).is_ok() && !name.is_empty() && is_label_value(name);
    fits.then_some(key).ok_or_else(|| format!("{} is not the key of a label", quoted(key)))
}

/// Value of a label.
pub(crate) fn label_value(value: &str) -> Result<&str, String> {
    is_label_value(value)
        .then_some(value)
        .ok_or_else(|| format!("{} is not the value of a label (up to 63 of A-Z, a-z, 0-9, -, _ and .)", quoted(value)))
}

/// Name of a zone: the value of a label, and not empty.
pub(crate) fn zone(name: &str) -> Result<&str, String> {
    if name.is_empty() { Err("a zone needs a name".to_owned()) } else { label_value(name) }
}

fn is_label_value(value: &str) -> bool {
    let outer = |byte: u8| byte.is_ascii_alphanumeric();
    let inner = |byte: u8| outer(byte) || matches!(byte, b'-' | b'_' | b'.');
    let bytes = value.as_bytes();
    value.len() <= 63
        && bytes.iter().copied().all(inner)
        && bytes.first().copied().is_none_or(outer)
        && bytes.last().copied().is_none_or(outer)
}

/// Name of a container port, RFC 6335: up to 15 characters with a letter among them.
pub(crate) fn port_name(name: &str) -> Result<&str, String> {
    let has_letter = name.bytes().any(|byte| byte.is_ascii_lowercase());
    let fits = name.len() <= 15 && is_dns_label(name) && !name.contains("--") && has_letter;
    fits.then_some(name).ok_or_else(|| {
        format!("{} is not the name of a port (1 to 15 of a-z, 0-9 and -, with a letter among them)", quoted(name))
    })
}

/// A port number.
pub(crate) fn port(number: i32) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|&port| port > 0);
    port.ok_or_else(|| format!("{number} is not a port, expected 1 to 65535"))
}

/// A transport protocol; TCP if there is none.
pub(crate) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{} is not a protocol, expected TCP, UDP or SCTP", quoted(other))),
    }
}

/// A number within bounds, as annotations write it.
pub(crate) fn number(text: &str, max: u32) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|&number| digits && number <= max);
    number.ok_or_else(|| format!("{} is not a number from 0 to {max}", quoted(text)))
}

/// A unicast address that a service, a pod or a server can have.
pub(crate) fn ip(text: &str) -> Result<IpAddr, String> {
    let ip = parse_ip(text).ok_or_else(|| format!("{} is not an IP address", quoted(text)))?;
    match special(ip) {
        Some(kind) => Err(format!("{ip} is {kind} and cannot be served")),
        None => Ok(ip),
    }
}

/// As kube-proxy reads addresses: leading zeros of IPv4 are decimal.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| sloppy_ipv4(text).map(IpAddr::V4))
}

fn sloppy_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let digits = (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        *octet = part.parse().ok().filter(|_| digits)?;
    }
    parts.next().is_none().then_some(Ipv4Addr::from(octets))
}

fn special(ip: IpAddr) -> Option<&'static str> {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let is_mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    [
        (ip.is_unspecified(), "the unspecified address"),
        (ip.is_loopback(), "a loopback address"),
        (is_link_local, "a link-local address"),
        (ip.is_multicast(), "a multicast address"),
        (is_broadcast, "the broadcast address"),
        (is_mapped, "an IPv4 address written as IPv6"),
    ]
    .into_iter()
    .find_map(|(is, kind)| is.then_some(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dns() {
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "a\nb", "ä", "../x", long.as_str()] {
            assert!(label(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "0", "a-b", "web-1", &long[1..]] {
            assert_eq!(label(good), Ok(good));
        }
        for bad in ["", ".", "a..b", ".a", "a.", "a.-b"] {
            assert!(subdomain(bad).is_err(), "{bad:?}");
        }
        assert_eq!(subdomain("node-1.example.com"), Ok("node-1.example.com"));
    }

    #[test]
    fn labels_follow_kubernetes() {
        for good in ["app", "app.kubernetes.io/name", "x/A_b.c"] {
            assert_eq!(label_key(good), Ok(good));
        }
        for bad in ["", "/x", "a/", "a/b/c", "a b", "-x"] {
            assert!(label_key(bad).is_err(), "{bad:?}");
        }
        assert_eq!(label_value(""), Ok(""));
        assert!(label_value("a b").is_err());
        assert!(port_name("123").is_err() && port_name("a--b").is_err() && port_name("http-alt").is_ok());
    }

    #[test]
    fn ports_and_numbers_have_bounds() {
        assert_eq!(port(65535), Ok(65535));
        for bad in [0, -1, 65536] {
            assert_eq!(port(bad), Err(format!("{bad} is not a port, expected 1 to 65535")));
        }
        assert_eq!(number("65535", 65535), Ok(65535));
        for bad in ["", "65536", "-1", "+1", "1.0", " 1", "99999999999999999999"] {
            assert!(number(bad, 65535).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_read_as_kube_proxy_reads_them() {
        assert_eq!(ip("010.001.0.9"), Ok("10.1.0.9".parse().unwrap()));
        assert_eq!(ip("FD00::0:1"), Ok("fd00::1".parse().unwrap()));
        for bad in ["", "10.0.0", "10.0.0.0.1", "10.0.0.256", "0x0a.0.0.1", "10.0.0.+1", "fe80::1%eth0", " 10.0.0.1"] {
            assert_eq!(ip(bad), Err(format!("{bad:?} is not an IP address")));
        }
    }

    #[test]
    fn addresses_that_cannot_be_served_are_refused() {
        assert_eq!(ip("127.0.0.1"), Err("127.0.0.1 is a loopback address and cannot be served".to_owned()));
        for bad in ["0.0.0.0", "::", "::1", "169.254.1.1", "fe80::1", "224.0.0.1", "ff02::1", "::ffff:10.0.0.1"] {
            assert!(ip(bad).is_err(), "{bad}");
        }
    }
}
