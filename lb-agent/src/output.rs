//! Answers on standard output: tables for people, JSON and YAML for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people; may change.
    #[default]
    Table,
    /// For programs; keys are only ever added.
    Json,
    /// The same keys as JSON.
    Yaml,
}

/// Writes `value` as `format` says; `table` makes the table.
pub(crate) fn write(format: Format, value: &impl Serialize, table: impl FnOnce() -> String) -> io::Result<()> {
    let text = match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => serde_saphyr::to_string(value).map_err(io::Error::other)?,
    };
    write_text(&text)
}

/// Writes `text`. That nobody reads on, as in `lb service list | head -1`, is no error.
pub(crate) fn write_text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Whether standard error is a terminal, for progress.
#[cfg(feature = "lab")]
pub(crate) fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
}

/// Rows under a heading, in columns that are as wide as they must be.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(String::from).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}   "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Without control characters: what others wrote must not steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    let show = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    if text.is_empty() { "-".into() } else { text.chars().map(show).collect() }
}

/// A number of things: `1 service`, `2 services`.
pub(crate) fn count(number: impl std::fmt::Display + PartialEq + From<u8>, thing: &str) -> String {
    let plural = if number == 1.into() { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!([0_u64, 1, 2].map(|number| count(number, "rule")), ["0 rules", "1 rule", "2 rules"]);
    }

    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let mut table = Table::new(["NAME", "N"]);
        assert!(table.is_empty());
        table.row(["default/web".into(), "2".into()]);
        table.row(["ü".into(), String::new()]);
        assert_eq!(table.to_string(), "NAME          N\ndefault/web   2\nü             -\n");
    }

    #[test]
    fn control_characters_are_shown_rather_than_sent() {
        assert_eq!(printable("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
    }
}
