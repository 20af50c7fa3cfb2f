//! The output of `iptables-save`, as chains of rules. Pure.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

/// A table as `iptables-save` prints it.
#[derive(Debug, Default)]
pub(crate) struct SavedTable {
    chains: BTreeMap<String, Vec<Rule>>,
}

impl SavedTable {
    /// Reads one table; lines that are neither chains nor rules are skipped.
    pub(crate) fn parse(text: &str) -> Self {
        let mut chains: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
                chains.entry(chain.to_owned()).or_default();
            } else if let Some(rest) = line.strip_prefix("-A ") {
                let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
                chains.entry(chain.to_owned()).or_default().push(Rule(words(rule)));
            }
        }
        Self { chains }
    }

    /// The rules of a chain, none if it does not exist.
    pub(crate) fn rules(&self, chain: &str) -> &[Rule] {
        self.chain(chain).unwrap_or_default()
    }

    /// The rules of a chain, if it exists.
    pub(crate) fn chain(&self, chain: &str) -> Option<&[Rule]> {
        self.chains.get(chain).map(Vec::as_slice)
    }

    /// The rules of a chain, none if it does not exist.
    pub(crate) fn into_rules(mut self, chain: &str) -> Vec<Rule> {
        self.chains.remove(chain).unwrap_or_default()
    }

    /// Every chain with its rules.
    pub(crate) fn chains(&self) -> impl Iterator<Item = (&str, &[Rule])> {
        self.chains.iter().map(|(name, rules)| (name.as_str(), rules.as_slice()))
    }
}

/// A rule as the words of its command line, without chain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule(Vec<String>);

impl Rule {
    /// The rule in a line without its chain.
    pub(crate) fn parse(line: &str) -> Self {
        Self(words(line))
    }

    /// Its words.
    pub(crate) fn words(&self) -> &[String] {
        &self.0
    }

    /// The word after `option`.
    pub(crate) fn value(&self, option: &str) -> Option<&str> {
        let index = self.0.iter().position(|word| word == option)?;
        self.0.get(index + 1).map(String::as_str)
    }

    /// Whether `option` is among its words.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.0.iter().any(|word| word == option)
    }

    /// Where it jumps.
    pub(crate) fn target(&self) -> Option<&str> {
        self.value("-j")
    }

    /// Its comment.
    pub(crate) fn comment(&self) -> Option<&str> {
        self.value("--comment")
    }
}

/// As `iptables-restore` reads it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_char(' ')?;
            }
            if word.is_empty() || word.contains([' ', '"', '\\', '\'']) {
                write!(f, "\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))?;
            } else {
                f.write_str(word)?;
            }
        }
        Ok(())
    }
}

/// Splits at spaces outside of double quotes; in quotes a backslash escapes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
                (word.to_owned(), after)
            }
        };
        words.push(word);
        rest = after.trim_start();
    }
    words
}

fn unquote(text: &str) -> (String, &str) {
    let mut word = String::new();
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return (word, &text[index + 1..]),
            '\\' => word.extend(chars.next().map(|(_, escaped)| escaped)),
            c => word.push(c),
        }
    }
    (word, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_found_by_chain_and_option() {
        let table = SavedTable::parse(
            "# Generated\n*nat\n:PREROUTING ACCEPT [1:2]\n:LB-SERVICES - [0:0]\n\
             -A LB-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"f1 - a/b\" -j LB-MARK-REJECT\nCOMMIT\n",
        );
        let [rule] = table.rules("LB-SERVICES") else { panic!("{table:?}") };
        assert_eq!(rule.value("-d"), Some("10.96.0.1/32"));
        assert_eq!(rule.comment(), Some("f1 - a/b"));
        assert_eq!(rule.target(), Some("LB-MARK-REJECT"));
        assert!(!rule.has("--rcheck"));
        assert_eq!(table.chains().count(), 2);
        assert!(table.rules("PREROUTING").is_empty() && table.rules("OUTPUT").is_empty());
    }

    #[test]
    fn words_in_quotes_keep_spaces_and_escapes() {
        assert_eq!(words(r#"a  "b \"c\" \\" "" d"#), ["a", r#"b "c" \"#, "", "d"]);
        assert_eq!(words(r#""open"#), ["open"]);
    }
}
