//! What the subsystems of `NETLINK_NETFILTER` share (`linux/netfilter/nfnetlink.h`).

/// Opens a batch.
pub(crate) const BATCH_BEGIN: u16 = 0x10;
/// Commits a batch.
pub(crate) const BATCH_END: u16 = 0x11;
/// The subsystem nf_tables.
pub(crate) const NFTABLES: u16 = 10;
/// The subsystem conntrack.
pub(crate) const CTNETLINK: u16 = 1;

/// `NFPROTO_INET`.
pub(crate) const INET: u8 = 1;
/// `NFPROTO_IPV4`.
pub(crate) const IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
pub(crate) const IPV6: u8 = 10;

/// Type of a message of a subsystem.
pub(crate) const fn kind(subsystem: u16, message: u16) -> u16 {
    subsystem << 8 | message
}

/// `struct nfgenmsg`: family, version 0, resource id.
pub(crate) const fn fixed(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Length of `struct nfgenmsg`.
pub(crate) const FIXED: usize = 4;
