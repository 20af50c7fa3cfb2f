//! `lb drift`.

use std::{collections::BTreeMap, io, time::Duration};

use lb_agent::api::{Client, DriftClass, DriftNews, DriftRecord, DriftReport};

use crate::{
    cli::DriftArgs,
    exit::{Failure, Outcome, Verdict},
    output::{self, Format, Table, count, printable, time, utc},
};

/// Most objects of a class in a table that is not to be complete.
const MAX_LISTED: usize = 20;

pub(super) fn run(args: &DriftArgs) -> Outcome {
    let client = args.ask.reach.client()?;
    if args.watch {
        return watch(&client, args.ask.output);
    }
    let report = client.drift()?;
    output::write(args.ask.output, &report, || text(&report, args.all))?;
    Ok(if report.found == 0 { Verdict::Fine } else { Verdict::Different })
}

fn watch(client: &Client, format: Format) -> Outcome {
    for news in client.watch_drift()? {
        let news = news?;
        let text = match format {
            Format::Table => line(&news),
            Format::Json => serde_json::to_string(&news).map_err(io::Error::from)? + "\n",
            Format::Yaml => "---\n".to_owned() + &serde_saphyr::to_string(&news).map_err(io::Error::other)?,
        };
        if !output::write_more(&text)? {
            return Ok(Verdict::Fine);
        }
    }
    Err(Failure::Error("the agent ended the watch: the agent stopped, or this reader was too slow".into()))
}

fn line(news: &DriftNews) -> String {
    match news {
        DriftNews::Difference(record) => {
            let DriftRecord { class, object, difference, cause, status, .. } = &**record;
            let values = match (&record.expected, &record.found) {
                (Some(expected), Some(found)) => format!(": expected {expected}, found {found}"),
                _ => String::new(),
            };
            let after = record.right_after_us.map(|us| format!(" after {}", time(Duration::from_micros(us))));
            let why = record.detail.as_ref().map(|why| format!(": {why}"));
            // A line is stamped with the time of what it says.
            let at = utc(record.found_unix_ms + record.right_after_us.map_or(0, |us| us / 1000));
            let end = after.or(why).unwrap_or_default();
            printable(&format!("{at} {class} {object} {difference}{values} ({cause}), {status}{end}")) + "\n"
        }
        DriftNews::Unlisted { unlisted } => {
            format!("and {} at the same time\n", count(*unlisted, "further difference"))
        }
    }
}

fn text(report: &DriftReport, all: bool) -> String {
    let DriftReport { datapath, mode, found, .. } = report;
    let took = time(Duration::from_micros(report.inspection_us));
    let mut text = match found {
        0 => format!("no difference: {datapath} holds what it should (mode {mode}, inspected in {took})\n"),
        _ => format!("{} in {datapath} (mode {mode}, inspected in {took})\n", count(*found, "difference")),
    };
    text.push_str(&section("\n", &report.now, all));
    if report.unlisted > 0 {
        text.push_str(&format!("and {} more, which are not listed\n", report.unlisted));
    }
    text.push_str(&section("\nRepaired or gone within the last hour:\n\n", &report.before, all));
    text
}

/// A table under a heading; nothing without records.
fn section(heading: &str, records: &[DriftRecord], all: bool) -> String {
    let mut table = Table::new(["CLASS", "OBJECT", "DIFFERENCE", "EXPECTED", "FOUND", "CAUSE", "AGE", "OUTCOME"]);
    let mut listed: BTreeMap<&DriftClass, usize> = BTreeMap::new();
    for record in records {
        let number = listed.entry(&record.class).or_default();
        *number += 1;
        if all || *number <= MAX_LISTED {
            table.row(row(record));
        }
    }
    if table.is_empty() {
        return String::new();
    }
    let more = listed.into_iter().filter(|(_, number)| !all && *number > MAX_LISTED);
    let more = more.map(|(class, number)| format!("{} more of class {class}: see --all\n", number - MAX_LISTED));
    format!("{heading}{table}{}", more.collect::<String>())
}

