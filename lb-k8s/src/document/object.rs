//! Where a value stands and how it names itself: what messages are made of.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::{
    Finding, ObjectRef, Origin, Position, SnapshotError,
    annotations::SERVICE_NAME,
    check::Invalid,
    document::{BadSyntax, guess, locate::Locator},
    fields,
    text::{quoted, shown},
};

/// A place in a file.
pub(crate) struct DocumentRef<'a> {
    file: &'a Arc<str>,
    document: u32,
    item: String,
    locator: Option<&'a Locator<'a>>,
    /// The line in which the document begins, if nothing more is known.
    line: Option<u64>,
}

impl<'a> DocumentRef<'a> {
    pub(crate) fn document(file: &'a Arc<str>, document: u32, locator: Option<&'a Locator<'a>>) -> Self {
        Self { file, document, item: String::new(), locator, line: None }
    }

    /// A document of which only the line is known in which it begins.
    pub(crate) fn at_line(file: &'a Arc<str>, document: u32, line: u64) -> Self {
        Self { line: Some(line), ..Self::document(file, document, None) }
    }

    pub(crate) fn item(&self, index: usize) -> Self {
        let dot = if self.item.is_empty() { "" } else { "." };
        let item = format!("{}{dot}items[{index}]", self.item);
        Self { item, ..*self }
    }

    pub(crate) fn file(&self) -> &str {
        self.file
    }

    pub(crate) fn origin(&self) -> Origin {
        let item = if self.item.is_empty() { Arc::default() } else { self.item.as_str().into() };
        Origin { file: Arc::clone(self.file), document: self.document, item }
    }

    /// The error of a document of the file `text`.
    pub(crate) fn bad_syntax(&self, BadSyntax { position, message }: BadSyntax, text: &str) -> SnapshotError {
        SnapshotError::Syntax { origin: self.origin(), position, message, looks_like: guess::text(text) }
    }

    pub(crate) fn not_an_object(&self, message: String) -> SnapshotError {
        let line = |line| Position { line, column: 1 };
        let position = self.locator.and_then(|locator| locator.locate(&self.item)).or(self.line.map(line));
        SnapshotError::NotAnObject { origin: self.origin(), position, message }
    }

    fn finding(&self, header: Header<'_>, field: String, message: String) -> Finding {
        let path = if self.item.is_empty() { field.clone() } else { format!("{}.{field}", self.item) };
        let position = self.locator.and_then(|locator| locator.locate(&path));
        Finding { object: header.object(self.origin()), field, position, message, exposes: false }
    }
}

/// Namespace of objects that name none.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// Kinds that are known to live in namespaces.
const NAMESPACED: [&str; 7] =
    ["Service", "EndpointSlice", "Endpoints", "Pod", "Deployment", "StatefulSet", "IPAddressPool"];

/// How an object names itself, not yet checked.
#[derive(Clone, Copy)]
pub(crate) struct Header<'a> {
    pub(crate) api_version: &'a str,
    pub(crate) kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    /// The service whose endpoints it has.
    service: &'a str,
}

impl<'a> Header<'a> {
    /// `of_list` is what the items of the surrounding list are, if it says so.
    pub(crate) fn of(value: &'a Value, of_list: Option<(&'a str, &'a str)>) -> Option<Self> {
        let text = |value: &'a Value, key: &str| value.get(key).and_then(Value::as_str);
        let metadata = value.get("metadata").unwrap_or(&Value::Null);
        let (api_version, kind) = text(value, "apiVersion").zip(text(value, "kind")).or(of_list)?;
        let namespace = text(metadata, "namespace").unwrap_or_default();
        let is_default = namespace.is_empty() && NAMESPACED.contains(&kind);
        let namespace = if is_default { DEFAULT_NAMESPACE } else { namespace };
        let name = text(metadata, "name").unwrap_or_default();
        let service = match kind {
            "EndpointSlice" => metadata.get("labels").and_then(|labels| text(labels, SERVICE_NAME)).unwrap_or_default(),
            "Endpoints" => name,
            _ => "",
        };
        Some(Self { api_version, kind, namespace, name, service })
    }

