//! Files that are whole or not there, and survive a crash of the machine.

use std::fs::{self, File};
use std::path::Path;

use crate::error::{Error, Result};

/// Makes what a file holds, or the entries of a folder, survive a crash of the machine.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(Error::io(path))
}

/// Writes a file that survives a crash of the machine once its folder does.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(Error::io(path))?;
    sync(path)
}

/// Replaces a file in one go: a reader, and a kill, meet the old bytes or the new ones.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(".tmp");
    let temp = Path::new(&temp);
    write_durably(temp, bytes)?;
    fs::rename(temp, path).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_the_new_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.b");
        for text in [b"old".as_slice(), b"new"] {
            replace(&path, text).unwrap();
            assert_eq!(fs::read(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("none/a"), b"").is_err());
    }
}
