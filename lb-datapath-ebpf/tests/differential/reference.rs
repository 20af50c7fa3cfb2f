//! What has to become of a packet: the decision of the model, and a table of flows as a translation in two directions
//! has to keep it.
//!
//! The reference decides as little as the specification does. Where that leaves a choice (one of several backends, the
//! port of a translated source), it takes what the program chose if that is one of the choices, and holds the program
//! to it from then on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr, Protocol},
    affinity::AffinityRecord,
    datapath::Role,
    decision::{Choice, Entry, FlowView, Forward, Packet, SourceRewrite, Verdict, decide},
    model::Model,
    time::Instant,
};
use lb_testkit::packets::{
    Addresses, Check, Endpoint, IpReading, Ports, Reading, Rewrite, Segment, TcpReading, Transport,
};

use crate::{
    answer,
    bpf::Outcome,
    delivery::{Delivery, Direction, TCX_DROP, TCX_NEXT, TCX_REDIRECT},
    echo::Echoes,
    routes::{Route, Routes},
    world::Device,
};

/// More extension headers than these are not walked.
pub(crate) const MOST_EXTENSIONS: usize = 6;

/// What a packet is judged by besides the table of flows.
pub(crate) struct View<'a> {
    pub(crate) model: &'a Model,
    pub(crate) role: Role,
    /// Counts changes of services.
    pub(crate) version: u64,
    /// Every backend that services had since the table of flows was empty, with the last change after which none had it.
    pub(crate) backends: &'a BTreeMap<BackendAddr, u64>,
    /// Where the packet comes in, or leaves.
    pub(crate) device: Device,
    /// All devices of the node; the uplink is the first.
    pub(crate) devices: &'a [Device],
}

/// What became of a packet; the names of what is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fate {
    Untouched,
    Opened,
    Forwarded,
    Returned,
    Answered,
    /// An error about a packet of a flow, translated.
    Told,
    Dropped,
    /// Two flows have the same tuple, each in another direction: nobody can say which one it belongs to.
    Ambiguous,
    /// Without a whole header of IP the kernel runs no program on demand.
    TooShort,
}

/// Source, destination and protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tuple {
    pub(crate) protocol: Protocol,
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
}

impl View<'_> {
    /// Whether the node itself sends the packet.
    pub(crate) fn is_left(&self) -> bool {
        self.device.is_left()
    }

    /// What the way through the node takes from a packet's hops.
    pub(crate) fn hops(&self) -> u8 {
        u8::from(!self.is_left())
    }

    pub(crate) fn is_on_node(&self, ip: IpAddr) -> bool {
        self.model.node().ips.contains(&ip)
    }

    /// The packet of the frame, if it is one that this host receives, routes or sends, and if its headers are walked.
    pub(crate) fn packet_of<'a>(&self, reading: &'a Reading) -> Option<&'a IpReading> {
        let (destination, _) = reading.ethernet?;
        // A pod may be behind a bridge, which hands its packets on under the addresses of others, too.
        let is_ours = match self.device.entry {
            Entry::Socket => true,
            Entry::PodDevice => destination[0] & 1 == 0 || destination == self.device.mac,
            Entry::Uplink => destination == self.device.mac,
        };
        reading.ip.as_ref().filter(|ip| reading.tags.is_empty() && is_ours && is_walked(ip))
    }

    /// Whether `backend` was gone at a time after `version`. Then a program may treat it as one that is new.
    fn was_gone(&self, backend: BackendAddr, version: u64) -> bool {
        self.backends.get(&backend).is_none_or(|left| *left > version)
    }
}

/// Whether a program finds what an IP packet carries.
pub(crate) fn is_walked(ip: &IpReading) -> bool {
    // The kernel drops packets on the wire with such addresses (`ip6_rcv_core`), since they are a socket's own.
    let mapped = |ip| matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let has_mapped = mapped(ip.addresses.source()) || mapped(ip.addresses.destination());
    let walked = ip.extensions.len() <= MOST_EXTENSIONS && ip.segments_left == 0;
    !has_mapped && ip.payload_at - ip.at >= 20 && (walked || ip.extensions.is_empty())
}

impl Tuple {
    pub(crate) const fn mirror(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }
}

/// A flow from a client to a frontend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) backend: BackendAddr,
    /// What the backend sees as the client.
    pub(crate) source: Endpoint,
    closing: Closing,
    /// When it was opened, in changes of services.
    version: u64,
    /// Where its client is, unless the packet that opened it does not show that.
    entry: Option<Entry>,
}

impl Flow {
    /// Whether its client talks to its peer directly, out of another source.
    fn is_direct(&self, client: &Tuple) -> bool {
        (self.backend.ip, self.backend.port) == (client.destination.ip, client.destination.port)
    }
}

/// A tuple of answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    /// The tuple of the client; the mirror image of the answers' if it talks to its peer directly.
    pub(crate) client: Tuple,
    closing: Closing,
    /// It may not be there.
    pub(crate) doubtful: bool,
    /// Where the client is, as of its [flow](Flow::entry).
    pub(crate) entry: Option<Entry>,
}

impl Reply {
    pub(crate) fn is_direct(&self, answers: &Tuple) -> bool {
        self.client.mirror() == *answers
    }
}

/// How far a TCP connection is from its end.
#[derive(Clone, Copy, Debug, Default)]
struct Closing {
    fin: [bool; 2],
    reset: bool,
    /// A packet that nobody can say the effect of may have ended it.
    doubtful: bool,
}

