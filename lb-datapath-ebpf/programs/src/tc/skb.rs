//! The packet as the kernel's helpers see it.

use aya_ebpf::bindings::{
    BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
    BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_UNREACHABLE,
};
use lb_datapath_ebpf_abi::{Addr, CtValue, Pod};

use super::packet::Packet;

/// For [`Skb::store`]: a checksum of the whole packet that a device has computed changes as well.
pub(crate) const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;

/// A helper refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A packet, and what the kernel lets a program do with it. Each method is one helper call, or a few that belong
/// together.
pub trait Skb: Copy {
    /// Where a packet goes next; nowhere by default.
    ///
    /// It is written in place, and is whole from the start: verifiers before Linux 6.3 refuse a program that reads what
    /// was not written, and those before 5.16 do not see that a result decides whether it was.
    type Hop: Default;

    /// Puts an Ethernet header before a packet that has none: packets to a neighbour leave with one, and the kernel takes it
    /// off again for a device that has none. What was read of the packet lies elsewhere afterwards.
    ///
    /// # Errors
    /// When there is no memory.
    fn dress(self) -> Result<(), Refused>;

    /// `pkt_type` and `protocol` of the packet, the latter in network byte order.
    fn kind(self) -> (u32, u16);

    /// Number of the device that the packet came in through, or leaves through.
    fn device(self) -> u32;

    /// Whether the packet came in through a device. Otherwise the node itself made it.
    fn came_in(self) -> bool;

    /// Whether the packet has a VLAN tag, so that it is for another device: the one of that VLAN.
    fn is_tagged(self) -> bool;

    /// Bytes of the packet, with what is before its IP header.
    fn size(self) -> u32;

    /// Bytes of payload in each segment that a device makes of the packet, or has merged into it; 0 if it is one
    /// packet.
    fn segment(self) -> u32;

    /// Moves the headers of most packets, 90 bytes, to where [`load`](Self::load) reads them. Nearly all packets have
    /// them there.
    fn prepare(self);

    /// What lies at `offset`, as it lies there; `None` if the packet ends before, or if it lies outside of the linear
    /// part of the packet.
    fn load<T: Pod>(self, offset: u32) -> Option<T>;

    /// What lies at `offset`, wherever that is; `None` if the packet ends before. This takes a call of the kernel, but
    /// the verifier has one way less to look at.
    fn load_far<T: Pod>(self, offset: u32) -> Option<T>;

    /// Reads `len` bytes at `offset` to the beginning of `words`, which have room for at most 127.
    ///
    /// # Errors
    /// When the packet ends before, `words` have less room, or `len` is 0.
    fn load_part<const N: usize>(self, offset: u32, words: &mut [u32; N], len: u32) -> Result<(), Refused>;

    /// Writes the first `len` bytes of `words` at `offset`, as [`store`](Self::store) does with [`RECOMPUTE`].
    ///
    /// # Errors
    /// As of [`load_part`](Self::load_part).
    fn store_part<const N: usize>(self, offset: u32, words: &[u32; N], len: u32) -> Result<(), Refused>;

    /// Writes `value` at `offset`. The checksums inside the packet stay as they are; with `BPF_F_RECOMPUTE_CSUM` in
    /// `flags` the helper updates the checksum of the whole packet that a device may have computed.
    ///
    /// # Errors
    /// When the packet ends before.
    fn store<T: Pod>(self, offset: u32, value: &T, flags: u64) -> Result<(), Refused>;

    /// Applies `difference` to the transport checksum at `offset`, with the `BPF_F_…` of `bpf_l4_csum_replace`.
    ///
    /// # Errors
    /// When the packet ends before, or the kernel does not know a flag.
    fn replace_l4(self, offset: u32, difference: u32, flags: u64) -> Result<(), Refused>;

    /// Applies `difference` to the checksum of the whole packet that a device may have computed, for what a [`store`]
    /// without [`RECOMPUTE`] has changed or is going to change.
    ///
    /// [`store`]: Self::store
    fn replace_whole(self, difference: u32);

    /// Makes the packet `len` bytes long, of any content, with no checksum left for a device to fill in.
    ///
    /// # Errors
    /// When the helper refuses.
    fn resize(self, len: u32) -> Result<(), Refused>;

    /// Writes into `source` the node's address that the routing table prefers for packets to the destination of `to`.
    /// `false` if it has no way there, or if the kernel cannot say (before Linux 6.7).
    fn preferred_source(self, packet: &Packet, to: &CtValue, source: &mut Addr) -> bool;

    /// Asks the routing table for the next hop of `packet` with the tuple of `to`, and writes it into `hop`.
    ///
    /// # Errors
    /// When the table does not forward it.
    fn route(self, packet: &Packet, to: &CtValue, hop: &mut Self::Hop) -> Result<(), Unrouted>;

    /// Whether a UDP socket of this host is connected to where the packet comes from, so that the packet is its.
    fn has_socket(self, packet: &Packet) -> bool;

    /// Sends the packet to the next hop. Returns the verdict for the kernel.
    fn redirect(self, hop: &Self::Hop) -> i32;

    /// Sends the packet out of the device that it came in through. Returns the verdict for the kernel.
    fn send_back(self) -> i32;

    /// Lets the node receive the packet through the device that it would have left through. Returns the verdict for the
    /// kernel.
    fn turn_in(self) -> i32;

    /// Lets the node receive the answer `to`, as `packet` has become, through the device that leads to its source, as
    /// the reverse path filter wants it. Returns the verdict for the kernel.
    fn receive(self, packet: &Packet, to: &CtValue) -> i32;
}

/// Why the routing table gives no next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unrouted {
    /// The packet is for this node itself, or needs more than a next hop, such as a tunnel: the node's network stack
    /// can do that.
    Local,
    /// No way leads there.
    NoRoute,
    /// Forwarding is off on the device that the packet came in through.
    ForwardingOff,
    /// The packet is longer than this many bytes, which the way to the next hop takes.
    TooBig(u16),
}

impl Unrouted {
    /// What a result of `bpf_fib_lookup` other than 0 means, with what it said about the MTU.
    #[inline(always)]
    #[must_use]
    pub const fn of(result: i64, mtu: u16) -> Self {
        const TOO_BIG: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;
        const FORWARDING_OFF: i64 = BPF_FIB_LKUP_RET_FWD_DISABLED as i64;
        const BLACKHOLE: i64 = BPF_FIB_LKUP_RET_BLACKHOLE as i64;
        const UNREACHABLE: i64 = BPF_FIB_LKUP_RET_UNREACHABLE as i64;
        const PROHIBIT: i64 = BPF_FIB_LKUP_RET_PROHIBIT as i64;
        match result {
            FORWARDING_OFF => Self::ForwardingOff,
            TOO_BIG => Self::TooBig(mtu),
            BLACKHOLE | UNREACHABLE | PROHIBIT => Self::NoRoute,
            _ => Self::Local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_the_routing_table_are_told_apart() {
        for (result, expected) in [
            (1, Unrouted::NoRoute),
            (2, Unrouted::NoRoute),
            (3, Unrouted::NoRoute),
            (4, Unrouted::Local),
            (5, Unrouted::ForwardingOff),
            (6, Unrouted::Local),
            (8, Unrouted::TooBig(1400)),
            (-22, Unrouted::Local),
        ] {
            assert_eq!(Unrouted::of(result, 1400), expected, "{result}");
        }
    }
}
