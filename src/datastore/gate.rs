//! The bound on an engine's requests: a permit for each that is queued or in flight.
//!
//! Owns a count and nothing else. Invariant: permits out never exceed the depth, so every queue of that capacity
//! behind the gate has room for whoever holds one.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Hands out at most `depth` permits.
#[derive(Debug)]
pub(super) struct Gate {
    depth: usize,
    free: Mutex<usize>,
    returned: Condvar,
}

/// Room for one request; given back on drop.
#[derive(Debug)]
pub(super) struct Permit(Arc<Gate>);

impl Gate {
    pub(super) fn new(depth: usize) -> Arc<Gate> {
        Arc::new(Gate { depth, free: Mutex::new(depth), returned: Condvar::new() })
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// A permit, waiting until there is one.
    pub(super) fn enter(self: &Arc<Self>) -> Permit {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Permit(Arc::clone(self))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.returned.notify_one();
    }
}
