//! Rules about services that share an address.

use alloc::string::String;

use lb_core::{addr::Protocol, name::ServiceName, service::TrafficPolicy};

use crate::{Request, Settings, Sharing};

/// The rule that keeps two services from sharing an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SharingRule {
    /// They have two keys.
    #[error("different sharing key; give both services the same one")]
    Key,
    /// This one has no key, or an empty one.
    #[error("service {0} has no sharing key; give both services the same one")]
    NoKey(ServiceName),
    /// They are in two namespaces and do not both name the other's.
    #[error(
        "namespaces `{0}` and `{1}` do not both allow each other; set lb/sharing-namespaces of each service to the namespace of the other"
    )]
    Namespace(String, String),
    /// They have a port in common.
    #[error("both use port {1}/{0}; give one of them another port, or ask for another address")]
    Port(Protocol, u16),
    /// One has external traffic policy Local, the other Cluster.
    #[error("different external traffic policy; give both services the same one")]
    TrafficPolicy,
    /// Both have policy Local, but not the same pods.
    #[error(
        "external traffic policy Local with different pods; give both services the same pods, or the policy Cluster"
    )]
    Pods,
    /// So many share it already: [`Allocator::MAX_SHARERS`](crate::Allocator::MAX_SHARERS).
    #[error("as many services share it as may; ask for another address")]
    TooMany,
    /// Another process allocated it to a service that is not known here yet.
    #[error("it is not known here yet; wait until it is, or ask for another address")]
    Unknown,
    /// It is [kept](crate::Edit::KeepService) because it cannot be read, so it is not known what it shares.
    #[error("it cannot be read, and nobody joins it before it can; correct it")]
    Unreadable,
}

/// Whether `a` and `b` may hold one address: the same key; the same namespace, or each allows the other's; no port in
/// common; the same external traffic policy, and with Local the same pods.
///
/// # Errors
/// The first rule that they break.
pub fn may_share(a: &Request, b: &Request, settings: &Settings) -> Result<(), SharingRule> {
    let (ours, theirs) = (with_key(a)?, with_key(b)?);
    if ours.key != theirs.key {
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

fn with_key(request: &Request) -> Result<&Sharing, SharingRule> {
    let sharing = request.sharing.as_ref().filter(|sharing| !sharing.key.is_empty());
    sharing.ok_or_else(|| SharingRule::NoKey(request.service.clone()))
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
