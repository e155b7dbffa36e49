//! What a disk's file looks like from outside: enough to notice that somebody else changed it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{IoResultExt, Result};
use crate::format::FileStamp;
use crate::ids::DiskId;

/// What the file of `disk` at `path` looks like now.
///
/// # Errors
/// Where it cannot be looked at.
pub(crate) fn stamp(disk: DiskId, path: &Path) -> Result<FileStamp> {
    let meta = std::fs::metadata(path).io_context(|| format!("look at {}", path.display()))?;
    let seconds = u64::try_from(meta.mtime()).unwrap_or(0);
    let nanos = u32::try_from(meta.mtime_nsec()).unwrap_or(0);
    Ok(FileStamp { disk, inode: meta.ino(), changed: (seconds, nanos), len: meta.len() })
}
