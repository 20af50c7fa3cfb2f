//! The packets of a dry run, built and parsed.

use std::net::{IpAddr, SocketAddr};

use lb_core::{addr::Protocol, decision::Packet};

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// TCP flag.
pub(crate) const SYN: u8 = 0x02;
/// TCP flag.
pub(crate) const ACK: u8 = 0x10;
const RST: u8 = 0x04;
/// Type of a chunk.
const SCTP_ABORT: u8 = 6;

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) source: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination: IpAddr,
    pub(crate) destination_port: u16,
}

impl Tuple {
    /// Those of `packet`.
    pub(crate) const fn of(packet: &Packet) -> Self {
        let &Packet { source, source_port, destination, destination_port, .. } = packet;
        Self { source, source_port, destination, destination_port }
    }

    pub(crate) const fn source(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.source_port)
    }

    pub(crate) const fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.destination_port)
    }
}

/// A packet that came out of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// TCP, UDP or SCTP on its way.
    Flow(Tuple),
    /// A reset, an ABORT, or an ICMP error.
    Refusal,
    /// "Fragmentation needed" or "packet too big".
    TooBig {
        /// Who says so.
        from: IpAddr,
        /// The longest packet that fits.
        mtu: u32,
    },
}

/// `packet` as it lies in an Ethernet frame to the device with the address `to`; `None` if its addresses are of
/// different families. Checksums are left out: programs only say by how much they change.
pub(crate) fn frame(packet: &Packet, to: [u8; 6], tcp_flags: u8) -> Option<Vec<u8>> {
    frame_of(packet, to, tcp_flags, 0)
}

/// The same with so many bytes of payload.
pub(crate) fn frame_of(packet: &Packet, to: [u8; 6], tcp_flags: u8, payload: u16) -> Option<Vec<u8>> {
    let transport = transport(packet, tcp_flags, payload);
    let len = transport.len() as u16;
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, 1]].concat();
    match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = (len + 20).to_be_bytes();
            frame.extend([0x08, 0x00, 0x45, 0, high, low, 0, 0, 0x40, 0, 64, packet.protocol.number(), 0, 0]);
            frame.extend(source.octets().into_iter().chain(destination.octets()));
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = len.to_be_bytes();
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, packet.protocol.number(), 64]);
            frame.extend(source.octets().into_iter().chain(destination.octets()));
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    frame.extend(transport);
    Some(frame)
}

fn transport(packet: &Packet, tcp_flags: u8, payload: u16) -> Vec<u8> {
    let ports = [packet.source_port.to_be_bytes(), packet.destination_port.to_be_bytes()].concat();
    let [high, low] = payload.saturating_add(8).to_be_bytes();
    let header: &[u8] = match packet.protocol {
        Protocol::Tcp => &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, tcp_flags, 0xff, 0xff, 0, 0, 0, 0],
        Protocol::Udp => &[high, low, 0, 0],
        Protocol::Sctp => &[&[0; 8], sctp_chunk(tcp_flags)].concat(),
    };
    [&ports[..], header, &vec![0; usize::from(payload)]].concat()
}

/// INIT asks for an association as SYN asks for a connection, and COOKIE ACK belongs to one.
const fn sctp_chunk(tcp_flags: u8) -> &'static [u8] {
    const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    const COOKIE_ACK: [u8; 4] = [11, 0, 0, 4];
    if tcp_flags & SYN != 0 { &INIT } else { &COOKIE_ACK }
}

/// Reads a frame; `None` if it is neither a flow's nor a refusal.
pub(crate) fn parse(frame: &[u8]) -> Option<Parsed> {
    let ip = frame.get(ETHERNET..)?;
    let (protocol, source, destination, transport): (u8, IpAddr, IpAddr, &[u8]) = match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => (*ip.get(9)?, array::<4>(ip, 12)?.into(), array::<4>(ip, 16)?.into(), ip.get(20..)?),
        [0x86, 0xdd] => (*ip.get(6)?, array::<16>(ip, 8)?.into(), array::<16>(ip, 24)?.into(), ip.get(40..)?),
        _ => return None,
    };
    let word = |at| Some(u32::from_be_bytes(array::<4>(transport, at)?));
    match (protocol, transport.first_chunk()?) {
        (ICMP, [3, 4]) => return Some(Parsed::TooBig { from: source, mtu: word(4)? & 0xffff }),
        (ICMP_V6, [2, 0]) => return Some(Parsed::TooBig { from: source, mtu: word(4)? }),
        _ => {}
    }
    let is_refusal = match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) => transport.get(13)? & RST != 0,
        Some(Protocol::Sctp) => *transport.get(12)? == SCTP_ABORT,
        _ => protocol == ICMP || protocol == ICMP_V6,
    };
    if is_refusal {
        return Some(Parsed::Refusal);
    }
    let port = |at| Some(u16::from_be_bytes(array::<2>(transport, at)?));
    Some(Parsed::Flow(Tuple { source, source_port: port(0)?, destination, destination_port: port(2)? }))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use lb_core::decision::Entry;

    use super::*;

    fn packet(protocol: Protocol, source: &str, destination: &str) -> Packet {
        Packet {
            entry: Entry::Uplink,
            protocol,
            source: source.parse().unwrap(),
            source_port: 40000,
            destination: destination.parse().unwrap(),
            destination_port: 80,
        }
    }

    #[test]
    fn what_is_built_reads_as_what_it_was_built_from() {
        for (source, destination) in [("192.0.2.2", "10.96.0.1"), ("2001:db8::2", "fd00:96::1")] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let packet = packet(protocol, source, destination);
                let frame = frame(&packet, [2; 6], SYN).unwrap();
                let tuple = Tuple {
                    source: packet.source,
                    source_port: 40000,
                    destination: packet.destination,
                    destination_port: 80,
                };
                assert_eq!(parse(&frame), Some(Parsed::Flow(tuple)));
                for cut in 0..frame.len().min(34) {
                    assert_eq!(parse(&frame[..cut]), None, "{cut}");
                }
            }
        }
    }

    #[test]
    fn families_do_not_mix() {
        assert_eq!(frame(&packet(Protocol::Tcp, "192.0.2.2", "fd00:96::1"), [2; 6], SYN), None);
    }

    #[test]
    fn a_reset_is_a_refusal() {
        let frame = frame(&packet(Protocol::Tcp, "10.96.0.1", "192.0.2.2"), [2; 6], RST | ACK).unwrap();
        assert_eq!(parse(&frame), Some(Parsed::Refusal));
    }
}
