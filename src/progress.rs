//! Progress of one operation: counts that only grow, set by the work and read by whoever shows them.
//!
//! It never guesses: rates and ETA are derived by the reader from counts and time. Invariants: `done` counts unique live
//! bytes, each once however often it was fetched; it never falls, and never passes `total` once the total is known.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of one operation. Shared; all methods are cheap.
#[derive(Debug, Default)]
pub struct Progress {
    stage: Mutex<&'static str>,
    total: AtomicU64,
    done: AtomicU64,
    moved: AtomicU64,
    notes: Mutex<Vec<String>>,
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
        *self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = stage;
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

    /// Something to tell at once, such as a point that was applied or a range that is damaged.
    pub fn note(&self, text: impl Into<String>) {
        let mut notes = self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if notes.len() < MAX_NOTES {
            notes.push(text.into());
        }
    }

    /// Takes the notes that were not shown yet.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Where it stands.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            stage: *self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            total: self.total.load(Relaxed),
            done: self.done.load(Relaxed),
            moved: self.moved.load(Relaxed),
        }
    }
}
