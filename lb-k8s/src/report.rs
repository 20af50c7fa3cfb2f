//! Findings about a snapshot.

use std::{fmt, ops::AddAssign, sync::Arc};

use crate::{SnapshotError, pools};

/// Where an object stands in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// Number of its document, from 1; documents without content do not count.
    pub document: u32,
    /// Path of the item inside a list, such as `items[3]`; empty outside of one.
    pub item: Arc<str>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {}", self.file, self.document)?;
        if self.item.is_empty() { Ok(()) } else { write!(f, ", {}", self.item) }
    }
}

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line of the file.
    pub line: u64,
    /// Character of the line.
    pub column: u64,
}

/// An object as it names itself, made fit for a terminal. Displays as `Service default/web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// Group and version, such as `discovery.k8s.io/v1`.
    pub api_version: String,
    /// Its kind, such as `Service`.
    pub kind: String,
    /// Its namespace; empty for an object that has none.
    pub namespace: String,
    /// Its name; empty if it has none.
    pub name: String,
    /// The name of the service in its namespace whose endpoints it has; empty for everything but an `EndpointSlice`
    /// that names one, and `Endpoints`.
    pub service: String,
    /// Where it stands.
    pub origin: Origin,
}

impl ObjectRef {
    /// Whether objects of its kind describe pools of addresses.
    #[must_use]
    pub fn is_pool(&self) -> bool {
        pools::KINDS.contains(&&*self.kind)
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        match (self.namespace.as_str(), self.name.as_str()) {
            (_, "") => f.write_str(" without a name"),
            ("", name) => write!(f, " {name}"),
            (namespace, name) => write!(f, " {namespace}/{name}"),
        }
    }
}

/// A fact about an object that its author should know.
///
/// Displays as ``web.yaml:14:9: document 2, Service default/web, field `spec.ports[0].port`: …``.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub object: ObjectRef,
    /// Path of the field, such as `spec.ports[0].port`; empty when it is about the whole object.
    pub field: String,
    /// Where the field stands, if that is known.
    pub position: Option<Position>,
    /// The fact.
    pub message: String,
    /// Whether more is let in by this than the object asks for.
    pub exposes: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { file, document, item } = &self.object.origin;
        f.write_str(file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": document {document}")?;
        if !item.is_empty() {
            write!(f, ", {item}")?;
        }
        write!(f, ", {}", self.object)?;
        if !self.field.is_empty() {
            write!(f, ", field `{}`", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// An object that is invalid and was refused alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The object and the reason.
    pub finding: Arc<Finding>,
    /// The state that is in force instead.
    pub instead: Instead,
}

/// The state that is in force instead of an object that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Its last good state.
    LastGood,
    /// Nothing: it never had one. An allocator [leaves a service its addresses](lb_ipam::Edit::KeepService).
    Nothing,
    /// A disabled pool, so that no service loses an address over a mistake: the pool never had a last good state.
    Disabled,
    /// The first object of the same name.
    First,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = match self.instead {
            Instead::LastGood => "its last good state stays",
            Instead::Nothing | Instead::First => "it is left out",
            Instead::Disabled => "it allocates nothing until that is corrected",
        };
        write!(f, "{}; {rest}", self.finding)
    }
}

/// A file, or a document of one, that could not be read; everything else is in force.
#[derive(Clone, Debug)]
pub struct Unread {
    /// Where and why.
    pub error: Arc<SnapshotError>,
    /// What is in force instead: what the file held before, or nothing.
    pub instead: Instead,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = match (self.instead, self.error.is_about_an_object()) {
            (Instead::LastGood, false) => "what the file held before stays as it last was",
            (Instead::LastGood, true) => "what the file held before and does not name now stays as it last was",
            (_, false) => "the file is left out",
            (_, true) => "it is left out",
        };
        write!(f, "{}; {rest}", self.error)
    }
}

/// Everything that was not accepted, and why.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Documents that have content, whether they can be read or not.
    pub documents: usize,
    /// Why the newest snapshot was rejected as a whole; the rest of the report is about the last good one.
    pub rejected: Option<Arc<SnapshotError>>,
    /// Files that could not be read as a whole, and documents that are no objects: the others are in force.
    pub unread: Vec<Unread>,
    /// Objects that are not for this proxy: unknown kinds, and objects that another proxy serves.
    pub skipped: Vec<Arc<Finding>>,
    /// Fields that are set, would change traffic, and are not supported. Where nobody
    /// [allocates](crate::Manifests::allocating) addresses, pools and what asks for addresses are among them.
    pub unsupported: Vec<Arc<Finding>>,
    /// Invalid objects.
    pub refused: Vec<Refusal>,
    /// Findings beyond those that are listed without which more is let in: the first one of each object, without its
    /// position.
    pub exposing: Vec<Arc<Finding>>,
    /// Refusals beyond those that are listed, of objects that have names, without their positions.
    pub also_refused: Vec<Refusal>,
    /// How many more findings there are than the
    /// [`MAX_FINDINGS_PER_FILE`](crate::limits::MAX_FINDINGS_PER_FILE) that are listed for a file, or the
    /// [`MAX_FINDINGS`](crate::limits::MAX_FINDINGS) for all files. Those of [`exposing`](Self::exposing) and
    /// [`also_refused`](Self::also_refused) are among them.
    pub unlisted: Unlisted,
    /// Entries of directories that are not manifests: by name, or pipes, sockets and devices, with the reason. The last
    /// line counts those that are more than
    /// [`MAX_IGNORED_FILES`](crate::limits::MAX_IGNORED_FILES).
    pub ignored_files: Vec<String>,
}

/// Numbers of findings that are not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlisted {
    /// Of [`Report::unread`].
    pub unread: usize,
    /// Of [`Report::skipped`].
    pub skipped: usize,
    /// Of [`Report::unsupported`].
    pub unsupported: usize,
    /// Of [`Report::refused`].
    pub refused: usize,
}

impl Unlisted {
    /// All of them.
    #[must_use]
    pub fn sum(&self) -> usize {
        self.unread + self.skipped + self.unsupported + self.refused
    }
}

impl AddAssign for Unlisted {
    fn add_assign(&mut self, other: Self) {
        self.unread += other.unread;
        self.skipped += other.skipped;
        self.unsupported += other.unsupported;
        self.refused += other.refused;
    }
}

impl Report {
    /// Whether everything was accepted as it stands.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let listed = self.unread.len() + self.skipped.len() + self.unsupported.len() + self.refused.len();
        self.rejected.is_none() && listed + self.unlisted.sum() == 0
    }
}
