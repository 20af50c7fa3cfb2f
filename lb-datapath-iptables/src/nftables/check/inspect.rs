//! Compares the kernel's state with the expected one.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use lb_core::{
    addr::Family,
    drift::{Cause, Difference, Drift, DriftClass},
};

use crate::{
    nftables::{
        check::{
            describe::{Hex, differing, drift_of, drifts, value_text},
            expected::{ExpectedTable, agrees},
            routes::inspect_routes,
            suspects::Suspects,
        },
        host::{Host, Table},
        table::{
            decode::RawElement,
            keys,
            layout::{Key, Set},
            ruleset::{self, ListedChain, Ruleset, base_text},
            userdata::MARKER,
        },
    },
    routes::RouteKind,
};

/// A difference, and the object that a repair puts back.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) object: Object,
    pub(crate) drift: Drift,
}

/// An object that a repair puts back as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    /// The table with all that is in it.
    Table,
    /// A set that should not exist.
    ForeignSet(String),
    /// A chain that should not exist.
    ForeignChain(String),
    /// A chain with its rules.
    Chain(String),
    /// An element by the bytes of its key.
    Element(Set, Vec<u8>),
    /// A route.
    Route(RouteKind, IpAddr),
    /// The routing rule of a family.
    RoutingRule(Family),
}

impl Finding {
    /// Makes the object suspect: it is looked at again until it is repaired.
    pub(crate) fn suspect(&self, suspects: &mut Suspects) {
        match &self.object {
            Object::Table | Object::ForeignSet(_) | Object::ForeignChain(_) | Object::Chain(_) => {
                suspects.ruleset = true;
            }
            Object::Element(set, key) => suspects.add_key(*set, key.clone()),
            Object::Route(place, vip) => {
                let there = self.drift.difference == Difference::Extra;
                suspects.routes.entry((*place, *vip)).or_insert(there);
            }
            Object::RoutingRule(_) => suspects.routing_rules = true,
        }
    }
}

/// Compares the suspects.
pub(crate) fn look(
    host: &mut dyn Host,
    wanted: &ExpectedTable<'_>,
    suspects: &Suspects,
) -> lb_netlink::Result<Vec<Finding>> {
    let mut look = Inspector { host, wanted, findings: Vec::new(), no_sets: false };
    look.table(suspects)?;
    let mut findings = look.findings;
    inspect_routes(host, wanted, suspects, &mut findings)?;
    Ok(findings)
}

struct Inspector<'a, 'b> {
    host: &'a mut dyn Host,
    wanted: &'a ExpectedTable<'b>,
    findings: Vec<Finding>,
    /// Whether a set that was to be read does not exist.
    no_sets: bool,
}

impl Inspector<'_, '_> {
    fn found(&mut self, object: Object, drift: Drift) {
        self.findings.push(Finding { object, drift });
    }

    fn table(&mut self, suspects: &Suspects) -> lb_netlink::Result<()> {
        let name = self.host.table_name();
        let table = |difference| Drift::new(DriftClass::Table, &name, difference);
        match self.host.table()? {
            Table::Absent if self.wanted.is_nothing() => return Ok(()),
            Table::Absent => {
                self.found(Object::Table, table(Difference::Missing).because(Cause::Flushed));
                return Ok(());
            }
            Table::Foreign => {
                let wrong = Difference::Wrong { expected: format!("comment \"{MARKER}…\""), found: "none".into() };
                self.found(Object::Table, table(wrong));
                return Ok(());
            }
            Table::Ours(_) => {}
        }
        self.elements(suspects)?;
        if suspects.everything || suspects.ruleset || self.no_sets {
            self.ruleset()?;
        }
        Ok(())
    }

