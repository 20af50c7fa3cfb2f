//! `--watch`: what comes, changes and goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, thread,
    time::Duration,
};

use lb_agent::api::{Client, ClientError};
use serde::Serialize;

use crate::{
    exit::{Failure, Outcome, Verdict},
    output::{self, Layout, ListFormat, Table, printable},
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

/// Prints the list, then every item that `look` finds to have changed, until nobody reads. An agent that does not
/// answer is waited for.
pub(super) fn follow<T: Watched>(
    client: &Client,
    format: ListFormat,
    first: Vec<T>,
    look: impl Fn(&Client) -> Result<Vec<T>, ClientError>,
) -> Outcome {
    let mut printer = Printer { format, layout: None };
    let mut known = BTreeMap::new();
    let mut events = take(&mut known, first);
    let mut is_lost = false;
    loop {
        if !output::write_more(&printer.text(&events)?)? {
            return Ok(Verdict::Fine);
        }
        thread::sleep(PACE);
        events = match complete(client, &known, &look) {
            Ok(now) => {
                is_lost = false;
                take(&mut known, now)
            }
            Err(why) => {
                let why = interruption(why)?;
                if !is_lost {
                    output::say(format_args!("lb: the watch is interrupted and goes on with the agent: {why}"));
                }
                is_lost = true;
                Vec::new()
            }
        };
    }
}

/// Why there is no list now.
#[derive(Debug)]
enum NoList {
    /// The agent has just started.
    NotReady,
    NoAnswer(ClientError),
}

impl From<ClientError> for NoList {
    fn from(error: ClientError) -> Self {
        Self::NoAnswer(error)
    }
}

/// The list as it is now. What an agent that is not ready does not have yet is not gone.
fn complete<T: Watched>(
    client: &Client,
    known: &BTreeMap<String, T>,
    look: impl Fn(&Client) -> Result<Vec<T>, ClientError>,
) -> Result<Vec<T>, NoList> {
    let now = look(client)?;
    let keys: BTreeSet<String> = now.iter().map(T::key).collect();
    if known.keys().all(|key| keys.contains(key)) {
        return Ok(now);
    }
    if !client.status()?.ready {
        return Err(NoList::NotReady);
    }
    // The one before may be from before it was ready.
    Ok(look(client)?)
}

/// What is said about an agent that may come back; any other error ends the watch.
fn interruption(why: NoList) -> Result<String, Failure> {
    match why {
        NoList::NotReady => Ok("it is not ready yet".into()),
        NoList::NoAnswer(
            error @ (ClientError::NoAgent { .. }
            | ClientError::Silent { .. }
            | ClientError::Io { .. }
            | ClientError::Refused(_)),
        ) => Ok(printable(&lb_core::error::report(&error))),
        NoList::NoAnswer(error) => Err(error.into()),
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
    /// Of the rows so far; `None` before the heading, which comes with the first row.
    layout: Option<Layout>,
}

impl Printer {
    fn text<T: Watched>(&mut self, events: &[Event<T>]) -> io::Result<String> {
        Ok(match self.format {
            ListFormat::Table | ListFormat::Wide => self.rows(events),
            ListFormat::Name => events.iter().map(name_line).collect(),
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
        if events.is_empty() {
            return String::new();
        }
        let wide = self.format == ListFormat::Wide;
        let rows: Vec<_> = events.iter().map(|event| (&event.object, event.happened == Happened::Deleted)).collect();
        let table = T::table(&rows, wide).fit(output::terminal_width().filter(|_| !wide));
        match &mut self.layout {
            Some(layout) => table.below(layout),
            None => {
                self.layout = Some(table.layout());
                table.to_string()
            }
        }
    }
}

/// The name, and a word about an item that is gone.
fn name_line<T: Watched>(event: &Event<T>) -> String {
    let gone = if event.happened == Happened::Deleted { " removed" } else { "" };
    format!("{}{gone}\n", printable(&event.object.name()))
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
        let mut printer = Printer { format, layout: None };
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
        assert_eq!(seen(ListFormat::Name, &looks)[2], "b\nfirst removed\n");
        assert_eq!(
            seen(ListFormat::Json, &looks)[2],
            "{\"type\":\"MODIFIED\",\"object\":[\"b\",2]}\n{\"type\":\"DELETED\",\"object\":[\"first\",1]}\n"
        );
        assert!(seen(ListFormat::Yaml, &looks)[3].starts_with("---\ntype: ADDED\n"));
    }

    #[test]
    fn the_heading_comes_with_the_first_row_and_lines_up_with_it() {
        let looks: [&[Item]; 3] = [&[], &[], &[Item("longer-than-the-heading", 1)]];
        let rows = "NAME                      N   STATUS\nlonger-than-the-heading   1   there\n";
        assert_eq!(seen(ListFormat::Table, &looks), ["", "", rows]);
    }
}
