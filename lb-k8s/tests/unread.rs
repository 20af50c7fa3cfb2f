//! A file that is no manifest costs only itself.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod directory;

use std::{fs, os::unix::fs::symlink};

use lb_core::model::Change;
use lb_k8s::Instead;

use crate::directory::{Directory, service};

impl Directory {
    /// Services and the last number of their cluster addresses.
    fn services(&self) -> Vec<String> {
        let of = |service: &lb_core::service::Service| format!("{}={}", service.name.name(), service.cluster_ips[0]);
        self.manifests.services().map(of).collect()
    }

    /// What is said of files that are not read, without the path of the directory.
    fn unread(&self) -> Vec<String> {
        let path = self.directory.path().to_str().unwrap();
        self.manifests.report().unread.iter().map(|unread| unread.to_string().replace(path, "DIR")).collect()
    }
}

#[test]
fn whatever_is_no_manifest_costs_only_itself_and_is_named_with_the_remedy() {
    let utf_16: Vec<u8> = [0xff, 0xfe].into_iter().chain(service("x", 9).bytes().flat_map(|byte| [byte, 0])).collect();
    let without_mark: Vec<u8> = service("x", 9).bytes().flat_map(|byte| [byte, 0]).collect();
    let template = format!("{}  {{{{- with .Values.x }}}}\n  type: {{{{ . }}}}\n", service("x", 9));
    let commented = "{\n  // a service\n  \"apiVersion\": \"v1\"\n}";
    let cases: [(&str, &[u8], &str, &str); 10] = [
        ("b.yaml", b"replicas: 1\n", "DIR/b.yaml:1:1: document 1: no Kubernetes object: ", "looks like a values file"),
        ("b.yaml", template.as_bytes(), "DIR/b.yaml:", "looks like a Helm template: render it first"),
        ("b.json", commented.as_bytes(), "DIR/b.json:2:3: document 1: ", "looks like JSON with comments"),
        ("b.yaml", b"\napiVersion: v1\nmetadata: {name: x}\n", "DIR/b.yaml:2:1: ", "`kind` is missing: add it"),
        ("b.yaml", b"apiVersion: v1\nkind: service\nmetadata: {name: x}\n", "DIR/b.yaml:1:1: ", "`kind: Service`"),
        ("b.yaml", &utf_16, "DIR/b.yaml: byte 0 is not UTF-8", "looks like UTF-16: save it as UTF-8"),
        ("b.yaml", &without_mark, "DIR/b.yaml:", "looks like UTF-16: save it as UTF-8"),
        ("b.yaml", b"just text\n", "DIR/b.yaml:1:1: ", "expected a mapping"),
        ("b.yaml", b"a: [1\n", "DIR/b.yaml:", "the file is left out"),
        ("b.json", b"\n{\"a\": 1}\n", "DIR/b.json:2:1: ", "looks like a values file"),
    ];
    for (name, text, begins, says) in cases {
        let mut directory = Directory::new();
        directory.write("a.yaml", service("a", 1));
        directory.write(name, text);
        directory.write("c.yaml", service("c", 3));
        let batch = directory.reload();
        assert_eq!(directory.services(), ["a=10.96.0.1", "c=10.96.0.3"], "{says}");
        assert!(matches!(batch.changes.last(), Some(Change::InitDone(_))), "{says}: the first listing ends");
        let unread = directory.unread();
        assert!(unread.len() == 1 && unread[0].starts_with(begins) && unread[0].contains(says), "{says}: {unread:?}");
        assert!(batch.report.rejected.is_none() && !batch.report.is_clean());
        directory.write(name, if name == "b.json" { String::new() } else { service("b", 2) });
        assert!(directory.reload().report.is_clean(), "{says}: it is over");
    }
}

#[test]
fn what_a_broken_file_held_stays_and_others_take_effect() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("a", 1) + &service("b", 2));
    directory.reload();
    for broken in
        [&b"replicas: 1\n"[..], b"a: {{ .Values.x }}\n---\n- [", b"a: \xff", b"kind: service\napiVersion: v1\n"]
    {
        directory.write("a.yaml", broken);
        directory.write("c.yaml", service("c", broken.len() as u8));
        directory.reload();
        let c = format!("c=10.96.0.{}", broken.len());
        assert_eq!(directory.services(), ["a=10.96.0.1", "b=10.96.0.2", &c]);
        assert_eq!(directory.manifests.report().unread[0].instead, Instead::LastGood);
        assert!(directory.unread()[0].contains(" stays as it last was"), "{:?}", directory.unread());
    }
    directory.write("a.yaml", service("b", 5));
    directory.reload();
    assert_eq!(directory.services()[0], "b=10.96.0.5", "a is gone as soon as the file can be read");
    directory.write("a.yaml", "[");
    directory.reload();
    fs::remove_file(directory.path("a.yaml")).unwrap();
    directory.reload();
    assert_eq!(directory.services().len(), 1, "a broken file that is removed holds nothing");
}

