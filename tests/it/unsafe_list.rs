//! The list of `unsafe` code in `docs/reliability.md` is whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How often the keyword stands in each source file, comments left out.
fn counted() -> BTreeMap<String, usize> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut counts = BTreeMap::new();
    let mut folders: Vec<PathBuf> = ["src", "shards", "pipeline", "trainer", "tests"]
        .map(|folder| root.join(folder))
        .to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // What cargo builds of the crates outside of the workspace.
                if !path.ends_with("target") {
                    folders.push(path);
                }
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.lines().map(|line| line.split("//").next().unwrap());
            let words =
                code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
            let keyword = concat!("un", "safe"); // this file has none
            let n = words.filter(|word| *word == keyword).count();
            if n > 0 {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                counts.insert(name.to_owned(), n);
            }
        }
    }
    counts
}

/// Rows `| file | count | reason |` of the document.
fn listed() -> BTreeMap<String, usize> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reliability.md");
    let text = fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let file = cells.next()?.trim_matches('`').to_owned();
        let count = cells.next()?.parse().ok()?;
        let reason = cells.next()?;
        (file.ends_with(".rs") && !reason.is_empty()).then_some((file, count))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn every_use_of_the_keyword_is_listed_with_its_reason() {
    assert_eq!(listed(), counted());
}
