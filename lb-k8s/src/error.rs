//! Why a snapshot is rejected as a whole.

use std::{fmt, io};

use crate::{
    Finding, Origin, Position,
    limits::{MAX_DOCUMENTS, MAX_FILE_BYTES, MAX_FILES, MAX_OBJECTS, MAX_OPEN_ATTEMPTS, MAX_POOLS, MAX_TOTAL_BYTES},
};

/// Why a snapshot could not be read or parsed. Files are named as they are found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A file or directory cannot be read.
    #[error("{file}: reading it failed: {source}")]
    Io {
        /// The file.
        file: String,
        /// The error of the system.
        source: io::Error,
    },
    /// A file that was asked for by its own name is no regular file.
    #[error("{file}: it is {found}, expected a regular file")]
    NotRegular {
        /// The file.
        file: String,
        /// Its type.
        found: &'static str,
    },
    /// A symbolic link in a directory leads out of it.
    #[error(
        "{file}: the symbolic link leads out of its directory, to {target}: copy what it leads to, or make the link \
         relative and keep its target below the directory"
    )]
    Outside {
        /// The link.
        file: String,
        /// Where it leads.
        target: String,
    },
    /// A hard link that another user may have put into a directory.
    #[error(
        "{file}: the file has {links} names (hard links), and somebody who does not own it may have put this one here: \
         copy the file, or let its owner alone own and write the directory"
    )]
    HardLink {
        /// The file.
        file: String,
        /// How many names it has.
        links: u64,
    },
    /// A file was written whenever it was read.
    #[error(
        "{file}: the file changed while it was read, {MAX_OPEN_ATTEMPTS} times in a row: write another one and rename it \
         into place"
    )]
    Changing {
        /// The file.
        file: String,
    },
    /// A file is too large.
    #[error("{file}: the file is larger than {MAX_FILE_BYTES} bytes: split it")]
    FileTooLarge {
        /// The file.
        file: String,
    },
    /// The files together are too large.
    #[error("{file}: it and the files before it are larger than {MAX_TOTAL_BYTES} bytes together: remove some")]
    TotalTooLarge {
        /// The file that did not fit any more.
        file: String,
    },
    /// A directory has too many files.
    #[error("{directory}: there are more than {MAX_FILES} files: put several objects into one, or remove some")]
    TooManyFiles {
        /// The directory.
        directory: String,
    },
    /// A file has too many documents.
    #[error("{file}: there are more than {MAX_DOCUMENTS} documents in it: split it")]
    TooManyDocuments {
        /// The file.
        file: String,
    },
    /// The snapshot has too many objects.
    #[error("{file}: there are more than {MAX_OBJECTS} objects in it and the other files: remove some")]
    TooManyObjects {
        /// The file that did not fit any more.
        file: String,
    },
    /// The snapshot has too many pools.
    #[error(
        "{file}: there are more than {MAX_POOLS} pools in it and the other files: give some of them more blocks instead"
    )]
    TooManyPools {
        /// The file that did not fit any more.
        file: String,
    },
    /// A file is not text.
    #[error("{file}: byte {offset} is not UTF-8{}", Hint(.looks_like))]
    NotUtf8 {
        /// The file.
        file: String,
        /// The first byte that is not, from 0.
        offset: usize,
        /// What the file looks like and what to do about it, if that is known.
        looks_like: Option<&'static str>,
    },
    /// A document is neither YAML nor JSON, or exceeds a limit of its own.
    #[error("{}: {message}{}", Place(.origin, *.position), Hint(.looks_like))]
    Syntax {
        /// The document.
        origin: Origin,
        /// Where, if that is known.
        position: Option<Position>,
        /// The message of the parser.
        message: String,
        /// What the file looks like and what to do about it, if that is known.
        looks_like: Option<&'static str>,
    },
    /// A document is not a Kubernetes object.
    #[error("{}: no Kubernetes object: {message}", Place(.origin, *.position))]
    NotAnObject {
        /// The document.
        origin: Origin,
        /// Where it begins, if that is known.
        position: Option<Position>,
        /// The part that is missing, what the document looks like, and what to do.
        message: String,
    },
    /// The name or the namespace of an object has a wrong type, so that nobody knows which object stays as it last was.
    /// Every other wrong type refuses its object alone.
    #[error("{0}")]
    Type(Box<Finding>),
}

impl SnapshotError {
    /// The file or directory that it is about.
    #[must_use]
    pub fn file(&self) -> &str {
        match self {
            Self::Io { file, .. }
            | Self::NotRegular { file, .. }
            | Self::Outside { file, .. }
            | Self::HardLink { file, .. }
            | Self::Changing { file }
            | Self::FileTooLarge { file }
            | Self::TotalTooLarge { file }
            | Self::TooManyFiles { directory: file }
            | Self::TooManyDocuments { file }
            | Self::TooManyObjects { file }
            | Self::TooManyPools { file }
            | Self::NotUtf8 { file, .. } => file,
            Self::Syntax { origin, .. } | Self::NotAnObject { origin, .. } => &origin.file,
            Self::Type(finding) => &finding.object.origin.file,
        }
    }

    /// Where in the file, if that is known.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Syntax { position, .. } | Self::NotAnObject { position, .. } => *position,
            Self::Type(finding) => finding.position,
            _ => None,
        }
    }

    /// Whether it is about one file, which can be left out: it can neither be a limit nor a directory.
    pub(crate) fn is_about_a_file(&self) -> bool {
        match self {
            Self::Io { .. }
            | Self::NotRegular { .. }
            | Self::Outside { .. }
            | Self::HardLink { .. }
            | Self::Changing { .. }
            | Self::NotUtf8 { .. }
            | Self::Syntax { .. }
            | Self::NotAnObject { .. }
            | Self::Type(_) => true,
            Self::FileTooLarge { .. }
            | Self::TotalTooLarge { .. }
            | Self::TooManyFiles { .. }
            | Self::TooManyDocuments { .. }
            | Self::TooManyObjects { .. }
            | Self::TooManyPools { .. } => false,
        }
    }

    /// Whether it is about one object of a file; the others of the file are read.
    #[must_use]
    pub fn is_about_an_object(&self) -> bool {
        matches!(self, Self::NotAnObject { .. } | Self::Type(_))
    }
}

struct Place<'a>(&'a Origin, Option<Position>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { file, document, item } = self.0;
        f.write_str(file)?;
        if let Some(Position { line, column }) = self.1 {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": document {document}")?;
        if item.is_empty() { Ok(()) } else { write!(f, ", {item}") }
    }
}

struct Hint<'a>(&'a Option<&'static str>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}
