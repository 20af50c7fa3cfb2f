//! Answers on standard output: tables for people, JSON and YAML for programs.

use std::{
    borrow::Cow,
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
    write_more(text).map(|_is_read| ())
}

/// Writes `text`, and says whether somebody reads on.
pub(crate) fn write_more(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            let what = format!("writing the answer to standard output failed: {error}; the answer is not complete");
            Err(io::Error::new(error.kind(), what))
        }
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
    /// Most columns of the terminal that a line may take.
    fit: Option<usize>,
    /// Headings of the columns whose cells are lists with commas.
    lists: &'static [&'static str],
    /// Headings of the columns that a narrow terminal does without, the least valuable one first.
    spare: &'static [&'static str],
}

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(String::from).to_vec()], fit: None, lists: &[], spare: &[] }
    }

    /// The same for a terminal of that width. Lists are shortened first. Then columns are left out, then the last cell
    /// is cut, and finally the widest cells.
    pub(crate) fn fit(self, width: Option<usize>) -> Self {
        Self { fit: width, ..self }
    }

    /// The same with the headings of columns that give way on a narrow terminal: those of lists, which are shortened,
    /// and those that are left out, the least valuable one first.
    pub(crate) fn give_way(self, lists: &'static [&'static str], spare: &'static [&'static str]) -> Self {
        Self { lists, spare, ..self }
    }

    /// The same without its last column.
    pub(crate) fn without_last_column(mut self) -> Self {
        self.rows.iter_mut().for_each(|row| drop(row.pop()));
        self
    }

    /// Which columns are shown, and how wide they are.
    pub(crate) fn layout(&self) -> Layout {
        let mut layout = Layout { columns: (0..self.rows[0].len()).collect(), widths: Vec::new(), short: false };
        layout.widths = self.widths(&layout);
        let Some(fit) = self.fit else { return layout };
        if layout.total() > fit {
            layout.short = true;
            layout.widths = self.widths(&layout);
        }
        if layout.total() > fit {
            let spare = |column: &usize| self.spare.contains(&&*self.rows[0][*column]);
            let is_void = |column: &usize| self.rows[1..].iter().all(|row| ["-", "<none>"].contains(&&*row[*column]));
            let void: Vec<usize> = layout.columns.iter().copied().filter(|it| spare(it) && is_void(it)).collect();
            let spared = self.spare.iter().filter_map(|name| self.rows[0].iter().position(|heading| heading == name));
            for column in void.into_iter().chain(spared) {
                if layout.total() > fit {
                    layout.leave_out(column);
                }
            }
        }
        layout.squeeze(fit);
        layout
    }

    /// The rows without the heading, in the columns of `layout`, which become wider where the rows need it.
    pub(crate) fn below(&self, layout: &mut Layout) -> String {
        let widths = self.widths(layout);
        layout.widths.iter_mut().zip(widths).for_each(|(width, needed)| *width = needed.max(*width));
        if let Some(fit) = self.fit {
            layout.squeeze(fit);
        }
        self.rows[1..].iter().map(|row| self.line(row, layout)).collect()
    }

    /// How wide the columns of a layout would have to be.
    fn widths(&self, layout: &Layout) -> Vec<usize> {
        let widest = |&column: &usize| {
            let cells = self.rows.iter().map(|row| self.cell(row, column, layout.short).width());
            cells.max().unwrap_or(0)
        };
        layout.columns.iter().map(widest).collect()
    }

    fn cell<'a>(&self, row: &'a [String], column: usize, short: bool) -> Cow<'a, str> {
        let is_list = short && self.lists.contains(&&*self.rows[0][column]);
        if is_list { shortened(&row[column]) } else { Cow::Borrowed(&*row[column]) }
    }

    fn line(&self, row: &[String], layout: &Layout) -> String {
        let mut line = String::new();
        for (&column, &width) in layout.columns.iter().zip(&layout.widths) {
            let cell = cut(&self.cell(row, column, layout.short), width);
            line.push_str(&cell);
            line.extend(std::iter::repeat_n(' ', width - cell.width() + GAP));
        }
        line.truncate(line.trim_end().len());
        line + "\n"
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
        let layout = self.layout();
        self.rows.iter().try_for_each(|row| f.write_str(&self.line(row, &layout)))
    }
}

/// Which columns of a table are shown, and how.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    columns: Vec<usize>,
    /// Of each column that is shown.
    widths: Vec<usize>,
    /// Whether lists are shortened.
    short: bool,
}

impl Layout {
    fn total(&self) -> usize {
        self.widths.iter().sum::<usize>() + GAP * self.widths.len().saturating_sub(1)
    }

