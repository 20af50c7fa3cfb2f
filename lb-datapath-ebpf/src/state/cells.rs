//! What TCP sockets were sent to, in elements that programs own.

use std::sync::atomic::Ordering;

use lb_datapath_ebpf_abi::{Pod, SockCell, SockKey, SockPeer};

use crate::sys::Longs;

/// Words of an element.
const WORDS: usize = size_of::<SockCell>() / size_of::<u64>();
/// Its word with the cookie, and the one with the protocol.
const COOKIE: usize = 0;
const PROTOCOL: usize = std::mem::offset_of!(SockKey, protocol) / size_of::<u64>();

/// `SOCK_CELLS`.
#[derive(Debug)]
pub(crate) struct Cells(Longs);

impl Cells {
    pub(crate) const fn new(longs: Longs) -> Self {
        Self(longs)
    }

    /// Sockets with their peers, and the virtual addresses behind these. One that programs take or give up meanwhile
    /// may be missing.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (SockKey, SockPeer)> {
        self.0.all().chunks_exact(WORDS).filter_map(|words| {
            let cookie = words[COOKIE].load(Ordering::Acquire);
            if cookie == 0 || cookie == SockCell::LEFT {
                return None;
            }
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect();
            let SockCell { key, peer, .. } = SockCell::from_bytes(&bytes)?;
            let is_whole = key.cookie == cookie && words[COOKIE].load(Ordering::Acquire) == cookie;
            (is_whole && key.protocol != 0).then_some((key, peer))
        })
    }

    /// Takes its element away from a socket, if it has one. A process that ends in the middle leaves an element that
    /// nobody uses any more.
    pub(crate) fn remove(&self, cookie: u64) {
        let at = SockCell::index(cookie) as usize * WORDS;
        let Some(words) = self.0.all().get(at..at + WORDS) else { return };
        let (acquire, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        if words[COOKIE].compare_exchange(cookie, SockCell::LEFT, acquire, relaxed).is_ok() {
            words[PROTOCOL].store(0, Ordering::Relaxed);
            words[COOKIE].store(0, Ordering::Release);
        }
    }
}
