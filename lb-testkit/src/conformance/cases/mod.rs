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

use super::Case;

/// Names every function of a list after itself.
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        [$($crate::conformance::Case { name: stringify!($name), play: $name }),+]
    };
}
use cases;

pub(super) fn all() -> Vec<Case> {
    let all: [&[Case]; 10] = [
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
    ];
    all.concat()
}
