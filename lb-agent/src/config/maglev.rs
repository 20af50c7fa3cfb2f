//! The hash and the seed of the Maglev tables that the agent builds.

use clap::ValueEnum;
use lb_core::maglev::{CiliumSeed, HashFamily, siphash_key};
use serde::Deserialize;

/// The hash that Maglev tables are built with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaglevHash {
    /// SipHash under a key, so that nobody who does not know the key can skew a table.
    #[default]
    Lb,
    /// The hash of Cilium: its tables for the same backends, weights and seed are the same.
    Cilium,
}

/// A seed that the hash cannot take. The message never repeats the seed, which may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadSeed {
    /// Not one of lb.
    #[error(
        "the seed of --maglev-hash lb is base64 of 16 bytes, 24 characters such as `head -c 16 /dev/urandom | base64` \
         prints: check --maglev-seed"
    )]
    Lb,
    /// One of Cilium, given to lb.
    #[error(
        "the seed of --maglev-hash lb is base64 of 16 bytes, and --maglev-seed has 12, as Cilium's has: set --maglev-hash \
         cilium as well"
    )]
    OfCilium,
    /// Not one of Cilium.
    #[error(
        "the seed of --maglev-hash cilium is Cilium's maglev.hashSeed, base64 of 12 bytes, 16 characters such as \
         JLfvgnHc2kaSUFaI: check --maglev-seed"
    )]
    Cilium,
}

impl MaglevHash {
    /// The name, as the command line writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lb => "lb",
            Self::Cilium => "cilium",
        }
    }

    /// This hash under a seed, or under the public default seed.
    ///
    /// # Errors
    /// When the seed is not one of this hash.
    pub fn family(self, seed: Option<&str>) -> Result<HashFamily, BadSeed> {
        match (self, seed) {
            (Self::Lb, None) => Ok(HashFamily::default()),
            (Self::Lb, Some(seed)) => match siphash_key(seed) {
                Some(key) => Ok(HashFamily::SipHash(key)),
                None if seed.parse::<CiliumSeed>().is_ok() => Err(BadSeed::OfCilium),
                None => Err(BadSeed::Lb),
            },
            (Self::Cilium, None) => Ok(HashFamily::Cilium(CiliumSeed::default())),
            (Self::Cilium, Some(seed)) => seed.parse().map(HashFamily::Cilium).map_err(|_| BadSeed::Cilium),
        }
    }

    /// The hash of a family.
    pub const fn of(family: &HashFamily) -> Self {
        match family {
            HashFamily::SipHash(_) => Self::Lb,
            HashFamily::Cilium(_) => Self::Cilium,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_base64_of_as_many_bytes_as_the_hash_takes() {
        let lb = |seed| MaglevHash::Lb.family(Some(seed));
        assert_eq!(lb("bGItbWFnbGV2LWtleS12MQ=="), MaglevHash::Lb.family(None), "base64 of lb-maglev-key-v1");
        assert_eq!(lb("/////////////////////w=="), Ok(HashFamily::SipHash([0xff; 16])));
        assert_eq!(MaglevHash::Cilium.family(Some("JLfvgnHc2kaSUFaI")), MaglevHash::Cilium.family(None));
        assert_ne!(MaglevHash::Cilium.family(Some("AAAAAAAAAAAAAAAA")), MaglevHash::Cilium.family(None));
    }

    #[test]
    fn any_other_seed_is_refused_and_not_repeated() {
        let long = "A".repeat(1 << 20);
        let noise = ["", "=", "==", "\0", "\u{1b}[2J", "ÄÄÄÄÄÄÄÄÄÄÄ==", "AAAAAAAAAAAAAAAAAAAAAAA=", &long];
        // 23 digits, a character that is none, bits beyond the 128.
        let lb = [
            "AAAAAAAAAAAAAAAAAAAAAAA==",
            "AAAAAAAAAAAAAAAAAAAAA-==",
            "AAAAAAAAAAAAAAAAAAAAAB==",
            "AAAA AAAAAAAAAAAAAAAAA==",
        ];
        for seed in noise.iter().chain(&lb) {
            assert_eq!(MaglevHash::Lb.family(Some(seed)), Err(BadSeed::Lb), "{seed:.40?}");
        }
        for seed in noise.iter().chain(&["bGItbWFnbGV2LWtleS12MQ==", "JLfvgnHc2kaSUFa=", "JLfvgnHc2kaSUFaI\n"]) {
            assert_eq!(MaglevHash::Cilium.family(Some(seed)), Err(BadSeed::Cilium), "{seed:.40?}");
        }
        let error = MaglevHash::Lb.family(Some("JLfvgnHc2kaSUFaI")).unwrap_err();
        assert!(error.to_string().ends_with("set --maglev-hash cilium as well"), "{error}");
    }
}
