//! Reads an `EndpointSlice` of Kubernetes into an [`EndpointSlice`] of the model.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::{
    api::discovery::v1::{
        Endpoint as EndpointObject, EndpointConditions, EndpointPort as PortObject, EndpointSlice as Object,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use lb_core::{
    addr::Family,
    endpoint::{Conditions, Endpoint, EndpointSlice, SlicePort},
    name::{NodeName, ServiceName, SliceName, ZoneName},
    topology::Hints,
};

use crate::{
    annotations::{self, CILIUM_WEIGHT, SERVICE_NAME, WEIGHT},
    check::{self, At, Invalid},
    fields::{self, Rule, Unsupported},
    kinds::{Identity, Kind, Notes, Reading, label, other_proxy},
    limits::{MAX_ENDPOINTS, MAX_HINTS, MAX_PORTS},
    snapshot::part::{Body, Key},
    text::quoted,
};

/// What is said about an endpoint with several addresses; kube-proxy uses the first one, too.
const ONLY_THE_FIRST: &str = "only the first address is used: write an endpoint for each address";

impl Kind for Object {
    const FIELDS: &'static Rule = &fields::ENDPOINT_SLICE;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn foreign(metadata: &ObjectMeta) -> Option<&'static str> {
        if label(metadata, annotations::SERVICE_NAME).is_none() {
            return Some("it belongs to no service (label kubernetes.io/service-name)");
        }
        let headless = label(metadata, annotations::HEADLESS);
        let headless = headless.map(|_| "its service is headless (label service.kubernetes.io/headless)");
        other_proxy(metadata).or(headless)
    }

    fn key((namespace, name): Identity<'_>) -> Key {
        Key::Slice(SliceName::new(namespace, name))
    }

    fn read(&self, (namespace, name): Identity<'_>) -> Result<Reading, Invalid> {
        let service = label(&self.metadata, annotations::SERVICE_NAME).unwrap_or_default();
        let read = read(SliceName::new(namespace, name), service, self)?;
        let notes = Notes { always: read.notes, ..Notes::default() };
        Ok(Reading::of(Body::Slice(Arc::new(read.slice)), notes))
    }
}

/// A slice as it was read.
#[derive(Debug)]
pub(crate) struct ReadSlice {
    pub(crate) slice: EndpointSlice,
    /// Parts that are not supported although each field for itself could be.
    pub(crate) notes: Vec<Unsupported>,
}

/// Reads a slice. `service` is its label [`SERVICE_NAME`].
pub(crate) fn read(name: SliceName, service: &str, object: &Object) -> Result<ReadSlice, Invalid> {
    let path = || format!("metadata.labels[{SERVICE_NAME}]");
    let service = ServiceName::new(&name.namespace, check::label(service).at(path)?);
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Err(Invalid::new("addressType", "names are not resolved, expected IPv4 or IPv6")),
        other => {
            let message = format!("{} is not a type of address, expected IPv4 or IPv6", quoted(other));
            return Err(Invalid::new("addressType", message));
        }
    };
    let mut notes = Vec::new();
    let ports = ports(object, &mut notes)?;
    let endpoints = endpoints(object, family, weight(object)?, &mut notes)?;
    Ok(ReadSlice { slice: EndpointSlice { name, service, ports, endpoints }, notes })
}

fn weight(object: &Object) -> Result<u16, Invalid> {
    let get = |key: &str| {
        let text = object.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key));
        let parse = |text: &String| check::number(text, u16::MAX.into()).map(|weight| weight as u16);
        text.map(parse).transpose().at(|| format!("metadata.annotations[{key}]"))
    };
    match (get(WEIGHT)?, get(CILIUM_WEIGHT)?) {
        (Some(ours), Some(cilium)) if ours != cilium => {
            let message = format!("{ours} contradicts {CILIUM_WEIGHT}: {cilium}");
            Err(Invalid::new(format!("metadata.annotations[{WEIGHT}]"), message))
        }
        (ours, cilium) => Ok(ours.or(cilium).unwrap_or(Endpoint::DEFAULT_WEIGHT)),
    }
}

fn ports(object: &Object, notes: &mut Vec<Unsupported>) -> Result<Vec<SlicePort>, Invalid> {
    let objects = object.ports.as_deref().unwrap_or_default();
    if objects.len() > MAX_PORTS {
        return Err(Invalid::new("ports", format!("more than {MAX_PORTS} ports")));
    }
    let mut seen = BTreeSet::new();
    let mut ports = Vec::with_capacity(objects.len());
    for (index, object) in objects.iter().enumerate() {
        let Some(port) = port(object, index)? else {
            let field = format!("ports[{index}].port");
            notes.push(Unsupported::new(field, "every port at once is not supported: name a number"));
            continue;
        };
        if !seen.insert((port.name.clone(), port.protocol)) {
            let message = format!("{} appears twice for {}", quoted(&port.name), port.protocol);
            return Err(Invalid::new(format!("ports[{index}].name"), message));
        }
        ports.push(port);
    }
    Ok(ports)
}

