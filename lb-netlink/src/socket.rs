use std::{io, time::Duration};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkSerializable};
use netlink_sys::{
    Socket as Raw, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_SOCK_DIAG},
};
use nix::{
    libc,
    sys::{
        socket::{getsockopt, setsockopt, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::{
    Answer, Error, KernelError, Message, Result, Writer,
    dump::{DumpEnd, DumpReader},
    messages,
};

/// The kernel fills at most this much per datagram of a dump.
const RECEIVE: usize = 64 << 10;
/// Room for the answers to one datagram of requests: a refusal takes about 800 bytes of it.
const RECEIVE_QUEUE: usize = 32 << 20;
/// What a send buffer holds besides the datagram.
const SEND_SLACK: usize = 64 << 10;
/// What the kernel keeps of a send buffer for itself.
const SEND_RESERVE: usize = 32;
/// How often a dump is read that others' changes interrupt.
const DUMP_ATTEMPTS: usize = 16;
/// The kernel writes the next part of a dump while the last one is received, so that only a stuck one takes that long.
const DUMP_TIMEOUT: Duration = Duration::from_secs(30);

/// The subsystem of the kernel at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Devices, addresses, routes, routing rules.
    #[doc(alias = "NETLINK_ROUTE")]
    Route,
    /// nf_tables, conntrack and the other subsystems of netfilter.
    #[doc(alias = "NETLINK_NETFILTER")]
    Netfilter,
    /// Sockets of processes: see [`SockDiag`](crate::SockDiag).
    #[doc(alias = "NETLINK_SOCK_DIAG")]
    SockDiag,
}

impl Protocol {
    pub(crate) const fn number(self) -> isize {
        match self {
            Self::Route => NETLINK_ROUTE,
            Self::Netfilter => NETLINK_NETFILTER,
            Self::SockDiag => NETLINK_SOCK_DIAG,
        }
    }
}

/// A netlink socket in one network namespace, connected to the kernel.
#[derive(Debug)]
pub struct Socket {
    raw: Raw,
    sequence: u32,
    send_buffer: usize,
    timeout: Duration,
    buffer: Vec<u8>,
}

/// A request that the kernel refused.
#[derive(Debug)]
pub struct Refusal {
    /// Position of the request in its datagram, from 0.
    pub index: u32,
    /// Why.
    pub error: KernelError,
}

impl Socket {
    /// A socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open(protocol: Protocol) -> Result<Self> {
        let mut raw = Raw::new(protocol.number()).map_err(Error::socket("opening a netlink socket"))?;
        raw.bind_auto().map_err(Error::socket("binding a netlink socket"))?;
        raw.connect(&SocketAddr::new(0, 0)).map_err(Error::socket("connecting a netlink socket"))?;
        let option = Error::socket("setting an option of a netlink socket");
        raw.set_cap_ack(true).map_err(&option)?;
        raw.set_ext_ack(true).map_err(&option)?;
        // Without the privilege, which no user namespace has, the queue is what `net.core.rmem_max` allows.
        let _ = setsockopt(&raw, sockopt::RcvBufForce, &RECEIVE_QUEUE)
            .or_else(|_| setsockopt(&raw, sockopt::RcvBuf, &RECEIVE_QUEUE));
        let mut socket =
            Self { raw, sequence: 1, send_buffer: 0, timeout: DUMP_TIMEOUT, buffer: Vec::with_capacity(RECEIVE) };
        socket.set_dump_timeout(DUMP_TIMEOUT)?;
        Ok(socket)
    }

    /// Sets how long the next part of a dump is awaited, in whole milliseconds: 30 s unless set. Everything else is
    /// answered before the kernel has taken the request.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn set_dump_timeout(&mut self, timeout: Duration) -> Result<()> {
        // Zero would be no time-out at all.
        let ms = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX).max(1);
        setsockopt(&self.raw, sockopt::ReceiveTimeout, &TimeVal::milliseconds(ms))
            .map_err(|errno| Error::socket("setting the time-out of a netlink socket")(errno.into()))?;
        self.timeout = timeout;
        Ok(())
    }

    /// The address of the socket: notifications name the socket that caused them by it.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn port(&self) -> Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.raw.get_address(&mut address).map_err(Error::socket("asking for the address of a netlink socket"))?;
        Ok(address.port_number())
    }

    /// Has the kernel filter dumps by the fields of their request, where it can (`NETLINK_GET_STRICT_CHK`).
    ///
    /// # Errors
    /// [`Error::Socket`] on kernels before Linux 4.20.
    pub fn filter_dumps(&self) -> Result<()> {
        self.raw.set_netlink_get_strict_chk(true).map_err(Error::socket("setting an option of a netlink socket"))
    }

    /// Sends all requests in one datagram and returns those that the kernel refused. A refused request does not stop
    /// the ones behind it.
    ///
    /// The kernel answers while it takes the datagram ([`netlink_rcv_skb`]), so that every answer is there when the
    /// send returns. The last request asks for an acknowledgement, whose absence is an error.
    ///
    /// [`netlink_rcv_skb`]: https://elixir.bootlin.com/linux/v6.18/source/net/netlink/af_netlink.c
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::Socket`]: nothing was done. [`Error::NotAcknowledged`] and [`Error::Overrun`]:
    /// what was done is not known.
    pub fn request(&mut self, mut requests: Writer) -> Result<Vec<Refusal>> {
        requests.flag_last(NLM_F_ACK);
        let last = requests.messages().saturating_sub(1);
        self.transaction(requests, last)
    }

    /// The same for a batch of nfnetlink, whose end marker is not acknowledged: `acknowledged` is the position of the
    /// request that asks for the acknowledgement.
    ///
    /// # Errors
    /// Those of [`request`](Self::request).
    pub fn transaction(&mut self, requests: Writer, acknowledged: u32) -> Result<Vec<Refusal>> {
        let first = self.send(requests)?;
        let (mut refused, mut complete) = (Vec::new(), false);
        while self.receive_now()? {
            for message in messages(&self.buffer) {
                let index = message.sequence.wrapping_sub(first);
                match message.answer() {
                    Answer::Refused(error) => refused.push(Refusal { index, error }),
                    Answer::Acknowledged => complete |= index == acknowledged,
                    Answer::Done | Answer::Overrun | Answer::Message(_) => {}
                }
            }
        }
        if refused.is_empty() && !complete { Err(Error::NotAcknowledged) } else { Ok(refused) }
    }

    /// Sends requests that have one answer each, in one datagram, and hands `each` the position of every request with
    /// its answer. The answers have to fit into the receive queue: 32 MiB, or without the privilege what
    /// `net.core.rmem_max` allows.
    ///
    /// # Errors
    /// Those of [`request`](Self::request).
    pub fn look_up(
        &mut self,
        requests: Writer,
        mut each: impl FnMut(u32, Result<Message<'_>, KernelError>),
    ) -> Result<()> {
        let first = self.send(requests)?;
        while self.receive_now()? {
            for message in messages(&self.buffer) {
                let index = message.sequence.wrapping_sub(first);
                match message.answer() {
                    Answer::Refused(error) => each(index, Err(error)),
                    Answer::Message(message) => each(index, Ok(message)),
                    Answer::Acknowledged | Answer::Done | Answer::Overrun => {}
                }
            }
        }
        Ok(())
    }

    /// Asks for a dump and hands every message of it to `each`, together with what `each` made of those before.
    ///
    /// A dump that others' changes interrupt is read again from the start, up to 16 times.
    ///
    /// # Errors
    /// [`Error::DumpInterrupted`], [`Error::Refused`], [`Error::TimedOut`], [`Error::Overrun`], [`Error::Socket`].
    pub fn dump<T: Default>(
        &mut self,
        kind: u16,
        fixed: &[u8],
        attributes: impl Fn(&mut Writer),
        mut each: impl FnMut(&mut T, Message<'_>),
    ) -> Result<T> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut request = Writer::default();
            request.message(kind, NLM_F_REQUEST | NLM_F_DUMP, fixed, &attributes);
            let mut reader = DumpReader::new(self.send(request)?);
            let mut found = T::default();
            let end = loop {
                self.receive(0)?;
                if let Some(end) = reader.take(&self.buffer, |message| each(&mut found, message))? {
                    break end;
                }
            };
            if end == DumpEnd::Consistent {
                return Ok(found);
            }
        }
        Err(Error::DumpInterrupted { attempts: DUMP_ATTEMPTS })
    }

    /// The messages of the dump that `request` asks for.
    ///
    /// # Errors
    /// Those of [`dump`](Self::dump), and [`Error::Malformed`].
    pub fn dump_all<M>(&mut self, request: &M) -> Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut body = vec![0; request.buffer_len()];
        request.serialize(&mut body);
        let each = |found: &mut Vec<Result<M>>, message: Message<'_>| found.push(message.decode());
        self.dump(request.message_type(), &body, |_| {}, each)?.into_iter().collect()
    }

    /// Sends requests; returns the number of the first.
    fn send(&mut self, requests: Writer) -> Result<u32> {
        let first = self.sequence;
        self.sequence = first.wrapping_add(requests.messages());
        self.make_room(requests.len())?;
        let bytes = requests.finish(first);
        self.drain()?;
        let sent = self.raw.send(&bytes, 0).map_err(Error::socket("sending to a netlink socket"))?;
        if sent == bytes.len() { Ok(first) } else { Err(Error::ShortSend { sent, bytes: bytes.len() }) }
    }

    /// Drops what a conversation that ended early left in the queue.
    fn drain(&mut self) -> Result<()> {
        loop {
            match self.receive_now() {
                Ok(true) | Err(Error::Overrun) => {}
                Ok(false) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives the next datagram without waiting; `false` if there is none.
    fn receive_now(&mut self) -> Result<bool> {
        match self.receive(libc::MSG_DONTWAIT) {
            Ok(()) => Ok(true),
            Err(Error::TimedOut { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, flags: i32) -> Result<()> {
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, flags) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::TimedOut { timeout: self.timeout });
                }
                Err(error) if is_overrun(&error) => return Err(Error::Overrun),
                Err(error) => return Err(Error::socket("receiving from a netlink socket")(error)),
            }
        }
    }

    /// Makes the send buffer large enough: the kernel takes a datagram whole or not at all.
    fn make_room(&mut self, bytes: usize) -> Result<()> {
        let needed = bytes + SEND_SLACK;
        if needed > self.send_buffer {
            match setsockopt(&self.raw, sockopt::SndBufForce, &needed) {
                Err(nix::Error::EPERM) => self.make_room_unprivileged(bytes, needed)?,
                result => result.map_err(send_buffer)?,
            }
            self.send_buffer = needed;
        }
        Ok(())
    }

    /// The same without the privilege: up to twice `net.core.wmem_max`.
    fn make_room_unprivileged(&self, bytes: usize, needed: usize) -> Result<()> {
        setsockopt(&self.raw, sockopt::SndBuf, &needed).map_err(send_buffer)?;
        let limit = getsockopt(&self.raw, sockopt::SndBuf).map_err(send_buffer)?.saturating_sub(SEND_RESERVE);
        if bytes <= limit {
            return Ok(());
        }
        Err(Error::TooLarge { bytes, limit, needed: bytes.div_ceil(2) + SEND_RESERVE })
    }
}

fn send_buffer(errno: nix::Error) -> Error {
    Error::socket("setting the send buffer of a netlink socket")(errno.into())
}

/// Whether the kernel had to drop a datagram.
pub(crate) fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}
