//! Flows that outlive the frontend or the backend that they were translated for.
//!
//! Netfilter decides on the first packet of a flow and remembers. A TCP flow that was answered ends by itself. A UDP
//! flow between a busy client and a backend that is gone never ends, so its entry has to be deleted: then the next
//! packet is a first one again. The same goes for a TCP flow that nobody has answered: its client repeats the first
//! packet, which went to whoever had the address before. Without the entry an answer belongs to no flow, so an answer
//! that is under way is waited for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr, Protocol, Scope},
    datapath::Eviction,
    decision::Packet,
};
use lb_netlink::{Attributes, Protocol as NetlinkProtocol, Socket, Writer, attributes, u16_be, u32_be};
use netlink_packet_core::NLM_F_REQUEST;
use nix::libc;

use crate::{crash, namespace::Namespace, netfilter::*};

/// How long the first answer to a flow is waited for. Backends that are gone never answer, so that a change which
/// removes one may take so long when clients still ask it.
const UNDER_WAY: Duration = Duration::from_millis(250);
/// Time between two looks at the table.
const PAUSE: Duration = Duration::from_millis(2);

/// How long half of a connection may be closed before conntrack forgets it: an hour, as kube-proxy has it. The kernel's
/// own minute ends a connection whose client is done with asking and waits for a slow answer.
pub(crate) const CLOSE_WAIT: Duration = Duration::from_secs(3600);

/// Has conntrack remember half-closed connections of a network namespace for so long at least, where single connections
/// cannot have time-outs of their own. Without the privilege everything stays as it is: services work without.
pub(crate) fn raise_close_wait(namespace: Option<&Namespace>, time: Duration) {
    const SYSCTL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    let raise = || {
        let now = fs::read_to_string(SYSCTL).ok().and_then(|text| text.trim().parse().ok());
        if now.is_some_and(|now: u64| now < time.as_secs()) {
            // A container may see all of /proc/sys read-only.
            let _ = fs::write(SYSCTL, time.as_secs().to_string());
        }
    };
    if let Some(namespace) = namespace {
        // Whoever may not enter it may not write there either.
        let _ = namespace.within(raise);
    }
}

/// The flows that may go on: for each frontend, the sources that replies may have.
pub(crate) type Allowed = BTreeMap<FrontendAddr, BTreeSet<(IpAddr, u16)>>;

/// What evictions let go on. Nothing tells the flows of one scope of a frontend from those of the other.
pub(crate) fn allowed(evictions: &[Eviction]) -> Allowed {
    let mut allowed = Allowed::new();
    for Eviction { frontend, keeps } in evictions {
        let addr = FrontendAddr { scope: Scope::External, ..*frontend };
        allowed.entry(addr).or_default().extend(keeps.iter().map(|backend| (backend.ip, backend.port)));
    }
    allowed
}

/// Families and protocols of the frontends: each takes a dump of its own.
fn concerned(allowed: &Allowed) -> BTreeSet<(Family, Protocol)> {
    allowed.keys().map(|addr| (addr.family(), addr.protocol)).collect()
}

