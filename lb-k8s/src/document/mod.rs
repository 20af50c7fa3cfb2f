//! Files to documents, documents to values.

pub(crate) mod guess;
pub(crate) mod locate;
pub(crate) mod object;
mod tree;

use serde::de::DeserializeSeed;
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Error, MessageFormatter, UserMessageFormatter, budget::BudgetBreach};

use tree::{Node, Tree};

use crate::{
    Position,
    limits::{MAX_ALIAS_NODES, MAX_DEPTH, MAX_NODES},
    text::shown,
};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Yaml,
    Json,
}

impl Format {
    /// By the file's extension: JSON for `.json`, YAML for everything else.
    pub(crate) fn of(file: &str) -> Self {
        if file.ends_with(".json") { Self::Json } else { Self::Yaml }
    }
}

/// One YAML document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    /// Its text, its `---` included.
    pub(crate) text: &'a str,
    /// Lines of the file before it.
    pub(crate) lines_before: u64,
}

/// The error of a document that cannot be parsed.
#[derive(Debug)]
pub(crate) struct BadSyntax {
    pub(crate) position: Option<Position>,
    pub(crate) message: String,
}

/// The documents of a YAML file that have content.
///
/// A line that begins with `---` and a blank ends a document wherever it stands, inside of scalars too (YAML 1.2.2,
/// section 9.1.2), so splitting by lines is exact.
pub(crate) fn chunks(text: &str) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines_before = 0;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(end_of_document(rest));
            let chunk = Chunk { text: head, lines_before };
            rest = tail;
            lines_before += lines(head);
            if head.lines().any(is_content) {
                return Some(chunk);
            }
        }
        None
    })
}

fn end_of_document(text: &str) -> usize {
    let mut end = text.find('\n').map_or(text.len(), |line_end| line_end + 1);
    while end < text.len() && !is_marker(&text[end..]) {
        end += text[end..].find('\n').map_or(text.len() - end, |line_end| line_end + 1);
    }
    end
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn is_content(line: &str) -> bool {
    let line = if is_marker(line) { &line[3..] } else { line };
    let is_directive = line.starts_with('%');
    let line = line.trim();
    !line.is_empty() && line != "..." && !line.starts_with('#') && !is_directive
}

/// The value of a YAML document.
pub(crate) fn parse_yaml(chunk: Chunk<'_>) -> Result<Value, BadSyntax> {
    let mut left = Node::BUDGET;
    serde_saphyr::with_deserializer_from_str_with_options(chunk.text, yaml_options(), |deserializer| {
        Node::root(&mut left).deserialize(deserializer)
    })
    .map_err(|error| bad_yaml(&error, chunk))
}

/// How YAML is read: as `kubectl` does, within the limits.
pub(crate) fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_recorded_anchor_events: 10 * MAX_ALIAS_NODES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIAS_NODES,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        with_snippet: false,
    }
}

fn bad_yaml(error: &Error, chunk: Chunk<'_>) -> BadSyntax {
    let position = error
        .location()
        .filter(|location| location.line() > 0)
        .map(|location| Position { line: location.line() + chunk.lines_before, column: location.column() });
    let mut error = error;
    while let Error::AliasError { error: inner, .. } = error {
        error = inner;
    }
    BadSyntax { position, message: yaml_message(error) }
}

/// The error message. Limits read the same for YAML and JSON.
fn yaml_message(error: &Error) -> String {
    let said = UserMessageFormatter.format_message(error);
    match error {
        Error::AliasReplayLimitExceeded { .. } => format!("aliases repeat more than {MAX_ALIAS_NODES} values; {SPLIT}"),
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => tree::too_deep(),
        // The scanner counts brackets before there is anything to count for others.
        _ if said == "recursion limit exceeded" => tree::too_deep(),
        Error::Budget { breach: BudgetBreach::Nodes { .. }, .. } => format!("{}; {SPLIT}", tree::too_many()),
        Error::Budget { .. } => format!("{}; {SPLIT}", shown(&said)),
        _ => shown(&said),
    }
}

/// The remedy for a document that exceeds a limit.
const SPLIT: &str = "split it into documents, or write out what aliases repeat";

/// The values of a JSON file and the lines that they begin in, one after the other, up to the first error.
pub(crate) fn parse_json(text: &str) -> impl Iterator<Item = Result<(Value, u64), BadSyntax>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut failed = false;
    let (mut end, mut line) = (0, 1);
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Tree>();
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let rest = &text[end..];
        let blank = &rest[..rest.len() - rest.trim_start().len()];
        let begins = line + lines(blank);
        let value = values.next()?.map(|Tree(value)| (value, begins)).map_err(|error| bad_json(&error));
        line += lines(&text[end..values.byte_offset()]);
        end = values.byte_offset();
        failed = value.is_err();
        Some(value)
    })
}

