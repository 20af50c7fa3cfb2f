//! The ports of translated sources: none that the kernel assigns to the node's own sockets.
//!
//! A flow with a translated source and a socket of the node can talk to the same backend from the same port. The
//! backend would see one tuple for both, and its answers could not be told apart.

use std::{fs, ops::RangeInclusive, path::Path};

use crate::error::EbpfError;

const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// Below the ports that Kubernetes assigns as node ports (30000 to 32767).
const CANDIDATES: RangeInclusive<u16> = 1024..=29_999;
/// Fewer would limit the flows from outside to one backend too much.
pub(crate) const LEAST: usize = 1024;

/// First and last port that a translated source may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { first: *CANDIDATES.start(), last: *CANDIDATES.end() }
    }
}

impl Ports {
    /// Those that the network namespace of the calling thread leaves, for both families.
    pub(crate) fn free() -> Result<Self, EbpfError> {
        let (local, reserved) = (read(LOCAL)?, read(RESERVED)?);
        Self::outside(&local, &reserved)
            .ok_or_else(|| EbpfError::NoPorts { local: words(&local).join("-"), reserved: reserved.trim().into() })
    }

    /// The longest run of candidates that sockets do not get on their own, given the texts of both settings.
    fn outside(local: &str, reserved: &str) -> Option<Self> {
        let local = match words(local)[..] {
            [first, last] => number(first)?..=number(last)?,
            _ => return None,
        };
        let reserved: Vec<_> = reserved.trim().split(',').filter_map(range).collect();
        let is_free = |port: &u16| !local.contains(port) || reserved.iter().any(|range| range.contains(port));
        let free: Vec<u16> = CANDIDATES.filter(is_free).collect();
        let runs = free.chunk_by(|a, b| a + 1 == *b).filter(|run| run.len() >= LEAST);
        let longest = runs.max_by_key(|run| run.len())?;
        Some(Self { first: *longest.first()?, last: *longest.last()? })
    }

    pub(crate) const fn count(self) -> u16 {
        self.last - self.first + 1
    }

    pub(crate) const fn range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

fn read(path: &'static str) -> Result<String, EbpfError> {
    fs::read_to_string(path).map_err(|source| EbpfError::Setting { path: Path::new(path), source })
}

fn words(text: &str) -> Vec<&str> {
    text.split_ascii_whitespace().collect()
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok()
}

/// `8080` or `9000-9100`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(number(first)?..=number(last)?)
}

#[cfg(test)]
mod tests {
    use super::Ports;

    #[test]
    fn sockets_of_the_node_never_share_them() {
        for (local, reserved, expected) in [
            ("32768\t60999\n", "\n", Some((1024, 29_999))),
            ("20000\t65535\n", "\n", Some((1024, 19_999))),
            ("1024\t9999\n", "\n", Some((10_000, 29_999))),
            ("10000\t12000\n", "\n", Some((12_001, 29_999))),
            ("2048\t65535\n", "\n", Some((1024, 2047))),
            ("2047\t65535\n", "\n", None),
            ("1024\t65535\n", "\n", None),
            ("1024\t65535\n", "8080,10000-19999\n", Some((10_000, 19_999))),
            ("1024\t65535\n", "10000-11022\n", None),
            ("10000\t65535\n", "8000,10000-10999\n", Some((1024, 10_999))),
            ("0\t0\n", "\n", Some((1024, 29_999))),
            ("", "\n", None),
        ] {
            let ports = Ports::outside(local, reserved).map(|ports| (ports.first, ports.last));
            assert_eq!(ports, expected, "{local:?} {reserved:?}");
        }
    }
}
