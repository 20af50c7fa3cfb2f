//! Programs.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use aya_obj::generated::{
    BPF_ADD, BPF_ALU64, BPF_ATOMIC, BPF_CALL, BPF_DW, BPF_EXIT, BPF_FETCH, BPF_JMP, BPF_K, BPF_MEM, BPF_MOV, BPF_ST,
    BPF_STX, BPF_X,
    bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
    bpf_cmd,
    bpf_prog_type::{BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_PROG_TYPE_SCHED_CLS},
};

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

/// An instruction: operation, registers, offset and constant, as the kernel reads it.
///
/// <https://www.rfc-editor.org/rfc/rfc9669>
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    constant: i32,
}

impl Insn {
    pub(crate) const SIZE: usize = size_of::<Self>();
    pub(crate) const EXIT: Self = Self::new(BPF_JMP | BPF_EXIT, 0, 0, 0);

    const fn new(code: u32, registers: u8, offset: i16, constant: i32) -> Self {
        Self { code: code as u8, registers, offset, constant }
    }

    /// A call of a helper of the kernel.
    pub(crate) const fn call(helper: i32) -> Self {
        Self::new(BPF_JMP | BPF_CALL, 0, 0, helper)
    }

    /// Sets a register.
    pub(crate) const fn mov(register: u8, constant: i32) -> Self {
        Self::new(BPF_ALU64 | BPF_MOV | BPF_K, register, 0, constant)
    }

    /// Sets a register to what another one has.
    pub(crate) const fn copy(register: u8, source: u8) -> Self {
        Self::new(BPF_ALU64 | BPF_MOV | BPF_X, source << 4 | register, 0, 0)
    }

    /// Adds to a register.
    pub(crate) const fn add(register: u8, constant: i32) -> Self {
        Self::new(BPF_ALU64 | BPF_ADD | BPF_K, register, 0, constant)
    }

    /// Sets eight bytes of memory.
    pub(crate) const fn store(register: u8, offset: i16, constant: i32) -> Self {
        Self::new(BPF_ST | BPF_MEM | BPF_DW, register, offset, constant)
    }

    /// Adds a register to eight bytes of memory, and loads what they were into it.
    pub(crate) const fn fetch_add(register: u8, offset: i16, source: u8) -> Self {
        Self::new(BPF_STX | BPF_ATOMIC | BPF_DW, source << 4 | register, offset, (BPF_ADD | BPF_FETCH) as i32)
    }

    /// Whether it exchanges eight bytes of memory if they are those of register 0, and loads what they were into it.
    pub(crate) fn exchanges(self) -> bool {
        /// `BPF_CMPXCHG`, which has [`BPF_FETCH`] in it.
        const COMPARE_AND_EXCHANGE: i32 = 0xf0 | BPF_FETCH as i32;
        self == Self {
            constant: COMPARE_AND_EXCHANGE,
            ..Self::fetch_add(self.registers & 0xf, self.offset, self.registers >> 4)
        }
    }

    /// Whether it adds to memory and loads what was there.
    #[cfg(test)]
    pub(crate) fn fetches(self) -> bool {
        self == Self { registers: self.registers, offset: self.offset, ..Self::fetch_add(0, 0, 0) }
    }

    /// The register that it moves to itself. No compiler writes that: it is the mark of an addition whose old value is
    /// used, though the instruction set that the programs are compiled for has none.
    pub(crate) fn marked(self) -> Option<u8> {
        let (to, from) = (self.registers & 0xf, self.registers >> 4);
        let is_move = self == Self::new(BPF_ALU64 | BPF_MOV | BPF_X, self.registers, 0, 0);
        (is_move && to == from).then_some(to)
    }

    /// If it is the addition behind the mark of its register: one that loads what was there.
    pub(crate) fn fetching(self, marked: Option<u8>) -> Option<Self> {
        let fetching = Self::fetch_add(self.registers & 0xf, self.offset, self.registers >> 4);
        let plain = Self { constant: BPF_ADD as i32, ..fetching };
        (self == plain && marked == Some(self.registers >> 4)).then_some(fetching)
    }

    /// The instruction in these bytes of an object, which is little-endian.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let [code, registers, o0, o1, c0, c1, c2, c3] = *bytes.first_chunk()?;
        let (offset, constant) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes([c0, c1, c2, c3]));
        Some(Self { code, registers, offset, constant })
    }

    /// Writes it into eight bytes of an object.
    pub(crate) fn write(self, bytes: &mut [u8]) {
        let ([o0, o1], [c0, c1, c2, c3]) = (self.offset.to_le_bytes(), self.constant.to_le_bytes());
        if let Some(bytes) = bytes.first_chunk_mut() {
            *bytes = [self.code, self.registers, o0, o1, c0, c1, c2, c3];
        }
    }
}

/// `struct bpf_attr` of `BPF_PROG_LOAD`, up to the attach type.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    attach_type: u32,
}

/// Loads a program of the `connect` hook of IPv4.
pub(crate) fn load_connect4(insns: &[Insn]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = LoadAttr {
        kind: BPF_PROG_TYPE_CGROUP_SOCK_ADDR as u32,
        count: insns.len() as u32,
        insns: address(insns),
        license: license.as_ptr() as u64,
        attach_type: BPF_CGROUP_INET4_CONNECT as u32,
        ..LoadAttr::default()
    };
    // SAFETY: there are `count` instructions, and the license is a string that ends in a zero byte.
    unsafe { bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) }
}

/// Loads a program of packets at devices.
pub(crate) fn load_classifier(insns: &[Insn]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = LoadAttr {
        kind: BPF_PROG_TYPE_SCHED_CLS as u32,
        count: insns.len() as u32,
        insns: address(insns),
        license: license.as_ptr() as u64,
        ..LoadAttr::default()
    };
    // SAFETY: there are `count` instructions, and the license is a string that ends in a zero byte.
    unsafe { bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) }
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
