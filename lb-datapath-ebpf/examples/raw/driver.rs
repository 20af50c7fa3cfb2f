//! Runs the same packet through a program many times in one call.
//!
//! The kernel runs a packet that a program has rewritten again as it is, which is another packet. So the program that
//! `BPF_PROG_TEST_RUN` runs is one of two drivers: both write the packet back as it was, and then continue (a tail call)
//! with the program that is measured, or with one that returns at once. The difference is what the program costs.

use std::{
    error::Error,
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use crate::raw::{bpf, bpf_fd, halves, load, number, returning};

/// What the program that returns at once says.
const FLOOR: i32 = -1;
const SCHED_CLS: u32 = 3;

/// A program that is measured, and a packet.
pub(crate) struct Driver {
    measured: OwnedFd,
    floor: OwnedFd,
    frame: Vec<u8>,
    context: Vec<u8>,
    /// The kernel empties such an array when nobody has a descriptor of it any more.
    _programs: OwnedFd,
}

impl Driver {
    /// For a program of type `sched_cls` and packets that are as `frame`; `context` is a `__sk_buff` or its beginning.
    pub(crate) fn new(program: BorrowedFd<'_>, frame: Vec<u8>, context: Vec<u8>) -> io::Result<Self> {
        const ARRAY: u32 = 2;
        const PROG_ARRAY: u32 = 3;
        let packet = array(ARRAY, frame.len() as u32, 1)?;
        set(&packet, 0, &frame)?;
        let programs = array(PROG_ARRAY, 4, 2)?;
        let floor = load(SCHED_CLS, 0, &returning(FLOOR))?;
        set(&programs, 0, &program.as_raw_fd().to_ne_bytes())?;
        set(&programs, 1, &floor.as_raw_fd().to_ne_bytes())?;
        let driver = |index| load(SCHED_CLS, 0, &instructions(&packet, frame.len() as u32, &programs, index));
        Ok(Self { measured: driver(0)?, floor: driver(1)?, frame, context, _programs: programs })
    }

    /// Nanoseconds of one run, without what the driver costs; negative if other work got in between. `verdict` is what
    /// the program has to say.
    pub(crate) fn run(&self, repeat: u32, verdict: i32) -> Result<i64, Box<dyn Error>> {
        let measured = self.once(&self.measured, repeat, verdict)?;
        Ok(measured - self.once(&self.floor, repeat, FLOOR)?)
    }

    fn once(&self, program: &OwnedFd, repeat: u32, expected: i32) -> Result<i64, Box<dyn Error>> {
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        let mut attr = [0; 16];
        (attr[0], attr[2], attr[8]) = (number(program), self.frame.len() as u32, repeat);
        (attr[4], attr[5]) = halves(self.frame.as_ptr());
        attr[10] = self.context.len() as u32;
        (attr[12], attr[13]) = halves(self.context.as_ptr());
        bpf(BPF_PROG_TEST_RUN, &mut attr)?;
        let verdict = attr[1] as i32;
        if verdict != expected {
            return Err(format!("verdict {verdict}, expected {expected}").into());
        }
        Ok(i64::from(attr[9]))
    }
}

/// Writes `packet` over the packet, and goes on with program `index` of `programs`.
fn instructions(packet: &OwnedFd, len: u32, programs: &OwnedFd, index: i32) -> [u64; 14] {
    const SKB_STORE_BYTES: i32 = 9;
    const TAIL_CALL: i32 = 12;
    const MAP: u64 = 1;
    const MAP_VALUE: u64 = 2;
    let insn =
        |code: u64, to: u64, from: u64, constant: i32| code | to << 8 | from << 12 | (constant as u32 as u64) << 32;
    let (copy, set, call, wide) = (0xbf, 0xb7, 0x85, 0x18);
    [
        insn(copy, 6, 1, 0),
        insn(set, 2, 0, 0),
        insn(wide, 3, MAP_VALUE, packet.as_raw_fd()),
        0,
        insn(set, 4, 0, len as i32),
        insn(set, 5, 0, 0),
        insn(call, 0, 0, SKB_STORE_BYTES),
        insn(copy, 1, 6, 0),
        insn(wide, 2, MAP, programs.as_raw_fd()),
        0,
        insn(set, 3, 0, index),
        insn(call, 0, 0, TAIL_CALL),
        // There is no such program.
        insn(set, 0, 0, i32::MIN),
        insn(0x95, 0, 0, 0),
    ]
}

/// Makes an array of any kind.
fn array(kind: u32, value: u32, entries: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    bpf_fd(BPF_MAP_CREATE, &mut [kind, 4, value, entries])
}

/// Writes an element of an array, of the length that it has.
fn set(map: &OwnedFd, index: u32, value: &[u8]) -> io::Result<()> {
    const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
    let mut attr = [0; 8];
    attr[0] = number(map);
    (attr[2], attr[3]) = halves(&raw const index);
    (attr[4], attr[5]) = halves(value.as_ptr());
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}
