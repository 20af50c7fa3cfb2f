//! Counters of connections, by which least connections choose.

use crate::Pod;

/// Counters of one backend. A processor counts in that of its number modulo this, so that up to so many of them do not
/// fight for a cache line; whoever reads them adds them up.
pub const LOAD_LANES: u32 = 8;

/// Key of `LOADS`. The value is a `u64` that wraps around: a connection may begin on one processor and end on another, so
/// that the sum counts alone.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadKey {
    /// The backend's id.
    pub backend: u32,
    /// `0..LOAD_LANES`.
    pub lane: u32,
}

/// Connections that a backend has, from the sum of its counters. Less than none is none: an end was counted whose
/// beginning user space has taken out.
#[inline(always)]
#[must_use]
pub const fn connections(sum: u64) -> u64 {
    if (sum as i64) < 0 { 0 } else { sum }
}

const _: () = assert!(size_of::<LoadKey>() == 8);
const _: () = assert!(LOAD_LANES.is_power_of_two());

// SAFETY: integers, the sum of whose sizes is the asserted size.
unsafe impl Pod for LoadKey {}
