//! What a text that is no manifest looks like, and what to do about it.

use serde_json::Value;

/// Kinds that are read, as they are written.
const KINDS: [(&str, &str); 9] = [
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("v1", "Namespace"),
    ("v1", "Pod"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("cilium.io/v2", "CiliumLoadBalancerIPPool"),
    ("metallb.io/v1beta1", "IPAddressPool"),
    ("lb/v1", "IPPool"),
];

/// What bytes that are not UTF-8 look like.
pub(crate) fn bytes(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(UTF_16),
        [0x1f, 0x8b, ..] => Some("it looks like a gzip archive: unpack it"),
        _ => None,
    }
}

/// What a text that cannot be parsed looks like.
pub(crate) fn text(text: &str) -> Option<&'static str> {
    if text.contains('\0') {
        // Without its mark, UTF-16 of plain letters is valid UTF-8.
        return Some(UTF_16);
    }
    if text.contains("{{") && text.contains("}}") {
        return Some("it looks like a Helm template: render it first (`helm template`)");
    }
    if text.lines().any(|line| ["<<<<<<< ", ">>>>>>> "].iter().any(|mark| line.starts_with(mark))) {
        return Some("it looks like a merge that is not resolved: resolve it");
    }
    let is_json = text.trim_start().starts_with(['{', '[', '/']);
    let is_comment = |line: &str| ["//", "/*", "#"].iter().any(|mark| line.trim_start().starts_with(mark));
    if is_json && text.lines().any(|line| is_comment(line) || line.contains(" //")) {
        return Some("it looks like JSON with comments, which JSON does not have: remove them");
    }
    None
}

const UTF_16: &str = "it looks like UTF-16: save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)";

/// What part of a file a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    File,
    /// One of several documents.
    Document,
    /// An item of a list.
    Item,
}

impl Extent {
    /// What to do with what does not belong there.
    fn remedy(self) -> &'static str {
        match self {
            Self::File => "move the file out of the directory",
            Self::Document => "remove the document",
            Self::Item => "remove the item",
        }
    }
}

/// Why a value that names no kind or no version is not an object, and what to do.
pub(crate) fn value(value: &Value, extent: Extent) -> String {
    let remedy = extent.remedy();
    let Some(fields) = value.as_object() else {
        return format!("expected a mapping, a Kubernetes object: {remedy} if it is none");
    };
    let has = |key: &str| fields.contains_key(key);
    if has("apiVersion") && has("kind") {
        return "`apiVersion` and `kind` are not both texts: correct them".to_owned();
    }
    if has("kind") {
        return "`apiVersion` is missing: add it".to_owned();
    }
    if has("resources") || has("kustomize") || has("patches") {
        return "`kind` is missing; it looks like a kustomization: build it first (`kubectl kustomize`)".to_owned();
    }
    if has("apiVersion") && has("version") && has("name") {
        return format!("`kind` is missing; it looks like the Chart.yaml of Helm: {remedy}");
    }
    if has("apiVersion") {
        return "`kind` is missing: add it".to_owned();
    }
    if has("metadata") || has("spec") {
        return "`apiVersion` and `kind` are missing: add them".to_owned();
    }
    format!(
        "`apiVersion` and `kind` are missing; it looks like a values file (Helm) or another configuration: {remedy}"
    )
}

/// The version and kind that are read and differ from these in nothing but upper and lower case.
pub(crate) fn spelling(api_version: &str, kind: &str) -> Option<String> {
    let is_same = |(version, name): &&(&str, &str)| {
        version.eq_ignore_ascii_case(api_version)
            && name.eq_ignore_ascii_case(kind)
            && (*version, *name) != (api_version, kind)
    };
    let (version, name) = KINDS.iter().find(is_same)?;
    Some(format!("it is written in other letters than `apiVersion: {version}` and `kind: {name}`: write it so"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_known_by_what_only_they_have() {
        assert!(text("a: {{ .Values.a }}\n").is_some_and(|says| says.contains("Helm template")));
        assert!(text("{\n  // a port\n  \"a\": 1\n}").is_some_and(|says| says.contains("JSON with comments")));
        assert!(text("a\0:\0").is_some_and(|says| says.contains("UTF-16")));
        assert!(text("<<<<<<< HEAD\na: 1\n").is_some_and(|says| says.contains("merge")));
        assert_eq!(text("a: [1\n# a comment\n"), None);
        assert!(bytes(b"\xff\xfea\0").is_some_and(|says| says.contains("UTF-16")));
        assert_eq!(bytes(b"a: \xff"), None);
    }

    #[test]
    fn values_are_known_by_their_fields() {
        for (found, says) in [
            (json!({ "replicas": 1 }), "values file"),
            (json!({ "apiVersion": "v2", "name": "web", "version": "1.0.0" }), "Chart.yaml"),
            (json!({ "resources": ["a.yaml"] }), "kustomization"),
            (json!({ "kind": "Service" }), "`apiVersion` is missing"),
            (json!({ "apiVersion": "v1", "metadata": {} }), "`kind` is missing: add it"),
            (json!({ "metadata": {}, "spec": {} }), "`apiVersion` and `kind` are missing: add them"),
            (json!({ "apiVersion": 1, "kind": "Service" }), "not both texts"),
            (json!([1]), "expected a mapping"),
        ] {
            let said = value(&found, Extent::File);
            assert!(said.contains(says), "{found}: {said}");
        }
    }

    #[test]
    fn the_remedy_keeps_what_else_the_file_has() {
        for found in [json!({ "replicas": 1 }), json!([1]), json!({ "apiVersion": "v2", "name": "a", "version": "1" })]
        {
            assert!(value(&found, Extent::File).contains(": move the file out of the directory"), "{found}");
            assert!(value(&found, Extent::Document).contains(": remove the document"), "{found}");
            assert!(value(&found, Extent::Item).contains(": remove the item"), "{found}");
        }
    }

    #[test]
    fn only_letters_of_another_case_are_a_spelling() {
        assert!(spelling("v1", "service").is_some_and(|says| says.contains("`kind: Service`")));
        assert!(spelling("Apps/v1", "Deployment").is_some());
        assert_eq!(spelling("v1", "Service"), None);
        assert_eq!(spelling("v1", "ConfigMap"), None);
    }
}