impl Closing {
    fn see(&mut self, side: usize, flags: u8) {
        self.fin[side] |= flags & Segment::FIN != 0;
        self.reset |= flags & Segment::RST != 0;
    }

    const fn is_over(self) -> bool {
        (self.reset || (self.fin[0] && self.fin[1])) && !self.doubtful
    }

    const fn may_be_over(self) -> bool {
        self.reset || (self.fin[0] && self.fin[1]) || self.doubtful
    }
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// What the affinity of a client leads to.
#[derive(Clone, Copy, Debug)]
enum Memory {
    /// This backend, since so many changes of services.
    Backend(BackendAddr, u64),
    /// Its last flow was opened by a packet that shows no backend.
    Unknown,
}

/// A packet that belongs to a flow or may begin one.
pub(crate) struct Subject<'a> {
    pub(crate) tuple: Tuple,
    pub(crate) ip: &'a IpReading,
    /// TCP flags, or what the first chunk of an SCTP packet [means](meaning_of); 0 for UDP.
    flags: u8,
    /// Lengths or the header's checksum are wrong: a host drops it, and a program may treat it in any way that changes
    /// nothing but what a translation does.
    is_malformed: bool,
}

impl Subject<'_> {
    const fn asks_for_a_connection(&self) -> bool {
        self.flags & (Segment::SYN | Segment::ACK) == Segment::SYN
    }

    /// Whether it may belong to a connection that is there, and never begins one.
    fn is_stray(&self) -> bool {
        self.flags & Segment::RST != 0 || (self.tuple.protocol == Protocol::Sctp && !self.asks_for_a_connection())
    }

    fn is_udp(&self) -> bool {
        self.tuple.protocol == Protocol::Udp
    }

    fn may_begin(&self) -> bool {
        self.is_udp() || self.asks_for_a_connection()
    }
}

/// Something that may become of a packet.
#[derive(Clone, Debug)]
enum Alternative {
    /// It is passed as it came, or dropped, and then nothing else has happened.
    Untouched,
    Dropped,
    /// It goes on to its destination, to which it did not belong to a flow.
    Direct,
    /// It is passed or dropped, and may have had any effect.
    Anything,
    /// It gets a reset or "port unreachable".
    Answered,
    /// It belongs to its flow.
    Forwarded(Flow),
    /// It is an answer, of this flow.
    Returned(Reply),
    /// It is an answer to a client that talks to its peer directly.
    DirectAnswer,
    /// It opens a flow.
    Opens(Opening),
}

impl Alternative {
    /// Whether it begins a flow and may leave the packet as it came.
    fn passes_and_begins(&self, subject: &Subject<'_>) -> bool {
        let Tuple { protocol, destination, .. } = subject.tuple;
        match self {
            Self::Direct => true,
            Self::Opens(opening) => {
                opening.backends.contains(&BackendAddr::new(destination.ip, destination.port, protocol))
            }
            _ => false,
        }
    }
}

/// A client with affinity, and the frontend where it has it.
type Client = (FrontendAddr, IpAddr);

/// How a flow may be opened.
#[derive(Clone, Debug)]
struct Opening {
    backends: BTreeSet<BackendAddr>,
    forward: Forward,
    /// What was known of the client is not certain: neither are the backend and whether the source is kept.
    is_doubtful: bool,
    /// Under which the client is remembered.
    affinity: Option<Client>,
}

/// The table of flows.
pub(crate) struct Reference {
    pub(crate) routes: Routes,
    pub(crate) flows: HashMap<Tuple, Flow>,
    pub(crate) replies: HashMap<Tuple, Reply>,
    affinity: HashMap<Client, Memory>,
    /// Tuples whose last packet may have opened a flow that it does not show.
    doubtful: HashSet<Tuple>,
    /// Those that have ever been so: the tuple of their answers may be taken for good.
    pub(crate) unseen: HashSet<Tuple>,
    /// Ports of packets whose first fragment was seen, by what all of their fragments have in common, and whether that
    /// one was malformed.
    fragments: HashMap<(Addresses, u8, u32), (Protocol, Ports, bool)>,
    echoes: Echoes,
}

impl Reference {
    pub(crate) fn new(routes: Routes) -> Self {
        Self {
            routes,
            flows: HashMap::new(),
            replies: HashMap::new(),
            affinity: HashMap::new(),
            doubtful: HashSet::new(),
            unseen: HashSet::new(),
            fragments: HashMap::new(),
            echoes: Echoes::default(),
        }
    }

    /// What services change, besides backends, can make other frontends: then nobody knows what their clients are
    /// remembered by.
    pub(crate) fn forget_clients(&mut self) {
        self.affinity.values_mut().for_each(|memory| *memory = Memory::Unknown);
    }

