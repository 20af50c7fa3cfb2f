//! Networks as people write them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error};

/// A text that is not a network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a network, such as {example}")]
pub(super) struct BadNetwork {
    text: String,
    /// A network that may be meant.
    example: String,
}

/// A network in CIDR notation.
pub(super) fn parse(text: &str) -> Result<IpNet, BadNetwork> {
    text.parse().map_err(|_| {
        let address = text.split_once('/').map_or(text, |(address, _)| address);
        let meant = address.parse::<IpAddr>().map(IpNet::from);
        BadNetwork { text: text.into(), example: meant.map_or("10.244.0.0/16".into(), |meant| meant.to_string()) }
    })
}

/// As [`parse`] does.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| parse(text).map_err(D::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_an_address_and_a_length_and_an_error_shows_one() {
        assert_eq!(parse("10.244.0.11/32").unwrap().to_string(), "10.244.0.11/32");
        for (text, example) in [
            ("10.244.0.11", "10.244.0.11/32"),
            ("10.244.7.0/33", "10.244.7.0/32"),
            ("fd00::1", "fd00::1/128"),
            ("pods", "10.244.0.0/16"),
            ("", "10.244.0.0/16"),
        ] {
            let says = format!("`{text}` is not a network, such as {example}");
            assert_eq!(parse(text).unwrap_err().to_string(), says);
        }
    }

    #[test]
    fn a_configuration_file_says_the_same() {
        let of = |text: &str| deserialize(&mut serde_json::Deserializer::from_str(text));
        assert_eq!(of("[\"10.244.0.0/16\"]").unwrap().len(), 1);
        let error = of("[\"10.244.0.11\"]").unwrap_err().to_string();
        assert_eq!(error, "`10.244.0.11` is not a network, such as 10.244.0.11/32");
    }
}
