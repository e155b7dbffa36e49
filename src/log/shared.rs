//! What the threads of one log share: the ring behind a short lock, and the signals between them.
//!
//! The lock is held for moments only and never across I/O, because completions of the disk engine take it. Poison is
//! final for this opening of the log: it is set once, and every later operation answers with it.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::SegmentRef;

use super::ring::Ring;

/// A wish to drop segments from the end, for the committer.
#[derive(Debug)]
pub(super) struct Rewind {
    pub(super) to: RewindTo,
    pub(super) reply: oneshot::Sender<Result<()>>,
}

/// How far.
#[derive(Debug, Clone, Copy)]
pub(super) enum RewindTo {
    /// Keep up to this segment.
    After(SegmentRef),
    /// Keep nothing; the next segment follows this one.
    Reset(SegmentRef),
}

/// What is behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) ring: Ring,
    /// Epoch of records that are appended now.
    pub(super) epoch: u64,
    pub(super) rewind: Option<Rewind>,
    /// No more appends come: the committer ends when all is durable.
    pub(super) closing: bool,
    poison: Option<(ErrorKind, String)>,
    landed: Option<watch::Sender<SegmentRef>>,
}

/// One open log. It does not own the file: completions hold it, and must not be the ones that close the file.
pub(super) struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    work: Condvar,
    changed: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(path: PathBuf, ring: Ring, epoch: u64) -> Shared {
        let landed = Some(watch::Sender::new(ring.synced().last));
        let state = State { ring, epoch, rewind: None, closing: false, poison: None, landed };
        Shared { path, state: Mutex::new(state), work: Condvar::new(), changed: watch::Sender::new(0) }
    }

    /// Where the log is, for messages.
    pub(super) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The state, as it is also after poison.
    pub(super) fn peek(&self) -> MutexGuard<'_, State> {
        // A thread that panicked inside left the ring as it was between two of its operations, or poisoned by `guard`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state.
    ///
    /// # Errors
    /// The poison, if there is one.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.peek();
        match &state.poison {
            None => Ok(state),
            Some((kind, why)) => Err(self.poisoned(*kind, why)),
        }
    }

    fn poisoned(&self, kind: ErrorKind, why: &str) -> Error {
        let path = self.path.display();
        Error::new(kind, format!("replication log {path} is not to be trusted until it is opened again: {why}"))
    }

    /// Ends all use of the log.
    pub(super) fn poison(&self, error: &Error) {
        let mut state = self.peek();
        if state.poison.is_none() {
            tracing::error!(log = %self.path.display(), %error, "replication log poisoned");
            state.poison = Some((error.kind(), error.to_string()));
        }
        // Whoever waits learns it: receivers of a dropped sender see an error.
        state.landed = None;
        state.rewind = None;
        drop(state);
        self.signal();
    }

    /// Something changed that others may wait for.
    pub(super) fn signal(&self) {
        self.work.notify_all();
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Waits on the committer's side for a signal.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.work.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Shared::wait`], for a limited time.
    pub(super) fn wait_for<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.work.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// For waiting on the callers' side: subscribe, look at the state, then wait for a change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Follows what is durable; ends with an error when the log is poisoned or closed.
    pub(super) fn landed(&self) -> Result<watch::Receiver<SegmentRef>> {
        let state = self.lock()?;
        let sender = state.landed.as_ref().ok_or_else(|| Error::new(ErrorKind::Cancelled, "the log is closed"))?;
        Ok(sender.subscribe())
    }

    /// Poisons the log when the thread that holds the guard panics, so that nobody waits for it for ever.
    pub(super) fn guard(&self) -> Guard<'_> {
        Guard(self)
    }
}

impl State {
    /// Whether the log is not to be used any more.
    pub(super) fn is_poisoned(&self) -> bool {
        self.poison.is_some()
    }

    /// Tells those who follow what is durable.
    pub(super) fn publish(&self) {
        if let Some(landed) = &self.landed {
            let now = self.ring.synced().last;
            landed.send_if_modified(|value| std::mem::replace(value, now) != now);
        }
    }
}

/// See [`Shared::guard`].
pub(super) struct Guard<'a>(&'a Shared);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poison(&Error::new(ErrorKind::Internal, "a thread of the log panicked"));
        }
    }
}
