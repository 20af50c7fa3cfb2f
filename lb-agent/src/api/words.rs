//! Values of the answers that come from a closed set. In JSON each is a word.
//!
//! Where a set will grow, an `Unknown` keeps the word of an agent that is newer than its client.

use std::{fmt, str::FromStr};

use clap::ValueEnum;
use serde::{
    Deserialize, Serialize,
    de::{IntoDeserializer, value},
};

use crate::{config, flow::FlowError};

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Where a packet enters the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// A socket on this node, of the node itself or of a pod.
    Socket,
    /// The device of a pod on this node.
    Pod,
    /// A device that leads out of the node.
    Uplink,
}

/// Type of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ServiceKind {
    /// `ClusterIP`.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`.
    ExternalName,
    /// The host ports of one pod.
    HostPort,
    /// The empty word: no version of the service was accepted yet.
    #[default]
    #[serde(rename = "")]
    Unspecified,
    /// A type that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// Which endpoints take traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TrafficPolicy {
    /// Those of the cluster.
    #[default]
    Cluster,
    /// Those of this node.
    Local,
    /// A policy that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// What source ranges are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RangePolicy {
    /// Those who are let in.
    Allow,
    /// Those who are kept out.
    Deny,
    /// A policy that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// Where the address of a frontend comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FrontendKind {
    /// A cluster address of the service.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// An address of the load balancer.
    LoadBalancer,
    /// An external address.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    /// An address of the node, at the node port.
    NodePort,
    /// An address of the node, at the host port of a pod.
    HostPort,
    /// An origin that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// How far a frontend has come.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FrontendStatus {
    /// It is in the datapath.
    Active,
    /// The datapath refused it. The agent tries again.
    Failed,
    /// The datapath cannot carry it.
    NotCarried,
    /// A plan that changes it is due.
    Pending,
    /// A status that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// How the backend of a new flow is drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Algorithm {
    /// Independent draws.
    Random,
    /// In turn.
    RoundRobin,
    /// Consistent hashing of the flow.
    Maglev,
    /// The one of two with fewer flows.
    LeastConnections,
    /// The empty word: no version of the service was accepted yet.
    #[default]
    #[serde(rename = "")]
    Unspecified,
    /// An algorithm that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// State of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackendState {
    /// It takes new flows.
    Active,
    /// It is terminating and still serves: it takes new flows only while no backend is active.
    TerminatingServing,
    /// It is terminating and does not serve.
    Terminating,
    /// It is neither ready nor terminating.
    NotReady,
    /// An operator drains it: it keeps its flows.
    Draining,
    /// An operator took it out.
    Maintenance,
    /// A state that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verdict {
    /// It goes to a backend.
    Forward,
    /// The sender hears at once that it is refused.
    Reject,
    /// It is dropped silently.
    Drop,
    /// It is for no frontend of the datapath and is passed on unchanged.
    Pass,
    /// A verdict that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// Why a backend is, or is not, the choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WhyNotAnswer {
    /// It is the choice.
    Chosen,
    /// It is one of those that the choice is drawn from.
    Possible,
    /// It takes new flows, and another backend is the choice.
    Other,
    /// It takes no new flows.
    Rejected,
    /// The source ranges of the service keep the sender out.
    KeptOut,
    /// It is no backend of the service.
    NotABackend,
    /// The packet is for no frontend of the datapath.
    NoFrontend,
    /// An answer that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// What the agent does about drift.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DriftMode {
    /// It reports and repairs differences.
    Repair,
    /// It reports differences and changes nothing.
    Alert,
    /// It inspects the datapath only on request and changes nothing.
    Off,
    /// A mode that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// Class of an object that can drift.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DriftClass {
    /// A backend.
    Backend,
    /// A chain of a ruleset.
    Chain,
    /// An element of a map or set of a ruleset.
    Element,
    /// A frontend: its target, its affinity.
    Frontend,
    /// The link that keeps a program attached.
    Link,
    /// An entry of an eBPF map that has no class of its own.
    #[serde(rename = "map entry")]
    MapEntry,
    /// A map or set of a ruleset.
    #[serde(rename = "named set")]
    NamedSet,
    /// Facts about the node.
    Node,
    /// A file that keeps a map or link alive without a process.
    Pin,
    /// A program in the kernel.
    Program,
    /// A route or a routing rule.
    Route,
    /// A rule of a ruleset.
    Rule,
    /// A backend set.
    Set,
    /// A slot of a frontend's backend set.
    Slot,
    /// A table of a ruleset.
    Table,
    /// A class that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// How an object differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Difference {
    /// It should be there and is not.
    Missing,
    /// It is there and should not be.
    Extra,
    /// It is there and is not as it should be.
    Wrong,
    /// A difference that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// Probable cause of a difference. In JSON it is a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DriftCause {
    /// Another tool changed an object.
    #[serde(rename = "changed by another tool")]
    Edited,
    /// An earlier process had another configuration.
    #[serde(rename = "an earlier process had another configuration")]
    Reconfigured,
    /// Another tool removed a table or every rule of a chain.
    #[serde(rename = "flushed by another tool")]
    Flushed,
    /// Another tool detached a program.
    #[serde(rename = "detached by another tool")]
    Detached,
    /// Another tool removed files of the pin directory.
    #[serde(rename = "pin removed by another tool")]
    Unpinned,
    /// A network device went, and with it everything that was attached to it or led through it.
    #[serde(rename = "its device is gone")]
    DeviceGone,
    /// An earlier process ended in the middle of a change.
    #[serde(rename = "an earlier process ended in the middle of a change")]
    Interrupted,
    /// A cause that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// What became of a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DriftOutcome {
    /// It differs, and the agent did nothing about it.
    Found,
    /// The agent repaired it.
    Repaired,
    /// It differs, and the agent could not repair it, or not yet.
    NotRepaired,
    /// It differs no more, and the agent did not repair it.
    Gone,
    /// An outcome that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// State of an address of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AddressState {
    /// It is in no pool.
    Outside,
    /// A service can get it.
    Free,
    /// No service can get it.
    Reserved,
    /// Services hold it.
    Held,
    /// A living service left it a short time ago; no other service can get it for the time being.
    Draining,
    /// A service released it a short time ago; others can get it if the pool is otherwise full.
    Quarantined,
    /// Something else uses it.
    Conflict,
    /// A state that this version does not know.
    #[serde(untagged)]
    Unknown(Box<str>),
}

