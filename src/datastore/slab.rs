//! The buffers of the data path: one aligned anonymous mapping, cut into slots of one size.
//!
//! Owns the memory and who holds which slot. A [`Slot`] is exclusive and `Send`: a worker decodes into it, the disk
//! engine writes from it, and dropping it gives the memory back. The memory is mapped once and used again and again,
//! because touching fresh memory is far slower than any disk; the slot given back last is handed out first, while it
//! is still warm.
//!
//! Invariants: a slot is either in the free list or in exactly one [`Slot`]; the mapping outlives every slot (each
//! holds its slab); slots are never cleared, so what a new holder reads first is stale bytes, and never used unread.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Slot size that the pipeline uses unless told otherwise: one frame of the largest raw length, in bytes.
pub const DEFAULT_SLOT_BYTES: usize = 1 << 20;

/// Every slot begins at a multiple of this many bytes, enough for direct I/O on any disk known to us.
pub const SLOT_ALIGN: usize = 4096;

/// The mapping begins at a multiple of a huge page, so that the kernel can back it with huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// Most bytes that one slab may map; a larger wish is a wrong setting.
const MAX_BYTES: usize = 1 << 40;

/// One aligned mapping of equal slots. See the module's head.
pub struct Slab {
    base: NonNull<u8>,
    map: NonNull<u8>,
    map_len: usize,
    slots: usize,
    slot_size: usize,
    free: Mutex<Vec<u32>>,
    given_back: Condvar,
}

// SAFETY: the mapping is plain memory, valid from any thread until `drop`; who may touch which part of it is decided
// by the free list, which is behind a mutex.
unsafe impl Send for Slab {}
// SAFETY: as above; `&Slab` gives access to memory only through `Slot`, and there is one per index at a time.
unsafe impl Sync for Slab {}

