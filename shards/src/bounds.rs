//! What a row group's statistics say of its labels and names, so that whoever looks for some need not read the others.

use std::ops::RangeInclusive;

use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::statistics::Statistics;

/// Between which values the labels and names of a row group lie, as far as its file says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    labels: Option<RangeInclusive<i64>>,
    /// Compared byte by byte, and not necessarily names themselves: writers shorten long ones.
    names: Option<RangeInclusive<Vec<u8>>>,
}

impl Bounds {
    /// From the chunks of a row group's columns, as far as it has them.
    pub(crate) fn of(
        label: Option<&ColumnChunkMetaData>,
        name: Option<&ColumnChunkMetaData>,
    ) -> Self {
        Bounds {
            labels: label.and_then(labels),
            names: name.and_then(names),
        }
    }

    /// Whether a row may have this label.
    pub fn may_have_label(&self, label: i32) -> bool {
        let label = i64::from(label);
        self.labels.as_ref().is_none_or(|all| all.contains(&label))
    }

    /// Whether a row may have one of these names.
    ///
    /// * `sorted`: byte by byte, as strings are.
    pub fn may_have_name(&self, sorted: &[String]) -> bool {
        let holds = |all: &RangeInclusive<Vec<u8>>| {
            let first = sorted.partition_point(|name| name.as_bytes() < all.start().as_slice());
            let first = sorted.get(first);
            first.is_some_and(|name| name.as_bytes() <= all.end().as_slice())
        };
        self.names.as_ref().is_none_or(holds)
    }

    /// Whether a row may have a name that begins so.
    pub fn may_have_prefix(&self, prefix: &str) -> bool {
        let prefix = prefix.as_bytes();
        let holds = |all: &RangeInclusive<Vec<u8>>| {
            let first = &all.start()[..all.start().len().min(prefix.len())];
            first <= prefix && prefix <= all.end().as_slice()
        };
        self.names.as_ref().is_none_or(holds)
    }
}

fn labels(chunk: &ColumnChunkMetaData) -> Option<RangeInclusive<i64>> {
    let (least, greatest) = match chunk.statistics()? {
        Statistics::Int32(of) => (i64::from(*of.min_opt()?), i64::from(*of.max_opt()?)),
        Statistics::Int64(of) => (*of.min_opt()?, *of.max_opt()?),
        _ => return None,
    };
    // The other way round where they were compared as unsigned.
    (least <= greatest).then_some(least..=greatest)
}

fn names(chunk: &ColumnChunkMetaData) -> Option<RangeInclusive<Vec<u8>>> {
    let statistics = chunk.statistics()?;
    let has_all =
        chunk.column_descr().max_def_level() == 0 || statistics.null_count_opt() == Some(0);
    let Statistics::ByteArray(of) = statistics else {
        return None;
    };
    // The fields of old were compared as if bytes had signs. A row without a name is called by its place.
    if statistics.is_min_max_deprecated() || !has_all {
        return None;
    }
    Some(of.min_bytes_opt()?.to_vec()..=of.max_bytes_opt()?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_is_excluded_and_nothing_else() {
        let bounds = Bounds {
            labels: Some(3..=5),
            names: Some(b"cat/2".to_vec()..=b"dog".to_vec()),
        };
        assert_eq!(
            [2, 3, 5, 6].map(|n| bounds.may_have_label(n)),
            [false, true, true, false]
        );
        let names = ["cat/1", "cat/2", "cat/9", "dog", "dog/1", "cat", ""];
        let held = [false, true, true, true, false, false, false];
        assert_eq!(
            names.map(|name| bounds.may_have_name(&[name.to_owned()])),
            held
        );
        let held = [false, true, true, true, false, true, true];
        assert_eq!(names.map(|name| bounds.may_have_prefix(name)), held);
        let both = |names: [&str; 2]| bounds.may_have_name(&names.map(str::to_owned));
        assert!(both(["a", "cow"]) && both(["dig", "z"]) && !both(["a", "e"]));
        let unknown = Bounds::default();
        assert!(
            unknown.may_have_label(-1)
                && unknown.may_have_name(&["".to_owned()])
                && unknown.may_have_prefix("x")
        );
    }
}
