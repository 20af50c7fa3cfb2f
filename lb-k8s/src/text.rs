//! Text from outside, made fit for a terminal or a log.

use std::path::Path;

use crate::limits::MAX_SHOWN;

/// `text` with everything escaped that does not print, cut after 128 characters.
pub(crate) fn shown(text: &str) -> String {
    escaped(text, MAX_SHOWN)
}

/// The same for the path of a file, uncut.
pub(crate) fn shown_path(path: &Path) -> String {
    escaped(&path.to_string_lossy(), usize::MAX)
}

fn escaped(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for (count, c) in text.chars().enumerate() {
        if count == limit {
            out.push('…');
            break;
        }
        if matches!(c, '"' | '\'') { out.push(c) } else { out.extend(c.escape_debug()) }
    }
    out
}

/// The same in quotes, for values inside a message.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped() {
        assert_eq!(shown("a\u{1b}[31mb\u{202e}c\nd"), "a\\u{1b}[31mb\\u{202e}c\\nd");
        assert_eq!(quoted("it's"), "\"it's\"");
    }

    #[test]
    fn long_text_is_cut() {
        let text = shown(&"x".repeat(MAX_SHOWN + 1));
        assert_eq!(text.chars().count(), MAX_SHOWN + 1);
        assert!(text.ends_with('…'));
    }
}
