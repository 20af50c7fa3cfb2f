//! The ledger of addresses, as a file.
//!
//! Written as a whole: a new file beside the old one, to the disk, then over the old one, then the directory to the disk.
//! Whatever fails on the way, the old file is there and complete.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use lb_core::ServiceName;
use lb_ipam::{Entry, Freed, Holders, Ledger, MemoryLedger, Timestamp};
use serde::{Deserialize, Serialize};

const NAME: &str = "ledger.json";
const VERSION: u32 = 1;

/// Why the ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerFileError {
    #[error("reading the ledger of addresses {path} failed")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the ledger of addresses {path} is damaged: {problem}; put a copy of it back, or move it away: services are then \
         given addresses anew and may get others"
    )]
    Damaged { path: PathBuf, problem: String },
    #[error("the ledger of addresses {path} has version {found}, and this program reads {VERSION}: use the newer one")]
    Version { path: PathBuf, found: u32 },
}

/// The file, in a directory that nobody else uses.
#[derive(Clone, Debug)]
pub(super) struct LedgerFile {
    path: PathBuf,
}

/// What is in it: one entry a line, in order of address.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "version")]
    _version: u32,
    entries: Vec<Line>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Line {
    address: IpAddr,
    #[serde(flatten)]
    entry: StoredEntry,
}

/// Services are written as `namespace/name`, times as milliseconds since 1970.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum StoredEntry {
    Held(Vec<String>),
    Freed { last: String, at: u64, drained: u64, rested: u64, forgotten: u64 },
    Reserved(String),
    Conflict(String),
}

impl LedgerFile {
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join(NAME) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Empty if there is none.
    pub(super) fn read(&self) -> Result<MemoryLedger, LedgerFileError> {
        let text = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(MemoryLedger::default()),
            text => text.map_err(|source| LedgerFileError::Read { path: self.path.clone(), source })?,
        };
        let path = || self.path.clone();
        parse(&text).map_err(|problem| match problem {
            Problem::Version(found) => LedgerFileError::Version { path: path(), found },
            Problem::Damage(problem) => LedgerFileError::Damaged { path: path(), problem },
        })
    }

    /// Returns when what it writes would survive a crash of the machine.
    pub(super) fn write(&self, ledger: &impl Ledger) -> io::Result<()> {
        let draft = self.path.with_extension("json.new");
        let written = self.write_draft(&draft, ledger).and_then(|()| fs::rename(&draft, &self.path));
        if let Err(error) = written {
            // On a full disk it would only be in the way; the next one is written over it anyhow.
            let _ = fs::remove_file(&draft);
            return Err(error);
        }
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    fn write_draft(&self, draft: &Path, ledger: &impl Ledger) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(draft)?;
        let mut to = BufWriter::new(file);
        render(&mut to, ledger)?;
        to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// Why a text is no ledger.
enum Problem {
    Version(u32),
    Damage(String),
}

fn parse(text: &[u8]) -> Result<MemoryLedger, Problem> {
    let unreadable = |error: serde_json::Error| Problem::Damage(error.to_string());
    let Version { version } = serde_json::from_slice(text).map_err(unreadable)?;
    if version != VERSION {
        return Err(Problem::Version(version));
    }
    let stored: Stored = serde_json::from_slice(text).map_err(unreadable)?;
    let count = stored.entries.len();
    let entries = stored.entries.into_iter().map(Line::restore).collect::<Result<Vec<_>, _>>();
    let ledger: MemoryLedger = entries.map_err(Problem::Damage)?.into_iter().collect();
    if ledger.entries().count() != count {
        return Err(Problem::Damage("an address is in it twice".into()));
    }
    Ok(ledger)
}

fn render(mut to: impl Write, ledger: &impl Ledger) -> io::Result<()> {
    write!(to, "{{\"version\":{VERSION},\"entries\":[")?;
    for (index, (address, entry)) in ledger.entries().enumerate() {
        to.write_all(if index == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut to, &Line { address, entry: StoredEntry::of(&entry) })?;
    }
    to.write_all(b"\n]}\n")
}

/// See [`crate::fuzzing::ledger`].
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(data: &[u8]) {
    let Ok(ledger) = parse(data) else { return };
    let mut text = Vec::new();
    render(&mut text, &ledger).expect("memory takes everything");
    match parse(&text) {
        Ok(again) => assert_eq!(again, ledger),
        Err(_) => panic!("{} is not read again", text.escape_ascii()),
    }
}

impl Line {
    fn restore(self) -> Result<(IpAddr, Entry), String> {
        let address = self.address;
        self.entry.restore().map(|entry| (address, entry)).map_err(|problem| format!("{address}: {problem}"))
    }
}

impl StoredEntry {
    fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Held(holders) => Self::Held(holders.names().iter().map(ToString::to_string).collect()),
            Entry::Freed(freed) => Self::Freed {
                last: freed.last.to_string(),
                at: freed.at.as_millis(),
                drained: freed.drained.as_millis(),
                rested: freed.rested.as_millis(),
                forgotten: freed.forgotten.as_millis(),
            },
            Entry::Reserved(why) => Self::Reserved(why.to_string()),
            Entry::Conflict(by) => Self::Conflict(by.to_string()),
        }
    }

    fn restore(self) -> Result<Entry, String> {
        Ok(match self {
            Self::Held(names) => {
                let names = names.iter().map(|name| service(name)).collect::<Result<Vec<_>, _>>()?;
                Entry::Held(Holders::of(names).ok_or("it is held by nobody")?)
            }
            Self::Freed { last, at, drained, rested, forgotten } => Entry::Freed(Arc::new(Freed {
                last: service(&last)?,
                at: Timestamp::from_millis(at),
                drained: Timestamp::from_millis(drained),
                rested: Timestamp::from_millis(rested),
                forgotten: Timestamp::from_millis(forgotten),
            })),
            Self::Reserved(why) => Entry::Reserved(why.into()),
            Self::Conflict(by) => Entry::Conflict(by.into()),
        })
    }
}

