//! Names of samples, which are handed out for every visit and so must not be copied.

use std::fmt;
use std::ops::{Deref, Range};

use bytes::Bytes;

/// The name of an image or clip. A clone shares its memory, as do all names of one index.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Bytes);

impl Name {
    /// A part of a text, which must begin and end between characters.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        Name(self.0.slice(range))
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Name(text.into())
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        // Made of texts alone, and cut where they may be cut.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
