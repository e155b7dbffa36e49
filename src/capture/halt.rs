//! How the stages of a replication stop together: the first error, or the operator's wish, seen by all threads.
//!
//! Invariant: the first error stays; later ones are its consequences and are dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
struct Shared {
    failed: AtomicBool,
    first: Mutex<Option<Error>>,
}

/// Set once by whoever fails first. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Halt {
    cancel: Cancel,
    shared: Arc<Shared>,
}

impl Halt {
    /// Not set, unless `cancel` is.
    pub(crate) fn new(cancel: Cancel) -> Halt {
        Halt { cancel, shared: Arc::default() }
    }

    /// Stops all work because of `error`.
    pub(crate) fn fail(&self, error: Error) {
        let mut first = self.shared.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() && !self.shared.failed.load(Ordering::Acquire) {
            *first = Some(error);
        }
        self.shared.failed.store(true, Ordering::Release);
    }

    /// Whether to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire) || self.cancel.is_cancelled()
    }

    /// Fails once the work is stopped; the reason is left for [`Halt::outcome`].
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_set() {
            true => Err(Error::new(ErrorKind::Cancelled, "stopped; run it again to go on")),
            false => Ok(()),
        }
    }

    /// The first error, once; then, and where there was none, whether the operator asked to stop.
    pub(crate) fn outcome(&self) -> Result<()> {
        let first = self.shared.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.map_or_else(|| self.cancel.check(), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_first_error_is_told_and_a_cancel_is_seen() {
        let cancel = Cancel::new();
        let halt = Halt::new(cancel.clone());
        assert!(!halt.is_set() && halt.outcome().is_ok());
        let other = halt.clone();
        other.fail(Error::new(ErrorKind::Io, "first"));
        halt.fail(Error::new(ErrorKind::Full, "second"));
        assert!(halt.is_set());
        assert_eq!(halt.outcome().unwrap_err().to_string(), "first");
        let asked = Halt::new(cancel.clone());
        cancel.cancel();
        assert!(asked.is_set());
        assert_eq!(asked.outcome().unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
