//! Memory for segments that are being filled: a fixed number of buffers of one size.
//!
//! Owns the bound on captured bytes that are not packed yet. Never grows: who finds none free waits, and that is how a
//! slow packer is felt by guests. Buffers are used again, since fresh memory is slow to touch.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// See the module.
#[derive(Debug)]
pub(crate) struct ArenaPool {
    each: usize,
    count: usize,
    idle: Mutex<Vec<Vec<u8>>>,
    freed: Notify,
}

impl ArenaPool {
    /// `count` arenas of `each` bytes; their memory is taken when they are first filled.
    pub(crate) fn new(count: usize, each: usize) -> Arc<ArenaPool> {
        let idle = Mutex::new((0..count).map(|_| Vec::new()).collect());
        Arc::new(ArenaPool { each, count, idle, freed: Notify::new() })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of those that are out now, and of all.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let bytes = |count: usize| count as u64 * self.each as u64;
        (bytes(self.count.saturating_sub(self.free())), bytes(self.count))
    }

    /// How many are free.
    pub(crate) fn free(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// An empty arena, if one is free.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Arena> {
        let mut bytes = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        bytes.clear();
        bytes.reserve_exact(self.each);
        Some(Arena { bytes, pool: Arc::clone(self) })
    }

    /// Resolves when an arena came back after the call.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }
}

/// One buffer; goes back when it is dropped. Never holds more than so many bytes as the pool was made for.
#[derive(Debug)]
pub(crate) struct Arena {
    bytes: Vec<u8>,
    pool: Arc<ArenaPool>,
}

impl Arena {
    /// Bytes that still fit.
    pub(crate) fn room(&self) -> usize {
        self.pool.each - self.bytes.len()
    }

    /// Appends `bytes`, which fit, and answers where they begin.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        debug_assert!(bytes.len() <= self.room());
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        at
    }

    /// What stands in `at..at + len`.
    pub(crate) fn get(&self, at: usize, len: usize) -> &[u8] {
        &self.bytes[at..at + len]
    }

    /// The same, to be overwritten.
    pub(crate) fn get_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        &mut self.bytes[at..at + len]
    }

    /// Bytes that were appended.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        self.pool.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_are_never_more_than_so_many_and_memory_is_used_again() {
        let pool = ArenaPool::new(1, 8192);
        let mut arena = pool.take().unwrap();
        assert_eq!((arena.push(&[1; 8000]), arena.room()), (0, 192));
        let address = arena.get(0, 1).as_ptr();
        assert!(pool.take().is_none());
        assert_eq!(pool.bytes(), (8192, 8192));
        let freed = pool.freed();
        tokio::pin!(freed);
        assert!(futures::poll!(&mut freed).is_pending());
        drop(arena);
        freed.await;
        assert_eq!(pool.bytes(), (0, 8192));
        let mut again = pool.take().unwrap();
        assert_eq!((again.len(), again.push(&[2])), (0, 0));
        assert_eq!(again.get(0, 1).as_ptr(), address);
    }
}
