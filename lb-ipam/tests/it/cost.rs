//! Who is looked at, and who is not.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr},
};

use lb_ipam::{
    Allocator, Edit, Entry, Ledger, LedgerError, MemoryLedger, Pool, Request, RequestedAddress, ServiceName, Settings,
    Timestamp,
};

/// Counts how often an entry is asked for.
#[derive(Default)]
struct Counting {
    ledger: MemoryLedger,
    gets: Cell<usize>,
}

impl Ledger for Counting {
    fn get(&self, address: IpAddr) -> Option<Entry> {
        self.gets.set(self.gets.get() + 1);
        self.ledger.get(address)
    }

    fn entries(&self) -> Box<dyn Iterator<Item = (IpAddr, Entry)> + '_> {
        self.ledger.entries()
    }

    fn compare_and_set(&mut self, at: IpAddr, expected: Option<&Entry>, new: Option<Entry>) -> Result<(), LedgerError> {
        self.ledger.compare_and_set(at, expected, new)
    }
}

/// Of a thousand that wait for an address each, one is looked at when its address is given back.
#[test]
fn those_that_wait_for_something_else_are_left_alone() {
    let settings = Settings::default().with_sticky(std::time::Duration::ZERO);
    let mut ipam = Allocator::new(settings, Counting::default());
    let pool = Pool { quarantine: std::time::Duration::ZERO, ..Pool::new("a", &["10.0.0.0/22"]) };
    ipam.handle_edit(Edit::UpsertPool(pool));
    let asks = |who: &str, number: u32| {
        let address = IpAddr::V4(Ipv4Addr::from_bits((10 << 24) + number));
        Request { addresses: vec![RequestedAddress::Address(address)], ..Request::new(who, &format!("s{number:04}")) }
    };
    for who in ["holds", "waits"] {
        (0..1000).for_each(|number| ipam.handle_edit(Edit::UpsertService(asks(who, number))));
        let _ = ipam.reconcile(Timestamp::from_secs(1));
    }
    let before = ipam.ledger().gets.get();
    ipam.handle_edit(Edit::RemoveService(ServiceName::new("holds", "s0500")));
    let outcome = ipam.reconcile(Timestamp::from_secs(1));
    assert_eq!(outcome.writes.len(), 1);
    assert_eq!(outcome.writes[0].0, ServiceName::new("waits", "s0500"));
    let gets = ipam.ledger().gets.get() - before;
    assert!(gets < 20, "{gets} entries were looked at");
}
