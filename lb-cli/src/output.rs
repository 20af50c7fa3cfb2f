//! Answers on standard output: tables for people, JSON and YAML for programs.

use std::{
    io::{self, Write},
    time::Duration,
};

use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Format of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people; the layout may change.
    #[default]
    Table,
    /// For programs; later versions only add keys.
    Json,
    /// The same keys as JSON.
    Yaml,
}

/// Format of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// Columns for people, cut to the width of the terminal; the layout may change.
    #[default]
    Table,
    /// More columns, and nothing is cut.
    Wide,
    /// Names alone, one in each line.
    Name,
    /// For programs; later versions only add keys.
    Json,
    /// The same keys as JSON.
    Yaml,
}

impl ListFormat {
    /// The format of one object; `None` for its name alone.
    pub(crate) fn whole(self) -> Option<Format> {
        match self {
            Self::Table | Self::Wide => Some(Format::Table),
            Self::Name => None,
            Self::Json => Some(Format::Json),
            Self::Yaml => Some(Format::Yaml),
        }
    }
}

/// Writes `value` as `format` says; `table` makes the table.
pub(crate) fn write(format: Format, value: &impl Serialize, table: impl FnOnce() -> String) -> io::Result<()> {
    let text = match format {
        Format::Table => printable_lines(&table()),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => serde_saphyr::to_string(value).map_err(io::Error::other)?,
    };
    write_text(&text)
}

/// Writes a list as `format` says; `name` names an item, and `table` makes the table, the wide one if that is true.
pub(crate) fn write_list<T: Serialize>(
    format: ListFormat,
    items: &[T],
    name: impl Fn(&T) -> String,
    table: impl FnOnce(bool) -> String,
) -> io::Result<()> {
    match format.whole() {
        Some(whole) => write(whole, &items, || table(format == ListFormat::Wide)),
        None => write_text(&items.iter().map(|item| printable(&name(item)) + "\n").collect::<String>()),
    }
}

/// Columns of the terminal that standard output is, or of the variable `COLUMNS`; `None` if neither says.
pub(crate) fn terminal_width() -> Option<usize> {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    said.or_else(|| Some(rustix::termios::tcgetwinsize(io::stdout()).ok()?.ws_col.into())).filter(|&width| width > 0)
}

/// Writes `text`. That nobody reads on, as in `lb service list | head -1`, is no error.
pub(crate) fn write_text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a line to standard error. That nobody reads it, as in `2>&1 | head -1`, is no reason to stop.
pub(crate) fn say(line: impl std::fmt::Display) {
    // In one piece, so that lines of several processes do not mix.
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Whether standard error is a terminal, for progress.
#[cfg(feature = "lab")]
pub(crate) fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
}

/// Rows under a heading, in columns that are as wide as their widest cell on a terminal.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// Least width of each column.
    widths: Vec<usize>,
    /// Most columns of a line, at the cost of its last cell.
    fit: Option<usize>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(String::from).to_vec()], widths: vec![0; N], fit: None }
    }

    /// The same with the last cell of each line cut where the line would be wider.
    pub(crate) fn fit(self, width: Option<usize>) -> Self {
        Self { fit: width, ..self }
    }

    /// The same without its last column.
    pub(crate) fn without_last_column(mut self) -> Self {
        self.rows.iter_mut().for_each(|row| drop(row.pop()));
        self.widths.pop();
        self
    }

    /// The rows without the heading, in columns at least as wide as `widths`, which become as wide as these are.
    pub(crate) fn below(self, widths: &mut Vec<usize>) -> String {
        let table = Self { widths: widths.clone(), ..self };
        *widths = table.widths();
        table.to_string().split_once('\n').map_or_else(String::new, |(_, rows)| rows.into())
    }

    /// How wide its columns are.
    pub(crate) fn widths(&self) -> Vec<usize> {
        let widest = |column: usize| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
        self.widths.iter().enumerate().map(|(column, &least)| least.max(widest(column))).collect()
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
        let widths = self.widths();
        let before_last: usize = widths.iter().rev().skip(1).map(|width| width + GAP).sum();
        let room = self.fit.map(|fit| fit.saturating_sub(before_last).max(LEAST));
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match room.filter(|_| column + 1 == row.len()) {
                    Some(room) => line.push_str(&cut(cell, room)),
                    None => line.push_str(cell),
                }
                line.extend(std::iter::repeat_n(' ', width - cell.width() + GAP));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Spaces between two columns.
const GAP: usize = 3;
/// Columns that are left of a last cell, however narrow the terminal is.
const LEAST: usize = 20;

/// The beginning of `text`, if it takes more than `room` columns.
fn cut(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.into();
    }
    let mut begin = String::new();
    let mut width = 0;
    for c in text.chars() {
        width += c.width().unwrap_or(0);
        if width >= room {
            break;
        }
        begin.push(c);
    }
    begin.trim_end().to_owned() + "…"
}

