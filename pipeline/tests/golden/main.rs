//! Agreement with the reference's golden numbers: sampling (part e) and resized crops (part f).
//!
//! The folder is `PAIRQUET_GOLDEN_DIR`, by default `shared/golden` beside the workspace. Every case a part's manifest
//! lists is run whatever its sizes, seeds and options; one that is not understood is a failure. An absent part is
//! skipped aloud.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which Clippy takes for production code

mod e_sampling;
mod f_resized_crop;
mod statistics;

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A part of the golden folder.
struct Part {
    dir: PathBuf,
    manifest: Value,
}

impl Part {
    /// Opens a part, or says aloud that it is skipped.
    fn open(name: &str) -> Option<Part> {
        let shared = std::env::var_os("PAIRQUET_SHARED_DIR").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
            PathBuf::from,
        );
        let golden = std::env::var_os("PAIRQUET_GOLDEN_DIR")
            .map_or_else(|| shared.join("golden"), PathBuf::from);
        let dir = golden.join(name);
        if !dir.join("manifest.json").is_file() {
            eprintln!(
                "SKIPPED: golden part {name}: no {}",
                dir.join("manifest.json").display()
            );
            return None;
        }
        let manifest = read_json(&dir.join("manifest.json"));
        Some(Part { dir, manifest })
    }

    /// The entries of the manifest's list of files.
    fn files(&self) -> &[Value] {
        array(&self.manifest["files"])
    }

    fn json(&self, file: &str) -> Value {
        read_json(&self.dir.join(file))
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        let path = self.dir.join(file);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn array(value: &Value) -> &[Value] {
    value
        .as_array()
        .unwrap_or_else(|| panic!("expected a list, found {value}"))
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("expected a number, found {value}"))
}

fn string(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("expected a text, found {value}"))
}

/// All whole numbers in a text, in order, with their signs.
fn whole_numbers(text: &str) -> Vec<i64> {
    let breaks = |c: char| !(c.is_ascii_digit() || c == '+' || c == '-');
    text.split(breaks)
        .filter_map(|word| word.parse().ok())
        .collect()
}
