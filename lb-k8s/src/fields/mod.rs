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
}

/// Annotations under these prefixes ask for something about traffic.
const WATCHED: [(&str, &str); 8] = [
    ("lb/", "there is no such annotation for this kind"),
    ("service.cilium.io/", "this annotation is not supported"),
    ("lbipam.cilium.io/", "this annotation is not supported"),
    ("io.cilium/", "this annotation is not supported"),
    ("service.kubernetes.io/topology-", "only a service asks for hints"),
    ("service.beta.kubernetes.io/", "there is no cloud provider"),
    ("metallb.io/", "this annotation is not supported"),
    ("metallb.universe.tf/", "this annotation is not supported"),
];

/// The fields of `value` that are set and not supported, with their paths.
pub(crate) fn unsupported(value: &Value, rule: &Rule) -> Vec<Unsupported> {
    let mut walk = Walk { path: String::new(), found: Vec::new(), more: 0 };
    walk.value(value, rule);
    if walk.more > 0 {
        let message = format!("{} more fields of this object are not supported", walk.more);
        walk.found.push(Unsupported { field: String::new(), message });
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
            (Rule::Unsupported(why), value) if is_set(value) => self.report(why),
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
                    self.inside(&step(key), |walk| walk.report("there is no such field"));
                }
                None => {}
            }
        }
    }

    fn annotations(&mut self, object: &Map<String, Value>, known: &[&str]) {
        for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
            if let Some((_, why)) = WATCHED.iter().find(|(prefix, _)| key.starts_with(prefix)) {
                self.inside(&format!("[{}]", shown(key)), |walk| walk.report(why));
            }
        }
    }

    fn inside(&mut self, step: &str, walk: impl FnOnce(&mut Self)) {
        let before = self.path.len();
        self.path.push_str(step);
        walk(self);
        self.path.truncate(before);
    }

    fn report(&mut self, message: &str) {
        if self.found.len() == MAX_FINDINGS_PER_OBJECT {
            self.more += 1;
            return;
        }
        let field = self.path.trim_start_matches('.').to_owned();
        self.found.push(Unsupported { field, message: message.to_owned() });
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

    #[test]
    fn what_is_set_and_not_carried_out_is_named() {
        let value = json!({
            "kind": "Service",
            "metadata": { "name": "x", "annotations": { "lb/speed": "9", "lb/algorithm": "maglev", "team": "a" } },
            "spec": { "loadBalancerSourceRanges": ["10.0.0.0/8"], "sesionAffinity": "ClientIP", "ports": [{ "prot": 1 }] },
        });
        assert_eq!(
            fields(&value, &SERVICE),
            [
                "metadata.annotations[lb/speed]: there is no such annotation for this kind",
                "spec.loadBalancerSourceRanges: source ranges are not enforced: every source is let in",
                "spec.ports[0].prot: there is no such field",
                "spec.sesionAffinity: there is no such field",
            ]
        );
    }

    #[test]
    fn defaults_are_no_noise() {
        let value = json!({ "spec": { "loadBalancerSourceRanges": [], "healthCheckNodePort": 0, "externalName": "",
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
