//! The packages of the workspace that go to a registry.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use crate::test::{Failed, output};

/// The workspace as `cargo metadata` sees it.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    packages: Vec<Package>,
    /// Where the workspace lies.
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    /// Where cargo builds.
    pub(crate) target_directory: PathBuf,
}

/// One package. Fields that are missing in its manifest are empty.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) description: Option<String>,
    pub(crate) license: Option<String>,
    pub(crate) repository: Option<String>,
    pub(crate) readme: Option<PathBuf>,
    pub(crate) keywords: Vec<String>,
    pub(crate) categories: Vec<String>,
    /// Registries that it may go to: every one by default, none with `publish = false`.
    publish: Option<Vec<String>>,
    metadata: Option<Metadata>,
    targets: Vec<Target>,
    manifest_path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    lb: Settings,
    docs: Option<Docs>,
}

/// `[package.metadata.lb]`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    /// The library is for this repository, and its API has no listing.
    #[serde(default)]
    internal_api: bool,
}

#[derive(Debug, Deserialize)]
struct Docs {
    rs: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Workspace {
    /// Reads the manifests.
    ///
    /// # Errors
    /// When cargo cannot.
    pub(crate) fn read() -> Result<Self, Failed> {
        let metadata = output(Command::new("cargo").args(["metadata", "--no-deps", "--format-version", "1"]))?;
        serde_json::from_str(&metadata).map_err(|error| Failed(format!("cargo metadata: {error}")))
    }

    /// Packages without `publish = false`, in order of name.
    pub(crate) fn published(&self) -> Vec<&Package> {
        let mut published: Vec<_> = self.packages.iter().filter(|package| package.is_published()).collect();
        published.sort_by_key(|package| &package.name);
        published
    }
}

impl Package {
    fn is_published(&self) -> bool {
        self.publish.is_none()
    }

    /// Whether it says that it needs no std: `no-std`, or `no-std::no-alloc`.
    pub(crate) fn is_without_std(&self) -> bool {
        self.categories.iter().any(|category| category.split("::").next() == Some("no-std"))
    }

    /// The name of its library, if that is for others.
    pub(crate) fn public_library(&self) -> Option<&str> {
        if self.metadata.as_ref().is_some_and(|metadata| metadata.lb.internal_api) {
            return None;
        }
        self.targets.iter().find(|target| target.has_kind("lib")).map(|target| target.name.as_str())
    }

    pub(crate) fn has_build_script(&self) -> bool {
        self.targets.iter().any(|target| target.has_kind("custom-build"))
    }

    pub(crate) fn has_settings_for_docs_rs(&self) -> bool {
        let docs = self.metadata.as_ref().and_then(|metadata| metadata.docs.as_ref());
        docs.is_some_and(|docs| docs.rs.is_some())
    }

    pub(crate) fn directory(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}

impl Target {
    fn has_kind(&self, kind: &str) -> bool {
        self.kind.iter().any(|found| found == kind)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A package that lacks nothing, with `changes` in its metadata.
    pub(crate) fn package(changes: &[(&str, serde_json::Value)]) -> Package {
        let mut package = json!({
            "name": "lb-some",
            "version": "0.1.0",
            "description": "Some of lb",
            "license": "MIT",
            "repository": "https://example.com",
            "readme": "README.md",
            "keywords": ["load-balancing"],
            "categories": ["network-programming"],
            "publish": null,
            "metadata": { "docs": { "rs": {} } },
            "targets": [{ "name": "lb_some", "kind": ["lib"] }],
            "manifest_path": "/lb/lb-some/Cargo.toml",
        });
        for (field, value) in changes {
            package[field] = value.clone();
        }
        serde_json::from_value(package).unwrap()
    }

    #[test]
    fn a_package_is_published_unless_its_manifest_forbids_it() {
        assert!(package(&[]).is_published());
        assert!(!package(&[("publish", json!([]))]).is_published());
    }

    #[test]
    fn a_package_is_pure_when_one_of_its_categories_says_so() {
        assert!(!package(&[]).is_without_std());
        for category in ["no-std", "no-std::no-alloc"] {
            assert!(package(&[("categories", json!(["algorithms", category]))]).is_without_std(), "{category}");
        }
    }

    #[test]
    fn a_library_is_listed_unless_it_is_internal() {
        assert_eq!(package(&[]).public_library(), Some("lb_some"));
        assert_eq!(package(&[("metadata", json!({ "lb": { "internal-api": true } }))]).public_library(), None);
        assert_eq!(package(&[("targets", json!([{ "name": "lb", "kind": ["bin"] }]))]).public_library(), None);
    }
}