    /// Compares what a program did to `frame` with what it has to do.
    pub(crate) fn check(&mut self, view: &View<'_>, frame: &[u8], out: &Outcome<'_>) -> Result<Fate, String> {
        let reading = Reading::of(frame);
        if let Some(fate) = self.echoes.check(view, &reading, frame, out) {
            return fate;
        }
        if let Some(fate) = self.check_error(view, frame, &reading, out) {
            return fate;
        }
        let Some(subject) = self.subject(view, frame, &reading) else {
            return match untouched(frame, out) {
                true => Ok(Fate::Untouched),
                false => Err("expected to be left alone: no packet of a protocol that is translated".into()),
            };
        };
        let is_ambiguous = self.replies.contains_key(&subject.tuple) && self.flows.contains_key(&subject.tuple);
        // Which flow a later fragment belongs to cannot be seen from what came out.
        if is_ambiguous || (subject.ip.is_later_part() && self.unseen.contains(&subject.tuple)) {
            self.saw_anything(view, &subject);
            return Ok(Fate::Ambiguous);
        }
        let alternatives = self.alternatives(view, &subject);
        // A packet without a hop to go shows nothing of what it did. Nor does a later fragment that goes to a backend on the
        // address of its frontend: it has no port that is translated.
        let shows_nothing = subject.ip.hop_limit <= view.hops() || subject.ip.is_later_part();
        if alternatives.len() > 1 && shows_nothing && untouched(frame, out) {
            self.saw_anything(view, &subject);
            return Ok(Fate::Untouched);
        }
        let mut why = String::new();
        for alternative in &alternatives {
            match self.takes(view, &subject, frame, out, alternative) {
                Ok(fate) => {
                    // A new flow may be to the same backend, out of the same source.
                    if alternatives.len() > 1 && fate == Fate::Forwarded {
                        self.saw_old_or_new(&subject);
                    }
                    // A packet that passes as it came may have begun a flow all the same.
                    let begins = |other: &Alternative| other.passes_and_begins(&subject);
                    if fate == Fate::Untouched && !begins(alternative) && alternatives.iter().any(begins) {
                        self.saw_anything(view, &subject);
                    }
                    return Ok(fate);
                }
                Err(reason) => why += &format!("\n  expected {alternative:?}\n    but {reason}"),
            }
        }
        Err(format!("{:?}{why}", subject.tuple))
    }

    /// The packet of the frame, if it is for this host to route and one that is translated.
    fn subject<'a>(&mut self, view: &View<'_>, frame: &[u8], reading: &'a Reading) -> Option<Subject<'a>> {
        let ip = view.packet_of(reading)?;
        let (source, destination) = (ip.addresses.source(), ip.addresses.destination());
        let mut is_malformed = !ip.faults.is_empty() || ip.checksum == Check::Wrong;
        // Fragments of IPv6 agree on the other fields alone: RFC 8200, section 4.5.
        let of_datagram = if source.is_ipv4() { ip.protocol } else { 0 };
        let key = (ip.addresses, of_datagram, ip.fragment.map_or(0, |fragment| fragment.id));
        let (protocol, ports, flags) = match ip.transport {
            Transport::Tcp(TcpReading { ports, flags, .. }) => (Protocol::Tcp, ports, flags),
            Transport::Udp(ports) => (Protocol::Udp, ports, 0),
            Transport::Sctp(ports) => (Protocol::Sctp, ports, meaning_of(first_chunk(frame, ip)?)),
            Transport::Other if ip.is_later_part() => {
                let (protocol, ports, may_be_unknown) = *self.fragments.get(&key)?;
                is_malformed |= may_be_unknown;
                (protocol, ports, 0)
            }
            Transport::Icmp { .. } | Transport::Other | Transport::Cut => return None,
        };
        if ip.is_part() && !ip.is_later_part() && view.role != Role::Standby {
            self.fragments.insert(key, (protocol, ports, is_malformed));
        }
        let source = Endpoint { ip: source, port: ports.source };
        let destination = Endpoint { ip: destination, port: ports.destination };
        Some(Subject { tuple: Tuple { protocol, source, destination }, ip, flags, is_malformed })
    }

    /// What may become of the packet, the most likely first.
    fn alternatives(&self, view: &View<'_>, subject: &Subject<'_>) -> Vec<Alternative> {
        if view.role == Role::Standby {
            return vec![Alternative::Untouched];
        }
        let mut all = Vec::new();
        if let Some(reply) = self.replies.get(&subject.tuple) {
            all.push(match reply.is_direct(&subject.tuple) {
                true => Alternative::DirectAnswer,
                false => Alternative::Returned(*reply),
            });
            if reply.doubtful {
                self.add_new(view, subject, &mut all);
                self.add_unseen(subject, &mut all);
            }
        } else if self.add_known(view, subject, &mut all) {
            self.add_new(view, subject, &mut all);
            self.add_unseen(subject, &mut all);
        }
        if subject.is_malformed {
            all.push(Alternative::Anything);
        }
        all
    }

