//! Files that change are read again, and nothing else is lost or missed by that.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod directory;

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    time::{Duration, SystemTime},
};

use lb_core::{model::Change, name::SourceName};
use lb_k8s::{Batch, Manifests, Snapshot};
use proptest::{collection::vec, prelude::*};

use crate::directory::{Directory, service};

impl Directory {
    fn reload_files(&mut self, names: &[&str]) -> Batch {
        let files: Vec<_> = names.iter().map(|name| self.path(name)).collect();
        self.manifests.reload_files(&files)
    }
}

/// Names of the services that change, removed ones with a minus.
fn told(batch: &Batch) -> Vec<String> {
    let told = batch.changes.iter().filter_map(|change| match change {
        Change::UpsertService(service) => Some(service.name.name().to_owned()),
        Change::RemoveService(name) => Some(format!("-{}", name.name())),
        _ => None,
    });
    told.collect()
}

/// Makes a file look as if it had been written long ago, so that its stamp tells of later changes.
fn age(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
}

#[test]
fn only_named_files_are_read_again() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("a", 1));
    directory.write("b.yaml", service("b", 2));
    assert_eq!(told(&directory.reload()), ["a", "b"]);
    directory.write("a.yaml", service("a", 3));
    directory.write("b.yaml", service("b", 4));
    directory.write("c.yaml", service("c", 5));
    directory.write("notes.txt", "x: [");
    directory.write(".hidden.yaml", "x: [");
    assert_eq!(told(&directory.reload_files(&["b.yaml", "c.yaml", "notes.txt", ".hidden.yaml"])), ["b", "c"]);
    fs::remove_file(directory.path("b.yaml")).unwrap();
    assert_eq!(told(&directory.reload_files(&["b.yaml"])), ["-b"]);
    assert_eq!(told(&directory.reload_files(&["b.yaml", "missing.yaml"])), [""; 0]);
    assert_eq!(told(&directory.reload()), ["a"]);
    assert!(directory.manifests.reload_files(&[Path::new("/etc/hostname")]).changes.is_empty());
}

#[test]
fn what_is_no_file_is_ignored_however_it_is_noticed() {
    let mut directory = Directory::new();
    directory.write("web.yaml", service("web", 1));
    directory.reload();
    let socket = directory.path("a.yaml");
    drop(UnixListener::bind(&socket).unwrap());
    let line = format!("{}: it is a socket, expected a regular file", socket.display());
    for batch in [directory.reload_files(&["a.yaml"]), directory.reload(), directory.reload_files(&["web.yaml"])] {
        assert!(batch.report.rejected.is_none(), "{:?}", batch.report.rejected);
        assert_eq!((told(&batch), &batch.report.ignored_files), (vec![], &vec![line.clone()]));
    }
    directory.write("web.yaml", service("web", 2));
    assert_eq!(told(&directory.reload_files(&["web.yaml"])), ["web"], "others are followed");
    fs::remove_file(&socket).unwrap();
    assert!(directory.reload_files(&["a.yaml"]).report.ignored_files.is_empty());
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(directory.reload().report.ignored_files, [line]);
    fs::remove_file(&socket).unwrap();
    directory.write("a.yaml", service("a", 3));
    let batch = directory.reload();
    assert_eq!((told(&batch), batch.report.ignored_files.len()), (vec!["a".to_owned()], 0));
}

#[test]
fn a_file_beyond_a_limit_is_looked_at_again_with_all_others() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("a", 1));
    directory.reload();
    let large = fs::File::create(directory.path("b.yaml")).unwrap();
    large.set_len(lb_k8s::limits::MAX_FILE_BYTES + 1).unwrap();
    assert!(directory.reload_files(&["b.yaml"]).report.rejected.is_some());
    directory.write("a.yaml", service("a", 2));
    assert!(directory.reload_files(&["a.yaml"]).report.rejected.is_some());
    assert_eq!(directory.manifests.services().next().unwrap().cluster_ips[0].to_string(), "10.96.0.1");
    directory.write("b.yaml", service("b", 3));
    let batch = directory.reload_files(&["b.yaml"]);
    assert_eq!((told(&batch).join(" "), batch.report.rejected.is_some()), ("a b".to_owned(), false));
}

#[test]
fn the_first_call_may_be_for_files() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("a", 1));
    assert_eq!(directory.reload_files(&["a.yaml"]).changes.len(), 2, "start and end of listing nothing");
    assert_eq!(told(&directory.reload()), ["a"]);
}

#[test]
fn the_first_of_two_files_counts() {
    let mut directory = Directory::new();
    directory.write("b.yaml", service("web", 2));
    assert_eq!(told(&directory.reload()), ["web"]);
    directory.write("a.yaml", service("web", 1));
    let batch = directory.reload();
    assert_eq!(told(&batch), ["web"]);
    assert_eq!(
        batch.report.refused[0].to_string(),
        format!(
            "{}: document 1, Service default/web: it is already defined in {}: document 1; it is left out",
            directory.path("b.yaml").display(),
            directory.path("a.yaml").display()
        )
    );
    directory.write("b.yaml", service("web", 3));
    assert_eq!(told(&directory.reload()), [""; 0], "the second one is not heard");
    fs::remove_file(directory.path("a.yaml")).unwrap();
    let batch = directory.reload();
    assert_eq!(told(&batch), ["web"]);
    assert!(batch.report.is_clean());
    assert_eq!(directory.manifests.services().next().unwrap().cluster_ips[0].to_string(), "10.96.0.3");
}

