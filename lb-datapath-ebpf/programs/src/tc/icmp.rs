//! ICMP errors that this node sends about packets that it does not send on: from the address that a packet was for, to
//! its sender (RFC 792, RFC 4443).

use super::{
    checksum::{finish, sum},
    packet::Packet,
    rewrite::v4_words,
    skb::{RECOMPUTE, Refused, Skb},
};
use crate::protocol::{ICMP, ICMP_V6};

/// Most words of an IPv4 packet that an error quotes: the longest header, and eight bytes of what follows.
const QUOTE_V4: usize = 17;
/// Most words of an IPv6 packet that an error quotes: its header, 64 bytes of extension headers, and eight bytes of what
/// follows.
const QUOTE_V6: usize = 28;
/// Bytes of headers before the quote: IPv4 and ICMP.
const HEADERS_V4: u32 = 28;
/// Bytes of headers before the quote: IPv6 and ICMPv6.
const HEADERS_V6: u32 = 48;

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Destination unreachable, port unreachable.
    PortUnreachable,
    /// Fragmentation needed, or packet too big: what fits is this many bytes long.
    TooBig(u16),
}

impl Message {
    /// Type and code in the first word, and the second word, for ICMP.
    const fn v4(self) -> [u32; 2] {
        match self {
            Self::PortUnreachable => [u32::from_ne_bytes([3, 3, 0, 0]), 0],
            Self::TooBig(mtu) => [u32::from_ne_bytes([3, 4, 0, 0]), (mtu as u32).to_be()],
        }
    }

    /// The same for ICMPv6.
    const fn v6(self) -> [u32; 2] {
        match self {
            Self::PortUnreachable => [u32::from_ne_bytes([1, 4, 0, 0]), 0],
            Self::TooBig(mtu) => [u32::from_ne_bytes([2, 0, 0, 0]), (mtu as u32).to_be()],
        }
    }
}

/// Turns the packet into an error about it. Its Ethernet header stays as it is.
///
/// # Errors
/// When the packet is too short, or a helper refuses; the packet may be half of an answer then.
#[inline(always)]
pub fn answer<S: Skb>(skb: S, packet: &Packet, message: Message) -> Result<(), Refused> {
    // The headers, and the eight bytes of payload that have the ports.
    let len = packet.transport.wrapping_sub(packet.start).wrapping_add(8);
    if packet.is_v4 {
        let quote = quote::<QUOTE_V4, S>(skb, packet, len, HEADERS_V4);
        headers_v4(skb, packet, message.v4(), quote)
    } else {
        let quote = quote::<QUOTE_V6, S>(skb, packet, len, HEADERS_V6);
        headers_v6(skb, packet, message.v6(), quote)
    }
}

/// The beginning of a packet, where the error about it has it: its bytes, and its folded sum. In one number, since a
/// function of the kernel takes five.
#[derive(Clone, Copy)]
struct Quote(u32);

impl Quote {
    /// It could not be moved there.
    const NONE: Self = Self(0);

    #[inline(always)]
    const fn new(len: u16, sum: u16) -> Self {
        Self((len as u32) << 16 | sum as u32)
    }

    #[inline(always)]
    const fn len(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    const fn sum(self) -> u32 {
        self.0 & 0xffff
    }
}

/// Moves the first `len` bytes of the IP packet, or as many as an error quotes, behind `headers` bytes, and cuts off what
/// is left of the packet.
#[inline(never)]
fn quote<const N: usize, S: Skb>(skb: S, packet: &Packet, len: u32, headers: u32) -> Quote {
    let most = 4 * N as u32;
    let len = if len < most { len } else { most };
    let mut words = [0; N];
    let (start, at) = (packet.start, packet.start + headers);
    let moved = skb
        .load_part(start, &mut words, len)
        .and_then(|()| skb.resize(at + len))
        .and_then(|()| skb.store_part(at, &words, len));
    if moved.is_err() { Quote::NONE } else { Quote::new(len as u16, !finish(sum(&words))) }
}

#[inline(never)]
fn headers_v4<S: Skb>(skb: S, packet: &Packet, icmp: [u32; 2], quote: Quote) -> Result<(), Refused> {
    if quote.len() == 0 {
        return Err(Refused);
    }
    let [from, to] = v4_words(packet.key.dst, packet.key.src)?;
    let [l0, l1] = (HEADERS_V4 as u16).wrapping_add(quote.len()).to_be_bytes();
    let (version, fragment) = (u32::from_ne_bytes([0x45, 0xc0, l0, l1]), u32::from_ne_bytes([0, 0, 0x40, 0]));
    let [h0, h1] = finish(sum(&[version, fragment, u32::from_ne_bytes([64, ICMP, 0, 0]), from, to])).to_ne_bytes();
    let icmp = with_checksum(icmp, quote.sum());
    skb.store(
        packet.start,
        &[version, fragment, u32::from_ne_bytes([64, ICMP, h0, h1]), from, to, icmp[0], icmp[1]],
        RECOMPUTE,
    )
}

#[inline(never)]
fn headers_v6<S: Skb>(skb: S, packet: &Packet, icmp: [u32; 2], quote: Quote) -> Result<(), Refused> {
    if quote.len() == 0 {
        return Err(Refused);
    }
    let ([t0, t1, t2, t3], [f0, f1, f2, f3]) = (packet.key.src, packet.key.dst);
    let [l0, l1] = (8 + quote.len()).to_be_bytes();
    let (version, rest) = (u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([l0, l1, ICMP_V6, 64]));
    let pseudo = [u32::from_ne_bytes([0, 0, l0, l1]), u32::from_ne_bytes([0, 0, 0, ICMP_V6])];
    let addresses = sum(&[t0, t1, t2, t3, f0, f1, f2, f3]);
    let icmp = with_checksum(icmp, addresses.wrapping_add(sum(&pseudo)).wrapping_add(quote.sum()));
    skb.store(packet.start, &[version, rest, f0, f1, f2, f3, t0, t1, t2, t3, icmp[0], icmp[1]], RECOMPUTE)
}

/// The two words of an ICMP header with its checksum; the sum of what else that covers is `others`.
#[inline(always)]
fn with_checksum(icmp: [u32; 2], others: u32) -> [u32; 2] {
    let [kind, code, _, _] = icmp[0].to_ne_bytes();
    let [c0, c1] = finish(sum(&icmp).wrapping_add(others)).to_ne_bytes();
    [u32::from_ne_bytes([kind, code, c0, c1]), icmp[1]]
}