/// Prints the words of JSON.
macro_rules! display_as_in_json {
    ($($word:ty),+ $(,)?) => {$(
        impl fmt::Display for $word {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.serialize(f)
            }
        }
    )+};
}

display_as_in_json!(
    AddressState,
    Algorithm,
    BackendState,
    Difference,
    DriftCause,
    DriftClass,
    DriftMode,
    DriftOutcome,
    Entry,
    FrontendKind,
    FrontendStatus,
    Protocol,
    RangePolicy,
    ServiceKind,
    TrafficPolicy,
    Verdict,
    WhyNotAnswer,
);

/// Reads the words of `lb-core`, which are those of JSON.
macro_rules! from_word {
    ($($word:ident from $of:ty),+ $(,)?) => {$(
        impl From<$of> for $word {
            fn from(of: $of) -> Self {
                let word = of.as_str();
                let read = Self::deserialize(IntoDeserializer::<value::Error>::into_deserializer(word));
                read.unwrap_or_else(|_| Self::Unknown(word.into()))
            }
        }
    )+};
}

from_word!(
    Algorithm from lb_core::service::Algorithm,
    Difference from &lb_core::drift::Difference,
    DriftCause from lb_core::drift::Cause,
    DriftClass from lb_core::drift::DriftClass,
    DriftMode from config::DriftMode,
    FrontendKind from lb_core::addr::FrontendKind,
    WhyNotAnswer from &lb_core::decision::WhyNot,
);

impl From<lb_core::service::TrafficPolicy> for TrafficPolicy {
    fn from(policy: lb_core::service::TrafficPolicy) -> Self {
        match policy {
            lb_core::service::TrafficPolicy::Cluster => Self::Cluster,
            lb_core::service::TrafficPolicy::Local => Self::Local,
        }
    }
}

impl From<lb_core::sources::RangePolicy> for RangePolicy {
    fn from(policy: lb_core::sources::RangePolicy) -> Self {
        match policy {
            lb_core::sources::RangePolicy::Allow => Self::Allow,
            lb_core::sources::RangePolicy::Deny => Self::Deny,
        }
    }
}

