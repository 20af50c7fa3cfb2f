//! Fields that pools of every kind have in common.

use super::{
    METADATA,
    Rule::{self, Known, List, Object},
};

/// The fields of a pool with this spec.
pub(crate) const fn pool(spec: Rule) -> [(&'static str, Rule); 5] {
    [
        ("apiVersion", Known),
        ("kind", Known),
        ("metadata", METADATA),
        ("spec", spec),
        // Written by whoever allocates.
        ("status", Known),
    ]
}

/// A selector of labels.
pub(crate) const SELECTOR: Rule = Object(&[("matchExpressions", List(&EXPRESSION)), ("matchLabels", Known)]);

const EXPRESSION: Rule = Object(&[("key", Known), ("operator", Known), ("values", Known)]);
