//! `--watch`: what comes, changes and goes.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    thread,
    time::Duration,
};

use serde::Serialize;

use crate::{
    exit::{Failure, Outcome, Verdict},
    output::{self, ListFormat, Table, printable},
};

/// Time between two looks.
const PACE: Duration = Duration::from_secs(1);

/// An item of a list that can be watched.
pub(super) trait Watched: Clone + PartialEq + Serialize {
    /// What makes two items the same one.
    fn key(&self) -> String;

    /// Its name on the command line.
    fn name(&self) -> String;

    /// A table of items, each with whether it is gone.
    fn table(rows: &[(&Self, bool)], wide: bool) -> Table;
}

/// Prints the list, then every item that `look` finds to have changed, until nobody reads.
pub(super) fn follow<T: Watched>(
    format: ListFormat,
    first: Vec<T>,
    mut look: impl FnMut() -> Result<Vec<T>, Failure>,
) -> Outcome {
    let mut printer = Printer { format, widths: None };
    let mut known = BTreeMap::new();
    let mut now = first;
    loop {
        let events = take(&mut known, now);
        let text = printer.text(&events)?;
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // Nobody reads on.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Verdict::Fine),
            result => result?,
        }
        drop(out);
        thread::sleep(PACE);
        now = look()?;
    }
}

/// What happened to an item, as a watch of Kubernetes says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Happened {
    Added,
    Modified,
    Deleted,
}

#[derive(Debug, Serialize)]
struct Event<T> {
    #[serde(rename = "type")]
    happened: Happened,
    object: T,
}

/// Makes `now` what is known, and says how it differs from what was.
fn take<T: Watched>(known: &mut BTreeMap<String, T>, now: Vec<T>) -> Vec<Event<T>> {
    let now: BTreeMap<String, T> = now.into_iter().map(|item| (item.key(), item)).collect();
    let mut events = Vec::new();
    for (key, item) in &now {
        let happened = match known.get(key) {
            None => Happened::Added,
            Some(before) if before != item => Happened::Modified,
            Some(_) => continue,
        };
        events.push(Event { happened, object: item.clone() });
    }
    let before = std::mem::replace(known, now);
    let gone = before.into_iter().filter(|(key, _)| !known.contains_key(key));
    events.extend(gone.map(|(_, object)| Event { happened: Happened::Deleted, object }));
    events
}

struct Printer {
    format: ListFormat,
    /// Of the columns so far; `None` before the heading.
    widths: Option<Vec<usize>>,
}

impl Printer {
    fn text<T: Watched>(&mut self, events: &[Event<T>]) -> io::Result<String> {
        Ok(match self.format {
            ListFormat::Table | ListFormat::Wide => self.rows(events),
            ListFormat::Name => events.iter().map(|event| printable(&event.object.name()) + "\n").collect(),
            ListFormat::Json => {
                let lines = events.iter().map(|event| Ok(serde_json::to_string(event)? + "\n"));
                lines.collect::<io::Result<String>>()?
            }
            ListFormat::Yaml => {
                let document =
                    |event| Ok("---\n".to_owned() + &serde_saphyr::to_string(event).map_err(io::Error::other)?);
                events.iter().map(document).collect::<io::Result<String>>()?
            }
        })
    }

    fn rows<T: Watched>(&mut self, events: &[Event<T>]) -> String {
        let wide = self.format == ListFormat::Wide;
        let rows: Vec<_> = events.iter().map(|event| (&event.object, event.happened == Happened::Deleted)).collect();
        let table = T::table(&rows, wide).fit(output::terminal_width().filter(|_| !wide));
        match &mut self.widths {
            Some(widths) => table.below(widths),
            None => {
                self.widths = Some(table.widths());
                table.to_string()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize)]
    struct Item(&'static str, u32);

    impl Watched for Item {
        fn key(&self) -> String {
            self.0.into()
        }

        fn name(&self) -> String {
            self.0.into()
        }

        fn table(rows: &[(&Self, bool)], _: bool) -> Table {
            let mut table = Table::new(["NAME", "N", "STATUS"]);
            for (Item(name, n), is_gone) in rows {
                table.row([(*name).into(), n.to_string(), if *is_gone { "removed" } else { "there" }.into()]);
            }
            table
        }
    }

    fn seen(format: ListFormat, looks: &[&[Item]]) -> Vec<String> {
        let mut printer = Printer { format, widths: None };
        let mut known = BTreeMap::new();
        looks.iter().map(|now| printer.text(&take(&mut known, now.to_vec())).unwrap()).collect()
    }

    #[test]
    fn only_what_changed_is_printed_again() {
        let looks: [&[Item]; 4] =
            [&[Item("first", 1), Item("b", 1)], &[Item("first", 1), Item("b", 1)], &[Item("b", 2)], &[Item("c", 1)]];
        assert_eq!(
            seen(ListFormat::Table, &looks),
            [
                "NAME    N   STATUS\nb       1   there\nfirst   1   there\n",
                "",
                "b       2   there\nfirst   1   removed\n",
                "c       1   there\nb       2   removed\n",
            ]
        );
        assert_eq!(seen(ListFormat::Name, &looks)[2], "b\nfirst\n");
        assert_eq!(
            seen(ListFormat::Json, &looks)[2],
            "{\"type\":\"MODIFIED\",\"object\":[\"b\",2]}\n{\"type\":\"DELETED\",\"object\":[\"first\",1]}\n"
        );
        assert!(seen(ListFormat::Yaml, &looks)[3].starts_with("---\ntype: ADDED\n"));
    }
}
