//! Filters of the `clsact` qdisc, for kernels without TCX.
//!
//! A filter is no object that can be pinned. What is pinned is its program, in the place of a link: a filter belongs to
//! this datapath if its program is the one that is pinned. Filters of others at the same priority have other handles,
//! and stay, as does a qdisc that was there before.
//!
//! The kernel replaces the program of a filter in place (`list_replace_rcu`): a packet meets either the old or the new
//! one. <https://elixir.bootlin.com/linux/v6.18/source/net/sched/cls_bpf.c> (`cls_bpf_change`)

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lb_netlink::{KernelError, Message, Protocol, Socket, Writer, attributes, string};

use crate::{
    crash,
    programs::{EGRESS, INGRESS},
    sys::IfIndex,
};

/// Filters of one network namespace: the one of the thread that opened it.
#[derive(Clone, Debug)]
pub(crate) struct Clsact(Arc<Mutex<Socket>>);

/// Packets that come in through a device, or leave through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) device: IfIndex,
    pub(crate) leaves: bool,
}

impl Way {
    const fn parent(self) -> u32 {
        if self.leaves { EGRESS_PARENT } else { INGRESS_PARENT }
    }

    /// The name of a filter; with one that says so, its qdisc was made for it, and goes when the last filter goes.
    const fn filter_name(self, owns_qdisc: bool) -> &'static str {
        match (self.leaves, owns_qdisc) {
            (false, false) => INGRESS,
            (false, true) => "lb_ingress+clsact",
            (true, false) => EGRESS,
            (true, true) => "lb_egress+clsact",
        }
    }
}

/// A filter that runs a program of eBPF on packets of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Its number among the filters of its priority.
    pub(crate) handle: u32,
    /// Its priority: filters with lower ones come before it.
    pub(crate) priority: u16,
    /// Its program.
    pub(crate) prog: u32,
    /// Whether it says that its qdisc was made for it.
    owns_qdisc: bool,
}

/// Priority of the filters of this datapath. Filters that others make without one come before, those that they make
/// with a low one as well: <https://elixir.bootlin.com/linux/v6.18/source/net/sched/cls_api.c> (`tcf_auto_prio`).
const PRIORITY: u16 = 0xf000;
/// The end of the name of a filter whose qdisc was made for it.
const WITH_QDISC: &str = "+clsact";
const KIND: &str = "bpf";

