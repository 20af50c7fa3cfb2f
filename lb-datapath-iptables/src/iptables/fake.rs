//! Tools and host in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use lb_core::{
    addr::{BackendAddr, Family},
    datapath::{DatapathError, ErrorKind},
    decision::Packet,
};

use crate::{
    conntrack::Allowed,
    iptables::{
        check::drift::RouteDrift,
        host::Host,
        tools::{ToolError, Tools},
    },
    routes::{Foreign, InstalledRoutes, RouteFilter, RouteKind},
};

/// iptables as far as it matters here: chains, rules, and the references that it checks.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeTools(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    tables: BTreeMap<(Family, &'static str), Chains>,
    inputs: Vec<String>,
    refuses: Option<String>,
    broken: bool,
}

type Chains = BTreeMap<String, Vec<String>>;

impl FakeTools {
    /// Every input that it got.
    pub(crate) fn inputs(&self) -> Vec<String> {
        self.0.lock().unwrap().inputs.clone()
    }

    /// From now on refuses lines that contain `text`, and says which.
    pub(crate) fn refuse(&self, text: &str) {
        self.0.lock().unwrap().refuses = Some(text.to_owned());
    }

    /// Whether every restore fails without a reason.
    pub(crate) fn set_broken(&self, broken: bool) {
        self.0.lock().unwrap().broken = broken;
    }

    /// Rules of a chain.
    pub(crate) fn rules(&self, family: Family, table: &'static str, chain: &str) -> Vec<String> {
        let inner = self.0.lock().unwrap();
        inner.tables.get(&(family, table)).and_then(|chains| chains.get(chain)).cloned().unwrap_or_default()
    }

    /// All chains of a table but the built-in ones.
    pub(crate) fn chains(&self, family: Family, table: &'static str) -> Vec<String> {
        let inner = self.0.lock().unwrap();
        let chains = inner.tables.get(&(family, table)).into_iter().flat_map(|chains| chains.keys().cloned());
        chains.filter(|chain| chain.starts_with("LB-")).collect()
    }

    /// All rules of both families.
    pub(crate) fn saved(&self) -> String {
        let save = |(family, table)| self.save(family, table).unwrap();
        let families = [Family::V4, Family::V6].into_iter();
        families.flat_map(|family| ["nat", "filter"].map(|table| (family, table))).map(save).collect()
    }

    /// What an administrator does by hand.
    pub(crate) fn edit(&self, family: Family, table: &'static str, edit: impl FnOnce(&mut Chains)) {
        edit(self.0.lock().unwrap().tables.entry((family, table)).or_insert_with(built_in));
    }
}

impl Tools for FakeTools {
    fn restore(&self, family: Family, input: &str) -> Result<(), ToolError> {
        let mut inner = self.0.lock().unwrap();
        inner.inputs.push(input.to_owned());
        if inner.broken {
            return Err(failed(None, "broken"));
        }
        let mut table = None;
        for (number, line) in (1..).zip(input.lines()) {
            if inner.refuses.as_ref().is_some_and(|text| line.contains(text)) {
                return Err(failed(Some(number), line));
            }
            match (line, &mut table) {
                ("*nat", None) => table = Some(("nat", inner.chains(family, "nat"))),
                ("*filter", None) => table = Some(("filter", inner.chains(family, "filter"))),
                ("COMMIT", Some(_)) => {
                    let (name, chains) = table.take().unwrap();
                    dangling(&chains).map_or(Ok(()), |target| Err(failed(Some(number), &target)))?;
                    inner.tables.insert((family, name), chains);
                }
                (line, Some((_, chains))) => execute(chains, line).ok_or_else(|| failed(Some(number), line))?,
                (line, None) => return Err(failed(Some(number), line)),
            }
        }
        assert!(table.is_none(), "no COMMIT: {input}");
        Ok(())
    }

    fn save(&self, family: Family, table: &str) -> Result<String, ToolError> {
        let inner = self.0.lock().unwrap();
        let chains = inner.chains(family, if table == "nat" { "nat" } else { "filter" });
        let mut text = format!("*{table}\n");
        for chain in chains.keys() {
            text.push_str(&format!(":{chain} - [0:0]\n"));
        }
        for (chain, rules) in &chains {
            for rule in rules {
                text.push_str(&format!("-A {chain} {}\n", as_saved(rule)));
            }
        }
        Ok(text + "COMMIT\n")
    }

    fn list(&self, family: Family, chain: &str) -> Result<String, ToolError> {
        let saved = self.save(family, "nat")?;
        let rules = saved.lines().filter(|line| line.starts_with(&format!("-A {chain} ")));
        Ok(rules.map(|line| format!("{line}\n")).collect())
    }
}

impl Inner {
    fn chains(&self, family: Family, table: &'static str) -> Chains {
        self.tables.get(&(family, table)).cloned().unwrap_or_else(built_in)
    }
}

fn built_in() -> Chains {
    ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].map(|chain| (chain.to_owned(), Vec::new())).into()
}

