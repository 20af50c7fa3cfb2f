//! What other tools do to a datapath, and how it looks before and after.

use std::{collections::BTreeSet, fs, io, net::SocketAddr, path::PathBuf, process::Command};

use lb_agent::driver::DatapathKind;

/// Where edits are made. To be used in the network namespace of the node.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) kind: DatapathKind,
    pub(super) pin_dir: PathBuf,
    /// IPv4 frontend of the service.
    pub(super) frontend: SocketAddr,
}

/// One thing that another tool does: its name, and the program with its arguments.
#[derive(Clone, Copy)]
pub(super) struct Edit {
    pub(super) name: &'static str,
    /// Found out before the clock starts; the number tells rounds apart.
    prepare: fn(&Scene, usize) -> io::Result<Vec<String>>,
}

impl Edit {
    pub(super) fn prepare(&self, scene: &Scene, round: usize) -> io::Result<Vec<String>> {
        (self.prepare)(scene, round)
    }
}

const NFTABLES: [Edit; 6] = [
    Edit { name: "nft flush ruleset", prepare: |_, _| Ok(words("nft flush ruleset")) },
    Edit { name: "nft delete table", prepare: |_, _| Ok(words("nft delete table inet lb")) },
    Edit { name: "nft flush table", prepare: |_, _| Ok(words("nft flush table inet lb")) },
    Edit { name: "nft delete rule", prepare: delete_rule },
    Edit { name: "nft delete element", prepare: delete_element },
    Edit { name: "nft add rule", prepare: |_, _| Ok(words("nft insert rule inet lb prerouting accept")) },
];

const IPTABLES: [Edit; 3] = [
    Edit { name: "-t nat -F", prepare: |scene, _| Ok(words(&format!("{} -w -t nat -F", scene.kind))) },
    Edit { name: "-F LB-SERVICES", prepare: |scene, _| Ok(words(&format!("{} -w -t nat -F LB-SERVICES", scene.kind))) },
    Edit {
        name: "-D LB-SERVICES 1",
        prepare: |scene, _| Ok(words(&format!("{} -w -t nat -D LB-SERVICES 1", scene.kind))),
    },
];

const EBPF: [Edit; 5] = [
    Edit { name: "rm a map's pin", prepare: |scene, round| Ok(vec!["rm".into(), pin(scene, "maps", round)?]) },
    Edit { name: "rm a link's pin", prepare: |scene, round| Ok(vec!["rm".into(), pin(scene, "links", round)?]) },
    Edit {
        name: "rm every pin",
        prepare: |scene, _| Ok(vec!["rm".into(), "-r".into(), scene.pin_dir.join("v1").display().to_string()]),
    },
    Edit {
        name: "bpftool link detach",
        prepare: |scene, round| Ok([words("bpftool link detach pinned"), vec![pin(scene, "links", round)?]].concat()),
    },
    Edit { name: "bpftool map delete", prepare: delete_entry },
];

/// What can be done to a datapath here, and what cannot for want of a program.
pub(super) fn edits(kind: DatapathKind) -> (Vec<Edit>, Vec<String>) {
    let all: &[Edit] = match kind {
        DatapathKind::Nftables => &NFTABLES,
        DatapathKind::IptablesNft | DatapathKind::IptablesLegacy => &IPTABLES,
        DatapathKind::Ebpf => &EBPF,
        DatapathKind::Memory => &[],
    };
    let program = |edit: &Edit| match kind {
        DatapathKind::Nftables => "nft",
        DatapathKind::Ebpf if edit.name.starts_with("bpftool") => "bpftool",
        DatapathKind::IptablesNft | DatapathKind::IptablesLegacy => kind.as_str(),
        DatapathKind::Ebpf | DatapathKind::Memory => "rm",
    };
    let (can, cannot): (Vec<Edit>, Vec<Edit>) = all.iter().partition(|edit| is_installed(program(edit)));
    let left_out =
        cannot.iter().map(|edit| format!("{kind}, {}: left out, {} is not installed", edit.name, program(edit)));
    (can, left_out.collect())
}

/// Runs a program that must succeed.
pub(super) fn run(arguments: &[String]) -> io::Result<String> {
    let Some((program, rest)) = arguments.split_first() else { return Ok(String::new()) };
    let output = Command::new(program).args(rest).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", arguments.join(" "), said.trim())))
}