    /// Adds what becomes of a packet of a known flow. Returns whether it may be treated as one of no flow.
    fn add_known(&self, view: &View<'_>, subject: &Subject<'_>, all: &mut Vec<Alternative>) -> bool {
        let Some(flow) = self.flows.get(&subject.tuple) else { return true };
        if !view.is_left() && flow.entry.is_none_or(|entry| entry == Entry::Socket) {
            // What the node itself sends does not come in.
            all.push(Alternative::Dropped);
            if flow.entry.is_some() {
                // With other services the flow may have no frontend any more.
                let may_have_none = subject.may_begin() && flow.version != view.version;
                return flow.is_direct(&subject.tuple) || flow.closing.may_be_over() || may_have_none;
            }
        }
        // Another flow has taken the tuple of its answers: it is over.
        let reply = self.replies.get(&answers(&subject.tuple, flow));
        if reply.is_some_and(|reply| reply.client != subject.tuple && !reply.doubtful) {
            return true;
        }
        let known = Alternative::Forwarded(*flow);
        let is_doubtful = self.doubtful.contains(&subject.tuple) || reply.is_some_and(|reply| reply.doubtful);
        if subject.asks_for_a_connection() {
            if flow.closing.is_over() {
                return true;
            }
            all.push(known);
            if flow.is_direct(&subject.tuple) {
                return flow.closing.may_be_over() || is_doubtful;
            }
            // With other services the flow may be decided on anew.
            return flow.closing.may_be_over() || flow.version != view.version || is_doubtful;
        }
        let packet = packet(flow.entry.unwrap_or(view.device.entry), subject);
        let established = FlowView { established: Some(flow.backend), ..FlowView::default() };
        let decision = decide(view.model, &packet, &established, Instant::default());
        match decision.verdict {
            Verdict::Forward(Forward { choice: Choice::Exactly(backend), .. }) if backend == flow.backend => {
                all.push(known);
                is_doubtful || flow.entry.is_none() || (subject.is_udp() && view.was_gone(backend, flow.version))
            }
            // A connection outlives its frontend, and a direct flow has none.
            Verdict::Pass if !subject.is_udp() || flow.is_direct(&subject.tuple) => {
                all.push(known);
                is_doubtful
            }
            Verdict::Pass | Verdict::Forward(_) | Verdict::Reject | Verdict::Drop => true,
        }
    }

    /// Adds what becomes of a packet that belongs to no flow.
    fn add_new(&self, view: &View<'_>, subject: &Subject<'_>, all: &mut Vec<Alternative>) {
        if subject.ip.is_later_part() {
            return all.push(Alternative::Untouched);
        }
        if self.add_sent(view, subject, all) {
            return;
        }
        let (packet, affinity) = (packet(view.device.entry, subject), self.affinity_of(view, subject));
        let memory = affinity.and_then(|key| self.affinity.get(&key)).copied();
        let memory = match memory {
            Some(Memory::Backend(backend, version)) if view.was_gone(backend, version) => Some(Memory::Unknown),
            memory => memory,
        };
        let record = match memory {
            Some(Memory::Backend(backend, _)) => Some(AffinityRecord { backend, last_use: Instant::default() }),
            Some(Memory::Unknown) | None => None,
        };
        let known = FlowView { affinity: record, ..FlowView::default() };
        let decision = decide(view.model, &packet, &known, Instant::default());
        let is_doubtful = self.doubtful.contains(&subject.tuple);
        // Of a connection that is not ours, everything but the request for it is an answer to the node itself.
        let is_own =
            !view.is_left() && !subject.may_begin() && view.model.node().ips.contains(&subject.tuple.destination.ip);
        if view.role == Role::Draining || is_own {
            all.push(Alternative::Untouched);
        } else {
            match &decision.verdict {
                // The node drops what is forged, so that nothing is remembered of it.
                Verdict::Pass if packet.forged(view.model.node()).is_some() => all.push(Alternative::Untouched),
                Verdict::Pass => self.add_direct(view, subject, all),
                Verdict::Drop => all.push(Alternative::Dropped),
                Verdict::Forward(_) | Verdict::Reject if subject.is_stray() => all.push(Alternative::Dropped),
                // The rate of answers is limited.
                Verdict::Reject => all.extend([Alternative::Answered, Alternative::Dropped]),
                Verdict::Forward(forward) => {
                    let backends = match &forward.choice {
                        Choice::Exactly(backend) => [*backend].into(),
                        Choice::OneOf(weights) => weights.keys().copied().collect(),
                    };
                    let forward = forward.clone();
                    all.push(Alternative::Opens(Opening { backends, forward, is_doubtful: false, affinity }));
                }
            }
        }
        let is_of_node = view.model.node().ips.contains(&subject.tuple.source.ip);
        if view.is_left() && !is_of_node {
            // It is forged: source ranges may keep it out or let it in, and the node drops what is passed.
            all.extend([Alternative::Dropped, Alternative::Untouched, Alternative::Answered]);
        }
        let is_forged = view.is_left() && !is_of_node;
        if is_forged || is_doubtful || matches!(memory, Some(Memory::Unknown)) {
            let family = Family::of(subject.tuple.destination.ip);
            let fits = |b: &&BackendAddr| b.protocol == subject.tuple.protocol && b.family() == family;
            let backends = view.backends.keys().filter(fits).copied().collect();
            let forward = translated(view, &subject.tuple);
            all.push(Alternative::Opens(Opening { backends, forward, is_doubtful: true, affinity }));
        }
    }

    /// Adds that a packet passes which the node has sent and translated before: it leaves, or comes in for a backend on
    /// the node. Returns whether it is so for sure.
    fn add_sent(&self, view: &View<'_>, subject: &Subject<'_>, all: &mut Vec<Alternative>) -> bool {
        let answers = subject.tuple.mirror();
        let may_be_sent = view.is_left() || view.is_on_node(subject.tuple.destination.ip);
        let Some(reply) = self.replies.get(&answers).filter(|_| may_be_sent) else { return false };
        let is_sure = reply.entry == Some(Entry::Socket) && !reply.doubtful;
        let may_be = reply.entry.is_none_or(|entry| entry == Entry::Socket) && !reply.is_direct(&answers);
        if may_be {
            all.push(Alternative::Untouched);
        }
        may_be && is_sure
    }

