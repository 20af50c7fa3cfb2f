//! Names with wildcards.

use std::{fmt, str::FromStr};

use globset::{GlobBuilder, GlobMatcher};
use serde::Deserialize;

/// A pattern that whole names match, such as `veth*`.
///
/// `*` stands for any number of characters, `?` for one, `[ab]` and `[a-z]` for one of those, `[!ab]` for one of all
/// others, and `{veth*,lxc*}` for either. A backslash takes the meaning from the character that follows it.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(GlobMatcher);

/// A text that is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a pattern such as veth*: {reason} (a backslash before a character takes it as it is)")]
pub struct BadPattern {
    pattern: String,
    reason: String,
}

impl Pattern {
    /// The pattern `text`, which is part of the program. What a user writes is [parsed](str::parse).
    ///
    /// # Panics
    /// When `text` is not a pattern.
    #[must_use]
    pub fn new(text: &'static str) -> Self {
        text.parse().expect("the program's own patterns are valid")
    }

    /// Whether the whole of `name` matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    fn as_str(&self) -> &str {
        self.0.glob().glob()
    }
}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let glob = GlobBuilder::new(text).backslash_escape(true).build();
        let bad = |error: globset::Error| BadPattern { pattern: text.into(), reason: error.kind().to_string() };
        glob.map(|glob| Self(glob.compile_matcher())).map_err(bad)
    }
}

impl TryFrom<String> for Pattern {
    type Error = BadPattern;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_all(cases: &[(&'static str, &str, bool)]) {
        for &(pattern, name, matches) in cases {
            assert_eq!(Pattern::new(pattern).matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn a_star_is_anything() {
        assert_all(&[
            ("veth*", "veth", true),
            ("veth*", "veth1a", true),
            ("veth*", "eth0", false),
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("*", "anything", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            // Neither a dot nor a slash is special: names are no paths.
            ("*", ".hidden", true),
            ("eth*", "eth0/1", true),
            ("eth0.*", "eth0.100", true),
        ]);
    }

    #[test]
    fn one_character_classes_and_alternatives_are_patterns_too() {
        assert_all(&[
            ("eth?", "eth0", true),
            ("eth?", "eth", false),
            ("eth?", "eth10", false),
            ("eth[01]", "eth1", true),
            ("eth[!01]", "eth1", false),
            ("eth[0-3]", "eth2", true),
            ("{veth*,lxc*}", "lxc12", true),
            ("{veth*,lxc*}", "cali12", false),
            ("eth\\*", "eth*", true),
            ("eth\\*", "eth0", false),
            ("Eth*", "eth0", false),
        ]);
    }

    #[test]
    fn a_text_that_is_no_pattern_is_refused_and_shown() {
        for text in ["eth[", "{veth*", "veth*}", "eth[9-0]"] {
            let error = text.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}` is not a pattern such as veth*: ")), "{error}");
        }
    }

    #[test]
    fn a_pattern_is_written_as_it_was_read() {
        let pattern: Pattern = serde_json::from_str("\"veth?*\"").unwrap();
        assert_eq!((pattern.to_string().as_str(), &pattern), ("veth?*", &Pattern::new("veth?*")));
        assert_ne!(pattern, Pattern::new("veth*"));
    }
}
