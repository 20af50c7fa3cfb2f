//! `cargo xtask package`: every published package builds from its own files.

use std::{env, fs, io, path::PathBuf, process::Command};

use crate::{
    packages::{Package, Workspace},
    test::{Failed, output, run},
};

/// Packs every package that goes to a registry, and builds each from what was packed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Checks the manifests first, since a registry refuses a package that lacks something only when it is uploaded.
///
/// Cargo packs all packages at once: each is built against the packed form of those that it depends on, which no
/// registry has yet. Its builds share `target/` and the profile of the workspace, so that they find most dependencies
/// built: with cargo's own defaults the step takes more than twice as long.
pub(crate) fn package(_: &Args) -> Result<(), Failed> {
    let workspace = Workspace::read()?;
    let packages = workspace.published();
    let faults: Vec<_> = packages.iter().flat_map(|package| faults(package)).collect();
    if !faults.is_empty() {
        return Err(Failed(faults.join("\n")));
    }
    for package in &packages {
        has_files(package)?;
    }
    let forgotten = forget_unpacked(&packages).and_then(|()| forget_built(&workspace, &packages));
    forgotten.map_err(|error| Failed(format!("removing earlier packages failed: {error}")))?;
    let mut command = Command::new("cargo");
    command.args(["package", "--allow-dirty", "--target-dir"]).arg(&workspace.target_directory);
    command.args(packages.iter().flat_map(|package| ["--package", &package.name]));
    run(command.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only"))
}

/// Removes what cargo unpacked of these packages in an earlier run.
///
/// Cargo packs into a registry below the target directory, which has no host, and unpacks from there into its home. It
/// takes what it finds there for the same package if name and version are the same, whatever has changed since.
fn forget_unpacked(packages: &[&Package]) -> io::Result<()> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let Some(home) = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"))) else { return Ok(()) };
    let registries = match fs::read_dir(home.join("registry/src")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        registries => registries?,
    };
    for registry in registries {
        let registry = registry?;
        // Those of hosts begin with the host.
        if !registry.file_name().to_string_lossy().starts_with('-') {
            continue;
        }
        for package in packages {
            match fs::remove_dir_all(registry.path().join(format!("{}-{}", package.name, package.version))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

/// Removes what says that these packages are built. Cargo believes that a package of a registry never changes, and would
/// link what an earlier run built.
fn forget_built(workspace: &Workspace, packages: &[&Package]) -> io::Result<()> {
    let fingerprints = match fs::read_dir(workspace.target_directory.join("debug/.fingerprint")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        fingerprints => fingerprints?,
    };
    for fingerprint in fingerprints {
        let fingerprint = fingerprint?;
        let name = fingerprint.file_name().to_string_lossy().into_owned();
        let package = name.rsplit_once('-').map(|(package, _hash)| package);
        if packages.iter().any(|known| Some(&*known.name) == package) {
            fs::remove_dir_all(fingerprint.path())?;
        }
    }
    Ok(())
}

/// Categories of crates.io that fit a crate of lb. A registry drops one that it does not know.
const CATEGORIES: [&str; 9] = [
    "algorithms",
    "command-line-utilities",
    "data-structures",
    "development-tools::testing",
    "network-programming",
    "no-std",
    "no-std::no-alloc",
    "os::linux-apis",
    "parser-implementations",
];
/// Most keywords, and most characters of one, that crates.io takes.
const MAX_KEYWORDS: usize = 5;
const MAX_KEYWORD: usize = 20;

/// What is wrong with a manifest, and how to put it right.
fn faults(package: &Package) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expect = |holds: bool, expected: &str| {
        if !holds {
            faults.push(format!("{}/Cargo.toml: {expected}", package.directory().display()));
        }
    };
    expect(package.description.is_some(), "set `description`");
    expect(package.license.is_some(), "set `license.workspace = true`");
    expect(package.repository.is_some(), "set `repository.workspace = true`");
    expect(package.readme.is_some(), "set `readme`, and write a README.md");
    expect(package.has_settings_for_docs_rs(), "add `[package.metadata.docs.rs]`");
    expect(!package.has_build_script(), "remove the build script: a build of lb needs stable Rust and nothing else");
    let keywords = &package.keywords;
    expect((1..=MAX_KEYWORDS).contains(&keywords.len()), "set 1 to 5 `keywords`");
    expect(keywords.iter().all(|word| is_keyword(word)), "a keyword has at most 20 letters, digits, `-`, `_` or `+`");
    expect(!package.categories.is_empty(), "set `categories`");
    let unknown = package.categories.iter().find(|category| !CATEGORIES.contains(&category.as_str()));
    if let Some(unknown) = unknown {
        expect(false, &format!("category `{unknown}` is not one of {}", CATEGORIES.join(", ")));
    }
    faults
}

fn is_keyword(word: &str) -> bool {
    word.len() <= MAX_KEYWORD
        && word.starts_with(|first: char| first.is_ascii_alphanumeric())
        && word.chars().all(|char| char.is_ascii_alphanumeric() || "-_+".contains(char))
}

/// Files without which nobody may, or can, use a package.
const NEEDED: [&str; 3] = ["README.md", "LICENSE-APACHE", "LICENSE-MIT"];

fn has_files(package: &Package) -> Result<(), Failed> {
    let list = ["package", "--list", "--allow-dirty", "--package", &package.name];
    let files = output(Command::new("cargo").args(list))?;
    match NEEDED.iter().find(|needed| !files.lines().any(|file| file == **needed)) {
        None => Ok(()),
        Some(missing) => Err(Failed(format!("{}: {missing} is not in the package", package.directory().display()))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::packages::tests::package;

    #[test]
    fn a_manifest_that_lacks_nothing_has_no_fault() {
        assert_eq!(faults(&package(&[])), Vec::<String>::new());
    }

    #[test]
    fn every_fault_names_the_manifest_and_the_remedy() {
        for (field, value, fault) in [
            ("description", json!(null), "set `description`"),
            ("license", json!(null), "set `license.workspace = true`"),
            ("repository", json!(null), "set `repository.workspace = true`"),
            ("readme", json!(null), "set `readme`, and write a README.md"),
            ("metadata", json!(null), "add `[package.metadata.docs.rs]`"),
            ("keywords", json!([]), "set 1 to 5 `keywords`"),
            ("keywords", json!(["a", "b", "c", "d", "e", "f"]), "set 1 to 5 `keywords`"),
            ("keywords", json!(["two words"]), "a keyword has at most 20 letters, digits, `-`, `_` or `+`"),
            (
                "keywords",
                json!(["more-than-twenty-letters"]),
                "a keyword has at most 20 letters, digits, `-`, `_` or `+`",
            ),
            ("categories", json!([]), "set `categories`"),
        ] {
            assert_eq!(faults(&package(&[(field, value)])), [format!("/lb/lb-some/Cargo.toml: {fault}")]);
        }
        let script = json!([{ "name": "build-script-build", "kind": ["custom-build"] }]);
        assert!(faults(&package(&[("targets", script)]))[0].contains("remove the build script"));
        let unknown = faults(&package(&[("categories", json!(["networks"]))]));
        assert!(unknown[0].contains("category `networks` is not one of algorithms, "), "{unknown:?}");
    }
}
