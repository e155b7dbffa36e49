//! Taking a kernel lock (flock) that a starting child may hold for a moment.
//!
//! A process that forks shares its locks with the child until the child runs its own program. A lock that was just
//! released can so look taken for some milliseconds; one that is really taken stays so.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Tries, and the pause between two: half a second in all.
const TRIES: usize = 25;
const PAUSE: Duration = Duration::from_millis(20);

/// Takes the lock; `operation` is one that does not wait. `WOULDBLOCK` where another process really holds it.
pub(crate) fn take_lock(file: impl AsFd, operation: FlockOperation) -> Result<(), Errno> {
    for _ in 1..TRIES {
        match flock(file.as_fd(), operation) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            settled => return settled,
        }
    }
    flock(file.as_fd(), operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_let_go_meanwhile_is_taken_and_one_that_stays_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = file.reopen().unwrap();
        take_lock(&first, FlockOperation::NonBlockingLockExclusive).unwrap();
        let second = file.reopen().unwrap();
        assert_eq!(take_lock(&second, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
        let soon = std::thread::spawn(move || {
            std::thread::sleep(PAUSE * 3);
            drop(first);
        });
        take_lock(&second, FlockOperation::NonBlockingLockExclusive).unwrap();
        soon.join().unwrap();
    }
}
