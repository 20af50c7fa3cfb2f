//! Names of chains and of `recent` lists.

use std::fmt::{self, Write as _};

use lb_core::{
    addr::{BackendAddr, FrontendAddr},
    id::{BackendId, FrontendId},
};
use sha2::{Digest as _, Sha256};

/// One rule per frontend; `PREROUTING` and `OUTPUT` of nat jump here.
pub(crate) const SERVICES: &str = "LB-SERVICES";
/// Marks for source translation.
pub(crate) const MARK_MASQ: &str = "LB-MARK-MASQ";
/// Marks for source translation unless the source is a pod.
pub(crate) const MARK_SOURCE: &str = "LB-MARK-SOURCE";
/// Marks for refusal.
pub(crate) const MARK_REJECT: &str = "LB-MARK-REJECT";
/// Marks for silence.
pub(crate) const MARK_DROP: &str = "LB-MARK-DROP";
/// Holds the node's facts as comments; nothing jumps here.
pub(crate) const NODE: &str = "LB-NODE";
/// Translates marked sources; `POSTROUTING` jumps here.
pub(crate) const POSTROUTING: &str = "LB-POSTROUTING";
/// Refuses and drops what nat marked; `INPUT`, `FORWARD` and `OUTPUT` of filter jump here.
pub(crate) const FILTER: &str = "LB-FILTER";
/// Ends packets of lb's flows that conntrack can make nothing of; `INPUT` and `OUTPUT` of filter jump here.
pub(crate) const INVALID: &str = "LB-INVALID";
/// The same for packets that pass; `FORWARD` jumps here.
pub(crate) const INVALID_FORWARD: &str = "LB-INVALID-FORWARD";
/// What the names of the chains begin with that know frontends, and the chain that leads there.
pub(crate) const INVALID_TO: &str = "LB-INVALID-TO";
/// The same for backends.
pub(crate) const INVALID_FROM: &str = "LB-INVALID-FROM";
/// What the names of all chains begin with.
pub(crate) const PREFIX: &str = "LB-";

/// A chain that belongs to one frontend.
///
/// Named like kube-proxy's: a prefix and 16 characters of base32 over SHA-256, well below the 28 characters that a
/// chain's name may have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Chain {
    kind: Kind,
    hash: [u8; 16],
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Service,
    Endpoint,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Service => "LB-SVC-",
            Self::Endpoint => "LB-SEP-",
        }
    }
}

impl Chain {
    /// Where a frontend chooses.
    pub(crate) fn service(frontend: FrontendAddr) -> Self {
        Self { kind: Kind::Service, hash: hash(format_args!("{frontend}")) }
    }

    /// Where a frontend's flows to one backend get their destination.
    pub(crate) fn endpoint(frontend: FrontendAddr, backend: BackendAddr) -> Self {
        Self { kind: Kind::Endpoint, hash: hash(format_args!("{frontend} {backend}")) }
    }

    /// The chain with this name, if it is one of lb that belongs to a frontend.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Kind::Service, Kind::Endpoint].into_iter().find_map(|kind| {
            let hash = name.strip_prefix(kind.prefix())?.as_bytes().try_into().ok()?;
            Some(Self { kind, hash })
        })
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.prefix())?;
        self.hash.iter().try_for_each(|&byte| f.write_char(char::from(byte)))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The list in which the `recent` module remembers clients of a frontend that went to a backend.
///
/// Named by ids, not by addresses: a frontend or backend that comes back under another id starts without records.
pub(crate) struct RecentList(pub(crate) FrontendId, pub(crate) BackendId);

impl fmt::Display for RecentList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LB-{}-{}", self.0, self.1)
    }
}

/// The first 80 bits of the SHA-256 of `text` in base32.
fn hash(text: fmt::Arguments<'_>) -> [u8; 16] {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut hasher = Hashed(Sha256::new());
    hasher.write_fmt(text).expect("a hasher takes every text");
    let digest = hasher.0.finalize();
    let bits = digest.iter().take(10).fold(0u128, |bits, &byte| bits << 8 | u128::from(byte));
    std::array::from_fn(|index| ALPHABET[(bits >> (75 - 5 * index) & 31) as usize])
}

struct Hashed(Sha256);

impl fmt::Write for Hashed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_beginning_of_the_base32_of_sha256() {
        // printf web | sha256sum | xxd -r -p | base32
        assert_eq!(&hash(format_args!("w{}", "eb")), b"JNPFP5XLF5BLSA43");
    }

    #[test]
    fn names_are_read_back_and_fit() {
        let frontend = FrontendAddr::new([10, 96, 0, 1].into(), 80, lb_core::addr::Protocol::Tcp);
        let backend = BackendAddr::new([10, 0, 0, 1].into(), 8080, lb_core::addr::Protocol::Tcp);
        for chain in [Chain::service(frontend), Chain::endpoint(frontend, backend)] {
            let name = chain.to_string();
            assert!(name.len() <= 28, "{name}");
            assert_eq!(Chain::parse(&name), Some(chain));
        }
        for foreign in [SERVICES, "LB-SVC-SHORT", "KUBE-SVC-JNPFP5XLF5BLSA43", "LB-SEP-JNPFP5XLF5BLSA43X"] {
            assert_eq!(Chain::parse(foreign), None, "{foreign}");
        }
    }
}
