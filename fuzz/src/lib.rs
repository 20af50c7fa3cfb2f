//! Fuzz targets of lb: functions that take any bytes and panic if something that always holds does not.
//!
//! They are plain functions, so that `cargo test -p lb-fuzz` replays their corpora and some thousand mutations on a
//! stable toolchain; `cargo-fuzz/` hands the same functions to libFuzzer. They refuse nothing: every input is one that
//! somebody may send.
//!
//! ```
//! lb_fuzz::manifests(b"apiVersion: v1\nkind: Service\nmetadata: {name: \"\\e[2J\"}\n");
//! ```
#![forbid(unsafe_code)]

mod decide;
mod history;
mod maglev;
mod manifests;
pub mod mutate;
mod plan;
mod replay;
mod world;

pub use decide::decide;
pub use history::history;
pub use maglev::maglev;
pub use manifests::manifests;
pub use plan::plan;
pub use replay::replay;

/// A target.
pub type Target = fn(&[u8]);

/// All targets of public functions, with the names of their corpora. Those of private ones are in `lb_agent::fuzzing`.
pub const TARGETS: [(&str, Target); 5] =
    [("manifests", manifests), ("history", history), ("plan", plan), ("decide", decide), ("maglev", maglev)];
