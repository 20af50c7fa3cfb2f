//! Ledgers that fail.

use std::{cell::Cell, net::IpAddr, rc::Rc};

use lb_ipam::{
    Allocator, Edit, Entry, Ledger, LedgerError, MemoryLedger, Outcome, Pool, Protocol, Request, ServiceName, Settings,
    Sharing, Timestamp,
};

/// Where what is written gets to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Works,
    /// Nothing is written.
    Full,
    /// Everything is written, and nobody hears of it.
    Mute,
}

/// What is on the disk, and what the process sees of it.
struct Failing {
    store: MemoryLedger,
    view: MemoryLedger,
    disk: Rc<Cell<Disk>>,
}

impl Ledger for Failing {
    fn get(&self, address: IpAddr) -> Option<Entry> {
        self.view.get(address)
    }

    fn entries(&self) -> Box<dyn Iterator<Item = (IpAddr, Entry)> + '_> {
        self.view.entries()
    }

    fn compare_and_set(&mut self, at: IpAddr, expected: Option<&Entry>, new: Option<Entry>) -> Result<(), LedgerError> {
        let failed = || Err(LedgerError::Failed("input/output error".to_owned()));
        if self.disk.get() == Disk::Full {
            return failed();
        }
        let seen = self.view.get(at);
        let written = self.store.compare_and_set(at, expected, new.clone());
        if self.disk.get() == Disk::Mute {
            return failed();
        }
        let shown = if let Err(LedgerError::Changed { found }) = &written { found.clone() } else { new };
        self.view.compare_and_set(at, seen.as_ref(), shown)?;
        written
    }
}

fn world(pool: &str) -> (Allocator<Failing>, Rc<Cell<Disk>>) {
    let disk = Rc::new(Cell::new(Disk::Works));
    let ledger = Failing { store: MemoryLedger::default(), view: MemoryLedger::default(), disk: Rc::clone(&disk) };
    let mut allocator = Allocator::new(Settings::default(), ledger);
    allocator.handle_edit(Edit::UpsertPool(Pool::new("a", &[pool])));
    (allocator, disk)
}

fn serve(allocator: &mut Allocator<Failing>, request: Request) -> Outcome {
    allocator.handle_edit(Edit::UpsertService(request));
    allocator.reconcile(Timestamp::default())
}

fn member(name: &str, created: u64, port: u16) -> Request {
    Request {
        created: Timestamp::from_secs(created),
        sharing: Some(Sharing::new("k")),
        ports: [(Protocol::Tcp, port)].into(),
        ..Request::new("d", name)
    }
}

fn addresses(allocator: &Allocator<Failing>, service: &str) -> Vec<IpAddr> {
    allocator.answer(&ServiceName::new("d", service)).unwrap().addresses().collect()
}

/// The newcomer is the older service, and by the time that its join is heard of it does not share any more.
#[test]
fn who_joined_unheard_leaves_and_the_other_stays() {
    let (mut ipam, disk) = world("10.0.0.5/32");
    let _ = serve(&mut ipam, member("stays", 9, 80));
    disk.set(Disk::Mute);
    assert_eq!(serve(&mut ipam, member("joins", 1, 81)).failed.len(), 1);
    disk.set(Disk::Full);
    let _ = serve(&mut ipam, Request { created: Timestamp::from_secs(1), ..Request::new("d", "joins") });
    disk.set(Disk::Works);
    let outcome = ipam.reconcile(Timestamp::default());
    assert!(outcome.failed.is_empty() && !outcome.unfinished, "{outcome:?}");
    assert_eq!(addresses(&ipam, "stays"), ["10.0.0.5".parse::<IpAddr>().unwrap()]);
    assert_eq!(addresses(&ipam, "joins"), [] as [IpAddr; 0]);
}

#[test]
fn a_full_disk_gives_nothing_and_loses_nothing() {
    let (mut ipam, disk) = world("10.0.0.0/24");
    let _ = serve(&mut ipam, Request::new("d", "a"));
    disk.set(Disk::Full);
    let outcome = serve(&mut ipam, Request::new("d", "b"));
    assert_eq!((outcome.writes.len(), outcome.ledger_writes), (0, 0));
    assert_eq!(outcome.failed[0].0, ServiceName::new("d", "b"));
    assert!(outcome.unfinished);
    disk.set(Disk::Works);
    let outcome = ipam.reconcile(Timestamp::default());
    assert_eq!((outcome.writes.len(), outcome.ledger_writes, outcome.unfinished), (1, 1, false));
    assert_eq!(addresses(&ipam, "b"), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
}
