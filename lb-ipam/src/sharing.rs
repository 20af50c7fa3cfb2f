//! Who may share an address with whom.

use alloc::string::String;

use lb_core::{Protocol, TrafficPolicy};

use crate::{Request, Settings};

/// The rule that keeps two services from sharing an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SharingRule {
    /// One of them has a key, the other another one or none.
    #[error("different sharing key")]
    Key,
    /// They are in two namespaces and do not both name the other's.
    #[error("namespaces `{0}` and `{1}` do not both allow each other")]
    Namespace(String, String),
    /// They have a port in common.
    #[error("both use port {1}/{0}")]
    Port(Protocol, u16),
    /// One has external traffic policy Local, the other Cluster.
    #[error("different external traffic policy")]
    TrafficPolicy,
    /// Both have policy Local, but not the same pods.
    #[error("external traffic policy Local with different pods")]
    Pods,
    /// So many share it already: [`Allocator::MAX_SHARERS`](crate::Allocator::MAX_SHARERS).
    #[error("as many services share it as may")]
    TooMany,
    /// Another process gave it to a service that is not known here yet.
    #[error("it is not known here yet")]
    Unknown,
}

/// Whether `a` and `b` may hold one address: the same key; the same namespace, or each allows the other's; no port in
/// common; the same external traffic policy, and with Local the same pods.
///
/// # Errors
/// The first rule that they break.
pub fn may_share(a: &Request, b: &Request, settings: &Settings) -> Result<(), SharingRule> {
    let (Some(ours), Some(theirs)) = (&a.sharing, &b.sharing) else { return Err(SharingRule::Key) };
    if ours.key != theirs.key || ours.key.is_empty() {
        return Err(SharingRule::Key);
    }
    let (here, there) = (a.service.namespace(), b.service.namespace());
    if here != there && !(ours.namespaces.contains(there) && theirs.namespaces.contains(here)) {
        return Err(SharingRule::Namespace(here.into(), there.into()));
    }
    if let Some((protocol, port)) = common_port(a, b, settings) {
        return Err(SharingRule::Port(protocol, port));
    }
    if a.external_traffic_policy != b.external_traffic_policy {
        return Err(SharingRule::TrafficPolicy);
    }
    let same_pods = !a.pod_selector.is_empty() && a.pod_selector == b.pod_selector;
    match a.external_traffic_policy {
        TrafficPolicy::Local if !same_pods => Err(SharingRule::Pods),
        TrafficPolicy::Local | TrafficPolicy::Cluster => Ok(()),
    }
}

fn common_port(a: &Request, b: &Request, settings: &Settings) -> Option<(Protocol, u16)> {
    let taken = |port: &&(Protocol, u16)| {
        if settings.protocols_differ {
            b.ports.contains(port)
        } else {
            b.ports.iter().any(|(_, other)| *other == port.1)
        }
    };
    a.ports.iter().find(taken).copied()
}
