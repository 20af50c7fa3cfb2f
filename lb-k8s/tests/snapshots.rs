//! Files to snapshots: what is read, skipped, and rejected as a whole, and what the messages say.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::{Path, PathBuf},
    process::Command,
};

use lb_k8s::{Snapshot, limits};
use tempfile::TempDir;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: 10.96.0.10\n  ports:\n  \
                       - port: 80\n";

fn service(name: &str, last: u8) -> String {
    SERVICE.replace("name: web", &format!("name: {name}")).replace(".10\n", &format!(".{last}\n"))
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.services().map(|service| service.name.to_string()).collect()
}

/// The message of a rejected text.
fn rejected(file: &str, text: &str) -> String {
    Snapshot::parse(file, text).unwrap_err().to_string()
}

/// The message of a rejected directory, with its path cut off.
fn rejected_at(path: &Path) -> String {
    let message = Snapshot::read(&[path]).unwrap_err().to_string();
    message.replace(path.canonicalize().unwrap().to_str().unwrap(), "DIR").replace(path.to_str().unwrap(), "DIR")
}

#[test]
fn directories_are_read_by_name_and_not_below() {
    let (a, b) = (service("a", 1), service("b", 2));
    let directory = directory(&[
        ("b.yaml", &a),
        ("a.yml", &format!("{}---\n{b}", service("a", 3))),
        ("c.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}"#),
        ("notes.txt", "not: a manifest"),
        (".hidden.yaml", "x: ["),
    ]);
    fs::create_dir(directory.path().join("deeper.yaml")).unwrap();
    fs::write(directory.path().join("deeper.yaml/c.yaml"), service("c", 9)).unwrap();
    let snapshot = Snapshot::read(&[directory.path()]).unwrap();
    assert_eq!(names(&snapshot), ["default/a", "default/b"]);
    assert_eq!(snapshot.services().next().unwrap().cluster_ips[0].to_string(), "10.96.0.3", "a.yml comes first");
    assert_eq!(snapshot.namespaces().collect::<Vec<_>>(), ["shop"]);
    let report = snapshot.report();
    let at = |name: &str| directory.path().join(name).display().to_string();
    assert_eq!(
        report.ignored_files,
        [
            at("deeper.yaml") + ": directories inside the directory are not read; move its manifests up",
            at("notes.txt") + ": its name does not end in .yaml, .yml or .json"
        ]
    );
    assert_eq!(
        report.refused[0].to_string(),
        format!(
            "{}: document 1, Service default/a: it is already defined in {}: document 1; it is left out",
            at("b.yaml"),
            at("a.yml")
        )
    );
}

#[test]
fn files_can_be_named_whatever_they_are_called() {
    let directory = directory(&[("web", SERVICE)]);
    let snapshot = Snapshot::read(&[directory.path().join("web")]).unwrap();
    assert_eq!(names(&snapshot), ["default/web"]);
}

#[test]
fn nothing_is_a_snapshot_too() {
    assert_eq!(names(&Snapshot::read(&[] as &[PathBuf]).unwrap()), [""; 0]);
    assert_eq!(names(&Snapshot::parse("a.yaml", "# nothing\n---\n---\nnull\n").unwrap()), [""; 0]);
    assert_eq!(names(&Snapshot::parse("a.json", " \n").unwrap()), [""; 0]);
}

#[test]
fn lists_are_their_items() {
    let item = |name: &str, last: u8| {
        format!("  {{metadata: {{name: {name}}}, spec: {{clusterIP: 10.96.0.{last}, ports: [{{port: 80}}]}}}}")
    };
    let typed = format!("apiVersion: v1\nkind: ServiceList\nitems: [\n{},\n{}]\n", item("a", 1), item("b", 0));
    let untyped = r#"{"kind": "List", "apiVersion": "v1", "items": [
        {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop"}},
        {"kind": "List", "apiVersion": "v1", "items": [{"kind": "Gadget", "apiVersion": "example.com/v1", "metadata": {"name": "x"}}]}
    ]}"#;
    assert_eq!(names(&Snapshot::parse("a.yaml", &typed).unwrap()), ["default/a", "default/b"]);
    let snapshot = Snapshot::parse("b.json", untyped).unwrap();
    assert_eq!(snapshot.namespaces().count(), 1);
    assert_eq!(
        snapshot.report().skipped[0].to_string(),
        "b.json: document 1, items[1].items[0], Gadget x: objects of this kind in example.com/v1 are not used"
    );
    assert_eq!(names(&Snapshot::parse("a.yaml", "apiVersion: v1\nkind: List\nitems: []\n").unwrap()), [""; 0]);
}

