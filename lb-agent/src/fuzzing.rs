//! Fuzz targets for private parts of this crate. They exist in tests, which replay their corpora, and under
//! `cargo fuzz`, which sets `fuzzing`.

use crate::{api, host::netlink as kernel};

/// Sends the bytes to an agent's socket, and then nothing more.
///
/// A request gets one whole answer: a status that the API has, and a JSON body that is not much longer than the
/// request. A head that is not HTTP, or too long, gets a status alone, and a head that ends early gets no answer.
///
/// # Panics
/// When one of these does not hold.
pub fn requests(data: &[u8]) {
    api::fuzzing::requests(data);
}

/// Reads the bytes as a datagram of the kernel about devices, addresses and routes.
///
/// # Panics
/// When reading panics, or finds more messages than the bytes have room for.
pub fn netlink(data: &[u8]) {
    kernel::take_any(data);
}

/// Reads the bytes as the file in which the agent records who has which address.
///
/// A ledger that was read is the same after it is written and read again.
///
/// # Panics
/// When it is not the same, or reading panics.
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
