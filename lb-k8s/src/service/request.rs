//! Requests of services for addresses, and the addresses in their status.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{Service as Object, ServiceSpec};
use lb_core::service::Service;
use lb_ipam::{Condition, Namespaces, PoolChoice, PoolName, Request, RequestedAddress, Sharing, Status};

use super::{addresses, text};
use crate::{
    annotations::{
        CILIUM_IPS, CILIUM_IPS_OLD, CILIUM_SHARING_KEY, CILIUM_SHARING_KEY_OLD, CILIUM_SHARING_NAMESPACES,
        CILIUM_SHARING_NAMESPACES_OLD, IPS, METALLB_IPS, METALLB_IPS_OLD, METALLB_POOL, METALLB_POOL_OLD,
        METALLB_SHARING_KEY, METALLB_SHARING_KEY_OLD, POOL, PREFERRED_POOL, SHARING_KEY, SHARING_NAMESPACES,
    },
    check::{self, Invalid},
    conditions::{REQUEST_SATISFIED, REQUEST_SATISFIED_OLD},
    fields::Unsupported,
    kinds::Notes,
    limits::MAX_SHARING_NAMESPACES,
    pools::created,
    text::{quoted, shown},
};

/// Annotations that say the same thing; the first that is there counts.
type Names = &'static [&'static str];

const ALL_IPS: Names = &[IPS, CILIUM_IPS, CILIUM_IPS_OLD, METALLB_IPS, METALLB_IPS_OLD];
const SHARING_KEYS: Names =
    &[SHARING_KEY, CILIUM_SHARING_KEY, CILIUM_SHARING_KEY_OLD, METALLB_SHARING_KEY, METALLB_SHARING_KEY_OLD];
const ALL_NAMESPACES: Names = &[SHARING_NAMESPACES, CILIUM_SHARING_NAMESPACES, CILIUM_SHARING_NAMESPACES_OLD];
const POOLS: Names = &[POOL, METALLB_POOL, METALLB_POOL_OLD];
const PREFERRED_POOLS: Names = &[PREFERRED_POOL];

const LOAD_BALANCER_IP: &str = "spec.loadBalancerIP";

/// Reads the request of a service. No mistake in it makes the service invalid. `is_ours` is whether it is of type
/// LoadBalancer and has frontends. One that is not is only of interest if it has addresses left.
pub(super) fn read(
    object: &Object,
    spec: &ServiceSpec,
    is_ours: bool,
    service: &Service,
    notes: &mut Notes,
) -> Result<Option<Request>, Invalid> {
    let none = BTreeMap::new();
    let mut annotations =
        AddressAnnotations { annotations: object.metadata.annotations.as_ref().unwrap_or(&none), notes };
    let published = published(object);
    let name = &service.name;
    let mut request = Request::new(name.namespace(), name.name());
    if !is_ours {
        annotations.in_vain(spec);
        let has_left = published != Status::default();
        return Ok(has_left.then_some(Request { load_balancer: false, published, ..request }));
    }
    annotations.unallocated(spec, &published);
    request.created = created(&object.metadata);
    request.labels = object.metadata.labels.clone().unwrap_or_default();
    request.class = text(spec.load_balancer_class.as_ref()).map(str::to_owned);
    request.family_policy = addresses::family_policy(spec, &service.cluster_ips);
    request.families = addresses::families(spec, &service.cluster_ips)?;
    request.addresses = annotations.addresses(spec);
    request.pool = annotations.pool();
    request.sharing = annotations.sharing();
    request.ports = service.ports.iter().map(|port| (port.protocol, port.port)).collect();
    request.external_traffic_policy = service.external_traffic_policy;
    request.pod_selector = spec.selector.clone().unwrap_or_default();
    request.published = published;
    Ok(Some(request))
}

/// Addresses of the ingress, whoever carries them, and the condition of lb.
fn published(object: &Object) -> Status {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for entry in addresses::ingress(object) {
        let address = text(entry.ip.as_ref()).and_then(|ip| check::ip(ip).ok());
        addresses.extend(address.filter(|address| !addresses.contains(address)));
    }
    let conditions = || object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let of_type = |name: &str| conditions().find(|condition| condition.type_ == name);
    let condition = of_type(REQUEST_SATISFIED).or_else(|| of_type(REQUEST_SATISFIED_OLD));
    let condition = condition.map(|condition| Condition {
        satisfied: condition.status == "True",
        reason: condition.reason.clone().into(),
        message: condition.message.clone(),
    });
    Status { addresses, condition }
}

/// The annotations by which a service asks for addresses.
struct AddressAnnotations<'a> {
    annotations: &'a BTreeMap<String, String>,
    notes: &'a mut Notes,
}

impl<'a> AddressAnnotations<'a> {
    fn note(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.notes.always.push(Unsupported::new(field, message));
    }

