//! The decisions of the eBPF programs, for the kernel and for unit tests alike.
//!
//! Everything here is generic over the maps and over the packet or the socket. The programs in `main.rs` fill in the
//! kernel's, so the compiler makes one copy without any indirection; the tests fill in the fakes of `fake`.
//!
//! No function here panics or indexes by a value that the compiler cannot bound: a panic path makes the verifier refuse
//! the object.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

#[cfg(test)]
mod fake;
pub mod maps;
pub mod protocol;
pub mod select;
pub mod sock;
pub mod tc;