    fn elements(&mut self, suspects: &Suspects) -> lb_netlink::Result<()> {
        let affinity = |set: &&Set| matches!(set, Set::Affinity(..));
        if suspects.everything {
            return self.sets(&Set::ALL.iter().filter(|set| !affinity(set)).copied().collect());
        }
        if !suspects.sets.is_empty() {
            self.sets(&suspects.sets.iter().filter(|set| !affinity(set)).copied().collect())?;
        }
        let mut keys = suspects.keys.clone();
        keys.retain(|set, _| !affinity(&set) && !suspects.sets.contains(set));
        // This look-up costs next to nothing, and finds another writer or another table in place of the datapath's.
        if let Some(key) = self.wanted.generation_key().filter(|_| !suspects.sets.contains(&Set::Notes)) {
            keys.entry(Set::Notes).or_default().insert(keys::key_bytes(&key));
        }
        for (set, keys) in keys {
            let keys: Vec<Vec<u8>> = keys.into_iter().collect();
            match self.host.look_up(set, &keys) {
                Ok(found) => self.single(set, &keys, found),
                Err(error) => self.no_set(error)?,
            }
        }
        Ok(())
    }

    /// Has the ruleset compared, which reports the missing set.
    fn no_set(&mut self, error: lb_netlink::Error) -> lb_netlink::Result<()> {
        self.no_sets = true;
        if error.errno() == Some(nix::libc::ENOENT) { Ok(()) } else { Err(error) }
    }

    /// Compares single elements.
    fn single(&mut self, set: Set, keys: &[Vec<u8>], found: Vec<RawElement>) {
        let found: BTreeMap<Vec<u8>, RawElement> =
            found.into_iter().map(|element| (element.key.clone(), element)).collect();
        for bytes in keys {
            match found.get(bytes) {
                Some(element) => self.compare(set, element),
                None => {
                    if let Some(key) = crate::nftables::table::keys::key_of(set, bytes)
                        && let Some(wanted) = self.wanted.element(&key)
                    {
                        self.elements_drifted(set, bytes, drifts(Some(&wanted), None));
                    }
                }
            }
        }
    }

    /// Compares all elements of some sets.
    fn sets(&mut self, sets: &BTreeSet<Set>) -> lb_netlink::Result<()> {
        let mut seen: HashSet<Key> = HashSet::new();
        let mut read: BTreeMap<Set, usize> = BTreeMap::new();
        for &set in sets {
            match self.host.raw_elements(set) {
                Ok(elements) => {
                    read.insert(set, elements.len());
                    seen.extend(elements.iter().filter_map(|element| element.read.as_ref()).map(|(e, _)| e.key));
                    elements.iter().for_each(|element| self.compare(set, element));
                }
                Err(error) => self.no_set(error)?,
            }
        }
        let mut missing: BTreeMap<Set, Vec<Key>> = BTreeMap::new();
        for key in self.wanted.keys().filter(|key| read.contains_key(&key.set()) && !seen.contains(key)) {
            missing.entry(key.set()).or_default().push(key);
        }
        for (set, keys) in missing {
            self.missing(set, &keys, read.get(&set) == Some(&0))?;
        }
        Ok(())
    }

    /// Notes elements that a dump did not show. While the kernel moves a set to a larger hash table, a dump leaves
    /// elements out that a look-up finds.
    fn missing(&mut self, set: Set, keys: &[Key], flushed: bool) -> lb_netlink::Result<()> {
        let bytes: Vec<Vec<u8>> = keys.iter().map(keys::key_bytes).collect();
        let there = match set {
            // A look-up finds a range by any address in it, so it cannot show whether a bound exists.
            Set::Cluster(_) => Vec::new(),
            _ if flushed && self.host.look_up(set, &bytes[..bytes.len().min(SAMPLE)])?.is_empty() => Vec::new(),
            _ => self.host.look_up(set, &bytes)?,
        };
        there.iter().for_each(|element| self.compare(set, element));
        let there: HashSet<Vec<u8>> = there.into_iter().map(|element| element.key).collect();
        for (key, bytes) in keys.iter().zip(&bytes).filter(|(_, bytes)| !there.contains(*bytes)) {
            let wanted = self.wanted.element(key);
            let drifts = drifts(wanted.as_ref(), None).into_iter();
            let drifts = drifts.map(|drift| if flushed { drift.because(Cause::Flushed) } else { drift }).collect();
            self.elements_drifted(set, bytes, drifts);
        }
        Ok(())
    }

