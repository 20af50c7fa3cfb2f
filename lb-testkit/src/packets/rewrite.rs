//! What becomes of a frame that is translated.

use std::{net::IpAddr, ops::Range};

use super::{Addresses, Check, IpReading, Reading, Transport, checksum, protocol};

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}

/// Another source, destination and hop limit of a packet. Everything else stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Source.
    pub source: Endpoint,
    /// Destination.
    pub destination: Endpoint,
    /// Time to live or hop limit.
    pub hop_limit: u8,
}

impl Rewrite {
    /// The frame after this change; `None` if it holds no packet of the family with ports, or ends before the checksum.
    ///
    /// Ports and checksum of the transport protocol are in the first part of a packet, so that later ones get new
    /// addresses only. A checksum that was right is computed anew over all that it covers. One that was wrong, or cannot be verified, is
    /// as wrong as before, so that the receiver sees it. A datagram without a checksum stays without one.
    #[must_use]
    pub fn of(&self, frame: &[u8]) -> Option<Vec<u8>> {
        self.apply(frame, &Reading::of(frame).ip?)
    }

    fn apply(&self, frame: &[u8], ip: &IpReading) -> Option<Vec<u8>> {
        let addresses = Addresses::new(self.source.ip, self.destination.ip)?;
        if !ip.is_later_part() {
            ip.ports()?;
        }
        let mut bytes = frame.to_vec();
        let at = readdress(&mut bytes, frame, ip, addresses, self.hop_limit)?;
        if ip.is_later_part() {
            return Some(bytes);
        }
        put(&mut bytes, ip.payload_at, &self.source.port.to_be_bytes());
        put(&mut bytes, ip.payload_at + 2, &self.destination.port.to_be_bytes());
        let ports = ip.payload_at..ip.payload_at + 4;
        let (old, new) = ([&frame[at.clone()], &frame[ports.clone()]].concat(), [&bytes[at], &bytes[ports]].concat());
        transport_checksum(&mut bytes, ip, addresses, &old, &new)?;
        Some(bytes)
    }
}

/// An ICMP error that is translated: other addresses and another hop limit, and another packet in its quote. Everything
/// else stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRewrite {
    /// Source of the error.
    pub source: IpAddr,
    /// Destination of the error.
    pub destination: IpAddr,
    /// Time to live or hop limit of the error. That of the quoted packet stays.
    pub hop_limit: u8,
    /// Source of the quoted packet.
    pub quoted_source: Endpoint,
    /// Destination of the quoted packet.
    pub quoted_destination: Endpoint,
}

impl ErrorRewrite {
    /// The frame after this change; `None` if it holds no ICMP message that quotes a packet of the family with eight bytes
    /// of what that carries.
    ///
    /// Checksums are treated as in [`Rewrite::of`]: those of the error, and those of the quote as far as it has them. A
    /// quote is mostly cut, so that the checksum of its transport protocol cannot be verified.
    #[must_use]
    pub fn of(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let ip = Reading::of(frame).ip?;
        let Transport::Icmp { .. } = ip.transport else { return None };
        let to = Addresses::new(self.source, self.destination)?;
        let mut bytes = frame.to_vec();
        self.quote(&mut bytes, frame, &ip)?;
        readdress(&mut bytes, frame, &ip, to, self.hop_limit)?;
        icmp_checksum(&mut bytes, frame, &ip, to);
        Some(bytes)
    }

    fn quote(&self, bytes: &mut [u8], frame: &[u8], ip: &IpReading) -> Option<()> {
        let quoted = IpReading::of(frame, ip.payload_at + 8)?;
        let (at, end) = (quoted.payload_at, ip.end.min(frame.len()));
        if at + 8 > end {
            return None;
        }
        let to = Addresses::new(self.quoted_source.ip, self.quoted_destination.ip)?;
        let hop_limit = quoted.hop_limit;
        let addresses = readdress(bytes, frame, &quoted, to, hop_limit)?;
        put(bytes, at, &self.quoted_source.port.to_be_bytes());
        put(bytes, at + 2, &self.quoted_destination.port.to_be_bytes());
        let [old, new] = [frame, &*bytes].map(|all| [&all[addresses.clone()], &all[at..at + 4]].concat());
        // A quote may end before the checksum.
        let last = at + if quoted.protocol == protocol::UDP { 8 } else { 18 };
        if last <= end { transport_checksum(bytes, &quoted, to, &old, &new) } else { Some(()) }
    }
}

