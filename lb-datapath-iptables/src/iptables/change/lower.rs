//! From states to the input of `iptables-restore --noflush`. Pure.

use std::collections::BTreeSet;

use lb_core::{
    addr::{Family, FrontendAddr},
    plan::Labels,
    state::{Frontend, State, Target},
};

use crate::iptables::rules::{
    choice::{Choice, Host},
    hooks::Hook,
    invalid::{self, Ends},
    names::{Chain, FILTER, MARK_DROP, MARK_MASQ, MARK_REJECT, MARK_SOURCE, NODE, POSTROUTING, SERVICES},
    notes::{FrontendNote, printable},
    restore::Restore,
};

/// Most slots of a set. A draw is exact to one part in 2^31, whatever their number.
pub(crate) const MAX_SLOTS: u32 = 131_071;

/// Settings that differ between hosts, not between plans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub(crate) masquerade_mark: u32,
    pub(crate) reject_mark: u32,
    pub(crate) drop_mark: u32,
    /// Whether `MASQUERADE` knows `--random-fully`.
    pub(crate) random_fully: bool,
}

/// One family's share of a plan.
pub(crate) struct Job<'a> {
    pub(crate) family: Family,
    pub(crate) style: Style,
    pub(crate) before: &'a State,
    pub(crate) after: &'a State,
    pub(crate) labels: &'a Labels,
    /// Frontends whose chains are written or go; those of the other family are skipped.
    pub(crate) dirty: &'a BTreeSet<FrontendAddr>,
    /// Chains that no frontend has and that go.
    pub(crate) stray: &'a BTreeSet<Chain>,
    /// Whether the chains that do not depend on frontends are written.
    pub(crate) base: bool,
    /// Jumps from built-in chains that go in front.
    pub(crate) missing: &'a BTreeSet<Hook>,
    /// Those of them that are there, behind others' rules.
    pub(crate) behind: &'a BTreeSet<Hook>,
}

