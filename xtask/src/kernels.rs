//! `cargo xtask kernels`: the eBPF datapath on kernels of other versions, in qemu.

mod packages;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use self::packages::{Packages, Release, unpacked};
use crate::test::{Failed, output, run};

/// Boots kernels of Debian and Ubuntu in qemu, without KVM, and runs the privileged tests of lb-datapath-ebpf in them:
/// every program has to load, and the verifier has to be done with it at half of its limit. Kernels are downloaded
/// once, with apt and its keys, into `target/kernels`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only kernels whose version begins with this, such as `5.15`.
    #[arg(long)]
    only: Option<String>,
    /// Run all privileged tests: real packets, restarts and edits, some minutes for each kernel. Otherwise those that
    /// load and attach every program and send single packets through them.
    #[arg(long)]
    all: bool,
    /// Most seconds that one kernel may take.
    #[arg(long, default_value_t = 1800)]
    timeout: u32,
}

impl Args {
    /// What `cargo xtask test` runs.
    pub(crate) const SHORT: Self = Self { only: None, all: false, timeout: 600 };
    /// What `cargo xtask nightly` runs.
    pub(crate) const ALL: Self = Self { only: None, all: true, timeout: 1800 };
}

/// Kernels, oldest first: the last release of 5.10, 6.1 and 6.12 that there is, and the first of 5.15, which is the floor.
const RELEASES: [Release; 4] = [
    Release { version: "5.10", packages: Packages::Debian("linux-image-5.10.0-*-cloud-amd64") },
    Release {
        version: "5.15",
        packages: Packages::Ubuntu([
            ("linux-image-5.15.0-25-generic", "ad56f8c442a54d4f5ff2dff010d00321d53e32b543f3a92f3ba4e042d20a71da"),
            ("linux-modules-5.15.0-25-generic", "d0ba4087d9e1d497925b3481d3531fba6c2a852855f8019d73b0b1385aa4da1f"),
        ]),
    },
    Release { version: "6.1", packages: Packages::Debian("linux-image-6.1.0-*-cloud-amd64") },
    Release { version: "6.12", packages: Packages::Debian("linux-image-6.12.*-cloud-amd64") },
];

/// Programs of the machine that the tests call.
const PROGRAMS: [&str; 3] = ["busybox", "ip", "tc"];
/// Modules, in the order in which they need each other.
const MODULES: [&str; 7] = ["llc", "stp", "bridge", "sch_ingress", "cls_bpf", "veth", "inet_diag"];
/// The tests that are run unless all of them are.
const SHORT: [&str; 3] = [
    "kernel::",
    "packets::an_outside_client_reaches_every_backend_with_the_nodes_address",
    "sockets::a_service_without_backends_refuses_at_once",
];
/// Tests that need what these kernels do not have, or more memory and time than an emulated machine has.
const LEFT_OUT: [&str; 2] = ["ten_thousand", "pressure::"];

/// Runs the tests in every kernel that is asked for.
pub(crate) fn kernels(args: &Args) -> Result<(), Failed> {
    let root = crate::root().join("target/kernels");
    let tests = test_program()?;
    let wanted = |release: &&Release| args.only.as_deref().is_none_or(|only| release.version.starts_with(only));
    let mut failed = Vec::new();
    for release in RELEASES.iter().filter(wanted) {
        let start = Instant::now();
        let said = boot(args, release, &root, &tests)?;
        let outcome = judge(&said);
        print!("{}", report(&said));
        match outcome {
            Ok(passed) => {
                let seconds = start.elapsed().as_secs();
                eprintln!("==> Linux {}: {passed} tests passed in {seconds} s", kernel_of(&said).unwrap_or_default());
            }
            Err(why) => {
                let log = root.join(format!("{}.log", release.version));
                eprintln!("==> Linux {}: {why}; see {}", release.version, log.display());
                failed.push(release.version);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failed(format!("failed on Linux {}", failed.join(", ")))) }
}

/// The program of the privileged tests, built.
fn test_program() -> Result<PathBuf, Failed> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--package", "lb-datapath-ebpf", "--test", "root", "--no-run", "--message-format", "json"]);
    let messages = output(&mut cargo)?;
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.ok_or_else(|| Failed("cargo names no test program".into()))
}

