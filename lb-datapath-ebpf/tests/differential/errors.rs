//! What has to become of an ICMP error: one about a packet of a flow goes to whoever sent that packet, and quotes it as
//! its sender knows it.

use std::net::IpAddr;

use lb_core::{
    addr::{Family, Protocol},
    datapath::Role,
};
use lb_testkit::packets::{Check, Endpoint, ErrorRewrite, Fault, IpReading, Reading, Transport, protocol};

use crate::{
    bpf::Outcome,
    delivery::{Delivery, Direction, TCX_DROP},
    reference::{Fate, Reference, Tuple, View, answers, checksums_in_doubt, is, is_martian, is_walked, untouched},
};

/// An error with a quote of a packet.
struct Error<'a> {
    ip: &'a IpReading,
    quoted: IpReading,
    /// The tuple of the quoted packet.
    tuple: Tuple,
    /// Lengths or checksums of the error are wrong, or the quoted chain of headers is: a program may leave it alone.
    is_malformed: bool,
}

/// A quoted packet as its sender knows it.
struct Known {
    tuple: Tuple,
    /// The way of the error.
    direction: Direction,
    is_doubtful: bool,
}

impl Reference {
    /// Compares what a program did to an ICMP error with what it has to do; `None` if the frame holds none.
    pub(crate) fn check_error(
        &self,
        view: &View<'_>,
        frame: &[u8],
        reading: &Reading,
        out: &Outcome<'_>,
    ) -> Option<Result<Fate, String>> {
        let ip = view.packet_of(reading)?;
        let Transport::Icmp { kind, .. } = ip.transport else { return None };
        let is_looked_at = view.role != Role::Standby && !is_martian(ip.addresses.source());
        let error = Error::read(frame, ip, kind).filter(|_| is_looked_at);
        Some(match error {
            None => is(untouched(frame, out), Fate::Untouched, "it is no error about a packet of a flow"),
            Some(error) => self.check_quote(view, frame, &error, out),
        })
    }

    fn check_quote(&self, view: &View<'_>, frame: &[u8], error: &Error<'_>, out: &Outcome<'_>) -> Result<Fate, String> {
        let known = self.known(&error.tuple);
        let is_sure = known.len() == 1 && !known[0].is_doubtful && !error.is_malformed;
        if !is_sure && (untouched(frame, out) || (error.is_malformed && out.verdict == TCX_DROP)) {
            return Ok(if out.verdict == TCX_DROP { Fate::Dropped } else { Fate::Untouched });
        }
        let mut why = format!("{:?}", error.tuple);
        for known in &known {
            match self.is_told(view, frame, error, known, out) {
                Ok(()) => return Ok(Fate::Told),
                Err(reason) => why += &format!("\n  expected {:?}: {reason}", known.tuple),
            }
        }
        // A flow that did not show has a backend that nobody knows.
        if self.unseen.contains(&error.tuple.mirror()) { Ok(Fate::Ambiguous) } else { Err(why) }
    }

    /// What the quoted packet may have been before it was translated.
    fn known(&self, quoted: &Tuple) -> Vec<Known> {
        let answer = quoted.mirror();
        let mut known = Vec::new();
        if let Some(reply) = self.replies.get(&answer).filter(|reply| !reply.is_direct(&answer)) {
            let direction = Direction::ToClient(reply.entry);
            known.push(Known { tuple: reply.client, direction, is_doubtful: reply.doubtful });
        }
        if let Some(flow) = self.flows.get(&answer) {
            let sent = answers(&answer, flow);
            // Another flow may have taken the port of this one, which is gone then.
            let is_doubtful = self.replies.get(&sent).is_none_or(|reply| reply.client != answer || reply.doubtful)
                || self.unseen.contains(&answer);
            known.push(Known { tuple: sent, direction: Direction::ToBackend, is_doubtful });
        }
        let closing = |client: &&Tuple| client.protocol == quoted.protocol;
        known.extend(self.unseen.iter().filter(closing).map(|client| Known {
            tuple: *client,
            direction: Direction::ToClient(None),
            is_doubtful: true,
        }));
        known
    }

    /// Whether the sender of the quoted packet is told.
    fn is_told(
        &self,
        view: &View<'_>,
        frame: &[u8],
        error: &Error<'_>,
        known: &Known,
        out: &Outcome<'_>,
    ) -> Result<(), String> {
        let Tuple { source: quoted_source, destination: quoted_destination, .. } = known.tuple;
        // The receiver of the packet has the address that its sender knows.
        let reporter = error.ip.addresses.source();
        let source = if reporter == error.tuple.destination.ip { quoted_destination.ip } else { reporter };
        let destination = quoted_source.ip;
        let with =
            |hop_limit| ErrorRewrite { source, destination, hop_limit, quoted_source, quoted_destination }.of(frame);
        let (routes, direction, hop_limit) = (&self.routes, known.direction, error.ip.hop_limit);
        let delivery = Delivery { routes, view, direction, hop_limit };
        delivery.check(frame, out, (source, destination), with, &error.checksums_in_doubt())
    }
}

impl<'a> Error<'a> {
    /// The error in `ip`, if a message of this `kind` is one that quotes a packet which can be of a flow.
    fn read(frame: &[u8], ip: &'a IpReading, kind: u8) -> Option<Self> {
        // RFC 792 and RFC 4443. A redirect is none.
        let is_error = match ip.addresses.source() {
            IpAddr::V4(_) => matches!(kind, 3 | 4 | 11 | 12),
            IpAddr::V6(_) => matches!(kind, 1..=4),
        };
        // At the end of its way it is for the network stack to drop.
        if !is_error || ip.is_part() || ip.hop_limit <= 1 {
            return None;
        }
        let quoted = IpReading::of(frame, ip.payload_at + 8)?;
        let family = |ip: &IpReading| Family::of(ip.addresses.source());
        let protocol = Protocol::from_number(quoted.protocol)?;
        let is_of_receiver = quoted.addresses.source() == ip.addresses.destination();
        if family(&quoted) != family(ip) || !is_walked(&quoted) || quoted.is_later_part() || !is_of_receiver {
            return None;
        }
        let end = ip.end.min(frame.len());
        let ports = frame.get(quoted.payload_at..quoted.payload_at + 4).filter(|_| quoted.payload_at + 8 <= end)?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        let source = Endpoint { ip: quoted.addresses.source(), port: port(0) };
        let destination = Endpoint { ip: quoted.addresses.destination(), port: port(2) };
        let is_malformed = !ip.faults.is_empty()
            || ip.checksum == Check::Wrong
            || ip.extensions.contains(&protocol::FRAGMENT)
            || quoted.faults.contains(&Fault::Extensions);
        Some(Self { ip, quoted, tuple: Tuple { protocol, source, destination }, is_malformed })
    }

    /// A quote is mostly cut, so that nobody can verify the checksum of what it carries.
    fn checksums_in_doubt(&self) -> Vec<usize> {
        let quoted = &self.quoted;
        let transport = quoted.payload_at + if quoted.protocol == protocol::UDP { 6 } else { 16 };
        [checksums_in_doubt(self.ip), vec![quoted.at + 10, transport, self.ip.payload_at + 2]].concat()
    }
}
