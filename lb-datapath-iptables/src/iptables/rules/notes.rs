//! What rules' comments carry: the ids and parameters that make [`observe`](lb_core::datapath::Datapath::observe)
//! exact.

use std::{
    fmt::{self, Write as _},
    str::FromStr,
    time::Duration,
};

use lb_core::{
    affinity::Affinity,
    id::{BackendId, FrontendId, SetId},
};

/// Comment of a frontend's rule in `LB-SERVICES`: id, affinity (`-` for none), label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrontendNote<'a> {
    pub(crate) id: FrontendId,
    pub(crate) affinity: Option<Affinity>,
    pub(crate) label: &'a str,
}

impl fmt::Display for FrontendNote<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{}", self.id)?;
        match self.affinity {
            None => f.write_str(" -")?,
            Some(Affinity { timeout, prefix_v4, prefix_v6 }) => {
                write!(f, " {}", timeout.as_secs())?;
                if timeout.subsec_nanos() > 0 {
                    write!(f, ".{:09}", timeout.subsec_nanos())?;
                }
                write!(f, "/{prefix_v4}/{prefix_v6}")?;
            }
        }
        let label = printable(self.label);
        if label.is_empty() { Ok(()) } else { write!(f, " {label}") }
    }
}

impl<'a> FrontendNote<'a> {
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.splitn(3, ' ');
        let id = FrontendId::new(words.next()?.strip_prefix('f')?.parse().ok()?)?;
        let affinity = match words.next()? {
            "-" => None,
            text => Some(affinity(text)?),
        };
        Some(Self { id, affinity, label: words.next().unwrap_or_default() })
    }
}

fn affinity(text: &str) -> Option<Affinity> {
    let mut parts = text.splitn(3, '/');
    let timeout = parts.next()?;
    let (seconds, nanos) = timeout.split_once('.').unwrap_or((timeout, "0"));
    let nanos = nanos.parse().ok().filter(|&nanos: &u32| nanos < 1_000_000_000)?;
    let timeout = Duration::new(seconds.parse().ok()?, nanos);
    Some(Affinity { timeout, prefix_v4: parts.next()?.parse().ok()?, prefix_v6: parts.next()?.parse().ok()? })
}

/// Most bytes of a label: a comment has 255, ids and affinity take at most 72 of them.
const LABEL_LIMIT: usize = 180;

/// `label`, or nothing if it has a character that names of services do not have: whatever a label holds, it can
/// neither end a comment nor start a line.
pub(crate) fn printable(label: &str) -> &str {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"./:_-".contains(&byte);
    if label.len() <= LABEL_LIMIT && label.bytes().all(allowed) { label } else { "" }
}

/// Consecutive slots of one backend; none if it is draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) backend: BackendId,
    pub(crate) local: bool,
    pub(crate) slots: u32,
}

impl Run {
    /// Bytes that it takes in a comment, with a separator.
    fn length(self) -> usize {
        let digits = |number: u32| number.checked_ilog10().unwrap_or(0) as usize + 1;
        let slots = if self.slots == 1 { 0 } else { 1 + digits(self.slots) };
        digits(self.backend.get()) + usize::from(self.local) + slots + 1
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.backend.fmt(f)?;
        if self.local {
            f.write_char('l')?;
        }
        if self.slots == 1 { Ok(()) } else { write!(f, "*{}", self.slots) }
    }
}

impl FromStr for Run {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (backend, slots) = text.split_once('*').unwrap_or((text, "1"));
        let (backend, local) = backend.strip_suffix('l').map_or((backend, false), |backend| (backend, true));
        let backend = backend.parse().ok().and_then(BackendId::new).ok_or(())?;
        let slots = slots.parse().map_err(drop)?;
        Ok(Self { backend, local, slots })
    }
}

/// Comments of a service's chain: the id of its set and the set's slots as runs, spread over the chain's rules since
/// a comment holds no more than 255 bytes. A chain has more rules than it needs comments.
pub(crate) struct SetNote<'a> {
    set: Option<SetId>,
    runs: &'a [Run],
}

/// With more bytes of runs than this a comment takes no further one, which may have 23.
const SET_LIMIT: usize = 215;

/// A match that holds some of a set's runs.
pub(crate) struct Comment<'a> {
    set: Option<SetId>,
    runs: &'a [Run],
}