/// Gives the packet that `ip` was read from other addresses and another hop limit; returns where the addresses are.
fn readdress(bytes: &mut [u8], frame: &[u8], ip: &IpReading, to: Addresses, hop_limit: u8) -> Option<Range<usize>> {
    match (ip.addresses, to) {
        (Addresses::V4 { .. }, Addresses::V4 { source, destination }) => {
            bytes[ip.at + 8] = hop_limit;
            put(bytes, ip.at + 12, &source.octets());
            put(bytes, ip.at + 16, &destination.octets());
            header_checksum(bytes, frame, ip);
            Some(ip.at + 12..ip.at + 20)
        }
        (Addresses::V6 { .. }, Addresses::V6 { source, destination }) => {
            bytes[ip.at + 7] = hop_limit;
            put(bytes, ip.at + 8, &source.octets());
            put(bytes, ip.at + 24, &destination.octets());
            Some(ip.at + 8..ip.at + 40)
        }
        (Addresses::V4 { .. }, Addresses::V6 { .. }) | (Addresses::V6 { .. }, Addresses::V4 { .. }) => None,
    }
}

/// The checksum of an ICMP message, which covers the quote, and over IPv6 the addresses.
fn icmp_checksum(bytes: &mut [u8], frame: &[u8], ip: &IpReading, to: Addresses) {
    let (at, message) = (ip.payload_at + 2, ip.payload_at..ip.end.min(frame.len()));
    let without = |all: &[u8]| {
        let mut message = all[message.clone()].to_vec();
        message[2..4].fill(0);
        message
    };
    let checksum = if ip.transport_checksum == Check::Right {
        checksum::transport(to, ip.protocol, &without(bytes))
    } else {
        let pseudo = if ip.protocol == protocol::ICMP { ip.at..ip.at } else { ip.at + 8..ip.at + 40 };
        let [old, new] = [frame, &*bytes].map(|all| [&all[pseudo.clone()], &without(all)[..]].concat());
        checksum::adjusted(u16::from_be_bytes([frame[at], frame[at + 1]]), &old, &new)
    };
    put(bytes, at, &checksum.to_be_bytes());
}

fn header_checksum(bytes: &mut [u8], frame: &[u8], ip: &IpReading) {
    let at = ip.at + 10;
    let checksum = if ip.checksum == Check::Right {
        let mut header = bytes[ip.at..ip.payload_at].to_vec();
        header[10..12].fill(0);
        checksum::internet(&header)
    } else {
        // The protocol shares its word with the time to live.
        let (old, new) = (ip.at + 8..ip.at + 10, ip.at + 12..ip.at + 20);
        let [before, after] = [frame, &*bytes].map(|all| [&all[old.clone()], &all[new.clone()]].concat());
        checksum::adjusted(u16::from_be_bytes([frame[at], frame[at + 1]]), &before, &after)
    };
    put(bytes, at, &checksum.to_be_bytes());
}

