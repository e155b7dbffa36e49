//! A block device over a file, where this machine lets one be made.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::real_images::{find, run, tool};

/// Detached with this.
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    owner: (u32, u32),
}

impl Loop {
    /// A device with the bytes of `file`; `None` where there can be none.
    pub(crate) fn over(file: &Path) -> Option<Loop> {
        find("losetup")?;
        let made = tool("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let device = PathBuf::from(String::from_utf8(made.stdout).ok()?.trim());
        let there = std::fs::metadata(&device).ok().filter(|_| made.status.success())?;
        Some(Loop { device, owner: (there.uid(), there.gid()) })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A hypervisor that was killed has not given it back.
        let _ = std::os::unix::fs::chown(&self.device, Some(self.owner.0), Some(self.owner.1));
        run(tool("losetup").arg("--detach").arg(&self.device));
    }
}