/// Text fit for one line of a terminal: what others wrote must neither steer it nor look like something else.
pub(crate) fn printable(text: &str) -> String {
    if text.is_empty() { "-".into() } else { harmless(text, |_| false) }
}

/// The same for text that has lines.
pub(crate) fn printable_lines(text: &str) -> String {
    harmless(text, |c| c == '\n')
}

fn harmless(text: &str, keep: impl Fn(char) -> bool) -> String {
    let show = |c: char| if steers(c) && !keep(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(show).collect()
}

/// Control characters (ANSI sequences begin with one), what breaks a line, what turns the direction of text around,
/// and what takes no room.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A time as people say it: `12 ms`, `3.4 s`, `5 min`.
pub(crate) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..0.01 => format!("{:.1} ms", seconds * 1e3),
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..60.0 => format!("{seconds:.1} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}

/// Date and time of day, in UTC, of so many milliseconds since 1970.
pub(crate) fn utc(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    // Whoever has a clock beyond the year 9999 still gets an answer.
    format!("{:.3}", time.unwrap_or(Timestamp::MAX))
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
    fn times_are_said_as_people_say_them() {
        let said = [0.0008, 0.012, 3.44, 300.0, 10_000.0].map(|seconds| time(Duration::from_secs_f64(seconds)));
        assert_eq!(said, ["0.8 ms", "12 ms", "3.4 s", "5 min", "3 h"]);
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(utc(951_782_400_000 + 86_400_000), "2000-03-01T00:00:00.000Z");
        assert_eq!(utc(1_795_262_400_001), "2026-11-21T12:00:00.001Z");
        assert_eq!(utc(u64::MAX), "9999-12-30T22:00:00.999Z", "the last moment that every time zone has");
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
    fn wide_characters_and_accents_line_up() {
        let mut table = Table::new(["NAME", "N"]);
        // Two columns wide each; an accent of its own, which takes no column.
        table.row(["名前".into(), "1".into()]);
        table.row(["e\u{301}".into(), "2".into()]);
        table.row(["default".into(), "3".into()]);
        assert_eq!(table.to_string(), "NAME      N\n名前      1\ne\u{301}         2\ndefault   3\n");
    }

    #[test]
    fn the_last_cell_gives_way_on_a_narrow_terminal() {
        let table = |width| {
            let mut table = Table::new(["NAME", "CONDITIONS"]);
            table.row(["default/web".into(), "Degraded(no maglev on this datapath)".into()]);
            table.row(["default/db".into(), "-".into()]);
            table.fit(width).to_string()
        };
        let whole = "NAME          CONDITIONS\ndefault/web   Degraded(no maglev on this datapath)\ndefault/db    -\n";
        assert_eq!((table(None), table(Some(50))), (whole.into(), whole.into()));
        let narrow = "NAME          CONDITIONS\ndefault/web   Degraded(no maglev on this da…\ndefault/db    -\n";
        assert_eq!(table(Some(44)), narrow);
        let least = "NAME          CONDITIONS\ndefault/web   Degraded(no maglev…\ndefault/db    -\n";
        assert_eq!(table(Some(10)), least, "something is left however narrow it is");
        assert_eq!(cut("名前名前", 5), "名前…", "no half of a wide character");
    }

    #[test]
    fn rows_that_follow_a_table_line_up_with_it() {
        let mut table = Table::new(["NAME", "N"]);
        table.row(["default/web".into(), "1".into()]);
        let mut widths = table.widths();
        let mut more = Table::new(["NAME", "N"]);
        more.row(["a".into(), "2".into()]);
        assert_eq!(more.below(&mut widths), "a             2\n");
    }

    #[test]
    fn control_characters_are_shown_rather_than_sent() {
        assert_eq!(printable("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(printable_lines("a\u{9b}31m\r\nb\tc"), "a\\u{9b}31m\\r\nb\\tc");
        assert_eq!((printable("größe/名"), printable("")), ("größe/名".into(), "-".into()));
    }

    #[test]
    fn text_that_would_look_like_something_else_is_shown_as_it_is() {
        for c in ['\u{202e}', '\u{2066}', '\u{200b}', '\u{2028}', '\u{feff}', '\u{ad}', '\u{e0041}', '\u{61c}'] {
            let shown = printable(&format!("a{c}b"));
            assert_eq!(shown, format!("a{}b", c.escape_default()));
            assert!(shown.is_ascii(), "{shown}");
        }
    }
}
