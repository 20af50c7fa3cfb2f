//! What packets cost in the eBPF object, beside another build of it.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use super::{Figure, Goal};

const OBJECT: &str = "lb-datapath-ebpf/src/lb.bpf.o";
/// Medians of one object differ by this much between two runs, mostly by where its maps lie in memory.
const NOISE: f64 = 1.05;
/// Nanoseconds that `lb_ingress` may take for a packet that is none of ours.
const FOREIGN_NS: f64 = 60.0;
/// The same for a packet of an established flow whose source is translated, with the look-up of its route.
const ESTABLISHED_NS: f64 = 600.0;
/// `connect()` over TCP through a frontend may take this many times as long as without any program.
const CONNECT: f64 = 1.03;
/// The case that is held to it, as `socket_cost` calls it.
const ONE_FRONTEND: &str = "connect() of TCP, through one frontend";

/// Measures the committed object, and `baseline` in the same run if there is one.
pub(crate) fn measure(baseline: Option<&Path>) -> Result<Vec<Figure>, Box<dyn std::error::Error>> {
    let mut figures = Vec::new();
    for example in ["packet_cost", "socket_cost"] {
        figures.extend(run(example, baseline)?);
    }
    Ok(figures)
}

fn run(example: &str, baseline: Option<&Path>) -> Result<Vec<Figure>, Box<dyn std::error::Error>> {
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--release", "--package", "lb-datapath-ebpf", "--example", example, "--"]);
    command.arg(crate::root().join(OBJECT)).args(baseline.map(std::path::absolute).transpose()?);
    let output = command.stdout(Stdio::piped()).spawn()?.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    let figures: Option<Vec<_>> = text.lines().map(|line| figure(line, baseline.is_some())).collect();
    figures.ok_or_else(|| format!("{command:?} printed a line that is no figure:\n{text}").into())
}

/// `insns PROGRAM COUNT [OTHER]`, or `net`, `ns` or `ratio` and `CASE MEDIAN [OTHER] N`, with tabs.
fn figure(line: &str, compared: bool) -> Option<Figure> {
    let fields: Vec<&str> = line.split('\t').collect();
    let (what, rest) = fields.split_first()?;
    let (name, numbers) = rest.split_first()?;
    let mut numbers = numbers.iter().map(|number| number.parse::<f64>().ok());
    let measured = numbers.next()??;
    let other = if compared { Some(numbers.next()??) } else { None };
    let baseline = other.map_or_else(|| "none: only reported".into(), |other| format!("the other object: {other}"));
    match *what {
        "insns" => Some(Figure::new(format!("{name}: verified"), None, measured, "insns", baseline, 1)),
        "net" => {
            let n = numbers.next()??;
            let baseline = match other {
                Some(other) => format!("a program that returns at once; the other object: {other}"),
                None => "a program that returns at once".into(),
            };
            Some(Figure::new(format!("{name}: net, median"), net_goal(name), measured, "ns", baseline, n as u64))
        }
        "ns" => {
            let goal = other.map(|other| Goal::AtMost((other * NOISE).round()));
            let n = numbers.next()??;
            Some(Figure::new(format!("{name}: median"), goal, measured, "ns", baseline, n as u64))
        }
        "ratio" => {
            let n = numbers.next()??;
            let goal = name.contains(ONE_FRONTEND).then_some(Goal::AtMost(CONNECT));
            Some(Figure::new(format!("{name}: beside no program"), goal, measured, "ratio", baseline, n as u64))
        }
        _ => None,
    }
}

/// What a packet of this kind, as `packet_cost` calls it, may take.
fn net_goal(name: &str) -> Option<Goal> {
    if name.starts_with("none of ours") {
        Some(Goal::AtMost(FOREIGN_NS))
    } else if name.starts_with("established SNAT flow") {
        Some(Goal::AtMost(ESTABLISHED_NS))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_may_cost_no_more_than_in_the_other_object() {
        let packet = figure("ns\tnew flow, IPv4\t104\t100\t500", true).unwrap();
        assert_eq!((packet.measured, packet.n, packet.met), (104.0, 500, Some(true)));
        assert_eq!(figure("ns\tnew flow, IPv4\t106\t100\t500", true).unwrap().met, Some(false));
        assert_eq!(figure("ns\tnew flow, IPv4\t106\t500", false).unwrap().met, None);
    }

    #[test]
    fn instructions_are_only_reported() {
        let program = figure("insns\tlb_ingress\t200\t100", true).unwrap();
        assert_eq!((program.measured, program.met), (200.0, None));
    }

    #[test]
    fn packets_of_nobody_and_of_established_flows_have_goals() {
        let net = |name: &str, ns| figure(&format!("net\t{name}\t{ns}\t400"), false).unwrap();
        assert_eq!([60, 61].map(|ns| net("none of ours, IPv6", ns).met), [Some(true), Some(false)]);
        let flow = "established SNAT flow, TCP request, IPv4";
        assert_eq!([600, 601].map(|ns| net(flow, ns).met), [Some(true), Some(false)]);
        let other = net("a backend's to somebody else, IPv4", 700);
        assert_eq!((other.measured, other.n, other.met), (700.0, 400, None));
        let compared = figure("net\tnone of ours, IPv4\t7\t90\t400", true).unwrap();
        assert_eq!((compared.n, compared.met), (400, Some(true)));
        assert!(compared.baseline.ends_with("90"));
    }

    #[test]
    fn a_connection_through_a_frontend_has_a_goal() {
        let through = |name: &str, ratio| figure(&format!("ratio\t{name}\t{ratio}\t20"), false).unwrap();
        let tcp = "connect() of TCP, through one frontend of 5,000";
        assert_eq!([1.03, 1.031].map(|ratio| through(tcp, ratio).met), [Some(true), Some(false)]);
        let udp = through("connect() of UDP, through one frontend of 5,000", 1.5);
        assert_eq!((udp.measured, udp.unit, udp.n, udp.met), (1.5, "ratio", 20, None));
    }

    #[test]
    fn other_lines_are_no_figures() {
        for line in ["", "ns", "ns\tnew flow", "ns\tnew flow\tx\t1\t1", "ns\tnew flow\t1", "error\ta\t1\t1"] {
            assert!(figure(line, true).is_none(), "{line}");
        }
    }
}