fn execute(chains: &mut Chains, line: &str) -> Option<()> {
    if let Some(chain) = line.strip_prefix(':') {
        chains.insert(chain.strip_suffix(" - [0:0]")?.to_owned(), Vec::new());
        return Some(());
    }
    let (verb, rest) = line.split_once(' ')?;
    match verb {
        "-A" => {
            let (chain, rule) = rest.split_once(' ')?;
            chains.get_mut(chain)?.push(rule.to_owned());
        }
        "-I" => {
            let (chain, rule) = rest.split_once(' ')?;
            chains.get_mut(chain)?.insert(0, rule.strip_prefix("1 ")?.to_owned());
        }
        "-D" => {
            let (chain, rule) = rest.split_once(' ')?;
            let rules = chains.get_mut(chain)?;
            let index = rules.iter().position(|known| as_saved(known) == rule)?;
            rules.remove(index);
        }
        "-X" => {
            let referenced = chains.values().flatten().any(|rule| target(rule) == Some(rest));
            let removed = chains.remove(rest)?;
            return (removed.is_empty() && !referenced).then_some(());
        }
        _ => return None,
    }
    Some(())
}

/// The first jump to a chain that does not exist.
fn dangling(chains: &Chains) -> Option<String> {
    const TARGETS: [&str; 7] = ["MARK", "REDIRECT", "DNAT", "RETURN", "MASQUERADE", "REJECT", "DROP"];
    let mut targets = chains.values().flatten().filter_map(|rule| target(rule));
    targets.find(|target| !TARGETS.contains(target) && !chains.contains_key(*target)).map(str::to_owned)
}

fn target(rule: &str) -> Option<&str> {
    rule.split(' ').skip_while(|word| *word != "-j").nth(1)
}

/// The spelling of `iptables-save`, where it differs from what we write.
fn as_saved(rule: &str) -> String {
    let (head, mark) = match rule.split_once(" --or-mark ").or_else(|| rule.split_once(" --set-mark ")) {
        Some((head, mark)) => (head, mark),
        None => return rule.to_owned(),
    };
    let mask = if rule.contains("--or-mark") { mark } else { "0xffffffff" };
    format!("{head} --set-xmark {mark}/{mask}")
}

fn failed(line: Option<usize>, what: &str) -> ToolError {
    let stderr = format!("cannot do `{what}`");
    ToolError::Failed { program: "fake".into(), status: "exit status: 2".into(), busy: false, stderr, line }
}

/// Routes and flows as far as they are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeHost(pub(crate) Arc<Mutex<HostState>>);

#[derive(Debug, Default)]
pub(crate) struct HostState {
    pub(crate) vips: BTreeSet<IpAddr>,
    pub(crate) unroutable: BTreeSet<IpAddr>,
    pub(crate) forgotten: Vec<Allowed>,
    pub(crate) unforgettable: bool,
    pub(crate) broken: bool,
}

impl FakeHost {
    fn state(&self) -> Result<std::sync::MutexGuard<'_, HostState>, DatapathError> {
        let state = self.0.lock().unwrap();
        if state.broken { Err(DatapathError::new(ErrorKind::System, "broken")) } else { Ok(state) }
    }
}

impl Host for FakeHost {
    fn vips(&mut self) -> Result<BTreeSet<IpAddr>, DatapathError> {
        Ok(self.state()?.vips.clone())
    }

    fn add_vips(&mut self, vips: &[IpAddr]) -> Result<BTreeMap<IpAddr, DatapathError>, DatapathError> {
        let mut state = self.state()?;
        let unroutable = vips.iter().filter(|vip| state.unroutable.contains(vip));
        let refused = unroutable.map(|&vip| (vip, DatapathError::new(ErrorKind::System, "unroutable"))).collect();
        let routable: Vec<IpAddr> = vips.iter().copied().filter(|vip| !state.unroutable.contains(vip)).collect();
        state.vips.extend(routable);
        Ok(refused)
    }

    fn remove_vips(&mut self, vips: &[IpAddr]) -> Result<(), DatapathError> {
        self.state()?.vips.retain(|vip| !vips.contains(vip));
        Ok(())
    }

    fn end_flows(&mut self, _: &Allowed) -> Result<usize, DatapathError> {
        Ok(0)
    }

    fn forget_stale(&mut self, allowed: &Allowed) -> Result<(), DatapathError> {
        let mut state = self.state()?;
        if state.unforgettable {
            return Err(DatapathError::new(ErrorKind::System, "unforgettable"));
        }
        if !allowed.is_empty() {
            state.forgotten.push(allowed.clone());
        }
        Ok(())
    }

    fn foreign(&mut self, _: &BTreeSet<IpAddr>) -> Result<Foreign, DatapathError> {
        Ok(Foreign::default())
    }

    fn raise_close_wait(&mut self, _: std::time::Duration) {}

    fn routes(&mut self) -> Result<InstalledRoutes, DatapathError> {
        let both = |vip| [(RouteKind::Local, vip), (RouteKind::Forwarded, vip)];
        let routes = self.state()?.vips.iter().copied().flat_map(both).collect();
        Ok(InstalledRoutes { routes, rules: [Family::V4, Family::V6].into() })
    }

    fn has_reject_path(&mut self) -> Result<bool, DatapathError> {
        Ok(true)
    }

    fn mend(&mut self, drift: &RouteDrift) -> Result<(), DatapathError> {
        let mut state = self.state()?;
        state.vips.retain(|vip| !drift.extra.iter().any(|(_, extra)| extra == vip));
        state.vips.extend(drift.missing.iter().map(|(_, vip)| vip));
        Ok(())
    }

    fn backend_of(&mut self, _: &Packet) -> Result<Option<BackendAddr>, DatapathError> {
        Ok(None)
    }

    fn route_filter(&self) -> lb_netlink::Result<RouteFilter> {
        Err(lb_netlink::KernelError::from_errno(nix::libc::EOPNOTSUPP).into())
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.state()?.vips.clear();
        Ok(())
    }
}
