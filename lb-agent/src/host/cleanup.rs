//! Removes a datapath of an earlier agent, and says what is known to be gone.

use std::path::PathBuf;

use lb_core::{
    datapath::{DatapathError, ErrorKind},
    error::report,
};

use super::{mounts, owner::Owner, place::Whereabouts, state_dir::Used};
use crate::driver::DatapathKind;

/// What became of a datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cleaned {
    /// It was there and is not there any more: what was removed, if its kind can tell.
    Removed(Vec<String>),
    /// Nothing of it was there, and why if that is not a matter of looking.
    Absent(Option<String>),
    /// Nobody looked, so that it may be there.
    NotInspected {
        /// Why not.
        why: String,
        /// The network namespace that it is in, if that is known.
        namespace: Option<PathBuf>,
    },
    /// Something of it is there, or may be.
    Failed(String),
}

impl Cleaned {
    /// Whether it is known that nothing is left.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::Removed(_) | Self::Absent(_))
    }
}

/// Removes `used`, of this kind, if this thread sees where it is. With `force` it does so while an agent runs.
#[must_use]
pub fn clean_up(used: &Used, kind: DatapathKind, force: bool) -> Cleaned {
    match used.whereabouts() {
        Whereabouts::Here => remove(used, kind, force).unwrap_or_else(Cleaned::Failed),
        Whereabouts::Gone(why) => Cleaned::Absent(Some(why)),
        Whereabouts::Namespace(path) => Cleaned::NotInspected {
            why: format!("it is in another network namespace, {}", path.display()),
            namespace: Some(path),
        },
        Whereabouts::Hidden(why) => Cleaned::NotInspected { why, namespace: None },
    }
}

/// Whether somebody can inspect `used` though [`clean_up`] did not: where this thread is, in a network namespace that is
/// there, or where the file systems below `/sys` are mounted. Such a datapath is not to be forgotten.
#[must_use]
pub fn is_within_reach(used: &Used) -> bool {
    match used.whereabouts() {
        // An earlier version did not record where it is.
        Whereabouts::Here => used.place.is_some(),
        Whereabouts::Namespace(_) => true,
        Whereabouts::Hidden(_) => used.pin_dir().starts_with("/sys") && mounts::hidden_sys().is_some(),
        Whereabouts::Gone(_) => false,
    }
}

fn remove(used: &Used, kind: DatapathKind, force: bool) -> Result<Cleaned, String> {
    let _owner = if force { None } else { Some(Owner::claim(kind).map_err(|error| report(&error))?) };
    let failed = |error: DatapathError| error.report();
    let look = || kind.traces(used.pin_dir());
    let before = match look() {
        // Such as for want of a program that lists rules. Who lacks the permission to look can do better.
        Err(error) if error.kind() != ErrorKind::Permission => {
            return Ok(Cleaned::NotInspected { why: error.report(), namespace: None });
        }
        before => before.map_err(failed)?,
    };
    if before.as_ref().is_some_and(Vec::is_empty) {
        return Ok(match used.place {
            None if used.pin_dir.is_none() && kind.carries_packets() => Cleaned::NotInspected {
                why: "it is not in this network namespace, and an earlier version of lb did not record which one it is in"
                    .into(),
                namespace: None,
            },
            _ => Cleaned::Absent(None),
        });
    }
    kind.cleanup(used.pin_dir()).map_err(failed)?;
    let left = look().map_err(|error| format!("whether anything is left is not known: {}", error.report()))?;
    match left {
        Some(left) if !left.is_empty() => Err(format!("still there after the clean-up: {}", left.join(", "))),
        Some(_) | None => Ok(Cleaned::Removed(before.unwrap_or_default())),
    }
}
