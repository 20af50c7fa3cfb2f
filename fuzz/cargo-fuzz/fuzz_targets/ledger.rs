//! [`lb_agent::fuzzing::ledger`] under libFuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lb_agent::fuzzing::ledger(data));
