//! How much there is of what the limits of a snapshot are about.

use std::ops::{Add, Sub};

use crate::{
    SnapshotError,
    limits::{MAX_OBJECTS, MAX_POOLS, MAX_TOTAL_BYTES},
};

/// How much a file has, or all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// Objects of every kind.
    pub(crate) objects: usize,
    /// Pools of every kind.
    pub(crate) pools: usize,
    pub(crate) bytes: u64,
}

impl Amounts {
    /// Whether a snapshot may have this much up to and with `file`.
    pub(crate) fn check(self, file: impl FnOnce() -> String) -> Result<(), SnapshotError> {
        if self.objects > MAX_OBJECTS {
            return Err(SnapshotError::TooManyObjects { file: file() });
        }
        if self.pools > MAX_POOLS {
            return Err(SnapshotError::TooManyPools { file: file() });
        }
        if self.bytes > MAX_TOTAL_BYTES {
            return Err(SnapshotError::TotalTooLarge { file: file() });
        }
        Ok(())
    }
}

impl Add for Amounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let Self { objects, pools, bytes } = other;
        Self { objects: self.objects + objects, pools: self.pools + pools, bytes: self.bytes + bytes }
    }
}

impl Sub for Amounts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let Self { objects, pools, bytes } = other;
        Self { objects: self.objects - objects, pools: self.pools - pools, bytes: self.bytes - bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_checked_at_their_limits() {
        let most = Amounts { objects: MAX_OBJECTS, pools: MAX_POOLS, bytes: MAX_TOTAL_BYTES };
        let check = |amounts: Amounts| amounts.check(|| "x".into());
        assert!(check(most).is_ok());
        let objects = check(Amounts { objects: MAX_OBJECTS + 1, ..most });
        assert!(matches!(objects, Err(SnapshotError::TooManyObjects { .. })));
        let pools = check(Amounts { pools: MAX_POOLS + 1, ..most });
        assert!(matches!(pools, Err(SnapshotError::TooManyPools { .. })));
        let bytes = check(Amounts { bytes: MAX_TOTAL_BYTES + 1, ..most });
        assert!(matches!(bytes, Err(SnapshotError::TotalTooLarge { .. })));
    }
}
