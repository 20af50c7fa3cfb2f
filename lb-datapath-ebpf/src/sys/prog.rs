//! Programs.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use aya_obj::generated::bpf_cmd;

use super::{IfIndex, address, address_mut, bpf, bpf_fd, name, query, raw};

/// What the kernel says about a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgInfo {
    pub(crate) id: u32,
    /// Hash of its instructions, whatever maps they name.
    pub(crate) tag: u64,
    /// At most 15 bytes of it.
    pub(crate) name: String,
    /// Ids of its maps, at most [`MAPS`].
    pub(crate) maps: Vec<u32>,
}

/// Most maps of a program that are looked at. The programs of this crate have fewer.
const MAPS: usize = 64;

/// What the kernel says about a program.
pub(crate) fn prog_info(fd: BorrowedFd<'_>) -> io::Result<ProgInfo> {
    /// Words of `struct bpf_prog_info` up to the name, which all exist since Linux 4.15:
    /// <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/bpf.h>.
    const WORDS: usize = 20;
    /// Where the number of maps and their address are, in words.
    const MAP_COUNT: usize = 13;
    const MAP_IDS: usize = 14;
    let mut ids = [0_u32; MAPS];
    let mut words = [0_u32; WORDS];
    let at = address_mut(&mut ids);
    words[MAP_COUNT] = MAPS as u32;
    (words[MAP_IDS], words[MAP_IDS + 1]) = halves(at);
    query(fd, &mut words)?;
    let [_kind, id, tag_low, tag_high, ..] = words;
    let count = (words[MAP_COUNT] as usize).min(MAPS);
    let tag = u64::from_be_bytes(bytes([tag_low, tag_high]));
    Ok(ProgInfo { id, tag, name: name(&words[MAP_IDS + 2..]), maps: ids[..count].to_vec() })
}

const fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

const fn bytes([low, high]: [u32; 2]) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (low.to_ne_bytes(), high.to_ne_bytes());
    [a, b, c, d, e, f, g, h]
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

/// The program with this id. Wants `CAP_SYS_ADMIN`.
pub(crate) fn prog_by_id(id: u32) -> io::Result<OwnedFd> {
    by_id(bpf_cmd::BPF_PROG_GET_FD_BY_ID, id)
}

/// The map with this id. Wants `CAP_SYS_ADMIN`.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    by_id(bpf_cmd::BPF_MAP_GET_FD_BY_ID, id)
}

fn by_id(cmd: bpf_cmd, id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr { id, ..IdAttr::default() };
    // SAFETY: the attributes hold no addresses.
    unsafe { bpf_fd(cmd, &mut attr) }
}

#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog: u32,
    verdict: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestRun {
    pub(crate) verdict: i32,
    pub(crate) packet: Vec<u8>,
}

/// Runs a program on `packet` as if it came in through `device`.
pub(crate) fn test_run(prog: BorrowedFd<'_>, packet: &[u8], device: IfIndex) -> io::Result<TestRun> {
    /// `__sk_buff` up to its `ifindex`, the only field that is not zero. The kernel refuses most others:
    /// <https://elixir.bootlin.com/linux/v6.18/source/net/bpf/test_run.c> (`convert___skb_to_skb`).
    const CONTEXT: usize = 11;
    /// No answer is longer than its packet by as much as this.
    const ROOM: usize = 512;
    let mut context = [0_u32; CONTEXT];
    context[CONTEXT - 1] = device.0;
    let mut out = vec![0_u8; packet.len() + ROOM];
    let mut attr = RunAttr {
        prog: raw(prog),
        data_size_in: packet.len() as u32,
        data_size_out: out.len() as u32,
        data_in: address(packet),
        data_out: address_mut(&mut out),
        ctx_size_in: size_of_val(&context) as u32,
        ctx_in: address(&context),
        ..RunAttr::default()
    };
    // SAFETY: the packet, the room and the context are as long as the attributes say.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    out.truncate(attr.data_size_out as usize);
    Ok(TestRun { verdict: attr.verdict as i32, packet: out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_as_they_lie_in_memory() {
        let (low, high) = halves(0x0102_0304_0506_0708);
        assert_eq!(u64::from_ne_bytes(bytes([low, high])), 0x0102_0304_0506_0708);
    }
}
