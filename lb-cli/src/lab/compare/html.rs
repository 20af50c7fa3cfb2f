//! The comparison as a page that needs nothing but itself.

use std::fmt::Write as _;

use super::{
    charts, palette,
    result::{Comparison, PathRow, Row, Speed},
    table::{how, number, thousands},
};

const HEAD: &str = include_str!("page.html");
/// Where the colours of the style sheet go.
const PALETTE: &str = "/* palette */\n";
const EXPLAINED: &str = include_str!("explained.html");

/// The whole page.
pub(super) fn page(comparison: &Comparison) -> String {
    let mut page = HEAD.replace(PALETTE, &palette::style());
    page.push_str("<h1>The same services on every datapath</h1>\n");
    // Writing to a string cannot fail.
    let _ = writeln!(page, "<p class=\"dim\">{}</p>", escape(&how(comparison)));
    for note in &comparison.notes {
        let _ = writeln!(page, "<p><b>Note:</b> {}</p>", escape(note));
    }
    page.push_str("<div class=\"charts\">\n");
    for chart in charts::all(comparison) {
        let (title, unit) = (escape(chart.title), escape(chart.unit));
        let svg = chart.drawing().inline();
        let _ = writeln!(page, "<figure><figcaption>{title}<span>{unit}</span></figcaption>{svg}</figure>");
    }
    page.push_str("</div>\n");
    page.push_str(EXPLAINED);
    page.push_str("<h2>All numbers</h2>\n");
    numbers(comparison, &mut page);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn numbers(comparison: &Comparison, page: &mut String) {
    let columns = [
        "services",
        "path",
        "sync<br>ms",
        "change<br>ms",
        "p99<br>ms",
        "commit<br>ms",
        "rules",
        "elements",
        "ready<br>ms",
        "RSS<br>MiB",
        "kernel<br>MiB",
        "p50<br>us",
        "p99<br>us",
        "p50 /<br>direct",
        "p50 /<br>floor",
        "conn/s",
        "conn/s /<br>direct",
        "conn/s /<br>floor",
        "failed",
    ];
    page.push_str("<div class=\"wide\"><table>\n<thead><tr>");
    columns.iter().for_each(|column| page.push_str(&format!("<th>{column}</th>")));
    page.push_str("</tr></thead>\n<tbody>\n");
    for size in comparison.sizes() {
        let of_size = |path: &&PathRow| path.services == size;
        let mut lines: Vec<(&str, [String; 9], &Speed)> = Vec::new();
        let none = || std::array::from_fn(|_| "–".to_owned());
        lines.extend(comparison.baselines.iter().filter(of_size).map(|path| (path.name, none(), &path.speed)));
        let rows = comparison.rows.iter().filter(|row| row.services == size);
        lines.extend(rows.map(|row| (row.datapath.name(), kernel_cells(row), &row.speed)));
        lines.extend(comparison.extras.iter().filter(of_size).map(|path| (path.name, none(), &path.speed)));
        for (index, (name, cells, speed)) in lines.into_iter().enumerate() {
            let first = if index == 0 { " first" } else { "" };
            let services = thousands(u64::from(size));
            let _ = write!(page, "<tr class=\"{name}{first}\"><td>{services}</td><td>{}</td>", escape(name));
            for cell in cells.into_iter().chain(speed_cells(speed)) {
                let _ = write!(page, "<td>{cell}</td>");
            }
            page.push_str("</tr>\n");
        }
    }
    page.push_str("</tbody></table></div>\n");
}

fn kernel_cells(row: &Row) -> [String; 9] {
    [
        number(row.sync_ms),
        number(row.change_ms),
        number(row.change_p99_ms),
        number(row.commit_ms),
        thousands(row.rules),
        thousands(row.elements),
        number(row.ready_ms),
        number(row.rss_mib),
        number(row.kernel_mib),
    ]
}

fn speed_cells(speed: &Speed) -> [String; 8] {
    [
        number(speed.connect_p50_us),
        number(speed.connect_p99_us),
        number(speed.connect_p50_ratio),
        number(speed.connect_floor_ratio),
        thousands(speed.cps.round() as u64),
        number(speed.cps_ratio),
        number(speed.cps_floor_ratio),
        thousands(speed.failures),
    ]
}

/// As text of an HTML page or value of an attribute.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{super::result::tests::example, *};

    /// Every tag that is opened is closed, in order; those that need no end are known.
    fn assert_well_formed(page: &str) {
        const ALONE: [&str; 3] = ["meta", "br", "!doctype"];
        let mut open: Vec<&str> = Vec::new();
        let body = page.split_once("</style>").expect("a style").1;
        let head = page.split_once("<style>").expect("a style").0;
        for tag in head.split('<').skip(1).chain(body.split('<').skip(1)) {
            let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("`<{tag}` has no end"));
            let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().expect("a name");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "</{name}> closes something else");
            } else if !tag.ends_with('/') && !ALONE.contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "never closed: {open:?}");
    }

    #[test]
    fn the_page_is_well_formed_and_complete() {
        let page = page(&example());
        assert_well_formed(&page);
        assert_eq!(page.matches("<svg").count(), 7);
        assert_eq!(page.matches("<tr class=").count(), 3 * 5);
        assert!(!page.contains("NaN") && !page.contains("inf<"), "{page}");
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = page(&example());
        for forbidden in ["http:", "https:", "src=", "@import", "url(", "<link", "<script"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn text_of_the_machine_is_escaped() {
        let page = page(&example());
        assert!(page.contains("kernel 6.18.0 &lt;test&gt;"), "{page}");
        assert!(page.contains("5 &lt; 6 &amp; &quot;quoted&quot;"), "{page}");
        assert!(!page.contains("<test>"));
    }

    #[test]
    fn an_empty_comparison_is_a_page_too() {
        let mut empty = example();
        empty.rows.clear();
        empty.baselines.clear();
        empty.extras.clear();
        assert_well_formed(&page(&empty));
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a href=\"x\">'&\u{7}"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;\\u{7}");
    }
}
