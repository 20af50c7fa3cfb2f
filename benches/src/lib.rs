//! Criterion benches of lb: `cargo bench -p lb-benches`. Each states its question, its baseline and the size at which
//! it matters.
