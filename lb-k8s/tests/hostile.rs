//! Files that somebody made to harm: each is a clear error, of the file or of an object, soon, in bounded memory, and
//! the last good state stays.
//!
//! Every one is read in a process of its own, which is this executable again: so its peak of resident memory is its
//! own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env,
    fs::{self, File},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use lb_core::name::SourceName;
use lb_k8s::{Manifests, limits};
use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;

const READ: &str = "LB_TEST_READ";

/// What reading a directory of hostile files may take on a machine that is busy, without optimisation. Optimised, each
/// takes less than a second.
const LONGEST: Duration = Duration::from_secs(if cfg!(debug_assertions) { 60 } else { 1 });

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10, ports: [{port: \
                       80}]}\n";

fn main() -> ExitCode {
    if let Some(directory) = env::var_os(READ) {
        print!("{}", read(Path::new(&directory)));
        return ExitCode::SUCCESS;
    }
    let is_wanted = |bomb: &&Bomb| !cfg!(debug_assertions) || !SLOW.contains(&bomb.name);
    let mut trials: Vec<_> =
        BOMBS.iter().filter(is_wanted).map(|bomb| Trial::test(bomb.name, || check(bomb))).collect();
    trials.push(Trial::test("renames_while_reading_never_lead_out", || {
        renames_while_reading_never_lead_out();
        Ok(())
    }));
    trials.push(Trial::test("a_file_that_is_written_while_it_is_read_ends_as_it_was_written_last", || {
        a_file_that_is_written_while_it_is_read_ends_as_it_was_written_last();
        Ok(())
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A million values of YAML take half a minute without optimisation; `nodes` in `limits.rs` has as many of JSON.
const SLOW: [&str; 2] = ["many_scalars", "many_keys"];

/// A file `bomb.yaml` or `bomb.json` beside a good one.
struct Bomb {
    name: &'static str,
    lay: fn(&Path),
    /// What the message says besides the file's name.
    says: &'static str,
    /// MiB of memory, at most, over those of a process that reads the good file alone.
    memory: u64,
}

const BOMBS: [Bomb; 27] = [
    Bomb { name: "a_gibibyte_of_nothing", lay: |d| sparse(d, 1 << 30), says: "larger than 8388608 bytes", memory: 1 },
    Bomb {
        name: "one_byte_too_many",
        lay: |d| sparse(d, limits::MAX_FILE_BYTES + 1),
        says: "larger than 8388608 bytes",
        memory: 1,
    },
    Bomb { name: "zeros", lay: |d| sparse(d, limits::MAX_FILE_BYTES), says: "document 1", memory: 64 },
    Bomb { name: "too_much_together", lay: too_much_together, says: "larger than 134217728 bytes together", memory: 1 },
    Bomb {
        name: "a_million_documents",
        lay: |d| yaml(d, &"a\n---\n".repeat(1_000_000)),
        says: "more than 100000 documents",
        memory: 32,
    },
    Bomb {
        name: "a_million_documents_of_json",
        lay: |d| json(d, &r#"{"apiVersion":"x","kind":"X"} "#.repeat(270_000)),
        says: "more than 100000 documents",
        memory: 128,
    },
    Bomb {
        name: "a_million_objects_in_a_list",
        lay: |d| json(d, &list(&r#"{"apiVersion":"x","kind":"X"},"#.repeat(270_000))),
        says: "document 1",
        memory: 512,
    },
    Bomb { name: "billion_laughs", lay: |d| yaml(d, &laughs()), says: "document 1", memory: 32 },
    Bomb {
        name: "an_alias_many_times",
        lay: |d| yaml(d, &format!("a: &a [x, x]\nb: [{}]\n", "*a, ".repeat(1_000_000))),
        says: "write out what aliases repeat",
        memory: 128,
    },
    Bomb {
        name: "anchors",
        lay: |d| yaml(d, &format!("[{}]", (0..500_000).map(|n| format!("&a{n} x,")).collect::<String>())),
        says: "document 1",
        memory: 512,
    },
    Bomb { name: "deep_sequences", lay: |d| yaml(d, &"[".repeat(8 << 20)), says: "more than 64 ", memory: 64 },
    Bomb { name: "deep_sequences_of_json", lay: |d| json(d, &"[".repeat(8 << 20)), says: "more than 64 ", memory: 64 },
    Bomb { name: "deep_mappings", lay: |d| yaml(d, &"{a: ".repeat(2 << 20)), says: "more than 64 ", memory: 64 },
    Bomb { name: "deep_blocks", lay: |d| yaml(d, &"- ".repeat(4 << 20)), says: "more than 64 ", memory: 64 },
    Bomb {
        name: "many_scalars",
        lay: |d| yaml(d, &format!("[{}]", "0,".repeat(4_000_000))),
        says: "document 1",
        memory: 512,
    },
    Bomb {
        name: "many_scalars_of_json",
        lay: |d| json(d, &format!("[{}0]", "0,".repeat(4_000_000))),
        says: "document 1",
        memory: 512,
    },
    Bomb {
        name: "many_keys",
        lay: |d| yaml(d, &(0..900_000).map(|n| format!("a{n}:\n")).collect::<String>()),
        says: "document 1",
        memory: 512,
    },
    Bomb {
        name: "a_long_line",
        lay: |d| yaml(d, &format!("{}\"", "x".repeat(8_000_000))),
        says: "document 1",
        memory: 128,
    },
    Bomb {
        name: "a_text_without_an_end",
        lay: |d| yaml(d, &format!("\"{}", "\\n".repeat(4_000_000))),
        says: "document 1",
        memory: 128,
    },
    Bomb { name: "noise", lay: |d| write(d, "bomb.yaml", &[0xff; 1 << 20]), says: "is not UTF-8", memory: 8 },
    Bomb {
        name: "a_link_to_a_device",
        lay: |d| symlink("/dev/zero", d.join("bomb.yaml")).unwrap(),
        says: "leads out of its directory, to /dev/zero",
        memory: 1,
    },
    Bomb {
        name: "a_link_to_nothing",
        lay: |d| symlink("nowhere", d.join("bomb.yaml")).unwrap(),
        says: "the symbolic link leads to nothing",
        memory: 1,
    },
    Bomb {
        name: "a_link_up_and_down_again",
        lay: |d| symlink("../../../../../../../../etc/hostname", d.join("bomb.yaml")).unwrap(),
        says: "leads out of its directory, to /etc/hostname",
        memory: 1,
    },
    Bomb {
        name: "objects_of_wrong_types",
        lay: |d| json(d, &list(&(0..50_000).map(untyped).collect::<String>())),
        says: "expected ServiceSpec; it is left out",
        memory: 256,
    },
    Bomb {
        name: "a_pool_of_wrong_types",
        lay: |d| json(d, &format!(r#"{POOL}"labels":[]}},"spec":{{"blocks":[{}7]}}}}"#, "\"x\",".repeat(700_000))),
        says: "expected a map; it allocates nothing",
        memory: 256,
    },
    Bomb {
        name: "a_pool_of_many_wrong_labels",
        lay: |d| {
            yaml(
                d,
                &format!(r#"{POOL}"labels":{{{}}}}}}}"#, (0..200_000).map(|n| format!("a{n}: y,")).collect::<String>()),
            )
        },
        says: "expected a string; it allocates nothing",
        memory: 512,
    },
    Bomb { name: "a_hard_link_in_a_shared_directory", lay: hard_link, says: "2 names (hard links)", memory: 1 },
];

fn check(bomb: &Bomb) -> Result<(), Failed> {
    let (_plain, base) = run(&directory())?;
    let directory = directory();
    (bomb.lay)(directory.path());
    let (answer, peak) = run(&directory)?;
    let [good, services, millis, message] = answer.splitn(4, '\n').collect::<Vec<_>>()[..] else {
        return Err(format!("no answer: {answer}").into());
    };
    println!("{}: {millis} ms, {} KiB more: {message}", bomb.name, peak.saturating_sub(base));
    let took = Duration::from_millis(millis.parse()?);
    for (holds, what) in [
        (good == "1" && services == "1", "the last good state is gone"),
        (message.contains("/bomb.") && message.contains(bomb.says), "the message is another one"),
        (message.len() < 1000 && message.chars().all(|c| !c.is_control()), "the message is not fit for a terminal"),
        (took < LONGEST, "it took too long"),
        (peak.saturating_sub(base) < bomb.memory * 1024, "it took too much memory"),
    ] {
        if !holds {
            return Err(format!("{what}: {took:?}, {} KiB: {answer}", peak.saturating_sub(base)).into());
        }
    }
    Ok(())
}

/// A directory with a good file.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), SERVICE).unwrap();
    directory
}

/// Reads a directory in another process: its answer and its peak of resident memory in KiB.
fn run(directory: &TempDir) -> Result<(String, u64), Failed> {
    let child = Command::new(env::current_exe()?).env(READ, directory.path()).output()?;
    let answer = String::from_utf8(child.stdout)?;
    let (peak, answer) = answer.split_once('\n').ok_or_else(|| format!("{:?}: {answer}", child.status))?;
    Ok((answer.to_owned(), peak.parse()?))
}

/// Reads the good file alone, then everything: peak, services before and after, milliseconds and the message.
fn read(directory: &Path) -> String {
    let mut manifests = Manifests::new(SourceName("manifests".into()));
    manifests.reload(&[directory.join("a.yaml")]);
    let good = manifests.services().count();
    let start = processor_time();
    let batch = manifests.reload(&[directory]);
    let took = (processor_time() - start).as_millis();
    let rejected = batch.report.rejected.as_ref().map(ToString::to_string);
    let unread = batch.report.unread.first().map(ToString::to_string);
    let refused = batch.report.refused.first().map(ToString::to_string);
    let message = rejected.or(unread).or(refused).unwrap_or_default();
    format!("{}\n{good}\n{}\n{took}\n{message}", peak(), manifests.services().count())
}

/// What this process has had of a processor: other load on the machine is not in it.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn write(directory: &Path, name: &str, bytes: &[u8]) {
    fs::write(directory.join(name), bytes).unwrap();
}

fn yaml(directory: &Path, text: &str) {
    write(directory, "bomb.yaml", text.as_bytes());
}

fn json(directory: &Path, text: &str) {
    write(directory, "bomb.json", text.as_bytes());
}

fn sparse(directory: &Path, size: u64) {
    File::create(directory.join("bomb.yaml")).unwrap().set_len(size).unwrap();
}

fn too_much_together(directory: &Path) {
    for number in 0..=limits::MAX_TOTAL_BYTES / limits::MAX_FILE_BYTES {
        let file = File::create(directory.join(format!("bomb.{number}.yaml"))).unwrap();
        file.set_len(limits::MAX_FILE_BYTES).unwrap();
    }
}

fn list(items: &str) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"List","items":[{}]}}"#, items.trim_end_matches(','))
}

const POOL: &str = r#"{"apiVersion":"lb/v1","kind":"IPPool","metadata":{"name":"a","#;

fn untyped(n: usize) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"a{n}"}},"spec":7}},"#)
}