impl Clsact {
    /// The filters of the network namespace of this thread.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Socket::open(Protocol::Route)?))))
    }

    /// The filter of this priority and number, if it is there.
    pub(crate) fn find(&self, way: Way, handle: u32) -> io::Result<Option<Filter>> {
        let mut request = Writer::default();
        request.message(GET_FILTER, REQUEST, &Header::filter(way, handle).bytes(), |w| w.put_str(TCA_KIND, KIND));
        self.one(request, filter)
    }

    /// Every filter that runs a program on these packets, whoever made it; none if there is no such device.
    pub(crate) fn filters(&self, way: Way) -> io::Result<Vec<Filter>> {
        Ok(self.dump(way)?.filters)
    }

    /// The filter of this datapath that runs a program.
    pub(crate) fn of(&self, way: Way, prog: u32) -> io::Result<Option<Filter>> {
        let ours = |filter: &Filter| filter.prog == prog && filter.priority == PRIORITY;
        Ok(self.filters(way)?.into_iter().find(ours))
    }

    /// Makes a filter behind those that are there, with a qdisc if there is none.
    pub(crate) fn attach(&self, way: Way, prog: (BorrowedFd<'_>, u32)) -> io::Result<Filter> {
        let mut request = Writer::default();
        let makes_qdisc = !self.has_qdisc(way.device)?;
        if makes_qdisc {
            // In one call, so that no qdisc is left without a filter that says whose it is.
            let header = Header::qdisc(way.device).bytes();
            request.message(NEW_QDISC, REQUEST | CREATE | EXCL, &header, |w| w.put_str(TCA_KIND, "clsact"));
        }
        put_filter(&mut request, CREATE | EXCL, (way, 0), prog.0, makes_qdisc);
        let last = request.messages() - 1;
        let mut refused = self.lock().request(request)?;
        crash::point();
        if let Some(at) = refused.iter().position(|refusal| refusal.index == last) {
            return Err(failure(refused.swap_remove(at).error));
        }
        let filter = self.of(way, prog.1)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        if makes_qdisc && !refused.is_empty() {
            // Somebody else has made the qdisc meanwhile.
            let not_ours = Filter { owns_qdisc: false, ..filter };
            self.replace(way, not_ours, prog.0)?;
            return Ok(not_ours);
        }
        Ok(filter)
    }

    /// Puts another program into a filter.
    pub(crate) fn replace(&self, way: Way, filter: Filter, prog: BorrowedFd<'_>) -> io::Result<()> {
        let mut request = Writer::default();
        put_filter(&mut request, 0, (way, filter.handle), prog, filter.owns_qdisc);
        let refused = self.lock().request(request)?;
        crash::point();
        refused.into_iter().next().map_or(Ok(()), |refusal| Err(failure(refusal.error)))
    }

    /// Removes the filter of this datapath that runs a program, and its qdisc, if that was made for it and
    /// has no other filter. No such filter is no error.
    pub(crate) fn remove(&self, way: Way, prog: u32) -> io::Result<()> {
        let Some(filter) = self.of(way, prog)? else { return Ok(()) };
        let mut request = Writer::default();
        let header = Header::filter(way, filter.handle).bytes();
        request.message(DEL_FILTER, REQUEST, &header, |w| w.put_str(TCA_KIND, KIND));
        if filter.owns_qdisc && self.is_alone(way.device)? {
            request.message(DEL_QDISC, REQUEST, &Header::qdisc(way.device).bytes(), |w| w.put_str(TCA_KIND, "clsact"));
        }
        let refused = self.lock().request(request)?;
        crash::point();
        let refusal = refused.into_iter().find(|refusal| !is_gone(&refusal.error));
        refusal.map_or(Ok(()), |refusal| Err(failure(refusal.error)))
    }

    /// Whether the ingress of a device has a qdisc, `clsact` or `ingress`: both take filters of the same parent.
    fn has_qdisc(&self, device: IfIndex) -> io::Result<bool> {
        let mut request = Writer::default();
        request.message(GET_QDISC, REQUEST, &Header { handle: 0, ..Header::qdisc(device) }.bytes(), |_| {});
        Ok(self.one(request, |kind, _| (kind == NEW_QDISC).then_some(()))?.is_some())
    }

    /// Whether a device has a single filter in both directions.
    fn is_alone(&self, device: IfIndex) -> io::Result<bool> {
        let (enters, leaves) = (Way { device, leaves: false }, Way { device, leaves: true });
        let (ingress, egress) = (self.dump(enters)?, self.dump(leaves)?);
        let entries = ingress.priorities + egress.priorities;
        Ok(entries <= 1 && ingress.count + egress.count == 1)
    }

    /// Every filter of these packets.
    fn dump(&self, way: Way) -> io::Result<Found> {
        let header = Header { info: 0, ..Header::filter(way, 0) };
        let take = |found: &mut Found, message: Message<'_>| found.take(message.kind, message.payload);
        Ok(self.lock().dump(GET_FILTER, &header.bytes(), |_| {}, take)?)
    }

    /// What is read from the one answer to a request; `None` if there is nothing of that kind.
    fn one<T>(&self, request: Writer, read: impl Fn(u16, &[u8]) -> Option<T>) -> io::Result<Option<T>> {
        let mut found = Ok(None);
        self.lock().look_up(request, |_, answer| match answer {
            Ok(message) => found = Ok(read(message.kind, message.payload)),
            Err(error) if is_gone(&error) => {}
            Err(error) => found = Err(failure(error)),
        })?;
        found
    }

    fn lock(&self) -> MutexGuard<'_, Socket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a dump of filters has.
#[derive(Default)]
struct Found {
    /// Entries of priorities; a classifier can have one and no filter.
    priorities: usize,
    /// Filters, of every kind.
    count: usize,
    /// Those that run programs.
    filters: Vec<Filter>,
}

impl Found {
    fn take(&mut self, kind: u16, payload: &[u8]) {
        match Header::read(payload) {
            Some(header) if kind == NEW_FILTER && header.handle == 0 => self.priorities += 1,
            Some(_) if kind == NEW_FILTER => self.count += 1,
            _ => {}
        }
        self.filters.extend(filter(kind, payload));
    }
}

/// Whether an error says that a filter, its qdisc or its device is not there.
fn is_gone(error: &KernelError) -> bool {
    matches!(error.errno(), libc::ENOENT | libc::ENODEV | libc::EINVAL)
}

/// As an error of the system: the number of a device that is gone is asked for later.
fn failure(error: KernelError) -> io::Error {
    match error.errno() {
        libc::ENODEV => io::Error::from_raw_os_error(libc::ENODEV),
        _ => lb_netlink::Error::from(error).into(),
    }
}

/// Writes the message that makes a filter or changes its program.
fn put_filter(request: &mut Writer, flags: u16, (way, handle): (Way, u32), prog: BorrowedFd<'_>, owns_qdisc: bool) {
    request.message(NEW_FILTER, REQUEST | flags, &Header::filter(way, handle).bytes(), |w| {
        w.put_str(TCA_KIND, KIND);
        w.nest(TCA_OPTIONS, |w| {
            w.put(TCA_BPF_FD, &prog.as_raw_fd().to_ne_bytes());
            w.put_str(TCA_BPF_NAME, way.filter_name(owns_qdisc));
            w.put(TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes());
        });
    });
}

/// The filter that a message describes.
fn filter(kind: u16, payload: &[u8]) -> Option<Filter> {
    let header = Header::read(payload)?;
    let found = attributes(payload.get(Header::SIZE..)?);
    if kind != NEW_FILTER || found.find(TCA_KIND).and_then(string) != Some(KIND) || header.handle == 0 {
        return None;
    }
    let prog = found.path(&[TCA_OPTIONS, TCA_BPF_ID])?;
    let name = found.path(&[TCA_OPTIONS, TCA_BPF_NAME]).and_then(string);
    Some(Filter {
        handle: header.handle,
        priority: (header.info >> 16) as u16,
        prog: u32::from_ne_bytes(*prog.first_chunk()?),
        owns_qdisc: name.is_some_and(|name| name.ends_with(WITH_QDISC)),
    })
}

/// `struct tcmsg`: <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/rtnetlink.h>.
#[derive(Clone, Copy)]
struct Header {
    device: IfIndex,
    handle: u32,
    parent: u32,
    info: u32,
}

impl Header {
    const SIZE: usize = 20;

    const fn filter(way: Way, handle: u32) -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        Self { device: way.device, handle, parent: way.parent(), info: (PRIORITY as u32) << 16 | protocol as u32 }
    }

    const fn qdisc(device: IfIndex) -> Self {
        Self { device, handle: 0xffff_0000, parent: CLSACT, info: 0 }
    }

    fn bytes(self) -> [u8; Self::SIZE] {
        let Self { device, handle, parent, info } = self;
        let mut bytes = [0; Self::SIZE];
        for (to, word) in bytes.chunks_exact_mut(4).skip(1).zip([device.0, handle, parent, info]) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.get(..Self::SIZE)?.chunks_exact(4).skip(1);
        let mut word = || Some(u32::from_ne_bytes(*words.next()?.first_chunk()?));
        Some(Self { device: IfIndex(word()?), handle: word()?, parent: word()?, info: word()? })
    }
}

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCL: u16 = libc::NLM_F_EXCL as u16;
const NEW_QDISC: u16 = libc::RTM_NEWQDISC;
const DEL_QDISC: u16 = libc::RTM_DELQDISC;
const GET_QDISC: u16 = libc::RTM_GETQDISC;
const NEW_FILTER: u16 = libc::RTM_NEWTFILTER;
const DEL_FILTER: u16 = libc::RTM_DELTFILTER;
const GET_FILTER: u16 = libc::RTM_GETTFILTER;