    /// How much the last cell can give for a line of `fit`.
    fn last_given_way(&self, fit: usize) -> usize {
        let last = self.widths.last().map_or(0, |last| last.saturating_sub(LEAST_LAST));
        last.min(self.total().saturating_sub(fit))
    }

    fn leave_out(&mut self, column: usize) {
        if let Some(index) = self.columns.iter().position(|&it| it == column) {
            self.columns.remove(index);
            self.widths.remove(index);
        }
    }

    /// Takes from the last column, then from the widest ones, until a line fits or nothing is left to take.
    fn squeeze(&mut self, fit: usize) {
        let given = self.last_given_way(fit);
        self.widths.last_mut().into_iter().for_each(|last| *last -= given);
        while self.total() > fit {
            let Some(widest) = self.widths.iter_mut().filter(|width| **width > LEAST).max() else { return };
            *widest -= 1;
        }
    }
}

/// Spaces between two columns.
const GAP: usize = 3;
/// Columns that are left of a cell, however narrow the terminal is.
const LEAST: usize = 5;
/// Columns that are left of a last cell, as long as there is something else to take from.
const LEAST_LAST: usize = 20;

/// The first item of a list, and how many there are besides it.
fn shortened(list: &str) -> Cow<'_, str> {
    let Some((first, rest)) = list.split_once(',') else { return Cow::Borrowed(list) };
    let short = format!("{first},…+{}", rest.split(',').count());
    if short.width() < list.width() { Cow::Owned(short) } else { Cow::Borrowed(list) }
}

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

/// `63s`, `5m3s`, `3h20m`, `12d`: as `kubectl` writes ages, two units at most.
pub(crate) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{minutes}m{}s", seconds % 60),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => format!("{hours}h{}m", minutes % 60),
        28_800..172_800 => format!("{hours}h"),
        172_800.. => format!("{days}d"),
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
    fn spans_are_written_as_ages() {
        let said = [0, 119, 303, 703, 12_000, 100_000, 172_800].map(span);
        assert_eq!(said, ["0s", "119s", "5m3s", "11m", "3h20m", "27h", "2d"]);
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
        let least = "NAME    COND…\ndefa…   Degr…\ndefa…   -\n";
        assert_eq!(table(Some(10)), least, "something is left however narrow it is");
        assert_eq!(cut("名前名前", 5), "名前…", "no half of a wide character");
    }

    #[test]
    fn lists_and_columns_give_way_in_the_order_of_their_value() {
        let table = |width| {
            let mut table = Table::new(["NAME", "VOID", "IP", "ALGORITHM", "STATUS"]);
            let ips = "10.96.0.10,10.96.0.11,fd00::a";
            table.row(["default/web".into(), String::new(), ips.into(), "random".into(), "active".into()]);
            table.row(["a".into(), "<none>".into(), "10.96.0.1,::1".into(), "maglev".into(), "active".into()]);
            table.give_way(&["IP"], &["ALGORITHM", "VOID", "IP"]).fit(Some(width)).to_string()
        };
        assert!(table(80).contains("   10.96.0.10,10.96.0.11,fd00::a   "), "{}", table(80));
        let of = |width, line: usize| table(width).lines().nth(line).unwrap().to_owned();
        assert_eq!(of(60, 1), "default/web   -        10.96.0.10,…+2   random      active");
        assert_eq!(of(60, 2), "a             <none>   10.96.0.1,::1    maglev      active", "no shorter");
        assert_eq!(of(56, 0), "NAME          IP               ALGORITHM   STATUS", "what says nothing goes first");
        assert_eq!(of(40, 0), "NAME          IP               STATUS");
        assert_eq!(of(30, 0), "NAME          STATUS");
        for width in 13..90 {
            assert!(table(width).lines().all(|line| line.width() <= width), "{width}: {}", table(width));
        }
    }

    #[test]
    fn rows_that_follow_a_table_line_up_with_it() {
        let table = |name: &str, spare: &str| {
            let mut table = Table::new(["NAME", "SPARE", "N"]).give_way(&[], &["SPARE"]).fit(Some(20));
            table.row([name.into(), spare.into(), "1".into()]);
            table
        };
        let first = table("default/web", "long enough");
        let mut layout = first.layout();
        assert_eq!(first.to_string(), "NAME          N\ndefault/web   1\n");
        assert_eq!(table("a", "b").below(&mut layout), "a             1\n");
        assert_eq!(table("default/longer", "b").below(&mut layout), "default/longer   1\n");
        assert_eq!(table("default/longer-than-ever", "b").below(&mut layout), "default/longer-…   1\n");
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