#[test]
fn an_object_that_moves_between_files_does_not_change() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("web", 1));
    directory.reload();
    directory.write("b.yaml", service("web", 1));
    fs::remove_file(directory.path("a.yaml")).unwrap();
    assert_eq!(told(&directory.reload()), [""; 0]);
    assert_eq!(directory.manifests.services().count(), 1);
}

#[test]
fn a_change_shows_whatever_the_file_looks_like() {
    let mut directory = Directory::new();
    directory.write("a.yaml", service("a", 1));
    age(&directory.path("a.yaml"));
    directory.reload();
    // Same size, same time of modification.
    directory.write("a.yaml", service("a", 2));
    age(&directory.path("a.yaml"));
    assert_eq!(told(&directory.reload()), ["a"]);
    // A file of the same size and times under the same name.
    directory.write("new", service("a", 3));
    fs::rename(directory.path("new"), directory.path("a.yaml")).unwrap();
    assert_eq!(told(&directory.reload()), ["a"]);
}

#[test]
fn a_volume_that_is_swapped_shows() {
    let mut directory = Directory::new();
    for (volume, last) in [("..1", 1), ("..2", 2)] {
        fs::create_dir(directory.path(volume)).unwrap();
        fs::write(directory.path(volume).join("a.yaml"), service("a", last)).unwrap();
    }
    symlink("..1", directory.path("..data")).unwrap();
    symlink("..data/a.yaml", directory.path("a.yaml")).unwrap();
    assert_eq!(told(&directory.reload()), ["a"]);
    symlink("..2", directory.path("..data_tmp")).unwrap();
    fs::rename(directory.path("..data_tmp"), directory.path("..data")).unwrap();
    assert_eq!(told(&directory.reload()), ["a"]);
    symlink("/etc/hostname", directory.path("b.yaml")).unwrap();
    assert_eq!(directory.reload_files(&["b.yaml"]).report.unread.len(), 1, "a link that leads out");
}

#[derive(Clone, Debug)]
enum Edit {
    Write { file: u8, services: Vec<(u8, u8)> },
    Break { file: u8 },
    Remove { file: u8 },
}

fn edit() -> impl Strategy<Value = Edit> {
    let write = (0..3u8, vec((0..4u8, 0..6u8), 0..4)).prop_map(|(file, services)| Edit::Write { file, services });
    prop_oneof![
        6 => write,
        1 => (0..3u8).prop_map(|file| Edit::Break { file }),
        1 => (0..3u8).prop_map(|file| Edit::Remove { file }),
    ]
}

fn name(file: u8) -> String {
    format!("{file}.yaml")
}

fn carry_out(directory: &Directory, edit: &Edit) -> String {
    match edit {
        Edit::Write { file, services } => {
            // Address 0 makes a service invalid: 10.96.0.300.
            let text = |(name, last): &(u8, u8)| {
                let text = service(&format!("s{name}"), *last);
                if *last == 0 { text.replace("10.96.0.0", "10.96.0.300") } else { text }
            };
            directory.write(&name(*file), services.iter().map(text).collect::<String>());
            name(*file)
        }
        Edit::Break { file } => {
            directory.write(&name(*file), "x: [");
            name(*file)
        }
        Edit::Remove { file } => {
            let _ = fs::remove_file(directory.path(&name(*file)));
            name(*file)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn reading_what_changed_is_reading_everything_and_a_broken_file_holds_what_it_held(edits in vec(edit(), 1..12)) {
        let mut whole = Manifests::new(SourceName("manifests".into()));
        let mut by_name = Directory::new();
        let mut looking = Manifests::new(SourceName("manifests".into()));
        by_name.reload();
        looking.reload(&[by_name.directory.path()]);
        // What each file holds, in a directory of which every file can be read. What a broken file holds comes last.
        let held = Directory::new();
        whole.update(Snapshot::read(&[held.directory.path()]));
        for edit in edits {
            let file = carry_out(&by_name, &edit);
            let (read, broken) = (held.path(&file), held.path(&format!("held-{file}")));
            match edit {
                Edit::Write { .. } => {
                    fs::copy(by_name.path(&file), &read).unwrap();
                    let _ = fs::remove_file(broken);
                }
                Edit::Break { .. } => drop(fs::rename(read, broken)),
                Edit::Remove { .. } => [read, broken].iter().for_each(|file| drop(fs::remove_file(file))),
            }
            let batches = [by_name.reload_files(&[&file]), looking.reload(&[by_name.directory.path()])];
            let expected = whole.update(Snapshot::read(&[held.directory.path()]));
            for batch in &batches {
                prop_assert_eq!(&batch.changes, &expected.changes);
                prop_assert!(batch.report.rejected.is_none());
            }
            prop_assert_eq!(&batches[0].report.refused, &batches[1].report.refused);
            let unread = |batch: &Batch| batch.report.unread.iter().map(ToString::to_string).collect::<Vec<_>>();
            prop_assert_eq!(unread(&batches[0]), unread(&batches[1]));
            prop_assert!(by_name.manifests.services().eq(whole.services()));
        }
    }
}
