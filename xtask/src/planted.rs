//! `cargo xtask planted`: shows that the differential test of the eBPF programs finds bugs, by planting some.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use crate::{build_ebpf, test::Failed};

/// Builds the eBPF programs with one bug each, and fails unless the differential test finds every one. Needs root.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Packets that each bug has to show itself in.
    #[arg(long, default_value_t = 50_000)]
    packets: u64,
    /// Only bugs whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

/// A change of one place in a source file.
struct Bug {
    name: &'static str,
    /// From `lb-datapath-ebpf/programs/src`.
    file: &'static str,
    /// What is there once and only once.
    right: &'static str,
    wrong: &'static str,
}

const BUGS: [Bug; 30] = [
    Bug {
        name: "the IPv4 header's checksum leaves out the addresses",
        file: "tc/rewrite.rs",
        right: "(check as u32).wrapping_add(addresses).wrapping_add(lives)",
        wrong: "(check as u32).wrapping_add(lives)",
    },
    Bug {
        name: "the transport's checksum leaves out the ports",
        file: "tc/rewrite.rs",
        right: "if old == new { Ok(()) }",
        wrong: "if old == new || old != new { Ok(()) }",
    },
    Bug {
        name: "a datagram without a checksum gets one",
        file: "tc/rewrite.rs",
        right: "(6, BPF_F_MARK_MANGLED_0 as u64)",
        wrong: "(6, 0)",
    },
    Bug {
        name: "the time to live stays",
        file: "tc/rewrite.rs",
        right: "packet.ttl.wrapping_sub(hops)",
        wrong: "packet.ttl",
    },
    Bug {
        name: "a packet at its last hop is forwarded",
        file: "tc/rewrite.rs",
        right: "if packet.ttl <= hops => give_up",
        wrong: "if packet.ttl < hops => give_up",
    },
    Bug {
        name: "options are taken for the transport header",
        file: "tc/header.rs",
        right: "        len,\n        piece: piece(",
        wrong: "        len: 20,\n        piece: piece(",
    },
    Bug {
        name: "later fragments are taken for whole packets",
        file: "tc/header.rs",
        right: "piece(fragment & 0x1fff != 0, ",
        wrong: "piece(false, ",
    },
    Bug {
        name: "ports have the wrong byte order",
        file: "tc/rewrite.rs",
        right: "((sport.number() as u32) << 16 | dport.number() as u32).to_be()",
        wrong: "(sport.number() as u32) << 16 | dport.number() as u32",
    },
    Bug {
        name: "the checksum of an ICMP error leaves out the packet inside",
        file: "tc/icmp.rs",
        right: "let icmp = with_checksum(icmp, quote.sum());",
        wrong: "let icmp = with_checksum(icmp, 0);",
    },
    Bug {
        name: "an ICMPv6 error has the length of another one",
        file: "tc/icmp.rs",
        right: "(8 + quote.len()).to_be_bytes()",
        wrong: "(4 + quote.len()).to_be_bytes()",
    },
    Bug {
        name: "a reset does not count the request",
        file: "tc/reset.rs",
        right: "payload + (bits & SYN != 0) as u32",
        wrong: "payload",
    },
    Bug {
        name: "every client counts as a pod",
        file: "tc/flow.rs",
        right: "let foreign = to.dst == packet.key.src || !keeps;\n    // A client",
        wrong: "let foreign = to.dst == packet.key.src;\n    // A client",
    },
    Bug {
        name: "two flows share a translated port",
        file: "tc/flow.rs",
        right: "if entry.is_reply_to(&packet.key) || idle >= found.lifetime(packet.key.protocol)",
        wrong: "if entry.is_reply_to(&packet.key) || idle < u64::MAX",
    },
    Bug {
        name: "an affinity record of any age and backend holds",
        file: "select.rs",
        right: "(holds && maps.takes_flows(frontend.set, record.backend))",
        wrong: "holds",
    },
    Bug {
        name: "the checksum of a translated ICMP error leaves out the quoted ports",
        file: "tc/quote.rs",
        right: "let mut change = addresses.wrapping_add(port_change);",
        wrong: "let mut change = addresses;",
    },
    Bug {
        name: "the checksum of a translated ICMP error leaves out the one inside",
        file: "tc/quote.rs",
        right: "    change = change.wrapping_add(transport_checksum(skb, work, addresses.wrapping_add(port_change))?);",
        wrong: "    transport_checksum(skb, work, addresses.wrapping_add(port_change))?;",
    },
    Bug {
        name: "the checksum inside of a quote leaves out the addresses",
        file: "tc/quote.rs",
        right: "transport_checksum(skb, work, addresses.wrapping_add(port_change))",
        wrong: "transport_checksum(skb, work, port_change)",
    },
    Bug {
        name: "the ports inside of a quote change places",
        file: "tc/quote.rs",
        right: "(ports(key.dport, key.sport), ports(to.dport, to.sport))",
        wrong: "(ports(key.dport, key.sport), ports(to.sport, to.dport))",
    },
    Bug {
        name: "an error of the receiver comes from the backend",
        file: "tc/quote.rs",
        right: "if quote.sender != packet.key.src {",
        wrong: "if quote.sender == packet.key.src {",
    },
    Bug {
        name: "traffic from inside has the frontend of traffic from outside",
        file: "select.rs",
        right: "    if inside && let Some(twin)",
        wrong: "    if !inside && let Some(twin)",
    },
    Bug {
        name: "no traffic policy keeps a source",
        file: "tc/ingress.rs",
        right: "(chosen.keeps_source && !inside)",
        wrong: "false",
    },
    Bug {
        name: "a source range of one address is one bit too long",
        file: "kernel/maps.rs",
        right: "&Key::new(BITS, SourceData",
        wrong: "&Key::new(BITS - 1, SourceData",
    },
    Bug {
        name: "a list of sources that are kept out lets them in",
        file: "tc/packet.rs",
        right: "if listed == denies {",
        wrong: "if listed != denies {",
    },
    Bug {
        name: "pods are kept out of cluster addresses that are guarded against outside",
        file: "tc/packet.rs",
        right: "(outside_only && (self.inside || self.pod))",
        wrong: "(outside_only && self.pod && !self.inside)",
    },
    Bug {
        name: "the port of a node port has the wrong byte order",
        file: "tc/packet.rs",
        right: "port: self.key.dport, protocol",
        wrong: "port: Port(self.key.dport.0.swap_bytes()), protocol",
    },
    Bug {
        name: "other ports of a load balancer's address pass",
        file: "tc/ingress.rs",
        right: "flags & ADDRESS_DROPS != 0",
        wrong: "flags & ADDRESS_DROPS == 1 << 7",
    },
    Bug {
        name: "a port of a bridge takes packets for its own hardware address only",
        file: "tc/ingress.rs",
        right: "maps.kind_of_device(skb.device()) & DEVICE_PORT != 0",
        wrong: "maps.kind_of_device(skb.device()) == 0",
    },
    Bug {
        name: "a packet of the node itself loses a hop",
        file: "tc/rewrite.rs",
        right: "deliver(maps, skb, packet, to, 0)",
        wrong: "deliver(maps, skb, packet, to, 1)",
    },
    Bug {
        name: "a packet that the node has sent on is sent on once more",
        file: "tc/ingress.rs",
        right: "Found::Nothing if flow::was_sent(maps, &work.packet) => PASS",
        wrong: "Found::Nothing if work.packet.is_later => PASS",
    },
    Bug {
        name: "the answer to a process of the node has the hardware address of another device",
        file: "kernel/skb.rs",
        right: "self.store(0, &device.hardware, 0)",
        wrong: "self.store(6, &device.hardware, 0)",
    },
];

