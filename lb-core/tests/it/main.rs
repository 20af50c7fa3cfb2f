//! Stories and properties of the whole crate.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod drift;
mod model;
mod plans;
mod reconciler;
mod worlds;
