//! The memory of requests in flight: a bounded pool of buffers, and the share of it that each connection is sure of.
//!
//! Two slabs: small buffers for guests' usual requests, large ones for the rest. A connection takes out of its own
//! reserve first, then out of what all have in common; one that holds much, because its client takes no replies, can
//! use up the common part and its reserve, and never the reserve of another.
//!
//! Invariants: a permit is out for every buffer that is; a buffer goes back to its slab before its permit is let go
//! of, so that whoever gets a permit finds a buffer.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::export::{Errno, ExportError};
use crate::datastore::{DEFAULT_SLOT_BYTES, SLOT_ALIGN, Slab, Slot};
use crate::error::{Error, ErrorKind, Result};

/// Most bytes of one read or write of an export.
pub const MAX_PIECE: usize = DEFAULT_SLOT_BYTES;

/// Bytes of a small buffer.
const SMALL: usize = 64 << 10;

/// Buffers of each size that a connection is sure of: enough to go on, however greedy the others are.
const RESERVE: [usize; 2] = [4, 1];

/// Large buffers beyond those that are given out here, for others that use the engine on the same slab.
const SPARE: usize = 2;

/// How long a buffer is waited for whose permit is there; only others who use the slab can make that necessary.
const STRAY_TRIES: u32 = 10_000;
const STRAY_PAUSE: Duration = Duration::from_millis(1);

/// All buffers of a server. See the module's head.
#[derive(Debug)]
pub struct Buffers {
    slabs: [Arc<Slab>; 2],
    common: [Arc<Semaphore>; 2],
    shares: Arc<Semaphore>,
}

impl Buffers {
    /// Buffers within `memory` bytes for at most `shares` connections. Memory is taken from the machine as it is used.
    ///
    /// # Errors
    /// `Invalid` when `memory` does not hold what `shares` connections must be sure of, or is past a terabyte.
    pub fn new(memory: u64, shares: usize) -> Result<Arc<Buffers>> {
        let count = |bytes: u64, size: usize| usize::try_from(bytes / size as u64).unwrap_or(usize::MAX);
        let slots = [count(memory / 4, SMALL), count(memory - memory / 4, DEFAULT_SLOT_BYTES).saturating_sub(SPARE)];
        let common = [0, 1].map(|i| shares.checked_mul(RESERVE[i]).and_then(|reserved| slots[i].checked_sub(reserved)));
        let [Some(small), Some(large)] = common else {
            let least = least_memory(shares);
            let text = format!(
                "{memory} bytes of buffers for {shares} connections: at least {least} are needed; raise the memory or allow fewer connections"
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        if shares == 0 || shares > Semaphore::MAX_PERMITS {
            return Err(Error::new(ErrorKind::Invalid, format!("{shares} connections: at least one must be allowed")));
        }
        let slabs = [Slab::new(slots[0], SMALL)?, Slab::new(slots[1] + SPARE, DEFAULT_SLOT_BYTES)?];
        let common = [small, large].map(|n| Arc::new(Semaphore::new(n)));
        Ok(Arc::new(Buffers { slabs, common, shares: Arc::new(Semaphore::new(shares)) }))
    }

    /// The large buffers: the slab to start the disk engine on.
    pub fn slab(&self) -> &Arc<Slab> {
        &self.slabs[1]
    }

    /// The reserve of one more connection, or `None` when all are given out.
    pub fn share(self: &Arc<Self>) -> Option<Share> {
        let seat = Arc::clone(&self.shares).try_acquire_owned().ok()?;
        let own = RESERVE.map(|n| Arc::new(Semaphore::new(n)));
        Some(Share { buffers: Arc::clone(self), own, _seat: seat })
    }

    /// Bytes of buffers that are out now, and of all that there are.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let sum = |count: fn(&Slab) -> usize| {
            self.slabs.iter().map(|slab| count(slab) as u64 * slab.slot_size() as u64).sum::<u64>()
        };
        (sum(Slab::in_use), sum(Slab::slots))
    }

    /// Buffers that are out now.
    pub fn in_use(&self) -> usize {
        self.slabs.iter().map(|slab| slab.in_use()).sum()
    }
}

