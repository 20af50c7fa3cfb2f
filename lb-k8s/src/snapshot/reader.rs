//! The text of a file to its objects: finds out what each is and collects what it says.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use crate::{
    Finding, SnapshotError,
    check::{self, At, Invalid},
    document::{
        self, Format, guess,
        locate::Locator,
        object::{DEFAULT_NAMESPACE, DocumentRef, Header, Object},
    },
    fields::{self, Unsupported},
    kinds::{Identity, Kind, Notes, Reading},
    limits::{MAX_ANNOTATION_BYTES, MAX_DOCUMENTS, MAX_FINDINGS_PER_OBJECT, MAX_OBJECTS},
    pools::{AddressPool, CiliumPool, ShortPool},
    snapshot::part::{Body, Entry, Key, Part},
    text::shown,
};

/// Reads the text of a file that messages call `file`.
pub(crate) fn read(file: &str, text: &str) -> Result<Part, SnapshotError> {
    let file: Arc<str> = file.into();
    let mut reader = Reader::default();
    match Format::of(&file) {
        Format::Yaml => {
            if document::chunks(text).nth(MAX_DOCUMENTS).is_some() {
                return Err(SnapshotError::TooManyDocuments { file: file.to_string() });
            }
            reader.is_alone = document::chunks(text).nth(1).is_none();
            for (chunk, number) in document::chunks(text).zip(1..) {
                let locator = Locator::new(chunk);
                let place = DocumentRef::document(&file, number, Some(&locator));
                let value = document::parse_yaml(chunk).map_err(|error| place.bad_syntax(error, text))?;
                reader.document(&place, &value)?;
            }
        }
        Format::Json => {
            let mut values = document::parse_json(text).zip(1..).peekable();
            while let Some((value, number)) = values.next() {
                reader.is_alone = number == 1 && values.peek().is_none();
                if number as usize > MAX_DOCUMENTS {
                    return Err(SnapshotError::TooManyDocuments { file: file.to_string() });
                }
                let nowhere = DocumentRef::document(&file, number, None);
                let (value, line) = value.map_err(|error| nowhere.bad_syntax(error, text))?;
                let place = DocumentRef::at_line(&file, number, line);
                reader.document(&place, &value)?;
            }
        }
    }
    reader.part.amounts.bytes = text.len() as u64;
    reader.part.amounts.check(|| file.to_string())?;
    Ok(reader.part)
}

#[derive(Default)]
struct Reader {
    part: Part,
    /// Whether the document is the only one of its file.
    is_alone: bool,
}

impl Reader {
    fn document(&mut self, place: &DocumentRef<'_>, value: &Value) -> Result<(), SnapshotError> {
        if value.is_null() {
            return Ok(());
        }
        self.part.documents += 1;
        self.value(place, value, None)
    }

    /// `of_list` is what the items of the surrounding list are, if it says so.
    fn value(
        &mut self,
        place: &DocumentRef<'_>,
        value: &Value,
        of_list: Option<(&str, &str)>,
    ) -> Result<(), SnapshotError> {
        let Some(header) = Header::of(value, of_list).filter(|_| value.is_object()) else {
            let extent = match self.is_alone {
                _ if !place.origin().item.is_empty() => guess::Extent::Item,
                true => guess::Extent::File,
                false => guess::Extent::Document,
            };
            self.unread(|| place.not_an_object(guess::value(value, extent)));
            return Ok(());
        };
        if let Some((of_list, items)) = header.items().zip(value.get("items").and_then(Value::as_array)) {
            for (index, item) in items.iter().enumerate() {
                self.value(&place.item(index), item, of_list)?;
            }
            return Ok(());
        }
        self.part.amounts.objects += 1;
        if self.part.amounts.objects > MAX_OBJECTS {
            return Err(SnapshotError::TooManyObjects { file: place.file().to_owned() });
        }
        self.object(&Object { place, header, value });
        Ok(())
    }

    fn object(&mut self, object: &Object<'_>) {
        match (object.header.api_version, object.header.kind) {
            ("v1", "Service") => self.known::<Service>(object),
            ("discovery.k8s.io/v1", "EndpointSlice") => self.known::<EndpointSlice>(object),
            ("v1", "Namespace") => self.known::<Namespace>(object),
            ("v1", "Pod") => self.known::<Pod>(object),
            ("apps/v1", "Deployment") => self.known::<Deployment>(object),
            ("apps/v1", "StatefulSet") => self.known::<StatefulSet>(object),
            (version, kind) if CiliumPool::is(version, kind) => self.known::<CiliumPool>(object),
            (version, kind) if AddressPool::is(version, kind) => self.known::<AddressPool>(object),
            (version, kind) if ShortPool::is(version, kind) => self.known::<ShortPool>(object),
            (api_version, kind) => {
                if let Some(says) = guess::spelling(api_version, kind) {
                    return self.unread(|| object.place.not_an_object(says));
                }
                let rest = instead_of(api_version, kind).map_or_else(String::new, |used| format!("; {used} are"));
                if announces(api_version, kind) {
                    return self.skip(object, Unsupported::new("", NO_ANNOUNCEMENTS));
                }
                let why = format!("objects of this kind in {} are not used{rest}", shown(api_version));
                if POLICIES.contains(&kind) {
                    return self.skip(object, Unsupported { exposes: true, ..Unsupported::new("", NO_POLICIES) });
                }
                self.skip(object, Unsupported::new("", why));
            }
        }
    }