/// Of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/pkt_sched.h>: the qdisc, and its two directions.
const CLSACT: u32 = 0xffff_fff1;
const INGRESS_PARENT: u32 = 0xffff_fff2;
const EGRESS_PARENT: u32 = 0xffff_fff3;

/// Of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/pkt_cls.h>.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's verdict is the filter's.
const ACT_DIRECT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Way = Way { device: IfIndex(7), leaves: false };

    #[test]
    fn a_filter_is_read_from_what_the_kernel_sends() {
        let message = |kind: &str, handle, name: &str| {
            let mut writer = Writer::default();
            writer.message(NEW_FILTER, 0, &Header::filter(WAY, handle).bytes(), |w| {
                w.put_str(TCA_KIND, kind);
                w.nest(TCA_OPTIONS, |w| {
                    w.put_str(TCA_BPF_NAME, name);
                    w.put(TCA_BPF_ID, &99_u32.to_ne_bytes());
                });
            });
            let bytes = writer.finish(1);
            filter(NEW_FILTER, &bytes[lb_netlink::HEADER..])
        };
        let expected = Filter { handle: 3, priority: PRIORITY, prog: 99, owns_qdisc: false };
        assert_eq!(message(KIND, 3, INGRESS), Some(expected));
        assert_eq!(message(KIND, 3, WAY.filter_name(true)), Some(Filter { owns_qdisc: true, ..expected }));
        // The entry of a priority, and a filter of another kind.
        assert_eq!(message(KIND, 0, INGRESS), None);
        assert_eq!(message("flower", 3, INGRESS), None);
        assert_eq!(filter(NEW_FILTER, &[0; 19]), None);
    }
}
