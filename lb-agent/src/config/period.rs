//! Times as people write them.

use std::{fmt, str::FromStr, time::Duration};

use serde::Deserialize;

/// A time such as `500ms`, `5s`, `2m` or `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

/// What is not a time.
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
        let bad = || BadPeriod(text.into());
        let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(unit);
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        let period = Duration::from_millis(number.checked_mul(milliseconds).ok_or_else(bad)?);
        if (Self::SHORTEST..=Self::LONGEST).contains(&period) { Ok(Self(period)) } else { Err(bad()) }
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
        for text in
            ["", "5", "s", "-5s", "5 s", "5d", "99ms", "25h", "0s", "99999999999999999999s", "18446744073709551615h"]
        {
            assert_eq!(parse(text), Err(BadPeriod(text.into())));
        }
    }
}