    /// An annotation; an empty one says nothing.
    fn get(&self, key: &str) -> Option<&'a str> {
        self.annotations.get(key).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// Every annotation about addresses that is there.
    fn all(&self) -> Vec<&'static str> {
        let lists = [ALL_IPS, SHARING_KEYS, ALL_NAMESPACES, POOLS, PREFERRED_POOLS];
        lists.into_iter().flatten().copied().filter(|key| self.get(key).is_some()).collect()
    }

    /// The first of some annotations. Those that say something else are reported.
    fn first<T: PartialEq>(&mut self, names: Names, parse: impl Fn(&'a str) -> T) -> Option<(&'static str, T)> {
        let mut present = names.iter().filter_map(|name| Some((*name, parse(self.get(name)?))));
        let first = present.next()?;
        let others: Vec<_> = present.filter(|(_, value)| *value != first.1).map(|(name, _)| name).collect();
        for other in others {
            self.note(annotation(other), format!("{} has another value and takes precedence", first.0));
        }
        Some(first)
    }

    fn in_vain(&mut self, spec: &ServiceSpec) {
        let message = "only a service of type LoadBalancer with frontends asks for addresses";
        for key in self.all() {
            self.note(annotation(key), message);
        }
        if text(spec.load_balancer_ip.as_ref()).is_some() {
            self.note(LOAD_BALANCER_IP, message);
        }
    }

    /// Notes requests that are not supported where nobody allocates.
    fn unallocated(&mut self, spec: &ServiceSpec, published: &Status) {
        let mut found = Vec::new();
        let wanted = text(spec.load_balancer_ip.as_ref()).and_then(|ip| check::ip(ip).ok());
        if wanted.is_some_and(|wanted| !published.addresses.contains(&wanted)) {
            let message = "addresses are not allocated: put it into `status.loadBalancer.ingress`";
            found.push((LOAD_BALANCER_IP.to_owned(), message));
        }
        found.extend(self.all().into_iter().map(|key| (annotation(key), "addresses are not allocated")));
        let found = found.into_iter().map(|(field, message)| Unsupported::new(field, message));
        self.notes.unallocated.extend(found);
    }

    /// The addresses that it names: `spec.loadBalancerIP`, then those of the annotation. To MetalLB the two exclude
    /// each other: with its annotation, an address that is not among those of the annotation is reported.
    fn addresses(&mut self, spec: &ServiceSpec) -> Vec<RequestedAddress> {
        let single = text(spec.load_balancer_ip.as_ref()).map(|single| {
            let wanted = wanted(single);
            if let RequestedAddress::Unreadable(_) = wanted {
                self.note(LOAD_BALANCER_IP, format!("{} is not an IP address", quoted(single)));
            }
            wanted
        });
        let Some((key, listed)) = self.first(ALL_IPS, list) else { return single.into_iter().collect() };
        self.check_list(key, &listed);
        match single {
            Some(single) if !listed.contains(&single) && [METALLB_IPS, METALLB_IPS_OLD].contains(&key) => {
                self.note(LOAD_BALANCER_IP, format!("{key} names other addresses and takes precedence"));
                listed
            }
            Some(single) if !listed.contains(&single) => std::iter::once(single).chain(listed).collect(),
            Some(_) | None => listed,
        }
    }

    fn check_list(&mut self, key: &str, listed: &[RequestedAddress]) {
        if listed.len() > Request::MAX_ADDRESSES {
            let message = format!("only the first {} addresses are looked at", Request::MAX_ADDRESSES);
            self.note(annotation(key), message);
        }
        for wanted in listed {
            if let RequestedAddress::Unreadable(text) = wanted {
                self.note(annotation(key), format!("{} is not an IP address", quoted(text)));
            }
        }
    }

    fn pool(&mut self) -> PoolChoice {
        let only = self.first(POOLS, PoolName::new);
        let preferred = self.first(PREFERRED_POOLS, PoolName::new);
        match (only, preferred) {
            (Some((key, only)), preferred) => {
                if preferred.is_some() {
                    self.note(annotation(PREFERRED_POOL), format!("{key} admits one pool and takes precedence"));
                }
                PoolChoice::Only(only)
            }
            (None, Some((_, preferred))) => PoolChoice::Prefer(preferred),
            (None, None) => PoolChoice::Any,
        }
    }

    fn sharing(&mut self) -> Option<Sharing> {
        let namespaces = self.first(ALL_NAMESPACES, namespaces);
        let Some((key_name, key)) = self.first(SHARING_KEYS, str::to_owned) else {
            if let Some((name, _)) = namespaces {
                self.note(annotation(name), format!("it needs {SHARING_KEY}, or what that is called elsewhere"));
            }
            return None;
        };
        if let Some((name, Namespaces::Listed(_))) = &namespaces
            && self.get(name).is_some_and(|list| entries(list).count() > MAX_SHARING_NAMESPACES)
        {
            self.note(annotation(name), format!("only the first {MAX_SHARING_NAMESPACES} namespaces are looked at"));
        }
        let is_metallb = [METALLB_SHARING_KEY, METALLB_SHARING_KEY_OLD].contains(&key_name);
        let default = if is_metallb { Namespaces::All } else { Namespaces::default() };
        Some(Sharing { key: key.into(), namespaces: namespaces.map_or(default, |(_, namespaces)| namespaces) })
    }
}

fn annotation(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// A requested address. A text that is not an address is escaped for messages.
fn wanted(entry: &str) -> RequestedAddress {
    entry.parse().map_or_else(|_| RequestedAddress::Unreadable(shown(entry)), RequestedAddress::Address)
}

/// The addresses of a list, and one more than are looked at so that this shows.
fn list(list: &str) -> Vec<RequestedAddress> {
    entries(list).take(Request::MAX_ADDRESSES + 1).map(wanted).collect()
}

fn namespaces(list: &str) -> Namespaces {
    let listed: BTreeSet<_> = entries(list).take(MAX_SHARING_NAMESPACES).map(str::to_owned).collect();
    if listed.contains("*") { Namespaces::All } else { Namespaces::Listed(listed) }
}
