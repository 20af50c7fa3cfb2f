//! What the pages show is what the examples do: each of their Rust snippets is a part of an example, which is compiled
//! and run.

/// Pages, and the files that their snippets are from.
const PAGES: [(&str, &str, &[&str]); 3] = [
    ("README.md", include_str!("../../README.md"), &[EMBED]),
    (
        "docs/embedding.md",
        include_str!("../../docs/embedding.md"),
        &[EMBED, include_str!("../examples/tokio.rs"), include_str!("../src/lib.rs")],
    ),
    (
        "docs/writing-a-datapath.md",
        include_str!("../../docs/writing-a-datapath.md"),
        &[include_str!("../own-datapath/src/lib.rs"), include_str!("../own-datapath/tests/conformance.rs")],
    ),
];

const EMBED: &str = include_str!("../examples/embed.rs");

#[test]
fn every_snippet_is_part_of_an_example() {
    for (page, text, sources) in PAGES {
        let snippets = snippets(text);
        assert!(!snippets.is_empty(), "{page} has no snippet");
        for snippet in snippets {
            let is_part = sources.iter().any(|source| lines(source).windows(snippet.len()).any(|part| part == snippet));
            assert!(is_part, "{page}: this is in no example:\n{}", snippet.join("\n"));
        }
    }
}

/// The lines of each Rust snippet, without their indentation.
fn snippets(page: &str) -> Vec<Vec<&str>> {
    let fenced = page.split("```rust\n").skip(1);
    fenced.map(|rest| lines(rest.split("\n```").next().expect("a split has a first part"))).collect()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}