impl fmt::Display for Comment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.runs.split_first() else { return Ok(()) };
        f.write_str(" -m comment --comment \"")?;
        match self.set {
            Some(set) => write!(f, "s{set} {first}")?,
            None => write!(f, "+ {first}")?,
        }
        rest.iter().try_for_each(|run| write!(f, ",{run}"))?;
        f.write_char('"')
    }
}

impl<'a> SetNote<'a> {
    pub(crate) const fn new(set: SetId, runs: &'a [Run]) -> Self {
        Self { set: Some(set), runs }
    }

    /// The match for the next rule; writes nothing once all runs are written.
    pub(crate) fn next(&mut self) -> Comment<'a> {
        let mut length = 0;
        let fits = |run: &&Run| {
            let before = length;
            length += run.length();
            before <= SET_LIMIT
        };
        let count = self.runs.iter().take_while(fits).count();
        let (runs, rest) = self.runs.split_at(count);
        self.runs = rest;
        Comment { set: self.set.take(), runs }
    }

    /// The set and its runs, from a chain's comments in order.
    pub(crate) fn parse<'t>(comments: impl IntoIterator<Item = &'t str>) -> Option<(SetId, Vec<Run>)> {
        let mut set = None;
        let mut runs = Vec::new();
        for comment in comments {
            let (head, list) = comment.split_once(' ')?;
            match (head.strip_prefix('s'), set) {
                (Some(id), None) => set = Some(SetId::new(id.parse().ok()?)?),
                (None, Some(_)) if head == "+" => {}
                _ => return None,
            }
            for run in list.split(',') {
                runs.push(run.parse().ok()?);
            }
        }
        Some((set?, runs))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(label: &str) -> FrontendNote<'_> {
        FrontendNote { id: FrontendId::new(12).unwrap(), affinity: None, label }
    }

    #[test]
    fn a_frontend_reads_well() {
        assert_eq!(note("default/web:http").to_string(), "f12 - default/web:http");
    }

    #[test]
    fn a_label_that_could_break_out_of_the_comment_is_left_out() {
        for label in ["a\"b", "a\nCOMMIT", "a b", "a\\", "\u{e9}", &"x".repeat(181)] {
            assert_eq!(note(label).to_string(), "f12 -", "{label:?}");
        }
    }

    #[test]
    fn a_long_set_spreads_over_comments_that_fit() {
        let set = SetId::new(u32::MAX).unwrap();
        let run = |n| Run {
            backend: BackendId::new(u32::MAX - n).unwrap(),
            local: true,
            slots: if n < 90 { u32::MAX - n } else { 0 },
        };
        let runs: Vec<Run> = (0..100).map(run).collect();
        let mut note = SetNote::new(set, &runs);
        let texts = std::iter::repeat_with(|| note.next().to_string()).take_while(|text| !text.is_empty());
        let comments: Vec<String> = texts
            .map(|text| text.strip_prefix(" -m comment --comment \"").unwrap().strip_suffix('"').unwrap().to_owned())
            .collect();
        assert!(comments.iter().all(|comment| comment.len() <= 255), "{comments:?}");
        assert!(comments.len() <= runs.len());
        assert!(runs.iter().all(|run| run.length() == run.to_string().len() + 1));
        assert_eq!(SetNote::parse(comments.iter().map(String::as_str)), Some((set, runs)));
    }

    #[test]
    fn comments_of_others_are_not_ours() {
        for text in ["", "f12", "f0 -", "g12 -", "f12 1/32", "f12 x/32/128", "f12 1.1000000000/32/128"] {
            assert_eq!(FrontendNote::parse(text), None, "{text:?}");
        }
        for text in ["s1", "s0 1", "s1 0", "s1 1*-1", "+ 1", "s1 1,,2"] {
            assert_eq!(SetNote::parse([text]), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn frontend_notes_are_read_back(
            id in 1u32..,
            timeout in proptest::option::of((any::<u64>(), 0u32..1_000_000_000, 0u8..=32, 0u8..=128)),
            label in "[a-z0-9./:-]{0,180}",
        ) {
            let affinity = timeout.map(|(seconds, nanos, prefix_v4, prefix_v6)| Affinity {
                timeout: Duration::new(seconds, nanos),
                prefix_v4,
                prefix_v6,
            });
            let note = FrontendNote { id: FrontendId::new(id).unwrap(), affinity, label: &label };
            let text = note.to_string();
            prop_assert!(text.len() <= 255);
            prop_assert_eq!(FrontendNote::parse(&text), Some(note));
        }
    }
}