    /// Adds what becomes of a packet that is for no frontend: it passes, unless a flow of a frontend has the tuple of its
    /// answers. Then it gets another source.
    fn add_direct(&self, view: &View<'_>, subject: &Subject<'_>, all: &mut Vec<Alternative>) {
        let answers = subject.tuple.mirror();
        let other = self.replies.get(&answers).filter(|reply| !reply.is_direct(&answers));
        let Tuple { protocol, source, .. } = subject.tuple;
        let unseen = self.unseen.iter().any(|client| client.protocol == protocol && may_come_from(client, source));
        let (is_taken, may_be) = match other {
            Some(reply) if reply.closing.is_over() && !reply.doubtful => (false, unseen),
            Some(reply) => (!reply.closing.may_be_over() && !reply.doubtful, true),
            None => (false, unseen),
        };
        if !is_taken || !subject.may_begin() {
            all.push(Alternative::Direct);
        }
        if !may_be || !subject.may_begin() {
            return;
        }
        let Endpoint { ip, port } = subject.tuple.destination;
        let backends = [BackendAddr::new(ip, port, subject.tuple.protocol)].into();
        let forward = translated(view, &subject.tuple);
        all.push(Alternative::Opens(Opening { backends, forward, is_doubtful: false, affinity: None }));
    }

    /// Adds what becomes of an answer to a flow that was opened by a packet that does not show it.
    fn add_unseen(&self, subject: &Subject<'_>, all: &mut Vec<Alternative>) {
        let Tuple { protocol, destination, .. } = subject.tuple;
        let may_have = |client: &&Tuple| {
            let is_own = client.source == destination || client.destination.ip == destination.ip;
            // Nothing is translated to what it is.
            client.protocol == protocol
                && client.mirror() != subject.tuple
                && (is_own || self.routes.of(destination.ip) == Route::Local)
        };
        let closing = Closing { doubtful: true, ..Closing::default() };
        let reply =
            |client: &Tuple| Alternative::Returned(Reply { client: *client, closing, doubtful: true, entry: None });
        all.extend(self.unseen.iter().filter(may_have).map(reply));
        // It may also have talked to its peer directly.
        if self.unseen.contains(&subject.tuple.mirror()) {
            all.push(Alternative::Untouched);
        }
    }

    fn affinity_of(&self, view: &View<'_>, subject: &Subject<'_>) -> Option<Client> {
        let Endpoint { ip, port } = subject.tuple.destination;
        let addr = FrontendAddr::new(ip, port, subject.tuple.protocol);
        let affinity = view.model.service(&view.model.owner(&addr)?.port.service)?.affinity?;
        // The twin for traffic from inside remembers clients of its own.
        let packet = packet(view.device.entry, subject);
        let frontend = decide(view.model, &packet, &FlowView::default(), Instant::default()).frontend?;
        Some((frontend, affinity.client(subject.tuple.source.ip)))
    }

    /// Takes `alternative` as what has happened, if that is so. Otherwise says why it is not.
    fn takes(
        &mut self,
        view: &View<'_>,
        subject: &Subject<'_>,
        frame: &[u8],
        out: &Outcome<'_>,
        alternative: &Alternative,
    ) -> Result<Fate, String> {
        match alternative {
            Alternative::Untouched => is(untouched(frame, out), Fate::Untouched, "it is not as it came"),
            Alternative::Dropped => is(out.verdict == TCX_DROP, Fate::Dropped, "it is not dropped"),
            Alternative::Direct => {
                is(untouched(frame, out), Fate::Untouched, "it is not as it came")?;
                if subject.is_malformed {
                    self.saw_anything(view, subject);
                } else {
                    self.saw_direct(view, subject);
                }
                Ok(Fate::Untouched)
            }
            Alternative::DirectAnswer => {
                is(untouched(frame, out), Fate::Untouched, "it is not as it came")?;
                if let Some(reply) = self.replies.get_mut(&subject.tuple) {
                    reply.closing.see(SERVER, subject.flags);
                }
                Ok(Fate::Untouched)
            }
            Alternative::Anything => {
                let fate = if untouched(frame, out) { Fate::Untouched } else { Fate::Dropped };
                is(fate == Fate::Untouched || out.verdict == TCX_DROP, fate, "it was changed and not dropped")?;
                self.saw_anything(view, subject);
                Ok(fate)
            }
            Alternative::Answered => {
                is(out.verdict == TCX_REDIRECT, Fate::Answered, "it is not sent anywhere")?;
                answer::check(frame, subject.ip, out.frame).map(|()| Fate::Answered)
            }
            Alternative::Forwarded(flow) => {
                let destination = Endpoint { ip: flow.backend.ip, port: flow.backend.port };
                self.is_translated(view, subject, frame, out, [flow.source, destination], Direction::ToBackend)?;
                self.saw_forwarded(subject);
                Ok(Fate::Forwarded)
            }
            Alternative::Returned(reply) => {
                let Tuple { source, destination, .. } = reply.client;
                let direction = Direction::ToClient(reply.entry);
                self.is_translated(view, subject, frame, out, [destination, source], direction)?;
                self.replies.insert(subject.tuple, *reply);
                self.saw_returned(subject);
                Ok(Fate::Returned)
            }
            Alternative::Opens(opening) => self.opens(view, subject, frame, out, opening),
        }
    }

