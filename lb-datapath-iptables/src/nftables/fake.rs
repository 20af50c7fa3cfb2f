//! A host in memory that keeps the promises of nf_tables: additions are new, removals exist, chains in use stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use lb_core::{
    addr::{BackendAddr, Family, FrontendAddr},
    decision::Packet,
};
use lb_netlink::KernelError;

use crate::{
    conntrack::Allowed,
    nftables::{
        change::{
            engine::Engine,
            lower::{Action, Origin},
        },
        host::{Batch, CommitError, Host, Rebuild, Table, TableRepair},
        table::{
            choice::{Choice, Pick},
            decode::{DecodedElement, RawElement},
            keys::key_bytes,
            layout::{Element, Key, Note, Set, Value},
            rules,
            ruleset::{self, Ruleset},
        },
    },
    routes::{self, RouteFilter, RouteKind},
};

/// A kernel that is shared by every engine of a test.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<Model>>);

#[derive(Default)]
pub(crate) struct Model {
    pub(super) table: Option<BTreeMap<Key, (Value, String)>>,
    pub(super) picks: BTreeSet<Pick>,
    pub(super) handle: u64,
    /// Whether a foreign table has the name.
    pub(super) foreign: bool,
    /// Whether it lacks a message.
    pub(super) outdated: bool,
    pub(super) routes: BTreeSet<IpAddr>,
    /// Frontends that it refuses to touch.
    pub(super) refuses: BTreeSet<FrontendAddr>,
    /// Address that gets no route.
    pub(super) unroutable: Option<IpAddr>,
    /// A record that a packet writes between the reading of the records and the commit.
    pub(super) late: Option<Element>,
    /// How many dumps leave the first element out.
    pub(super) blind: usize,
    /// Whether it carries out the next batch and says nothing.
    pub(super) deaf: bool,
    pub(super) sent: usize,
    pub(crate) commits: usize,
    pub(super) flows: Vec<(FrontendAddr, BTreeSet<(IpAddr, u16)>)>,
}

impl World {
    pub(super) fn engine(&self) -> Engine {
        Engine::new("lb", BTreeSet::new(), Box::new(self.clone()))
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, Model> {
        self.0.lock().unwrap()
    }

    /// Everything but the generation.
    pub(super) fn elements(&self) -> BTreeMap<Key, (Value, String)> {
        let mut elements = self.lock().table.clone().unwrap_or_default();
        elements.retain(|key, _| !matches!(key, Key::Note(Note::Generation, _)));
        elements
    }

    pub(super) fn rules_there(&self) -> BTreeSet<Family> {
        [Family::V4, Family::V6].into()
    }

    pub(super) fn records(&self) -> Vec<Key> {
        self.elements().into_keys().filter(|key| matches!(key, Key::Record(..))).collect()
    }

    pub(super) fn routed(&self) -> BTreeSet<IpAddr> {
        self.lock().routes.clone()
    }
}

impl Model {
    pub(super) fn add(&mut self, element: Element) {
        self.table.get_or_insert_default().insert(element.key, (element.value, element.comment));
    }