#[test]
fn unknown_kinds_are_listed() {
    let text = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\n---\napiVersion: \
                discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: c}\n---\napiVersion: v1\nkind: Secret\n";
    let report = Snapshot::parse("x.yaml", text).unwrap().report();
    let skipped: Vec<_> = report.skipped.iter().map(ToString::to_string).collect();
    assert_eq!(
        skipped,
        [
            "x.yaml:2:1: document 1, ConfigMap b/a: objects of this kind in v1 are not used",
            "x.yaml:6:1: document 2, EndpointSlice default/c: objects of this kind in discovery.k8s.io/v1beta1 are not \
             used; those in discovery.k8s.io/v1 are",
            "x.yaml:10:1: document 3, Secret without a name: objects of this kind in v1 are not used",
        ]
    );
}

#[test]
fn a_service_of_another_proxy_is_skipped() {
    let text =
        SERVICE.replace("name: web\n", "name: web\n  labels: {service.kubernetes.io/service-proxy-name: mesh}\n");
    let snapshot = Snapshot::parse("x.yaml", &text).unwrap();
    assert_eq!(names(&snapshot), [""; 0]);
    assert_eq!(
        snapshot.report().skipped[0].to_string(),
        "x.yaml:1:1: document 1, Service default/web: another proxy serves it (label \
         service.kubernetes.io/service-proxy-name)"
    );
}

#[test]
fn an_invalid_object_does_not_spoil_the_rest() {
    let text = format!("{}---\n{}", service("a", 1).replace("port: 80", "port: 0"), service("b", 2));
    let snapshot = Snapshot::parse("x.yaml", &text).unwrap();
    assert_eq!(names(&snapshot), ["default/b"]);
    assert_eq!(
        snapshot.report().refused[0].to_string(),
        "x.yaml:8:11: document 1, Service default/a, field `spec.ports[0].port`: 0 is not a port, expected 1 to 65535; \
         it is left out"
    );
}

#[test]
fn hostile_names_get_no_further() {
    for name in ["../../etc", "a b", "A", "\"\\e[2J\"", "\"a\\nb\"", "\"\\u202Eabc\"", "a;rm -rf"] {
        let text = SERVICE.replace("name: web", &format!("name: {name}"));
        let snapshot = Snapshot::parse("x.yaml", &text).unwrap();
        assert_eq!(names(&snapshot), [""; 0]);
        let message = snapshot.report().refused[0].to_string();
        assert!(message.contains("field `metadata.name`"), "{message}");
        assert!(message.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{message:?}");
    }
    let text = SERVICE.replace("name: web", "name: web\n  namespace: a.b");
    let report = Snapshot::parse("x.yaml", &text).unwrap().report();
    assert_eq!(
        report.refused[0].to_string(),
        "x.yaml:5:14: document 1, Service a.b/web, field `metadata.namespace`: \"a.b\" is not a DNS label (1 to 63 of \
         a-z, 0-9 and -, with a letter or digit at both ends); it is left out"
    );
}

#[test]
fn an_object_needs_a_name() {
    let report =
        Snapshot::parse("x.yaml", &SERVICE.replace("  name: web\n", "  generateName: web-\n")).unwrap().report();
    assert_eq!(
        report.refused[0].to_string(),
        "x.yaml:4:3: document 1, Service without a name, field `metadata.name`: an object needs a name; it is left out"
    );
}

#[test]
fn errors_of_syntax_name_file_line_and_document() {
    let broken = format!("{SERVICE}---\nspec: [1\n");
    let message = rejected("x.yaml", &broken);
    assert!(message.starts_with("x.yaml:1"), "{message}");
    assert!(message.contains(": document 2: "), "{message}");
    assert_eq!(rejected("x.yaml", "a: 1\na: 2\n"), "x.yaml:2:1: document 1: duplicate mapping key: a not allowed here");
    assert_eq!(
        rejected("x.json", "\n{}\n"),
        "x.json:2:1: document 1: no Kubernetes object: `apiVersion` and `kind` are missing; it looks like a values file \
         (Helm) or another configuration: move the file out of the directory"
    );
    let namespace = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}"#;
    assert_eq!(rejected("x.json", &format!("{namespace}\n{{\"a\": }}")), "x.json:2:7: document 2: expected value");
}

