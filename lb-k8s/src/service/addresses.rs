//! The addresses of a service.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service as Object, ServiceSpec};
use lb_core::{addr::Family, service::Service};
use lb_ipam::FamilyPolicy;

use super::{Type, text};
use crate::{
    check::{self, At, Invalid},
    fields::Unsupported,
    kinds::Notes,
    limits::MAX_ADDRESSES,
    text::quoted,
};

const NONE: &str = "None";
const IS_CLUSTER_IP: &str = "it is the cluster address of the same service";

/// Whether the service says that it is headless.
pub(super) fn is_none(spec: &ServiceSpec) -> bool {
    let first = spec.cluster_ips.iter().flatten().next();
    [spec.cluster_ip.as_ref(), first].into_iter().flatten().any(|ip| ip == NONE)
}

/// Fills the addresses in.
pub(super) fn read(
    object: &Object,
    spec: &ServiceSpec,
    kind: Type,
    has_frontends: bool,
    service: &mut Service,
    notes: &mut Notes,
) -> Result<(), Invalid> {
    let mut note = |field: &str, message: &str| {
        notes.always.push(Unsupported::new(field, message));
    };
    let cluster_ips = cluster_ips(spec)?;
    families_match(spec, &cluster_ips)?;
    let mut external_ips = external_ips(spec, &cluster_ips)?;
    let ingress = ingress_ips(object, &cluster_ips, &mut note)?;
    if !has_frontends {
        if kind == Type::ExternalName && !cluster_ips.is_empty() {
            return Err(Invalid::new("spec.clusterIP", "a service of type ExternalName has no cluster address"));
        }
        if !external_ips.is_empty() {
            note("spec.externalIPs", "a headless or ExternalName service has no frontends");
        }
        return Ok(());
    }
    if cluster_ips.is_empty() {
        note("spec.clusterIP", "addresses are not allocated: name one, or `None`");
    }
    if kind != Type::LoadBalancer && !ingress.is_empty() {
        note("status.loadBalancer.ingress", "only a service of type LoadBalancer has such addresses");
    }
    service.load_balancer_ips = if kind == Type::LoadBalancer { ingress } else { Vec::new() };
    // The frontends would be the same.
    external_ips.retain(|ip| !service.load_balancer_ips.contains(ip));
    service.cluster_ips = cluster_ips;
    service.external_ips = external_ips;
    Ok(())
}

fn cluster_ips(spec: &ServiceSpec) -> Result<Vec<IpAddr>, Invalid> {
    let many = spec.cluster_ips.as_deref().unwrap_or_default();
    if is_none(spec) {
        let single = text(spec.cluster_ip.as_ref()).into_iter();
        let all_none = single.chain(many.iter().map(String::as_str)).all(|ip| ip == NONE);
        let message = "`None` and addresses exclude each other";
        return if all_none { Ok(Vec::new()) } else { Err(Invalid::new("spec.clusterIPs", message)) };
    }
    let single = text(spec.cluster_ip.as_ref()).map(check::ip).transpose().at(|| "spec.clusterIP".into())?;
    let many = addresses(many, "spec.clusterIPs")?;
    match (single, many.as_slice()) {
        (None, _) => {}
        (Some(single), []) => return Ok(vec![single]),
        (Some(single), [first, ..]) if single == *first => {}
        (Some(single), [first, ..]) => {
            let message = format!("{single} is not the first of `spec.clusterIPs`, which is {first}");
            return Err(Invalid::new("spec.clusterIP", message));
        }
    }
    match many.as_slice() {
        [] | [_] => Ok(many),
        [a, b] if Family::of(*a) != Family::of(*b) => Ok(many),
        _ => Err(Invalid::new("spec.clusterIPs", "expected at most one address of each family")),
    }
}

fn external_ips(spec: &ServiceSpec, cluster_ips: &[IpAddr]) -> Result<Vec<IpAddr>, Invalid> {
    let ips = addresses(spec.external_ips.as_deref().unwrap_or_default(), "spec.externalIPs")?;
    match ips.iter().position(|ip| cluster_ips.contains(ip)) {
        Some(index) => Err(Invalid::new(format!("spec.externalIPs[{index}]"), IS_CLUSTER_IP)),
        None => Ok(ips),
    }
}

/// Addresses of the ingress that the node is to carry: those of `ipMode: VIP`, which is the default.
fn ingress_ips(
    object: &Object,
    cluster_ips: &[IpAddr],
    note: &mut impl FnMut(&str, &str),
) -> Result<Vec<IpAddr>, Invalid> {
    let entries = ingress(object);
    if entries.len() > MAX_ADDRESSES {
        return Err(Invalid::new("status.loadBalancer.ingress", format!("more than {MAX_ADDRESSES} addresses")));
    }
    let mut ips = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let field = |name: &str| format!("status.loadBalancer.ingress[{index}].{name}");
        let Some(ip) = text(entry.ip.as_ref()) else { continue };
        let ip = check::ip(ip).at(|| field("ip"))?;
        if ips.contains(&ip) {
            note(&field("ip"), &format!("{ip} appears twice"));
            continue;
        }
        if cluster_ips.contains(&ip) {
            return Err(Invalid::new(field("ip"), IS_CLUSTER_IP));
        }
        if is_vip(entry).at(|| field("ipMode"))? {
            ips.push(ip);
        }
    }
    Ok(ips)
}

