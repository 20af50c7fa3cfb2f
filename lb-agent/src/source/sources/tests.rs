use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use lb_core::service::Service;
use lb_ipam::{Pool, Request, Status};

use super::*;
use crate::{source::Grant, testing::config};

/// Returns scripted news, and records its grants and statuses.
#[derive(Clone)]
struct Script {
    name: &'static str,
    news: Arc<Mutex<VecDeque<News>>>,
    published: Arc<Mutex<Vec<(ServiceName, Status)>>>,
    services: BTreeMap<ServiceName, Service>,
}

impl Script {
    fn new(name: &'static str) -> Self {
        Self { name, news: Arc::default(), published: Arc::default(), services: BTreeMap::new() }
    }

    fn says(&self, changes: Vec<Change>, edits: Vec<Edit>) {
        self.news.lock().unwrap().push_back(News { changes, edits, ..News::default() });
    }

    fn done(&self) -> Change {
        Change::InitDone(SourceName(self.name.into()))
    }
}

impl Source for Script {
    fn name(&self) -> SourceName {
        SourceName(self.name.into())
    }

    fn start(&mut self, _: Waker) -> Result<(), SourceError> {
        Ok(())
    }

    fn poll(&mut self) -> News {
        let news = self.news.lock().unwrap().pop_front().unwrap_or_default();
        for change in &news.changes {
            if let Change::UpsertService(service) = change {
                self.services.insert(service.name.clone(), service.clone());
            }
        }
        news
    }

    fn grant(&mut self, grants: &[Grant]) -> Vec<Change> {
        let mut changes = Vec::new();
        for Grant { service, addresses } in grants {
            if let (Some(service), Some(addresses)) = (self.services.get_mut(service), addresses) {
                service.load_balancer_ips.clone_from(addresses);
                changes.push(Change::UpsertService(service.clone()));
            }
        }
        changes
    }

    fn publish(&mut self, statuses: &[(ServiceName, Status)]) {
        self.published.lock().unwrap().extend_from_slice(statuses);
    }
}

fn name(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

fn service(text: &str, external: &[&str]) -> Change {
    let external_ips = external.iter().map(|ip| ip.parse().unwrap()).collect();
    Change::UpsertService(Service { external_ips, ..Service::new(name(text)) })
}

fn request(text: &str) -> Edit {
    Edit::UpsertService(Request::new("default", text))
}

fn pool() -> Edit {
    Edit::UpsertPool(Pool::new("p", &["192.0.2.0/30"]))
}

fn sources(scripts: &[Script]) -> (Arc<Sources>, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    let config = crate::config::Config { state_dir: state.path().into(), ..config() };
    (with_ledger(scripts, &config), state)
}

fn with_ledger(scripts: &[Script], config: &crate::config::Config) -> Arc<Sources> {
    let boxed = scripts.iter().map(|script| Box::new(script.clone()) as Box<dyn Source>).collect();
    Arc::new(Sources::new(boxed, Allocation::open(config).unwrap()))
}

/// Names and load-balancer addresses of the services that a delivery sets, in order.
fn set(delivery: &Delivery) -> Vec<(String, Vec<IpAddr>)> {
    let set = delivery.changes.iter().filter_map(|change| match change {
        Change::UpsertService(service) => Some((service.name.name().to_owned(), service.load_balancer_ips.clone())),
        _ => None,
    });
    set.collect()
}

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|ip| ip.parse().unwrap()).collect()
}

#[test]
fn first_listings_wait_for_each_other() {
    let (a, b) = (Script::new("a"), Script::new("b"));
    let (all, _state) = sources(&[a.clone(), b.clone()]);
    a.says(vec![service("web", &[]), a.done()], vec![request("web")]);
    let first = all.poll(0).unwrap();
    assert_eq!((first.source.0.as_ref(), first.changes.len()), ("a", 0), "the pool may be in the other one");
    assert!(all.poll_allocation().is_none(), "nobody knows all pools yet");
    let began = crate::host::clock::timestamp();
    while crate::host::clock::timestamp() <= began {
        std::hint::spin_loop();
    }
    b.says(vec![service("api", &[]), b.done()], vec![pool(), request("api")]);
    let second = all.poll(1).unwrap();
    let expected = [("api".to_owned(), ips(&["192.0.2.0"])), ("web".to_owned(), ips(&["192.0.2.1"]))];
    let mut found = set(&second);
    found.sort();
    assert_eq!(found, expected);
    let ends = [a.done(), b.done()];
    assert!(ends.iter().all(|end| second.changes.contains(end)), "{:?}", second.changes);
    let published = |script: &Script| script.published.lock().unwrap().len();
    assert_eq!((published(&a), published(&b)), (1, 1), "each hears of its own services");
}

