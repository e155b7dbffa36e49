//! File systems mounted for one test alone: in a mount namespace of its thread, gone with it, seen by nobody else.
//!
//! Programs that the thread starts see them too. Needs root, as CI has it.

use std::ffi::CString;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};

use super::skipped;

/// Runs `test` where it may mount; without root it is skipped, and that is said.
pub(crate) fn with_own_mounts(what: &str, test: impl FnOnce() + Send) {
    let run = || {
        // SAFETY: changes which mounts this thread sees, and nothing in memory.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return skipped(what, "a mount namespace of its own needs root");
        }
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        test();
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap());
}

/// Mounts a new file system of memory, `tmpfs` or `ramfs`, at a directory.
pub(crate) fn mount_memory(kind: &str, at: &Path, options: &str) {
    let data = CString::new(options).unwrap();
    mount("none", at, kind, MountFlags::empty(), data.as_c_str()).unwrap();
}

/// Gives a mounted tmpfs other limits, such as `size=64m`.
pub(crate) fn remount(at: &Path, options: &str) {
    mount_remount(at, MountFlags::empty(), options).unwrap();
}

/// Makes a mounted file system read-only, or writable again.
pub(crate) fn set_read_only(at: &Path, read_only: bool) {
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    // Busy while a file is open for writing, which who writes all the time has it now and then.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while let Err(error) = mount_remount(at, flags, "") {
        assert!(error == rustix::io::Errno::BUSY && std::time::Instant::now() < until, "{}: {error}", at.display());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
