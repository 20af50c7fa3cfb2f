use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
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

use crate::{Error, Message, Protocol, Result, messages, socket::is_overrun};

/// Room for notifications that are not read yet: some ten thousand changed elements of nf_tables.
const QUEUE: usize = 8 << 20;
/// The kernel puts at most this much into one datagram of notifications.
const DATAGRAM: usize = 64 << 10;

/// A socket that receives the notifications of multicast groups in one network namespace, those excepted that one
/// certain other socket caused.
///
/// The queue holds 8 MiB, or without the privilege as much as `net.core.rmem_max` allows. [`read`](Self::read) says
/// when the kernel had to drop a notification.
///
/// ```
/// use std::time::Duration;
///
/// use lb_netlink::{Delivery, Listener, Protocol, wait};
///
/// # fn main() -> Result<(), lb_netlink::Error> {
/// const RTNLGRP_LINK: u32 = 1;
/// let listener = Listener::open(Protocol::Route, &[RTNLGRP_LINK], None)?;
/// if wait(&[&listener], Duration::from_millis(1))? {
///     let delivery = listener.read(|message| println!("type {}", message.kind))?;
///     assert!(matches!(delivery, Delivery::Complete | Delivery::Overrun));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Listener {
    membership: Arc<Membership>,
    /// The same socket, to wait for.
    polled: OwnedFd,
    woken: Arc<Woken>,
    ignored_port: Option<u32>,
}

/// Is readable when a wait is to end.
#[derive(Debug)]
struct Woken(EventFd);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        // The counter is full only if the wait ends already.
        let _ = self.0.write(1);
    }
}

/// What a [`Listener`] shares with its [`Pause`]s.
#[derive(Debug)]
struct Membership {
    raw: Mutex<Raw>,
    groups: Vec<u32>,
    /// Is readable when a notification may have been missed in a pause.
    missed: EventFd,
    /// Whether the socket could not join a group again after a pause.
    not_rejoined: AtomicBool,
}

impl Membership {
    fn socket(&self) -> MutexGuard<'_, Raw> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a [`Listener`] leave its groups for a while.
///
/// For everyone who is in a group the kernel writes each element of a transaction of nf_tables into a page of its own,
/// before any filter of the socket sees it ([`nf_tables_setelem_notify`]): a large transaction takes a multiple of its
/// time.
///
/// [`nf_tables_setelem_notify`]: https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nf_tables_api.c
#[derive(Clone, Debug)]
pub struct Pause(Weak<Membership>);

impl Pause {
    /// Whether the listener is still there.
    #[must_use]
    pub fn has_listener(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Leaves the groups.
    pub fn begin(&self) {
        let Some(membership) = self.0.upgrade() else { return };
        for &group in &membership.groups {
            // A listener that stays in the group only receives more than it has to.
            let _ = membership.socket().drop_membership(group);
        }
    }

    /// Joins the groups again. Notifications of the pause do not come later: see [`missed`](Self::missed).
    pub fn end(&self) {
        let Some(membership) = self.0.upgrade() else { return };
        for &group in &membership.groups {
            if membership.socket().add_membership(group).is_err() {
                membership.not_rejoined.store(true, Ordering::Relaxed);
                self.missed();
            }
        }
    }

    /// Has the listener report [`Delivery::Overrun`], because others made changes during the pause.
    pub fn missed(&self) {
        if let Some(membership) = self.0.upgrade() {
            // The counter is full only if the listener is to report it already.
            let _ = membership.missed.write(1);
        }
    }
}

/// Whether a listener received every notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It did.
    Complete,
    /// Some were dropped: the queue was full (`ENOBUFS`), or others made changes during a pause.
    Overrun,
}

impl Listener {
    /// Joins multicast groups in the network namespace of the calling thread. Notifications that the socket with the
    /// address `ignored_port` ([`Socket::port`](crate::Socket::port)) caused are dropped in the kernel, before they
    /// take room in the queue.
    ///
    /// # Errors
    /// [`Error::Socket`]; most groups of netfilter need `CAP_NET_ADMIN`.
    pub fn open(protocol: Protocol, groups: &[u32], ignored_port: Option<u32>) -> Result<Self> {
        Self::with_queue(protocol, groups, ignored_port, QUEUE)
    }

