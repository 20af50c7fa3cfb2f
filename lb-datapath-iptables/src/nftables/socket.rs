//! The netlink socket that one table is read and changed through.

use std::collections::BTreeMap;

use lb_netlink::{Protocol, Socket, Writer, string, u32_be};

use crate::{
    crash,
    netfilter::*,
    nftables::{
        change::{encoder::Encoder, lower::Origin},
        host::{Batch, CommitError, Table, TableRepair},
        table::{
            decode::{self, DecodedElement, RawElement},
            layout::{Key, Note, Set},
            messages::{self, Item, Verb},
            ruleset::{self, ListedChain, Ruleset},
        },
    },
};

/// Look-ups in one datagram: their answers have to fit into the queue of a socket without privileges.
const LOOK_UPS: usize = 32;

/// The name of a table that is tried and never made.
const TRIAL: &str = "lb trial";

/// No table has this name: a configuration with it is refused.
const NO_TABLE: &str = "?";

/// A table in the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct TableSocket {
    socket: Socket,
    table: String,
    affinity_records: u32,
}

impl TableSocket {
    pub(crate) fn open(table: &str, affinity_records: u32) -> lb_netlink::Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)?, table: table.to_owned(), affinity_records })
    }

    pub(crate) fn commit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError> {
        let mut encoder = Encoder::new(&self.table);
        if let Some(rebuild) = batch.rebuild {
            encoder.base(rebuild, self.affinity_records);
        }
        encoder.steps(batch.first);
        if batch.merged {
            encoder.merged(batch.steps);
        } else {
            encoder.steps(batch.steps);
        }
        encoder.forget(batch.forget);
        encoder.records(batch.records);
        self.send(encoder)
    }

    pub(crate) fn raw_elements(&mut self, set: Set) -> lb_netlink::Result<Vec<RawElement>> {
        let names = |w: &mut Writer| {
            w.put_str(NFTA_SET_ELEM_LIST_TABLE, &self.table);
            w.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
        };
        self.socket.dump(NFT_MSG_GETSETELEM, &nfgenmsg(NFPROTO_INET, 0), names, |found: &mut Vec<_>, message| {
            found.extend(decode::raw_elements(set, message.payload));
        })
    }

    pub(crate) fn look_up(&mut self, set: Set, keys: &[Vec<u8>]) -> lb_netlink::Result<Vec<RawElement>> {
        let mut found = Vec::with_capacity(keys.len());
        for some in keys.chunks(LOOK_UPS) {
            let mut writer = Writer::default();
            some.iter().for_each(|key| messages::ask_element(&mut writer, &self.table, set, key));
            let mut failed = None;
            self.socket.look_up(writer, |_, answer| match answer {
                Ok(message) => found.extend(decode::raw_elements(set, message.payload)),
                Err(error) if error.errno() == nix::libc::ENOENT => {}
                Err(error) => failed = Some(error),
            })?;
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        Ok(found)
    }

    pub(crate) fn ruleset(&mut self) -> lb_netlink::Result<Ruleset> {
        let table = self.table.clone();
        let name = |w: &mut Writer| w.put_str(NFTA_TABLE_NAME, &table);
        let mut found = Ruleset::default();
        let (tables, all) = (|_: &mut Writer| {}, nfgenmsg(NFPROTO_INET, 0));
        found.dormant = self.socket.dump(NFT_MSG_GETTABLE, &all, tables, |dormant: &mut bool, message| {
            *dormant |= ruleset::is_dormant(&table, message.payload);
        })?;
        found.sets = self.socket.dump(NFT_MSG_GETSET, &all, name, |sets: &mut BTreeMap<_, _>, message| {
            sets.extend(ruleset::read_set(&table, message.payload));
        })?;
        let chains = self.socket.dump(NFT_MSG_GETCHAIN, &all, name, |chains: &mut Vec<_>, message| {
            chains.extend(ruleset::read_chain(&table, message.payload));
        })?;
        let made = |(name, base)| (name, ListedChain { base, rules: Vec::new() });
        found.chains = chains.into_iter().map(made).collect();
        let rules = self.socket.dump(NFT_MSG_GETRULE, &all, name, |rules: &mut Vec<_>, message| {
            rules.extend(ruleset::read_rule(&table, message.payload));
        })?;
        for (chain, rule) in rules {
            found.chains.entry(chain).or_default().rules.push(rule);
        }
        Ok(found)
    }

    pub(crate) fn repair(&mut self, repair: &TableRepair) -> Result<(), CommitError> {
        let mut encoder = Encoder::new(&self.table);
        encoder.steps(&repair.first);
        encoder.repair(repair);
        self.send(encoder)
    }

    pub(crate) fn name(&self) -> String {
        format!("inet {}", self.table)
    }

    pub(crate) fn transactions(&mut self) -> lb_netlink::Result<u32> {
        let mut writer = Writer::default();
        messages::ask_generation(&mut writer);
        let mut found = Err(lb_netlink::Error::NotAcknowledged);
        self.socket.look_up(writer, |_, answer| {
            let number = |payload: &[u8]| body(payload).find(NFTA_GEN_ID).and_then(u32_be);
            found = match answer {
                Ok(message) => number(message.payload).ok_or(lb_netlink::Error::NotAcknowledged),
                Err(error) => Err(error.into()),
            };
        })?;
        found
    }

    pub(crate) fn port(&self) -> lb_netlink::Result<u32> {
        self.socket.port()
    }

    pub(crate) fn elements(&mut self, set: Set) -> lb_netlink::Result<Vec<Option<DecodedElement>>> {
        let names = |w: &mut Writer| {
            w.put_str(NFTA_SET_ELEM_LIST_TABLE, &self.table);
            w.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
        };
        self.socket.dump(NFT_MSG_GETSETELEM, &nfgenmsg(NFPROTO_INET, 0), names, |found: &mut Vec<_>, message| {
            found.extend(decode::elements(set, message.payload));
        })
    }

    /// Sends a batch for a table that cannot exist, so the kernel refuses the batch in any case. A kernel that does not
    /// know the message says EINVAL.
    pub(crate) fn is_supported(&mut self) -> lb_netlink::Result<bool> {
        let mut encoder = Encoder::new(NO_TABLE);
        let nothing = Key::Note(Note::Generation, 0);
        encoder.add(Origin::Shared, |w, table| {
            messages::elements(w, table, Verb::Destroy, Set::Notes, [Item::Key(&nothing)]);
        });
        match self.send(encoder).map_err(lb_netlink::Error::from) {
            Err(error) if error.errno() == Some(nix::libc::EINVAL) => Ok(false),
            Err(error) if error.errno() != Some(nix::libc::ENOENT) => Err(error),
            _ => Ok(true),
        }
    }

    /// Whether the kernel can give single connections time-outs of their own. Sends a batch that ends with a message for
    /// a table that cannot exist, so the kernel refuses the batch in any case, and names the object too if it has no
    /// such objects.
    pub(crate) fn has_timeouts(&mut self) -> lb_netlink::Result<bool> {
        let mut encoder = Encoder::new(TRIAL);
        encoder.add(Origin::Generation, messages::add_table);
        encoder.add(Origin::Shared, messages::add_timeouts);
        encoder.add(Origin::Generation, |w, _| messages::flush_chain(w, NO_TABLE, TRIAL));
        match self.send(encoder) {
            Err(CommitError::Refused(refused)) => Ok(!refused.iter().any(|(origin, _)| *origin == Origin::Shared)),
            Err(CommitError::Unknown(error)) => Err(error),
            Ok(()) => Err(lb_netlink::Error::NotAcknowledged),
        }
    }

    /// Dumps every table: there are few, and a table that is not in the dump does not exist.
    pub(crate) fn find(&mut self) -> lb_netlink::Result<Table> {
        let name = self.table.clone();
        self.socket
            .dump(
                NFT_MSG_GETTABLE,
                &nfgenmsg(NFPROTO_INET, 0),
                |_| {},
                |found: &mut Option<Table>, message| {
                    *found = found.or_else(|| decode::table(&name, message.payload));
                },
            )
            .map(|found| found.unwrap_or(Table::Absent))
    }

    pub(crate) fn rule_count(&mut self) -> lb_netlink::Result<u64> {
        let table = self.table.clone();
        let name = |w: &mut Writer| w.put_str(NFTA_TABLE_NAME, &self.table);
        self.socket.dump(NFT_MSG_GETRULE, &nfgenmsg(NFPROTO_INET, 0), name, |count: &mut u64, message| {
            let found = body(message.payload);
            *count += u64::from(found.find(NFTA_RULE_TABLE).and_then(string) == Some(&table));
        })
    }

    pub(crate) fn remove(&mut self, handle: u64) -> lb_netlink::Result<bool> {
        let mut encoder = Encoder::new(&self.table);
        encoder.add(Origin::Shared, |w, _| messages::remove_table(w, handle));
        match self.send(encoder).map_err(lb_netlink::Error::from) {
            Err(error) if error.errno() == Some(nix::libc::ENOENT) => Ok(false),
            sent => sent.map(|()| true),
        }
    }

    fn send(&mut self, mut encoder: Encoder) -> Result<(), CommitError> {
        messages::end(&mut encoder.writer);
        let last = encoder.writer.messages() - 2;
        let refused = crash::around(|| self.socket.transaction(encoder.writer, last)).map_err(unsent)?;
        if refused.is_empty() {
            return Ok(());
        }
        let origin = |index: u32| encoder.origins.get(index as usize).copied().unwrap_or(Origin::Shared);
        Err(CommitError::Refused(refused.into_iter().map(|r| (origin(r.index), r.error.into())).collect()))
    }
}

/// A datagram that the kernel did not take has changed nothing. Where the answer is missing, the outcome is not known.
fn unsent(error: lb_netlink::Error) -> CommitError {
    match error.errno() {
        _ if matches!(error, lb_netlink::Error::TooLarge { .. }) => CommitError::Refused(vec![(Origin::Shared, error)]),
        Some(nix::libc::EPERM | nix::libc::EACCES | nix::libc::EMSGSIZE) => {
            CommitError::Refused(vec![(Origin::Shared, error)])
        }
        _ => CommitError::Unknown(error),
    }
}
