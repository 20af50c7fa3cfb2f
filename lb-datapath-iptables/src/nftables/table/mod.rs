//! The layout of the table, and its encoding as messages of nf_tables. Pure.

pub(crate) mod choice;
pub(crate) mod decode;
pub(crate) mod elements;
pub(crate) mod expr;
pub(crate) mod expressions;
pub(crate) mod keys;
pub(crate) mod layout;
pub(crate) mod loads;
pub(crate) mod messages;
pub(crate) mod ranges;
pub(crate) mod rules;
pub(crate) mod ruleset;
pub(crate) mod shape;
pub(crate) mod slots;
pub(crate) mod userdata;