    fn opens(
        &mut self,
        view: &View<'_>,
        subject: &Subject<'_>,
        frame: &[u8],
        out: &Outcome<'_>,
        opening: &Opening,
    ) -> Result<Fate, String> {
        let tuple = subject.tuple;
        let may_lack = |b: &BackendAddr| {
            let port = tuple.protocol == Protocol::Sctp && self.may_lack_port(view, &tuple, opening, *b);
            port || self.may_lack_source(&tuple, opening, *b)
        };
        if out.verdict == TCX_DROP && opening.backends.iter().any(may_lack) {
            self.saw_anything(view, subject);
            return Ok(Fate::Dropped);
        }
        if untouched(frame, out) && subject.ip.hop_limit <= view.hops() {
            // Without a hop to go the packet is not translated, and the flow that it opens does not show.
            let hop = |b: &BackendAddr| self.routes.of(b.ip) != Route::Local;
            is(opening.backends.iter().any(hop), Fate::Untouched, "no backend is a hop away")?;
            self.saw_anything(view, subject);
            return Ok(Fate::Untouched);
        }
        let ip = Reading::of(out.frame).ip.ok_or("what came out is no packet")?;
        let ports = ip.ports().ok_or("what came out has no ports")?;
        let source = Endpoint { ip: ip.addresses.source(), port: ports.source };
        let destination = Endpoint { ip: ip.addresses.destination(), port: ports.destination };
        let backend = BackendAddr::new(destination.ip, destination.port, tuple.protocol);
        if !opening.backends.contains(&backend) {
            return Err(format!("it went to {backend}"));
        }
        self.is_a_source(view, &tuple, opening, backend, source)?;
        self.is_translated(view, subject, frame, out, [source, destination], Direction::ToBackend)?;
        // A flow that did not show may have been opened at any time, and this packet may have ended it.
        let is_doubtful = opening.is_doubtful || self.doubtful.contains(&tuple);
        let closing = Closing { doubtful: is_doubtful, ..Closing::default() };
        let version = if is_doubtful { 0 } else { view.version };
        let entry = Some(view.device.entry).filter(|_| !is_doubtful);
        let flow = Flow { backend, source, closing, version, entry };
        self.flows.insert(tuple, flow);
        self.replies.insert(answers(&tuple, &flow), Reply { client: tuple, closing, doubtful: false, entry });
        self.doubtful.remove(&tuple);
        if let Some(key) = opening.affinity {
            self.affinity.insert(key, Memory::Backend(backend, view.version));
        }
        Ok(Fate::Opened)
    }

    /// Whether there may be no source for a flow to `backend`: its own is taken, and the node has none to give. To itself
    /// it gives none.
    fn may_lack_source(&self, tuple: &Tuple, opening: &Opening, backend: BackendAddr) -> bool {
        let rewrite = opening.forward.source_rewrite(tuple.source.ip, backend);
        let other = match rewrite {
            SourceRewrite::Translated { addr, .. } => addr,
            SourceRewrite::Kept => match &opening.forward.hairpin_source {
                SourceRewrite::Translated { addr, .. } => addr,
                SourceRewrite::Kept => &None,
            },
        };
        let has_other = other.is_some() && self.routes.of(backend.ip) != Route::Local;
        !has_other && self.is_taken(&answers_to(tuple, backend, tuple.source), tuple) != Taken::No
    }

    /// Whether a flow of SCTP to `backend` may find its port taken at every address that it could come from.
    fn may_lack_port(&self, view: &View<'_>, tuple: &Tuple, opening: &Opening, backend: BackendAddr) -> bool {
        let addr = |rewrite: &SourceRewrite| match rewrite {
            SourceRewrite::Translated { addr, .. } => *addr,
            SourceRewrite::Kept => Some(tuple.source.ip),
        };
        let rewrites = [opening.forward.source_rewrite(tuple.source.ip, backend), &opening.forward.hairpin_source];
        let mut sources: Vec<IpAddr> = rewrites.into_iter().filter_map(addr).collect();
        if view.is_left() && view.is_on_node(backend.ip) {
            sources.push(tuple.destination.ip);
        }
        sources.into_iter().map(|ip| Endpoint { ip, ..tuple.source }).any(|source| {
            let is_frontend = view.model.owner(&FrontendAddr::new(source.ip, source.port, tuple.protocol)).is_some();
            is_frontend || self.is_taken(&answers_to(tuple, backend, source), tuple) != Taken::No
        })
    }

    /// Whether `source` is one that a flow to `backend` may get.
    fn is_a_source(
        &self,
        view: &View<'_>,
        tuple: &Tuple,
        opening: &Opening,
        backend: BackendAddr,
        source: Endpoint,
    ) -> Result<(), String> {
        let rewrite = opening.forward.source_rewrite(tuple.source.ip, backend);
        // To a backend on the node itself, a process of the node comes from the frontend. To go past a frontend it cannot.
        if view.is_left() && view.is_on_node(backend.ip) && tuple.destination.ip != backend.ip {
            return self.is_translated_source(tuple, backend, source, tuple.destination.ip, &ports_for(view, tuple));
        }
        let kept = self.is_taken(&answers_to(tuple, backend, tuple.source), tuple);
        match rewrite {
            SourceRewrite::Translated { addr: Some(addr), ports } => {
                if opening.is_doubtful && source == tuple.source {
                    return Ok(());
                }
                self.is_translated_source(tuple, backend, source, *addr, ports)
            }
            SourceRewrite::Translated { addr: None, .. } if source == tuple.source => Ok(()),
            SourceRewrite::Translated { addr: None, .. } => Err("the node has no address to translate to".into()),
            SourceRewrite::Kept if source == tuple.source => match kept {
                Taken::Yes => Err("its source is kept, though another flow has the tuple of its answers".into()),
                Taken::Perhaps | Taken::No => Ok(()),
            },
            SourceRewrite::Kept => {
                let SourceRewrite::Translated { addr: Some(addr), ports } = &opening.forward.hairpin_source else {
                    return Err("its source is not kept".into());
                };
                if kept == Taken::No && !opening.is_doubtful {
                    return Err("its source is not kept, though no flow has the tuple of its answers".into());
                }
                self.is_translated_source(tuple, backend, source, *addr, ports)
            }
        }
    }

