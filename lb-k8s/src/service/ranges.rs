//! Who may use a service.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::{Service as Object, ServiceSpec};
use lb_core::sources::{RangePolicy, SourceRanges};
use lb_ipam::IpNet;

use crate::{
    annotations::{CILIUM_RANGES_POLICY, SOURCE_RANGES},
    check::{self, At, Invalid},
    fields::Unsupported,
    limits::MAX_SOURCE_RANGES,
    text::quoted,
};

const FIELD: &str = "spec.loadBalancerSourceRanges";

/// The ranges of `spec.loadBalancerSourceRanges`, or of the older annotation if there are none; `None` if every source
/// is let in.
pub(super) fn read(
    object: &Object,
    spec: &ServiceSpec,
    notes: &mut Vec<Unsupported>,
) -> Result<Option<Arc<SourceRanges>>, Invalid> {
    let none = BTreeMap::new();
    let annotations = object.metadata.annotations.as_ref().unwrap_or(&none);
    let policy_field = || annotation(CILIUM_RANGES_POLICY);
    let policy = annotations.get(CILIUM_RANGES_POLICY).map(|text| policy(text)).transpose().at(policy_field)?;
    let listed = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let older = annotations.get(SOURCE_RANGES).map(String::as_str).filter(|text| !text.trim().is_empty());
    let prefixes = match (listed, older) {
        ([], None) => {
            if policy.is_some() {
                notes.push(Unsupported::new(policy_field(), format!("it has no effect without `{FIELD}`")));
            }
            return Ok(None);
        }
        ([], Some(text)) => prefixes(text.split(','), |_| annotation(SOURCE_RANGES))?,
        (listed, older) => {
            if older.is_some() {
                notes.push(Unsupported::new(annotation(SOURCE_RANGES), format!("`{FIELD}` takes precedence")));
            }
            prefixes(listed.iter().map(String::as_str), |index| format!("{FIELD}[{index}]"))?
        }
    };
    Ok(Some(Arc::new(SourceRanges::new(policy.unwrap_or_default(), prefixes))))
}

fn annotation(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

fn policy(text: &str) -> Result<RangePolicy, String> {
    let policies = [RangePolicy::Allow, RangePolicy::Deny];
    let found = policies.into_iter().find(|policy| text.trim().eq_ignore_ascii_case(policy.as_str()));
    found.ok_or_else(|| format!("{} is not a policy, expected allow or deny", quoted(text)))
}

fn prefixes<'a>(texts: impl Iterator<Item = &'a str>, field: impl Fn(usize) -> String) -> Result<Vec<IpNet>, Invalid> {
    let mut found = Vec::new();
    for (index, text) in texts.enumerate() {
        if index == MAX_SOURCE_RANGES {
            return Err(Invalid::new(field(index), format!("more than {MAX_SOURCE_RANGES} source ranges")));
        }
        found.push(prefix(text.trim()).at(|| field(index))?);
    }
    Ok(found)
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let expected = || {
        format!(
            "{} is not a range, expected an address, a slash and a number of bits, such as 10.0.0.0/8",
            quoted(text)
        )
    };
    let (ip, bits) = text.split_once('/').ok_or_else(expected)?;
    let ip = check::parse_ip(ip).ok_or_else(expected)?;
    if let IpAddr::V6(v6) = ip
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(format!("{} is an IPv4 range written as IPv6, expected the form of IPv4", quoted(text)));
    }
    let bits = bits.parse().ok().filter(|_| bits.bytes().all(|byte| byte.is_ascii_digit())).ok_or_else(expected)?;
    IpNet::new(ip, bits).map_err(|_| expected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_prefix_as_kube_proxy_reads_it() {
        let read = |text: &str| prefix(text).map(|net| net.to_string());
        assert_eq!(read("10.1.2.3/8").as_deref(), Ok("10.1.2.3/8"));
        assert_eq!(read("010.000.0.0/8").as_deref(), Ok("10.0.0.0/8"), "leading zeros are decimal");
        assert_eq!(read("2001:db8::/32").as_deref(), Ok("2001:db8::/32"));
        for text in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "/8", "", "::/129", "10.0.0.0/8/8", "a/8"] {
            let error = read(text).unwrap_err();
            assert!(error.contains("such as 10.0.0.0/8"), "{text}: {error}");
        }
        assert!(read("::ffff:10.0.0.0/104").unwrap_err().contains("the form of IPv4"));
    }
}