    fn compare(&mut self, set: Set, element: &RawElement) {
        let Some((found, _)) = &element.read else {
            let text = format!("{} {}", set.name(), Hex(&element.key));
            let wanted =
                crate::nftables::table::keys::key_of(set, &element.key).and_then(|key| self.wanted.element(&key));
            let drift = match wanted {
                None => Drift::new(DriftClass::Element, text, Difference::Extra),
                Some(wanted) => {
                    let expected = value_text(&wanted.value);
                    drift_of(&wanted, Difference::Wrong { expected, found: "a value of another kind".into() })
                }
            };
            return self.elements_drifted(set, &element.key, vec![drift]);
        };
        let wanted = self.wanted.element(&found.key);
        if wanted.as_ref().is_none_or(|wanted| !agrees(wanted, found)) {
            self.elements_drifted(set, &element.key, drifts(wanted.as_ref(), Some(found)));
        }
    }

    /// Notes the differences of one element.
    fn elements_drifted(&mut self, set: Set, key: &[u8], drifts: Vec<Drift>) {
        for drift in drifts {
            self.found(Object::Element(set, key.to_vec()), drift);
        }
    }

    fn ruleset(&mut self) -> lb_netlink::Result<()> {
        let found = self.host.ruleset()?;
        let wanted = ruleset::expected(self.wanted.picks());
        if found.dormant {
            let wrong = Difference::Wrong { expected: "active".into(), found: "flags dormant".into() };
            let name = self.host.table_name();
            self.found(Object::Table, Drift::new(DriftClass::Table, name, wrong));
        }
        self.shapes(&wanted, &found);
        for (name, chain) in &wanted.chains {
            self.chain(name, chain, found.chains.get(name));
        }
        for name in found.chains.keys().filter(|name| !wanted.chains.contains_key(*name)) {
            self.found(Object::ForeignChain(name.clone()), Drift::new(DriftClass::Chain, name, Difference::Extra));
        }
        Ok(())
    }

    fn shapes(&mut self, wanted: &Ruleset, found: &Ruleset) {
        for (name, shape) in &wanted.sets {
            let difference = match found.sets.get(name) {
                None => Some(Difference::Missing),
                Some(found) => Difference::between(shape, found, ToString::to_string),
            };
            if let Some(difference) = difference {
                self.found(Object::Table, Drift::new(DriftClass::NamedSet, name, difference));
            }
        }
        for name in found.sets.keys().filter(|name| !wanted.sets.contains_key(*name)) {
            self.found(Object::ForeignSet(name.clone()), Drift::new(DriftClass::NamedSet, name, Difference::Extra));
        }
    }

    fn chain(&mut self, name: &str, wanted: &ListedChain, found: Option<&ListedChain>) {
        let object = || Object::Chain(name.to_owned());
        let Some(found) = found else {
            return self.found(object(), Drift::new(DriftClass::Chain, name, Difference::Missing));
        };
        if let Some(difference) = Difference::between(&wanted.base, &found.base, base_text) {
            self.found(object(), Drift::new(DriftClass::Chain, name, difference));
        }
        for (position, difference) in differing(&wanted.rules, &found.rules) {
            let drift = Drift::new(DriftClass::Rule, format_args!("{name} rule {position}"), difference);
            let flushed = found.rules.is_empty() && wanted.rules.len() > 1;
            self.found(object(), if flushed { drift.because(Cause::Flushed) } else { drift });
        }
    }
}

/// Elements that are looked up before a set is taken for empty.
const SAMPLE: usize = 32;
