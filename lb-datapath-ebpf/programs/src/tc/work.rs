//! What a program is at.

use lb_datapath_ebpf_abi::{CtValue, FragmentKey};

use super::{header::Piece, limit::Limits, packet::Packet, quote::Quote};

/// Room for what a program is at, which each processor has once: a stack of 512 bytes has none for it. The verifier
/// knows nothing of what is written here, so that it need not follow every value that a field may have.
#[derive(Debug)]
#[repr(C)]
pub struct Work {
    /// The packet.
    pub packet: Packet,
    /// Part of a datagram.
    pub piece: Piece,
    /// The datagram.
    pub datagram: FragmentKey,
    /// What becomes of the packet.
    pub to: CtValue,
    /// Where things are, if it is an error.
    pub quote: Quote,
    /// How often it may still be answered.
    pub limits: Limits,
}
