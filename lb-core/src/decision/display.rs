//! Decisions in the words of `lb explain`.

use alloc::collections::BTreeMap;
use core::{fmt, net::SocketAddr};

use super::{Choice, Decision, Entry, Forward, Packet, SourceRewrite, Step, Verdict, WhyNot};
use crate::addr::BackendAddr;

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket => "socket",
            Self::PodDevice => "pod",
            Self::Uplink => "uplink",
        })
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) =
            (SocketAddr::new(self.source, self.source_port), SocketAddr::new(self.destination, self.destination_port));
        write!(f, "{} {from} -> {to}, entering at {}", self.protocol, self.entry)
    }
}

/// In several lines: the numbered steps, the verdict, and the backends that do not receive the packet.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "  {number}. {step}")?;
        }
        write!(f, "\n{}", self.verdict)?;
        if !self.rejected.is_empty() {
            f.write_str("\n\nNot taken:")?;
        }
        self.rejected.iter().try_for_each(|(backend, reason)| write!(f, "\n  {}: {reason}", Socket(backend)))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.object, self.field, self.says)
    }
}

/// In one line; in two for a packet that is forwarded.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("passed on"),
            Self::Forward(forward) => forward.fmt(f),
            Self::Reject => f.write_str("refused at once"),
            Self::Drop => f.write_str("dropped silently"),
        }
    }
}

/// In two lines: to whom, and what becomes of the source.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { choice, source, hairpin_source, here } = self;
        write!(f, "forwarded to {choice}\nsource: {source}")?;
        if source != hairpin_source {
            write!(f, "; if the backend is the sender: {hairpin_source}")?;
        }
        if *source != SourceRewrite::Kept && !here.is_empty() {
            write!(f, "; if the backend is on an address of this node: {}", SourceRewrite::Kept)?;
        }
        Ok(())
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(backend) => Socket(backend).fmt(f),
            Self::OneOf(weights) => Shares(weights).fmt(f),
        }
    }
}

impl fmt::Display for SourceRewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => f.write_str("kept"),
            Self::Translated { addr, ports } => {
                f.write_str("translated to ")?;
                match addr {
                    Some(addr) => addr.fmt(f)?,
                    None => f.write_str("an address of the node")?,
                }
                match ports.start() == ports.end() {
                    true => write!(f, ", port {}", ports.start()),
                    false => write!(f, ", port {}-{}", ports.start(), ports.end()),
                }
            }
        }
    }
}

/// One sentence without a full stop.
impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.says())
    }
}

/// A backend without its protocol, which is that of the packet.
pub(crate) struct Socket<'a>(pub(crate) &'a BackendAddr);

impl fmt::Display for Socket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.0.ip, self.0.port).fmt(f)
    }
}

/// Backends of which one is drawn, with their shares.
pub(crate) struct Shares<'a>(pub(crate) &'a BTreeMap<BackendAddr, u32>);

impl fmt::Display for Shares<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: u32 = self.0.values().sum();
        f.write_str("one of ")?;
        for (n, (backend, share)) in self.0.iter().enumerate() {
            write!(f, "{}{} ({share}/{total})", if n == 0 { "" } else { ", " }, Socket(backend))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, string::ToString, vec};

    use super::*;
    use crate::{
        addr::Protocol,
        kernel::{Backends, KernelAnswer, KernelVerdict},
        selection::Reason,
    };

    fn backend(last: u8) -> BackendAddr {
        BackendAddr::new([10, 1, 0, last].into(), 80, Protocol::Tcp)
    }

    #[test]
    fn a_decision_reads_as_lb_explain_prints_it() {
        let packet = Packet {
            entry: Entry::PodDevice,
            protocol: Protocol::Tcp,
            source: [10, 0, 0, 1].into(),
            source_port: 1,
            destination: [10, 96, 0, 1].into(),
            destination_port: 80,
        };
        assert_eq!(packet.to_string(), "tcp 10.0.0.1:1 -> 10.96.0.1:80, entering at pod");
        let forward = Forward {
            choice: Choice::OneOf([(backend(1), 3), (backend(2), 1)].into()),
            source: SourceRewrite::Kept,
            hairpin_source: SourceRewrite::Translated { addr: None, ports: 1024..=65535 },
            here: BTreeSet::new(),
        };
        let decision = Decision {
            verdict: Verdict::Forward(forward),
            frontend: None,
            steps: vec![Step {
                object: "service default/web".into(),
                field: "algorithm",
                says: "random: one of 2".into(),
            }],
            rejected: vec![(backend(3), Reason::Draining)],
        };
        assert_eq!(
            decision.to_string(),
            "  1. service default/web, algorithm: random: one of 2\n\n\
             forwarded to one of 10.1.0.1:80 (3/4), 10.1.0.2:80 (1/4)\n\
             source: kept; if the backend is the sender: translated to an address of the node, port 1024-65535\n\n\
             Not taken:\n  10.1.0.3:80: draining"
        );
    }

    #[test]
    fn what_both_senders_get_is_said_once() {
        let translated = SourceRewrite::Translated { addr: Some([192, 0, 2, 1].into()), ports: 1..=65535 };
        let forward = Forward {
            choice: Choice::Exactly(backend(1)),
            source: translated.clone(),
            hairpin_source: translated,
            here: BTreeSet::new(),
        };
        let says = "forwarded to 10.1.0.1:80\nsource: translated to 192.0.2.1, port 1-65535";
        assert_eq!(Verdict::Forward(forward).to_string(), says);
        let kept_port = SourceRewrite::Translated { addr: None, ports: 4000..=4000 };
        assert_eq!(kept_port.to_string(), "translated to an address of the node, port 4000");
        let said = [Verdict::Pass, Verdict::Reject, Verdict::Drop].map(|verdict| verdict.to_string());
        assert_eq!(said, ["passed on", "refused at once", "dropped silently"]);
    }

    #[test]
    fn the_kernel_answers_in_the_same_words() {
        let says = |backends, translated| {
            let verdict = KernelVerdict::Forward { backends, translated };
            let flow = crate::decision::FlowView::default();
            KernelAnswer { method: "look-ups".into(), steps: vec![], flow, verdict, faults: vec![] }.to_string()
        };
        let both = || Backends::MayTake([(backend(1), 1), (backend(2), 1)].into());
        assert_eq!(
            says(both(), Some(true)),
            "forwarded to one of 10.1.0.1:80 (1/2), 10.1.0.2:80 (1/2), source translated (look-ups)"
        );
        assert_eq!(says(Backends::Took(backend(2)), Some(false)), "forwarded to 10.1.0.2:80, source kept (look-ups)");
        assert_eq!(says(Backends::Took(backend(2)), None), "forwarded to 10.1.0.2:80 (look-ups)");
        assert_eq!(KernelVerdict::Pass.to_string(), Verdict::Pass.to_string());
    }
}
