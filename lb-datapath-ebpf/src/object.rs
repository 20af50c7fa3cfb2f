//! The embedded object, and what is changed in it for kernels that lack something.
//!
//! A verifier that does not know an instruction refuses the program that has it, even where it is never reached, unless
//! a constant says so before. Constants would be a map of their own, and variants of each program would double what has
//! to be loaded, named and pinned. So an instruction is exchanged before the object is loaded, as libbpf does for
//! helpers that have another name on older kernels:
//! <https://github.com/libbpf/libbpf/blob/v1.5.0/src/libbpf.c> (`bpf_object__sanitize_prog`).

use std::borrow::Cow;

use crate::{
    features::{CALL_SET_RETVAL, KernelFeatures, NO_CALL},
    sys::Insn,
};

/// Built by `cargo xtask build-ebpf` from `programs/`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("lb.bpf.o");

/// The object for a kernel with these features.
pub(crate) struct Object(Cow<'static, [u8]>);

impl Object {
    pub(crate) fn new(features: &KernelFeatures) -> Self {
        if features.socket_errors && features.fetch_add {
            return Self(Cow::Borrowed(OBJECT));
        }
        let mut bytes = padded(OBJECT);
        let start = aligned(&bytes);
        for code in executable(OBJECT) {
            let at = start + code.start..start + code.end;
            for bytes in bytes.get_mut(at).into_iter().flat_map(|code| code.chunks_exact_mut(Insn::SIZE)) {
                let insn = Insn::read(bytes);
                if !features.socket_errors && insn == Some(CALL_SET_RETVAL) {
                    NO_CALL.write(bytes);
                } else if let Some(without) = insn.and_then(Insn::without_fetch).filter(|_| !features.fetch_add) {
                    without.write(bytes);
                }
            }
        }
        Self(Cow::Owned(bytes))
    }

    /// The bytes, at an address of which an object can be read in words.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Cow::Borrowed(bytes) => bytes,
            Cow::Owned(bytes) => {
                let start = aligned(bytes);
                bytes.get(start..start + OBJECT.len()).unwrap_or_default()
            }
        }
    }
}

/// Alignment of an object of 64 bits.
const WORD: usize = 8;

/// A copy of `object` that begins at the first aligned address.
fn padded(object: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; object.len() + WORD];
    let start = aligned(&bytes);
    bytes[start..start + object.len()].copy_from_slice(object);
    bytes
}

fn aligned(bytes: &[u8]) -> usize {
    bytes.as_ptr().align_offset(WORD).min(WORD)
}

/// Where the object has instructions: sections that can be executed.
///
/// Section headers of ELF: <https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.sheader.html>.
fn executable(object: &[u8]) -> Vec<std::ops::Range<usize>> {
    const SHF_EXECINSTR: u64 = 4;
    let word = |at: usize| Some(u64::from_le_bytes(*object.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(*object.get(at..)?.first_chunk()?)));
    let (Some(headers), Some(size), Some(count)) = (word(0x28), half(0x3a), half(0x3c)) else { return Vec::new() };
    let section = |index: usize| {
        let field = |at: usize| word(usize::try_from(headers).ok()?.checked_add(index * size)?.checked_add(at)?);
        let (offset, length) = (usize::try_from(field(24)?).ok()?, usize::try_from(field(32)?).ok()?);
        (field(8)? & SHF_EXECINSTR != 0).then_some(offset..offset.checked_add(length)?)
    };
    (0..count).filter_map(section).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(object: &[u8], which: impl Fn(Insn) -> bool) -> usize {
        let code = executable(object).into_iter().flat_map(|code| object[code].chunks_exact(Insn::SIZE));
        code.filter_map(Insn::read).filter(|insn| which(*insn)).count()
    }

    #[test]
    fn the_object_is_changed_in_those_instructions_alone() {
        let is_call = |insn| insn == CALL_SET_RETVAL;
        let fetches = |insn: Insn| insn.without_fetch().is_some();
        let (calls, additions) = (count(OBJECT, is_call), count(OBJECT, fetches));
        assert!(calls > 0 && additions > 0, "{calls} calls, {additions} additions");
        for (socket_errors, fetch_add) in [(true, true), (false, true), (true, false), (false, false)] {
            let features = KernelFeatures { socket_errors, fetch_add, ..KernelFeatures::ALL };
            let object = Object::new(&features);
            let object = object.bytes();
            assert_eq!(object.as_ptr().align_offset(WORD), 0);
            let left = (count(object, is_call), count(object, fetches));
            assert_eq!(left, (if socket_errors { calls } else { 0 }, if fetch_add { additions } else { 0 }));
            let changed = object.chunks(Insn::SIZE).zip(OBJECT.chunks(Insn::SIZE)).filter(|(a, b)| a != b).count();
            assert_eq!(changed, calls + additions - left.0 - left.1);
            assert_eq!(object.len(), OBJECT.len());
        }
    }

    #[test]
    fn what_is_no_object_has_no_instructions() {
        for bytes in [&[][..], &[0; 0x3f], &[0xff; 0x100]] {
            assert_eq!(executable(bytes), [], "{bytes:?}");
        }
    }
}
