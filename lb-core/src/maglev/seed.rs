//! Seeds as text.

use core::str::FromStr;

use base64::{Engine, prelude::BASE64_STANDARD};

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
        let [a, b, c, d, ..] = decoded::<12>(text).ok_or(BadSeed)?;
        Ok(Self { murmur: u32::from_be_bytes([a, b, c, d]) })
    }
}

/// A key of [`HashFamily::SipHash`](super::HashFamily::SipHash) from base64 of 16 bytes, in its one form: 22 digits and
/// `==`, with zeros in what the digits have beyond 128 bits. `None` for any other text.
///
/// ```
/// use lb_core::maglev::{HashFamily, siphash_key};
/// assert_eq!(siphash_key("bGItbWFnbGV2LWtleS12MQ==").map(HashFamily::SipHash), Some(HashFamily::default()));
/// assert_eq!(siphash_key("bGItbWFnbGV2LWtleS12MQ"), None);
/// ```
#[must_use]
pub fn siphash_key(text: &str) -> Option<[u8; 16]> {
    decoded(text)
}

/// Exactly `N` bytes, at most 16, from base64 in its one form: with its padding, and with zeros in unused bits.
fn decoded<const N: usize>(text: &str) -> Option<[u8; N]> {
    // As much as the decoder asks for before it has looked at the padding of 16 bytes.
    let mut bytes = [0; 18];
    let len = BASE64_STANDARD.decode_slice(text, &mut bytes).ok()?;
    bytes[..len].try_into().ok()
}
