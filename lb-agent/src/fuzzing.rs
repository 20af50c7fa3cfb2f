//! Fuzz targets of what is private to this crate. They are there in tests, which replay their corpora, and under `cargo
//! fuzz`, which sets `fuzzing`.

use crate::{api, host::netlink as kernel};

/// Sends the bytes to an agent's socket, and then nothing more.
///
/// Whatever they are, there is one whole answer, with a status that is one of ours and a body that is JSON and not much
/// longer than what was asked.
///
/// # Panics
/// When one of this does not hold.
pub fn requests(data: &[u8]) {
    api::fuzzing::requests(data);
}

/// Takes the bytes for a datagram of the kernel about devices, addresses and routes.
///
/// # Panics
/// When reading it panics, or finds more messages than there is room for.
pub fn netlink(data: &[u8]) {
    kernel::take_any(data);
}

/// Takes the bytes for the file in which the agent remembers who has which address.
///
/// What is read is written and read again as the same.
///
/// # Panics
/// When it is not, or reading panics.
pub fn ledger(data: &[u8]) {
    api::fuzzing::ledger(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_whatever_they_are() {
        lb_fuzz::replay("requests", requests, 10_000).unwrap();
    }

    #[test]
    fn answers_of_the_kernel_are_read_whatever_they_are() {
        lb_fuzz::replay("netlink", netlink, 20_000).unwrap();
    }

    #[test]
    fn ledgers_are_read_whatever_they_are() {
        lb_fuzz::replay("ledger", ledger, 20_000).unwrap();
    }
}
