//! Seeds as text.

use core::str::FromStr;

/// Seed of [`HashFamily::Cilium`](super::HashFamily::Cilium): what Cilium calls `maglev.hashSeed`, base64 of 12 bytes.
///
/// The first four bytes are the seed of the table and all that counts here; the others are seeds of Cilium's own flow
/// hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CiliumSeed {
    pub(super) murmur: u32,
}

/// The text is not base64 of 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a seed is base64 of 12 bytes: 16 characters of A-Z, a-z, 0-9, + and /")]
pub struct BadSeed;

impl Default for CiliumSeed {
    /// Cilium's default: `JLfvgnHc2kaSUFaI`.
    fn default() -> Self {
        Self { murmur: 0x24b7_ef82 }
    }
}

impl FromStr for CiliumSeed {
    type Err = BadSeed;

    /// # Errors
    /// When `text` is not base64 of 12 bytes.
    fn from_str(text: &str) -> Result<Self, BadSeed> {
        if text.len() != 16 {
            return Err(BadSeed);
        }
        let bits = text.bytes().try_fold(0, |bits: u128, byte| Some(bits << 6 | u128::from(sextet(byte)?)));
        Ok(Self { murmur: (bits.ok_or(BadSeed)? >> 64) as u32 })
    }
}

/// A key of [`HashFamily::SipHash`](super::HashFamily::SipHash) from base64 of 16 bytes, in its one form: 22 digits and `==`,
/// with zeros in what the digits have beyond 128 bits. `None` for any other text.
///
/// ```
/// use lb_core::maglev::{HashFamily, siphash_key};
/// assert_eq!(siphash_key("bGItbWFnbGV2LWtleS12MQ==").map(HashFamily::SipHash), Some(HashFamily::default()));
/// assert_eq!(siphash_key("bGItbWFnbGV2LWtleS12MQ"), None);
/// ```
#[must_use]
pub fn siphash_key(text: &str) -> Option<[u8; 16]> {
    let digits = text.strip_suffix("==").filter(|digits| digits.len() == 22)?;
    let (last, whole) = digits.as_bytes().split_last()?;
    let bits = whole.iter().try_fold(0, |bits: u128, &byte| Some(bits << 6 | u128::from(sextet(byte)?)))?;
    let last = sextet(*last)?;
    (last % 16 == 0).then(|| (bits << 2 | u128::from(last >> 4)).to_be_bytes())
}

const fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}