    /// Carries out a batch; the first thing that cannot be is what it is refused for.
    fn carry_out(&mut self, batch: &Batch<'_>) -> Result<(), (Origin, i32)> {
        use nix::libc::{EBUSY, EEXIST, ENOENT, ENOMEM};
        if let Some(rebuild) = batch.rebuild {
            let refuse = |code| Err((Origin::Generation, code));
            match rebuild {
                Rebuild::Add if self.table.is_some() || self.foreign => return refuse(EEXIST),
                Rebuild::Replace(handle) if self.table.is_none() || handle != self.handle => return refuse(ENOENT),
                Rebuild::Add | Rebuild::Replace(_) => {}
            }
            self.handle += 1;
            self.table = Some(BTreeMap::new());
            self.picks.clear();
        }
        for step in batch.first.iter().chain(batch.steps) {
            let refuse = |code| Err((step.origin, code));
            if matches!(step.origin, Origin::Frontend(addr) if self.refuses.contains(&addr)) {
                return refuse(ENOMEM);
            }
            let Some(table) = &mut self.table else { return refuse(ENOENT) };
            let used = |pick: &Pick| table.contains_key(&Key::Verdict(pick.family, Choice::Pick(*pick)));
            match &step.action {
                Action::AddPick(pick) if !self.picks.insert(*pick) => return refuse(EEXIST),
                Action::RemovePick(pick) if used(pick) => return refuse(EBUSY),
                Action::RemovePick(pick) if !self.picks.remove(pick) => return refuse(ENOENT),
                Action::AddPick(_) | Action::RemovePick(_) => {}
                Action::Add(Element { key: Key::Verdict(_, Choice::Pick(pick)), .. }) if !self.picks.contains(pick) => {
                    return refuse(ENOENT);
                }
                Action::Add(element) => {
                    let content = (element.value.clone(), element.comment.clone());
                    if table.insert(element.key, content).is_some() {
                        return refuse(EEXIST);
                    }
                }
                Action::Remove(key) => {
                    if table.remove(key).is_none() {
                        return refuse(ENOENT);
                    }
                }
            }
        }
        for (_, key) in batch.forget {
            self.table.as_mut().and_then(|table| table.remove(key));
        }
        self.sent += batch.first.len() + batch.steps.len() + batch.forget.len();
        self.commits += 1;
        Ok(())
    }
}

impl Host for World {
    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError> {
        let mut model = self.lock();
        if let Some(late) = model.late.take() {
            model.add(late);
        }
        let before = (model.table.clone(), model.picks.clone());
        if let Err((origin, code)) = model.carry_out(batch) {
            (model.table, model.picks) = before;
            return Err(CommitError::Refused(vec![(origin, KernelError::from_errno(code).into())]));
        }
        if std::mem::take(&mut model.deaf) {
            return Err(CommitError::Unknown(lb_netlink::Error::NotAcknowledged));
        }
        Ok(())
    }

    fn elements(&mut self, set: Set) -> lb_netlink::Result<Vec<Option<DecodedElement>>> {
        let elements = self.lock().table.clone().unwrap_or_default().into_iter();
        let read = |(key, (value, comment))| Some((Element { key, value, comment }, None));
        let mut found: Vec<Option<DecodedElement>> = elements.filter(|(key, _)| key.set() == set).map(read).collect();
        let mut model = self.lock();
        if model.blind > 0 && !found.is_empty() {
            model.blind -= 1;
            found.remove(0);
        }
        Ok(found)
    }

    fn raw_elements(&mut self, set: Set) -> lb_netlink::Result<Vec<RawElement>> {
        let raw = |element: Option<DecodedElement>| {
            element.map(|read| RawElement { key: key_bytes(&read.0.key), read: Some(read) })
        };
        Ok(self.elements(set)?.into_iter().filter_map(raw).collect())
    }

    fn look_up(&mut self, set: Set, keys: &[Vec<u8>]) -> lb_netlink::Result<Vec<RawElement>> {
        let blind = std::mem::take(&mut self.lock().blind);
        let found = self.raw_elements(set)?;
        self.lock().blind = blind;
        Ok(found.into_iter().filter(|element| keys.contains(&element.key)).collect())
    }

    fn ruleset(&mut self) -> lb_netlink::Result<Ruleset> {
        Ok(ruleset::expected(&self.lock().picks))
    }

    fn repair(&mut self, repair: &TableRepair) -> Result<(), CommitError> {
        self.commit(&Batch { steps: &repair.first, ..Batch::default() })?;
        let mut model = self.lock();
        let table = model.table.get_or_insert_default();
        table.retain(|key, _| !repair.emptied.contains(&key.set()));
        table.retain(|key, _| !repair.gone.contains(&(key.set(), key_bytes(key))));
        for element in &repair.added {
            assert!(
                table.insert(element.key, (element.value.clone(), element.comment.clone())).is_none(),
                "{element:?} is there"
            );
        }
        model.picks.retain(|pick| !repair.chains_gone.contains(&pick.to_string()));
        model.picks.extend(repair.chains.iter().filter_map(|chain| chain.name.parse::<Pick>().ok()));
        Ok(())
    }

