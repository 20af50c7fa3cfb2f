//! What the kernel tells about changes that others make.

use std::{io, os::fd::AsFd as _, time::Duration};

use netlink_sys::{Socket as Raw, SocketAddr};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use socket2::{SockFilter, SockRef};

use super::{
    Message,
    socket::{lost, messages},
};

/// Room for what is told while nobody reads: some ten thousand changed elements.
const QUEUE: usize = 8 << 20;
const DATAGRAM: usize = 64 << 10;

/// A socket that hears of changes in one network namespace, but of none that one certain other socket makes.
#[derive(Debug)]
pub(crate) struct Listener {
    raw: Raw,
    own: Option<u32>,
    buffer: Vec<u8>,
}

/// What reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Everything that was told.
    Everything,
    /// The kernel threw something away, since nobody read it in time.
    NotEverything,
}

impl Listener {
    /// Joins multicast groups in the network namespace of the calling thread. `own` is the address of the socket whose
    /// changes are not to be heard, if there is one.
    pub(crate) fn open(protocol: isize, groups: &[u32], own: Option<u32>) -> io::Result<Self> {
        let mut raw = Raw::new(protocol)?;
        let _ = setsockopt(&raw, sockopt::RcvBufForce, &QUEUE).or_else(|_| setsockopt(&raw, sockopt::RcvBuf, &QUEUE));
        // In the kernel already, so that a large plan of our own does not fill the queue.
        if let Some(own) = own {
            SockRef::from(&raw).attach_filter(&others_than(own))?;
        }
        raw.bind(&SocketAddr::new(0, 0))?;
        for &group in groups {
            raw.add_membership(group)?;
        }
        Ok(Self { raw, own, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Hands every message that is there to `each`.
    pub(crate) fn read(&mut self, mut each: impl FnMut(Message<'_>)) -> io::Result<Heard> {
        let mut heard = Heard::Everything;
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, nix::libc::MSG_DONTWAIT) {
                Ok(_) => messages(&self.buffer).filter(|message| Some(message.port) != self.own).for_each(&mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(heard),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if lost(&error) => heard = Heard::NotEverything,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits until one of `listeners` has something to read, at most for `timeout`; says whether one has.
pub(crate) fn wait(listeners: &[&Listener], timeout: Duration) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> =
        listeners.iter().map(|listener| PollFd::new(listener.raw.as_fd(), PollFlags::POLLIN)).collect();
    let rounded_up = timeout.saturating_add(Duration::from_nanos(999_999));
    match poll(&mut polled, PollTimeout::try_from(rounded_up).unwrap_or(PollTimeout::MAX)) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::Error::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A filter that keeps out datagrams whose first message was caused by `port`. All messages of a datagram have one cause.
fn others_than(port: u32) -> [SockFilter; 4] {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const PORT_IN_HEADER: u32 = 12;
    [
        // The kernel takes what it loads for network byte order; the header is in the host's.
        SockFilter::new(LOAD_WORD, 0, 0, PORT_IN_HEADER),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, port.to_be()),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}