fn transport_checksum(bytes: &mut [u8], ip: &IpReading, to: Addresses, old: &[u8], new: &[u8]) -> Option<()> {
    let at = match ip.protocol {
        protocol::TCP => ip.payload_at + 16,
        protocol::UDP => ip.payload_at + 6,
        // The checksum of SCTP covers the ports, but no addresses, and a translation that keeps ports keeps it.
        _ => return (old[old.len() - 4..] == new[new.len() - 4..]).then_some(()),
    };
    let before = u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]);
    if ip.protocol == protocol::UDP && before == 0 {
        return Some(());
    }
    let after = if ip.transport_checksum == Check::Right {
        let mut covered = bytes[ip.payload_at..ip.end].to_vec();
        covered[at - ip.payload_at..at - ip.payload_at + 2].fill(0);
        checksum::transport(to, ip.protocol, &covered)
    } else {
        checksum::adjusted(before, old, new)
    };
    let after = if ip.protocol == protocol::UDP && after == 0 { u16::MAX } else { after };
    put(bytes, at, &after.to_be_bytes());
    Some(())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Datagram, Frame, Icmp, Ip, Payload, Ports, Segment},
        *,
    };

    const PORTS: Ports = Ports { source: 40_000, destination: 80 };

    fn end(ip: &str, port: u16) -> Endpoint {
        Endpoint { ip: ip.parse().unwrap(), port }
    }

    /// Both families: addresses before, and the change.
    fn cases() -> [(Addresses, Rewrite); 2] {
        [
            (
                Addresses::V4 { source: [192, 0, 2, 1].into(), destination: [10, 96, 0, 1].into() },
                Rewrite { source: end("10.0.0.9", 1025), destination: end("10.244.0.2", 8080), hop_limit: 63 },
            ),
            (
                Addresses::V6 { source: "2001:db8::1".parse().unwrap(), destination: "fd00::1".parse().unwrap() },
                Rewrite { source: end("fd00::9", 1025), destination: end("fd00:244::2", 8080), hop_limit: 63 },
            ),
        ]
    }

    fn frame(addresses: Addresses, payload: Payload) -> Vec<u8> {
        Frame::new([2; 6], [4; 6], Ip::new(addresses, payload)).bytes()
    }

    #[test]
    fn a_rewritten_packet_is_the_one_that_is_written_anew() {
        for (addresses, rewrite) in cases() {
            let to = Addresses::new(rewrite.source.ip, rewrite.destination.ip).unwrap();
            let new_ports = Ports { source: rewrite.source.port, destination: rewrite.destination.port };
            let tcp = |ports| Payload::Tcp(Segment { data: b"odd".to_vec(), ..Segment::new(ports) });
            let udp = |ports| Payload::Udp(Datagram { ports, checksum: true, data: b"even".to_vec() });
            for (before, after) in [(tcp(PORTS), tcp(new_ports)), (udp(PORTS), udp(new_ports))] {
                let expected = Frame::new([2; 6], [4; 6], Ip { hop_limit: 63, ..Ip::new(to, after) }).bytes();
                assert_eq!(rewrite.of(&frame(addresses, before)), Some(expected));
            }
        }
    }

    #[test]
    fn a_wrong_checksum_stays_as_wrong() {
        for (addresses, rewrite) in cases() {
            let good = frame(addresses, Payload::Tcp(Segment::new(PORTS)));
            let mut bad = good.clone();
            let last = bad.len() - 1;
            bad[last] ^= 0x40;
            let out = rewrite.of(&bad).unwrap();
            assert_eq!(Reading::of(&out).ip.unwrap().transport_checksum, Check::Wrong);
            let mut healed = out;
            healed[last] ^= 0x40;
            assert_eq!(Some(healed), rewrite.of(&good));
        }
    }

    #[test]
    fn a_datagram_without_a_checksum_gets_none() {
        for (addresses, rewrite) in cases() {
            let datagram = Datagram { ports: PORTS, checksum: false, data: vec![9] };
            let out = rewrite.of(&frame(addresses, Payload::Udp(datagram))).unwrap();
            assert_eq!(Reading::of(&out).ip.unwrap().transport_checksum, Check::Absent);
        }
    }

    #[test]
    fn parts_of_a_packet_are_those_of_the_rewritten_packet() {
        for (addresses, rewrite) in cases() {
            let to = Addresses::new(rewrite.source.ip, rewrite.destination.ip).unwrap();
            let new_ports = Ports { source: rewrite.source.port, destination: rewrite.destination.port };
            let udp = |ports| Payload::Udp(Datagram { ports, checksum: true, data: (0..50).collect() });
            let before = Ip::new(addresses, udp(PORTS)).fragments(9, 24);
            let after = Ip { hop_limit: 63, ..Ip::new(to, udp(new_ports)) }.fragments(9, 24);
            for (before, after) in before.into_iter().zip(after) {
                let expected = Frame::new([2; 6], [4; 6], after).bytes();
                assert_eq!(rewrite.of(&Frame::new([2; 6], [4; 6], before).bytes()), Some(expected));
            }
        }
    }

    /// An error of `reporter` about the first `len` bytes of a packet from `source` to `destination`.
    fn error(reporter: IpAddr, [source, destination]: [Endpoint; 2], payload: &Payload, len: usize) -> Vec<u8> {
        let quoted = Ip::new(Addresses::new(source.ip, destination.ip).unwrap(), payload.clone()).bytes();
        let addresses = Addresses::new(reporter, source.ip).unwrap();
        let icmp = Icmp::time_exceeded(addresses, &quoted[..len.min(quoted.len())]);
        Frame::new([2; 6], [4; 6], Ip::new(addresses, Payload::Icmp(icmp))).bytes()
    }

    #[test]
    fn a_rewritten_error_is_the_one_that_is_written_anew() {
        for (addresses, rewrite) in cases() {
            let from = [(addresses.source(), PORTS.source), (addresses.destination(), PORTS.destination)]
                .map(|(ip, port)| Endpoint { ip, port });
            let to = [rewrite.source, rewrite.destination];
            let [before, after] = [from, to].map(|[source, destination]| {
                let ports = Ports { source: source.port, destination: destination.port };
                let tcp = Payload::Tcp(Segment { data: b"odd".to_vec(), ..Segment::new(ports) });
                [tcp, Payload::Udp(Datagram { ports, checksum: true, data: b"even".to_vec() })]
            });
            let all = if addresses.source().is_ipv4() { [28, 60] } else { [48, 80] };
            for (before, after) in before.iter().zip(&after) {
                for len in all {
                    let change = ErrorRewrite {
                        source: rewrite.destination.ip,
                        destination: rewrite.source.ip,
                        hop_limit: 64,
                        quoted_source: rewrite.source,
                        quoted_destination: rewrite.destination,
                    };
                    let expected = error(change.source, to, after, len);
                    let out = change.of(&error(addresses.destination(), from, before, len)).unwrap();
                    // A checksum in the quote is the one of the whole packet.
                    assert_eq!(out, expected, "{len} bytes of {before:?}");
                }
            }
        }
    }

    #[test]
    fn an_error_whose_checksum_is_wrong_stays_as_wrong() {
        for (addresses, rewrite) in cases() {
            let from =
                [Endpoint { ip: addresses.source(), port: 1 }, Endpoint { ip: addresses.destination(), port: 2 }];
            let good = error(addresses.destination(), from, &Payload::Tcp(Segment::new(PORTS)), 60);
            let mut bad = good.clone();
            let last = bad.len() - 1;
            bad[last] ^= 0x40;
            let change = ErrorRewrite {
                source: addresses.destination(),
                destination: rewrite.source.ip,
                hop_limit: 63,
                quoted_source: rewrite.source,
                quoted_destination: rewrite.destination,
            };
            let mut out = change.of(&bad).unwrap();
            assert_eq!(Reading::of(&out).ip.unwrap().transport_checksum, Check::Wrong);
            out[last] ^= 0x40;
            assert_eq!(Some(out), change.of(&good));
        }
    }

    #[test]
    fn what_quotes_too_little_is_no_error() {
        let (addresses, rewrite) = cases()[0];
        let ends = [rewrite.source, rewrite.destination];
        let change = ErrorRewrite {
            source: addresses.source(),
            destination: addresses.destination(),
            hop_limit: 1,
            quoted_source: rewrite.source,
            quoted_destination: rewrite.destination,
        };
        assert_eq!(change.of(&error(addresses.source(), ends, &Payload::Tcp(Segment::new(PORTS)), 27)), None);
        assert_eq!(change.of(&frame(addresses, Payload::Tcp(Segment::new(PORTS)))), None);
    }

    #[test]
    fn ports_of_sctp_cannot_change() {
        for (addresses, rewrite) in cases() {
            let sctp = frame(addresses, Payload::Sctp { ports: PORTS, chunks: vec![0; 4] });
            assert_eq!(rewrite.of(&sctp), None);
            let [source, destination] =
                [(rewrite.source, 40_000), (rewrite.destination, 80)].map(|(end, port)| Endpoint { port, ..end });
            let out = Rewrite { source, destination, ..rewrite }.of(&sctp).unwrap();
            assert_eq!(Reading::of(&out).ip.unwrap().transport_checksum, Check::Right);
        }
    }
}
