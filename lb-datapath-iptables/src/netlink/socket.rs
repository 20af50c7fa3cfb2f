//! One netlink socket and the two conversations there are: a burst of requests, and a dump.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket as Raw, SocketAddr};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::{
    Writer, attributes,
    codec::{HEADER, length_at},
    string,
};
use crate::crash;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
/// The dump is not of one piece.
const NLM_F_DUMP_INTERRUPTED: u16 = 0x10;
/// The error carries attributes (`NETLINK_EXT_ACK`).
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The kernel fills at most this much per datagram of a dump.
const RECEIVE: usize = 64 << 10;
/// Room for the answers of a burst: one refusal takes about 800 bytes of it.
const RECEIVE_QUEUE: usize = 32 << 20;
/// What a send buffer holds besides the message.
const SEND_SLACK: usize = 64 << 10;
/// How often a dump is read again that somebody else's change cut in two.
const INTERRUPTED_DUMPS: usize = 16;

/// A netlink socket of one protocol in one network namespace.
#[derive(Debug)]
pub(crate) struct Socket {
    raw: Raw,
    sequence: u32,
    send_buffer: usize,
    buffer: Vec<u8>,
}

/// A message of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// Type.
    pub(crate) kind: u16,
    /// Flags of the header.
    pub(crate) flags: u16,
    sequence: u32,
    /// Address of the socket that made the change that is told of.
    pub(crate) port: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

/// A request that the kernel refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Position of the request in its burst.
    pub(crate) index: u32,
    /// Why, with the kernel's own words if it has any.
    pub(crate) error: io::Error,
}

