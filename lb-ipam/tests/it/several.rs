//! Several allocators over one ledger.

use std::{cell::RefCell, collections::BTreeMap, net::IpAddr, rc::Rc};

use lb_ipam::{
    Allocator, Edit, Entry, Ledger, LedgerError, MemoryLedger, Outcome, Pool, Protocol, Request, ServiceName, Settings,
    Sharing, Timestamp,
};

/// A ledger that several processes use, each with a view of its own that may be old.
#[derive(Clone, Default)]
struct Shared {
    store: Rc<RefCell<BTreeMap<IpAddr, Entry>>>,
    view: MemoryLedger,
    /// Writes whatever is there.
    blind: bool,
}

impl Shared {
    /// Another process, that sees what is there now.
    fn other(&self) -> Self {
        let view = self.store.borrow().iter().map(|(address, entry)| (*address, entry.clone())).collect();
        Self { store: Rc::clone(&self.store), view, blind: self.blind }
    }
}

impl Ledger for Shared {
    fn get(&self, address: IpAddr) -> Option<Entry> {
        self.view.get(address)
    }

    fn entries(&self) -> Box<dyn Iterator<Item = (IpAddr, Entry)> + '_> {
        self.view.entries()
    }

    fn compare_and_set(&mut self, at: IpAddr, expected: Option<&Entry>, new: Option<Entry>) -> Result<(), LedgerError> {
        let seen = self.view.get(at);
        let mut store = self.store.borrow_mut();
        let found = store.get(&at).cloned();
        if found.as_ref() != expected && !self.blind {
            self.view.compare_and_set(at, seen.as_ref(), found.clone())?;
            return Err(LedgerError::Changed { found });
        }
        match new.clone() {
            Some(entry) => store.insert(at, entry),
            None => store.remove(&at),
        };
        self.view.compare_and_set(at, seen.as_ref(), new)
    }
}

fn allocator(ledger: Shared, pool: &str) -> Allocator<Shared> {
    let mut allocator = Allocator::new(Settings::default(), ledger);
    allocator.handle_edit(Edit::UpsertPool(Pool::new("a", &[pool])));
    let _ = allocator.reconcile(Timestamp::default());
    allocator
}

fn serve(allocator: &mut Allocator<Shared>, service: &str) -> (Outcome, Vec<IpAddr>) {
    allocator.handle_edit(Edit::UpsertService(Request::new("d", service)));
    let outcome = allocator.reconcile(Timestamp::default());
    let answer = allocator.answer(&ServiceName::new("d", service)).unwrap();
    let addresses = answer.addresses().collect();
    (outcome, addresses)
}

#[test]
fn no_two_give_the_same_address_however_old_their_views_are() {
    let shared = Shared::default();
    let mut one = allocator(shared.other(), "10.0.0.0/29");
    let mut two = allocator(shared.other(), "10.0.0.0/29");
    let mut given = Vec::new();
    for number in 0..4 {
        given.extend(serve(&mut one, &format!("one-{number}")).1);
        given.extend(serve(&mut two, &format!("two-{number}")).1);
    }
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 8);
    // The pool is full, whoever looks.
    assert!(serve(&mut one, "more").1.is_empty() && serve(&mut two, "more").1.is_empty());
}

#[test]
fn who_is_outrun_too_often_tries_again_next_time() {
    let shared = Shared::default();
    let mut late = allocator(shared.other(), "10.0.0.0/16");
    let mut early = allocator(shared.other(), "10.0.0.0/16");
    // One address more each time, and as often as those that wait are looked at.
    let tries = (Allocator::<Shared>::MAX_TRIES + 1) * Allocator::<Shared>::MAX_PASSES;
    for number in 0..tries {
        assert_eq!(serve(&mut early, &format!("s{number:05}")).1.len(), 1);
    }
    let (outcome, addresses) = serve(&mut late, "late");
    assert!(addresses.is_empty() && outcome.unfinished);
    let message = &outcome.writes[0].1.condition.as_ref().unwrap().message;
    assert_eq!(*message, "no IPv4 address: other allocators were faster 64 times in a row; it is tried again");
    let outcome = late.reconcile(Timestamp::default());
    assert!(!outcome.unfinished);
    let next = 10 << 24 | u32::try_from(tries).unwrap();
    assert_eq!(outcome.writes[0].1.addresses, [IpAddr::from(next.to_be_bytes())]);
}

/// Two processes that know every service, and whatever they do in whichever order: an address never has two holders.
/// With a ledger that does not look at what it replaces, it has.
#[test]
fn only_compare_and_set_keeps_two_apart() {
    for blind in [false, true] {
        let found = (1..=200).find_map(|seed| play(seed, blind));
        assert_eq!(found.is_some(), blind, "{found:?}");
    }
}