impl Job<'_> {
    /// Filter comes first: what nat marks is refused from the first packet on, and the one commit of nat decides for
    /// all frontends at once.
    pub(crate) fn restore(&self) -> Restore {
        let mut out = Restore::with_capacity(160 * self.after.frontends.len() + 1200 * self.dirty.len());
        self.filter(&mut out);
        self.nat(&mut out);
        out
    }

    fn filter(&self, out: &mut Restore) {
        let (before, after) = (Ends::of(self.before, self.family), Ends::of(self.after, self.family));
        let jumps = self.missing.iter().any(|hook| hook.in_filter());
        if !self.base && !jumps && !after.differ(&before) {
            return;
        }
        out.line(format_args!("*filter"));
        if self.base || jumps {
            self.verdicts(out);
        }
        after.write((!self.base).then_some(&before), out);
        if self.base {
            invalid::write_dispatch(self.family, &self.after.node.cluster_cidrs, out);
        }
        self.jumps(out, true);
        out.line(format_args!("COMMIT"));
    }

    /// The chain that acts on the marks of nat.
    fn verdicts(&self, out: &mut Restore) {
        let Style { reject_mark, drop_mark, .. } = self.style;
        let reject = format_args!("-m mark --mark {reject_mark:#x} -j REJECT --reject-with");
        let drop = format_args!("-m mark --mark {drop_mark:#x} -j DROP");
        out.line(format_args!(":{FILTER} - [0:0]"));
        out.line(format_args!("-A {FILTER} -p tcp {reject} tcp-reset"));
        match self.family {
            Family::V4 => {
                out.line(format_args!("-A {FILTER} {reject} icmp-port-unreachable"));
                // A datagram of the node's own would fail in the call that sends it; on the way through the
                // loopback device it is lost without a word, when it comes in.
                out.line(format_args!("-A {FILTER} -p tcp {drop}"));
                out.line(format_args!("-A {FILTER} ! -o lo {drop}"));
            }
            Family::V6 => {
                out.line(format_args!("-A {FILTER} {reject} icmp6-port-unreachable"));
                // Beyond this chain the route of the node's own packets would answer that there is none.
                out.line(format_args!("-A {FILTER} {drop}"));
            }
        }
    }

    fn nat(&self, out: &mut Restore) {
        let chains = self.chains();
        out.line(format_args!("*nat"));
        out.line(format_args!(":{SERVICES} - [0:0]"));
        if self.base {
            for chain in [MARK_MASQ, MARK_SOURCE, MARK_REJECT, MARK_DROP, NODE, POSTROUTING] {
                out.line(format_args!(":{chain} - [0:0]"));
            }
        }
        for chain in chains.kept.iter().chain(&chains.gone) {
            out.line(format_args!(":{chain} - [0:0]"));
        }
        self.services(out);
        if self.base {
            self.marks(out);
            self.node(out);
            self.postrouting(out);
        }
        for choice in self.dirty().filter_map(|addr| Choice::new(self.after, addr)) {
            choice.write(out);
        }
        for chain in &chains.gone {
            out.line(format_args!("-X {chain}"));
        }
        self.jumps(out, false);
        out.line(format_args!("COMMIT"));
    }

    /// One rule per frontend: a packet walks them in order of address until one matches.
    fn services(&self, out: &mut Restore) {
        for (&addr, frontend) in self.after.frontends.iter().filter(|(addr, _)| addr.family() == self.family) {
            let label = self.labels.get(&addr).map_or("", |label| printable(label));
            let note = FrontendNote { id: frontend.id, affinity: frontend.affinity, label };
            let (ip, protocol, port) = (Host(addr.ip), addr.protocol, addr.port);
            let rule = format_args!(
                "-A {SERVICES} -d {ip} -p {protocol} -m {protocol} --dport {port} -m comment --comment \"{note}\" -j"
            );
            match frontend.target {
                Target::Set(_) => out.owned(addr, format_args!("{rule} {}", Chain::service(addr))),
                Target::Reject => out.owned(addr, format_args!("{rule} {MARK_REJECT}")),
                Target::Drop => out.owned(addr, format_args!("{rule} {MARK_DROP}")),
            }
        }
    }

    fn marks(&self, out: &mut Restore) {
        let Style { masquerade_mark, reject_mark, drop_mark, .. } = self.style;
        out.line(format_args!("-A {MARK_MASQ} -j MARK --or-mark {masquerade_mark:#x}"));
        // A refusal in `OUTPUT` fails the call that sends a datagram (EPERM). Sent to port 0 of the node, where nobody
        // can listen, it is answered as to any closed port.
        out.line(format_args!("-A {MARK_REJECT} -p udp -m addrtype --src-type LOCAL -j REDIRECT --to-ports 0"));
        out.line(format_args!("-A {MARK_REJECT} -j MARK --set-mark {reject_mark:#x}"));
        out.line(format_args!("-A {MARK_DROP} -j MARK --set-mark {drop_mark:#x}"));
    }

    /// A chain of its own, since `! -s` can exclude only one prefix; and so a change of the prefixes touches no
    /// service.
    fn node(&self, out: &mut Restore) {
        let node = &self.after.node;
        for (index, cidr) in node.cluster_cidrs.iter().enumerate() {
            if Family::of(cidr.network()) == self.family {
                out.line(format_args!(
                    "-A {MARK_SOURCE} -s {} -m comment --comment \"{index} {cidr}\" -j RETURN",
                    cidr.trunc()
                ));
            }
        }
        out.line(format_args!("-A {MARK_SOURCE} -j {MARK_MASQ}"));
        for (index, &ip) in node.ips.iter().enumerate() {
            if Family::of(ip) == self.family {
                out.line(format_args!("-A {NODE} -d {} -m comment --comment \"{index}\"", Host(ip)));
            }
        }
        if let Some(name) = node.name.as_ref().map(|name| printable(name.as_str())).filter(|name| !name.is_empty()) {
            out.line(format_args!("-A {NODE} -m comment --comment \"name {name}\""));
        }
    }

    fn postrouting(&self, out: &mut Restore) {
        let mark = self.style.masquerade_mark;
        let fully = if self.style.random_fully { " --random-fully" } else { "" };
        out.line(format_args!("-A {POSTROUTING} -m mark ! --mark {mark:#x}/{mark:#x} -j RETURN"));
        out.line(format_args!("-A {POSTROUTING} -j MARK --xor-mark {mark:#x}"));
        out.line(format_args!("-A {POSTROUTING} -j MASQUERADE{fully}"));
    }

    fn jumps(&self, out: &mut Restore, filter: bool) {
        for hook in self.missing.iter().filter(|hook| hook.in_filter() == filter) {
            if self.behind.contains(hook) {
                out.line(format_args!("-D {} {}", hook.chain(), hook.rule()));
            }
            out.line(format_args!("-I {} 1 {}", hook.chain(), hook.rule()));
        }
    }

    /// Frontends of this family whose chains are written or go.
    fn dirty(&self) -> impl Iterator<Item = FrontendAddr> {
        self.dirty.iter().copied().filter(|addr| addr.family() == self.family)
    }

    fn chains(&self) -> Chains {
        let mut chains = Chains { kept: BTreeSet::new(), gone: self.stray.clone() };
        for addr in self.dirty() {
            chains.kept.extend(chains_of(self.after, addr));
            chains.gone.extend(chains_of(self.before, addr));
        }
        chains.gone.retain(|chain| !chains.kept.contains(chain));
        chains
    }
}

struct Chains {
    kept: BTreeSet<Chain>,
    gone: BTreeSet<Chain>,
}

/// The chains that `addr` has in `state`.
pub(crate) fn chains_of(state: &State, addr: FrontendAddr) -> Vec<Chain> {
    let Some(Frontend { target: Target::Set(id), .. }) = state.frontends.get(&addr) else { return Vec::new() };
    let backends = state.sets.get(id).map(|set| set.backends()).unwrap_or_default();
    let backends = backends.iter().filter_map(|id| state.backends.get(id));
    let endpoints = backends.map(|backend| Chain::endpoint(addr, backend.addr));
    std::iter::once(Chain::service(addr)).chain(endpoints).collect()
}