#[test]
fn errors_of_type_name_the_field() {
    let refused = |file: &str, text: &str| Snapshot::parse(file, text).unwrap().report().refused[0].to_string();
    assert_eq!(
        refused("x.yaml", &format!("# c\n---\n{}", SERVICE.replace("port: 80", "port: eighty"))),
        "x.yaml:10:11: document 1, Service default/web, field `spec.ports[0].port`: invalid type: string \"eighty\", \
         expected a whole number; it is left out"
    );
    assert_eq!(
        refused("x.yaml", &SERVICE.replace("name: web\n", "name: web\n  labels: {a: 1}\n")),
        "x.yaml:5:15: document 1, Service default/web, field `metadata.labels.a`: invalid type: integer `1`, expected a \
         string; it is left out"
    );
    assert_eq!(
        refused("x.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: 7\n"),
        "x.yaml:4:7: document 1, Service default/web, field `spec`: invalid type: integer `7`, expected ServiceSpec; \
         it is left out"
    );
}

#[test]
fn what_is_no_object_is_rejected() {
    let says = "no Kubernetes object: expected a mapping, a Kubernetes object: move the file out of the directory if it is none";
    assert_eq!(rejected("x.yaml", "just text\n"), format!("x.yaml:1:1: document 1: {says}"));
    assert_eq!(
        rejected("x.yaml", "# c\n---\nkind: Service\n"),
        "x.yaml:3:1: document 1: no Kubernetes object: `apiVersion` is missing: add it"
    );
    assert_eq!(
        rejected("x.yaml", "apiVersion: v1\nkind: List\nitems: [7]\n"),
        format!(
            "x.yaml:3:9: document 1, items[0]: {}",
            says.replace("move the file out of the directory", "remove the item")
        )
    );
}

#[test]
fn files_that_cannot_be_read_are_errors() {
    let directory = directory(&[("a.yaml", SERVICE)]);
    fs::write(directory.path().join("b.yaml"), b"a: \xff").unwrap();
    assert_eq!(rejected_at(directory.path()), "DIR/b.yaml: byte 3 is not UTF-8");
    let missing = directory.path().join("missing");
    assert_eq!(
        Snapshot::read(&[&missing]).unwrap_err().to_string(),
        format!("{}: reading it failed: No such file or directory (os error 2)", missing.display())
    );
}

#[test]
fn what_is_no_file_is_ignored_with_the_reason_unless_it_is_asked_for() {
    let directory = directory(&[("web.yaml", SERVICE)]);
    let at = |name: &str| directory.path().join(name);
    assert!(Command::new("mkfifo").arg(at("a.yaml")).status().unwrap().success());
    drop(UnixListener::bind(at("b.json")).unwrap());
    symlink("a.yaml", at("c.yml")).unwrap();
    let snapshot = Snapshot::read(&[directory.path()]).unwrap();
    assert_eq!(names(&snapshot), ["default/web"]);
    let ignored = [("a.yaml", "a named pipe"), ("b.json", "a socket"), ("c.yml", "a named pipe")]
        .map(|(name, kind)| format!("{}: it is {kind}, expected a regular file", at(name).display()));
    assert_eq!(snapshot.report().ignored_files, ignored);
    let message = Snapshot::read(&[at("a.yaml")]).unwrap_err().to_string();
    assert_eq!(message, ignored[0]);
    let message = Snapshot::read(&["/dev/zero"]).unwrap_err().to_string();
    assert_eq!(message, "/dev/zero: it is a character device, expected a regular file");
}