/// What others see of the datapath: the same before an edit and after its repair.
pub(super) fn seen(scene: &Scene) -> io::Result<BTreeSet<String>> {
    match scene.kind {
        DatapathKind::Nftables => {
            // The generation is another one after each commit; affinity records come and go.
            let listed = run(&words("nft -s list ruleset"))?;
            let lines = listed.lines().filter(|line| !line.contains("\"generation\"") && !line.contains("expires"));
            let bare = |line: &str| line.replace("elements = {", "").trim_matches([' ', '\t', ',', '}']).to_owned();
            Ok(lines.map(bare).collect())
        }
        DatapathKind::IptablesNft | DatapathKind::IptablesLegacy => {
            let listed = run(&[format!("{}-save", scene.kind)])?;
            Ok(listed
                .lines()
                .filter(|line| line.starts_with("-A LB-") || line.contains("LB-"))
                .map(Into::into)
                .collect())
        }
        DatapathKind::Ebpf => {
            let directory = |name| fs::read_dir(scene.pin_dir.join("v1").join(name));
            let entries = directory("maps")?.chain(directory("links")?);
            entries.map(|entry| Ok(entry?.path().display().to_string())).collect()
        }
        DatapathKind::Memory => Ok(BTreeSet::new()),
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(Into::into).collect()
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|path| path.join(program).is_file()))
}

fn nth<T>(mut found: Vec<T>, round: usize, what: &str) -> io::Result<T> {
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no {what} to be edited")));
    }
    Ok(found.swap_remove(round % found.len()))
}

fn delete_rule(_: &Scene, round: usize) -> io::Result<Vec<String>> {
    let listed = run(&words("nft -a list table inet lb"))?;
    let rule = nth(rules(&listed), round, "rule")?;
    Ok(words(&format!("nft delete rule inet lb {} handle {}", rule.0, rule.1)))
}

/// Chain and handle of every rule of a listing.
fn rules(listing: &str) -> Vec<(String, String)> {
    let mut chain = None;
    let mut found = Vec::new();
    for line in listing.lines().map(str::trim) {
        let Some((text, handle)) = line.split_once(" # handle ") else {
            if line == "}" {
                chain = None;
            }
            continue;
        };
        if let Some(name) = text.strip_prefix("chain ") {
            chain = name.split(' ').next().map(str::to_owned);
        } else if let Some(chain) = chain.as_ref().filter(|_| !text.ends_with('{')) {
            found.push((chain.clone(), handle.to_owned()));
        }
    }
    found
}

fn delete_element(scene: &Scene, round: usize) -> io::Result<Vec<String>> {
    let (ip, port) = (scene.frontend.ip(), scene.frontend.port());
    let of = [format!("frontends4 {{ {ip} . tcp . {port} }}"), format!("slots4 {{ {ip} . tcp . {port} . 0 }}")];
    Ok(words(&format!("nft delete element inet lb {}", of[round % of.len()])))
}

/// A pin, in turn.
fn pin(scene: &Scene, directory: &str, round: usize) -> io::Result<String> {
    let entries = fs::read_dir(scene.pin_dir.join("v1").join(directory))?;
    let mut paths: Vec<String> = entries.flatten().map(|entry| entry.path().display().to_string()).collect();
    paths.sort();
    nth(paths, round, "pin")
}

/// The first entry of the map of frontends.
fn delete_entry(scene: &Scene, _: usize) -> io::Result<Vec<String>> {
    let map = scene.pin_dir.join("v1/maps/FRONTENDS").display().to_string();
    let next = run(&[words("bpftool -j map getnext pinned"), vec![map.clone()]].concat())?;
    let next: serde_json::Value = serde_json::from_str(&next)?;
    let key = next["next_key"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
    let key: Vec<String> = key.map(|byte| byte.trim_start_matches("0x").to_owned()).collect();
    Ok([words("bpftool map delete pinned"), vec![map, "key".into(), "hex".into()], key].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_from_chains_and_elements() {
        let listing = "table inet lb { # handle 1\n\tmap slots4 { # handle 7\n\t\telements = { 1 : 2 }\n\t}\n\
                       \tchain prerouting { # handle 3\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\
                       \t\tip daddr 10.96.0.1 accept # handle 9\n\t}\n}\n";
        assert_eq!(rules(listing), [("prerouting".to_owned(), "9".to_owned())]);
    }

    #[test]
    fn what_is_edited_takes_turns() {
        assert_eq!(nth(vec![1, 2], 3, "rule").ok(), Some(2));
        assert!(nth(Vec::<u8>::new(), 0, "rule").unwrap_err().to_string().contains("no rule"));
    }

    #[test]
    fn memory_is_nobody_elses_to_edit() {
        assert_eq!(edits(DatapathKind::Memory).0.len(), 0);
    }
}
