//! A directory of manifests that a test writes, and what is read from it.

use std::{fs, path::PathBuf};

use lb_core::name::SourceName;
use lb_k8s::{Batch, Manifests};
use tempfile::TempDir;

/// The manifest of a service at `10.96.0.last`.
pub(crate) fn service(name: &str, last: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.{last}, ports: [{{port: 80}}]}}\n"
    )
}

pub(crate) struct Directory {
    pub(crate) directory: TempDir,
    pub(crate) manifests: Manifests,
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), manifests: Manifests::new(SourceName("manifests".into())) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn reload(&mut self) -> Batch {
        self.manifests.reload(&[self.directory.path()])
    }
}
