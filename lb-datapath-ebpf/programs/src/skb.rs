//! Bytes of packets, in and out.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use lb_datapath_ebpf_abi::Pod;

/// The helper refused.
#[derive(Clone, Copy)]
pub(crate) struct Refused;

/// What lies at `offset`, as it lies there; `None` if the packet ends before.
#[inline(always)]
pub(crate) fn load<T: Pod>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: `value` has room for as many bytes.
    let result = unsafe { bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) };
    // SAFETY: the helper has filled all of it, and every pattern of bytes is a value.
    (result == 0).then(|| unsafe { value.assume_init() })
}

/// Writes `value` at `offset`; the packet's checksums are the caller's, with `flags` also the one of the whole packet
/// that a device may have computed.
#[inline(always)]
pub(crate) fn store<T: Pod>(skb: *mut __sk_buff, offset: u32, value: &T, flags: u64) -> Result<(), Refused> {
    let from = core::ptr::from_ref(value);
    // SAFETY: `value` is that many bytes long.
    check(unsafe { bpf_skb_store_bytes(skb.cast(), offset, from.cast(), size_of::<T>() as u32, flags) })
}

/// A helper's result.
#[inline(always)]
pub(crate) fn check(result: i64) -> Result<(), Refused> {
    if result == 0 { Ok(()) } else { Err(Refused) }
}
