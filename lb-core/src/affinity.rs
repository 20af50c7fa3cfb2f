//! Client affinity.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use crate::{
    addr::BackendAddr,
    flow_hash::{self, FLOW_SEED},
    time::Instant,
};

/// Client-IP affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// A record holds while `now < last use + timeout`; every new flow of the client renews it. Whole seconds,
    /// 1..=86400 from Kubernetes, default 10800.
    pub timeout: Duration,
    /// Bits of an IPv4 source that make a client, 0..=32. Default 32.
    pub prefix_v4: u8,
    /// Bits of an IPv6 source that make a client, 0..=128. Default 128.
    pub prefix_v6: u8,
}

impl Affinity {
    /// Kubernetes' default time-out: three hours.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10_800);
}

impl Default for Affinity {
    fn default() -> Self {
        Self { timeout: Self::DEFAULT_TIMEOUT, prefix_v4: 32, prefix_v6: 128 }
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout, prefix_v4, prefix_v6 } = self;
        write!(f, "affinity of /{prefix_v4} and /{prefix_v6} for {} s", timeout.as_secs_f64())
    }
}

/// The memory of a datapath about a client of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityRecord {
    /// The backend that the client uses.
    pub backend: BackendAddr,
    /// When the client last opened a flow.
    pub last_use: Instant,
}

impl AffinityRecord {
    /// Whether the record holds at `now`: the time-out is half-open, so at `last_use + timeout` it does not.
    #[must_use]
    pub fn holds(&self, affinity: &Affinity, now: Instant) -> bool {
        now.since(self.last_use) < affinity.timeout
    }
}

impl Affinity {
    /// The client that `source` belongs to: its prefix.
    #[must_use]
    pub fn client(&self, source: IpAddr) -> IpAddr {
        match source {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_v4.min(32))).unwrap_or(0);
                Ipv4Addr::from_bits(ip.to_bits() & mask).into()
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix_v6.min(128))).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & mask).into()
            }
        }
    }

    /// The hash of a client, which takes the place of the flow hash under affinity.
    #[must_use]
    pub fn client_hash(&self, source: IpAddr) -> u32 {
        match self.client(source) {
            IpAddr::V4(ip) => flow_hash::jhash(&[u32::from_le_bytes(ip.octets())], FLOW_SEED),
            IpAddr::V6(ip) => flow_hash::jhash(&flow_hash::address_words(ip.octets()), FLOW_SEED),
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::addr::Protocol;

    #[test]
    fn the_time_out_is_half_open() {
        let affinity = Affinity { timeout: Duration::from_secs(10), ..Affinity::default() };
        let backend = BackendAddr::new(Ipv4Addr::LOCALHOST.into(), 80, Protocol::Tcp);
        let record = AffinityRecord { backend, last_use: Instant::new(Duration::from_secs(5)) };
        assert!(record.holds(&affinity, Instant::new(Duration::from_millis(14_999))));
        assert!(!record.holds(&affinity, Instant::new(Duration::from_secs(15))));
    }

    #[test]
    fn a_client_is_a_prefix() {
        let affinity = Affinity { prefix_v4: 24, prefix_v6: 64, ..Affinity::default() };
        let client = |ip: &str| affinity.client(ip.parse().unwrap()).to_string();
        assert_eq!(client("192.0.2.77"), "192.0.2.0");
        assert_eq!(client("2001:db8:0:1::77"), "2001:db8:0:1::");
        let everybody = Affinity { prefix_v4: 0, prefix_v6: 0, ..affinity };
        assert_eq!(everybody.client("192.0.2.77".parse().unwrap()).to_string(), "0.0.0.0");
        assert_eq!(everybody.client("2001:db8::1".parse().unwrap()).to_string(), "::");
    }

    use alloc::string::ToString;
}