    fn is_translated_source(
        &self,
        tuple: &Tuple,
        backend: BackendAddr,
        source: Endpoint,
        addr: IpAddr,
        ports: &RangeInclusive<u16>,
    ) -> Result<(), String> {
        if source.ip != addr || !ports.contains(&source.port) {
            return Err(format!("its source became {source:?}, not a port of {addr} in {ports:?}"));
        }
        match self.is_taken(&answers_to(tuple, backend, source), tuple) {
            Taken::Yes => Err(format!("its source became {source:?}, which another flow to {backend} has")),
            Taken::Perhaps | Taken::No => Ok(()),
        }
    }

    fn is_taken(&self, answers: &Tuple, by: &Tuple) -> Taken {
        match self.replies.get(answers) {
            Some(reply) if reply.doubtful => Taken::Perhaps,
            Some(reply) if reply.client == *by => Taken::No,
            Some(reply) if reply.closing.may_be_over() => Taken::Perhaps,
            Some(_) => Taken::Yes,
            None if self.flows.contains_key(answers) => Taken::Perhaps,
            // A flow that does not show may have this source.
            None if self.unseen.iter().any(|unseen| may_come_from(unseen, answers.destination)) => Taken::Perhaps,
            None => Taken::No,
        }
    }

    /// Whether the packet came out with these ends, and everything else as it has to be.
    fn is_translated(
        &self,
        view: &View<'_>,
        subject: &Subject<'_>,
        frame: &[u8],
        out: &Outcome<'_>,
        [source, destination]: [Endpoint; 2],
        direction: Direction,
    ) -> Result<(), String> {
        let with = |hop_limit| Rewrite { source, destination, hop_limit }.of(frame);
        let doubtful = checksums_in_doubt(subject.ip);
        let delivery = Delivery { routes: &self.routes, view, direction, hop_limit: subject.ip.hop_limit };
        let ends = (source.ip, destination.ip);
        delivery.check(frame, out, ends, with, &doubtful).map_err(|why| format!("{source:?} to {destination:?}: {why}"))
    }

    fn saw_forwarded(&mut self, subject: &Subject<'_>) {
        let Some(flow) = self.flows.get_mut(&subject.tuple) else { return };
        flow.closing.see(CLIENT, subject.flags);
        let (client, closing, entry) = (subject.tuple, flow.closing, flow.entry);
        // Answers are translated again, if they were not any more.
        let own = Reply { client, closing, doubtful: false, entry };
        let reply = self.replies.entry(answers(&client, flow)).or_insert(own);
        if reply.client != client {
            *reply = own;
        }
        reply.closing.see(CLIENT, subject.flags);
        reply.doubtful = false;
    }

    fn saw_old_or_new(&mut self, subject: &Subject<'_>) {
        let Some(flow) = self.flows.get_mut(&subject.tuple) else { return };
        flow.closing.doubtful = true;
        if let Some(reply) = self.replies.get_mut(&answers(&subject.tuple, flow)) {
            reply.closing.doubtful = true;
        }
    }

    fn saw_returned(&mut self, subject: &Subject<'_>) {
        let Some(reply) = self.replies.get_mut(&subject.tuple) else { return };
        reply.closing.see(SERVER, subject.flags);
        let Some(flow) = self.flows.get_mut(&reply.client) else { return };
        if answers(&reply.client, flow) == subject.tuple {
            flow.closing.see(SERVER, subject.flags);
        } else if subject.flags & (Segment::FIN | Segment::RST) != 0 {
            // A server that the client has left ends its old connection, and not the new one.
            flow.closing.doubtful = true;
        }
    }

    /// A client talks to its peer directly: no flow of a frontend gets the tuple of its answers from now on.
    fn saw_direct(&mut self, view: &View<'_>, subject: &Subject<'_>) {
        let answers = subject.tuple.mirror();
        let Endpoint { ip, port } = subject.tuple.source;
        let is_of_frontend = view.model.owner(&FrontendAddr::new(ip, port, subject.tuple.protocol)).is_some();
        // Nobody but the node itself sends from a frontend: no such packet makes its clients talk to it directly. But it
        // makes the datapath forget what is over.
        let is_forged = is_of_frontend && !view.is_left();
        let known = self.replies.get_mut(&answers);
        if let Some(reply) = known.filter(|reply| is_forged && subject.may_begin() && reply.closing.may_be_over()) {
            reply.doubtful = true;
            return;
        }
        let direct = self.replies.get_mut(&answers).filter(|reply| reply.is_direct(&answers));
        if let Some(reply) = direct {
            let begins_again = subject.asks_for_a_connection() && reply.closing.may_be_over();
            if begins_again {
                reply.closing = Closing::default();
            }
            reply.closing.see(CLIENT, subject.flags);
            return;
        }
        if is_forged || !subject.may_begin() {
            return;
        }
        // Only flows to addresses of backends are remembered for sure, and those of the node itself from a frontend's port.
        let ip = subject.tuple.destination.ip;
        let is_backend = view.backends.iter().any(|(backend, left)| backend.ip == ip && *left == 0);
        let doubtful = !is_of_frontend && (!is_backend || view.model.node().ips.contains(&ip));
        let mut closing = Closing { doubtful, ..Closing::default() };
        closing.see(CLIENT, subject.flags & Segment::FIN);
        let entry = Some(view.device.entry);
        self.replies.insert(answers, Reply { client: subject.tuple, closing, doubtful, entry });
    }

