//! Whether the source ranges of a service restrict anything.

use lb_core::addr::Family;
use serde_json::Value;

use crate::check;

/// Whether `ranges` have every source of each family that the service of `object` has. A family that the service may
/// get later counts. An annotation separates ranges by commas.
pub(super) fn are_every_source(ranges: &Value, object: &Value) -> bool {
    let has = |all: &str| match ranges {
        Value::Array(ranges) => texts(ranges).any(|range| range.trim() == all),
        Value::String(ranges) => ranges.split(',').any(|range| range.trim() == all),
        _ => false,
    };
    let wanted = families(object);
    [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")].iter().all(|(family, all)| !wanted.contains(family) || has(all))
}

/// The families that the addresses of a service may have: both if it does not say.
fn families(object: &Value) -> Vec<Family> {
    let spec = &object["spec"];
    let both = vec![Family::V4, Family::V6];
    if ["PreferDualStack", "RequireDualStack"].iter().any(|policy| spec["ipFamilyPolicy"] == *policy) {
        return both;
    }
    let listed = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut addresses = listed(&spec["clusterIPs"]);
    addresses.push(spec["clusterIP"].clone());
    addresses.push(spec["loadBalancerIP"].clone());
    addresses.extend(listed(&spec["externalIPs"]));
    addresses.extend(listed(&object["status"]["loadBalancer"]["ingress"]).iter().map(|entry| entry["ip"].clone()));
    let mut found: Vec<Family> = texts(&addresses).filter_map(|ip| check::ip(ip).ok()).map(Family::of).collect();
    let families = listed(&spec["ipFamilies"]);
    found.extend(texts(&families).filter_map(|family| match family {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }));
    if found.is_empty() { both } else { found }
}

fn texts(values: &[Value]) -> impl Iterator<Item = &str> {
    values.iter().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_whole_of_each_family_of_the_service_restricts_nothing() {
        let v4 = json!({ "spec": { "clusterIP": "10.96.0.1" } });
        let v6 = json!({ "spec": { "ipFamilies": ["IPv6"] } });
        let dual = json!({ "spec": { "clusterIP": "10.96.0.1", "ipFamilyPolicy": "PreferDualStack" } });
        let ingress = json!({
            "spec": { "clusterIP": "10.96.0.1" },
            "status": { "loadBalancer": { "ingress": [{ "ip": "2001:db8::1" }] } },
        });
        let silent = json!({ "spec": { "type": "LoadBalancer" } });
        for (ranges, object, expected) in [
            (json!(["0.0.0.0/0"]), &v4, true),
            (json!(["10.0.0.0/8", " 0.0.0.0/0 "]), &v4, true),
            (json!(["10.0.0.0/8"]), &v4, false),
            (json!(["0.0.0.0/1"]), &v4, false),
            (json!(["::/0"]), &v4, false),
            (json!("10.0.0.0/8, 0.0.0.0/0"), &v4, true),
            (json!("10.0.0.0/8"), &v4, false),
            (json!(["::/0"]), &v6, true),
            (json!(["0.0.0.0/0"]), &v6, false),
            (json!(["0.0.0.0/0"]), &dual, false),
            (json!(["0.0.0.0/0", "::/0"]), &dual, true),
            (json!(["0.0.0.0/0"]), &ingress, false),
            (json!(["0.0.0.0/0"]), &silent, false),
            (json!(["0.0.0.0/0", "::/0"]), &silent, true),
        ] {
            assert_eq!(are_every_source(&ranges, object), expected, "{ranges} {object}");
        }
    }
}
