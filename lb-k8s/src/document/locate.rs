//! Where a field stands in its document. Only asked when there is something to say about the field, so it may parse
//! the document a second time.

use std::{cell::OnceCell, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

use crate::{
    Position,
    document::{Chunk, yaml_options},
    limits::MAX_LOCATED_BYTES,
};

/// Finds fields of one document.
pub(crate) struct Locator<'a> {
    chunk: Chunk<'a>,
    root: OnceCell<Option<Spanned<Spans>>>,
}

impl<'a> Locator<'a> {
    pub(crate) fn new(chunk: Chunk<'a>) -> Self {
        Self { chunk, root: OnceCell::new() }
    }

    /// Position of the value of `field`, or of the nearest value around it that exists.
    pub(crate) fn locate(&self, field: &str) -> Option<Position> {
        let parse = || {
            let text = Some(self.chunk.text).filter(|text| text.len() <= MAX_LOCATED_BYTES)?;
            serde_saphyr::from_str_with_options(text, yaml_options()).ok()
        };
        let mut at = self.root.get_or_init(parse).as_ref()?;
        for step in steps(field) {
            let Some(next) = at.value.child(step) else { break };
            at = next;
        }
        position(at.referenced, self.chunk)
    }
}

fn position(location: Location, chunk: Chunk<'_>) -> Option<Position> {
    (location.line() > 0).then(|| Position { line: location.line() + chunk.lines_before, column: location.column() })
}

/// The keys and indices of a path such as `metadata.annotations[lb/algorithm]` or `spec.ports[0].port`.
fn steps(field: &str) -> impl Iterator<Item = &str> {
    let mut rest = field;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches('.');
        if let Some(inner) = rest.strip_prefix('[') {
            let (step, tail) = inner.split_once(']')?;
            rest = tail;
            return Some(step);
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (step, tail) = rest.split_at(end);
        rest = tail;
        (!step.is_empty()).then_some(step)
    })
}

/// A document of which only the places are kept.
enum Spans {
    Map(Vec<(String, Spanned<Self>)>),
    Seq(Vec<Spanned<Self>>),
    Scalar,
}

impl Spans {
    fn child(&self, step: &str) -> Option<&Spanned<Self>> {
        match self {
            Self::Map(fields) => fields.iter().find(|(key, _)| key == step).map(|(_, value)| value),
            Self::Seq(items) => items.get(step.parse::<usize>().ok()?),
            Self::Scalar => None,
        }
    }
}

impl<'de> Deserialize<'de> for Spans {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SpansVisitor)
    }
}

struct SpansVisitor;

macro_rules! scalars {
    ($($method:ident: $type:ty),*) => {
        $(fn $method<E>(self, _: $type) -> Result<Spans, E> {
            Ok(Spans::Scalar)
        })*
    };
}

impl<'de> Visitor<'de> for SpansVisitor {
    type Value = Spans;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_unit<E>(self) -> Result<Spans, E> {
        Ok(Spans::Scalar)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Spans, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Spans::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Spans, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Spans::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "---\nspec:\n  ports:\n  - port: 80\n  - name: b\n    port: x\nmetadata:\n  annotations:\n    \
                        lb/algorithm: maglev\n    a.b: c\n";

    fn at(field: &str) -> Option<(u64, u64)> {
        let chunk = Chunk { text: TEXT, lines_before: 10 };
        Locator::new(chunk).locate(field).map(|Position { line, column }| (line, column))
    }

    #[test]
    fn values_are_found_by_path() {
        assert_eq!(at("spec.ports[1].port"), Some((16, 11)));
        assert_eq!(at("metadata.annotations[lb/algorithm]"), Some((19, 19)));
        assert_eq!(at("metadata.annotations[a.b]"), Some((20, 10)));
    }

    #[test]
    fn what_is_missing_is_where_it_should_be() {
        assert_eq!(at("spec.ports[1].nodePort"), at("spec.ports[1]"));
        assert_eq!(at("spec.ports[0].port.x"), at("spec.ports[0].port"));
        assert_eq!(at("]["), at(""));
    }
}
