//! The ledger of addresses, as a file.
//!
//! Written as a whole: a new file beside the old one, to the disk, then over the old one, then the directory to the
//! disk. Whatever fails on the way, the old file is there and complete.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use lb_ipam::Ledger;
use nix::fcntl::OFlag;

use super::stored::{self, FirstSeen, Problem, Remembered, VERSION};

const NAME: &str = "ledger.json";
const DRAFT: &str = "ledger.json.new";

/// Why the ledger cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerFileError {
    /// The system refuses.
    #[error("reading the ledger of addresses {path} failed")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something else has its name.
    #[error("the ledger of addresses {path} is not a regular file: move it away")]
    NoFile {
        /// What is no file.
        path: PathBuf,
    },
    /// Its content cannot be understood.
    #[error(
        "the ledger of addresses {path} is damaged: {problem}; restore a copy of it, or move it away: services then get \
         new addresses, which may differ"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A newer program wrote it.
    #[error(
        "the ledger of addresses {path} has version {found}, and this program reads {VERSION}: use a newer program"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// Why the ledger was not written; the file is as it was.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub(super) struct LedgerWriteError {
    path: PathBuf,
    source: io::Error,
}

/// The file, in a directory that no other agent uses. Links are not followed: others may have prepared the directory.
#[derive(Clone, Debug)]
pub(super) struct LedgerFile {
    directory: PathBuf,
}

impl LedgerFile {
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.into() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// Nothing is remembered if there is no file.
    pub(super) fn read(&self) -> Result<Remembered, LedgerFileError> {
        let path = self.path();
        let failed = |source| LedgerFileError::Read { path: path.clone(), source };
        // What is no file must not make the agent wait for its other end.
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Remembered::default()),
            file => file.map_err(failed)?,
        };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(LedgerFileError::NoFile { path });
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        stored::parse(&text).map_err(|problem| match problem {
            Problem::Version(found) => LedgerFileError::Version { path, found },
            Problem::Damage(problem) => LedgerFileError::Damaged { path, problem },
        })
    }

    /// Returns when what it writes would survive a crash of the machine.
    pub(super) fn write(&self, ledger: &impl Ledger, first_seen: &FirstSeen) -> Result<(), LedgerWriteError> {
        let (path, draft) = (self.path(), self.directory.join(DRAFT));
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| LedgerWriteError { path, source }
        };
        write_new(&draft, ledger, first_seen).map_err(at(&draft))?;
        fs::rename(&draft, &path).map_err(at(&path))?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(at(&self.directory))
    }
}