    fn with_queue(protocol: Protocol, groups: &[u32], ignored_port: Option<u32>, queue: usize) -> Result<Self> {
        let mut raw = Raw::new(protocol.number()).map_err(Error::socket("opening a netlink socket"))?;
        // Without the privilege the queue is what `net.core.rmem_max` allows.
        let _ = setsockopt(&raw, sockopt::RcvBufForce, &queue).or_else(|_| setsockopt(&raw, sockopt::RcvBuf, &queue));
        if let Some(port) = ignored_port {
            let filter = all_but(port);
            SockRef::from(&raw)
                .attach_filter(&filter)
                .map_err(Error::socket("attaching a filter to a netlink socket"))?;
        }
        raw.bind(&SocketAddr::new(0, 0)).map_err(Error::socket("binding a netlink socket"))?;
        for &group in groups {
            raw.add_membership(group).map_err(Error::socket("joining a netlink multicast group"))?;
        }
        let polled = raw.as_fd().try_clone_to_owned().map_err(Error::socket("duplicating a netlink socket"))?;
        let missed = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let missed = missed.map_err(|errno| Error::socket("making an eventfd")(errno.into()))?;
        let woken = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let woken = Arc::new(Woken(woken.map_err(|errno| Error::socket("making an eventfd")(errno.into()))?));
        let (raw, groups, not_rejoined) = (Mutex::new(raw), groups.to_vec(), AtomicBool::new(false));
        let membership = Arc::new(Membership { raw, groups, missed, not_rejoined });
        Ok(Self { membership, polled, woken, ignored_port })
    }

    /// For a thread that is about to make very many changes.
    #[must_use]
    pub fn pause(&self) -> Pause {
        Pause(Arc::downgrade(&self.membership))
    }

    /// What ends a [`wait`] for this listener from another thread: the present one, or the next if there is none.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Arc::clone(&self.woken).into()
    }

    /// Whether the [waker](Self::waker) was called since this was asked last.
    #[must_use]
    pub fn take_wake(&self) -> bool {
        self.woken.0.read().is_ok()
    }

    /// Hands every notification that is there to `each`; never waits.
    ///
    /// # Errors
    /// [`Error::NotRejoined`], from then on always; [`Error::Socket`].
    pub fn read(&self, mut each: impl FnMut(Message<'_>)) -> Result<Delivery> {
        if self.membership.not_rejoined.load(Ordering::Relaxed) {
            return Err(Error::NotRejoined);
        }
        let missed = self.membership.missed.read().is_ok();
        let mut delivery = if missed { Delivery::Overrun } else { Delivery::Complete };
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            let received = self.membership.socket().recv(&mut buffer, nix::libc::MSG_DONTWAIT);
            match received {
                Ok(_) => {
                    messages(&buffer).filter(|message| Some(message.port) != self.ignored_port).for_each(&mut each)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(delivery),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_overrun(&error) => delivery = Delivery::Overrun,
                Err(error) => return Err(Error::socket("receiving from a netlink socket")(error)),
            }
        }
    }
}

/// Waits until one of `listeners` has something to read or was woken, at most for `timeout`; says whether one has. A
/// signal ends the wait early, and 24 days are the longest one.
///
/// # Errors
/// [`Error::Socket`].
pub fn wait(listeners: &[&Listener], timeout: Duration) -> Result<bool> {
    let mut polled: Vec<PollFd<'_>> = listeners
        .iter()
        .flat_map(|listener| [listener.polled.as_fd(), listener.membership.missed.as_fd(), listener.woken.0.as_fd()])
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    let rounded_up = timeout.saturating_add(Duration::from_nanos(999_999));
    match poll(&mut polled, PollTimeout::try_from(rounded_up).unwrap_or(PollTimeout::MAX)) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::Error::EINTR) => Ok(false),
        Err(errno) => Err(Error::socket("polling netlink sockets")(errno.into())),
    }
}