/// A hundred steps of two allocators. Says which address two services were given, if one was.
fn play(mut seed: u64, blind: bool) -> Option<(IpAddr, ServiceName, ServiceName)> {
    let shared = Shared { blind, ..Shared::default() };
    let mut allocators = [shared.other(), shared.other()].map(|ledger| allocator(ledger, "10.0.0.0/29"));
    for step in 0..100_u64 {
        // xorshift64
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let (who, what) = (usize::from(seed.is_multiple_of(2)), seed / 2 % 8);
        let name = ServiceName::new("d", &format!("{who}-{}", seed / 16 % 6));
        match what {
            0..=4 => allocators[who].handle_edit(Edit::UpsertService(Request::new("d", name.name()))),
            5 | 6 => allocators[who].handle_edit(Edit::RemoveService(name)),
            _ => allocators[who].refresh(),
        }
        let _ = allocators[who].reconcile(Timestamp::from_secs(step * 60));
        let answers = allocators.each_ref().map(given);
        for (address, service) in &answers[0] {
            if let Some(other) = answers[1].get(address) {
                return Some((*address, service.clone(), other.clone()));
            }
        }
    }
    None
}

/// What an allocator told its services.
fn given(allocator: &Allocator<Shared>) -> BTreeMap<IpAddr, ServiceName> {
    let names = (0..2).flat_map(|who| (0..6).map(move |n| ServiceName::new("d", &format!("{who}-{n}"))));
    let answers = names.filter_map(|name| Some((name.clone(), allocator.answer(&name)?.clone())));
    answers
        .flat_map(|(name, answer)| answer.addresses().map(|address| (address, name.clone())).collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_refresh_shows_what_others_did() {
    let shared = Shared::default();
    let mut one = allocator(shared.other(), "10.0.0.0/31");
    assert_eq!(serve(&mut one, "s1").1.len(), 1);
    let mut two = allocator(shared.other(), "10.0.0.0/31");
    // The second knows every service, too: nothing is given back that the first gave.
    two.handle_edit(Edit::UpsertService(Request::new("d", "s1")));
    assert_eq!(serve(&mut two, "s2").1, [IpAddr::from([10, 0, 0, 1])]);
}

/// One knows that a service is gone, and meanwhile the other lets another service in on its address.
#[test]
fn who_is_gone_is_gone_though_the_entry_changed_meanwhile() {
    let member = |name: &str, port: u16| Request {
        sharing: Some(Sharing::new("k")),
        ports: [(Protocol::Tcp, port)].into(),
        ..Request::new("d", name)
    };
    let shared = Shared::default();
    let mut one = allocator(shared.other(), "10.0.0.0/24");
    one.handle_edit(Edit::UpsertService(member("a", 80)));
    let _ = one.reconcile(Timestamp::default());
    let mut two = Allocator::new(Settings::default(), shared.other());
    two.handle_edit(Edit::UpsertPool(Pool::new("a", &["10.0.0.0/24"])));
    two.handle_edit(Edit::UpsertService(member("a", 80)));
    two.handle_edit(Edit::UpsertService(member("b", 81)));
    let _ = two.reconcile(Timestamp::default());

    one.handle_edit(Edit::RemoveService(ServiceName::new("d", "a")));
    let outcome = one.reconcile(Timestamp::default());
    assert!(matches!(outcome.failed[..], [(_, LedgerError::Changed { .. })]), "{outcome:?}");
    assert!(one.reconcile(Timestamp::default()).failed.is_empty());
    let entry = shared.store.borrow()[&IpAddr::from([10, 0, 0, 0])].clone();
    assert_eq!(entry.holders(), [ServiceName::new("d", "b")]);
}

/// What a service that waits for an address is told changes with what is known of the holder.
#[test]
fn a_holder_that_becomes_known_is_no_stranger_any_more() {
    let shared = Shared::default();
    let mut one = allocator(shared.other(), "10.0.0.0/31");
    let mut two = allocator(shared.other(), "10.0.0.0/31");
    assert_eq!(serve(&mut one, "x").1, [IpAddr::from([10, 0, 0, 0])]);
    two.refresh();
    let waits = Request {
        addresses: vec![IpAddr::from([10, 0, 0, 0]).into()],
        sharing: Some(Sharing::new("k")),
        ..Request::new("d", "waits")
    };
    let message = |outcome: &Outcome| outcome.writes[0].1.condition.as_ref().unwrap().message.clone();
    two.handle_edit(Edit::UpsertService(waits));
    let told = message(&two.reconcile(Timestamp::default()));
    assert!(
        told.ends_with(
            "with which it cannot be shared: it is not known here yet; wait until it is, or ask for another address"
        ),
        "{told}"
    );
    two.handle_edit(Edit::UpsertService(Request::new("d", "x")));
    let outcome = two.reconcile(Timestamp::default());
    let told = outcome.writes.iter().find(|(service, _)| service.name() == "waits").map(|(_, status)| status.clone());
    let told = told.unwrap().condition.unwrap().message;
    assert!(
        told.ends_with(
            "with which it cannot be shared: service d/x has no sharing key; give both services the same one"
        ),
        "{told}"
    );
}