impl Socket {
    /// A socket in the network namespace of the calling thread.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = Raw::new(protocol)?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        raw.set_cap_ack(true)?;
        raw.set_ext_ack(true)?;
        // Without the privilege, which no user namespace gives, the queue is what `net.core.rmem_max` allows.
        let _ = setsockopt(&raw, sockopt::RcvBufForce, &RECEIVE_QUEUE)
            .or_else(|_| setsockopt(&raw, sockopt::RcvBuf, &RECEIVE_QUEUE));
        Ok(Self { raw, sequence: 1, send_buffer: 0, buffer: Vec::with_capacity(RECEIVE) })
    }

    /// The address of this socket: what the kernel says a change that it made was made by.
    pub(crate) fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.raw.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Lets the kernel filter dumps by what their request says, where it can.
    pub(crate) fn filter_dumps(&self) -> io::Result<()> {
        self.raw.set_netlink_get_strict_chk(true)
    }

    /// Sends every message of `requests` in one datagram and returns what the kernel refused.
    ///
    /// The kernel answers while it takes the datagram, so that everything is there when `send` returns; the last
    /// message asks for an acknowledgement, and its absence is an error.
    pub(crate) fn burst(&mut self, mut requests: Writer) -> io::Result<Vec<Refusal>> {
        requests.flag_last(NLM_F_ACK);
        let last = requests.messages().saturating_sub(1);
        self.exchange(requests, last)
    }

    /// The same for a batch of nfnetlink: its last message is the end marker, which is not acknowledged, so `last` is
    /// the one before.
    pub(crate) fn exchange(&mut self, requests: Writer, last: u32) -> io::Result<Vec<Refusal>> {
        let first = self.sequence;
        self.sequence = first.wrapping_add(requests.messages());
        self.make_room(requests.len())?;
        let bytes = requests.finish(first);
        self.drain()?;
        crash::point();
        let sent = self.raw.send(&bytes, 0)?;
        crash::point();
        if sent != bytes.len() {
            return Err(io::Error::other(format!("netlink took {sent} of {} bytes", bytes.len())));
        }
        self.answers(first, last)
    }

    /// Sends requests that are answered by one message each, and hands `each` the position of every request with its
    /// answer.
    pub(crate) fn look_up(
        &mut self,
        requests: Writer,
        mut each: impl FnMut(u32, io::Result<Message<'_>>),
    ) -> io::Result<()> {
        let first = self.sequence;
        self.sequence = first.wrapping_add(requests.messages());
        self.make_room(requests.len())?;
        self.drain()?;
        self.raw.send(&requests.finish(first), 0)?;
        while self.receive_now()? {
            for message in messages(&self.buffer) {
                let index = message.sequence.wrapping_sub(first);
                match message.kind {
                    NLMSG_ERROR => each(index, refusal(&message).map_or(Ok(message), Err)),
                    _ => each(index, Ok(message)),
                }
            }
        }
        Ok(())
    }

    /// Asks for a dump and hands every message of it to `each`, with what was made of those before.
    ///
    /// A dump that a concurrent change cut in two is read again from the start.
    pub(crate) fn dump<T: Default>(
        &mut self,
        kind: u16,
        fixed: &[u8],
        attributes: impl Fn(&mut Writer),
        mut each: impl FnMut(&mut T, Message<'_>),
    ) -> io::Result<T> {
        for _ in 0..INTERRUPTED_DUMPS {
            let mut writer = Writer::default();
            writer.message(kind, NLM_F_REQUEST | NLM_F_DUMP, fixed, &attributes);
            let sequence = self.sequence;
            self.sequence = sequence.wrapping_add(1);
            self.drain()?;
            self.raw.send(&writer.finish(sequence), 0)?;
            let mut found = T::default();
            if self.read_dump(sequence, |message| each(&mut found, message))? {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the dump changed while it was read, every time"))
    }

    /// Whether the dump was read in one piece.
    fn read_dump(&mut self, sequence: u32, mut each: impl FnMut(Message<'_>)) -> io::Result<bool> {
        let mut whole = true;
        loop {
            self.receive(0)?;
            for message in messages(&self.buffer).filter(|m| m.sequence == sequence) {
                whole &= message.flags & NLM_F_DUMP_INTERRUPTED == 0;
                match message.kind {
                    NLMSG_DONE => return done(message.payload).map(|()| whole),
                    NLMSG_ERROR => return Err(refusal(&message).unwrap_or_else(|| io::Error::other("empty answer"))),
                    NLMSG_OVERRUN => whole = false,
                    _ => each(message),
                }
            }
        }
    }

    fn answers(&mut self, first: u32, last: u32) -> io::Result<Vec<Refusal>> {
        let mut refused = Vec::new();
        let mut acknowledged = false;
        while self.receive_now()? {
            for message in messages(&self.buffer).filter(|m| m.kind == NLMSG_ERROR) {
                let index = message.sequence.wrapping_sub(first);
                match refusal(&message) {
                    Some(error) => refused.push(Refusal { index, error }),
                    None => acknowledged |= index == last,
                }
            }
        }
        if refused.is_empty() && !acknowledged {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not acknowledge the requests"));
        }
        Ok(refused)
    }

    /// Throws away what a conversation that ended early left in the queue.
    fn drain(&mut self) -> io::Result<()> {
        while self.receive_now().or_else(|error| lost(&error).then_some(true).ok_or(error))? {}
        Ok(())
    }

    /// Receives what is there; `false` if nothing is.
    fn receive_now(&mut self) -> io::Result<bool> {
        match self.receive(nix::libc::MSG_DONTWAIT) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, flags: i32) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, flags) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the send buffer large enough: the kernel takes a datagram whole or not at all.
    fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        let wanted = bytes + SEND_SLACK;
        if wanted > self.send_buffer {
            match setsockopt(&self.raw, sockopt::SndBufForce, &wanted) {
                Err(nix::Error::EPERM) => self.make_what_room_there_is(bytes, wanted)?,
                result => result?,
            }
            self.send_buffer = wanted;
        }
        Ok(())
    }

    /// The same without the privilege: up to twice `net.core.wmem_max`.
    fn make_what_room_there_is(&self, bytes: usize, wanted: usize) -> io::Result<()> {
        setsockopt(&self.raw, sockopt::SndBuf, &wanted)?;
        let limit = getsockopt(&self.raw, sockopt::SndBuf)?.saturating_sub(SEND_RESERVE);
        if bytes <= limit {
            return Ok(());
        }
        Err(io::Error::other(TooLarge { bytes, limit, needed: bytes.div_ceil(2) + SEND_RESERVE }))
    }
}

/// What the kernel keeps of a send buffer for itself.
const SEND_RESERVE: usize = 32;

/// A datagram is never split: half a transaction would be a state that nobody asked for.
#[derive(Debug, thiserror::Error)]
#[error(
    "an update of {bytes} bytes does not fit into a socket buffer of {limit}: raise sysctl net.core.wmem_max to {needed}, \
     or run as root of the machine"
)]
struct TooLarge {
    bytes: usize,
    limit: usize,
    needed: usize,
}

/// Whether the kernel had to throw an answer away.
pub(super) fn lost(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

fn done(payload: &[u8]) -> io::Result<()> {
    match code(payload) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

/// The error in an answer, `None` for an acknowledgement.
fn refusal(message: &Message<'_>) -> Option<io::Error> {
    let code = code(message.payload).filter(|&code| code != 0)?;
    let cause = io::Error::from_raw_os_error(code.saturating_neg());
    match words(message) {
        Some(words) => Some(io::Error::new(cause.kind(), Explained { words, cause })),
        None => Some(cause),
    }
}

/// An error of the kernel with the kernel's explanation.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
struct Explained {
    words: String,
    #[source]
    cause: io::Error,
}

fn code(payload: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?))
}

fn words(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let found = attributes(message.payload.get(4 + HEADER..)?).find(NLMSGERR_ATTR_MSG)?;
    string(found).map(str::to_owned)
}

pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let length = length_at(datagram, at)?;
        let bytes = &datagram[at..at + length];
        at += length.next_multiple_of(4);
        Some(Message {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            flags: u16::from_ne_bytes([bytes[6], bytes[7]]),
            sequence: u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            port: u32::from_ne_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]),
            payload: &bytes[HEADER..],
        })
    })
}

/// Whether an update was never sent because no socket buffer holds it.
pub(crate) fn is_too_large(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<TooLarge>())
}

/// Number of the error that the kernel gave, through its explanation if there is one.
pub(crate) fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| error.get_ref()?.downcast_ref::<Explained>()?.cause.raw_os_error())
}
