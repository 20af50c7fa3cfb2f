//! What the file of the ledger says, as text.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::IpAddr,
    sync::Arc,
};

use lb_core::name::ServiceName;
use lb_ipam::{Entry, Freed, Holders, Ledger, MemoryLedger, PoolName, Timestamp};
use serde::{Deserialize, Serialize};

/// The version that is written. It is 2 since services are dated: an older program would take the file for damaged.
pub(super) const VERSION: u32 = 2;
/// The oldest version that is read.
const OLDEST: u32 = 1;

/// What must survive the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Remembered {
    /// Who has which address.
    pub(super) ledger: MemoryLedger,
    /// When pools and services were seen first that do not say when they were made.
    pub(super) first_seen: FirstSeen,
}

/// When objects were seen first that do not say when they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FirstSeen {
    pub(super) pools: BTreeMap<PoolName, Timestamp>,
    /// Of services that get their addresses here: who came first is served first.
    pub(super) services: BTreeMap<ServiceName, Timestamp>,
}

/// Why a text is not that.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    Version(u32),
    Damage(String),
}

/// One entry a line, in order of address. Times are milliseconds since 1970.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "version")]
    _version: u32,
    #[serde(default)]
    pools: BTreeMap<String, u64>,
    #[serde(default)]
    services: BTreeMap<String, u64>,
    entries: Vec<Line>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// An address and one of the others. Services are written as `namespace/name`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freed: Option<StoredFreed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reserved: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    conflict: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredFreed {
    last: String,
    at: u64,
    drained: u64,
    rested: u64,
    forgotten: u64,
}

pub(super) fn parse(text: &[u8]) -> Result<Remembered, Problem> {
    let unreadable = |error: serde_json::Error| Problem::Damage(error.to_string());
    let Version { version } = serde_json::from_slice(text).map_err(unreadable)?;
    if !(OLDEST..=VERSION).contains(&version) {
        return Err(Problem::Version(version));
    }
    let stored: Stored = serde_json::from_slice(text).map_err(unreadable)?;
    let count = stored.entries.len();
    let entries = stored.entries.into_iter().map(Line::restore).collect::<Result<Vec<_>, _>>();
    let ledger: MemoryLedger = entries.map_err(Problem::Damage)?.into_iter().collect();
    if ledger.entries().count() != count {
        return Err(Problem::Damage("an address is in it twice".into()));
    }
    let pools = stored.pools.into_iter().map(|(name, at)| (PoolName::new(&name), Timestamp::from_millis(at)));
    let services = stored.services.into_iter().map(|(name, at)| Ok((service(&name)?, Timestamp::from_millis(at))));
    let services = services.collect::<Result<_, _>>().map_err(Problem::Damage)?;
    Ok(Remembered { ledger, first_seen: FirstSeen { pools: pools.collect(), services } })
}

pub(super) fn render(
    mut to: impl Write,
    ledger: &impl Ledger,
    FirstSeen { pools, services }: &FirstSeen,
) -> io::Result<()> {
    let pools: BTreeMap<&str, u64> = pools.iter().map(|(name, at)| (name.as_str(), at.as_millis())).collect();
    let services: BTreeMap<String, u64> =
        services.iter().map(|(name, at)| (name.to_string(), at.as_millis())).collect();
    write!(to, "{{\"version\":{VERSION},\"pools\":")?;
    serde_json::to_writer(&mut to, &pools)?;
    to.write_all(b",\n\"services\":")?;
    serde_json::to_writer(&mut to, &services)?;
    to.write_all(b",\"entries\":[")?;
    for (index, (address, entry)) in ledger.entries().enumerate() {
        to.write_all(if index == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut to, &Line::of(address, &entry))?;
    }
    to.write_all(b"\n]}\n")
}

/// See [`crate::fuzzing::ledger`].
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(data: &[u8]) {
    let Ok(read) = parse(data) else { return };
    let mut text = Vec::new();
    render(&mut text, &read.ledger, &read.first_seen).expect("memory takes everything");
    assert_eq!(parse(&text), Ok(read), "{}", text.escape_ascii());
}

impl Line {
    fn of(address: IpAddr, entry: &Entry) -> Self {
        let mut line = Self { address, held: None, freed: None, reserved: None, conflict: None };
        match entry {
            Entry::Held(holders) => line.held = Some(holders.names().iter().map(ToString::to_string).collect()),
            Entry::Freed(freed) => {
                line.freed = Some(StoredFreed {
                    last: freed.last.to_string(),
                    at: freed.at.as_millis(),
                    drained: freed.drained.as_millis(),
                    rested: freed.rested.as_millis(),
                    forgotten: freed.forgotten.as_millis(),
                });
            }
            Entry::Reserved(why) => line.reserved = Some(why.to_string()),
            Entry::Conflict(by) => line.conflict = Some(by.to_string()),
        }
        line
    }

    fn restore(self) -> Result<(IpAddr, Entry), String> {
        let address = self.address;
        self.entry().map(|entry| (address, entry)).map_err(|problem| format!("{address}: {problem}"))
    }

    fn entry(self) -> Result<Entry, String> {
        match (self.held, self.freed, self.reserved, self.conflict) {
            (Some(names), None, None, None) => {
                let names = names.iter().map(|name| service(name)).collect::<Result<Vec<_>, _>>()?;
                Ok(Entry::Held(Holders::of(names).ok_or("it is held by nobody")?))
            }
            (None, Some(freed), None, None) => freed.restore(),
            (None, None, Some(why), None) => Ok(Entry::Reserved(why.into())),
            (None, None, None, Some(by)) => Ok(Entry::Conflict(by.into())),
            _ => Err("expected one of held, freed, reserved and conflict".into()),
        }
    }
}

impl StoredFreed {
    fn restore(self) -> Result<Entry, String> {
        Ok(Entry::Freed(Arc::new(Freed {
            last: service(&self.last)?,
            at: Timestamp::from_millis(self.at),
            drained: Timestamp::from_millis(self.drained),
            rested: Timestamp::from_millis(self.rested),
            forgotten: Timestamp::from_millis(self.forgotten),
        })))
    }
}

fn service(name: &str) -> Result<ServiceName, String> {
    match name.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(ServiceName::new(namespace, name)),
        _ => Err(format!("`{name}` is no service, expected namespace/name")),
    }
}