/// Builds, runs and tells.
pub(crate) fn planted(args: &Args) -> Result<(), Failed> {
    let wanted = |bug: &&Bug| args.only.as_deref().is_none_or(|only| bug.name.contains(only));
    let bugs: Vec<&Bug> = BUGS.iter().filter(wanted).collect();
    let copy = copy_of_sources()?;
    let mut missed = Vec::new();
    for (index, bug) in bugs.iter().enumerate() {
        let start = Instant::now();
        let object = build(&copy, bug)?;
        let found = is_found(&object, args.packets)?;
        let seconds = start.elapsed().as_secs_f64();
        let says = found.as_deref().unwrap_or("NOT FOUND");
        println!("{} of {}, {seconds:.0} s: {}: {says}", index + 1, bugs.len(), bug.name);
        if found.is_none() {
            missed.push(bug.name);
        }
    }
    if missed.is_empty() && !bugs.is_empty() {
        println!("{} planted bugs, all found within {} packets", bugs.len(), args.packets);
        return Ok(());
    }
    Err(Failed(format!("{} of {} planted bugs were not found: {}", missed.len(), bugs.len(), missed.join("; "))))
}

/// A workspace of what the programs are built from, so that no source is ever left with a bug in it.
fn copy_of_sources() -> Result<PathBuf, Failed> {
    const PACKAGES: [&str; 3] = ["lb-core/flow-hash", "lb-datapath-ebpf/abi", "lb-datapath-ebpf/programs"];
    let (root, copy) = (crate::root(), crate::root().join("target/planted"));
    for package in PACKAGES {
        copy_directory(&root.join(package), &copy.join(package))?;
    }
    copy_file(&root.join("Cargo.lock"), &copy.join("Cargo.lock"))?;
    let manifest = read(&root.join("Cargo.toml"))?;
    let members = PACKAGES.map(|package| format!("\"{package}\"")).join(", ");
    let manifest = with_members(&manifest, &members).ok_or_else(|| Failed("Cargo.toml lists no members".into()))?;
    write(&copy.join("Cargo.toml"), &manifest)?;
    Ok(copy)
}

