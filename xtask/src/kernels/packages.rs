//! Packages of kernels, downloaded by apt and unpacked without being installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::test::{Failed, output, run};

/// A kernel to be tested.
pub(crate) struct Release {
    /// The beginning of its version.
    pub(crate) version: &'static str,
    pub(crate) packages: Packages,
}

/// Where a kernel and its modules come from.
pub(crate) enum Packages {
    /// A package of Debian, whose keys this machine has; of several that match, the last.
    Debian(&'static str),
    /// Packages of Ubuntu, whose keys Debian has not: so here is what the packages must be, by SHA-256.
    Ubuntu([(&'static str, &'static str); 2]),
}

/// The image of the kernel, and a directory with its modules.
pub(crate) fn unpacked(release: &Release, root: &Path) -> Result<(PathBuf, PathBuf), Failed> {
    let directory = root.join(release.version);
    if !directory.join("boot").is_dir() {
        // What was not finished is not taken for a kernel.
        let fresh = root.join(format!("{}.new", release.version));
        make_empty(&fresh)?;
        match &release.packages {
            Packages::Debian(name) => {
                let archive = Archive::open(&root.join("debian"), &debian())?;
                archive.unpack(&archive.newest(name)?, None, &fresh)?;
            }
            Packages::Ubuntu(packages) => {
                let archive = Archive::open(&root.join("ubuntu"), UBUNTU)?;
                for (name, digest) in packages {
                    archive.unpack(name, Some(digest), &fresh)?;
                }
            }
        }
        fs::rename(&fresh, &directory).map_err(failed(&directory))?;
    }
    let boot = fs::read_dir(directory.join("boot")).map_err(failed(&directory))?;
    let image = boot
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("vmlinuz")));
    let image = image.ok_or_else(|| Failed(format!("{} has no kernel", directory.display())))?;
    Ok((image, directory.join("lib")))
}

/// Lists of packages apart from the machine's own.
struct Archive {
    root: PathBuf,
}

impl Archive {
    /// The lists of `sources`, which are fetched.
    fn open(root: &Path, sources: &str) -> Result<Self, Failed> {
        let archive = Self { root: root.into() };
        for directory in ["lists/partial", "cache/archives/partial", "debs"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(failed(&path))?;
        }
        let path = root.join("sources.list");
        fs::write(&path, sources).map_err(failed(&path))?;
        run(Command::new("apt-get").args(archive.options()).args(["update", "-qq"]))?;
        Ok(archive)
    }

    /// The last package whose name matches, in the order of versions.
    fn newest(&self, name: &str) -> Result<String, Failed> {
        let pattern = format!("^{}$", name.replace('.', "\\.").replace("+", "\\+").replace('*', "[-+.0-9a-z]*"));
        let mut command = Command::new("apt-cache");
        let found = output(command.args(self.options()).args(["search", "--names-only", &pattern]))?;
        let names = found.lines().filter_map(|line| line.split(' ').next());
        let newest = names.filter(|name| !name.ends_with("-dbg")).max_by_key(|name| version(name));
        newest.map(str::to_owned).ok_or_else(|| Failed(format!("no archive has a package {name}")))
    }

    /// Downloads a package, which must have this digest, if there is one.
    fn unpack(&self, name: &str, digest: Option<&str>, to: &Path) -> Result<(), Failed> {
        let debs = self.root.join("debs").join(name);
        make_empty(&debs)?;
        let mut command = Command::new("apt-get");
        run(command.args(self.options()).args(["download", "-qq", name]).current_dir(&debs))?;
        for entry in fs::read_dir(&debs).map_err(failed(&debs))?.flatten() {
            let found = output(Command::new("sha256sum").arg(entry.path()))?;
            if let Some(digest) = digest.filter(|digest| !found.starts_with(*digest)) {
                return Err(Failed(format!("package {name}: expected SHA-256 {digest}, found {found}")));
            }
            run(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(to))?;
        }
        fs::remove_dir_all(&debs).map_err(failed(&debs))
    }

    fn options(&self) -> Vec<String> {
        let path = |name: &str| self.root.join(name).display().to_string();
        let settings = [
            ("Dir::Etc::sourcelist", path("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::State::lists", path("lists")),
            ("Dir::Cache", path("cache")),
            // The user of apt's sandbox may not be let into the directory of the build.
            ("APT::Sandbox::User", "root".into()),
        ];
        settings.into_iter().flat_map(|(name, value)| ["-o".into(), format!("{name}={value}")]).collect()
    }
}

fn debian() -> String {
    let line = |archive: &str, suite: &str| {
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        format!("deb [signed-by={keys}] http://deb.debian.org/{archive} {suite} main\n")
    };
    let suites = [("debian", "bullseye"), ("debian-security", "bullseye-security")];
    let newer = [("debian", "bookworm"), ("debian-security", "bookworm-security")];
    suites.into_iter().chain(newer).map(|(archive, suite)| line(archive, suite)).collect()
}

/// Not trusted because of a key, but because of the digest of each package.
const UBUNTU: &str = "deb [trusted=yes] http://archive.ubuntu.com/ubuntu jammy main\n";

/// The numbers in a name, to compare versions by.
fn version(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn make_empty(directory: &Path) -> Result<(), Failed> {
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(failed(directory))?;
    }
    fs::create_dir_all(directory).map_err(failed(directory))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failed + use<> {
    let path = path.display().to_string();
    move |error| Failed(format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_compared_as_numbers() {
        let names = ["linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64"];
        assert!(version(names[0]) < version(names[1]));
    }
}