/// Whatever is in the way goes first: what a crash or a full disk left, or what others put there.
fn write_new(draft: &Path, ledger: &impl Ledger, first_seen: &FirstSeen) -> io::Result<()> {
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    let mut to = BufWriter::new(file);
    stored::render(&mut to, ledger, first_seen)?;
    to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lb_core::name::ServiceName;
    use lb_ipam::{Entry, Freed, Holders, PoolName, Timestamp};

    use super::*;

    fn remembered() -> Remembered {
        let (web, api) = (ServiceName::new("shop", "web"), ServiceName::new("shop", "api"));
        let at = Timestamp::from_millis;
        let freed = Freed { last: web.clone(), at: at(1), drained: at(2), rested: at(3), forgotten: at(u64::MAX) };
        let entries = [
            ("192.0.2.1", Entry::Held(Holders::one(web.clone()).with(&api))),
            ("192.0.2.2", Entry::Freed(Arc::new(freed))),
            ("192.0.2.3", Entry::Reserved("the gateway, \"gw\"".into())),
            ("2001:db8::1", Entry::Conflict("02:00:00:00:00:01".into())),
        ];
        let ledger = entries.into_iter().map(|(address, entry)| (address.parse().unwrap(), entry)).collect();
        let (pools, services) = ([(PoolName::new("blue"), at(7))].into(), [(api, at(8)), (web, at(9))].into());
        Remembered { ledger, first_seen: FirstSeen { pools, services } }
    }

    fn put(file: &LedgerFile, all: &Remembered) -> Result<(), LedgerWriteError> {
        file.write(&all.ledger, &all.first_seen)
    }

    #[test]
    fn a_ledger_survives() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::in_directory(directory.path());
        assert_eq!(file.read().unwrap(), Remembered::default());
        for all in [remembered(), Remembered::default(), remembered()] {
            put(&file, &all).unwrap();
            assert_eq!(file.read().unwrap(), all);
        }
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [NAME]);
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.contains("\n{\"address\":\"192.0.2.1\",\"held\":[\"shop/web\",\"shop/api\"]},\n"), "{text}");
    }

    #[test]
    fn a_ledger_of_the_version_before_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::in_directory(directory.path());
        let entry = r#"{"address":"192.0.2.1","held":["shop/web","shop/api"]}"#;
        fs::write(file.path(), format!(r#"{{"version":1,"pools":{{"blue":7}},"entries":[{entry}]}}"#)).unwrap();
        let read = file.read().unwrap();
        assert_eq!(read.first_seen, FirstSeen { services: [].into(), ..remembered().first_seen });
        assert_eq!(read.ledger.get([192, 0, 2, 1].into()), remembered().ledger.get([192, 0, 2, 1].into()));
    }

    #[test]
    fn a_draft_that_a_crash_left_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::in_directory(directory.path());
        put(&file, &remembered()).unwrap();
        let text = fs::read(file.path()).unwrap();
        for cut in [0, 1, text.len() / 2, text.len() - 1] {
            fs::write(directory.path().join("ledger.json.new"), &text[..cut]).unwrap();
            assert_eq!(file.read().unwrap(), remembered());
        }
        put(&file, &Remembered::default()).unwrap();
        assert_eq!(file.read().unwrap(), Remembered::default());
    }

    #[test]
    fn every_cut_of_the_file_itself_is_damage_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::in_directory(directory.path());
        put(&file, &remembered()).unwrap();
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
            (r#"{"version":3,"entries":[]}"#, "has version 3, and this program reads 2"),
            (r#"{"version":0,"entries":[]}"#, "has version 0"),
            (r#"{"version":2,"services":{"web":1},"entries":[]}"#, "`web` is no service"),
            (r#"{"entries":[]}"#, "missing field `version`"),
            (r#"{"version":1,"entries":[],"more":1}"#, "unknown field `more`"),
            (r#"{"version":1,"entries":[{"address":"192.0.2.1"}]}"#, "192.0.2.1: expected one of held, freed"),
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

    #[test]
    fn nothing_but_a_file_is_read_or_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let file = LedgerFile::in_directory(directory.path());
        let fifo = |name: &str| nix::unistd::mkfifo(&path(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = || file.read().unwrap_err().to_string();
        fifo(NAME);
        assert!(refused().contains("is not a regular file"), "{}", refused());
        fs::remove_file(path(NAME)).unwrap();
        fs::write(path("theirs"), "precious").unwrap();
        std::os::unix::fs::symlink("theirs", path(NAME)).unwrap();
        assert!(refused().contains("failed"), "{}", refused());
        // In the way of a draft, they are removed; what a link leads to is not written.
        let link = || std::os::unix::fs::symlink("theirs", path(DRAFT)).unwrap();
        let makers: [&dyn Fn(); 2] = [&|| fifo(DRAFT), &link];
        for make in makers {
            make();
            put(&file, &remembered()).unwrap();
            assert_eq!(file.read().unwrap(), remembered());
            assert_eq!(fs::read_to_string(path("theirs")).unwrap(), "precious");
        }
        fs::create_dir(path(DRAFT)).unwrap();
        let error = put(&file, &remembered()).unwrap_err().to_string();
        assert!(error.contains(DRAFT), "{error}");
    }
}
