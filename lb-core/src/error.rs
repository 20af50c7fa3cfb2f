//! Errors as people read them.

use alloc::string::{String, ToString};
use core::error::Error;

/// An error and every cause below it in one line, such as `map could not be pinned: permission denied`.
///
/// A cause is left out if the line already ends with it, since many errors repeat their cause in their own message.
///
/// ```
/// use lb_core::{
///     datapath::{DatapathError, ErrorKind},
///     error::report,
/// };
///
/// let cause = DatapathError::new(ErrorKind::Permission, "operation not permitted");
/// let error = DatapathError::new(ErrorKind::Permission, "cannot load programs").with_source(cause);
/// assert_eq!(report(&error), "cannot load programs: operation not permitted");
/// ```
#[must_use]
pub fn report(error: &dyn Error) -> String {
    report_from(error.to_string(), error.source())
}

/// The same for a message whose cause is not in it yet.
pub(crate) fn report_from(mut line: String, mut cause: Option<&(dyn Error + 'static)>) -> String {
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use core::fmt;

    use super::*;

    #[derive(Debug)]
    struct Level(&'static str, Option<&'static Self>);

    impl fmt::Display for Level {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Level {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.map(|cause| cause as _)
        }
    }

    #[test]
    fn a_report_names_every_cause_once() {
        const OS: Level = Level("no such file", None);
        const OPEN: Level = Level("cannot open /x: no such file", Some(&OS));
        assert_eq!(report(&OS), "no such file");
        assert_eq!(report(&OPEN), "cannot open /x: no such file");
        assert_eq!(report(&Level("cannot start", Some(&OPEN))), "cannot start: cannot open /x: no such file");
    }
}