impl Default for DriftMode {
    /// That of an agent that does not say.
    fn default() -> Self {
        Self::Unknown(Box::default())
    }
}

impl FromStr for Protocol {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        let known = [Self::Tcp, Self::Udp, Self::Sctp];
        let found = known
            .into_iter()
            .find(|&protocol| lb_core::addr::Protocol::from(protocol).as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| FlowError::Protocol(text.into()))
    }
}

impl From<lb_core::addr::Protocol> for Protocol {
    fn from(protocol: lb_core::addr::Protocol) -> Self {
        match protocol {
            lb_core::addr::Protocol::Tcp => Self::Tcp,
            lb_core::addr::Protocol::Udp => Self::Udp,
            lb_core::addr::Protocol::Sctp => Self::Sctp,
        }
    }
}

impl From<Protocol> for lb_core::addr::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

impl From<lb_core::decision::Entry> for Entry {
    fn from(entry: lb_core::decision::Entry) -> Self {
        match entry {
            lb_core::decision::Entry::Socket => Self::Socket,
            lb_core::decision::Entry::PodDevice => Self::Pod,
            lb_core::decision::Entry::Uplink => Self::Uplink,
        }
    }
}

impl From<Entry> for lb_core::decision::Entry {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::Socket => Self::Socket,
            Entry::Pod => Self::PodDevice,
            Entry::Uplink => Self::Uplink,
        }
    }
}

impl From<lb_core::endpoint::BackendState> for BackendState {
    fn from(state: lb_core::endpoint::BackendState) -> Self {
        match state {
            lb_core::endpoint::BackendState::Active => Self::Active,
            lb_core::endpoint::BackendState::TerminatingServing => Self::TerminatingServing,
            lb_core::endpoint::BackendState::Terminating => Self::Terminating,
            lb_core::endpoint::BackendState::NotReady => Self::NotReady,
            lb_core::endpoint::BackendState::Draining => Self::Draining,
            lb_core::endpoint::BackendState::Maintenance => Self::Maintenance,
        }
    }
}

impl From<&lb_core::decision::Verdict> for Verdict {
    fn from(verdict: &lb_core::decision::Verdict) -> Self {
        match verdict {
            lb_core::decision::Verdict::Forward(_) => Self::Forward,
            lb_core::decision::Verdict::Reject => Self::Reject,
            lb_core::decision::Verdict::Drop => Self::Drop,
            lb_core::decision::Verdict::Pass => Self::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Display};

    use serde::de::DeserializeOwned;

    use super::*;

    /// Asserts that each value is this word, in JSON and in print.
    fn are<T: Serialize + DeserializeOwned + Display + Debug + PartialEq>(words: &[(T, &str)]) {
        for (value, word) in words {
            let json = format!("{word:?}");
            assert_eq!((serde_json::to_string(value).unwrap(), value.to_string()), (json.clone(), word.to_string()));
            assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value);
        }
    }

