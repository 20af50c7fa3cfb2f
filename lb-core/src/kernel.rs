//! The kernel's own answer about a packet.

use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};

use crate::{
    addr::BackendAddr,
    decision::{Choice, Decision, FlowView, Packet, SourceRewrite, Verdict},
};

/// The fate of a packet according to the kernel, which was asked itself: the memory of this process plays no part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelAnswer {
    /// How the kernel was asked, such as `BPF_PROG_TEST_RUN of lb_ingress`.
    pub method: String,
    /// Findings on the way to the answer, in order.
    pub steps: Vec<String>,
    /// The memory of the kernel about the flow and the client of the packet. A decision needs it to be comparable.
    pub flow: FlowView,
    /// The fate of the packet.
    pub verdict: KernelVerdict,
}

/// The fate of a packet in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelVerdict {
    /// The packet passes untouched.
    Pass,
    /// Refused at once.
    Reject,
    /// Dropped silently.
    Drop,
    /// It goes to a backend.
    Forward {
        /// To whom.
        backends: Backends,
        /// Whether its source is translated; `None` where the way of asking does not show it.
        translated: Option<bool>,
    },
}

/// The backends of a [`KernelVerdict`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backends {
    /// The one that the kernel took, this time.
    Took(BackendAddr),
    /// All that it may take, with their number of slots.
    MayTake(BTreeMap<BackendAddr, u32>),
}

impl KernelAnswer {
    /// The differences between this answer and `decision` about `packet`, which was made with [`flow`](Self::flow) in
    /// view. Empty if they agree.
    #[must_use]
    pub fn disagreements(&self, packet: &Packet, decision: &Decision) -> Vec<String> {
        match (&self.verdict, &decision.verdict) {
            (KernelVerdict::Pass, Verdict::Pass)
            | (KernelVerdict::Reject, Verdict::Reject)
            | (KernelVerdict::Drop, Verdict::Drop) => Vec::new(),
            (KernelVerdict::Forward { backends, translated }, Verdict::Forward(forward)) => {
                let mut found: Vec<_> = of_choice(backends, &forward.choice).into_iter().collect();
                if let (Some(is), Backends::Took(backend)) = (*translated, backends) {
                    let rewrite = forward.source_rewrite(packet.source, *backend);
                    let should = matches!(rewrite, SourceRewrite::Translated { .. });
                    if is != should {
                        found.push(format!("source: expected {}, the kernel has {}", source(should), source(is)));
                    }
                }
                found
            }
            (is, should) => {
                Vec::from([format!("verdict: expected {}, the kernel has {}", verdict(should), kernel_verdict(is))])
            }
        }
    }
}

fn of_choice(backends: &Backends, choice: &Choice) -> Option<String> {
    let agrees = match (backends, choice) {
        (Backends::Took(backend), choice) => choice.allows(backend),
        (Backends::MayTake(some), Choice::Exactly(only)) => some.len() == 1 && some.contains_key(only),
        (Backends::MayTake(some), Choice::OneOf(weights)) => some.keys().eq(weights.keys()),
    };
    let found: Vec<_> = match backends {
        Backends::Took(backend) => Vec::from([backend.to_string()]),
        Backends::MayTake(some) => some.keys().map(ToString::to_string).collect(),
    };
    let wanted: Vec<_> = match choice {
        Choice::Exactly(backend) => Vec::from([backend.to_string()]),
        Choice::OneOf(weights) => weights.keys().map(ToString::to_string).collect(),
    };
    (!agrees).then(|| format!("backend: expected {}, the kernel has {}", wanted.join(" or "), found.join(" or ")))
}

const fn source(translated: bool) -> &'static str {
    if translated { "a translated one" } else { "the client's" }
}

const fn verdict(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Forward(_) => "forward",
        Verdict::Reject => "refuse",
        Verdict::Drop => "drop",
    }
}

const fn kernel_verdict(verdict: &KernelVerdict) -> &'static str {
    match verdict {
        KernelVerdict::Pass => "pass",
        KernelVerdict::Forward { .. } => "forward",
        KernelVerdict::Reject => "refuse",
        KernelVerdict::Drop => "drop",
    }
}