/// The connection table of the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    pub(crate) fn open() -> lb_netlink::Result<Self> {
        Ok(Self { socket: Socket::open(NetlinkProtocol::Netfilter)? })
    }

    /// Where the replies to `packet`'s flow come from, if the flow is known and its destination was translated.
    pub(crate) fn backend_of(&mut self, packet: &Packet) -> lb_netlink::Result<Option<BackendAddr>> {
        let family = Family::of(packet.destination);
        let mut writer = Writer::default();
        writer.message(IPCTNL_MSG_CT_GET, NLM_F_REQUEST, &nfgenmsg(nfproto(family), 0), |w| {
            w.nest(CTA_TUPLE_ORIG, |w| tuple_of(w, family, packet));
        });
        let (mut found, mut failed) = (None, None);
        self.socket.look_up(writer, |_, answer| match answer {
            Ok(message) => {
                let flow = body(message.payload);
                let status = flow.find(CTA_STATUS).and_then(u32_be).unwrap_or(0);
                let replies = flow.find(CTA_TUPLE_REPLY).map(attributes);
                let from = replies.and_then(|replies| end(family, &replies, Side::Source));
                found = from.filter(|_| status & IPS_DST_NAT != 0);
            }
            Err(error) if error.errno() == libc::ENOENT => {}
            Err(error) => failed = Some(error),
        })?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(found.map(|(ip, port)| BackendAddr::new(ip, port, packet.protocol))),
        }
    }

    /// Deletes the flows to a frontend of `allowed` whose replies come from somewhere else than it allows; flows that
    /// nobody translated are among them. Returns how many.
    ///
    /// Of TCP only flows that nobody has answered are deleted: the others end by themselves and must not be cut.
    pub(crate) fn forget_stale(&mut self, allowed: &Allowed) -> lb_netlink::Result<usize> {
        let mut deleted = 0;
        for (family, protocol) in concerned(allowed) {
            deleted += self.forget_in(family, protocol, allowed)?;
        }
        Ok(deleted)
    }

    /// Deletes the flows to a frontend of `allowed` that were translated and whose replies come from somewhere else than it
    /// allows, established or not. Returns how many. The next packet of their client is the first of another flow: whoever
    /// gets it knows no such connection, and resets it.
    pub(crate) fn end(&mut self, allowed: &Allowed) -> lb_netlink::Result<usize> {
        let mut deleted = 0;
        for (family, protocol) in concerned(allowed) {
            let over = self.socket.dump(
                IPCTNL_MSG_CT_GET,
                &nfgenmsg(nfproto(family), 0),
                |w| only(protocol, Answered::OrNot, w),
                |found: &mut Vec<Entry>, message| {
                    let flow = body(message.payload);
                    found.extend(elsewhere(family, protocol, &flow, allowed).filter(|entry| entry.is_translated));
                },
            )?;
            deleted += self.delete(family, &over)?;
        }
        Ok(deleted)
    }

    fn forget_in(&mut self, family: Family, protocol: Protocol, allowed: &Allowed) -> lb_netlink::Result<usize> {
        let deadline = Instant::now() + UNDER_WAY;
        let mut deleted = 0;
        loop {
            let patient = Instant::now() < deadline;
            let stale = self.socket.dump(
                IPCTNL_MSG_CT_GET,
                &nfgenmsg(nfproto(family), 0),
                |w| only(protocol, if protocol == Protocol::Tcp { Answered::Not } else { Answered::OrNot }, w),
                |found: &mut Vec<Entry>, message| {
                    let flow = body(message.payload);
                    found.extend(stale(family, protocol, &flow, allowed));
                },
            )?;
            let (waiting, over): (Vec<_>, Vec<_>) =
                stale.into_iter().partition(|entry| patient && entry.awaits_answer());
            deleted += self.delete(family, &over)?;
            if waiting.is_empty() {
                return Ok(deleted);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Deletes entries; one that has ended by itself counts as well.
    fn delete(&mut self, family: Family, entries: &[Entry]) -> lb_netlink::Result<usize> {
        if entries.is_empty() {
            return Ok(0);
        }
        let mut writer = Writer::default();
        for entry in entries {
            writer.message(IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST, &nfgenmsg(nfproto(family), 0), |w| entry.write(w));
        }
        let refused = crash::around(|| self.socket.request(writer))?;
        match refused.into_iter().find(|refusal| refusal.error.errno() != libc::ENOENT) {
            Some(refusal) => Err(refusal.error.into()),
            None => Ok(entries.len()),
        }
    }
}

/// An entry as its deletion names it: by the kernel's own bytes.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    is_answered: bool,
    /// Whether its destination was translated.
    is_translated: bool,
    original: Vec<u8>,
    id: Option<Vec<u8>>,
    zone: Option<Vec<u8>>,
}

impl Entry {
    /// Whether a backend was asked and has not answered yet.
    const fn awaits_answer(&self) -> bool {
        self.is_translated && !self.is_answered
    }

    fn write(&self, w: &mut Writer) {
        w.nest(CTA_TUPLE_ORIG, |w| w.bytes(&self.original));
        if let Some(id) = &self.id {
            w.put(CTA_ID, id);
        }
        if let Some(zone) = &self.zone {
            w.put(CTA_ZONE, zone);
        }
    }
}

/// The flow of a packet in its original direction.
fn tuple_of(w: &mut Writer, family: Family, packet: &Packet) {
    let (source, destination) = match family {
        Family::V4 => (CTA_IP_V4_SRC, CTA_IP_V4_DST),
        Family::V6 => (CTA_IP_V6_SRC, CTA_IP_V6_DST),
    };
    w.nest(CTA_TUPLE_IP, |w| {
        w.put(source, &octets(packet.source));
        w.put(destination, &octets(packet.destination));
    });
    w.nest(CTA_TUPLE_PROTO, |w| {
        w.put(CTA_PROTO_NUM, &[packet.protocol.number()]);
        w.put(CTA_PROTO_SRC_PORT, &packet.source_port.to_be_bytes());
        w.put(CTA_PROTO_DST_PORT, &packet.destination_port.to_be_bytes());
    });
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Which flows a dump is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answered {
    Not,
    OrNot,
}

/// Asks for the flows of a protocol. A kernel before 5.18 shows those with an answer, too.
fn only(protocol: Protocol, answered: Answered, w: &mut Writer) {
    w.nest(CTA_TUPLE_ORIG, |w| w.nest(CTA_TUPLE_PROTO, |w| w.put(CTA_PROTO_NUM, &[protocol.number()])));
    if answered == Answered::Not {
        w.put_u32(CTA_STATUS, 0);
        w.put_u32(CTA_STATUS_MASK, IPS_SEEN_REPLY);
    }
    w.nest(CTA_FILTER, |w| {
        w.put(CTA_FILTER_ORIG_FLAGS, &CTA_FILTER_F_CTA_PROTO_NUM.to_ne_bytes());
        w.put(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
    });
}

/// The same, but of TCP only flows that nobody has answered.
fn stale(family: Family, protocol: Protocol, flow: &Attributes<'_>, allowed: &Allowed) -> Option<Entry> {
    elsewhere(family, protocol, flow, allowed).filter(|entry| protocol != Protocol::Tcp || !entry.is_answered)
}

/// The entry, if it is one of a frontend of this protocol and its replies come from where they may not.
fn elsewhere(family: Family, protocol: Protocol, flow: &Attributes<'_>, allowed: &Allowed) -> Option<Entry> {
    let original = flow.find(CTA_TUPLE_ORIG)?;
    let tuple = attributes(original);
    let status = flow.find(CTA_STATUS).and_then(u32_be).unwrap_or(0);
    if tuple.path(&[CTA_TUPLE_PROTO, CTA_PROTO_NUM])? != [protocol.number()] {
        return None;
    }
    let (ip, port) = end(family, &tuple, Side::Destination)?;
    let backends = allowed.get(&FrontendAddr::new(ip, port, protocol))?;
    let replies = attributes(flow.find(CTA_TUPLE_REPLY)?);
    if backends.contains(&end(family, &replies, Side::Source)?) {
        return None;
    }
    let zone = flow.find(CTA_ZONE).or_else(|| tuple.find(CTA_TUPLE_ZONE));
    Some(Entry {
        is_answered: status & IPS_SEEN_REPLY != 0,
        is_translated: status & IPS_DST_NAT != 0,
        original: original.to_vec(),
        id: flow.find(CTA_ID).map(<[u8]>::to_vec),
        zone: zone.map(<[u8]>::to_vec),
    })
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

fn end(family: Family, tuple: &Attributes<'_>, side: Side) -> Option<(IpAddr, u16)> {
    let (ip, port) = match (family, side) {
        (Family::V4, Side::Source) => (CTA_IP_V4_SRC, CTA_PROTO_SRC_PORT),
        (Family::V4, Side::Destination) => (CTA_IP_V4_DST, CTA_PROTO_DST_PORT),
        (Family::V6, Side::Source) => (CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT),
        (Family::V6, Side::Destination) => (CTA_IP_V6_DST, CTA_PROTO_DST_PORT),
    };
    let bytes = tuple.path(&[CTA_TUPLE_IP, ip])?;
    let ip = match family {
        Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some((ip, tuple.path(&[CTA_TUPLE_PROTO, port]).and_then(u16_be)?))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    const CLIENT: &str = "192.0.2.9:40000";
    const VIP: &str = "10.96.0.1:53";
    const GONE: &str = "10.244.0.7:5353";
    const HERE: &str = "10.244.0.8:5353";

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn packet(protocol: Protocol, from: &str, to: &str) -> Packet {
        let (from, to) = (addr(from), addr(to));
        Packet {
            entry: lb_core::decision::Entry::Uplink,
            protocol,
            source: from.ip(),
            source_port: from.port(),
            destination: to.ip(),
            destination_port: to.port(),
        }
    }

    /// What becomes of a flow to [`VIP`] whose replies come from `backend`, if only [`HERE`] may carry on.
    fn entry(protocol: Protocol, status: u32, backend: &str) -> Option<Entry> {
        let mut writer = Writer::default();
        writer.message(IPCTNL_MSG_CT_GET, 0, &[], |w| {
            w.nest(CTA_TUPLE_ORIG, |w| tuple_of(w, Family::V4, &packet(protocol, CLIENT, VIP)));
            w.nest(CTA_TUPLE_REPLY, |w| tuple_of(w, Family::V4, &packet(protocol, backend, CLIENT)));
            w.put(CTA_STATUS, &status.to_be_bytes());
        });
        let bytes = writer.finish(1);
        let here = (addr(HERE).ip(), addr(HERE).port());
        let vip = FrontendAddr::new(addr(VIP).ip(), addr(VIP).port(), protocol);
        let allowed = BTreeMap::from([(vip, BTreeSet::from([here]))]);
        stale(Family::V4, protocol, &attributes(&bytes[lb_netlink::HEADER..]), &allowed)
    }

    #[test]
    fn flows_to_backends_that_left_go_once_they_were_answered() {
        let waits = |status, backend| entry(Protocol::Udp, status, backend).map(|entry| entry.awaits_answer());
        assert_eq!(waits(IPS_CONFIRMED | IPS_DST_NAT, GONE), Some(true));
        assert_eq!(waits(IPS_CONFIRMED | IPS_DST_NAT | IPS_SEEN_REPLY, GONE), Some(false));
        assert_eq!(waits(IPS_CONFIRMED, VIP), Some(false), "nobody translated it, so nobody answers");
        assert_eq!(waits(IPS_CONFIRMED | IPS_DST_NAT, HERE), None);
    }

    #[test]
    fn evictions_of_both_scopes_keep_what_either_keeps() {
        let vip = FrontendAddr::new(addr(VIP).ip(), addr(VIP).port(), Protocol::Tcp);
        let keeps = |backend: &str| [BackendAddr::new(addr(backend).ip(), addr(backend).port(), Protocol::Tcp)].into();
        let found = allowed(&[
            Eviction { frontend: vip, keeps: keeps(HERE) },
            Eviction { frontend: FrontendAddr { scope: Scope::Internal, ..vip }, keeps: keeps(GONE) },
        ]);
        let both = [HERE, GONE].map(|backend| (addr(backend).ip(), addr(backend).port()));
        assert_eq!(found, Allowed::from([(vip, both.into())]));
    }

    #[test]
    fn connections_go_only_while_nobody_has_answered_them() {
        let waits = |status, backend| entry(Protocol::Tcp, status, backend).map(|entry| entry.awaits_answer());
        assert_eq!(waits(IPS_CONFIRMED, VIP), Some(false), "it began before the service did");
        assert_eq!(waits(IPS_CONFIRMED | IPS_DST_NAT, GONE), Some(true));
        assert_eq!(waits(IPS_CONFIRMED | IPS_DST_NAT, HERE), None);
        assert_eq!(waits(IPS_CONFIRMED | IPS_SEEN_REPLY, VIP), None, "whoever had the address keeps its connection");
        assert_eq!(waits(IPS_CONFIRMED | IPS_DST_NAT | IPS_SEEN_REPLY, GONE), None);
    }
}
