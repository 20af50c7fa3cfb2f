//! Values as bytes.

/// A type that is its bytes: no padding, no invalid bit pattern.
///
/// # Safety
/// Every byte of the type belongs to a field, and every pattern of bytes is a value.
pub unsafe trait Pod: Copy + 'static {
    /// The value's bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: the value is `size_of::<Self>()` initialised bytes, since the type has no padding.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The value with these bytes; `None` if there are more or fewer than it has.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: the length is right, every pattern is a value, and `read_unaligned` needs no alignment.
        Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }
}

// SAFETY: integers have no padding and no invalid patterns.
unsafe impl Pod for u8 {}
// SAFETY: as above.
unsafe impl Pod for u32 {}
// SAFETY: as above.
unsafe impl Pod for u64 {}
// SAFETY: arrays have no padding of their own.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}