fn port(object: &PortObject, index: usize) -> Result<Option<SlicePort>, Invalid> {
    let field = |name: &str| format!("ports[{index}].{name}");
    let name = object.name.as_deref().filter(|name| !name.is_empty());
    let name = name.map_or(Ok(""), check::label).at(|| field("name"))?;
    let protocol = check::protocol(object.protocol.as_deref()).at(|| field("protocol"))?;
    let Some(number) = object.port else { return Ok(None) };
    let port = check::port(number).at(|| field("port"))?;
    Ok(Some(SlicePort { name: name.into(), protocol, port }))
}

fn endpoints(
    object: &Object,
    family: Family,
    weight: u16,
    notes: &mut Vec<Unsupported>,
) -> Result<Vec<Endpoint>, Invalid> {
    let objects = object.endpoints.as_deref().unwrap_or_default();
    if objects.len() > MAX_ENDPOINTS {
        return Err(Invalid::new("endpoints", format!("more than {MAX_ENDPOINTS} endpoints")));
    }
    let mut seen = BTreeSet::new();
    let mut endpoints = Vec::with_capacity(objects.len());
    for (index, object) in objects.iter().enumerate() {
        let endpoint = endpoint(object, index, family, weight)?;
        let field = || format!("endpoints[{index}].addresses");
        if !seen.insert(endpoint.ip) {
            return Err(Invalid::new(field(), format!("{} appears twice", endpoint.ip)));
        }
        if object.addresses.len() > 1 {
            notes.push(Unsupported::new(field(), ONLY_THE_FIRST));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

fn endpoint(object: &EndpointObject, index: usize, family: Family, weight: u16) -> Result<Endpoint, Invalid> {
    let address = || format!("endpoints[{index}].addresses[0]");
    let text = object.addresses.first().ok_or_else(|| Invalid::new(address(), "an endpoint needs an address"))?;
    let ip = check::ip(text).at(address)?;
    if Family::of(ip) != family {
        return Err(Invalid::new(address(), format!("{ip} is not of the slice's address type")));
    }
    let node = object.node_name.as_deref().filter(|node| !node.is_empty());
    let node = node.map(check::subdomain).transpose().at(|| format!("endpoints[{index}].nodeName"))?;
    let zone = object.zone.as_deref().filter(|zone| !zone.is_empty());
    let zone = zone.map(check::zone).transpose().at(|| format!("endpoints[{index}].zone"))?;
    Ok(Endpoint {
        node: node.map(NodeName::new),
        zone: zone.map(ZoneName::new),
        hints: hints(object, index)?,
        conditions: conditions(object.conditions.as_ref()),
        weight,
        ..Endpoint::new(ip)
    })
}

fn hints(object: &EndpointObject, index: usize) -> Result<Hints, Invalid> {
    let Some(hints) = &object.hints else { return Ok(Hints::default()) };
    let field = |list: &str, nth: usize| format!("endpoints[{index}].hints.{list}[{nth}].name");
    let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str());
    let nodes = hints.for_nodes.iter().flatten().map(|node| node.name.as_str());
    Ok(Hints {
        zones: names(zones, |zone| check::zone(zone).map(ZoneName::new), |nth| field("forZones", nth))?,
        nodes: names(nodes, |node| check::subdomain(node).map(NodeName::new), |nth| field("forNodes", nth))?,
    })
}

fn names<'a, T>(
    names: impl Iterator<Item = &'a str>,
    parse: impl Fn(&str) -> Result<T, String>,
    field: impl Fn(usize) -> String,
) -> Result<Vec<T>, Invalid> {
    let names = names.enumerate().map(|(nth, name)| match nth {
        MAX_HINTS.. => Err(Invalid::new(field(nth), format!("more than {MAX_HINTS} hints"))),
        _ => parse(name).at(|| field(nth)),
    });
    names.collect()
}

/// Missing conditions mean ready, serving and not terminating.
fn conditions(conditions: Option<&EndpointConditions>) -> Conditions {
    let Some(conditions) = conditions else { return Conditions::READY };
    Conditions {
        ready: conditions.ready != Some(false),
        serving: conditions.serving != Some(false),
        terminating: conditions.terminating == Some(true),
    }
}
