//! The kernel's side: one batch in, dumps out.

use std::collections::BTreeMap;

use lb_core::FrontendAddr;

use crate::{
    crash,
    netfilter::*,
    nftables::{
        change::lower::{Action, Origin, Step},
        table::{
            decode::{self, DecodedElement, RawElement},
            layout::{Element, Key, Note, Set},
            messages::{self, Item, Verb},
            rules::{self, Rule},
            ruleset::{self, ListedChain, Ruleset},
        },
    },
};
use lb_netlink::{Protocol, Socket, Writer, string, u32_be};

/// What a table's executor does. Boring on purpose: everything that decides is before it.
pub(crate) trait Kernel: Send {
    /// Carries out a batch, all of it or nothing.
    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError>;

    /// The elements of a set; `None` stands for one that is not of our making.
    fn elements(&mut self, set: Set) -> lb_netlink::Result<Vec<Option<DecodedElement>>>;

    /// The elements of a set, with the bytes of their keys. An error of kind `NotFound` if there is no such set.
    fn raw_elements(&mut self, set: Set) -> lb_netlink::Result<Vec<RawElement>>;

    /// The elements of `set` with these keys, as far as they are there. An error of kind `NotFound` if there is no such
    /// set.
    fn look_up(&mut self, set: Set, keys: &[Vec<u8>]) -> lb_netlink::Result<Vec<RawElement>>;

    /// Sets, chains and rules of the table.
    fn ruleset(&mut self) -> lb_netlink::Result<Ruleset>;

    /// Puts objects back as they should be, all of them or none.
    fn mend(&mut self, mend: &TableRepair) -> Result<(), CommitError>;

    /// Number of transactions of anybody in the network namespace, counted from somewhere.
    fn transactions(&mut self) -> lb_netlink::Result<u32>;

    /// Address of the socket that makes our own changes.
    fn port(&self) -> lb_netlink::Result<u32>;

    /// The table's family and name.
    fn name(&self) -> String;

    /// Whether the kernel has every message that this datapath sends.
    fn is_supported(&mut self) -> lb_netlink::Result<bool>;

    /// What is there under the table's name.
    fn table(&mut self) -> lb_netlink::Result<Table>;

    /// Number of rules in the table.
    fn rules(&mut self) -> lb_netlink::Result<u64>;

    /// Removes the table with this handle; `false` if it is gone already.
    fn remove_table(&mut self, handle: u64) -> lb_netlink::Result<bool>;
}

/// What is there under the table's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Nothing.
    Absent,
    /// A table with our marker. No other table ever has its handle.
    Ours(u64),
    /// A table without our marker.
    Foreign,
}

/// How a batch makes the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rebuild {
    /// There is none. One that appeared in the meantime is somebody's: the batch is refused.
    Add,
    /// In place of our own with this handle.
    Replace(u64),
}

/// What one transaction does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Batch<'a> {
    /// Make the table first.
    pub(crate) rebuild: Option<Rebuild>,
    /// Operations that come before all others.
    pub(crate) first: &'a [Step],
    /// Operations.
    pub(crate) steps: &'a [Step],
    /// Clients' records to remove, each for its frontend; they may be gone already.
    pub(crate) forget: &'a [(FrontendAddr, Key)],
    /// Clients' records that a table that is made anew takes over.
    pub(crate) records: &'a [DecodedElement],
    /// Whether elements of one set share messages whomever they are for: the kernel takes that in much less time, but a
    /// refusal says nothing about who is to blame. Only for operations that add.
    pub(crate) merged: bool,
}

/// Objects to put back.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableRepair {
    /// Operations that come before all others.
    pub(crate) first: Vec<Step>,
    /// Chains that get these rules and no others; they are made where they are not there.
    pub(crate) chains: Vec<ChainRepair>,
    /// Chains that go, with their rules.
    pub(crate) chains_gone: Vec<String>,
    /// Sets that go.
    pub(crate) sets_gone: Vec<String>,
    /// Sets that are emptied.
    pub(crate) emptied: Vec<Set>,
    /// Elements that go, whoever made them; they may be gone already.
    pub(crate) gone: Vec<(Set, Vec<u8>)>,
    /// Elements that come.
    pub(crate) added: Vec<Element>,
}

/// A chain to put back.
#[derive(Clone, Debug)]
pub(crate) struct ChainRepair {
    pub(crate) name: String,
    pub(crate) hook: Option<(u32, i32)>,
    pub(crate) rules: Vec<Rule>,
    /// Whether it is there.
    pub(crate) there: bool,
    /// Whether what is there is not the right kind of chain.
    pub(crate) wrong: bool,
}

/// Why a batch did not take.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// The kernel named what it refused; nothing took.
    Refused(Vec<(Origin, lb_netlink::Error)>),
    /// What took is not known.
    Unknown(lb_netlink::Error),
}

