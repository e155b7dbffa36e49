//! Progress of one operation: counts that only grow, set by the work and read by whoever shows them.
//!
//! It never guesses: rates and ETA are derived by the reader from counts and time. Invariants: `done` counts unique live
//! bytes, each once however often it was fetched; it never falls, and never passes `total` once the total is known.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ids::{SegmentNo, Time};

/// Counts of one operation. Shared; all methods are cheap.
#[derive(Debug, Default)]
pub struct Progress {
    stage: Mutex<&'static str>,
    total: AtomicU64,
    done: AtomicU64,
    moved: AtomicU64,
    landed: Mutex<Option<Stand>>,
    applied: Mutex<Option<Stand>>,
    unapplied: AtomicU64,
    trouble: Mutex<Option<String>>,
    notes: Mutex<Vec<String>>,
}

/// A point that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stand {
    /// Its number.
    pub point: SegmentNo,
    /// Its time.
    pub time: Time,
}

/// What [`Progress`] stood at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// What is being done now, in a few words.
    pub stage: &'static str,
    /// Unique live bytes in all; 0 while not known.
    pub total: u64,
    /// Unique live bytes that are done.
    pub done: u64,
    /// Bytes moved to or from the storage site.
    pub moved: u64,
    /// The last point up to which the log is durable; only where a log is used.
    pub landed: Option<Stand>,
    /// The last point that the disks equal.
    pub applied: Option<Stand>,
    /// Bytes of the log that are in use: what landed and is not applied.
    pub unapplied: u64,
    /// What the work waits for that should not be so, such as a storage site that does not answer.
    pub trouble: Option<String>,
}

/// Most notes that wait to be shown; further ones are dropped, since the report holds them too.
const MAX_NOTES: usize = 1000;

impl Progress {
    /// Nothing done yet.
    pub fn new() -> Progress {
        Progress::default()
    }

    /// A new stage began.
    pub fn stage(&self, stage: &'static str) {
        *lock(&self.stage) = stage;
    }

    /// More bytes belong to the work.
    pub fn add_total(&self, bytes: u64) {
        self.total.fetch_add(bytes, Relaxed);
    }

    /// More bytes are done.
    pub fn add_done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    /// More bytes went over the wire.
    pub fn add_moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
    }

    /// The log is durable up to this point; told of an earlier one than before, nothing changes.
    pub fn landed(&self, point: SegmentNo, time: Time) {
        let mut landed = lock(&self.landed);
        if landed.is_none_or(|before| before.point < point) {
            *landed = Some(Stand { point, time });
        }
    }

    /// The disks equal this point.
    pub fn applied(&self, point: SegmentNo, time: Time) {
        *lock(&self.applied) = Some(Stand { point, time });
    }

    /// Nothing has landed that counts: a take-over cut it off.
    pub fn cut_off(&self) {
        *lock(&self.landed) = None;
    }

    /// Bytes of the log that are in use.
    pub fn unapplied(&self, bytes: u64) {
        self.unapplied.store(bytes, Relaxed);
    }

    /// What the work waits for; `None` once it goes on.
    pub fn trouble(&self, why: Option<String>) {
        *lock(&self.trouble) = why;
    }

    /// Something to tell at once, such as a point that was applied or a range that is damaged.
    pub fn note(&self, text: impl Into<String>) {
        let mut notes = lock(&self.notes);
        if notes.len() < MAX_NOTES {
            notes.push(text.into());
        }
    }

    /// Takes the notes that were not shown yet.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.notes))
    }

    /// Where it stands.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            stage: *lock(&self.stage),
            total: self.total.load(Relaxed),
            done: self.done.load(Relaxed),
            moved: self.moved.load(Relaxed),
            landed: *lock(&self.landed),
            applied: *lock(&self.applied),
            unapplied: self.unapplied.load(Relaxed),
            trouble: lock(&self.trouble).clone(),
        }
    }
}

/// What is behind these locks is whole at any moment, so that a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
