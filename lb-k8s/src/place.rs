//! Where a value stands and how it names itself: what messages are made of.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Finding, ObjectRef, Origin, SnapshotError, document::BadSyntax, locate::Locator, text::shown};

/// A place in a file.
pub(crate) struct Place<'a> {
    file: &'a Arc<str>,
    document: u32,
    item: String,
    locator: Option<&'a Locator<'a>>,
}

impl<'a> Place<'a> {
    pub(crate) fn document(file: &'a Arc<str>, document: u32, locator: Option<&'a Locator<'a>>) -> Self {
        Self { file, document, item: String::new(), locator }
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

    pub(crate) fn bad_syntax(&self, BadSyntax { position, message }: BadSyntax) -> SnapshotError {
        SnapshotError::Syntax { origin: self.origin(), position, message }
    }

    pub(crate) fn not_an_object(&self, message: &'static str) -> SnapshotError {
        SnapshotError::NotAnObject { origin: self.origin(), message }
    }

    fn finding(&self, header: Header<'_>, field: String, message: String) -> Finding {
        let path = if self.item.is_empty() { field.clone() } else { format!("{}.{field}", self.item) };
        let position = self.locator.and_then(|locator| locator.locate(&path));
        Finding { object: header.object(self.origin()), field, position, message }
    }
}

/// Namespace of objects that name none.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// Kinds that are known to live in namespaces.
const NAMESPACED: [&str; 6] = ["Service", "EndpointSlice", "Pod", "Deployment", "StatefulSet", "IPAddressPool"];

/// How an object names itself, not yet checked.
#[derive(Clone, Copy)]
pub(crate) struct Header<'a> {
    pub(crate) api_version: &'a str,
    pub(crate) kind: &'a str,
    namespace: &'a str,
    name: &'a str,
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
        Some(Self { api_version, kind, namespace, name: text(metadata, "name").unwrap_or_default() })
    }

    fn object(self, origin: Origin) -> ObjectRef {
        ObjectRef {
            api_version: shown(self.api_version),
            kind: shown(self.kind),
            namespace: shown(self.namespace),
            name: shown(self.name),
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
    pub(crate) place: &'a Place<'a>,
    pub(crate) header: Header<'a>,
    pub(crate) value: &'a Value,
}

impl Object<'_> {
    pub(crate) fn finding(&self, field: impl Into<String>, message: impl Into<String>) -> Finding {
        self.place.finding(self.header, field.into(), message.into())
    }

    pub(crate) fn typed<T: DeserializeOwned>(&self) -> Result<T, SnapshotError> {
        // The second run is for the path of the field, which costs too much to follow every time.
        T::deserialize(self.value).or_else(|_| {
            serde_path_to_error::deserialize(self.value).map_err(|error| {
                let path = error.path().to_string();
                let field = if path == "." { String::new() } else { shown(&path) };
                SnapshotError::Type(Box::new(self.finding(field, shown(&error.inner().to_string()))))
            })
        })
    }
}
