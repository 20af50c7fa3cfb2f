//! What agents come to by and by.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{error::RunError, interrupt};

/// How long agents may take to follow a change.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// How often they are asked.
const PACE: Duration = Duration::from_millis(5);

/// Looks until there is what is waited for; what is there in its place, if patience ends first.
pub(super) fn until<T>(
    mut look: impl FnMut() -> Result<Result<T, String>, RunError>,
) -> Result<Result<T, String>, RunError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        interrupt::check()?;
        match look()? {
            Err(_) if Instant::now() <= deadline => thread::sleep(PACE),
            seen => return Ok(seen),
        }
    }
}