#[test]
fn who_holds_an_address_in_the_ledger_comes_before_who_names_it() {
    let state = tempfile::tempdir().unwrap();
    let config = crate::config::Config { state_dir: state.path().into(), ..config() };
    let holder = Script::new("b");
    let before = with_ledger(std::slice::from_ref(&holder), &config);
    holder.says(vec![service("api", &[]), holder.done()], vec![pool(), request("api")]);
    assert_eq!(set(&before.poll(0).unwrap()), [("api".to_owned(), ips(&["192.0.2.0"]))]);

    let (a, b) = (Script::new("a"), Script::new("b"));
    let after = with_ledger(&[a.clone(), b.clone()], &config);
    a.says(vec![service("thief", &["192.0.2.0"]), a.done()], Vec::new());
    b.says(vec![service("api", &[]), b.done()], vec![pool(), request("api")]);
    assert_eq!(set(&after.poll(0).unwrap()), []);
    let order: Vec<String> = set(&after.poll(1).unwrap()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(order, ["api", "thief"], "the model serves who comes first");
}

/// A report about a file that could never be read, or one about nothing.
fn report(is_unread: bool) -> Report {
    let error = || lb_k8s::SnapshotError::NotUtf8 { file: "a.yaml".into(), offset: 0, looks_like: None };
    let unread = || lb_k8s::Unread { error: Arc::new(error()), instead: lb_k8s::Instead::Nothing };
    Report { unread: is_unread.then(unread).into_iter().collect(), ..Report::default() }
}

/// Addresses that services hold by the ledger.
fn held(all: &Sources) -> Vec<String> {
    all.allocation().holders().into_keys().map(|name| name.name().to_owned()).collect()
}

#[test]
fn no_service_loses_an_address_over_a_file_that_cannot_be_read_at_a_start() {
    let state = tempfile::tempdir().unwrap();
    let config = crate::config::Config { state_dir: state.path().into(), ..config() };
    let script = Script::new("a");
    let start = || with_ledger(std::slice::from_ref(&script), &config);
    let before = start();
    let all = vec![service("api", &[]), service("plain", &[]), service("web", &[]), script.done()];
    script.says(all, vec![pool(), request("api"), request("plain"), request("web")]);
    before.poll(0).unwrap();
    assert_eq!(held(&before), ["api", "plain", "web"]);
    drop(before);

    // The pool and service `web` are in a file that is broken now; `plain` is of another type meanwhile.
    let after = start();
    let rest = vec![service("api", &[]), service("plain", &[]), script.done()];
    script.news.lock().unwrap().push_back(News {
        changes: rest,
        edits: vec![request("api")],
        report: Some(Arc::new(report(true))),
        ..News::default()
    });
    let delivery = after.poll(0).unwrap();
    assert!(delivery.changes.contains(&script.done()), "other files take effect");
    let granted = set(&delivery);
    assert!(granted.contains(&("api".to_owned(), ips(&["192.0.2.0"]))), "{granted:?}");
    assert!(granted.contains(&("plain".to_owned(), vec![])), "{granted:?}");
    assert_eq!(held(&after), ["api", "web"]);

    // A service that is new learns which file keeps its address from it.
    script.says(vec![service("new", &[])], vec![request("new")]);
    after.poll(0).unwrap();
    let published = script.published.lock().unwrap().clone();
    let (_, status) = published.iter().rfind(|(service, _)| *service == name("new")).unwrap();
    let message = &status.condition.as_ref().unwrap().message;
    let names = "pool `unread-manifests` is out of service until it is corrected: it stands for the pools in manifests \
                 that cannot be read: a.yaml: ";
    assert!(message.contains(names), "{message}");

    // The file can be read, and a service that was in it is gone.
    script.news.lock().unwrap().push_back(News {
        edits: vec![pool()],
        report: Some(Arc::new(report(false))),
        ..News::default()
    });
    after.poll(0).unwrap();
    assert_eq!(held(&after), ["api", "new"]);
    let pools: Vec<String> = after.allocation().pools().into_iter().map(|pool| pool.name).collect();
    assert_eq!(pools, ["p"], "nothing stands for pools that cannot be read any more");
}

/// The next owner writes the status: an address of a pool, then one beside it, with a condition of the same type.
#[test]
fn a_service_of_another_class_is_cleared_once_and_then_left_to_its_owner() {
    let a = Script::new("a");
    let (all, _state) = sources(std::slice::from_ref(&a));
    let published = || std::mem::take(&mut *a.published.lock().unwrap());
    a.says(vec![service("web", &[]), a.done()], vec![pool(), request("web")]);
    all.poll(0).unwrap();
    let [(_, ours)] = &published()[..] else { panic!("one status") };
    assert_eq!(ours.addresses, ips(&["192.0.2.0"]));
    let class = Some("example.com/next".to_owned());
    let says = |status: &Status| {
        let request = Request { class: class.clone(), published: status.clone(), ..Request::new("default", "web") };
        a.says(Vec::new(), vec![Edit::UpsertService(request)]);
        all.poll(0).unwrap();
        published()
    };
    assert_eq!(says(ours), [(name("web"), Status::default())]);
    let condition = ours.condition.clone();
    for theirs in [
        Status::default(),
        Status::of(&ips(&["192.0.2.1"])),
        Status { addresses: ips(&["198.51.100.7"]), condition: condition.clone() },
        Status { addresses: ips(&["192.0.2.0"]), condition },
    ] {
        assert_eq!(says(&theirs), [], "{theirs:?}");
    }
}

/// The last pool goes: its holder is told so in its status, and a restart says the same.
#[test]
fn the_last_pool_that_goes_leaves_a_reason_in_the_status() {
    let state = tempfile::tempdir().unwrap();
    let config = crate::config::Config { state_dir: state.path().into(), ..config() };
    let a = Script::new("a");
    let published = |script: &Script| std::mem::take(&mut *script.published.lock().unwrap());
    let first = with_ledger(std::slice::from_ref(&a), &config);
    a.says(vec![service("web", &[]), a.done()], vec![pool(), request("web")]);
    first.poll(0).unwrap();
    let (_, ours) = published(&a).remove(0);
    let says = |ours: &Status| Request { published: ours.clone(), ..Request::new("default", "web") };
    a.says(Vec::new(), vec![Edit::UpsertService(says(&ours))]);
    first.poll(0).unwrap();
    assert_eq!(published(&a), [], "an echo is no news");
    a.says(Vec::new(), vec![Edit::RemovePool("p".into())]);
    let gone = first.poll(0).unwrap();
    assert_eq!(set(&gone), [("web".to_owned(), Vec::new())]);
    let lost = |statuses: Vec<(ServiceName, Status)>| {
        let [(_, status)] = &statuses[..] else { panic!("one status, not {statuses:?}") };
        (status.addresses.clone(), status.condition.as_ref().unwrap().reason.to_string())
    };
    let expected = (Vec::new(), "no_pool".to_owned());
    assert_eq!(lost(published(&a)), expected);
    // The status was not written before the agent ended.
    let b = Script::new("a");
    let second = with_ledger(std::slice::from_ref(&b), &config);
    b.says(vec![service("web", &[]), b.done()], vec![Edit::UpsertService(says(&ours))]);
    assert_eq!(set(&second.poll(0).unwrap()).last(), Some(&("web".to_owned(), Vec::new())));
    assert_eq!(lost(published(&b)), expected);
}

#[test]
fn what_is_shadowed_is_named_until_it_is_not() {
    let (a, b) = (Script::new("a"), Script::new("b"));
    let (all, _state) = sources(&[a.clone(), b.clone()]);
    a.says(vec![service("web", &["198.51.100.1"]), a.done()], Vec::new());
    b.says(vec![service("web", &["198.51.100.2"]), b.done()], Vec::new());
    let shadowed = |delivery: &Delivery| -> Vec<(String, Option<String>)> {
        let of = |(source, kind, message): &(SourceName, &str, Option<String>)| {
            (*kind == "Shadowed").then(|| (source.0.to_string(), message.clone()))
        };
        delivery.conditions.iter().filter_map(of).collect()
    };
    assert!(shadowed(&all.poll(0).unwrap()).iter().all(|(_, message)| message.is_none()));
    let both = all.poll(1).unwrap();
    let expected = "source b: service default/web are not served, because a source before it has objects of the same \
                    names; rename one of each two";
    assert_eq!(shadowed(&both), [("a".to_owned(), None), ("b".to_owned(), Some(expected.to_owned()))]);
    assert_eq!(set(&both).len(), 1);
    a.says(vec![Change::RemoveService(name("web"))], Vec::new());
    let gone = all.poll(0).unwrap();
    assert!(shadowed(&gone).iter().all(|(_, message)| message.is_none()), "it ends for the other source");
    assert_eq!(gone.changes, [service("web", &["198.51.100.2"])]);
}

#[test]
fn a_service_of_two_sources_is_there_whoever_lists_first() {
    let (a, b) = (Script::new("a"), Script::new("b"));
    let (all, _state) = sources(&[a.clone(), b.clone()]);
    b.says(vec![service("web", &[]), b.done()], vec![request("web")]);
    assert_eq!(set(&all.poll(1).unwrap()), []);
    a.says(vec![service("web", &["198.51.100.1"]), a.done()], vec![pool(), request("web")]);
    let last = all.poll(0).unwrap();
    assert_eq!(set(&last), [("web".to_owned(), ips(&["192.0.2.0"]))]);
    assert!(!last.changes.contains(&Change::RemoveService(name("web"))), "{:?}", last.changes);
    assert_eq!((a.published.lock().unwrap().len(), b.published.lock().unwrap().len()), (1, 0), "b's is another one");
}

#[test]
fn a_service_that_changes_its_source_keeps_its_address() {
    let (a, b) = (Script::new("a"), Script::new("b"));
    let (all, _state) = sources(&[a.clone(), b.clone()]);
    a.says(vec![a.done()], Vec::new());
    b.says(vec![service("web", &[]), b.done()], vec![pool(), request("web")]);
    all.poll(0).unwrap();
    let granted = [("web".to_owned(), ips(&["192.0.2.0"]))];
    assert_eq!(set(&all.poll(1).unwrap()), granted);
    a.says(vec![service("web", &[])], vec![request("web")]);
    let taken_over = all.poll(0).unwrap();
    assert_eq!(set(&taken_over).last(), granted.last(), "the request is the same, and so is the address");
    a.says(vec![Change::RemoveService(name("web"))], vec![Edit::RemoveService(name("web"))]);
    assert_eq!(set(&all.poll(0).unwrap()).last(), granted.last());
}

#[test]
fn a_source_without_news_is_not_delivered() {
    let a = Script::new("a");
    let (all, _state) = sources(std::slice::from_ref(&a));
    assert!(all.poll(0).is_none() && all.poll(7).is_none());
    a.says(vec![a.done()], Vec::new());
    assert_eq!(all.poll(0).unwrap().changes, [a.done()]);
    assert!(all.poll(0).is_none());
}

#[test]
fn nothing_more_is_read_until_the_engine_has_taken_the_news() {
    let a = Script::new("a");
    let (all, _state) = sources(std::slice::from_ref(&a));
    a.says(vec![a.done()], Vec::new());
    let (events, inbox) = mpsc::channel();
    let step = {
        let all = Arc::clone(&all);
        thread::spawn(move || all.step([0].into(), &events))
    };
    let event = inbox.recv().unwrap();
    assert!(matches!(&event, Event::News(delivery) if delivery.changes == [a.done()]));
    assert!(!step.is_finished(), "the news is not taken yet");
    drop(event);
    assert!(step.join().unwrap());
    drop(inbox);
    a.says(vec![service("web", &[])], Vec::new());
    let (deaf, nobody) = mpsc::channel();
    drop(nobody);
    assert!(!all.step([0].into(), &deaf), "nobody listens");
}

#[test]
fn sources_of_one_name_do_not_start() {
    let (all, _state) = sources(&[Script::new("a"), Script::new("b"), Script::new("a")]);
    let error = all.start().unwrap_err().to_string();
    assert!(error.contains("two sources are named `a`"), "{error}");
}

#[test]
fn the_thread_ends_when_it_is_closed() {
    let a = Script::new("a");
    let (all, _state) = sources(std::slice::from_ref(&a));
    all.start().unwrap();
    let (events, inbox) = mpsc::channel();
    all.follow(events).unwrap();
    all.close();
    // It ends when the thread drops its sender.
    assert!(inbox.iter().next().is_none());
}
