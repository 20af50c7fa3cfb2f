//! Why a program did not send a packet or a socket to a backend, and what it did instead.

/// The program's answer to one packet or one call of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The packet continues into the node's network stack.
    Pass,
    /// The packet is dropped without an answer.
    Drop,
    /// The sender gets a TCP reset or an ICMP error.
    Answer,
    /// The socket's call fails with this error number.
    Fail(Errno),
}

/// An error number that a socket hook returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
pub enum Errno {
    /// `EADDRINUSE`.
    AddressInUse = 98,
    /// `ECONNREFUSED`.
    ConnectionRefused = 111,
    /// `EHOSTUNREACH`.
    HostUnreachable = 113,
}

/// Defines every reason once: its number is its position, and its line says name and verdict.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $reason:ident, $name:literal => $verdict:expr;)+) => {
        /// Why a packet of a frontend was not sent to a backend, or the call of a socket failed. The number of a reason
        /// is its key in `REASONS`.
        ///
        /// A packet or a socket whose destination is no frontend has no reason and is not counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])+ $reason,)+
        }

        impl Reason {
            /// Every reason, in the order of their keys.
            pub const ALL: &[Self] = &[$(Self::$reason,)+];

            /// The name for metrics: lower case with underscores, and it stays the same between versions.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)+
                }
            }

            /// What the programs do for this reason.
            #[inline(always)]
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self {
                    $(Self::$reason => $verdict,)+
                }
            }
        }
    };
}

reasons! {
    /// The frontend has no backends.
    PacketNoBackends, "packet_no_backends" => Verdict::Answer;
    /// The frontend drops its traffic: the policy excludes every backend.
    PacketExcluded, "packet_excluded" => Verdict::Drop;
    /// The frontend names a backend that is not in `BACKENDS`.
    PacketBackendMissing, "packet_backend_missing" => Verdict::Answer;
    /// A reset belongs to no known connection; it must not start one.
    PacketStrayReset, "packet_stray_reset" => Verdict::Drop;
    /// No port was free for the flow's translated source.
    PacketNoSourcePort, "packet_no_source_port" => Verdict::Drop;
    /// The flow could not be recorded in `CT`.
    PacketFlowNotRecorded, "packet_flow_not_recorded" => Verdict::Drop;
    /// The packet could not be rewritten; it may be cut short.
    PacketNotRewritten, "packet_not_rewritten" => Verdict::Drop;
    /// The answer to a packet could not be built, for example because the packet is cut short.
    PacketNotAnswered, "packet_not_answered" => Verdict::Drop;
    /// The time to live ends here; the node's network stack tells the client.
    PacketHopLimit, "packet_hop_limit" => Verdict::Pass;
    /// The routing table has no way to the backend. The translated packet goes to the node's network stack.
    PacketNoRoute, "packet_no_route" => Verdict::Pass;
    /// Forwarding is off on the device that the packet came in through. The translated packet goes to the node's
    /// network stack.
    PacketForwardingOff, "packet_forwarding_off" => Verdict::Pass;
    /// The frontend has no backends.
    SocketNoBackends, "socket_no_backends" => Verdict::Fail(Errno::ConnectionRefused);
    /// The frontend drops its traffic: the policy excludes every backend.
    SocketExcluded, "socket_excluded" => Verdict::Fail(Errno::HostUnreachable);
    /// The frontend names a backend that is not in `BACKENDS`.
    SocketBackendMissing, "socket_backend_missing" => Verdict::Fail(Errno::ConnectionRefused);
    /// The socket speaks IPv4 only, and the backend has an IPv6 address.
    SocketFamily, "socket_family" => Verdict::Fail(Errno::HostUnreachable);
    /// The socket uses every backend of the frontend, as far as the program looks, under another virtual address: it
    /// could not tell the answers apart.
    SocketAmbiguous, "socket_ambiguous" => Verdict::Fail(Errno::AddressInUse);
    /// User space has ended the connection, whose backend is gone: both ends get a reset.
    PacketFlowCut, "packet_flow_cut" => Verdict::Answer;
    /// A backend's datagram belongs to a flow that user space has ended.
    PacketReplyCut, "packet_reply_cut" => Verdict::Drop;
    /// The source ranges of the service keep the client out.
    PacketSourceRange, "packet_source_range" => Verdict::Drop;
    /// The address has frontends at other ports only, and is one of the cluster.
    PacketOtherPort, "packet_other_port" => Verdict::Answer;
    /// The address has frontends at other ports only, and is a load balancer's or an external one.
    PacketOtherPortDropped, "packet_other_port_dropped" => Verdict::Drop;
    /// The address has frontends at other ports only, and is one of the cluster.
    SocketOtherPort, "socket_other_port" => Verdict::Fail(Errno::ConnectionRefused);
    /// The address has frontends at other ports only, and is a load balancer's or an external one.
    SocketOtherPortDropped, "socket_other_port_dropped" => Verdict::Fail(Errno::HostUnreachable);
    /// The packet is longer than the way to the next hop takes; the sender is told what fits. Fragments after the first,
    /// and ICMP errors, are dropped.
    PacketTooBig, "packet_too_big" => Verdict::Answer;
    /// The packet would be answered, but this processor has answered 1,000 in the last second.
    PacketAnswerLimit, "packet_answer_limit" => Verdict::Drop;
    /// The address and port that a socket of the node asked for are those of a frontend.
    SocketPortTaken, "socket_port_taken" => Verdict::Fail(Errno::AddressInUse);
    /// An SCTP packet that asks for no association belongs to none that is known; it must not start one.
    PacketStraySctp, "packet_stray_sctp" => Verdict::Drop;
    /// The port of an SCTP client, which no program can translate, belongs to another flow to the same backend from the
    /// address that the client would get.
    PacketSctpPortTaken, "packet_sctp_port_taken" => Verdict::Drop;
    /// The packet came in with a source that nobody outside can have: an address of the node, its own destination, a loopback
    /// or multicast address, or another one that no host may use.
    PacketForgedSource, "packet_forged_source" => Verdict::Drop;
}

impl Reason {
    /// Entries of `REASONS`: more than there are reasons, so that a new reason needs no new map.
    pub const ENTRIES: u32 = 64;

    /// The key in `REASONS`.
    #[inline(always)]
    #[must_use]
    pub const fn key(self) -> u32 {
        self as u32
    }
}

const _: () = assert!(Reason::ALL.len() <= Reason::ENTRIES as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_key() {
        for (key, reason) in (0..).zip(Reason::ALL) {
            assert_eq!(reason.key(), key, "{}", reason.name());
        }
    }

    #[test]
    fn names_are_unique_and_begin_with_their_hook() {
        for (at, reason) in Reason::ALL.iter().enumerate() {
            let hook = if matches!(reason.verdict(), Verdict::Fail(_)) { "socket_" } else { "packet_" };
            assert!(reason.name().starts_with(hook), "{}", reason.name());
            assert!(Reason::ALL[..at].iter().all(|other| other.name() != reason.name()), "{}", reason.name());
        }
    }
}