    fn saw_anything(&mut self, view: &View<'_>, subject: &Subject<'_>) {
        self.doubtful.insert(subject.tuple);
        self.unseen.insert(subject.tuple);
        self.saw_old_or_new(subject);
        for (answers, reply) in &mut self.replies {
            let touched = *answers == subject.tuple || *answers == subject.tuple.mirror();
            // The tuple of its answers may be that of a connection that was over.
            let taken = may_come_from(&subject.tuple, answers.destination) && reply.closing.may_be_over();
            if touched || taken {
                (reply.doubtful, reply.closing.doubtful) = (true, true);
                if let Some(flow) = self.flows.get_mut(&reply.client) {
                    flow.closing.doubtful = true;
                }
            }
        }
        if let Some(key) = self.affinity_of(view, subject) {
            self.affinity.insert(key, Memory::Unknown);
        }
    }
}

/// Whether a flow of this client that did not show may have `source`, other than by the dice: SCTP keeps its port
/// wherever it comes from.
fn may_come_from(client: &Tuple, source: Endpoint) -> bool {
    client.source == source || (client.protocol == Protocol::Sctp && client.source.port == source.port)
}

/// Whether the tuple of answers belongs to another flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Yes,
    Perhaps,
    No,
}

/// The tuple of the answers to `flow`.
pub(crate) const fn answers(client: &Tuple, flow: &Flow) -> Tuple {
    answers_to(client, flow.backend, flow.source)
}

const fn answers_to(client: &Tuple, backend: BackendAddr, source: Endpoint) -> Tuple {
    let backend = Endpoint { ip: backend.ip, port: backend.port };
    Tuple { protocol: client.protocol, source: backend, destination: source }
}

fn packet(entry: Entry, subject: &Subject<'_>) -> Packet {
    let Tuple { protocol, source, destination } = subject.tuple;
    Packet {
        entry,
        protocol,
        source: source.ip,
        source_port: source.port,
        destination: destination.ip,
        destination_port: destination.port,
    }
}

/// Whether the kernel takes no packet with this source from a device.
pub(crate) fn is_martian(source: IpAddr) -> bool {
    let is_of_v4 = |ip: [u8; 4]| ip[0] == 0 || ip[0] == 127 || (224..240).contains(&ip[0]) || ip == [255; 4];
    match source {
        IpAddr::V4(ip) => is_of_v4(ip.octets()),
        IpAddr::V6(ip) => ip.octets()[0] == 0xff || u128::from(ip) <= 1,
    }
}

/// The forwarding of a flow whose source is translated in any case.
fn translated(view: &View<'_>, tuple: &Tuple) -> Forward {
    let addr = view.model.node().primary_ip(Family::of(tuple.destination.ip));
    let translated = SourceRewrite::Translated { addr, ports: ports_for(view, tuple) };
    Forward {
        choice: Choice::OneOf([].into()),
        source: translated.clone(),
        hairpin_source: translated,
        here: [].into(),
    }
}

/// Ports that a translated source may get: of SCTP, its own.
fn ports_for(view: &View<'_>, tuple: &Tuple) -> RangeInclusive<u16> {
    match tuple.protocol {
        Protocol::Sctp => tuple.source.port..=tuple.source.port,
        Protocol::Tcp | Protocol::Udp => view.model.capabilities().translated_ports.clone(),
    }
}

/// The type of the first chunk of an SCTP packet that has the whole header of one.
fn first_chunk(frame: &[u8], ip: &IpReading) -> Option<u8> {
    let header = frame.get(..ip.end.min(frame.len()))?.get(ip.payload_at + 12..ip.payload_at + 16)?;
    header.first().copied()
}

/// What a chunk does to an association, in terms of the flags of TCP: RFC 9260, sections 5.1 and 9.
const fn meaning_of(chunk: u8) -> u8 {
    match chunk {
        1 => Segment::SYN,
        2 => Segment::SYN | Segment::ACK,
        6 | 14 => Segment::RST,
        7 | 8 => Segment::FIN | Segment::ACK,
        _ => Segment::ACK,
    }
}

/// Where checksums are that cannot be verified: they may be either form of zero.
pub(crate) fn checksums_in_doubt(ip: &IpReading) -> Vec<usize> {
    let transport = match ip.transport {
        Transport::Tcp(_) => 16,
        Transport::Icmp { .. } => 2,
        _ => 6,
    };
    let header = (ip.at + 10, ip.checksum == Check::Wrong);
    let transport = (ip.payload_at + transport, matches!(ip.transport_checksum, Check::Wrong | Check::Unknown));
    [header, transport].into_iter().filter(|(_, doubtful)| *doubtful).map(|(at, _)| at).collect()
}

pub(crate) fn untouched(frame: &[u8], out: &Outcome<'_>) -> bool {
    out.verdict == TCX_NEXT && out.frame == frame
}

pub(crate) fn is(so: bool, fate: Fate, otherwise: &str) -> Result<Fate, String> {
    if so { Ok(fate) } else { Err(otherwise.into()) }
}