#[test]
fn symbolic_links_stay_inside_their_directory() {
    let mounted = directory(&[]);
    fs::create_dir(mounted.path().join("..2026")).unwrap();
    fs::write(mounted.path().join("..2026/a.yaml"), SERVICE).unwrap();
    symlink("..2026", mounted.path().join("..data")).unwrap();
    symlink("..data/a.yaml", mounted.path().join("a.yaml")).unwrap();
    assert_eq!(names(&Snapshot::read(&[mounted.path()]).unwrap()), ["default/web"]);
    symlink("/etc/hostname", mounted.path().join("b.yaml")).unwrap();
    assert_eq!(
        rejected_at(mounted.path()),
        "DIR/b.yaml: the symbolic link leads out of its directory, to /etc/hostname: copy what it leads to, or make \
         the link relative and keep its target below the directory"
    );
}

#[test]
fn the_link_that_leads_out_is_named_not_the_one_that_leads_to_it() {
    let elsewhere = directory(&[("a.yaml", SERVICE)]);
    let mounted = directory(&[]);
    symlink("..data/a.yaml", mounted.path().join("a.yaml")).unwrap();
    let name = elsewhere.path().file_name().unwrap();
    for target in [elsewhere.path(), &Path::new("..").join(name), &Path::new("./..data.old/../..").join(name)] {
        fs::create_dir_all(mounted.path().join("..data.old")).unwrap();
        symlink(target, mounted.path().join("..data")).unwrap();
        let says =
            format!("DIR/..data: the symbolic link leads out of its directory, to {}: ", elsewhere.path().display());
        let message = rejected_at(mounted.path());
        assert!(message.starts_with(&says), "{message}");
        fs::remove_file(mounted.path().join("..data")).unwrap();
    }
}

#[test]
fn files_have_a_size() {
    let directory = tempfile::tempdir().unwrap();
    let file = fs::File::create(directory.path().join("a.yaml")).unwrap();
    file.set_len(limits::MAX_FILE_BYTES + 1).unwrap();
    assert_eq!(rejected_at(directory.path()), "DIR/a.yaml: the file is larger than 8388608 bytes: split it");
}

#[test]
fn objects_are_counted() {
    let item = "{\"apiVersion\":\"x/v1\",\"kind\":\"X\"},";
    let text = |count| {
        let items = item.repeat(count);
        format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{}]}}", items.trim_end_matches(','))
    };
    let report = Snapshot::parse("x.json", &text(limits::MAX_OBJECTS)).unwrap().report();
    assert_eq!(report.skipped.len(), limits::MAX_FINDINGS_PER_FILE);
    assert_eq!(report.skipped.len() + report.unlisted.skipped, limits::MAX_OBJECTS);
    assert!(!report.is_clean());
    assert_eq!(
        rejected("x.json", &text(limits::MAX_OBJECTS + 1)),
        "x.json: there are more than 250000 objects in it and the other files: remove some"
    );
}

#[test]
fn large_documents_have_no_positions() {
    let text = |comment: usize| format!("# {}\n{}", "x".repeat(comment), SERVICE.replace("port: 80", "port: 0"));
    let position = |comment| Snapshot::parse("x.yaml", &text(comment)).unwrap().report().refused[0].finding.position;
    assert!(position(10).is_some());
    assert_eq!(position(limits::MAX_LOCATED_BYTES), None);
}

#[test]
fn what_announces_addresses_is_skipped_with_what_must_do_it() {
    let says =
        "lb does not announce addresses yet: a router or another announcer must lead traffic for them to the node";
    for (version, kind) in [
        ("metallb.io/v1beta1", "L2Advertisement"),
        ("metallb.io/v1beta2", "BGPPeer"),
        ("metallb.io/v1beta1", "BGPAdvertisement"),
        ("cilium.io/v2alpha1", "CiliumL2AnnouncementPolicy"),
        ("cilium.io/v2", "CiliumBGPClusterConfig"),
    ] {
        let text = format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: a}}}}\n");
        let report = Snapshot::parse("x.yaml", &text).unwrap().report();
        let said: Vec<&str> = report.skipped.iter().map(|finding| &*finding.message).collect();
        assert_eq!(said, [says], "{kind}");
    }
}