    #[test]
    fn words_of_the_json_stay_as_they_are() {
        are(&[(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp"), (Protocol::Sctp, "sctp")]);
        are(&[(Entry::Socket, "socket"), (Entry::Pod, "pod"), (Entry::Uplink, "uplink")]);
        are(&[
            (ServiceKind::ClusterIp, "ClusterIP"),
            (ServiceKind::NodePort, "NodePort"),
            (ServiceKind::LoadBalancer, "LoadBalancer"),
            (ServiceKind::HostPort, "HostPort"),
            (ServiceKind::Unspecified, ""),
            (ServiceKind::ExternalName, "ExternalName"),
            (ServiceKind::Unknown("Gateway".into()), "Gateway"),
        ]);
        are(&[
            (FrontendStatus::Active, "active"),
            (FrontendStatus::Pending, "pending"),
            (FrontendStatus::Failed, "failed"),
            (FrontendStatus::NotCarried, "not-carried"),
        ]);
        are(&[(Algorithm::Unspecified, ""), (Algorithm::Unknown("fastest".into()), "fastest")]);
        are(&[
            (BackendState::Active, "active"),
            (BackendState::TerminatingServing, "terminating-serving"),
            (BackendState::Terminating, "terminating"),
            (BackendState::NotReady, "not-ready"),
            (BackendState::Draining, "draining"),
            (BackendState::Maintenance, "maintenance"),
        ]);
        are(&[
            (Verdict::Forward, "forward"),
            (Verdict::Reject, "reject"),
            (Verdict::Drop, "drop"),
            (Verdict::Pass, "pass"),
        ]);
        are(&[
            (WhyNotAnswer::Chosen, "chosen"),
            (WhyNotAnswer::Possible, "possible"),
            (WhyNotAnswer::Other, "other"),
            (WhyNotAnswer::Rejected, "rejected"),
            (WhyNotAnswer::KeptOut, "kept-out"),
            (WhyNotAnswer::NotABackend, "not-a-backend"),
            (WhyNotAnswer::NoFrontend, "no-frontend"),
        ]);
        are(&[
            (DriftOutcome::Found, "found"),
            (DriftOutcome::Repaired, "repaired"),
            (DriftOutcome::NotRepaired, "not-repaired"),
            (DriftOutcome::Gone, "gone"),
        ]);
        are(&[
            (AddressState::Outside, "outside"),
            (AddressState::Free, "free"),
            (AddressState::Reserved, "reserved"),
            (AddressState::Held, "held"),
            (AddressState::Draining, "draining"),
            (AddressState::Quarantined, "quarantined"),
            (AddressState::Conflict, "conflict"),
        ]);
    }

    /// Asserts that `from` is known, and keeps its word.
    fn is<T: From<F> + Display + Debug, F>(from: F, word: &str) {
        let value = T::from(from);
        assert_eq!(value.to_string(), word);
        assert!(!format!("{value:?}").contains("Unknown"), "{value:?}");
    }

    #[test]
    fn words_of_the_core_are_known() {
        use lb_core::{
            addr::FrontendKind as F,
            drift::{Cause as C, Difference as D, DriftClass as K},
            service::Algorithm as A,
        };
        for algorithm in [A::Random, A::RoundRobin, A::Maglev, A::LeastConnections] {
            is::<Algorithm, _>(algorithm, algorithm.as_str());
        }
        for kind in [F::ClusterIp, F::LoadBalancer, F::ExternalIp, F::NodePort, F::HostPort] {
            is::<FrontendKind, _>(kind, kind.as_str());
        }
        for mode in [config::DriftMode::Repair, config::DriftMode::Alert, config::DriftMode::Off] {
            is::<DriftMode, _>(mode, mode.as_str());
        }
        for difference in [D::Missing, D::Extra, D::Wrong { expected: String::new(), found: String::new() }] {
            is::<Difference, _>(&difference, difference.as_str());
        }
        for cause in [C::Edited, C::Reconfigured, C::Flushed, C::Detached, C::Unpinned, C::DeviceGone, C::Interrupted] {
            is::<DriftCause, _>(cause, cause.as_str());
        }
        let classes = [
            K::Frontend,
            K::Slot,
            K::Backend,
            K::Set,
            K::Node,
            K::Program,
            K::Link,
            K::Pin,
            K::MapEntry,
            K::Table,
            K::Chain,
            K::Rule,
            K::NamedSet,
            K::Element,
            K::Route,
        ];
        let mut known: Vec<DriftClass> = classes.into_iter().map(DriftClass::from).collect();
        for class in classes {
            is::<DriftClass, _>(class, class.as_str());
        }
        known.sort();
        let mut words: Vec<String> = known.iter().map(ToString::to_string).collect();
        words.sort();
        assert_eq!(words, known.iter().map(ToString::to_string).collect::<Vec<_>>(), "keys of JSON are in order");
    }

    #[test]
    fn a_word_of_a_newer_agent_is_kept_as_a_value_and_as_a_key() {
        let json = r#"{"map entry":1,"quota":2}"#;
        let counts: std::collections::BTreeMap<DriftClass, u64> = serde_json::from_str(json).unwrap();
        assert!(counts.contains_key(&DriftClass::Unknown("quota".into())), "{counts:?}");
        assert_eq!(serde_json::to_string(&counts).unwrap(), json);
        assert!(serde_json::from_str::<Verdict>("7").is_err());
    }
}