fn laughs() -> String {
    let level = |n: usize| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
    format!("a0: &a0 [{}]\n{}", ["ha"; 10].join(", "), (1..10).map(level).collect::<String>())
}

fn hard_link(directory: &Path) {
    fs::write(directory.join("elsewhere"), SERVICE).unwrap();
    fs::hard_link(directory.join("elsewhere"), directory.join("bomb.yaml")).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
}

/// A name that is a file of ours now and a link to somebody else's then.
fn renames_while_reading_never_lead_out() {
    let directory = directory();
    let secret = tempfile::tempdir().unwrap();
    write(secret.path(), "a.yaml", SERVICE.replace("name: web", "name: secret").as_bytes());
    let path = |name: &str| directory.path().join(name);
    let other = secret.path().to_owned();
    fs::create_dir(path("..1")).unwrap();
    write(&path("..1"), "b.yaml", SERVICE.replace("name: web", "name: b").as_bytes());
    symlink("..1", path("..data")).unwrap();
    symlink("..data/b.yaml", path("b.yaml")).unwrap();
    let done = Done::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.is_set() {
                for target in [Path::new("..1"), &other] {
                    symlink(target, path("..next")).unwrap();
                    fs::rename(path("..next"), path("..data")).unwrap();
                    symlink(other.join("a.yaml"), path(".next")).unwrap();
                    fs::rename(path(".next"), path("a.yaml")).unwrap();
                    write(directory.path(), ".next", SERVICE.as_bytes());
                    fs::rename(path(".next"), path("a.yaml")).unwrap();
                }
            }
        });
        let finished = done.set_when_dropped();
        let mut manifests = Manifests::new(SourceName("manifests".into()));
        let (mut rejected, mut accepted) = (0, 0);
        for _ in 0..10_000 {
            let batch = manifests.reload(&[directory.path()]);
            assert!(batch.report.rejected.is_none(), "{:?}", batch.report.rejected);
            match batch.report.unread.first() {
                Some(unread) => {
                    rejected += 1;
                    assert!(!unread.to_string().contains("failed"), "{unread}");
                }
                None => accepted += 1,
            }
            assert!(manifests.services().all(|service| service.name.name() != "secret"));
        }
        drop(finished);
        println!("{rejected} readings held something back, {accepted} accepted all");
        assert!(rejected > 0 && accepted > 0, "{rejected} {accepted}");
    });
}