impl From<CommitError> for lb_netlink::Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Unknown(error) => error,
            CommitError::Refused(refused) => {
                refused.into_iter().next().map_or(Self::NotAcknowledged, |(_, error)| error)
            }
        }
    }
}

/// Look-ups in one datagram: their answers have to fit into the queue of a socket without privileges.
const LOOK_UPS: usize = 32;

/// A name that no table has: a configuration with it is refused.
const NO_TABLE: &str = "?";

/// A table in the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    table: String,
    affinity_records: u32,
}

impl Netlink {
    pub(crate) fn open(table: &str, affinity_records: u32) -> lb_netlink::Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)?, table: table.to_owned(), affinity_records })
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

impl Kernel for Netlink {
    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError> {
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

    fn raw_elements(&mut self, set: Set) -> lb_netlink::Result<Vec<RawElement>> {
        let names = |w: &mut Writer| {
            w.put_str(NFTA_SET_ELEM_LIST_TABLE, &self.table);
            w.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
        };
        self.socket.dump(NFT_MSG_GETSETELEM, &nfgenmsg(NFPROTO_INET, 0), names, |found: &mut Vec<_>, message| {
            found.extend(decode::raw_elements(set, message.payload));
        })
    }

    fn look_up(&mut self, set: Set, keys: &[Vec<u8>]) -> lb_netlink::Result<Vec<RawElement>> {
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

    fn ruleset(&mut self) -> lb_netlink::Result<Ruleset> {
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

    fn mend(&mut self, mend: &TableRepair) -> Result<(), CommitError> {
        let mut encoder = Encoder::new(&self.table);
        encoder.steps(&mend.first);
        encoder.mend(mend);
        self.send(encoder)
    }

    fn name(&self) -> String {
        format!("inet {}", self.table)
    }

    fn transactions(&mut self) -> lb_netlink::Result<u32> {
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

    fn port(&self) -> lb_netlink::Result<u32> {
        self.socket.port()
    }

    fn elements(&mut self, set: Set) -> lb_netlink::Result<Vec<Option<DecodedElement>>> {
        let names = |w: &mut Writer| {
            w.put_str(NFTA_SET_ELEM_LIST_TABLE, &self.table);
            w.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
        };
        self.socket.dump(NFT_MSG_GETSETELEM, &nfgenmsg(NFPROTO_INET, 0), names, |found: &mut Vec<_>, message| {
            found.extend(decode::elements(set, message.payload));
        })
    }

    /// The batch is for a table that cannot be there, so that it is refused in any case. A kernel that does not know
    /// the message says EINVAL.
    fn is_supported(&mut self) -> lb_netlink::Result<bool> {
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

    /// Dumps every table: there are few, and what a dump leaves out is not there.
    fn table(&mut self) -> lb_netlink::Result<Table> {
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

    fn rules(&mut self) -> lb_netlink::Result<u64> {
        let table = self.table.clone();
        let name = |w: &mut Writer| w.put_str(NFTA_TABLE_NAME, &self.table);
        self.socket.dump(NFT_MSG_GETRULE, &nfgenmsg(NFPROTO_INET, 0), name, |count: &mut u64, message| {
            let found = body(message.payload);
            *count += u64::from(found.find(NFTA_RULE_TABLE).and_then(string) == Some(&table));
        })
    }

    fn remove_table(&mut self, handle: u64) -> lb_netlink::Result<bool> {
        let mut encoder = Encoder::new(&self.table);
        encoder.add(Origin::Shared, |w, _| messages::remove_table(w, handle));
        match self.send(encoder).map_err(lb_netlink::Error::from) {
            Err(error) if error.errno() == Some(nix::libc::ENOENT) => Ok(false),
            sent => sent.map(|()| true),
        }
    }
}

/// A datagram that the kernel did not take has done nothing; an answer that went missing says nothing.
fn unsent(error: lb_netlink::Error) -> CommitError {
    match error.errno() {
        _ if matches!(error, lb_netlink::Error::TooLarge { .. }) => CommitError::Refused(vec![(Origin::Shared, error)]),
        Some(nix::libc::EPERM | nix::libc::EACCES | nix::libc::EMSGSIZE) => {
            CommitError::Refused(vec![(Origin::Shared, error)])
        }
        _ => CommitError::Unknown(error),
    }
}

/// Writes a batch and remembers what each message is for.
struct Encoder {
    table: String,
    writer: Writer,
    origins: Vec<Origin>,
}

impl Encoder {
    fn new(table: &str) -> Self {
        let mut encoder = Self { table: table.to_owned(), writer: Writer::default(), origins: Vec::new() };
        encoder.add(Origin::Shared, |w, _| messages::begin(w));
        encoder
    }

    fn base(&mut self, rebuild: Rebuild, affinity_records: u32) {
        self.add(Origin::Generation, |w, table| {
            if let Rebuild::Replace(handle) = rebuild {
                messages::remove_table(w, handle);
            }
            messages::add_table(w, table);
        });
        self.add(Origin::Shared, |w, table| {
            for (id, set) in (1..).zip(Set::ALL) {
                messages::add_set(w, table, set, id, affinity_records);
            }
            for chain in rules::chains() {
                messages::add_chain(w, table, &chain);
                for rule in &chain.rules {
                    messages::add_rule(w, table, chain.name, rule);
                }
            }
        });
    }

    /// Neighbouring elements of one set for one frontend share a message.
    fn steps(&mut self, steps: &[Step]) {
        for run in steps.chunk_by(together) {
            let [first, ..] = run else { continue };
            self.add(first.origin, |w, table| match &first.action {
                Action::AddPick(pick) => messages::add_pick(w, table, pick),
                Action::RemovePick(pick) => messages::remove_pick(w, table, pick),
                Action::Add(element) => {
                    messages::elements(w, table, Verb::Add, element.key.set(), run.iter().filter_map(item))
                }
                Action::Remove(key) => {
                    messages::elements(w, table, Verb::Remove, key.set(), run.iter().filter_map(item))
                }
            });
        }
    }

    /// Chains, then the elements set by set.
    fn merged(&mut self, steps: &[Step]) {
        self.add(Origin::Shared, |w, table| {
            let mut sets: BTreeMap<Set, Vec<Item<'_>>> = BTreeMap::new();
            for step in steps {
                match &step.action {
                    Action::AddPick(pick) => messages::add_pick(w, table, pick),
                    Action::Add(element) => sets.entry(element.key.set()).or_default().extend(item(step)),
                    // Not in a batch that only adds.
                    Action::RemovePick(_) | Action::Remove(_) => {}
                }
            }
            for (set, items) in sets {
                messages::elements(w, table, Verb::Add, set, items);
            }
        });
    }

    fn forget(&mut self, records: &[(FrontendAddr, Key)]) {
        for run in records.chunk_by(|a, b| a.0 == b.0) {
            let [(addr, key), ..] = run else { continue };
            let items = run.iter().map(|(_, key)| Item::Key(key));
            self.add(Origin::Frontend(*addr), |w, table| messages::elements(w, table, Verb::Destroy, key.set(), items));
        }
    }

    fn records(&mut self, records: &[DecodedElement]) {
        for run in records.chunk_by(|(a, _), (b, _)| a.key.set() == b.key.set()) {
            let [(first, _), ..] = run else { continue };
            let items = run.iter().map(|(element, life)| Item::Whole(element, *life));
            self.add(Origin::Shared, |w, table| messages::elements(w, table, Verb::Add, first.key.set(), items));
        }
    }

    /// Rules go before what they lead to, and come after it; the same holds for values that lead to chains.
    fn mend(&mut self, mend: &TableRepair) {
        self.add(Origin::Shared, |w, table| {
            let there = mend.chains.iter().filter(|chain| chain.there).map(|chain| &chain.name);
            there.chain(&mend.chains_gone).for_each(|chain| messages::flush_chain(w, table, chain));
            mend.emptied.iter().for_each(|&set| messages::flush_set(w, table, set));
            mend.gone.iter().for_each(|(set, key)| messages::destroy_raw(w, table, *set, key));
            let wrong = mend.chains.iter().filter(|chain| chain.there && chain.wrong).map(|chain| &chain.name);
            mend.chains_gone.iter().chain(wrong).for_each(|chain| messages::remove_chain(w, table, chain));
            mend.sets_gone.iter().for_each(|set| messages::remove_set(w, table, set));
            for chain in mend.chains.iter().filter(|chain| !chain.there || chain.wrong) {
                messages::add_named_chain(w, table, &chain.name, chain.hook);
            }
            for chain in &mend.chains {
                chain.rules.iter().for_each(|rule| messages::add_rule(w, table, &chain.name, rule));
            }
            for run in mend.added.chunk_by(|a, b| a.key.set() == b.key.set()) {
                let [first, ..] = run else { continue };
                let items = run.iter().map(|element| Item::Whole(element, None));
                messages::elements(w, table, Verb::Add, first.key.set(), items);
            }
        });
    }

    fn add(&mut self, origin: Origin, write: impl FnOnce(&mut Writer, &str)) {
        write(&mut self.writer, &self.table);
        self.origins.resize(self.writer.messages() as usize, origin);
    }
}

fn together(a: &Step, b: &Step) -> bool {
    a.origin == b.origin
        && match (&a.action, &b.action) {
            (Action::Add(a), Action::Add(b)) => a.key.set() == b.key.set(),
            (Action::Remove(a), Action::Remove(b)) => a.set() == b.set(),
            _ => false,
        }
}

fn item(step: &Step) -> Option<Item<'_>> {
    match &step.action {
        Action::Add(element) => Some(Item::Whole(element, None)),
        Action::Remove(key) => Some(Item::Key(key)),
        Action::AddPick(_) | Action::RemovePick(_) => None,
    }
}
