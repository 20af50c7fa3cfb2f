//! That the tables of scenarios in `docs/conformance.md` name tests that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Where the cases of the conformance suite are.
const CASES: &str = "lb-testkit/src/conformance/cases";

#[test]
fn every_scenario_has_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/conformance.md")).expect("the page is in the repository");
    let (mut rows, mut names, mut missing) = (0, 0, Vec::new());
    let mut known: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| ") && line.contains("::")) {
        rows += 1;
        for name in row.split('`').skip(1).step_by(2).filter(|name| name.contains("::")) {
            names += 1;
            let (package, test) = name.split_once("::").expect("filtered above");
            let directory = if package == "conformance" { CASES } else { package };
            let tests = known.entry(directory).or_insert_with(|| tests(&root.join(directory)));
            if !tests.contains(test) {
                missing.push(name.to_owned());
            }
        }
    }
    assert!(rows > 50 && names > rows, "{rows} scenarios with {names} tests");
    assert_eq!(missing, [""; 0], "tests that docs/conformance.md names");
}

/// Names of all tests and cases below a directory.
fn tests(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).expect("a package of the workspace").map_while(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                found.append(&mut tests(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("Rust is UTF-8");
            found.append(&mut tests_of(&text));
        }
    }
    found
}

/// Functions with the attribute `test`, and the names in lists of cases.
fn tests_of(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut is_test = false;
    let mut is_list = false;
    for line in text.lines().map(str::trim) {
        is_list = (is_list || line.contains(" cases![")) && !line.starts_with("];");
        if is_list {
            found.extend(line.strip_suffix(',').map(str::to_owned));
        }
        match line.strip_prefix("fn ") {
            Some(function) if is_test => found.extend(function.split('(').next().map(str::to_owned)),
            _ if line == "#[test]" || (is_test && line.starts_with("#[")) => {
                is_test = true;
                continue;
            }
            _ => {}
        }
        is_test = false;
    }
    found
}

#[test]
fn tests_are_told_from_other_functions() {
    let text = "#[test]\nfn a() {}\nfn b() {}\nmod tests {\n    #[test]\n    #[ignore = \"root\"]\n    fn c(\n    x in y(),\n    ) {}\n}\n\
                const CASES: [Case; 2] = cases![3 nodes:\n    d,\n    e,\n];\nfn f() {}\n";
    assert_eq!(tests_of(text), ["a", "c", "d", "e"].map(str::to_owned).into());
}
