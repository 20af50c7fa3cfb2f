//! `build-ebpf`: builds the eBPF object that is committed, or checks that it is what its source says.

mod btf;
mod object;
mod stack;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use object::Parts;

/// The linker whose output is committed; another version writes other type information.
const BPF_LINKER: &str = "0.10.4";
/// Where the object lies, from the root of the workspace.
const OBJECT: &str = "lb-datapath-ebpf/src/lb.bpf.o";
const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "ebpf";

/// Builds the eBPF object, or checks the committed one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Changes nothing: fails unless the committed object has the code, maps, constants and types of a fresh build.
    #[arg(long)]
    check: bool,
}

/// Why there is no object, or not the right one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{tool} not found or not working; install it with `{install}`")]
    Tool { tool: &'static str, install: &'static str },
    #[error(
        "found {found}, need bpf-linker {BPF_LINKER}; install it with `cargo install bpf-linker --version {BPF_LINKER} --locked`"
    )]
    Linker { found: String },
    #[error("building the programs failed")]
    Build,
    #[error("{action} {path} failed")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} is not an eBPF object: {what}")]
    Object { path: PathBuf, what: String },
    #[error("a program can panic, which the kernel refuses: section {section} of {path}")]
    Panic { path: PathBuf, section: String },
    #[error(
        "a chain of calls in {path} needs too much stack: {chain}; split a function, or give a large one less to do"
    )]
    Stack { path: PathBuf, chain: String },
    #[error(
        "section {section} of {path} is a map that nobody pins, so that a restart would refuse its own links; find the \
         constants in the programs (a `match` can become a table) and write them in another way"
    )]
    Constants { path: PathBuf, section: String },
    #[error("{path} does not match its source: {differences}; run `cargo xtask build-ebpf` and commit the result", differences = .differences.join(", "))]
    Differs { path: PathBuf, differences: Vec<String> },
}

/// Builds the programs; writes the object or compares it with the committed one.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let root = crate::root();
    let built = compile(&root)?;
    let committed = root.join(OBJECT);
    let fresh = object::strip(&read(&built)?).map_err(|what| Error::Object { path: built.clone(), what })?;
    let parts = parts(&built, &fresh)?;
    if args.check {
        return compare(&committed, &parts);
    }
    fs::write(&committed, &fresh).map_err(|source| Error::File {
        action: "writing",
        path: committed.clone(),
        source,
    })?;
    println!("{}: {} bytes, {} sections of code", committed.display(), fresh.len(), parts.programs());
    Ok(())
}

fn compare(committed: &Path, fresh: &Parts) -> Result<(), Error> {
    let differences = parts(committed, &read(committed)?)?.differences(fresh);
    if differences.is_empty() {
        println!("{} matches its source", committed.display());
        return Ok(());
    }
    Err(Error::Differs { path: committed.into(), differences })
}

fn parts(path: &Path, bytes: &[u8]) -> Result<Parts, Error> {
    let parts = Parts::read(bytes).map_err(|what| Error::Object { path: path.into(), what })?;
    if let Some(section) = parts.panics() {
        return Err(Error::Panic { path: path.into(), section: section.into() });
    }
    let chain = stack::too_deep(bytes).map_err(|what| Error::Object { path: path.into(), what })?;
    if let Some(chain) = chain {
        return Err(Error::Stack { path: path.into(), chain });
    }
    if let Some(section) = parts.constants() {
        return Err(Error::Constants { path: path.into(), section: section.into() });
    }
    Ok(parts)
}

/// Builds the programs of the workspace at `root` and returns where the object is.
pub(crate) fn compile(root: &Path) -> Result<PathBuf, Error> {
    let linker = output("bpf-linker", &["--version"])
        .ok_or(Error::Tool { tool: "bpf-linker", install: "cargo install bpf-linker --version 0.10.4 --locked" })?;
    if linker != format!("bpf-linker {BPF_LINKER}") {
        return Err(Error::Linker { found: linker });
    }
    let rustc = Error::Tool { tool: "rustc", install: "rustup toolchain install" };
    let sysroot = output("rustc", &["--print", "sysroot"]).ok_or(rustc)?;
    if !Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists() {
        return Err(Error::Tool {
            tool: "the source of the standard library",
            install: "rustup component add rust-src",
        });
    }
    let target_dir = target_dir(root);
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["build", "--package", "lb-datapath-ebpf-programs", "--bin", "lb", "--profile", PROFILE])
        .args(["-Z", "build-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        // The kernel's target has no precompiled `core`, and only unstable cargo builds one.
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, &sysroot).join("\x1f"))
        .status();
    match status {
        Ok(status) if status.success() => Ok(target_dir.join(TARGET).join(PROFILE).join("lb")),
        _ => Err(Error::Build),
    }
}

/// Flags of the compiler. Paths are mapped away, so that the object does not depend on who builds it where.
fn flags(root: &Path, sysroot: &str) -> Vec<String> {
    let registry = cargo_home().join("registry/src");
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    vec![
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // Version 3 has registers of 32 bits, which end up on the stack. Verifiers before Linux 5.16 forget what a program
        // writes there unless it is 64 bits wide, and refuse it.
        "-Ctarget-cpu=v2".into(),
        "--cfg=bpf_target_arch=\"x86_64\"".into(),
        remap(root, "/src"),
        remap(&registry, "/registry"),
        remap(Path::new(sysroot), "/rustc"),
    ]
}

fn cargo_home() -> PathBuf {
    let home = || env::home_dir().unwrap_or_default().join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// One of our own: its flags are others than those of everything else.
fn target_dir(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("ebpf")
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().into())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::File { action: "reading", path: path.into(), source })
}
