//! Periods as people write them.

use std::{fmt, str::FromStr, time::Duration};

use jiff::SignedDuration;
use serde::Deserialize;

/// A time from 100 ms to 24 h, both included, such as `500ms`, `5s`, `2m`, `1h 30m` or `1.5h`.
///
/// It is read by [`jiff`]: units from `ns` to `h`, also in words (`5 minutes`), and ISO 8601 (`PT5M`). Every number
/// needs its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

/// A text that is not a time, or not one within the bounds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time from 100ms to 24h, such as 500ms, 5s, 2m or 1h")]
pub struct BadPeriod(String);

impl Period {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
}

impl FromStr for Period {
    type Err = BadPeriod;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let duration = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
        let within = |period: &Duration| (Self::SHORTEST..=Self::LONGEST).contains(period);
        duration.filter(within).map(Self).ok_or_else(|| BadPeriod(text.into()))
    }
}

impl TryFrom<String> for Period {
    type Error = BadPeriod;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_sensible_bounds() {
        let parse = |text: &str| text.parse::<Period>().map(|period| period.0.as_millis());
        assert_eq!(["100ms", "5s", "2m", "24h"].map(|text| parse(text).unwrap()), [100, 5000, 120_000, 86_400_000]);
        for text in ["", "5", "s", "-5s", "5d", "99ms", "25h", "0s", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse(text), Err(BadPeriod(text.into())));
        }
    }

    #[test]
    fn a_time_may_have_several_units_fractions_and_words() {
        let parse = |text: &str| text.parse::<Period>().map(|period| period.0.as_millis());
        for (text, milliseconds) in [
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("1.5s", 1500),
            ("5 s", 5000),
            ("2 minutes", 120_000),
            ("PT5S", 5000),
        ] {
            assert_eq!(parse(text), Ok(milliseconds), "{text}");
        }
        for text in ["1s 1h", "5s 5", "5 s ago", "1.5", "five seconds", "24h 1ms", "P1D"] {
            assert_eq!(parse(text), Err(BadPeriod(text.into())));
        }
    }
}
