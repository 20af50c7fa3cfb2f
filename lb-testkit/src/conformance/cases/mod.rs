//! The cases, by what they are about.

mod access;
mod affinity;
mod draining;
mod endpoints;
mod flows;
mod isolation;
mod neighbours;
mod reach;
mod restart;
mod selection;
mod three_nodes;

use super::Case;

/// Names every function of a list after itself. A lab has two nodes unless the list says another number.
macro_rules! cases {
    ($nodes:literal nodes: $($name:ident),+ $(,)?) => {
        [$($crate::conformance::Case { name: stringify!($name), nodes: $nodes, play: $name }),+]
    };
    ($($name:ident),+ $(,)?) => { cases![2 nodes: $($name),+] };
}
use cases;

pub(super) fn all() -> Vec<Case> {
    let all: [&[Case]; 11] = [
        &reach::CASES,
        &endpoints::CASES,
        &draining::CASES,
        &flows::CASES,
        &selection::CASES,
        &affinity::CASES,
        &restart::CASES,
        &neighbours::CASES,
        &isolation::CASES,
        &access::CASES,
        &three_nodes::CASES,
    ];
    all.concat()
}
