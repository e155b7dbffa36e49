//! Bytes of memory as permits that travel with the work, and the buffers that segments are built in.
//!
//! Owns how much memory segments take, open and under way together, and keeps their buffers for the next ones.
//! Invariants: the sum of all permits never exceeds the budget; a permit is given back when what it paid for is freed,
//! which for an uploaded segment is when the last reader of its bytes lets go.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::halt::Halt;

/// Longest wait for a permit before it is looked whether the work was stopped.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct State {
    free: u64,
    idle: Vec<Vec<u8>>,
}

/// Permits for segments of at most `each` bytes.
#[derive(Debug)]
pub(crate) struct Budget {
    each: u64,
    state: Mutex<State>,
    freed: Condvar,
}

impl Budget {
    /// `count` segments of `each` bytes may be there at once.
    pub(crate) fn new(count: usize, each: u64) -> Arc<Budget> {
        let state = State { free: count as u64 * each, idle: Vec::new() };
        Arc::new(Budget { each, state: Mutex::new(state), freed: Condvar::new() })
    }

    /// A buffer with its permit, waiting until there is one; `None` once the work is stopped.
    pub(crate) fn take(self: &Arc<Budget>, halt: &Halt) -> Option<Buffer> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.free < self.each {
            if halt.is_set() {
                return None;
            }
            state = self.freed.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.free -= self.each;
        let bytes = state.idle.pop().unwrap_or_else(|| Vec::with_capacity(self.each as usize));
        Some(Buffer { bytes, budget: Arc::clone(self) })
    }
}

/// A buffer and the permit for it; both go back when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    budget: Arc<Budget>,
}

impl Buffer {
    /// Takes the memory out, to be filled; the permit stays.
    pub(crate) fn memory(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Puts the memory, filled, back, and shares it: the permit lives as long as any clone of the result.
    pub(crate) fn share(mut self, bytes: Vec<u8>) -> Bytes {
        self.bytes = bytes;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free += self.budget.each;
        let bytes = std::mem::take(&mut self.bytes);
        // One that grew past what its permit paid for is not kept.
        if bytes.capacity() > 0 && bytes.capacity() as u64 <= self.budget.each {
            state.idle.push(bytes);
        }
        self.budget.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::error::{Error, ErrorKind};

    #[test]
    fn a_permit_lives_as_long_as_the_bytes_and_memory_is_used_again() {
        let (budget, halt) = (Budget::new(1, 1 << 20), Halt::new(Cancel::new()));
        let mut buffer = budget.take(&halt).unwrap();
        let mut memory = buffer.memory();
        memory.extend_from_slice(&[7; 1000]);
        let address = memory.as_ptr();
        let bytes = buffer.share(memory);
        let clone = bytes.slice(10..20);
        drop(bytes);
        let waiter = std::thread::spawn({
            let (budget, halt) = (Arc::clone(&budget), halt.clone());
            move || {
                let memory = budget.take(&halt)?.memory();
                Some(memory.as_ptr() as usize)
            }
        });
        assert_eq!(clone[0], 7);
        drop(clone);
        assert_eq!(waiter.join().unwrap(), Some(address as usize));
    }

    #[test]
    fn waiting_ends_when_the_work_stops() {
        let (budget, halt) = (Budget::new(1, 1 << 20), Halt::new(Cancel::new()));
        let held = budget.take(&halt).unwrap();
        halt.fail(Error::new(ErrorKind::Io, "gone"));
        assert!(budget.take(&halt).is_none());
        drop(held);
        assert!(budget.take(&halt).is_some(), "a free permit needs no waiting");
    }
}
