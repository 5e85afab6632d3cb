//! Classes: their ids, sorted, number the labels.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use shards::ClassName;

use super::error::{Error, Result};

/// Class ids with their label and name.
#[derive(Debug, Clone)]
pub(crate) struct Classes {
    by_id: BTreeMap<String, (i32, String)>,
    /// Where the ids come from, for the error about one that is not among them.
    origin: String,
}

impl Classes {
    /// The classes that a source has; names are ids.
    pub fn found<'a>(ids: impl Iterator<Item = &'a str>) -> Result<Self> {
        let ids: BTreeSet<&str> = ids.collect();
        Self::numbered(
            ids.into_iter()
                .map(|id| (id.to_owned(), id.to_owned()))
                .collect(),
            "the source".into(),
        )
    }

    /// The classes of a file with a line `id<TAB or space>name` each. They are all classes there are, so that
    /// a source that lacks some of them (a sample, a validation split) has the same labels.
    ///
    /// # Errors
    /// [`Error::Read`], and [`Error::List`] for a line without a name or an id that occurs twice.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_path_buf(),
            source,
        })?;
        let mut names = BTreeMap::new();
        for (number, line) in (1..)
            .zip(text.lines())
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let wrong = |reason| Error::List {
                path: path.to_path_buf(),
                line: number,
                reason,
            };
            let split = line
                .split_once('\t')
                .or_else(|| line.trim_start().split_once(' '));
            let (id, name) = split
                .map(|(id, name)| (id.trim(), name.trim()))
                .filter(|(id, name)| !id.is_empty() && !name.is_empty())
                .ok_or_else(|| {
                    wrong(format!(
                        "'{line}' is not a class id, a tab or space, and a name"
                    ))
                })?;
            if names.insert(id.to_owned(), name.to_owned()).is_some() {
                return Err(wrong(format!("class '{id}' occurs twice")));
            }
        }
        Self::numbered(names, path.display().to_string())
    }

    /// The classes `0..n` of a list that numbers them itself.
    pub fn counted(n: u32) -> Result<Self> {
        let by_id = (0..n).map(|label| {
            Ok((
                label.to_string(),
                (to_label(label as usize)?, label.to_string()),
            ))
        });
        Ok(Self {
            by_id: by_id.collect::<Result<_>>()?,
            origin: "the list".into(),
        })
    }

    fn numbered(names: BTreeMap<String, String>, origin: String) -> Result<Self> {
        let number = |(index, (id, name))| Ok((id, (to_label(index)?, name)));
        let by_id = names
            .into_iter()
            .enumerate()
            .map(number)
            .collect::<Result<_>>()?;
        Ok(Self { by_id, origin })
    }

    /// The label of a class.
    ///
    /// # Errors
    /// [`Error::Classes`] if there is no such class.
    pub fn label(&self, id: &str) -> Result<i32> {
        let known = self.by_id.get(id).map(|(label, _)| *label);
        known.ok_or_else(|| {
            Error::Classes(format!(
                "the source has a class '{id}', which is none of the {} in {}",
                self.by_id.len(),
                self.origin
            ))
        })
    }

    /// Ids and names in the order of their labels.
    pub fn into_names(self) -> Vec<ClassName> {
        let mut classes: Vec<(i32, ClassName)> = self
            .by_id
            .into_iter()
            .map(|(id, (label, name))| (label, ClassName { id, name }))
            .collect();
        classes.sort_by_key(|(label, _)| *label);
        classes.into_iter().map(|(_, class)| class).collect()
    }
}

fn to_label(index: usize) -> Result<i32> {
    i32::try_from(index).map_err(|_| Error::Classes(format!("{index} classes are too many")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_numbers_its_classes_by_sorted_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names.txt");
        std::fs::write(
            &path,
            "n02 great white shark, man-eater\n\nn01\ttench, Tinca tinca\r\n",
        )
        .unwrap();
        let classes = Classes::read(&path).unwrap();
        assert_eq!(classes.label("n02").unwrap(), 1);
        assert!(
            classes
                .label("n03")
                .unwrap_err()
                .to_string()
                .contains("n03")
        );
        let names = classes.into_names();
        assert_eq!(
            names[0],
            ClassName {
                id: "n01".into(),
                name: "tench, Tinca tinca".into()
            }
        );
        assert_eq!(names[1].name, "great white shark, man-eater");
        std::fs::write(&path, "n01 a\nn01 b\n").unwrap();
        assert!(
            Classes::read(&path)
                .unwrap_err()
                .to_string()
                .contains("line 2")
        );
        std::fs::write(&path, "n01\n").unwrap();
        assert!(Classes::read(&path).is_err());
    }

    #[test]
    fn counted_classes_stay_in_the_order_of_their_numbers() {
        let names = Classes::counted(12).unwrap().into_names();
        assert_eq!(names[2].id, "2");
        assert_eq!(names[11].id, "11");
    }
}
