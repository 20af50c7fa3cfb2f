//! The manifest directory under load.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use crate::{common::service, node::Node};

/// What a process holds.
#[derive(Debug)]
struct Held {
    files: usize,
    resident_kib: u64,
}

impl Held {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            files: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }
}

fn manifest(number: usize) -> String {
    service("web", &format!("10.96.{}.{}", number / 250, number % 250 + 1), "", &["10.244.0.5"])
}

/// Asks for every service: a file that is written in place is empty for a moment, and then there is none.
fn has_ip(node: &Node, number: usize) {
    let wanted = format!("10.96.{}.{}", number / 250, number % 250 + 1);
    node.json_when(&["service", "list"], |list| list[0]["frontends"][0]["ip"] == wanted.as_str());
}

/// Faster than 100 a second: as fast as they can be made, every third one invalid, every fifth one in place.
fn edit(node: &Node, numbers: std::ops::Range<usize>) {
    let last = numbers.end - 1;
    for number in numbers {
        let text = manifest(number);
        match number {
            _ if number == last => node.put("web.yaml", &text),
            _ if number % 3 == 0 => node.put("web.yaml", &text[..text.len() / 2 + 1]),
            _ if number % 5 == 0 => fs::write(node.path("manifests/web.yaml"), text).unwrap(),
            _ => node.put("web.yaml", &text),
        }
    }
    has_ip(node, last);
}

#[test]
fn of_many_edits_the_last_valid_one_wins_and_nothing_is_left_behind() {
    let mut node = Node::new(&[("web.yaml", &manifest(0))]);
    let mut child = node.agent().stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    node.adopt(child);
    edit(&node, 1..500);
    let before = Held::of(pid);
    edit(&node, 500..2500);
    let after = Held::of(pid);
    println!("before: {before:?}, after 2000 edits: {after:?}");
    // Either may be counted while a file is open; what leaks by an edit would be two thousand.
    assert!(after.files < before.files + 10, "{before:?} {after:?}");
    assert!(after.resident_kib < before.resident_kib + 2048, "{before:?} {after:?}");
    assert_eq!(node.json(&["status"])["conditions"].as_array().unwrap().len(), 0);
}

#[test]
fn a_file_behind_a_link_is_followed_when_the_link_changes_and_never_out_of_the_directory() {
    let node = Node::running(&[(".one", &manifest(1)), (".two", &manifest(2))]);
    let link = |target: &str| {
        std::os::unix::fs::symlink(target, node.path("manifests/.link")).unwrap();
        fs::rename(node.path("manifests/.link"), node.path("manifests/web.yaml")).unwrap();
    };
    link(".one");
    has_ip(&node, 1);
    link(".two");
    has_ip(&node, 2);
    fs::write(node.path("elsewhere.yaml"), manifest(3)).unwrap();
    link("../elsewhere.yaml");
    let status = node.json_when(&["status"], |status| status["conditions"][0]["type"] == "ManifestsRejected");
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("leads out of its directory"), "{message}");
    has_ip(&node, 2);
    link(".one");
    has_ip(&node, 1);
}

#[test]
fn a_hostile_name_reaches_no_terminal() {
    let text = manifest(1).replace("name: web\n", "name: \"\\e[2J\\u202ebad\"\n");
    let node = Node::running(&[("web.yaml", &text), ("\u{1b}[31mred.txt", "")]);
    for command in [&["status"][..], &["service", "list"], &["status", "-o", "json"]] {
        let shown = String::from_utf8(node.ask(command).stdout).unwrap();
        let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!shown.contains(steers), "{command:?}: {shown:?}");
    }
}
