//! Which fields of an object are supported: the specification of what a manifest can ask for.
//!
//! The tables below name every field of a kind. A field that is set and marked [`Rule::Unsupported`], or is in no
//! table, is reported by its path. Unset means absent, null, empty, `false` or 0.

mod pool;
mod service;
mod slice;
mod workload;

pub(crate) use pool::{SELECTOR, pool};
pub(crate) use service::SERVICE;
pub(crate) use slice::ENDPOINT_SLICE;
pub(crate) use workload::{DEPLOYMENT, NAMESPACE, POD, STATEFUL_SET};

use serde_json::{Map, Value};

use crate::{limits::MAX_FINDINGS_PER_OBJECT, text::shown};

/// The treatment of a field.
pub(crate) enum Rule {
    /// It is supported, or has no effect on traffic.
    Known,
    /// It is not supported, for this reason.
    Unsupported(&'static str),
    /// It is not supported, and without it more is let in.
    Exposes(&'static str),
    /// An object that has these fields and no others.
    Object(&'static [(&'static str, Rule)]),
    /// An object of which all other fields say nothing about traffic.
    Open(&'static [(&'static str, Rule)]),
    /// A list of such values.
    List(&'static Rule),
    /// Annotations, of which these are supported.
    Annotations(&'static [&'static str]),
}

/// A field that is set and not supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported {
    pub(crate) field: String,
    pub(crate) message: String,
    /// Whether more is let in without it.
    pub(crate) exposes: bool,
}

impl Unsupported {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), exposes: false }
    }
}

/// Annotations that begin like this ask for something about traffic. The first line that fits counts.
const WATCHED: [(&str, Rule); 27] = [
    ("lb/", Rule::Unsupported("there is no such annotation for this kind")),
    ("service.cilium.io/type", Rule::Exposes("every address of the service is served, whatever the type here")),
    ("service.cilium.io/node", Rule::Exposes("the service is served on every node")),
    ("service.cilium.io/", Rule::Unsupported(NOT_SUPPORTED)),
    ("lbipam.cilium.io/", Rule::Unsupported(NOT_SUPPORTED)),
    ("io.cilium/", Rule::Unsupported(NOT_SUPPORTED)),
    ("service.kubernetes.io/topology-", Rule::Unsupported("only a service asks for hints")),
    ("service.beta.kubernetes.io/azure-allowed-", Rule::Exposes(AZURE_RANGES)),
    ("service.beta.kubernetes.io/azure-load-balancer-internal", Rule::Exposes(INTERNAL)),
    ("service.beta.kubernetes.io/aws-load-balancer-internal", Rule::Exposes(INTERNAL)),
    ("service.beta.kubernetes.io/", Rule::Unsupported("there is no cloud provider")),
    ("metallb.io/", Rule::Unsupported(NOT_SUPPORTED)),
    ("metallb.universe.tf/", Rule::Unsupported(NOT_SUPPORTED)),
    ("kube-vip.io/loadbalancerIPs", Rule::Unsupported("kube-vip's request is not read: write `lb/ips`")),
    ("kube-vip.io/", Rule::Unsupported("annotations of kube-vip are not read")),
    // PureLB writes these itself.
    ("purelb.io/allocated-", Rule::Known),
    ("purelb.io/announcing-", Rule::Known),
    ("purelb.io/addresses", Rule::Unsupported("PureLB's request is not read: write `lb/ips`")),
    ("purelb.io/service-group", Rule::Unsupported("PureLB's group is not read: write a pool and `lb/pool`")),
    ("purelb.io/allow-shared-ip", Rule::Unsupported("PureLB's key is not read: write `lb/sharing-key`")),
    ("purelb.io/", Rule::Unsupported("annotations of PureLB are not read")),
    ("eip.openelb.kubesphere.io/v1alpha1", Rule::Unsupported("OpenELB's request is not read: write `lb/ips`")),
    ("eip.openelb.kubesphere.io/", Rule::Unsupported("OpenELB's Eip is not read: write a pool and `lb/pool`")),
    ("protocol.openelb.kubesphere.io/", Rule::Unsupported("annotations of OpenELB are not read")),
    (
        "projectcalico.org/loadBalancerIPs",
        Rule::Unsupported("Calico's request is not read: write `lb/ips`, the addresses separated by commas"),
    ),
    ("projectcalico.org/ipv4pools", Rule::Unsupported(CALICO_POOLS)),
    ("projectcalico.org/ipv6pools", Rule::Unsupported(CALICO_POOLS)),
];