/// What the kernel and the tests in it say.
fn boot(args: &Args, release: &Release, root: &Path, tests: &Path) -> Result<String, Failed> {
    let (kernel, modules) = unpacked(release, root)?;
    let stage = root.join("stage").join(release.version);
    if stage.exists() {
        fs::remove_dir_all(&stage).map_err(|e| Failed(format!("{}: {e}", stage.display())))?;
    }
    fill(&stage, &modules, tests, args.all)?;
    let archive = root.join(format!("{}.cpio.gz", release.version));
    let pack =
        format!("cd '{}' && find . | cpio --quiet -o -H newc | gzip -1 > '{}'", stage.display(), archive.display());
    run(Command::new("sh").args(["-c", &pack]))?;
    let mut qemu = Command::new("timeout");
    qemu.arg(args.timeout.to_string()).arg("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "1024", "-smp", "2", "-nographic", "-no-reboot"]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
    qemu.args(["-append", "console=ttyS0 panic=-1 quiet no_timer_check"]).stdin(Stdio::null());
    let said = qemu.output().map_err(|e| Failed(format!("{qemu:?}: {e}; scripts/setup.sh --test installs it")))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let log = root.join(format!("{}.log", release.version));
    fs::write(&log, &said).map_err(|e| Failed(format!("{}: {e}", log.display())))?;
    Ok(said)
}

/// Puts everything into `stage` that the machine starts with.
fn fill(stage: &Path, modules: &Path, tests: &Path, all: bool) -> Result<(), Failed> {
    let bin = stage.join("bin");
    let filters = if all { LEFT_OUT.map(|name| format!("--skip {name}")).join(" ") } else { SHORT.join(" ") };
    let script = format!(
        r#"set -e
mkdir -p '{bin}' && cd '{stage}' && mkdir -p proc sys dev run tmp modules
for program in {programs}; do cp -L "$(PATH=$PATH:/sbin:/usr/sbin command -v $program)" bin/; done
strip -o bin/tests '{tests}'
for file in bin/*; do ldd $file 2>/dev/null | grep -oE '/[^ ]+' || true; done | sort -u | while read -r library; do
    mkdir -p ".$(dirname "$library")"; cp -L "$library" ".$library"
done
number=10
for module in {modules_wanted}; do
    file=$(find '{modules}' -name "$module.ko*" | head -n 1)
    case $file in
    *.xz) xz -dc "$file" > modules/$number-$module.ko ;;
    ?*) cp "$file" modules/$number-$module.ko ;;
    esac
    number=$((number + 1))
done
cat > init <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
mount -t tmpfs run /run; mount -t cgroup2 cgroup /sys/fs/cgroup; mount -t bpf bpf /sys/fs/bpf
for module in /modules/*.ko; do insmod $module; done
ip link set lo up
echo "kernel: $(uname -r)"
/bin/tests --ignored --test-threads 1 --nocapture {filters}
echo "end: $?"
poweroff -f
END
chmod +x init"#,
        bin = bin.display(),
        stage = stage.display(),
        tests = tests.display(),
        modules = modules.display(),
        programs = PROGRAMS.join(" "),
        modules_wanted = MODULES.join(" "),
    );
    run(Command::new("bash").args(["-c", &script]))
}

/// How many tests have passed, if all that ran have.
fn judge(said: &str) -> Result<usize, String> {
    let ended = said.lines().find_map(|line| line.trim().strip_prefix("end: "));
    let passed = said.lines().find_map(|line| {
        let (_, rest) = line.split_once("test result: ok. ")?;
        rest.split(' ').next()?.parse().ok()
    });
    match (ended, passed) {
        (None, _) => Err("it did not come to an end".into()),
        (Some("0"), Some(passed)) if passed > 0 => Ok(passed),
        (Some(code), _) => Err(format!("the tests ended with {code}")),
    }
}

/// Lines about what the kernel offers and how many instructions it verified, each once, and tests that failed.
fn report(said: &str) -> String {
    let told = |line| {
        let of_use = ["kernel: ", "features: ", "insns\t"].iter().find_map(|start| line_from(line, start));
        of_use.or_else(|| (line.starts_with("test ") && line.ends_with("FAILED")).then_some(line))
    };
    let mut lines: Vec<&str> = said.lines().map(str::trim_end).filter_map(told).collect();
    lines.dedup();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn kernel_of(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line_from(line, "kernel: ")?.trim_end().strip_prefix("kernel: "))
}

/// What a line has from `start` on: a terminal or the harness of the tests may have written before it.
fn line_from<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    line.find(start).and_then(|at| line.get(at..))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Booting\u{1b}[0mkernel: 6.1.0\r\ninsns\tlb_ingress\t5\r\ninsns\tlb_ingress\t5\r\ntest a ... ok\r\n\
                        test result: ok. 3 passed; 0 failed\r\nend: 0\r\n";

    #[test]
    fn a_machine_that_stops_or_runs_no_test_has_not_passed() {
        assert_eq!(judge(SAID), Ok(3));
        assert!(judge(&SAID.replace("end: 0", "")).is_err());
        assert!(judge(&SAID.replace("end: 0", "end: 101")).is_err());
        assert!(judge(&SAID.replace("3 passed", "0 passed")).is_err());
        assert!(judge(&SAID.replace("ok. 3 passed", "FAILED. 3 passed")).is_err());
    }

    #[test]
    fn a_report_has_the_kernel_and_its_numbers_once() {
        assert_eq!(report(SAID), "kernel: 6.1.0\ninsns\tlb_ingress\t5\n");
        assert_eq!(kernel_of(SAID), Some("6.1.0"));
    }
}