/// A filter that drops datagrams whose first message was caused by `port`. All messages of a datagram have one cause.
fn all_but(port: u32) -> [SockFilter; 4] {
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

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
    use netlink_packet_route::{
        AddressFamily, RouteNetlinkMessage,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    };
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::{Socket, Writer};

    /// `RTNLGRP_IPV4_RULE`: nobody but the test changes routing rules.
    const RULES: u32 = 8;

    /// Long enough for a busy machine; nothing waits that long unless the test fails.
    const PATIENCE: Duration = Duration::from_secs(10);

    fn add_rules(socket: &mut Socket, priorities: std::ops::Range<u32>) {
        let mut requests = Writer::default();
        for priority in priorities {
            let mut rule = RuleMessage::default();
            (rule.header.family, rule.header.action) = (AddressFamily::Inet, RuleAction::ToTable);
            rule.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::Table(100)];
            requests.push(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &RouteNetlinkMessage::NewRule(rule));
        }
        assert_eq!(socket.request(requests).unwrap().len(), 0);
    }

    fn heard(listener: &Listener) -> (usize, Delivery) {
        let mut count = 0;
        let delivery = listener.read(|_| count += 1).unwrap();
        (count, delivery)
    }

    #[test]
    fn a_wait_is_ended_from_another_thread_once() {
        let listener = Listener::open(Protocol::Route, &[], None).unwrap();
        let waker = listener.waker();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| wait(&[&listener], PATIENCE).unwrap());
            waker.wake_by_ref();
            assert!(waits.join().unwrap());
        });
        assert!(listener.take_wake() && !listener.take_wake());
        assert!(!wait(&[&listener], Duration::ZERO).unwrap());
    }

    #[test]
    #[ignore = "needs root: makes a network namespace"]
    fn changes_of_others_are_heard_and_those_of_the_ignored_socket_are_not() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let (mut own, mut other) = (Socket::open(Protocol::Route).unwrap(), Socket::open(Protocol::Route).unwrap());
        let listener = Listener::open(Protocol::Route, &[RULES], Some(own.port().unwrap())).unwrap();
        assert!(!wait(&[&listener], Duration::ZERO).unwrap());
        add_rules(&mut own, 1..4);
        add_rules(&mut other, 11..13);
        assert!(wait(&[&listener], PATIENCE).unwrap());
        assert_eq!(heard(&listener), (2, Delivery::Complete));
    }

    #[test]
    #[ignore = "needs root: makes a network namespace"]
    fn a_full_queue_is_reported_once() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut other = Socket::open(Protocol::Route).unwrap();
        let listener = Listener::with_queue(Protocol::Route, &[RULES], None, 0).unwrap();
        add_rules(&mut other, 1..100);
        let (count, delivery) = heard(&listener);
        assert!(count < 99, "{count}");
        assert_eq!(delivery, Delivery::Overrun);
        add_rules(&mut other, 100..101);
        assert_eq!(heard(&listener), (1, Delivery::Complete));
    }

    #[test]
    #[ignore = "needs root: makes a network namespace"]
    fn nothing_is_heard_in_a_pause() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut other = Socket::open(Protocol::Route).unwrap();
        let listener = Listener::open(Protocol::Route, &[RULES], None).unwrap();
        let pause = listener.pause();
        pause.begin();
        add_rules(&mut other, 1..2);
        pause.end();
        assert_eq!(heard(&listener), (0, Delivery::Complete));
        pause.missed();
        assert!(wait(&[&listener], PATIENCE).unwrap());
        assert_eq!(heard(&listener), (0, Delivery::Overrun));
        add_rules(&mut other, 2..3);
        assert_eq!(heard(&listener), (1, Delivery::Complete));
        drop(listener);
        assert!(!pause.has_listener());
    }
}