impl Slab {
    /// Maps `slots` slots of `slot_size` bytes. Memory is taken from the machine as slots are first touched.
    ///
    /// # Errors
    /// `Invalid` when there are no slots, when `slot_size` is not a positive multiple of [`SLOT_ALIGN`], or when the
    /// product is past a terabyte; `Full` or `Io` when the kernel refuses the mapping.
    pub fn new(slots: usize, slot_size: usize) -> Result<Arc<Slab>> {
        let bytes = slots.checked_mul(slot_size).filter(|bytes| (1..=MAX_BYTES).contains(bytes));
        let (Some(bytes), true) = (bytes, slot_size.is_multiple_of(SLOT_ALIGN) && slots <= u32::MAX as usize) else {
            let text = format!(
                "{slots} buffers of {slot_size} bytes: at least one buffer, a multiple of {SLOT_ALIGN} bytes each, and at most a TiB together"
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        let map_len = bytes + HUGE_PAGE;
        // SAFETY: a new anonymous private mapping at an address of the kernel's choice touches no memory of ours.
        let map = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .io_context(|| format!("map {bytes} bytes of buffers: lower the memory budget"))?;
        let map = NonNull::new(map.cast::<u8>()).ok_or_else(|| Error::new(ErrorKind::Internal, "mapping at zero"))?;
        // SAFETY: the distance to the next huge page is less than HUGE_PAGE, by which the mapping is longer.
        let base = unsafe { map.add(map.as_ptr().align_offset(HUGE_PAGE)) };
        // SAFETY: the range is inside our own mapping. The advice is a wish; a kernel without huge pages refuses it,
        // and the slab works the same.
        let _ = unsafe { rustix::mm::madvise(base.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
        // SAFETY: as above; all of it is ours, and is unmapped as a whole. Without the advice a fork copies pages that are
        // registered for I/O at once, and all others as they are next touched.
        let _ = unsafe { rustix::mm::madvise(map.as_ptr().cast(), map_len, Advice::LinuxDontFork) };
        let free = (0..slots as u32).rev().collect();
        Ok(Arc::new(Slab { base, map, map_len, slots, slot_size, free: Mutex::new(free), given_back: Condvar::new() }))
    }

    /// Slots in all, held or free.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes of every slot.
    pub fn slot_size(&self) -> usize {
        self.slot_size
    }

    /// Slots that are held now, those inside requests of a disk engine included.
    pub fn in_use(&self) -> usize {
        self.slots - self.lock().len()
    }

    /// A free slot, or `None` when all are held.
    pub fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let index = self.lock().pop()?;
        Some(self.slot(index))
    }

    /// A free slot, waiting until one is given back.
    ///
    /// The wait ends only if another thread gives one back: a thread that may itself hold the last slot uses
    /// [`Slab::take_timeout`].
    pub fn take(self: &Arc<Self>) -> Slot {
        let mut free = self.lock();
        loop {
            if let Some(index) = free.pop() {
                return self.slot(index);
            }
            free = self.given_back.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A free slot, waiting at most `limit` for one to be given back.
    pub fn take_timeout(self: &Arc<Self>, limit: Duration) -> Option<Slot> {
        let end = Instant::now() + limit;
        let mut free = self.lock();
        loop {
            if let Some(index) = free.pop() {
                return Some(self.slot(index));
            }
            let left = end.checked_duration_since(Instant::now())?;
            free = self.given_back.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// First byte and length of slot `index`, for registering it with the kernel. Touching it is up to its holder.
    pub(crate) fn raw(&self, index: usize) -> (*mut u8, usize) {
        assert!(index < self.slots, "slot {index} of {}", self.slots);
        // SAFETY: index is below the number of slots, so the result is inside the mapping.
        (unsafe { self.base.add(index * self.slot_size) }.as_ptr(), self.slot_size)
    }

    fn slot(self: &Arc<Self>, index: u32) -> Slot {
        Slot { slab: Arc::clone(self), index }
    }

    // A panic while the lock is held cannot leave the list half changed: push and pop are its only changes.
    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slot is left: each holds an Arc of this slab.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slab({} x {} bytes, {} in use)", self.slots, self.slot_size, self.in_use())
    }
}

/// Exclusive use of one slot of a [`Slab`], as a byte slice of the slab's slot size; given back on drop.
pub struct Slot {
    slab: Arc<Slab>,
    index: u32,
}

impl Slot {
    /// Position in the slab, from 0.
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// The slab that this slot returns to.
    pub fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let (start, len) = self.slab.raw(self.index());
        // SAFETY: inside the mapping, initialised (anonymous memory begins as zeros), and ours alone until drop.
        unsafe { std::slice::from_raw_parts(start, len) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, len) = self.slab.raw(self.index());
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slab.lock().push(self.index);
        self.slab.given_back.notify_one();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({} of {})", self.index, self.slab.slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_disjoint_and_counted() {
        let slab = Slab::new(3, 8192).unwrap();
        let mut slots: Vec<Slot> = (0..3).map(|_| slab.try_take().unwrap()).collect();
        for (n, slot) in slots.iter_mut().enumerate() {
            assert_eq!(slot.as_ptr() as usize % SLOT_ALIGN, 0);
            assert_eq!(slot.len(), 8192);
            slot.fill(n as u8 + 1);
        }
        for (n, slot) in slots.iter().enumerate() {
            assert!(slot.iter().all(|&b| b == n as u8 + 1), "slot {n} was written through another");
        }
        assert_eq!(slab.in_use(), 3);
        assert!(slab.try_take().is_none());
        drop(slots);
        assert_eq!(slab.in_use(), 0);
    }

    #[test]
    fn memory_is_reused_and_outlives_the_handle_of_the_slab() {
        let slab = Slab::new(2, 4096).unwrap();
        let first = slab.take();
        let (address, index) = (first.as_ptr(), first.index());
        drop(first);
        let mut again = slab.take();
        assert_eq!((again.as_ptr(), again.index()), (address, index), "the warm slot comes first");
        drop(slab);
        again[4095] = 7;
        assert_eq!(again[4095], 7);
    }

    #[test]
    fn take_waits_for_a_slot_and_a_limit_ends_the_wait() {
        let slab = Slab::new(1, 4096).unwrap();
        let held = slab.take();
        assert!(slab.take_timeout(Duration::from_millis(20)).is_none());
        let waiter = {
            let slab = Arc::clone(&slab);
            std::thread::spawn(move || slab.take().index())
        };
        let index = held.index();
        drop(held);
        assert_eq!(waiter.join().unwrap(), index);
        assert!(slab.take_timeout(Duration::from_secs(60)).is_some());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (slots, size) in [(0, 4096), (1, 0), (1, 512), (1, 4097), (usize::MAX, 8192), (1 << 30, 1 << 20)] {
            assert_eq!(Slab::new(slots, size).unwrap_err().kind(), ErrorKind::Invalid, "{slots} x {size}");
        }
    }
}
