//! The embedded object, and what is changed in it for the kernel that runs.
//!
//! A verifier that does not know an instruction refuses the program that has it, even where it is never reached, unless
//! a constant says so before. Constants would be a map of their own, and variants of each program would double what has
//! to be loaded, named and pinned. So an instruction is exchanged before the object is loaded, as libbpf does for
//! helpers that have another name on older kernels:
//! <https://github.com/libbpf/libbpf/blob/v1.5.0/src/libbpf.c> (`bpf_object__sanitize_prog`).

use crate::{
    features::{CALL_SET_RETVAL, KernelFeatures, NO_CALL, NO_EXCHANGE},
    sys::Insn,
};

/// Built by `cargo xtask build-ebpf` from `programs/`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("lb.bpf.o");

/// The object for a kernel with these features.
pub(crate) struct Object(Vec<u8>);

impl Object {
    pub(crate) fn new(features: &KernelFeatures) -> Self {
        let mut object = Self(padded(OBJECT));
        for section in executable(OBJECT) {
            let mut marked = None;
            let code = object.bytes_mut().get_mut(section).unwrap_or_default();
            for bytes in code.chunks_exact_mut(Insn::SIZE) {
                let Some(insn) = Insn::read(bytes) else { continue };
                let exchanged = match insn {
                    CALL_SET_RETVAL if !features.socket_errors => Some(NO_CALL),
                    _ if insn.exchanges() => (!features.fetch_add).then_some(NO_EXCHANGE),
                    _ if features.fetch_add => insn.fetching(marked),
                    _ => None,
                };
                if let Some(exchanged) = exchanged {
                    exchanged.write(bytes);
                }
                marked = insn.marked();
            }
        }
        object
    }

    /// The bytes, at an address of which an object can be read in words.
    pub(crate) fn bytes(&self) -> &[u8] {
        let start = aligned(&self.0);
        self.0.get(start..start + OBJECT.len()).unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let start = aligned(&self.0);
        self.0.get_mut(start..start + OBJECT.len()).unwrap_or_default()
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

    /// Calls of the helper, additions that return something, marked ones that do not, and exchanges.
    fn count(object: &[u8]) -> [usize; 4] {
        let mut counts = [0; 4];
        for code in executable(object) {
            let insns: Vec<_> = object[code].chunks_exact(Insn::SIZE).filter_map(Insn::read).collect();
            counts[0] += insns.iter().filter(|insn| **insn == CALL_SET_RETVAL).count();
            counts[1] += insns.iter().filter(|insn| insn.fetches()).count();
            counts[2] += insns.windows(2).filter(|pair| pair[1].fetching(pair[0].marked()).is_some()).count();
            counts[3] += insns.iter().filter(|insn| insn.exchanges()).count();
        }
        counts
    }

    #[test]
    fn the_object_is_changed_in_those_instructions_alone() {
        let [calls, fetching, marked, exchanges] = count(OBJECT);
        assert!(calls > 0 && marked > 0 && fetching == 0, "{calls} calls, {marked} additions, {fetching} fetch");
        assert!(exchanges > 0);
        for (socket_errors, fetch_add) in [(true, true), (false, true), (true, false), (false, false)] {
            let features = KernelFeatures { socket_errors, fetch_add, ..KernelFeatures::ALL };
            let object = Object::new(&features);
            let object = object.bytes();
            assert_eq!(object.as_ptr().align_offset(WORD), 0);
            assert_eq!(object.len(), OBJECT.len());
            let left = if socket_errors { calls } else { 0 };
            let fetch = if fetch_add { marked } else { 0 };
            let exchanged = if fetch_add { exchanges } else { 0 };
            assert_eq!(count(object), [left, fetch, marked - fetch, exchanged]);
            let changed = object.chunks(Insn::SIZE).zip(OBJECT.chunks(Insn::SIZE)).filter(|(a, b)| a != b).count();
            assert_eq!(changed, calls - left + fetch + exchanges - exchanged);
        }
    }

    #[test]
    fn what_is_no_object_has_no_instructions() {
        for bytes in [&[][..], &[0; 0x3f], &[0xff; 0x100]] {
            assert_eq!(executable(bytes), [], "{bytes:?}");
        }
    }
}