const MISSPELT_SOURCE_RANGES: &str =
    "there is no such field, so that every source is let in: write `loadBalancerSourceRanges`";
const NOT_SUPPORTED: &str = "this annotation is not supported";
const AZURE_RANGES: &str =
    "Azure's ranges are not read, so that every source is let in: write `spec.loadBalancerSourceRanges`";
const INTERNAL: &str = "there is no cloud provider: whoever reaches the address is let in";
const CALICO_POOLS: &str = "Calico's pools are not read: write a pool and `lb/pool`";

/// The fields of `value` that are set and not supported, with their paths.
pub(crate) fn unsupported(value: &Value, rule: &Rule) -> Vec<Unsupported> {
    let mut walk = Walk { path: String::new(), found: Vec::new(), more: 0 };
    walk.value(value, rule);
    if walk.more > 0 {
        let message = format!("{} more fields of this object are not supported", walk.more);
        walk.found.push(Unsupported::new("", message));
    }
    walk.found
}

struct Walk {
    path: String,
    found: Vec<Unsupported>,
    more: usize,
}

impl Walk {
    fn value(&mut self, value: &Value, rule: &Rule) {
        match (rule, value) {
            (Rule::Unsupported(why), value) if is_set(value) => self.report(why, false),
            (Rule::Exposes(why), value) if is_set(value) => self.report(why, true),
            (Rule::Object(fields), Value::Object(object)) => self.object(object, fields, true),
            (Rule::Open(fields), Value::Object(object)) => self.object(object, fields, false),
            (Rule::List(rule), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.inside(&format!("[{index}]"), |walk| walk.value(item, rule));
                }
            }
            (Rule::Annotations(known), Value::Object(object)) => self.annotations(object, known),
            // Values of another type than the rule's are errors of type, which are found elsewhere.
            _ => {}
        }
    }

    fn object(&mut self, object: &Map<String, Value>, fields: &[(&str, Rule)], closed: bool) {
        for (key, value) in object {
            match fields.iter().find(|(name, _)| name == key) {
                Some((_, Rule::Known)) => {}
                Some((_, rule)) => self.inside(&step(key), |walk| walk.value(value, rule)),
                None if closed && is_set(value) => {
                    let is_misspelt = key.to_ascii_lowercase().starts_with("loadbalancersource");
                    let why = if is_misspelt { MISSPELT_SOURCE_RANGES } else { "there is no such field" };
                    self.inside(&step(key), |walk| walk.report(why, is_misspelt));
                }
                None => {}
            }
        }
    }

    fn annotations(&mut self, object: &Map<String, Value>, known: &[&str]) {
        for (key, value) in object.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
            if let Some((_, rule)) = WATCHED.iter().find(|(prefix, _)| key.starts_with(prefix)) {
                self.inside(&format!("[{}]", shown(key)), |walk| walk.value(value, rule));
            }
        }
    }

    fn inside(&mut self, step: &str, walk: impl FnOnce(&mut Self)) {
        let before = self.path.len();
        self.path.push_str(step);
        walk(self);
        self.path.truncate(before);
    }

    fn report(&mut self, message: &str, exposes: bool) {
        // What exposes a service is never only counted.
        if self.found.len() >= MAX_FINDINGS_PER_OBJECT && !exposes {
            self.more += 1;
            return;
        }
        let found = Unsupported::new(self.path.trim_start_matches('.'), message);
        self.found.push(Unsupported { exposes, ..found });
    }
}