    fn known<T: Kind>(&mut self, object: &Object<'_>) {
        match object.typed::<T>() {
            Ok(typed) => match T::foreign(typed.metadata()) {
                Some(why) => self.skip(object, Unsupported::new("", why)),
                None => self.take::<T>(object, typed.metadata(), |identity| typed.read(identity)),
            },
            Err(invalid) => {
                let Some(metadata) = object.outline() else {
                    let finding = || object.finding(invalid.field, invalid.message);
                    return self.unread(|| SnapshotError::Type(Box::new(finding())));
                };
                // Without labels to read, it may be for lb.
                match metadata.labels.as_ref().and_then(|_| T::foreign(&metadata)) {
                    Some(why) => self.skip(object, Unsupported::new("", why)),
                    None => self.take::<T>(object, &metadata, |identity| T::refused(object, identity, invalid)),
                }
            }
        }
    }

    /// Takes an object that has this metadata over.
    fn take<T: Kind>(
        &mut self,
        object: &Object<'_>,
        metadata: &ObjectMeta,
        read: impl FnOnce(Identity<'_>) -> Result<Reading, Invalid>,
    ) {
        let unsupported = fields::unsupported(object.value, T::FIELDS);
        let identity = match identity::<T>(metadata) {
            Ok(identity) => identity,
            Err(invalid) => {
                self.unsupported(object, None, unsupported);
                return self.refuse(object, None, invalid);
            }
        };
        let key = T::key(identity);
        if let Some(first) = self.part.entries.get(&key) {
            let message = format!("it is already defined in {}", first.origin);
            match self.part.is_full() {
                true => self.part.unlisted.refused += 1,
                false => self.part.repeated.push(listed(object, Unsupported::new("", message))),
            }
            return;
        }
        let origin = object.place.origin();
        match &key {
            Key::Pool(_) => self.part.amounts.pools += 1,
            Key::Workload(_) | Key::Service(_) | Key::Slice(_) | Key::Namespace(_) => {}
        }
        self.unsupported(object, Some(&key), unsupported);
        let reading = match check_annotations(metadata) {
            Ok(()) => read(identity),
            Err(invalid) => T::refused(object, identity, invalid),
        };
        let (body, invalid) = match reading {
            Ok(Reading { body, invalid, notes: Notes { always, unallocated } }) => {
                self.unsupported(object, Some(&key), always);
                for found in unallocated {
                    match self.part.is_full() {
                        true => self.part.unlisted_unallocated += 1,
                        false => self.part.unallocated.push((Some(key.clone()), listed(object, found))),
                    }
                }
                (Some(body), invalid)
            }
            Err(invalid) => (None, Some(invalid)),
        };
        if let Key::Workload(_) = &key {
            let has_host_ports = has_host_ports(object.value);
            if has_host_ports {
                self.part.host_pods.insert(key.clone());
            }
            let is_served = matches!(&body, Some(Body::Workload(read)) if read.host_ports.is_some());
            self.not_started(object, is_served || has_host_ports && invalid.is_some());
        }
        if let Some(invalid) = invalid {
            self.refuse(object, Some(key.clone()), invalid);
        }
        self.part.entries.insert(key, Entry { origin, body, is_held: false });
    }

    fn unread(&mut self, error: impl FnOnce() -> SnapshotError) {
        if self.part.unread.len() < MAX_FINDINGS_PER_OBJECT {
            self.part.unread.push(Arc::new(error()));
        } else {
            self.part.unlisted.unread += 1;
        }
    }

    fn skip(&mut self, object: &Object<'_>, found: Unsupported) {
        if self.part.is_full() {
            self.part.unlisted.skipped += 1;
            return self.part.keep_exposing(None, found.exposes, || unlisted(object, found));
        }
        self.part.skipped.push(listed(object, found));
    }

    /// Notes a workload whose pods nobody starts. One `with_host_ports` that are served, or refused, is not skipped where
    /// somebody serves host ports.
    fn not_started(&mut self, object: &Object<'_>, with_host_ports: bool) {
        let finding = (!self.part.is_full()).then(|| listed(object, Unsupported::new("", NO_PODS)));
        let (all, unlisted) = match with_host_ports {
            true => (&mut self.part.host_workloads, &mut self.part.unlisted_host_workloads),
            false => (&mut self.part.workloads, &mut self.part.unlisted_workloads),
        };
        match finding {
            Some(finding) => all.push(finding),
            None => *unlisted += 1,
        }
    }

    fn unsupported(&mut self, object: &Object<'_>, key: Option<&Key>, found: Vec<Unsupported>) {
        for found in found {
            if self.part.is_full() {
                self.part.unlisted.unsupported += 1;
                self.part.keep_exposing(key.cloned(), found.exposes, || unlisted(object, found));
            } else {
                self.part.unsupported.push((key.cloned(), listed(object, found)));
            }
        }
    }

    fn refuse(&mut self, object: &Object<'_>, key: Option<Key>, Invalid { field, message }: Invalid) {
        let found = Unsupported::new(field, message);
        if self.part.is_full() {
            self.part.leave_out_refused(key, || unlisted(object, found));
        } else {
            self.part.refused.push((key, listed(object, found)));
        }
    }
}

fn listed(object: &Object<'_>, Unsupported { field, message, exposes }: Unsupported) -> Arc<Finding> {
    Arc::new(Finding { exposes, ..object.finding(field, message) })
}

fn unlisted(object: &Object<'_>, Unsupported { field, message, exposes }: Unsupported) -> Arc<Finding> {
    Arc::new(Finding { exposes, ..object.finding_without_position(field, message) })
}

/// What is said of a workload where nobody starts pods.
const NO_PODS: &str = "no pods are started from manifests: their endpoints have to stand in an EndpointSlice";

/// Whether the manifest of a pod, valid or not, has a host port.
fn has_host_ports(pod: &Value) -> bool {
    let lists = ["containers", "initContainers"].map(|list| pod.get("spec").and_then(|spec| spec.get(list)));
    let containers = lists.into_iter().flatten().filter_map(Value::as_array).flatten();
    let ports = containers.filter_map(|container| container.get("ports")?.as_array()).flatten();
    ports.filter_map(|port| port.get("hostPort")).any(|port| !port.is_null())
}

/// Kinds that say who may reach a pod.
const POLICIES: [&str; 7] = [
    "NetworkPolicy",
    "AdminNetworkPolicy",
    "BaselineAdminNetworkPolicy",
    "ClusterNetworkPolicy",
    "CiliumNetworkPolicy",
    "CiliumClusterwideNetworkPolicy",
    "GlobalNetworkPolicy",
];

const NO_POLICIES: &str = "policies are not enforced: packets of every source are forwarded";

/// Whether an object of this kind says how the network learns which node has an address.
fn announces(api_version: &str, kind: &str) -> bool {
    match api_version.split_once('/').map_or("", |(group, _)| group) {
        "metallb.io" => ["L2Advertisement", "BGPAdvertisement", "BGPPeer", "BFDProfile", "Community"].contains(&kind),
        "cilium.io" => kind == "CiliumL2AnnouncementPolicy" || kind.starts_with("CiliumBGP"),
        _ => false,
    }
}

const NO_ANNOUNCEMENTS: &str = "lb does not announce addresses yet: a router or another announcer must lead traffic for \
                                them to the node";

/// The kind or version that is read instead.
fn instead_of(api_version: &str, kind: &str) -> Option<&'static str> {
    match kind {
        "EndpointSlice" => Some("those in discovery.k8s.io/v1"),
        "Endpoints" => Some("those of kind EndpointSlice in discovery.k8s.io/v1"),
        "CiliumLoadBalancerIPPool" => Some("those in cilium.io/v2 and cilium.io/v2alpha1"),
        "IPAddressPool" => Some("those in metallb.io/v1beta1"),
        "AddressPool" if api_version.starts_with("metallb.io/") => {
            Some("those of kind IPAddressPool in metallb.io/v1beta1")
        }
        "IPPool" => Some("those in lb/v1"),
        _ => None,
    }
}

fn check_annotations(metadata: &ObjectMeta) -> Result<(), Invalid> {
    let annotations = metadata.annotations.iter().flatten();
    if annotations.map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_ANNOTATION_BYTES {
        let message = format!("more than {MAX_ANNOTATION_BYTES} bytes of annotations");
        return Err(Invalid::new("metadata.annotations", message));
    }
    Ok(())
}

/// Namespace and name of an object, if they are valid.
fn identity<T: Kind>(metadata: &ObjectMeta) -> Result<Identity<'_>, Invalid> {
    let missing = || Invalid::new("metadata.name", "an object needs a name");
    let name = metadata.name.as_deref().ok_or_else(missing)?;
    let name = T::check_name(name).at(|| "metadata.name".into())?;
    let namespace = metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    let namespace = namespace.map_or(Ok(DEFAULT_NAMESPACE), check::label).at(|| "metadata.namespace".into())?;
    Ok((namespace, name))
}