fn lines(text: &str) -> u64 {
    text.bytes().filter(|&byte| byte == b'\n').count() as u64
}

fn bad_json(error: &serde_json::Error) -> BadSyntax {
    let position = Position { line: error.line() as u64, column: error.column() as u64 };
    let text = error.to_string();
    let message = text.split(" at line ").next().unwrap_or_default();
    BadSyntax { position: Some(position), message: shown(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        chunks(text).map(|chunk| chunk.text).collect()
    }

    #[test]
    fn documents_end_at_markers() {
        assert_eq!(texts("a: 1\n---\nb: 2\n--- # c\nc: 3"), ["a: 1\n", "---\nb: 2\n", "--- # c\nc: 3"]);
        assert_eq!(texts("a: |\n  x\n---b: 1\n"), ["a: |\n  x\n---b: 1\n"]);
        assert_eq!(texts("--- {a: 1}\r\n---\r\nb: 1\r\n"), ["--- {a: 1}\r\n", "---\r\nb: 1\r\n"]);
    }

    #[test]
    fn documents_without_content_do_not_count() {
        assert_eq!(texts("\u{feff}# licence\n---\n\n---\n# only a comment\n...\n---\na: 1\n"), ["---\na: 1\n"]);
        assert_eq!(texts("%YAML 1.2\n---\na: 1\n"), ["---\na: 1\n"]);
        assert_eq!(texts(""), [""; 0]);
    }

    #[test]
    fn chunks_know_their_line() {
        let lines: Vec<_> = chunks("# x\n---\na: 1\n---\nb: 1\n").map(|chunk| chunk.lines_before).collect();
        assert_eq!(lines, [1, 3]);
    }

    #[test]
    fn a_second_document_behind_an_end_marker_is_an_error() {
        let chunk = Chunk { text: "a: 1\n...\nb: 2\n", lines_before: 0 };
        assert!(parse_yaml(chunk).is_err());
    }

    #[test]
    fn positions_count_from_the_file() {
        let chunk = Chunk { text: "a: [1\n", lines_before: 10 };
        let error = parse_yaml(chunk).unwrap_err();
        assert!(error.position.is_some_and(|position| position.line > 10), "{error:?}");
    }

    #[test]
    fn repeated_keys_are_errors_in_both_formats() {
        assert!(parse_yaml(Chunk { text: "a: 1\na: 2\n", lines_before: 0 }).is_err());
        let error = parse_json("{\"a\": 1,\n \"a\": 2}").next().unwrap().unwrap_err();
        assert_eq!(error.message, "the key \"a\" appears twice");
        assert_eq!(error.position, Some(Position { line: 2, column: 4 }));
    }

    #[test]
    fn json_documents_follow_one_another() {
        let lines: Vec<_> = parse_json("\n{\"a\":\n1}\n{\"b\": 2}\n").map(|value| value.unwrap().1).collect();
        assert_eq!(lines, [2, 4]);
        let mut broken = parse_json("{\"a\": 1}\n{\"b\"");
        assert!(broken.next().unwrap().is_ok());
        assert!(broken.next().unwrap().is_err());
        assert!(broken.next().is_none());
    }

    #[test]
    fn nesting_is_limited() {
        for depth in [MAX_DEPTH, MAX_DEPTH + 1] {
            let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let fits = depth == MAX_DEPTH;
            assert_eq!(parse_yaml(Chunk { text: &text, lines_before: 0 }).is_ok(), fits, "yaml {depth}");
            assert_eq!(parse_json(&text).next().unwrap().is_ok(), fits, "json {depth}");
        }
        let deep = "[".repeat(1_000_000);
        let says = "more than 64 mappings and sequences inside one another; nest it less deeply, or look for brackets that \
                    are not closed";
        assert_eq!(parse_json(&deep).next().unwrap().unwrap_err().message, says);
        for deep in [deep, "{a: ".repeat(1000), "- ".repeat(1000), "? ".repeat(1000), blocks(1000)] {
            assert_eq!(parse_yaml(Chunk { text: &deep, lines_before: 0 }).unwrap_err().message, says, "{deep:.20}");
        }
    }

    fn blocks(depth: usize) -> String {
        (0..depth).map(|level| format!("{}a:\n", " ".repeat(level))).collect()
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let alias = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", "));
        }
        let error = parse_yaml(Chunk { text: &text, lines_before: 0 }).unwrap_err();
        let says = "aliases repeat more than 10000 values; split it into documents, or write out what aliases repeat";
        assert_eq!(error.message, says);
    }

    #[test]
    fn a_few_aliases_are_fine() {
        let value = parse_yaml(Chunk { text: "a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 2\n", lines_before: 0 }).unwrap();
        assert_eq!(value, serde_json::json!({"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}));
    }
}