/// A key as part of a path, with what separates it from the part before.
pub(crate) fn step(key: &str) -> String {
    let plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if plain && key.len() < 64 { format!(".{key}") } else { format!("[{}]", shown(key)) }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Metadata of an object of which no annotation is supported.
const METADATA: Rule = Rule::Open(&[("annotations", Rule::Annotations(&[]))]);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: &Value, rule: &Rule) -> Vec<String> {
        unsupported(value, rule).into_iter().map(|found| format!("{}: {}", found.field, found.message)).collect()
    }

    /// The fields of a service without which more is let in.
    fn exposing(value: &Value) -> Vec<String> {
        let found = unsupported(value, &SERVICE).into_iter().filter(|found| found.exposes);
        found.map(|found| found.field).collect()
    }

    #[test]
    fn fields_without_which_more_is_let_in_are_told_apart_and_never_only_counted() {
        let others: Map<_, _> = (0..40).map(|key| (format!("lb/x{key}"), json!("x"))).collect();
        let mut annotations = others;
        annotations.insert("service.beta.kubernetes.io/azure-allowed-ip-ranges".into(), json!("10.0.0.0/8"));
        annotations.insert("service.cilium.io/type".into(), json!("ClusterIP"));
        let value = json!({
            "metadata": { "annotations": annotations },
            "spec": { "loadBalancerSourceRange": ["10.0.0.0/8"], "externalName": "x.example" },
        });
        assert_eq!(
            exposing(&value),
            [
                "metadata.annotations[service.beta.kubernetes.io/azure-allowed-ip-ranges]",
                "metadata.annotations[service.cilium.io/type]",
                "spec.loadBalancerSourceRange",
            ]
        );
        assert_eq!(
            exposing(&json!({ "spec": { "loadbalancerSourceRange": ["10.0.0.0/8"] } })),
            ["spec.loadbalancerSourceRange"]
        );
        assert_eq!(
            exposing(&json!({ "spec": { "externalTrafficPolicy": "Local", "externalName": "x.example" } })),
            [""; 0]
        );
    }

    #[test]
    fn requests_of_other_programs_are_named_with_what_to_write_instead() {
        for (key, instead) in [
            ("kube-vip.io/loadbalancerIPs", "`lb/ips`"),
            ("purelb.io/addresses", "`lb/ips`"),
            ("purelb.io/service-group", "`lb/pool`"),
            ("purelb.io/allow-shared-ip", "`lb/sharing-key`"),
            ("eip.openelb.kubesphere.io/v1alpha1", "`lb/ips`"),
            ("eip.openelb.kubesphere.io/v1alpha2", "`lb/pool`"),
            ("projectcalico.org/loadBalancerIPs", "`lb/ips`"),
            ("projectcalico.org/ipv4pools", "`lb/pool`"),
        ] {
            let found = fields(&json!({ "metadata": { "annotations": { key: "10.0.0.1" } } }), &SERVICE);
            assert!(
                found.len() == 1 && found[0].contains("not read") && found[0].contains(instead),
                "{key}: {found:?}"
            );
        }
        let own = json!({ "metadata": { "annotations": { "purelb.io/allocated-by": "PureLB" } } });
        assert_eq!(fields(&own, &SERVICE), [""; 0]);
    }

    #[test]
    fn what_is_set_and_not_carried_out_is_named() {
        let value = json!({
            "kind": "Service",
            "metadata": { "name": "x", "annotations": { "lb/speed": "9", "lb/algorithm": "maglev", "team": "a" } },
            "spec": { "loadBalancerSourceRange": ["10.0.0.0/8"], "sesionAffinity": "ClientIP", "ports": [{ "prot": 1 }] },
        });
        assert_eq!(
            fields(&value, &SERVICE),
            [
                "metadata.annotations[lb/speed]: there is no such annotation for this kind",
                "spec.loadBalancerSourceRange: there is no such field, so that every source is let in: write \
                 `loadBalancerSourceRanges`",
                "spec.ports[0].prot: there is no such field",
                "spec.sesionAffinity: there is no such field",
            ]
        );
    }

    #[test]
    fn defaults_are_no_noise() {
        let value = json!({ "spec": { "loadBalancerSourceRanges": [], "externalName": "",
            "trafficDistribution": null, "publishNotReadyAddresses": false } });
        assert_eq!(fields(&value, &SERVICE), [""; 0]);
    }

    #[test]
    fn hostile_keys_are_harmless_and_counted() {
        let keys = (0..40).map(|key| (format!("\u{1b}[2J{key}"), json!(1))).collect::<Map<_, _>>();
        let found = fields(&Value::Object(keys), &SERVICE);
        assert_eq!(found.len(), MAX_FINDINGS_PER_OBJECT + 1);
        assert_eq!(found[0], "[\\u{1b}[2J0]: there is no such field");
        assert_eq!(found[MAX_FINDINGS_PER_OBJECT], ": 24 more fields of this object are not supported");
    }
}