/// A writer that writes in place, so that readers may find it in the middle of it.
fn a_file_that_is_written_while_it_is_read_ends_as_it_was_written_last() {
    let directory = directory();
    let path = directory.path().join("a.yaml");
    let text =
        |name: &str| format!("{}{}", SERVICE.replace("name: web", &format!("name: {name}")), "# \n".repeat(9000));
    let done = Done::default();
    let mut manifests = Manifests::new(SourceName("manifests".into()));
    manifests.reload(&[directory.path()]);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::options().write(true).open(&path).unwrap();
            for name in ["a", "b"].iter().cycle().take_while(|_| !done.is_set()) {
                std::io::Seek::rewind(&mut file).unwrap();
                file.write_all(text(name).as_bytes()).unwrap();
            }
            std::io::Seek::rewind(&mut file).unwrap();
            file.write_all(text("c").as_bytes()).unwrap();
        });
        let finished = done.set_when_dropped();
        for _ in 0..1000 {
            let batch = manifests.reload_files(&[&path]);
            let told = batch.report.unread.first().map(ToString::to_string);
            assert!(told.iter().all(|told| told.contains("changed while it was read")), "{told:?}");
            assert_eq!(manifests.services().count(), 1);
        }
        drop(finished);
    });
    manifests.reload_files(&[&path]);
    assert_eq!(manifests.services().next().map(|service| service.name.to_string()).as_deref(), Some("default/c"));
}

/// Ends a thread that would go on, also when a test fails.
#[derive(Default)]
struct Done(AtomicBool);

struct SetDone<'a>(&'a Done);

impl Done {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set_when_dropped(&self) -> SetDone<'_> {
        SetDone(self)
    }
}

impl Drop for SetDone<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
