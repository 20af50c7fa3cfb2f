//! Development tasks of lb: `cargo xtask`.

mod api;
mod build_ebpf;
mod figures;
mod kernels;
mod nightly;
mod package;
mod packages;
mod planted;
#[cfg(test)]
mod scenarios;
mod test;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;

/// Development tasks of lb.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Task {
    BuildEbpf(build_ebpf::Args),
    Test(test::Args),
    Api(api::Args),
    Package(package::Args),
    Nightly(nightly::Args),
    Planted(planted::Args),
    Figures(figures::Args),
    Kernels(kernels::Args),
}

impl Task {
    fn run(&self) -> Result<(), Box<dyn Error>> {
        match self {
            Self::BuildEbpf(args) => Ok(build_ebpf::run(args)?),
            Self::Test(args) => Ok(test::test(args)?),
            Self::Api(args) => Ok(api::api(args)?),
            Self::Package(args) => Ok(package::package(args)?),
            Self::Nightly(args) => Ok(nightly::nightly(args)?),
            Self::Planted(args) => Ok(planted::planted(args)?),
            Self::Figures(args) => figures::figures(args),
            Self::Kernels(args) => Ok(kernels::kernels(args)?),
        }
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).into()
}

fn main() -> ExitCode {
    match Task::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(below) = cause {
                eprintln!("  because: {below}");
                cause = below.source();
            }
            ExitCode::FAILURE
        }
    }
}
