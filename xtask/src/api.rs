//! `cargo xtask api`: the public API of every published library, beside the listings in `docs/api`.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use public_api::Builder;

use crate::{
    packages::{Package, Workspace},
    test::{Failed, run},
};

/// Compares the public API of every published library with its listing in `docs/api`, and prints what differs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write the listings instead: what differs is as it should be.
    #[arg(long)]
    bless: bool,
    /// Only the library of this package.
    #[arg(long)]
    package: Option<String>,
}

impl Args {
    /// Compares everything.
    pub(crate) const CHECK: Self = Self { bless: false, package: None };
}

pub(crate) fn api(args: &Args) -> Result<(), Failed> {
    let workspace = Workspace::read()?;
    let listings = Listings { directory: workspace.root.join("docs/api"), bless: args.bless };
    let rustdoc = rustdoc(&workspace)?;
    let wanted = |package: &Package| args.package.as_ref().is_none_or(|only| *only == package.name);
    let mut differ = Vec::new();
    let mut listed = BTreeSet::new();
    for package in workspace.published().into_iter().filter(|package| wanted(package)) {
        let Some(library) = package.public_library() else { continue };
        let json = workspace.target_directory.join("doc").join(library).with_extension("json");
        document(package, &rustdoc)?;
        differ.extend(listings.take(&package.name, &listing(&json)?)?);
        listed.insert(format!("{}.txt", package.name));
    }
    if args.package.is_none() {
        differ.extend(listings.take_strays(&listed)?);
    } else if listed.is_empty() {
        return Err(Failed("there is no published library of that name".into()));
    }
    if differ.is_empty() {
        eprintln!("the APIs of {} libraries are as listed", listed.len());
        return Ok(());
    }
    let remedy = "see CHANGELOG.md for what to say about a change, and accept it with `cargo xtask api --bless`";
    Err(Failed(format!("the listings in docs/api differ from the code: {}: {remedy}", differ.join(", "))))
}

/// A rustdoc of the pinned toolchain that takes unstable options, which the JSON behind the listings needs.
///
/// It is a script, since `RUSTC_BOOTSTRAP` in the environment of cargo would also be seen by build scripts that ask for
/// it: half of all dependencies would be built again before and after each listing.
fn rustdoc(workspace: &Workspace) -> Result<PathBuf, Failed> {
    const SCRIPT: &str = "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc \"$@\"\n";
    let path = workspace.target_directory.join("rustdoc-unstable");
    let written = fs::write(&path, SCRIPT).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
    written.map_err(|error| Failed(format!("writing {} failed: {error}", path.display())))?;
    Ok(path)
}

fn document(package: &Package, rustdoc: &Path) -> Result<(), Failed> {
    let mut command = Command::new("cargo");
    command.args(["rustdoc", "--quiet", "--lib", "--all-features", "--package", &package.name]);
    command.args(["--", "-Zunstable-options", "--output-format", "json", "--cap-lints", "allow"]);
    run(command.env("RUSTDOC", rustdoc))
}

/// One line for each public item.
///
/// Of derived implementations only the fact is listed. `Send` and `Sync` are listed where they are missing, since
/// nearly every type has them; whoever loses one of them sees a line more.
fn listing(json: &Path) -> Result<String, Failed> {
    let read = |auto_traits: bool, derived: bool| {
        let builder = Builder::from_rustdoc_json(json).omit_blanket_impls(true);
        let builder = builder.omit_auto_trait_impls(!auto_traits).omit_auto_derived_impls(!derived);
        let api = builder.build().map_err(|error| Failed(format!("{}: {error}", json.display())))?;
        Ok(api.items().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (all, derived, written) = (read(true, true)?, read(false, true)?, read(false, false)?);
    Ok(select(all, &derived.into_iter().collect(), &written.into_iter().collect()).map(|line| line + "\n").collect())
}

/// Those of `all` that are worth a line: what somebody wrote, what is `derived`, and auto traits that are missing.
fn select(all: Vec<String>, derived: &BTreeSet<String>, written: &BTreeSet<String>) -> impl Iterator<Item = String> {
    all.into_iter().filter(|line| {
        let is_impl = line.starts_with("impl") && !line.contains(" core::marker::StructuralPartialEq for ");
        let lacks = |name: &str| line.contains(&format!("!core::marker::{name} for "));
        written.contains(line) || is_impl && (derived.contains(line) || lacks("Send") || lacks("Sync"))
    })
}

struct Listings {
    directory: PathBuf,
    bless: bool,
}

impl Listings {
    /// Compares with the listing of a package, or writes it. Returns the name of a listing that differs.
    fn take(&self, package: &str, api: &str) -> Result<Option<String>, Failed> {
        let path = self.directory.join(package).with_extension("txt");
        let before = fs::read_to_string(&path).unwrap_or_default();
        let changes = changes(&before, api);
        if changes.is_empty() {
            return Ok(None);
        }
        println!("{package}:");
        changes.iter().for_each(|change| println!("  {change}"));
        if !self.bless {
            return Ok(Some(package.into()));
        }
        let written = fs::create_dir_all(&self.directory).and_then(|()| fs::write(&path, api));
        written.map_err(|error| Failed(format!("writing {} failed: {error}", path.display())))?;
        Ok(None)
    }

    /// Removes listings of libraries that are no more, or returns their names.
    fn take_strays(&self, listed: &BTreeSet<String>) -> Result<Vec<String>, Failed> {
        let failed = |error| Failed(format!("{}: {error}", self.directory.display()));
        let mut strays = Vec::new();
        for entry in fs::read_dir(&self.directory).into_iter().flatten() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".txt") || listed.contains(&name) {
                continue;
            }
            if self.bless {
                fs::remove_file(entry.path()).map_err(failed)?;
            } else {
                strays.push(format!("{name} (no such library)"));
            }
        }
        Ok(strays)
    }
}

/// Lines that went, and lines that came.
fn changes(before: &str, after: &str) -> Vec<String> {
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), after.lines().collect());
    let gone = before.lines().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
    let come = after.lines().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"));
    let mut changes: Vec<_> = gone.chain(come).collect();
    if changes.is_empty() && before != after {
        changes.push("the order of lines, or how often one occurs".into());
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_name_the_lines_that_went_and_those_that_came() {
        let before = "pub mod a\npub fn a::f()\n";
        assert_eq!(changes(before, before), Vec::<String>::new());
        assert_eq!(changes(before, "pub mod a\npub fn a::f(u8)\n"), ["- pub fn a::f()", "+ pub fn a::f(u8)"]);
        assert_eq!(changes(before, "pub fn a::f()\npub mod a\n").len(), 1, "another order is a change");
        assert_eq!(changes("", before).len(), 2, "a listing that is missing is an empty one");
    }

    #[test]
    fn derived_and_missing_implementations_are_listed_and_auto_traits_that_are_there_are_not() {
        let written = ["pub struct a::B"];
        let derived = [
            "impl core::clone::Clone for a::B",
            "pub fn a::B::clone(&self) -> a::B",
            "impl core::marker::StructuralPartialEq for a::B",
        ];
        let auto = [
            "impl !core::marker::Send for a::B",
            "impl core::marker::Sync for a::B",
            "impl core::marker::Unpin for a::B",
        ];
        let set = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let all = [&written[..], &derived, &auto].concat().into_iter().map(Into::into).collect();
        let kept: Vec<_> = select(all, &set(&[&written[..], &derived].concat()), &set(&written)).collect();
        assert_eq!(kept, [written[0], derived[0], auto[0]]);
    }
}
