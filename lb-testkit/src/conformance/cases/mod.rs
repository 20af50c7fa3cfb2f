//! The cases, by what they are about.

mod affinity;
mod draining;
mod endpoints;
mod isolation;
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
    let all: [&[Case]; 7] = [
        &reach::CASES,
        &endpoints::CASES,
        &draining::CASES,
        &selection::CASES,
        &affinity::CASES,
        &restart::CASES,
        &isolation::CASES,
    ];
    all.concat()
}
