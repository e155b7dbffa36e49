//! Kernel locks (flock): taken with a short wait, and let go at once.
//!
//! A lock belongs to the open file, not to the process or the descriptor. A child that another thread is just starting
//! has copies of all descriptors from its fork until it runs its own program (they are close-on-exec), so a lock whose
//! holder merely closes its file stays taken until that child has come so far: some milliseconds on a busy machine.
//! Hence two halves, each for what the other cannot do:
//!
//! * A [`FileLock`] that is dropped is unlocked, which counts for all copies, and not only closed. Whoever lets go of a
//!   lock can take it again at once, whatever other threads start meanwhile.
//! * A process that dies unlocks nothing: the kernel closes its files a moment later, and a child that it was just
//!   starting later still. A program that is killed and started again at once must not be told that another one is at
//!   work, so [`take_lock`] waits for half a second before it believes that. Longer would help nobody: who really
//!   holds a lock holds it for minutes.

use std::fs::File;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Tries, and the pause between two: half a second in all.
const TRIES: usize = 25;
const PAUSE: Duration = Duration::from_millis(20);

/// An open file with a lock on it, both as long as this lives.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Where it fails, closing the file does the same a little later.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes the lock; `operation` is one that does not wait. Fails with `WOULDBLOCK` where another holder has it and keeps
/// it; gives the file back then.
pub(crate) fn take_lock(file: File, operation: FlockOperation) -> Result<FileLock, (Errno, File)> {
    for _ in 1..TRIES {
        match flock(&file, operation) {
            Ok(()) => return Ok(FileLock(file)),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            Err(e) => return Err((e, file)),
        }
    }
    match flock(&file, operation) {
        Ok(()) => Ok(FileLock(file)),
        Err(e) => Err((e, file)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::{Child, Command};

    use super::*;

    const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn is_free(path: &Path) -> bool {
        let file = open(path);
        // Let go by word: other tests of this process start children, too.
        flock(&file, EXCLUSIVE).is_ok() && flock(&file, FlockOperation::Unlock).is_ok()
    }

    /// A child that has been forked and does not get to run its program before `finish`.
    struct Starting {
        child: std::thread::JoinHandle<()>,
        go: std::io::PipeWriter,
    }

    impl Starting {
        fn begin() -> Starting {
            let (go_on, go) = std::io::pipe().unwrap();
            let (mut forked, tell) = std::io::pipe().unwrap();
            let its_copy = go.as_raw_fd();
            let child = std::thread::spawn(move || {
                let (wait, said) = (go_on.as_raw_fd(), tell.as_raw_fd());
                let mut command = Command::new("true");
                // SAFETY: between fork and exec only close, write and read are called, all of which may be, on the
                // child's copies of descriptors that were open in this process at the fork.
                unsafe {
                    command.pre_exec(move || {
                        let mut byte = 0_u8;
                        // Its own copy of the end that it waits for: a test that fails ends the wait, too.
                        libc::close(its_copy);
                        libc::write(said, (&raw const byte).cast(), 1);
                        libc::read(wait, (&raw mut byte).cast(), 1);
                        Ok(())
                    });
                }
                assert!(command.status().unwrap().success());
                drop((go_on, tell));
            });
            forked.read_exact(&mut [0]).unwrap();
            Starting { child, go }
        }

        fn finish(mut self) {
            self.go.write_all(&[0]).unwrap();
            self.child.join().unwrap();
        }
    }

    #[test]
    fn a_lock_that_is_let_go_is_free_at_once_though_a_child_is_just_starting() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // What is guarded against: closing alone does not do it.
        let closed = open(file.path());
        flock(&closed, EXCLUSIVE).unwrap();
        let child = Starting::begin();
        drop(closed);
        assert!(!is_free(file.path()), "the starting child has no copy: the test does not show what it is for");
        child.finish();
        drop(take_lock(open(file.path()), EXCLUSIVE).unwrap());

        let lock = take_lock(open(file.path()), EXCLUSIVE).unwrap();
        let child = Starting::begin();
        assert!(!is_free(file.path()));
        drop(lock);
        assert!(is_free(file.path()), "the child still holds the lock");
        child.finish();
    }

    /// A process that holds the lock until it is killed.
    fn holder(path: &Path) -> Child {
        let file = open(path);
        flock(&file, EXCLUSIVE).unwrap();
        Command::new("sleep").arg("60").stdin(file).spawn().unwrap()
    }

    #[test]
    fn the_lock_of_a_killed_process_is_waited_for_and_that_of_a_living_one_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut child = holder(file.path());
        let (errno, back) = take_lock(open(file.path()), EXCLUSIVE).unwrap_err();
        assert_eq!(errno, Errno::WOULDBLOCK);
        // Not waited for: the kernel may not have got around to closing its files yet.
        child.kill().unwrap();
        take_lock(back, EXCLUSIVE).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_lock_that_is_let_go_meanwhile_is_taken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = take_lock(open(file.path()), EXCLUSIVE).unwrap();
        let soon = std::thread::spawn(move || {
            std::thread::sleep(PAUSE * 3);
            drop(first);
        });
        take_lock(open(file.path()), EXCLUSIVE).unwrap();
        soon.join().unwrap();
    }
}
