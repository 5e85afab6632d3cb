//! Which version of its format a file is of.

use serde_json::Value;

/// A file of another format than the one that this program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "has format {found}, expected {known}{}",
    if self.is_newer() { ": a newer version of this program wrote it" } else { "" }
)]
pub struct OtherFormat {
    /// Its version.
    pub found: u64,
    /// The version that is read.
    pub known: u32,
}

impl OtherFormat {
    /// Compares a file's version with the one that is read.
    ///
    /// # Errors
    /// The two, if they are not the same.
    pub fn check(found: u64, known: u32) -> Result<(), Self> {
        match found == u64::from(known) {
            true => Ok(()),
            false => Err(OtherFormat { found, known }),
        }
    }

    /// The same for the `format` of a JSON object. Comes before the object itself is read, which may have fields in a later
    /// format that this program would call unknown; so what is no object, or has no such number, is left to that reader.
    ///
    /// # Errors
    /// As [`OtherFormat::check`].
    pub fn check_json(text: &[u8], known: u32) -> Result<(), Self> {
        let value: Value = serde_json::from_slice(text).unwrap_or_default();
        let format = value.get("format").and_then(Value::as_u64);
        format.map_or(Ok(()), |format| Self::check(format, known))
    }

    /// Whether a later version of this program can be expected to read the file.
    pub fn is_newer(&self) -> bool {
        self.found > u64::from(self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_called_so() {
        let newer = OtherFormat::check(2, 1).unwrap_err();
        assert_eq!(
            newer.to_string(),
            "has format 2, expected 1: a newer version of this program wrote it"
        );
        let older = OtherFormat::check(0, 1).unwrap_err().to_string();
        assert_eq!(older, "has format 0, expected 1");
        assert_eq!(OtherFormat::check(1, 1), Ok(()));
        let json = |text: &str| OtherFormat::check_json(text.as_bytes(), 1);
        assert_eq!(json(r#"{"a": {}, "format": 2}"#), Err(newer));
        for readers_business in [r#"{"format": 1}"#, "{}", "[2]", "{", r#"{"format": "2"}"#] {
            assert_eq!(json(readers_business), Ok(()));
        }
    }
}