fn row(record: &DriftRecord) -> [String; 8] {
    let what = match (record.right_after_us, &record.detail) {
        (Some(us), _) => format!("{} after {}", record.status, time(Duration::from_micros(us))),
        (None, Some(why)) => format!("{}: {why}", record.status),
        (None, None) => record.status.to_string(),
    };
    let what = if record.times > 1 { format!("{what}, {} times in a row", record.times) } else { what };
    [
        record.class.to_string(),
        record.object.clone(),
        record.difference.to_string(),
        record.expected.clone().unwrap_or_default(),
        record.found.clone().unwrap_or_default(),
        record.cause.to_string(),
        time(Duration::from_millis(record.age_ms)),
        what,
    ]
}

#[cfg(test)]
mod tests {
    use lb_agent::api::{Difference, DriftCause, DriftMode, DriftOutcome};

    use super::*;

    fn record(n: u32) -> DriftRecord {
        DriftRecord {
            class: DriftClass::Rule,
            object: format!("rule {n}"),
            difference: Difference::Wrong,
            expected: Some("accept".into()),
            found: Some("drop\u{1b}[2J".into()),
            cause: DriftCause::Edited,
            status: DriftOutcome::Repaired,
            detail: None,
            found_unix_ms: 1_795_262_400_001,
            age_ms: 40,
            right_after_us: Some(8_000),
            times: 1,
        }
    }

    fn report(now: Vec<DriftRecord>, before: Vec<DriftRecord>) -> DriftReport {
        DriftReport {
            datapath: "nftables".into(),
            mode: DriftMode::Repair,
            found: now.len() as u64,
            inspection_us: 2_900,
            now,
            before,
            unlisted: 0,
        }
    }

    #[test]
    fn nothing_wrong_is_one_line() {
        let said = text(&report(Vec::new(), Vec::new()), false);
        assert_eq!(said, "no difference: nftables holds what it should (mode repair, inspected in 2.9 ms)\n");
    }

    #[test]
    fn a_difference_is_a_line_and_does_not_steer_the_terminal() {
        let stuck = DriftRecord {
            status: DriftOutcome::NotRepaired,
            detail: Some("table full".into()),
            right_after_us: None,
            times: 3,
            ..record(2)
        };
        let said = text(&report(vec![record(1)], vec![stuck]), false);
        assert!(
            said.starts_with("1 difference in nftables (mode repair, inspected in 2.9 ms)\n\nCLASS   OBJECT "),
            "{said}"
        );
        let line = said.lines().nth(3).unwrap();
        let columns: Vec<&str> = line.split("   ").collect();
        let expected = [
            "rule",
            "rule 1",
            "wrong     ",
            "accept  ",
            "drop\\u{1b}[2J",
            "changed by another tool",
            "40 ms",
            "repaired after 8.0 ms",
        ];
        assert_eq!(
            columns.iter().map(|c| c.trim()).filter(|c| !c.is_empty()).collect::<Vec<_>>(),
            expected.map(str::trim)
        );
        assert!(said.ends_with("40 ms   not-repaired: table full, 3 times in a row\n"), "{said}");
    }

    #[test]
    fn a_long_list_is_cut_unless_all_is_wanted() {
        let records: Vec<DriftRecord> = (0..25).map(record).collect();
        let report = report(records, Vec::new());
        let (short, long) = (text(&report, false), text(&report, true));
        assert!(short.ends_with("5 more of class rule: see --all\n"), "{short}");
        assert_eq!((short.lines().count(), long.lines().count()), (3 + 20 + 1, 3 + 25));
    }

    #[test]
    fn news_is_one_line_each() {
        let said = line(&DriftNews::Difference(Box::new(record(1))));
        assert_eq!(
            said,
            "2026-11-21T12:00:00.009Z rule rule 1 wrong: expected accept, found drop\\u{1b}[2J \
             (changed by another tool), repaired after 8.0 ms\n"
        );
        assert_eq!(line(&DriftNews::Unlisted { unlisted: 2 }), "and 2 further differences at the same time\n");
    }
}
