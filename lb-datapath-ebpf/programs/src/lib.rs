//! Packet logic of the eBPF programs: functions over bytes that run in the kernel and in unit tests alike.
//!
//! No function here panics or indexes by a value that the compiler cannot bound: a panic path makes the verifier refuse
//! the object.
#![no_std]
#![forbid(unsafe_code)]

pub mod tc;