/// Entries of the ingress, of every mode.
pub(super) fn ingress(object: &Object) -> &[LoadBalancerIngress] {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.and_then(|status| status.ingress.as_deref()).unwrap_or_default()
}

fn is_vip(entry: &LoadBalancerIngress) -> Result<bool, String> {
    match text(entry.ip_mode.as_ref()) {
        None | Some("VIP") => Ok(true),
        Some("Proxy") => Ok(false),
        Some(other) => Err(format!("{} is not a mode, expected VIP or Proxy", quoted(other))),
    }
}

fn addresses(texts: &[String], field: &str) -> Result<Vec<IpAddr>, Invalid> {
    if texts.len() > MAX_ADDRESSES {
        return Err(Invalid::new(field, format!("more than {MAX_ADDRESSES} addresses")));
    }
    let mut ips = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let ip = check::ip(text).at(|| format!("{field}[{index}]"))?;
        if ips.contains(&ip) {
            return Err(Invalid::new(format!("{field}[{index}]"), format!("{ip} appears twice")));
        }
        ips.push(ip);
    }
    Ok(ips)
}

/// `ipFamilies` and `ipFamilyPolicy` must say what the addresses say.
fn families_match(spec: &ServiceSpec, cluster_ips: &[IpAddr]) -> Result<(), Invalid> {
    let families = ip_families(spec)?;
    for (index, (ip, family)) in cluster_ips.iter().zip(&families).enumerate() {
        if Family::of(*ip) != *family {
            let message = format!("expected the family of cluster address {ip}");
            return Err(Invalid::new(format!("spec.ipFamilies[{index}]"), message));
        }
    }
    let policy = text(spec.ip_family_policy.as_ref());
    if policy.is_none() && !families.is_empty() && cluster_ips.len() > families.len() {
        return Err(Invalid::new("spec.ipFamilies", "there are more cluster addresses than families"));
    }
    match (policy, cluster_ips.len()) {
        (Some("SingleStack"), 2) => Err(Invalid::new("spec.ipFamilyPolicy", "SingleStack has one cluster address")),
        (Some("RequireDualStack"), 1) => {
            Err(Invalid::new("spec.ipFamilyPolicy", "RequireDualStack needs a cluster address of each family"))
        }
        (None | Some("SingleStack" | "PreferDualStack" | "RequireDualStack"), _) => Ok(()),
        (Some(other), _) => {
            let message =
                format!("{} is not a policy, expected SingleStack, PreferDualStack or RequireDualStack", quoted(other));
            Err(Invalid::new("spec.ipFamilyPolicy", message))
        }
    }
}

pub(super) fn ip_families(spec: &ServiceSpec) -> Result<Vec<Family>, Invalid> {
    let mut families = Vec::new();
    for (index, name) in spec.ip_families.iter().flatten().enumerate() {
        let field = || format!("spec.ipFamilies[{index}]");
        let family = match name.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            other => {
                let message = format!("{} is not a family, expected IPv4 or IPv6", quoted(other));
                return Err(Invalid::new(field(), message));
            }
        };
        if families.contains(&family) {
            return Err(Invalid::new(field(), format!("{name} appears twice")));
        }
        families.push(family);
    }
    Ok(families)
}

/// How many families the service wants. Without a policy it wants one, unless it names both or has a cluster address of
/// each: then both, as the API server of Kubernetes 1.20 to 1.22 fills in. Later ones refuse such a service.
pub(super) fn family_policy(spec: &ServiceSpec, cluster_ips: &[IpAddr]) -> FamilyPolicy {
    match text(spec.ip_family_policy.as_ref()) {
        Some("PreferDualStack") => FamilyPolicy::PreferDualStack,
        Some("RequireDualStack") => FamilyPolicy::RequireDualStack,
        None if spec.ip_families.iter().flatten().count() == 2 || cluster_ips.len() == 2 => {
            FamilyPolicy::RequireDualStack
        }
        // Every other word is refused where it is compared with the cluster addresses.
        Some(_) | None => FamilyPolicy::SingleStack,
    }
}

/// Families of the service, the main one first, as the API server fills them in: those it names, then those of its
/// cluster addresses, then the missing one if it wants both. Empty if it says nothing about families.
///
/// One preferred family with a cluster address is what the API server of a cluster with one family has filled in
/// already, and it never adds the other one later.
pub(super) fn families(spec: &ServiceSpec, cluster_ips: &[IpAddr]) -> Result<Vec<Family>, Invalid> {
    let mut families = ip_families(spec)?;
    let is_filled_in = families.len() == 1 && cluster_ips.len() == 1;
    families.extend(cluster_ips.iter().skip(families.len()).map(|&ip| Family::of(ip)));
    match (family_policy(spec, cluster_ips), &families[..]) {
        (FamilyPolicy::SingleStack, _) => families.truncate(1),
        (FamilyPolicy::PreferDualStack, [_]) if is_filled_in => {}
        (FamilyPolicy::PreferDualStack | FamilyPolicy::RequireDualStack, [Family::V4]) => families.push(Family::V6),
        (FamilyPolicy::PreferDualStack | FamilyPolicy::RequireDualStack, [Family::V6]) => families.push(Family::V4),
        (FamilyPolicy::PreferDualStack | FamilyPolicy::RequireDualStack, _) => {}
    }
    Ok(families)
}
