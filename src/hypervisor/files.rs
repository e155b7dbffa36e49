//! Small files that are written whole or not at all, and removed where they are there.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::{Error, IoResultExt, Result};

/// Replaces the file at `path`, with the permissions `mode`: after a crash it is the old one or the new one, and once this
/// has returned the new one.
///
/// # Errors
/// What writing or syncing says.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        // Whatever this process's mask took away.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().io_context(|| format!("write {}", path.display()))
}

/// Removes the file at `path`. One that is not there is no error.
///
/// # Errors
/// What removing it says otherwise.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(format!("remove {}", path.display()), e)),
        _ => Ok(()),
    }
}
