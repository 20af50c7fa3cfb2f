//! What the kernel tells about changes that others make.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use netlink_sys::{Socket as Raw, SocketAddr};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{setsockopt, sockopt},
    },
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
    ear: Arc<Ear>,
    /// The same socket, to wait for.
    polled: OwnedFd,
    own: Option<u32>,
    buffer: Vec<u8>,
}

/// What a [`Listener`] shares with its [`Pause`]s.
#[derive(Debug)]
struct Ear {
    raw: Mutex<Raw>,
    groups: Vec<u32>,
    /// Rings when something may have been missed in a pause.
    bell: EventFd,
    /// Whether it could not go on listening after a pause.
    deaf: AtomicBool,
}

impl Ear {
    fn socket(&self) -> MutexGuard<'_, Raw> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a [`Listener`] not listen for a while: the kernel writes a page about every element of a transaction for one who
/// does, whoever is meant to read it.
#[derive(Clone, Debug)]
pub(crate) struct Pause(Weak<Ear>);

impl Pause {
    /// Whether the listener is still there.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Does not listen from now on.
    pub(crate) fn begin(&self) {
        let Some(ear) = self.0.upgrade() else { return };
        for &group in &ear.groups {
            // One that goes on listening hears more than it has to.
            let _ = ear.socket().drop_membership(group);
        }
    }

    /// Listens again.
    pub(crate) fn end(&self) {
        let Some(ear) = self.0.upgrade() else { return };
        for &group in &ear.groups {
            if ear.socket().add_membership(group).is_err() {
                ear.deaf.store(true, Ordering::Relaxed);
                self.missed();
            }
        }
    }

    /// Has the listener say that it did not hear everything.
    pub(crate) fn missed(&self) {
        if let Some(ear) = self.0.upgrade() {
            let _ = ear.bell.write(1);
        }
    }
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
        let polled = raw.as_fd().try_clone_to_owned()?;
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let ear = Ear { raw: Mutex::new(raw), groups: groups.to_vec(), bell, deaf: AtomicBool::new(false) };
        Ok(Self { ear: Arc::new(ear), polled, own, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// For one who is about to change very much.
    pub(crate) fn pause(&self) -> Pause {
        Pause(Arc::downgrade(&self.ear))
    }

    /// Hands every message that is there to `each`.
    pub(crate) fn read(&mut self, mut each: impl FnMut(Message<'_>)) -> io::Result<Heard> {
        if self.ear.deaf.load(Ordering::Relaxed) {
            return Err(io::Error::other("the kernel does not let this socket listen again"));
        }
        let mut heard = if self.ear.bell.read().is_ok() { Heard::NotEverything } else { Heard::Everything };
        loop {
            self.buffer.clear();
            let received = self.ear.socket().recv(&mut self.buffer, nix::libc::MSG_DONTWAIT);
            match received {
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
    let mut polled: Vec<PollFd<'_>> = listeners
        .iter()
        .flat_map(|listener| [listener.polled.as_fd(), listener.ear.bell.as_fd()])
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
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
