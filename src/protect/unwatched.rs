//! A note on an image itself that it was written to while its bitmap could not be: where the log store fails, it is the
//! one place left that the next start looks at. So is one whose guest runs on other disks than those that are served.
//!
//! Owns the note, an extended attribute. Invariant: it is durable before the first such write is made, where that is ours to
//! make, and goes only after all of the disk is marked again. Block devices and some file systems have no place for it; then that is told.

use std::fs::File;
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::error::{Error, IoResultExt, Result};

/// Its name; what counts is that it is there.
const NAME: &str = "user.freshet.unwatched";

/// Makes the note, durably. Blocks.
///
/// # Errors
/// `Unsupported` or what the file system says.
pub(crate) fn note(image: &Path) -> Result<()> {
    let context = || format!("note on {} that it is written to unwatched", image.display());
    setxattr(image, NAME, b"1", XattrFlags::empty()).map_err(|e| Error::io(context(), e.into()))?;
    // Buys: the note is there after a power cut that the write after it survives.
    File::open(image).and_then(|file| file.sync_all()).io_context(context)
}

/// Whether there is one.
///
/// # Errors
/// What the file system says.
pub(crate) fn is_noted(image: &Path) -> Result<bool> {
    let mut value = [0_u8; 16];
    match getxattr(image, NAME, &mut value[..]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(e) => Err(Error::io(format!("look for a note on {}", image.display()), e.into())),
    }
}

/// Takes it away. That it stays costs one more comparison.
pub(crate) fn clear(image: &Path) {
    if let Err(error) = removexattr(image, NAME) {
        tracing::warn!("take the note off {}: {error}", image.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_there_until_it_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "x").unwrap();
        assert!(!is_noted(&path).unwrap());
        note(&path).unwrap();
        note(&path).unwrap();
        assert!(is_noted(&path).unwrap());
        clear(&path);
        clear(&path);
        assert!(!is_noted(&path).unwrap());
        assert!(note(&dir.path().join("none")).is_err() && is_noted(&dir.path().join("none")).is_err());
    }
}
