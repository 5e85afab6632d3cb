//! Names of samples, which are handed out for every visit and so must not be copied.

use std::borrow::Cow;
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

/// A name as it may be shown, on one line: control characters, which could steer a terminal, are escaped.
pub fn printable(name: &str) -> Cow<'_, str> {
    if !name.contains(char::is_control) {
        return name.into();
    }
    let mut shown = String::with_capacity(name.len() + 8);
    for character in name.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_control_characters() {
        assert_eq!(printable("a/Größe.jpg"), "a/Größe.jpg");
        assert_eq!(printable("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable("a\u{9b}b\\"), "a\\u{9b}b\\");
    }
}
