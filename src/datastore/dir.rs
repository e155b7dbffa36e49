//! Directories: their entries made durable.

use std::fs::File;
use std::path::Path;

use crate::error::{IoResultExt, Result};

/// Makes the entries of directory `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let doing = || format!("sync directory {}", dir.display());
    File::open(dir).io_context(doing)?.sync_all().io_context(doing)
}