    fn object(self, origin: Origin) -> ObjectRef {
        ObjectRef {
            api_version: shown(self.api_version),
            kind: shown(self.kind),
            namespace: shown(self.namespace),
            name: shown(self.name),
            service: shown(self.service),
            origin,
        }
    }

    /// Kind of the items, for a list.
    pub(crate) fn items(self) -> Option<Option<(&'a str, &'a str)>> {
        let kind = self.kind.strip_suffix("List")?;
        Some((!kind.is_empty()).then_some((self.api_version, kind)))
    }
}

/// One object: where it stands and what it is.
pub(crate) struct Object<'a> {
    pub(crate) place: &'a DocumentRef<'a>,
    pub(crate) header: Header<'a>,
    pub(crate) value: &'a Value,
}

impl Object<'_> {
    pub(crate) fn finding(&self, field: impl Into<String>, message: impl Into<String>) -> Finding {
        self.place.finding(self.header, field.into(), message.into())
    }

    /// A finding that is kept beyond those that are listed. Looking up the position of each would take too long.
    pub(crate) fn finding_without_position(&self, field: String, message: String) -> Finding {
        let object = self.header.object(self.place.origin());
        Finding { object, field, position: None, message, exposes: false }
    }

    /// The object as its kind has it, or the first field that has another type.
    pub(crate) fn typed<T: DeserializeOwned>(&self) -> Result<T, Invalid> {
        // The second run is for the path of the field, which costs too much to follow every time.
        T::deserialize(self.value).or_else(|_| {
            serde_path_to_error::deserialize(self.value).map_err(|error| {
                let (at, said) = (error.path(), error.inner().to_string());
                Invalid::new(path(at), mismatch(&said, value_at(self.value, at)))
            })
        })
    }

    /// The readable part of the metadata of an object with wrong types: its name, and its labels,
    /// whatever their values, unless they are no labels at all. `None` if a wrong type is where its name should be.
    pub(crate) fn outline(&self) -> Option<ObjectMeta> {
        let Some(metadata) = self.value.get("metadata").filter(|metadata| !metadata.is_null()) else {
            return Some(ObjectMeta { labels: Some(BTreeMap::new()), ..ObjectMeta::default() });
        };
        let metadata = metadata.as_object()?;
        let text = |key: &str| match metadata.get(key) {
            None | Some(Value::Null) => Some(None),
            Some(value) => value.as_str().map(|text| Some(text.to_owned())),
        };
        let labels = match metadata.get("labels") {
            None | Some(Value::Null) => Some(BTreeMap::new()),
            Some(labels) => labels.as_object().map(|labels| labels.iter().map(label).collect()),
        };
        Some(ObjectMeta { namespace: text("namespace")?, name: text("name")?, labels, ..ObjectMeta::default() })
    }
}

fn label((key, value): (&String, &Value)) -> (String, String) {
    (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// The path of a field, as [`fields`] has it.
fn path(path: &Path) -> String {
    let steps = path.iter().map(|segment| match segment {
        Segment::Seq { index } => format!("[{index}]"),
        Segment::Map { key } | Segment::Enum { variant: key } => fields::step(key),
        Segment::Unknown => String::new(),
    });
    steps.collect::<String>().trim_start_matches('.').to_owned()
}

fn value_at<'a>(value: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get(index),
        Segment::Map { key } | Segment::Enum { variant: key } => value.get(key),
        Segment::Unknown => None,
    })
}

/// The value found and the value expected, each short enough not to hide the other.
fn mismatch(message: &str, found: Option<&Value>) -> String {
    if message.starts_with("invalid type: ")
        && let Some((found, expected)) = message.rsplit_once(", expected ")
    {
        let expected = if matches!(expected, "i32" | "i64") { "a whole number" } else { expected };
        return format!("{}, expected {}", shown(found), shown(expected));
    }
    match found.and_then(Value::as_str) {
        Some(found) => format!("{} cannot be read: {}", quoted(found), shown(message)),
        None => shown(message),
    }
}