#[test]
fn of_a_file_with_a_document_that_is_no_object_the_others_are_read() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("a", 1) + &service("b", 2));
    directory.reload();
    directory.write("a.yaml", service("a", 3) + &service("b", 4).replace("kind: Service\n", ""));
    directory.reload();
    assert_eq!(directory.services(), ["a=10.96.0.3", "b=10.96.0.2"]);
    assert_eq!(
        directory.unread(),
        [
            "DIR/a.yaml:7:1: document 2: no Kubernetes object: `kind` is missing: add it; what the file held before and does \
          not name now stays as it last was"
        ]
    );
    directory.write("d.yaml", service("d", 6) + "---\nreplicas: 1\n");
    directory.reload();
    assert_eq!(directory.services().len(), 3);
    let unread = &directory.unread()[1];
    assert!(unread.ends_with(" or another configuration: remove the document; it is left out"), "{unread}");
}

#[test]
fn what_was_to_say_of_an_object_is_said_while_a_broken_file_holds_it() {
    let open = service("a", 1).replace("ports", "loadBalancerSourceRange: [10.0.0.0/8], ports");
    let mut directory = Directory::new();
    directory.write("a.yaml", &open);
    let before = directory.reload().report.unsupported.clone();
    assert!(before[0].exposes);
    directory.write("a.yaml", "[");
    assert_eq!(directory.reload().report.unsupported, before);
}

#[test]
fn a_copy_that_can_be_read_counts_before_one_that_is_held() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("a", 1));
    directory.reload();
    directory.write("a.yaml", "[");
    directory.write("b.yaml", service("a", 2));
    let batch = directory.reload();
    assert_eq!(directory.services(), ["a=10.96.0.2"], "it moved to another file");
    assert!(batch.report.refused.is_empty(), "{:?}", batch.report.refused);
    fs::remove_file(directory.path("b.yaml")).unwrap();
    directory.reload();
    assert_eq!(directory.services(), ["a=10.96.0.1"]);
}

#[test]
fn entries_that_cannot_be_opened_cost_only_themselves() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("a", 1));
    symlink("nowhere", directory.path("b.yaml")).unwrap();
    symlink("/etc/hostname", directory.path("c.yaml")).unwrap();
    directory.reload();
    assert_eq!(directory.services(), ["a=10.96.0.1"]);
    let unread = directory.unread();
    assert!(unread[0].contains("leads to nothing") && unread[1].contains("leads out of its directory"), "{unread:?}");
}

#[test]
fn limits_and_directories_that_cannot_be_read_reject_everything() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("a", 1));
    directory.reload();
    fs::File::create(directory.path("b.yaml")).unwrap().set_len(lb_k8s::limits::MAX_FILE_BYTES + 1).unwrap();
    directory.write("a.yaml", service("a", 2));
    assert!(directory.reload().report.rejected.is_some());
    fs::remove_file(directory.path("b.yaml")).unwrap();
    directory.reload();
    fs::remove_dir_all(directory.directory.path()).unwrap();
    assert!(directory.reload().report.rejected.is_some());
    assert_eq!(directory.services(), ["a=10.96.0.2"]);
}

#[test]
fn what_does_not_belong_there_goes_without_the_rest_of_its_file() {
    let mut directory = Directory::new();
    let mut remedy = |name: &str, text: String| {
        directory.write(name, text);
        directory.reload();
        let unread = directory.unread().remove(0);
        fs::remove_file(directory.path(name)).unwrap();
        unread.rsplit_once("another configuration: ").unwrap().1.to_owned()
    };
    assert_eq!(remedy("a.yaml", "replicas: 1\n".into()), "move the file out of the directory; it is left out");
    assert_eq!(remedy("a.yaml", service("a", 1) + "---\nreplicas: 1\n"), "remove the document; it is left out");
    assert_eq!(remedy("a.json", "{\"a\": 1}".into()), "move the file out of the directory; it is left out");
    assert_eq!(remedy("a.json", "{\"a\": 1} {\"b\": 1}".into()), "remove the document; it is left out");
    let list = "apiVersion: v1\nkind: List\nitems: [{replicas: 1}]\n";
    assert_eq!(remedy("a.yaml", list.into()), "remove the item; it is left out");
}
