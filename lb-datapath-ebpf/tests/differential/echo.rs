//! Echo requests to addresses of frontends: answered, or treated like packets to other ports.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use lb_core::{datapath::Role, state::OtherPorts};
use lb_testkit::packets::{Addresses, Check, IpReading, Reading, Transport, protocol};

use crate::{
    answer,
    bpf::Outcome,
    delivery::{TCX_DROP, TCX_REDIRECT},
    reference::{Fate, View, is_martian, untouched},
};

/// Requests whose first fragment was seen, and whether that one was malformed.
#[derive(Default)]
pub(crate) struct Echoes {
    parts: HashMap<(Addresses, u8, u32), bool>,
}

impl Echoes {
    /// What has become of the packet, if it is an echo request or a fragment of one that was seen.
    pub(crate) fn check(
        &mut self,
        view: &View<'_>,
        reading: &Reading,
        frame: &[u8],
        out: &Outcome<'_>,
    ) -> Option<Result<Fate, String>> {
        let ip = view.packet_of(reading)?;
        let is_v4 = ip.addresses.source().is_ipv4();
        let (icmp, request) = if is_v4 { (protocol::ICMP, 8) } else { (protocol::ICMP_V6, 128) };
        if ip.protocol != icmp {
            return None;
        }
        let key = (ip.addresses, ip.protocol, ip.fragment.map_or(0, |fragment| fragment.id));
        let mut is_malformed = !ip.faults.is_empty() || ip.checksum == Check::Wrong;
        match ip.transport {
            Transport::Icmp { kind, code: 0, .. } if kind == request => {}
            Transport::Cut => is_malformed = true,
            Transport::Other if ip.is_later_part() => is_malformed |= *self.parts.get(&key)?,
            _ => return None,
        }
        if ip.is_part() && !ip.is_later_part() && view.role != Role::Standby {
            self.parts.insert(key, is_malformed);
        }
        if is_malformed {
            let is_fate = |fate, so: bool| so.then_some(fate);
            let fate = is_fate(Fate::Untouched, untouched(frame, out))
                .or(is_fate(Fate::Dropped, out.verdict == TCX_DROP))
                .or(is_fate(Fate::Answered, out.verdict == TCX_REDIRECT));
            return Some(fate.ok_or_else(|| format!("a malformed request got verdict {}", out.verdict)));
        }
        Some(fate(view, ip, frame, out))
    }
}

fn fate(view: &View<'_>, ip: &IpReading, frame: &[u8], out: &Outcome<'_>) -> Result<Fate, String> {
    let to = ip.addresses.destination();
    if view.role == Role::Active {
        let source = ip.addresses.source();
        let is_forged = source == to || is_martian(source) || view.model.node().ips.contains(&source);
        if is_forged && !view.is_left() && is_ours(view, to) {
            return if out.verdict == TCX_DROP { Ok(Fate::Dropped) } else { Err("it is forged".into()) };
        }
        if view.model.answers_ping(to) && is_answerable(ip) {
            let is_reply = out.verdict == TCX_REDIRECT && is_reply(ip, frame, out.frame);
            return if is_reply { Ok(Fate::Answered) } else { Err("it is not its reply".into()) };
        }
        match view.model.other_ports(to) {
            // The rate of refusals is limited, and nobody refuses a later fragment.
            Some(OtherPorts::Drop | OtherPorts::Reject) if out.verdict == TCX_DROP => return Ok(Fate::Dropped),
            Some(OtherPorts::Reject) if !ip.is_later_part() => {
                return answer::check(frame, ip, out.frame).map(|()| Fate::Answered);
            }
            Some(OtherPorts::Drop | OtherPorts::Reject) => return Err("it is not dropped".into()),
            Some(OtherPorts::Pass) | None => {}
        }
    }
    if untouched(frame, out) { Ok(Fate::Untouched) } else { Err("an echo request is not as it came".into()) }
}

/// Whether an address answers pings, or has a say in other ports than those of its frontends.
fn is_ours(view: &View<'_>, ip: IpAddr) -> bool {
    let has_say = view.model.other_ports(ip).is_some_and(|says| says != OtherPorts::Pass);
    has_say || view.model.answers_ping(ip)
}

fn is_answerable(ip: &IpReading) -> bool {
    let fragment: &[u8] = if ip.is_part() && ip.addresses.source().is_ipv6() { &[protocol::FRAGMENT] } else { &[] };
    let is_plain = !ip.has_options && ip.extensions == fragment;
    let is_host = match ip.addresses.source() {
        IpAddr::V4(source) => {
            let is_nobody = source.octets()[0] == 0 || source.is_loopback();
            !is_nobody && source < Ipv4Addr::new(224, 0, 0, 0)
        }
        IpAddr::V6(source) => !source.is_multicast() && !source.is_unspecified() && !source.is_loopback(),
    };
    is_plain && is_host
}

/// Whether `found` is the packet with its ends turned around, a new time to live, and the type of a reply.
fn is_reply(ip: &IpReading, frame: &[u8], found: &[u8]) -> bool {
    let mut reply = frame.to_vec();
    swap(&mut reply, 0, 6);
    let kind = ip.payload_at;
    match ip.addresses {
        Addresses::V4 { .. } => {
            swap(&mut reply, ip.at + 12, 4);
            add(&mut reply, ip.at + 10, (u16::from(frame[ip.at + 8]) << 8, 64 << 8));
            reply[ip.at + 8] = 64;
        }
        Addresses::V6 { .. } => {
            swap(&mut reply, ip.at + 8, 16);
            reply[ip.at + 7] = 64;
        }
    }
    if !ip.is_later_part() {
        let new = if frame[kind] == 8 { 0 } else { 129 };
        add(&mut reply, kind + 2, (u16::from(frame[kind]) << 8, u16::from(new) << 8));
        reply[kind] = new;
    }
    let zero = |at: usize| {
        let is_zero = |bytes: &[u8]| matches!(bytes.get(at..at + 2), Some([0, 0] | [0xff, 0xff]));
        is_zero(&reply) && is_zero(found)
    };
    // A checksum has two forms of zero.
    let fields = [ip.at + 10, ip.at + 11, kind + 2, kind + 3];
    let is_other_zero = |at: usize| fields.contains(&at) && (zero(ip.at + 10) || zero(kind + 2));
    reply.len() == found.len() && (0..reply.len()).all(|at| reply[at] == found[at] || is_other_zero(at))
}

/// Exchanges two fields of this length that lie side by side.
fn swap(bytes: &mut [u8], at: usize, len: usize) {
    bytes[at..at + 2 * len].rotate_left(len);
}

/// Makes the checksum at `at` follow a change of a word from one value to another: it falls by as much as the word
/// rises, in arithmetic modulo 65,535.
fn add(bytes: &mut [u8], at: usize, (old, new): (u16, u16)) {
    let check = u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let sum = (check + u32::from(old) + (0xffff - u32::from(new))) % 0xffff;
    bytes[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
}
