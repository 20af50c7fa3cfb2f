//! [`lb_agent::fuzzing::netlink`] under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lb_agent::fuzzing::netlink(data));
