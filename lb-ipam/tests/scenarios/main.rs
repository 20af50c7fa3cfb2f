//! What comes of pools and services: scenarios by subject, each with its number.

mod conflicts;
mod explain;
mod families;
mod lifecycle;
mod metallb;
mod pools;
mod requests;
mod restart;
mod selectors;
mod sharing;
mod unreadable;
mod world;