/// The manifest of a workspace with other members.
fn with_members(manifest: &str, members: &str) -> Option<String> {
    let (head, rest) = manifest.split_once("\nmembers = [")?;
    let (_, rest) = rest.split_once("\n[")?;
    Some(format!("{head}\nmembers = [{members}]\n\n[{rest}"))
}

/// The object with this bug.
fn build(copy: &Path, bug: &Bug) -> Result<PathBuf, Failed> {
    let (right, wrong) = (source(&crate::root(), bug), source(copy, bug));
    let text = plant(&read(&right)?, bug).map_err(|count| {
        Failed(format!("{}: `{}` is there {count} times, expected once: {}", right.display(), bug.right, bug.name))
    })?;
    write(&wrong, &text)?;
    let built = build_ebpf::compile(copy).map_err(|error| Failed(format!("{}: {error}", bug.name)));
    copy_file(&right, &wrong)?;
    built
}

fn source(root: &Path, bug: &Bug) -> PathBuf {
    root.join("lb-datapath-ebpf/programs/src").join(bug.file)
}

/// The text with the bug in it; how often its place was found if that was not once.
fn plant(text: &str, bug: &Bug) -> Result<String, usize> {
    match text.matches(bug.right).count() {
        1 => Ok(text.replace(bug.right, bug.wrong)),
        count => Err(count),
    }
}

/// What the differential test says about `object`; `None` if it finds nothing.
fn is_found(object: &Path, packets: u64) -> Result<Option<String>, Failed> {
    let mut command = Command::new("cargo");
    command.args(["test", "--quiet", "--package", "lb-datapath-ebpf", "--test", "differential", "--", "--ignored"]);
    command.env("LB_DIFFERENTIAL_OBJECT", object).env("LB_DIFFERENTIAL_PACKETS", packets.to_string());
    let output = command.output().map_err(|error| Failed(format!("{command:?}: {error}")))?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // Anything else than a packet that differs is a failure of the test, not of the program.
    match said.lines().find_map(mismatch) {
        Some(packet) => Ok(Some(format!("found by packet {packet}"))),
        None => Err(Failed(format!("{command:?}: {}\n{said}", output.status))),
    }
}

/// The number of the packet in a line such as `test panicked: seed 1, packet 8: expected …`.
fn mismatch(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("seed ")?;
    let (_, rest) = rest.split_once(", packet ")?;
    rest.split_once(':')?.0.parse().ok()
}

fn copy_directory(from: &Path, to: &Path) -> Result<(), Failed> {
    fs::create_dir_all(to).map_err(failed("creating", to))?;
    for entry in fs::read_dir(from).map_err(failed("reading", from))? {
        let entry = entry.map_err(failed("reading", from))?;
        let to = to.join(entry.file_name());
        match entry.file_type().map_err(failed("reading", from))?.is_dir() {
            true => copy_directory(&entry.path(), &to)?,
            false => copy_file(&entry.path(), &to)?,
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<(), Failed> {
    write(to, &read(from)?)
}

fn read(path: &Path) -> Result<String, Failed> {
    fs::read_to_string(path).map_err(failed("reading", path))
}

fn write(path: &Path, text: &str) -> Result<(), Failed> {
    fs::write(path, text).map_err(failed("writing", path))
}

fn failed(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failed {
    let what = format!("{action} {}", path.display());
    move |error| Failed(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_has_its_one_place_and_a_name_of_its_own() {
        for bug in &BUGS {
            let text = read(&source(&crate::root(), bug)).unwrap();
            let planted = plant(&text, bug).unwrap_or_else(|count| panic!("{}: {count} places", bug.name));
            assert_ne!(planted, text, "{}", bug.name);
            assert_eq!(BUGS.iter().filter(|other| other.name == bug.name).count(), 1, "{}", bug.name);
        }
    }

    #[test]
    fn a_workspace_gets_other_members() {
        let manifest = "[workspace]\nresolver = \"3\"\nmembers = [\n \"a\",\n]\ndefault-members = [\"a\"]\n\n[workspace.package]\n";
        let expected = "[workspace]\nresolver = \"3\"\nmembers = [\"b\"]\n\n[workspace.package]\n";
        assert_eq!(with_members(manifest, "\"b\"").as_deref(), Some(expected));
    }

    #[test]
    fn a_mismatch_is_told_from_other_failures() {
        assert_eq!(mismatch("test panicked: seed 1, packet 8: expected to be left alone"), Some(8));
        assert_eq!(mismatch("seed 1, 5.4 s: 100000 packets, 0 mismatches: 48218 Untouched"), None);
        assert_eq!(mismatch("test panicked: No such device"), None);
    }
}
