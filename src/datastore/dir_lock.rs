//! Exclusive use of a directory by one process.
//!
//! The lock is the kernel's (flock), so it ends with the process however that ends. The file tells who holds it, for
//! the message that a second process shows.

use std::fs::OpenOptions;
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::{FileLock, take_lock};
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Held as long as this lives.
#[derive(Debug)]
pub struct DirLock {
    _lock: FileLock,
}

impl DirLock {
    /// Takes the lock `dir/lock`.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] where another process holds it.
    pub fn take(dir: &Path) -> Result<DirLock> {
        let path = dir.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.io_context(|| format!("open {}", path.display()))?;
        let lock = match take_lock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => lock,
            Err((rustix::io::Errno::WOULDBLOCK, file)) => {
                let mut holder = String::new();
                let _ = file.take(100).read_to_string(&mut holder);
                let why = format!("{} is in use by another freshet ({})", dir.display(), holder.trim());
                return Err(Error::new(ErrorKind::Refused, why));
            }
            Err((e, _)) => return Err(Error::io(format!("lock {}", path.display()), e.into())),
        };
        let mut file = lock.file();
        file.set_len(0).and_then(|()| file.rewind()).io_context(|| format!("write {}", path.display()))?;
        // Only for the message of a second process; the lock does not depend on it.
        let _ = writeln!(file, "process {}", std::process::id());
        Ok(DirLock { _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_who_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        let refused = DirLock::take(dir.path()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        DirLock::take(dir.path()).unwrap();
    }
}