/// Least memory in bytes that [`Buffers::new`] takes for so many connections.
pub(crate) fn least_memory(shares: usize) -> u64 {
    let shares = shares as u64;
    let small = 4 * shares * (RESERVE[0] * SMALL) as u64;
    let large = (shares * RESERVE[1] as u64 + SPARE as u64) * DEFAULT_SLOT_BYTES as u64;
    small.max((large * 4).div_ceil(3)).next_multiple_of(1 << 20)
}

/// The right of one connection to buffers. See the module's head.
#[derive(Debug)]
pub struct Share {
    buffers: Arc<Buffers>,
    own: [Arc<Semaphore>; 2],
    _seat: OwnedSemaphorePermit,
}

impl Share {
    /// All buffers, of which it is a share.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// A buffer for `len` bytes (1 to [`MAX_PIECE`]) of a disk from `offset` on, waiting for one. Its content is stale
    /// bytes, to be overwritten in full.
    ///
    /// # Errors
    /// `Inval` for a length that no buffer has; `NoMem` when others hold on to buffers that are not theirs.
    pub async fn take(&self, offset: u64, len: usize) -> Result<Payload, ExportError> {
        let class = class(offset, len)?;
        let (own, common) = (Arc::clone(&self.own[class]), Arc::clone(&self.buffers.common[class]));
        let permit = match self.permit_now(class) {
            Some(permit) => permit,
            // Errors mean that a semaphore is closed, which nobody does.
            None => {
                tokio::select! { permit = own.acquire_owned() => permit, permit = common.acquire_owned() => permit }
                    .map_err(|_| ExportError::new(Errno::Shutdown, "the buffers are gone"))?
            }
        };
        for _ in 0..STRAY_TRIES {
            if let Some(slot) = self.buffers.slabs[class].try_take() {
                return Ok(Payload::placed(slot, offset, len, Some(permit)));
            }
            tokio::time::sleep(STRAY_PAUSE).await;
        }
        Err(ExportError::new(Errno::NoMem, "no buffer came free although one is due"))
    }

    /// The same without waiting: `None` when there is none, or no such length.
    pub fn try_take(&self, offset: u64, len: usize) -> Option<Payload> {
        let class = class(offset, len).ok()?;
        let permit = self.permit_now(class)?;
        let slot = self.buffers.slabs[class].try_take()?;
        Some(Payload::placed(slot, offset, len, Some(permit)))
    }

    fn permit_now(&self, class: usize) -> Option<OwnedSemaphorePermit> {
        let own = Arc::clone(&self.own[class]).try_acquire_owned();
        own.or_else(|_| Arc::clone(&self.buffers.common[class]).try_acquire_owned()).ok()
    }
}

/// Which of the two sizes a piece needs.
fn class(offset: u64, len: usize) -> Result<usize, ExportError> {
    match len {
        0 => Err(ExportError::new(Errno::Inval, "a buffer of no bytes")),
        _ if lead(offset) + len <= SMALL => Ok(0),
        _ if lead(offset) + len <= DEFAULT_SLOT_BYTES => Ok(1),
        _ => Err(ExportError::new(Errno::Inval, format!("{len} bytes at {offset} do not fit into one buffer"))),
    }
}

/// Most bytes from `offset` on that fit into one buffer.
pub(super) fn room(offset: u64) -> usize {
    DEFAULT_SLOT_BYTES - lead(offset)
}

/// Bytes at the front of a buffer that stay unused, so that the rest lies in memory as on the disk: then it can go to
/// the disk as it is.
fn lead(offset: u64) -> usize {
    (offset % SLOT_ALIGN as u64) as usize
}

