//! The comparison as a page that needs nothing but itself.

use std::fmt::Write as _;

use super::{
    chart::{Chart, Scale, Series, escape, thousands},
    result::{Comparison, PathRow, Row, Speed},
    table::{how, number},
};

const HEAD: &str = include_str!("page.html");
const EXPLAINED: &str = include_str!("explained.html");

/// The whole page.
pub(super) fn page(comparison: &Comparison) -> String {
    let mut page = String::from(HEAD);
    page.push_str("<h1>The same services on every datapath</h1>\n");
    // Writing to a string cannot fail.
    let _ = writeln!(page, "<p class=\"dim\">{}</p>", escape(&how(comparison)));
    for note in &comparison.notes {
        let _ = writeln!(page, "<p><b>Note:</b> {}</p>", escape(note));
    }
    page.push_str("<div class=\"charts\">\n");
    for chart in charts(comparison) {
        let (title, unit) = (escape(chart.title), escape(chart.unit));
        let _ = writeln!(page, "<figure><figcaption>{title}<span>{unit}</span></figcaption>{}</figure>", chart.svg());
    }
    page.push_str("</div>\n");
    page.push_str(EXPLAINED);
    page.push_str("<h2>All numbers</h2>\n");
    numbers(comparison, &mut page);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn charts(comparison: &Comparison) -> Vec<Chart> {
    let rows = |value: fn(&Row) -> f64| row_series(comparison, value);
    let paths = |value: fn(&Speed) -> f64| {
        let mut series = row_series(comparison, |row| value(&row.speed));
        series.extend(path_series(&comparison.extras, value));
        series.extend(path_series(&comparison.baselines, value));
        series
    };
    let chart = |title, unit, scale, series| Chart { title, unit, scale, series };
    vec![
        chart(
            "New connection: median against direct",
            "ratio; direct is 1, lower is better",
            Scale::Linear,
            paths(|speed| speed.connect_p50_ratio),
        ),
        chart(
            "Connections per second against direct",
            "ratio; direct is 1, higher is better",
            Scale::Linear,
            paths(|speed| speed.cps_ratio),
        ),
        chart("First sync of all services", "ms, logarithmic; lower is better", Scale::Log, rows(|row| row.sync_ms)),
        chart(
            "One change: event to first connection on a new endpoint",
            "ms, logarithmic; lower is better",
            Scale::Log,
            rows(|row| row.change_ms),
        ),
        chart("Manifests on disk to ready", "ms, logarithmic; lower is better", Scale::Log, rows(|row| row.ready_ms)),
        chart("Kernel memory", "MiB, logarithmic; lower is better", Scale::Log, rows(|row| row.kernel_mib)),
        chart("Resident memory of the agent", "MiB; lower is better", Scale::Linear, rows(|row| row.rss_mib)),
    ]
}

fn row_series(comparison: &Comparison, value: impl Fn(&Row) -> f64) -> Vec<Series> {
    let of = |kind| {
        let rows = comparison.rows.iter().filter(move |row| row.datapath == kind);
        rows.map(|row| (row.services, value(row))).collect()
    };
    let kinds = comparison.datapaths().into_iter();
    kinds.map(|kind| Series { name: kind.name(), baseline: false, points: of(kind) }).collect()
}

fn path_series(paths: &[PathRow], value: impl Fn(&Speed) -> f64) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for path in paths {
        let point = (path.services, value(&path.speed));
        match series.iter_mut().find(|series| series.name == path.name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name: path.name, baseline: true, points: vec![point] }),
        }
    }
    series
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
}
