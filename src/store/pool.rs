//! Aligned buffers that are used again, so that a direct read neither copies nor touches fresh memory.
//!
//! Invariants: a buffer belongs to one holder at a time and comes back when the last [`bytes::Bytes`] made of it is
//! dropped; idle buffers never exceed the pool's limit in bytes, and beyond it the longest idle is given back to the
//! system, so that what stays is of the sizes in use. Idle buffers were in use before: together with those in use they
//! are no more than what was once in use at the same time, as long as sizes stay alike. The memory of buffers in use is the reader's to limit: by how many ranges it asks for at once.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{Advice, madvise};

/// Alignment of every buffer: enough for direct I/O on devices with blocks of up to 4096 bytes.
pub(super) const ALIGN: usize = 4096;

/// Size of a huge page, in which buffers from this size on are asked for: a device takes so many pieces of memory in a
/// request, and small pages scattered over memory are one piece each.
const HUGE: usize = 2 << 20;

/// Capacities are multiples of this, so that buffers of nearly equal needs are interchangeable.
const GRAIN: usize = 64 << 10;

/// Idle buffers at most, whatever their size: keeps the search short.
const MAX_IDLE: usize = 64;

/// One aligned, initialised piece of memory.
struct Memory {
    at: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the memory is owned by this value alone and is plain bytes; moving it to another thread moves the ownership.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads the bytes.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(capacity: usize) -> Memory {
        let layout = Memory::layout(capacity);
        // SAFETY: the layout is not empty, `Pool::take` rounds up to at least one grain.
        let at = unsafe { alloc(layout) };
        let at = NonNull::new(at).unwrap_or_else(|| handle_alloc_error(layout));
        if capacity >= HUGE {
            // SAFETY: the range is inside the allocation and begins at a huge page; the advice changes no content. Where
            // it is not taken, reads are only slower.
            let _ = unsafe { madvise(at.as_ptr().cast(), capacity - capacity % HUGE, Advice::LinuxHugepage) };
        }
        // SAFETY: all of it belongs to the allocation. Only now is it touched, so that the advice can have effect.
        unsafe { at.as_ptr().write_bytes(0, capacity) };
        Memory { at, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, if capacity >= HUGE { HUGE } else { ALIGN })
            .expect("a capacity of at most a few range sizes and a constant power of two")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, and freed only here.
        unsafe { dealloc(self.at.as_ptr(), Memory::layout(self.capacity)) }
    }
}

#[derive(Default)]
struct Idle {
    /// The longest idle first.
    buffers: VecDeque<Memory>,
    bytes: usize,
}

/// The buffers of one site.
pub(super) struct Pool {
    idle: Mutex<Idle>,
    max_idle_bytes: usize,
}

impl Pool {
    /// A pool that keeps at most `max_idle_bytes` of idle memory.
    pub(super) fn new(max_idle_bytes: usize) -> Arc<Pool> {
        Arc::new(Pool { idle: Mutex::default(), max_idle_bytes })
    }

    /// A buffer of at least `len` bytes; the visible length is `len` rounded up to [`ALIGN`]. Its bytes are
    /// initialised, with zeros or with what an earlier read left.
    pub(super) fn take(self: &Arc<Pool>, len: usize) -> Buffer {
        let len = len.max(1).next_multiple_of(ALIGN);
        let capacity = len.next_multiple_of(GRAIN);
        let memory = self.take_idle(capacity).unwrap_or_else(|| Memory::new(capacity));
        Buffer { memory: Some(memory), len, pool: Arc::clone(self) }
    }

    /// The smallest idle buffer that fits without wasting more than it holds.
    fn take_idle(&self, capacity: usize) -> Option<Memory> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |m: &Memory| m.capacity >= capacity && m.capacity / 2 <= capacity;
        let (i, _) = idle.buffers.iter().enumerate().filter(|(_, m)| fits(m)).min_by_key(|(_, m)| m.capacity)?;
        let memory = idle.buffers.remove(i)?;
        idle.bytes -= memory.capacity;
        Some(memory)
    }

    fn give_back(&self, memory: Memory) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.capacity > self.max_idle_bytes {
            return;
        }
        idle.bytes += memory.capacity;
        idle.buffers.push_back(memory);
        while idle.buffers.len() > MAX_IDLE || idle.bytes > self.max_idle_bytes {
            let Some(oldest) = idle.buffers.pop_front() else { break };
            idle.bytes -= oldest.capacity;
        }
    }

    #[cfg(test)]
    fn idle_bytes(&self) -> usize {
        self.idle.lock().unwrap().bytes
    }
}

/// Exclusive hold on one buffer; gives it back when dropped.
pub(super) struct Buffer {
    /// Always there until `drop`.
    memory: Option<Memory>,
    len: usize,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let memory = self.memory.as_ref().expect("taken only by drop");
        // SAFETY: `len` <= capacity, the memory was initialised when it was made, and `self` owns it.
        unsafe { std::slice::from_raw_parts(memory.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let memory = self.memory.as_mut().expect("taken only by drop");
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(memory.at.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_large_enough_and_used_again() {
        let pool = Pool::new(8 << 20);
        let mut first = pool.take(100_000);
        assert_eq!(first.as_ptr() as usize % ALIGN, 0);
        assert_eq!(first.len(), 102_400);
        first[102_399] = 7;
        let at = first.as_ptr();
        let bytes = bytes::Bytes::from_owner(first);
        let part = bytes.slice(1000..2000);
        drop(bytes);
        assert_ne!(pool.take(100_000).as_ptr(), at, "still held by the slice");
        drop(part);
        let held: Vec<_> = (0..2).map(|_| pool.take(90_000)).collect();
        assert!(held.iter().any(|b| b.as_ptr() == at));
    }

    #[test]
    fn idle_memory_is_bounded_and_small_reads_do_not_hold_large_buffers() {
        let pool = Pool::new(1 << 20);
        let all: Vec<_> = (0..8).map(|_| pool.take(512 << 10)).collect();
        assert_eq!(pool.idle_bytes(), 0);
        drop(all);
        assert_eq!(pool.idle_bytes(), 1 << 20);
        drop(pool.take(4 << 20));
        assert_eq!(pool.idle_bytes(), 1 << 20, "too large to keep");
        drop(pool.take(768 << 10));
        assert_eq!(pool.idle_bytes(), 768 << 10, "the newest size stays");
        let pool = Pool::new(64 << 20);
        drop(pool.take(16 << 20));
        assert_eq!(pool.take(1).memory.as_ref().unwrap().capacity, GRAIN);
    }
}