fn service(name: &str) -> Result<ServiceName, String> {
    match name.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(ServiceName::new(namespace, name)),
        _ => Err(format!("`{name}` is no service, expected namespace/name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> MemoryLedger {
        let (web, api) = (ServiceName::new("shop", "web"), ServiceName::new("shop", "api"));
        let at = Timestamp::from_millis;
        let freed = Freed { last: web.clone(), at: at(1), drained: at(2), rested: at(3), forgotten: at(u64::MAX) };
        let entries = [
            ("192.0.2.1", Entry::Held(Holders::one(web.clone()).with(&api))),
            ("192.0.2.2", Entry::Freed(Arc::new(freed))),
            ("192.0.2.3", Entry::Reserved("the gateway, \"gw\"".into())),
            ("2001:db8::1", Entry::Conflict("02:00:00:00:00:01".into())),
        ];
        entries.into_iter().map(|(address, entry)| (address.parse().unwrap(), entry)).collect()
    }

    #[test]
    fn a_ledger_survives() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::in_directory(directory.path());
        assert_eq!(file.read().unwrap(), MemoryLedger::default());
        for ledger in [ledger(), MemoryLedger::default(), ledger()] {
            file.write(&ledger).unwrap();
            assert_eq!(file.read().unwrap(), ledger);
        }
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [NAME]);
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.contains("\n{\"address\":\"192.0.2.1\",\"held\":[\"shop/web\",\"shop/api\"]},\n"), "{text}");
    }

    #[test]
    fn a_draft_that_a_crash_left_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::in_directory(directory.path());
        file.write(&ledger()).unwrap();
        let text = fs::read(file.path()).unwrap();
        for cut in [0, 1, text.len() / 2, text.len() - 1] {
            fs::write(directory.path().join("ledger.json.new"), &text[..cut]).unwrap();
            assert_eq!(file.read().unwrap(), ledger());
        }
        file.write(&MemoryLedger::default()).unwrap();
        assert_eq!(file.read().unwrap(), MemoryLedger::default());
    }

    #[test]
    fn every_cut_of_the_file_itself_is_damage_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::in_directory(directory.path());
        file.write(&ledger()).unwrap();
        let text = fs::read(file.path()).unwrap();
        // Without the last newline it is whole.
        for cut in 0..text.len() - 1 {
            fs::write(file.path(), &text[..cut]).unwrap();
            let error = file.read().unwrap_err();
            assert!(matches!(error, LedgerFileError::Damaged { .. }), "{cut}: {error}");
            assert!(error.to_string().contains("ledger.json"), "{error}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::in_directory(directory.path());
        for (text, expected) in [
            (r#"{"version":2,"entries":[]}"#, "has version 2"),
            (r#"{"entries":[]}"#, "missing field `version`"),
            (r#"{"version":1,"entries":[],"more":1}"#, "unknown field `more`"),
            (r#"{"version":1,"entries":[{"address":"192.0.2.1"}]}"#, "is damaged"),
            (r#"{"version":1,"entries":[{"address":"192.0.2.300","held":["a/b"]}]}"#, "is damaged"),
            (r#"{"version":1,"entries":[{"address":"192.0.2.1","held":[]}]}"#, "192.0.2.1: it is held by nobody"),
            (r#"{"version":1,"entries":[{"address":"192.0.2.1","held":["web"]}]}"#, "`web` is no service"),
            (r#"{"version":1,"entries":[{"address":"192.0.2.1","held":["/web"]}]}"#, "`/web` is no service"),
            (
                r#"{"version":1,"entries":[{"address":"192.0.2.1","held":["a/b"]},{"address":"192.0.2.1","reserved":"x"}]}"#,
                "an address is in it twice",
            ),
        ] {
            fs::write(file.path(), text).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
