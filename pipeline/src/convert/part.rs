//! One machine's share of a conversion.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// Part `index` (from 0) of `count`: makes the shards whose number leaves `index` when divided by `count`.
/// Written with the index from 1, as `2/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Part {
    /// Which part, from 0.
    pub index: u64,
    /// How many there are.
    pub count: u64,
}

impl Part {
    /// The only part there is.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Whether this part makes a shard.
    pub fn has(&self, shard: u64) -> bool {
        shard % self.count == self.index
    }

    /// The part that this process is to make as one task of a job array, or `None` outside one.
    ///
    /// * Slurm (`sbatch --array=0-7` or `--array=1-8`): `SLURM_ARRAY_TASK_ID`, `SLURM_ARRAY_TASK_COUNT`, and
    ///   `SLURM_ARRAY_TASK_MIN` and `SLURM_ARRAY_TASK_STEP` (0 and 1 where unset), all set by Slurm.
    /// * Kubernetes (a Job with `completionMode: Indexed`): `JOB_COMPLETION_INDEX`, which Kubernetes sets, and
    ///   `JOB_COMPLETIONS`, which it does not: give it in the pod's `env` with the value of `completions`.
    ///
    /// # Errors
    /// [`Error::Environment`] if only some of the variables are set or they do not make a part.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// [`Part::from_env`] over any source of variables.
    ///
    /// # Errors
    /// As [`Part::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &'static str| -> Result<Option<u64>> {
            let Some(value) = lookup(name) else {
                return Ok(None);
            };
            match value.trim().parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Error::Environment {
                    name,
                    value,
                    expected: "expected a whole number",
                }),
            }
        };
        let needed = |name: &'static str, expected: &'static str| -> Result<u64> {
            number(name)?.ok_or(Error::Environment {
                name,
                value: String::new(),
                expected,
            })
        };
        if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
            let count = needed(
                "SLURM_ARRAY_TASK_COUNT",
                "not set, although SLURM_ARRAY_TASK_ID is",
            )?;
            let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
            let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
            let offset = id
                .checked_sub(first)
                .filter(|offset| offset % step == 0 && offset / step < count);
            return match offset {
                Some(offset) => Ok(Some(Self {
                    index: offset / step,
                    count,
                })),
                None => Err(Error::Environment {
                    name: "SLURM_ARRAY_TASK_ID",
                    value: id.to_string(),
                    expected: "expected a task of an array without gaps, as --array=0-7 makes it",
                }),
            };
        }
        if let Some(index) = number("JOB_COMPLETION_INDEX")? {
            let count = needed(
                "JOB_COMPLETIONS",
                "not set; give the Job's number of completions to its pods under this name",
            )?;
            if index >= count {
                return Err(Error::Environment {
                    name: "JOB_COMPLETION_INDEX",
                    value: index.to_string(),
                    expected: "expected less than JOB_COMPLETIONS",
                });
            }
            return Ok(Some(Self { index, count }));
        }
        Ok(None)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (index, count) = text.split_once('/')?;
            let (index, count) = (
                index.trim().parse::<u64>().ok()?,
                count.trim().parse::<u64>().ok()?,
            );
            (1..=count).contains(&index).then(|| Self {
                index: index - 1,
                count,
            })
        };
        parse().ok_or_else(|| Error::Option {
            name: "part",
            value: text.into(),
            expected: "i/n with i from 1 to n, as in 2/8",
        })
    }
}

impl TryFrom<String> for Part {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Part> for String {
    fn from(part: Part) -> Self {
        part.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<Option<Part>> {
        Part::from_lookup(|name| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn written_from_one() {
        let part: Part = "2/8".parse().unwrap();
        assert_eq!(part, Part { index: 1, count: 8 });
        assert_eq!(part.to_string(), "2/8");
        for text in ["", "0/2", "3/2", "1", "a/b", "1/0", "-1/2"] {
            assert!(text.parse::<Part>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_shard_is_one_parts() {
        for shard in 0..20 {
            let owners = (0..3)
                .filter(|&index| Part { index, count: 3 }.has(shard))
                .count();
            assert_eq!(owners, 1);
        }
        assert!((0..20).all(|shard| Part::WHOLE.has(shard)));
    }

    #[test]
    fn a_slurm_array_from_any_first_number() {
        assert_eq!(from(&[]).unwrap(), None);
        let vars = [
            ("SLURM_ARRAY_TASK_ID", "3"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
        ];
        assert_eq!(from(&vars).unwrap(), Some(Part { index: 2, count: 4 }));
        let stepped = [
            ("SLURM_ARRAY_TASK_ID", "6"),
            ("SLURM_ARRAY_TASK_MIN", "0"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
            ("SLURM_ARRAY_TASK_STEP", "2"),
        ];
        assert_eq!(from(&stepped).unwrap(), Some(Part { index: 3, count: 4 }));
        let gap = [
            ("SLURM_ARRAY_TASK_ID", "9"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_ARRAY_TASK_COUNT", "2"),
        ];
        assert!(from(&gap).unwrap_err().to_string().contains("without gaps"));
        assert!(from(&[("SLURM_ARRAY_TASK_ID", "x")]).is_err());
        let message = from(&[("SLURM_ARRAY_TASK_ID", "1")])
            .unwrap_err()
            .to_string();
        assert!(message.contains("SLURM_ARRAY_TASK_COUNT"), "{message}");
    }

    #[test]
    fn a_kubernetes_index_needs_the_number_of_completions() {
        let vars = [("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "5")];
        assert_eq!(from(&vars).unwrap(), Some(Part { index: 0, count: 5 }));
        assert!(
            from(&vars[..1])
                .unwrap_err()
                .to_string()
                .contains("JOB_COMPLETIONS")
        );
        assert!(from(&[("JOB_COMPLETION_INDEX", "5"), ("JOB_COMPLETIONS", "5")]).is_err());
    }
}
