//! Compares every entry of the maps with the mirror.

mod entries;
mod names;
mod rest;

use lb_core::drift::Drift;
use lb_datapath_ebpf_abi::Pod;

use self::entries::{Any, backend, compare, frontend, member, set, turn};
use crate::{
    error::EbpfError,
    state::{
        maps::{Maps, Table},
        mirror::Mirror,
        write::Write,
    },
    sys::Page,
};

/// One entry that is not as it was written, and the write that puts it right.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    pub(crate) drift: Drift,
    /// None where another finding's write does it.
    pub(crate) fix: Option<Write>,
}

/// Compares the maps with the mirror, again and again.
///
/// The scanner keeps the content of each table from the last time it was found right. An entry that is the same as
/// then, and was not written since, is still right. So only new entries are looked up in the mirror.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    tables: [CheckedTable; Table::ALL.len()],
}

/// A table, now and when it was last found right.
#[derive(Debug, Default)]
struct CheckedTable {
    page: Page,
    right: Page,
    /// The mirror that `right` was compared with; none has number 0.
    mirror: u64,
}

impl Scanner {
    /// Every entry that differs.
    pub(crate) fn scan(&mut self, maps: &mut Maps, mirror: &Mirror) -> Result<Vec<Finding>, EbpfError> {
        let mut findings = Vec::new();
        for (table, checked) in Table::ALL.into_iter().zip(&mut self.tables) {
            maps.read(table, &mut checked.page)?;
            let written = maps.written(table);
            if written.is_empty() && checked.is_unchanged(table, mirror) {
                continue;
            }
            let found = match checked.news(table, mirror, written) {
                Some(news) if is_right(table, maps, mirror, &news)? => Vec::new(),
                _ => compare(table, &checked.page, mirror),
            };
            if found.is_empty() {
                std::mem::swap(&mut checked.page, &mut checked.right);
                checked.mirror = mirror.number();
                maps.forget_written(table);
            }
            findings.extend(found);
        }
        rest::slots(maps, mirror, &mut findings);
        rest::filter(maps, mirror, &mut findings);
        rest::sources(maps, mirror, &mut findings)?;
        rest::addresses(maps, mirror, &mut findings)?;
        rest::devices(maps, &mut findings)?;
        rest::node(maps, mirror, &mut findings)?;
        Ok(findings)
    }
}

impl CheckedTable {
    /// Whether the table is the same as when it was last found right.
    fn is_unchanged(&self, table: Table, mirror: &Mirror) -> bool {
        // Programs count turns.
        let values = || table == Table::Turns || self.page.values() == self.right.values();
        self.mirror == mirror.number() && self.page.keys() == self.right.keys() && values()
    }

    /// Keys of the entries that have changed since the table was right or were `written` since. `None` if they are too
    /// many to look up one by one.
    fn news<'a>(&'a self, table: Table, mirror: &Mirror, written: &'a [u8]) -> Option<Vec<&'a [u8]>> {
        const MOST: usize = 1024;
        if self.mirror != mirror.number() {
            return None;
        }
        let key = self.page.key_size().max(1);
        let mut news: Vec<_> = written.chunks_exact(key).collect();
        let (mut now, mut then) = (0, 0);
        while now < self.page.len() || then < self.right.len() {
            if news.len() > MOST {
                return None;
            }
            if same(table, self.page.get(now), self.right.get(then)) {
                (now, then) = (now + 1, then + 1);
                continue;
            }
            let (came, went) = self.gap(table, now, then)?;
            news.extend((now..now + came).filter_map(|at| Some(self.page.get(at)?.0)));
            news.extend((then..then + went).filter_map(|at| Some(self.right.get(at)?.0)));
            (now, then) = (now + came, then + went);
        }
        Some(news)
    }

    /// How many entries came and went before both pages go on alike. Entries keep their order, apart from those that
    /// are written again.
    fn gap(&self, table: Table, now: usize, then: usize) -> Option<(usize, usize)> {
        const WIDEST: usize = 8;
        let alike = |(came, went): &(usize, usize)| {
            let (now, then) = (self.page.get(now + came), self.right.get(then + went));
            (now.is_none() && then.is_none()) || (now.is_some() && same(table, now, then))
        };
        (1..=2 * WIDEST).flat_map(|sum| (0..=sum).map(move |came| (came, sum - came))).find(alike)
    }
}

fn same(table: Table, now: Option<(&[u8], &[u8])>, then: Option<(&[u8], &[u8])>) -> bool {
    let (Some(now), Some(then)) = (now, then) else { return false };
    // Programs count turns.
    now.0 == then.0 && (table == Table::Turns || now.1 == then.1)
}

/// Whether the entries with these keys are as they should be.
fn is_right(table: Table, maps: &Maps, mirror: &Mirror, keys: &[&[u8]]) -> Result<bool, EbpfError> {
    for key in keys {
        let found = maps.raw(table, key)?;
        if expected(table, mirror, key, found.as_deref()) != found {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The value that an entry should have, as it lies in the map.
fn expected(table: Table, mirror: &Mirror, key: &[u8], found: Option<&[u8]>) -> Option<Vec<u8>> {
    match table {
        Table::Frontends => frontend(mirror, &Pod::from_bytes(key)?).map(|value| value.bytes().to_vec()),
        Table::Backends => backend(mirror, Pod::from_bytes(key)?).map(|value| value.bytes().to_vec()),
        Table::Sets => set(mirror, Pod::from_bytes(key)?).map(|value| value.bytes().to_vec()),
        Table::Members => member(mirror, &Pod::from_bytes(key)?).map(|value| value.bytes().to_vec()),
        // Programs count turns: whatever it is, it is right.
        Table::Turns => turn(mirror, Pod::from_bytes(key)?).map(|Any| found.unwrap_or_default().to_vec()),
    }
}
