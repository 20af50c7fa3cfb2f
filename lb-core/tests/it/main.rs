//! Stories and properties of the whole crate.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod addresses;
mod draining;
mod drift;
mod evictions;
mod health;
mod health_check;
mod histories;
mod ids;
mod kept;
mod kube_proxy;
mod life_cycle;
mod model;
mod plans;
mod priorities;
mod reconciler;
mod sources;
mod topology;
mod worlds;