    fn table_name(&self) -> String {
        "inet lb".into()
    }

    fn transactions(&mut self) -> lb_netlink::Result<u32> {
        Ok(u32::try_from(self.lock().commits).unwrap())
    }

    fn table_port(&self) -> lb_netlink::Result<u32> {
        Ok(0)
    }

    fn is_supported(&mut self) -> lb_netlink::Result<bool> {
        Ok(!self.lock().outdated)
    }

    fn table(&mut self) -> lb_netlink::Result<Table> {
        let model = self.lock();
        Ok(match model.table {
            _ if model.foreign => Table::Foreign,
            Some(_) => Table::Ours(model.handle),
            None => Table::Absent,
        })
    }

    fn rule_count(&mut self) -> lb_netlink::Result<u64> {
        let model = self.lock();
        let fixed: usize = rules::chains().iter().map(|chain| chain.rules.len()).sum();
        Ok((fixed + model.picks.iter().map(|pick| rules::pick(pick).len()).sum::<usize>()) as u64)
    }

    fn remove_table(&mut self, handle: u64) -> lb_netlink::Result<bool> {
        let mut model = self.lock();
        Ok(handle == model.handle && model.table.take().is_some())
    }

    fn routed_vips(&mut self) -> lb_netlink::Result<BTreeSet<IpAddr>> {
        Ok(self.routed())
    }

    fn add_routes(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        let mut model = self.lock();
        let bad = model.unroutable.filter(|bad| vips.contains(bad));
        model.routes.extend(vips.iter().filter(|&&vip| Some(vip) != bad));
        Ok(bad.map(|vip| (vip, KernelError::from_errno(nix::libc::ENETUNREACH).into())).into_iter().collect())
    }

    fn remove_routes(&mut self, vips: &[IpAddr]) -> lb_netlink::Result<BTreeMap<IpAddr, lb_netlink::Error>> {
        self.lock().routes.retain(|vip| !vips.contains(vip));
        Ok(BTreeMap::new())
    }

    fn remove_all_routes(&mut self) -> lb_netlink::Result<()> {
        self.lock().routes.clear();
        Ok(())
    }

    fn foreign(&mut self, _: &BTreeSet<IpAddr>) -> lb_netlink::Result<routes::Foreign> {
        Ok(routes::Foreign::default())
    }

    fn routes(&mut self) -> lb_netlink::Result<routes::InstalledRoutes> {
        let both = |vip| [(RouteKind::Local, vip), (RouteKind::Forwarded, vip)];
        Ok(routes::InstalledRoutes {
            routes: self.routed().into_iter().flat_map(both).collect(),
            rules: self.rules_there(),
        })
    }

    fn routing_rules(&mut self) -> lb_netlink::Result<BTreeSet<Family>> {
        Ok(self.rules_there())
    }

    fn repair_routes(
        &mut self,
        missing: &[(RouteKind, IpAddr)],
        extra: &[(RouteKind, IpAddr)],
        _: &[Family],
    ) -> lb_netlink::Result<()> {
        let mut model = self.lock();
        model.routes.retain(|vip| !extra.iter().any(|(_, extra)| extra == vip));
        model.routes.extend(missing.iter().map(|(_, vip)| vip));
        Ok(())
    }

    fn route_filter(&self) -> lb_netlink::Result<RouteFilter> {
        Err(KernelError::from_errno(nix::libc::EOPNOTSUPP).into())
    }

    fn forget_stale_flows(&mut self, allowed: &Allowed) -> lb_netlink::Result<usize> {
        self.lock().flows.extend(allowed.clone());
        Ok(0)
    }

    fn end_flows(&mut self, allowed: &Allowed) -> lb_netlink::Result<usize> {
        self.forget_stale_flows(allowed)
    }

    fn backend_of(&mut self, _: &Packet) -> lb_netlink::Result<Option<BackendAddr>> {
        Ok(None)
    }
}
