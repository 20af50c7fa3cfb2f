//! What the table consists of, and how it looks as messages of nf_tables.

pub(crate) mod decode;
pub(crate) mod layout;
pub(crate) mod ranges;
pub(crate) mod rules;
pub(crate) mod ruleset;
pub(crate) mod slots;
pub(crate) mod userdata;
pub(crate) mod wire;
