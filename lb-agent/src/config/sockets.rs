//! How sockets of this node are served.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;

/// How a datapath that translates sockets serves them.
///
/// Later versions may add settings, so start with [`default`](Self::default).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketService {
    /// Which sockets are sent to a backend where they state their destination. Default: all.
    pub balanced: SocketLb,
    /// Addresses of pods whose sockets are not sent to a backend there, whatever [`balanced`](Self::balanced) says. Their
    /// packets are translated at devices. Default: none.
    pub except: Vec<IpNet>,
    /// Whether sockets of the node are kept from ports of the node that are frontends. Default: on.
    pub guard_ports: Switch,
    /// Whether sockets of the node reach node ports at loopback addresses. Default: on.
    pub loopback_node_ports: Switch,
    /// The ports that are node ports. Default 30000–32767.
    pub node_ports: PortRange,
}

/// The sockets that are sent to a backend where they state their destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketLb {
    /// Those of the node and of pods.
    #[default]
    All,
    /// Those of the agent's network namespace alone, usually the host's.
    Host,
    /// None.
    Off,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// It is.
    #[default]
    On,
    /// It is not.
    Off,
}

impl Switch {
    /// Whether it is done.
    #[must_use]
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Ports from a first to a last one, such as `30000-32767`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PortRange(pub RangeInclusive<u16>);

/// A text that is not a range of ports.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of ports from 1 to 65535, such as 30000-32767")]
pub struct BadPortRange(String);

impl Default for PortRange {
    fn default() -> Self {
        Self(30_000..=32_767)
    }
}

impl FromStr for PortRange {
    type Err = BadPortRange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ports = text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
        let ports = ports.filter(|ports: &RangeInclusive<u16>| *ports.start() > 0 && !ports.is_empty());
        ports.map(Self).ok_or_else(|| BadPortRange(text.into()))
    }
}

impl TryFrom<String> for PortRange {
    type Error = BadPortRange;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_two_ports_in_order() {
        for text in ["30000-32767", "1-65535", "80-80"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
        for text in ["", "80", "0-80", "81-80", "1-65536", "1-2-3", "a-b", "-1"] {
            assert_eq!(text.parse::<PortRange>(), Err(BadPortRange(text.into())));
        }
        assert_eq!(PortRange::default().to_string(), "30000-32767");
    }
}
