//! A pool in the making, and what is wrong with it.

use std::{fmt, net::IpAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use lb_ipam::{Block, Pool, PoolWarning, Timestamp};

use super::{NamespaceChoice, PoolKind, PoolReading, ReadPool, selector};
use crate::{
    check::{At, Invalid},
    fields::Unsupported,
    text::{quoted, shown},
};

/// A pool whose fields are filled in one by one. Of several errors the first is reported.
pub(crate) struct Draft {
    pub(super) pool: Pool,
    pub(super) namespaces: Option<NamespaceChoice>,
    kind: PoolKind,
    invalid: Option<Invalid>,
    notes: Vec<Unsupported>,
}

impl Draft {
    pub(super) fn new(kind: PoolKind, name: &str, metadata: &ObjectMeta) -> Self {
        let pool = Pool { created: created(metadata), ..Pool::new(name, &[]) };
        Self { pool, namespaces: None, kind, invalid: None, notes: Vec::new() }
    }

    pub(super) fn note(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.notes.push(Unsupported::new(field, message));
    }

    pub(super) fn refuse(&mut self, invalid: Invalid) {
        self.invalid.get_or_insert(invalid);
    }

    /// The value, unless it is wrong: then its default, in a pool that is refused.
    pub(super) fn take<T: Default>(&mut self, read: Result<T, Invalid>) -> T {
        read.unwrap_or_else(|invalid| {
            self.refuse(invalid);
            T::default()
        })
    }

    pub(super) fn blocks(&mut self, field: &str, blocks: Vec<Block>) {
        if blocks.is_empty() {
            self.note(field, format!("the pool {}", PoolWarning::NoBlocks));
        }
        self.pool.blocks = self.checked(field, blocks);
    }

    pub(super) fn avoid(&mut self, field: &str, blocks: Vec<Block>) {
        self.pool.avoid = self.checked(field, blocks);
    }

    fn checked(&mut self, field: &str, mut blocks: Vec<Block>) -> Vec<Block> {
        if blocks.len() > Pool::MAX_BLOCKS {
            self.refuse(Invalid::new(field, format!("more than {} entries: make several pools", Pool::MAX_BLOCKS)));
            // One too many, so that the allocator finds the same.
            blocks.truncate(Pool::MAX_BLOCKS + 1);
        }
        for (index, block) in blocks.iter().enumerate() {
            let said = |what: &dyn fmt::Display| format!("{} {what}", quoted(&block.to_string()));
            match (block, block.range()) {
                (_, Err(problem)) => self.refuse(Invalid::new(format!("{field}[{index}]"), said(&problem))),
                (Block::Cidr(net), Ok(_)) if net.trunc() != *net => {
                    let network = net.trunc();
                    let message = said(&format_args!("has host bits set and is taken for {network}"));
                    self.note(format!("{field}[{index}]"), message);
                }
                (Block::Cidr(_) | Block::Range { .. } | Block::Address(_) | Block::Unreadable(_), Ok(_)) => {}
            }
        }
        for block in &mut blocks {
            if let Block::Unreadable(text) = block {
                *text = shown(text);
            }
        }
        blocks
    }

    /// The pool's only selector. A wrong one is for everybody, in a pool that is refused.
    pub(super) fn selector(&mut self, field: &str, object: Option<&LabelSelector>) {
        self.pool.selectors = object.map(|object| self.take(selector::read(object, field))).into_iter().collect();
    }

    /// A pool of which nobody knows which addresses it has: it comes without any, refused, which an allocator knows
    /// from one that has none.
    pub(super) fn unread(mut self, invalid: Invalid) -> PoolReading {
        self.pool.blocks.clear();
        self.refuse(invalid);
        self.finish()
    }

    pub(super) fn finish(self) -> PoolReading {
        let pool = ReadPool { kind: self.kind, pool: self.pool, namespaces: self.namespaces, is_valid: true };
        let reading = PoolReading { pool, invalid: None, notes: self.notes };
        match self.invalid {
            Some(invalid) => reading.refused(invalid),
            None => reading,
        }
    }
}

/// When an object was made; long ago if it does not say.
pub(crate) fn created(metadata: &ObjectMeta) -> Timestamp {
    let time = metadata.creation_timestamp.as_ref();
    let millis = time.and_then(|time| u64::try_from(time.0.as_millisecond()).ok());
    Timestamp::from_millis(millis.unwrap_or_default())
}

/// A number from 0 to `max`.
pub(super) fn number<T: TryFrom<i64> + PartialOrd + fmt::Display>(
    number: Option<i64>,
    max: T,
    field: &str,
) -> Result<Option<T>, Invalid> {
    let Some(number) = number else { return Ok(None) };
    let fits = T::try_from(number).ok().filter(|number| *number <= max);
    let message = || format!("{number} is not a number from 0 to {max}");
    fits.map(Some).ok_or_else(message).at(|| field.to_owned())
}

/// An address as a block has it.
pub(super) fn address(text: &str, field: impl FnOnce() -> String) -> Result<IpAddr, Invalid> {
    text.trim().parse().map_err(|_| format!("{} is not an IP address", quoted(text))).at(field)
}
