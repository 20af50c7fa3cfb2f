//! Figures of lb-ipam, out of its bench.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::{Figure, Goal};

const MICRO: f64 = 1e3;
const MILLI: f64 = 1e6;

pub(crate) fn measure() -> Result<Vec<Figure>, Box<dyn Error>> {
    eprintln!("no seed: nothing of it is random");
    let bench = Bench::run()?;
    let mut figures = Vec::new();
    for family in ["IPv4 /12", "IPv6 /64"] {
        for what in ["allocate", "free"] {
            let name = format!("{what}, 100,000 held in a fragmented {family}");
            let goal = Some(Goal::AtMost(2.0));
            let ours = format!("ipam one service/{what}/{family}");
            figures.push(bench.figure(&name, goal, &ours, &format!("ipam one service/{what}/bitmap"), MICRO)?);
        }
    }
    figures.push(bench.figure(
        "restart with 50,000 services, nothing written",
        Some(Goal::AtMost(200.0)),
        "ipam import/restart/50000",
        "ipam import/two maps/50000",
        MILLI,
    )?);
    for (name, ours, baseline) in [
        (
            "come and go among 10,000 pools",
            "ipam many pools/come and go/10000 pools",
            "ipam many pools/come and go/1 pool",
        ),
        (
            "address given on to the first of 100,000",
            "ipam many waiting/give on/100000 wait",
            "ipam many waiting/give on/1 waits",
        ),
    ] {
        figures.push(bench.figure(name, None, ours, baseline, MICRO)?);
    }
    let only = "none: only reported";
    let bitmap = bench.bytes("bitmap")?;
    for (family, baseline) in [("IPv4 /12", format!("bitmap: {bitmap} bytes for all of it")), ("IPv6 /64", only.into())]
    {
        let name = format!("memory of one held address, {family}");
        figures.push(Figure::new(name, None, bench.bytes(family)?, "bytes", baseline, 100_000));
    }
    Ok(figures)
}

/// What the bench said.
struct Bench {
    /// By the names that the bench gives them.
    measured: BTreeMap<String, Samples>,
    stdout: String,
}

/// Nanoseconds of one iteration, sample by sample, in order.
struct Samples {
    each: Vec<f64>,
    iterations: f64,
}

/// `benchmark.json` of criterion.
#[derive(Deserialize)]
struct Named {
    full_id: String,
}

/// `sample.json` of criterion: so many iterations took so many nanoseconds together.
#[derive(Deserialize)]
struct Sampled {
    iters: Vec<f64>,
    times: Vec<f64>,
}

impl Bench {
    fn run() -> Result<Self, Box<dyn Error>> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        let home = std::path::absolute(target)?.join("figures-ipam");
        // Else a bench that is not there any more would still be found.
        let _ = fs::remove_dir_all(&home);
        let mut command = Command::new("cargo");
        command.args(["bench", "--quiet", "--package", "lb-benches", "--bench", "ipam", "--", "--noplot"]);
        let output = command.env("CRITERION_HOME", &home).stdout(Stdio::piped()).spawn()?.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("{command:?}: {}", output.status).into());
        }
        let mut measured = BTreeMap::new();
        collect(&home, &mut measured)?;
        Ok(Self { measured, stdout: String::from_utf8(output.stdout)? })
    }

    fn samples(&self, name: &str) -> Result<&Samples, String> {
        self.measured.get(name).ok_or_else(|| format!("the bench measured no `{name}`"))
    }

    /// Medians, because a machine that does something else now and then does not change them.
    fn figure(
        &self,
        figure: &str,
        goal: Option<Goal>,
        ours: &str,
        baseline: &str,
        unit: f64,
    ) -> Result<Figure, String> {
        let (word, base) = (if unit < MILLI { "us" } else { "ms" }, self.samples(baseline)?);
        let ours = self.samples(ours)?;
        let (name, beside, fastest) = (name_of(baseline), base.median() / unit, ours.fastest() / unit);
        let beside = format!("{name}: {beside:.3} {word}; our fastest sample {fastest:.3}");
        Ok(Figure::new(figure, goal, ours.median() / unit, word, beside, ours.iterations as u64))
    }

    /// The bytes in a line such as `ipam memory/IPv4 /12: 123 bytes …`.
    fn bytes(&self, name: &str) -> Result<f64, String> {
        let start = format!("ipam memory/{name}: ");
        let rest = self.stdout.lines().find_map(|line| line.strip_prefix(&start));
        let number = rest.and_then(|rest| rest.split(' ').next()?.parse().ok());
        number.ok_or_else(|| format!("the bench printed no `{start}`"))
    }
}

/// `two maps` of `ipam import/two maps/50000`, `bitmap` of `ipam one service/free/bitmap`.
fn name_of(name: &str) -> &str {
    name.rsplit('/').find(|part| part.parse::<u64>().is_err()).unwrap_or(name)
}

/// Everything that criterion wrote below `directory`.
fn collect(directory: &Path, measured: &mut BTreeMap<String, Samples>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, measured)?;
        } else if path.ends_with("new/sample.json") {
            let Sampled { iters, times } = read(&path)?;
            let Named { full_id } = read(&path.with_file_name("benchmark.json"))?;
            let mut each: Vec<f64> = times.iter().zip(&iters).map(|(time, iterations)| time / iterations).collect();
            each.sort_unstable_by(f64::total_cmp);
            measured.insert(full_id, Samples { each, iterations: iters.iter().sum() });
        }
    }
    Ok(())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Box<dyn Error>> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

impl Samples {
    fn median(&self) -> f64 {
        self.each.get(self.each.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn fastest(&self) -> f64 {
        self.each.first().copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_criterion_wrote_is_found_by_name() {
        let home = std::env::temp_dir().join(format!("lb-xtask-figures-{}", std::process::id()));
        let new = home.join("group/free/IPv4 _12/new");
        fs::create_dir_all(&new).expect("a directory");
        fs::write(new.join("benchmark.json"), r#"{"full_id":"group/free/IPv4 /12","title":""}"#).expect("a file");
        fs::write(new.join("sample.json"), r#"{"iters":[1,2,4],"times":[9,4,12]}"#).expect("a file");
        let mut measured = BTreeMap::new();
        let collected = collect(&home, &mut measured);
        fs::remove_dir_all(&home).expect("a directory");
        collected.expect("what was written");
        let samples = &measured["group/free/IPv4 /12"];
        assert_eq!((samples.fastest(), samples.median(), samples.iterations), (2.0, 3.0, 7.0));
        let bench = Bench { measured, stdout: "x\nipam memory/IPv4 /12: 123 bytes for each\n".into() };
        assert_eq!(bench.bytes("IPv4 /12"), Ok(123.0));
        assert!(bench.bytes("IPv6 /64").is_err() && bench.samples("group/free").is_err());
    }

    #[test]
    fn baselines_are_called_what_they_are() {
        assert_eq!(name_of("ipam one service/free/bitmap"), "bitmap");
        assert_eq!(name_of("ipam import/two maps/50000"), "two maps");
    }
}
