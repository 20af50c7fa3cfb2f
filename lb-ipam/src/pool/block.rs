//! Blocks: what a pool is made of.

use alloc::{string::String, string::ToString};
use core::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::AddressRange;

/// One block of a pool, as its source wrote it. It may be wrong: a pool with a wrong block is out of service as a
/// whole and says which block it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// A network. Host bits are ignored, with a warning.
    Cidr(IpNet),
    /// From `start` to `stop`, both included. Never loses its first and last address to
    /// [`allow_first_last`](crate::Pool::allow_first_last).
    Range {
        /// The lowest address.
        start: IpAddr,
        /// The highest address.
        stop: IpAddr,
    },
    /// One address.
    Address(IpAddr),
    /// A text that is no block.
    Unreadable(String),
}

impl Block {
    /// Reads `10.0.0.0/24`, `10.0.0.1-10.0.0.9` or `10.0.0.1`; every other text is [`Block::Unreadable`].
    ///
    /// ```
    /// use lb_ipam::Block;
    /// assert_eq!(Block::parse("2001:db8::/64").to_string(), "2001:db8::/64");
    /// assert_eq!(Block::parse(" 10.0.0.1 - 10.0.0.9 ").to_string(), "10.0.0.1-10.0.0.9");
    /// assert_eq!(Block::parse("10.0.0.0/33"), Block::Unreadable("10.0.0.0/33".into()));
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        let range = || {
            let (start, stop) = text.split_once('-')?;
            Some(Self::Range { start: start.trim().parse().ok()?, stop: stop.trim().parse().ok()? })
        };
        let cidr = || text.parse().ok().map(Self::Cidr);
        let address = || text.parse().ok().map(Self::Address);
        cidr().or_else(address).or_else(range).unwrap_or_else(|| Self::Unreadable(text.to_string()))
    }

    /// The addresses of the block.
    ///
    /// # Errors
    /// When the block is wrong.
    pub fn range(&self) -> Result<AddressRange, BlockProblem> {
        match self {
            Self::Cidr(net) => Ok(AddressRange::of_net(*net)),
            Self::Address(address) => Ok(AddressRange::single(*address)),
            Self::Range { start, stop } => AddressRange::new(*start, *stop).ok_or_else(|| {
                if start.is_ipv4() == stop.is_ipv4() { BlockProblem::Reversed } else { BlockProblem::MixedFamilies }
            }),
            Self::Unreadable(_) => Err(BlockProblem::Unreadable),
        }
    }

    /// The network that a CIDR with host bits is taken for.
    pub(crate) fn masked(&self) -> Option<IpNet> {
        let Self::Cidr(net) = self else { return None };
        (net.trunc() != *net).then(|| net.trunc())
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(net) => net.fmt(f),
            Self::Range { start, stop } => write!(f, "{start}-{stop}"),
            Self::Address(address) => address.fmt(f),
            Self::Unreadable(text) => f.write_str(text),
        }
    }
}

/// The error of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockProblem {
    /// The range starts after it stops.
    #[error("starts after it stops; swap the two addresses")]
    Reversed,
    /// The range starts in one family and stops in another.
    #[error("mixes IPv4 and IPv6; write one block for each")]
    MixedFamilies,
    /// Neither a network nor a range nor an address.
    #[error("is not a block; write a network (10.0.0.0/24), a range (10.0.0.1-10.0.0.9) or an address")]
    Unreadable,
}
