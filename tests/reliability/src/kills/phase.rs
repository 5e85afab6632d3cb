//! What a killed job was at, by the files it left.

use std::path::Path;

use anyhow::Result;

use crate::outcome::read_tree;
use crate::program::Kind;

/// Whether a file or folder of this name is one that is being written, or removed.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(".pairquet-tmp-") || name.starts_with(".tmp-") || name.ends_with(".tmp")
}

/// What the job was at.
pub(super) fn phase(kind: Kind, out: &Path) -> Result<&'static str> {
    let paths: Vec<String> = read_tree(out)?.into_iter().map(|(path, _)| path).collect();
    let has = |what: &dyn Fn(&str) -> bool| paths.iter().any(|path| what(path));
    let temporary =
        |start: &str| has(&|path: &str| path.split('/').any(|name| name.starts_with(start)));
    let is_shard = |path: &str| path.ends_with(".parquet") && !path.starts_with('.');
    Ok(match kind {
        Kind::Convert if has(&|path| path == "manifest.json") => "behind the manifest",
        Kind::Convert if temporary(".pairquet-tmp-train-") => "in a shard or its record",
        Kind::Convert if temporary(".pairquet-tmp-") => "in a plan, report or manifest",
        Kind::Convert
            if has(&|path| {
                is_shard(path) && !paths.contains(&format!(".pairquet/{path}.json"))
            }) =>
        {
            "between a shard and its record"
        }
        Kind::Convert if has(&is_shard) => "between shards",
        Kind::Convert => "before the first shard",
        _ if temporary(".tmp-") => "in a checkpoint",
        _ if has(&|path| path.ends_with(".tmp")) => "in a file that is replaced",
        _ if !has(&|path| path.ends_with("config.toml")) => "before the first run",
        Kind::Compare if has(&|path| path == "results.csv") => "in the report",
        _ if !has(&|path| path.contains("checkpoints/step-")) => "before the first checkpoint",
        Kind::Compare => "between checkpoints, evaluating or between runs",
        _ => "between checkpoints",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_told_by_what_is_left() {
        for (kind, files, expected) in [
            (Kind::Convert, vec![], "before the first shard"),
            (
                Kind::Convert,
                vec![".pairquet-tmp-train-0.parquet.x"],
                "in a shard or its record",
            ),
            (
                Kind::Convert,
                vec!["train-0.parquet"],
                "between a shard and its record",
            ),
            (
                Kind::Convert,
                vec!["train-0.parquet", ".pairquet/train-0.parquet.json"],
                "between shards",
            ),
            (Kind::Convert, vec!["manifest.json"], "behind the manifest"),
            (Kind::Train, vec!["lock"], "before the first run"),
            (
                Kind::Train,
                vec!["config.toml"],
                "before the first checkpoint",
            ),
            (
                Kind::Train,
                vec!["config.toml", "checkpoints/.tmp-step-1/a"],
                "in a checkpoint",
            ),
            (
                Kind::Train,
                vec!["config.toml", "checkpoints/step-1/a"],
                "between checkpoints",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for file in &files {
                let path = dir.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            }
            assert_eq!(phase(kind, dir.path()).unwrap(), expected, "{files:?}");
        }
    }
}
