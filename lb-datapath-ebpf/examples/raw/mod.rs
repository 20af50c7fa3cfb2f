//! Programs of a few instructions, loaded by `bpf(2)`: what the eBPF objects are measured beside.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// `r0 = VALUE` and `exit`.
pub(crate) const fn returning(value: i32) -> [u64; 2] {
    [(value as u32 as u64) << 32 | 0xb7, 0x95]
}

/// Loads a program of a type and an attach type.
pub(crate) fn load(kind: u32, attach_type: u32, insns: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    // Words of `union bpf_attr` up to `expected_attach_type`.
    let mut attr = [0; 18];
    (attr[0], attr[1], attr[17]) = (kind, insns.len() as u32, attach_type);
    (attr[2], attr[3]) = halves(insns.as_ptr());
    (attr[4], attr[5]) = halves(c"GPL".as_ptr());
    bpf_fd(BPF_PROG_LOAD, &mut attr)
}

/// Two words of an attribute that are an address.
pub(crate) fn halves<T>(at: *const T) -> (u32, u32) {
    let address = at as u64;
    (address as u32, (address >> 32) as u32)
}

/// A command of `bpf(2)` that makes a descriptor. Every address in `attr` is that of something as long as the command
/// takes it to be.
pub(crate) fn bpf_fd(command: libc::c_int, attr: &mut [u32]) -> io::Result<OwnedFd> {
    // SAFETY: a command that this is called with returns a descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(bpf(command, attr)?) })
}

/// A command of `bpf(2)`, as above.
pub(crate) fn bpf(command: libc::c_int, attr: &mut [u32]) -> io::Result<i32> {
    // SAFETY: `attr` is as long as the call is told; for the addresses in it see above.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// The number of a descriptor, as attributes hold it.
pub(crate) fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd() as u32
}
