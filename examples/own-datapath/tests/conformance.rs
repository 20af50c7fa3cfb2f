//! The conformance suite of lb against [`own_datapath::Audited`], with real packets. It needs root:
//! `cargo test --test conformance -- --ignored`.

use std::process::ExitCode;

use lb_core::memory::MemoryDatapath;
use lb_datapath_iptables::nftables::NftablesDatapath;
use lb_testkit::conformance::{Subject, Tally, trials};
use libtest_mimic::Arguments;
use own_datapath::Audited;

fn main() -> ExitCode {
    lb_testkit::run_if_worker();
    let nftables = Subject::packets("nftables-audited", |_| {
        let below = NftablesDatapath::open(&own_datapath::table())?;
        Ok(Box::new(Audited::new("nftables-audited", below)))
    });
    let memory =
        Subject::state_only("memory-audited", || Box::new(Audited::new("memory-audited", MemoryDatapath::default())));
    let tally = Tally::default();
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials([nftables, memory], &tally));
    println!("{tally}");
    conclusion.exit_code()
}
