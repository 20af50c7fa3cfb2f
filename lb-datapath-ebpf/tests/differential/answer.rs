//! The answer to a packet for a frontend without backends.

use lb_testkit::packets::{Check, IpReading, Ports, Reading, Segment, TcpReading, Transport};

/// A host or router must not send a longer quote: RFC 1812, section 4.3.2.3, and RFC 4443, section 2.4.
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;

/// Whether `answer` is a reset, an ABORT or "port unreachable" for the packet `asked` in `frame`. What a sender may choose is left
/// open: identification, time to live, the window, and how much is quoted.
pub(crate) fn check(frame: &[u8], asked: &IpReading, answer: &[u8]) -> Result<(), String> {
    let reading = Reading::of(answer);
    let (Some((to, from)), Some(ip)) = (reading.ethernet, reading.ip) else { return Err("no IP packet".into()) };
    if frame.get(..12) != Some(&[from, to].concat()[..]) {
        return Err("its MAC addresses are not those of the packet, turned around".into());
    }
    let back = (asked.addresses.destination(), asked.addresses.source());
    if (ip.addresses.source(), ip.addresses.destination()) != back {
        return Err(format!("its addresses are {:?}", ip.addresses));
    }
    if !ip.faults.is_empty() || ip.checksum == Check::Wrong || ip.transport_checksum != Check::Right {
        return Err(format!("lengths or checksums: {ip:?}"));
    }
    if ip.end != answer.len() || ip.is_part() || ip.hop_limit < 32 {
        return Err(format!("its length, a fragment or its hop limit: {ip:?}, {} bytes", answer.len()));
    }
    match (asked.transport, ip.transport) {
        (Transport::Tcp(asked_tcp), Transport::Tcp(reset)) => is_reset(asked, asked_tcp, reset),
        (Transport::Sctp(asked_of), Transport::Sctp(answered)) => {
            let back = Ports { source: asked_of.destination, destination: asked_of.source };
            is_abort(&frame[asked.payload_at..], &answer[ip.payload_at..ip.end])
                .filter(|()| answered == back)
                .ok_or_else(|| format!("not the ABORT to it: {answered:?}, {:?}", &answer[ip.payload_at..]))
        }
        (Transport::Udp(_) | Transport::Icmp { .. }, Transport::Icmp { kind, code, rest: [0, 0, 0, 0] }) => {
            is_unreachable(frame, asked, &answer[ip.payload_at + 8..], (kind, code), answer.len())
        }
        _ => Err(format!("not the answer to its protocol: {ip:?}")),
    }
}

/// RFC 9293, section 3.10.7.1.
fn is_reset(asked: &IpReading, segment: TcpReading, reset: TcpReading) -> Result<(), String> {
    let (flags, sequence, acknowledgement) = if segment.flags & Segment::ACK != 0 {
        (Segment::RST, segment.acknowledgement, 0)
    } else {
        let data = asked.end.saturating_sub(asked.payload_at + segment.header) as u32;
        let counted = [Segment::SYN, Segment::FIN].iter().filter(|&&flag| segment.flags & flag != 0).count() as u32;
        (Segment::RST | Segment::ACK, 0, segment.sequence.wrapping_add(data + counted))
    };
    let ports = Ports { source: segment.ports.destination, destination: segment.ports.source };
    let expected = TcpReading { ports, sequence, acknowledgement, flags, header: reset.header };
    if reset == expected { Ok(()) } else { Err(format!("{reset:?}, not {expected:?}")) }
}

/// RFC 9260, sections 3.3.7 and 8.4: the tag that the sender of an INIT wants to see, and otherwise its own, which a bit
/// says.
fn is_abort(asked: &[u8], abort: &[u8]) -> Option<()> {
    const INIT: u8 = 1;
    let (tag, flags) = if asked[12] == INIT { (asked.get(16..20)?, 0) } else { (&asked[4..8], 1) };
    (abort[4..8] == *tag && abort[12..] == [6, flags, 0, 4]).then_some(())
}

fn is_unreachable(frame: &[u8], asked: &IpReading, quote: &[u8], kind: (u8, u8), len: usize) -> Result<(), String> {
    let is_v4 = asked.addresses.source().is_ipv4();
    let (expected, longest) = if is_v4 { ((3, 3), LONGEST_V4) } else { ((1, 4), LONGEST_V6) };
    if kind != expected || len - asked.at > longest {
        return Err(format!("type and code {kind:?}, {len} bytes"));
    }
    let least = asked.payload_at - asked.at + 8;
    if quote.len() < least || !frame[asked.at..].starts_with(quote) {
        return Err("it does not quote the packet".into());
    }
    Ok(())
}
