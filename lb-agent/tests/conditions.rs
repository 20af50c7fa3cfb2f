//! The page for operators names every condition that an agent can have.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not what it should be")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Text like the name of a condition that is none: kinds of objects, types of services and names of types.
const NO_CONDITIONS: [&str; 5] = ["EndpointSlice", "ExternalName", "LoadBalancer", "ManifestDirectory", "NodePort"];

#[test]
fn the_page_for_operators_has_every_condition_and_no_other() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut in_code = BTreeSet::new();
    // The runner says what is wrong with drift.
    for file in ["src", "../lb-core/src/runner"].iter().flat_map(|below| rust_files(&directory.join(below))) {
        in_code.extend(conditions(&fs::read_to_string(file).unwrap()));
    }
    in_code.retain(|name| !NO_CONDITIONS.contains(&name.as_str()));
    let page = fs::read_to_string(directory.join("../docs/operations.md")).unwrap();
    let (_, table) = page.split_once("## Conditions").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let on_page: BTreeSet<String> = rows.map(Into::into).collect();
    let (untold, made_up): (Vec<_>, Vec<_>) =
        (in_code.difference(&on_page).collect(), on_page.difference(&in_code).collect());
    assert!(untold.is_empty(), "the table of conditions in docs/operations.md lacks {untold:?}");
    assert!(made_up.is_empty(), "the table of conditions in docs/operations.md has {made_up:?}, which no code has");
}

/// Names of conditions in the code of a file, without its tests.
fn conditions(code: &str) -> BTreeSet<String> {
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let texts = lines.flat_map(|line| line.split('"').skip(1).step_by(2).map(move |text| (line, text)));
    let found = texts.filter(|(line, text)| is_name(text) && (words(text) > 1 || makes_one(line, text)));
    found.map(|(_, text)| text.to_owned()).collect()
}

/// Whether it is in `CamelCase`.
fn is_name(text: &str) -> bool {
    let has_acronym = text.as_bytes().windows(2).any(|pair| pair.iter().all(u8::is_ascii_uppercase));
    let is_word = text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_alphabetic());
    is_word && !has_acronym && text.starts_with(|c: char| c.is_ascii_uppercase())
}

fn words(text: &str) -> usize {
    text.bytes().filter(u8::is_ascii_uppercase).count()
}

/// A single word may be anything: it is the name of a condition where a condition is made.
fn makes_one(line: &str, text: &str) -> bool {
    let made = ["set_problem(", "Condition::new(", "kind: ", "{ "].map(|before| format!("{before}\"{text}\""));
    let in_pair = format!("\"{text}\", ");
    let begins_pair = line.trim_start().starts_with(&in_pair) || line.contains(&format!("({in_pair}"));
    begins_pair || line.contains(&format!(", {in_pair}")) || made.iter().any(|made| line.contains(made))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn names_of_conditions_are_told_from_other_texts() {
    let code = "set_problem(\"Devices\", x); Condition::new(\"Drift\", y); (name, \"Shadowed\", z)\n\
                // \"NotThis\"\nlet a = \"Hello\"; let b = \"TwoWords\"; const C: &str = \"SCREAM\";\n\
                #[cfg(test)]\nmod tests { \"NorThat\" }";
    assert_eq!(conditions(code), ["Devices", "Drift", "Shadowed", "TwoWords"].map(String::from).into());
}
