//! How a remote store is used. What it is and who may use it comes from the environment, see [`Environment`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Patience and memory of a remote store. A disk has no use for any of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreOptions {
    /// Longest wait for a connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Longest silence of the store in the middle of a request, in milliseconds; then the request is made again, for
    /// what is still missing. A stall costs this long.
    pub stall_timeout_ms: u64,
    /// Longest time in milliseconds that one read, or one part of a write, is tried again, before the store counts as
    /// gone.
    pub patience_ms: u64,
    /// The same for a store that has not answered once, where the address may be wrong, in milliseconds.
    pub first_patience_ms: u64,
    /// Gap between two parts of an object, in bytes, up to which both are fetched by one request with what lies between
    /// them. A request costs a round trip: at 30 ms and 100 MiB/s as much as 3 MiB.
    pub merge_gap_bytes: u64,
    /// Bytes that requests under way may bring together, over all threads; one that is larger waits to be alone.
    pub in_flight_bytes: u64,
    /// A read that has brought nothing after so many milliseconds is asked for once more, and the faster answer counts;
    /// 0: never. It costs what it fetches twice.
    pub hedge_after_ms: u64,
    /// Parts of an object that is written, in bytes. Buckets want at least 5 MiB, and at most 10 000 parts an object.
    pub part_bytes: usize,
    /// Parts on their way at the same time. A writer holds one part more in memory.
    pub parts_in_flight: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            connect_timeout_ms: 5_000,
            stall_timeout_ms: 5_000,
            patience_ms: 120_000,
            first_patience_ms: 10_000,
            merge_gap_bytes: 1 << 20,
            in_flight_bytes: 256 << 20,
            hedge_after_ms: 0,
            part_bytes: 8 << 20,
            parts_in_flight: 4,
        }
    }
}

/// Least bytes of a part that buckets take, except for the last one.
const MIN_PART_BYTES: usize = 5 << 20;

impl StoreOptions {
    /// Checks every value; opens nothing.
    ///
    /// # Errors
    /// [`Error::Option`] naming the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        let check = |holds: bool, name, value: u64, expected| match holds {
            true => Ok(()),
            false => Err(Error::Option {
                name,
                value: value.to_string(),
                expected,
            }),
        };
        let (connect, stall) = (self.connect_timeout_ms, self.stall_timeout_ms);
        check(connect > 0, "connect_timeout_ms", connect, "at least 1")?;
        check(stall > 0, "stall_timeout_ms", stall, "at least 1")?;
        let in_flight = self.in_flight_bytes;
        check(in_flight > 0, "in_flight_bytes", in_flight, "at least 1")?;
        check(
            self.part_bytes >= MIN_PART_BYTES,
            "part_bytes",
            self.part_bytes as u64,
            "at least 5242880 (5 MiB)",
        )?;
        check(
            self.parts_in_flight > 0,
            "parts_in_flight",
            self.parts_in_flight as u64,
            "at least 1",
        )
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(super) fn stall_timeout(&self) -> Duration {
        Duration::from_millis(self.stall_timeout_ms)
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms)
    }

    pub(super) fn first_patience(&self) -> Duration {
        Duration::from_millis(self.first_patience_ms).min(self.patience())
    }
}

/// The variables that say where stores are and who may use them.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process, as far as they are text.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        std::env::vars_os().filter_map(text).collect()
    }

    /// A variable that is set to something.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Whether a variable is set to `true`, `1`, `yes` or `on`.
    pub(super) fn is_on(&self, name: &str) -> bool {
        let is_on = |value: &str| {
            ["true", "1", "yes", "on"]
                .iter()
                .any(|on| value.eq_ignore_ascii_case(on))
        };
        self.get(name).is_some_and(is_on)
    }

    /// The variables whose names begin so, in order, and set to something.
    pub(super) fn beginning(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .filter(move |(name, value)| name.starts_with(prefix) && !value.is_empty())
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The folder of the user, if there is one.
    pub(super) fn home(&self) -> Option<PathBuf> {
        self.get("HOME")
            .or_else(|| self.get("USERPROFILE"))
            .map(PathBuf::from)
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Environment(variables.into_iter().collect())
    }
}

/// Names alone: values may be secrets.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