/// The bytes of a read or write, in one buffer that is ours alone; it goes back to its pool when this is dropped.
pub struct Payload {
    // Before the permit: see the invariants.
    slot: Slot,
    start: usize,
    len: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Payload {
    /// `len` bytes of a slot, placed for transfers at `offset` of a disk, in no pool's count.
    ///
    /// # Errors
    /// `Inval` when they do not fit.
    pub fn new(slot: Slot, offset: u64, len: usize) -> Result<Payload, ExportError> {
        if len == 0 || lead(offset) + len > slot.len() {
            let text = format!("{len} bytes at {offset} in a buffer of {}", slot.len());
            return Err(ExportError::new(Errno::Inval, text));
        }
        Ok(Payload::placed(slot, offset, len, None))
    }

    fn placed(slot: Slot, offset: u64, len: usize, permit: Option<OwnedSemaphorePermit>) -> Payload {
        Payload { slot, start: lead(offset), len, permit }
    }

    /// Takes it apart for the disk engine: the slot, the bytes of it that count, and what makes a payload of them again.
    pub(super) fn into_parts(self) -> (Slot, std::ops::Range<usize>, Rest) {
        let range = self.start..self.start + self.len;
        (self.slot, range, Rest { start: self.start, len: self.len, permit: self.permit })
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.slot[self.start..self.start + self.len]
    }
}

impl DerefMut for Payload {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.slot[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes in {:?})", self.len, self.slot)
    }
}

/// A payload without its slot, which is with the disk engine.
#[derive(Debug)]
pub(super) struct Rest {
    start: usize,
    len: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Rest {
    /// What the slot is counted by, to be kept with it.
    pub(super) fn permit(&mut self) -> Option<OwnedSemaphorePermit> {
        self.permit.take()
    }

    /// The payload again.
    pub(super) fn join(self, slot: Slot, permit: Option<OwnedSemaphorePermit>) -> Payload {
        Payload { slot, start: self.start, len: self.len, permit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn too_little_memory_is_refused_and_the_least_that_is_named_is_enough() {
        for shares in [1, 7, 64] {
            let least = least_memory(shares);
            assert!(Buffers::new(least, shares).is_ok(), "{shares}");
            let error = Buffers::new(least - (2 << 20), shares).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(&least.to_string()), "{error}");
        }
        assert!(Buffers::new(1 << 30, 0).is_err());
    }

    #[test]
    fn a_payload_lies_in_memory_as_on_the_disk() {
        let share = Buffers::new(64 << 20, 2).unwrap().share().unwrap();
        for (offset, len) in [(0, 1), (4096, SMALL), (4097, SMALL), (4095, 1), (777, room(777)), (0, MAX_PIECE)] {
            let payload = share.try_take(offset, len).unwrap();
            assert_eq!(payload.len(), len);
            assert_eq!(payload.as_ptr() as u64 % 4096, offset % 4096);
        }
        for (offset, len) in [(0, 0), (1, MAX_PIECE), (0, MAX_PIECE + 1)] {
            assert!(share.try_take(offset, len).is_none(), "{len} at {offset}");
            assert!(share.take(offset, len).now_or_never().unwrap().is_err());
        }
    }

    #[tokio::test]
    async fn who_takes_all_leaves_the_others_their_reserve_and_gives_everything_back() {
        let buffers = Buffers::new(16 << 20, 3).unwrap();
        let (greedy, modest) = (buffers.share().unwrap(), buffers.share().unwrap());
        let mut held: Vec<Payload> = std::iter::from_fn(|| greedy.try_take(0, MAX_PIECE)).collect();
        held.extend(std::iter::from_fn(|| greedy.try_take(0, 4096)));
        assert!(greedy.take(0, 4096).now_or_never().is_none());
        let large = modest.try_take(0, MAX_PIECE).expect("its reserve");
        let small: Vec<Payload> = (0..RESERVE[0]).map(|_| modest.try_take(0, 1).expect("its reserve")).collect();
        assert!(modest.try_take(0, MAX_PIECE).is_none() && modest.try_take(0, 1).is_none());
        // What the greedy one lets go of beyond its reserve is for whoever waits.
        let mut waiting = Box::pin(modest.take(0, MAX_PIECE));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(held);
        waiting.await.unwrap();
        drop((large, small));
        assert_eq!(buffers.in_use(), 0);
    }

    #[test]
    fn there_are_as_many_shares_as_were_asked_for() {
        let buffers = Buffers::new(16 << 20, 2).unwrap();
        let shares = [buffers.share().unwrap(), buffers.share().unwrap()];
        assert!(buffers.share().is_none());
        drop(shares);
        assert!(buffers.share().is_some());
    }
}
