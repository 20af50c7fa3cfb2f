//! The kernel's state: read, compared with the expected one, repaired, watched, and asked about one packet.

pub(crate) mod ask;
pub(crate) mod describe;
pub(crate) mod drift;
pub(crate) mod expected;
pub(crate) mod inspect;
pub(crate) mod observe;
pub(crate) mod repair;
pub(crate) mod routes;
pub(crate) mod suspects;
pub(crate) mod watch;
