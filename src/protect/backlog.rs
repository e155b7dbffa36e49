//! Sealed segments on their way to the storage site: in memory, and beyond a limit in the replication log.
//!
//! ```text
//! sealer --push--> [ memory ... ][ spilled to the log ... ] --next--> uploads -> accepted --settle--> log trimmed
//! ```
//!
//! Owns the order and the memory of what is not shipped. Invariants: what is handed out is in chain order; once a
//! segment is spilled, all after it are, until the log has nothing left that is not accepted, so the log holds a run
//! without gaps; a spilled segment is trimmed only after it was accepted. Bounded: memory by its limit, the log by its
//! size; a full log makes [`Backlog::push`] wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Index, Point, Segment, SegmentHeader};
use crate::ids::{SegmentNo, Time};
use crate::log::ReplicationLog;

/// A sealed segment.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// Its header.
    pub(crate) header: SegmentHeader,
    /// Its index; read again from the bytes where it was spilled.
    pub(crate) index: Option<Index>,
    /// The object.
    pub(crate) bytes: Bytes,
    /// The point that it ends at.
    pub(crate) point: Point,
    /// When that was, by a clock that never jumps.
    pub(crate) cut: Instant,
    /// Bytes that guests wrote for it.
    pub(crate) written: u64,
    /// Bytes of its frames, raw.
    pub(crate) raw: u64,
}

/// A segment that was handed out to be shipped; a spilled one is without its bytes until it is loaded.
#[derive(Debug)]
pub(crate) enum Entry {
    /// As it was pushed.
    Memory(Sealed),
    /// To be read back from the log.
    Log(Sealed),
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Entry>,
    /// Bytes of segments in memory: waiting, or handed out and not settled.
    memory: u64,
    /// First and last spilled segment, while the log holds something that is not accepted.
    spilled: Option<(SegmentNo, SegmentNo)>,
    waiting_bytes: u64,
    closed: bool,
    unsettled: u64,
    /// Times of the points of segments that are not accepted, in their order.
    times: VecDeque<Time>,
}

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Waiting {
    /// Segments that are sealed and not accepted.
    pub(crate) segments: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Bytes of them that are held in memory.
    pub(crate) memory: u64,
    /// Bytes of the log that are in use, of how many.
    pub(crate) log: (u64, u64),
    /// Times of the points of the first and the last of them.
    pub(crate) times: Option<(Time, Time)>,
}

/// See the module.
pub(crate) struct Backlog {
    limit: u64,
    log: Arc<ReplicationLog>,
    state: Mutex<State>,
    changed: Notify,
}

impl Backlog {
    /// An empty one: `limit` bytes in memory, then `log`.
    pub(crate) fn new(limit: u64, log: Arc<ReplicationLog>) -> Backlog {
        Backlog { limit, log, state: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next segment of the chain. Waits while it must be spilled and the log is full.
    ///
    /// # Errors
    /// What the log says: it is poisoned then, and the segment is not shipped.
    pub(crate) async fn push(&self, mut sealed: Sealed) -> Result<()> {
        let (header, len) = (sealed.header.clone(), sealed.bytes.len() as u64);
        let to_memory = {
            let mut state = self.lock();
            state.unsettled += 1;
            state.times.push_back(sealed.point.time);
            state.waiting_bytes += len;
            // One always fits, or a segment larger than the limit would wait for ever.
            let fits = state.spilled.is_none() && (state.memory == 0 || state.memory + len <= self.limit);
            if fits {
                state.memory += len;
            }
            fits
        };
        if to_memory {
            self.lock().queue.push_back(Entry::Memory(sealed));
            self.changed.notify_one();
            return Ok(());
        }
        if self.log.held().appended.segment != header.parent().segment {
            self.log.reset(header.parent()).await?;
        }
        self.log.append(&header, std::slice::from_ref(&sealed.bytes)).await?;
        (sealed.bytes, sealed.index) = (Bytes::new(), None);
        {
            let mut state = self.lock();
            let first = state.spilled.map_or(header.segment, |(first, _)| first);
            state.spilled = Some((first, header.segment));
            state.queue.push_back(Entry::Log(sealed));
        }
        self.changed.notify_one();
        Ok(())
    }

    /// The next segment to ship; `None` when it is closed and empty. Dropping the future loses nothing.
    pub(crate) async fn pop(&self) -> Option<Entry> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if let Some(entry) = state.queue.pop_front() {
                    return Some(entry);
                }
                if state.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// A handed-out segment with its bytes.
    ///
    /// # Errors
    /// What reading it back from the log says.
    pub(crate) async fn load(&self, entry: Entry) -> Result<Sealed> {
        match entry {
            Entry::Memory(sealed) => Ok(sealed),
            Entry::Log(sealed) => self.read_back(sealed).await,
        }
    }

    async fn read_back(&self, mut sealed: Sealed) -> Result<Sealed> {
        let number = sealed.header.segment;
        self.log.wait_landed(number).await?;
        let log = Arc::clone(&self.log);
        let reading = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            log.read(number, &mut bytes).map(|_| bytes)
        });
        let bytes = reading.await.map_err(|e| Error::with_source(ErrorKind::Internal, "read the log", e))??;
        let place = || format!("spilled segment {}", sealed.header.id());
        let segment = Segment::open(&bytes, sealed.header.domain, sealed.header.id()).map_err(|e| e.at(place()))?;
        sealed.index = Some(segment.index);
        sealed.bytes = bytes.into();
        Ok(sealed)
    }

    /// Segment `header` was accepted, and all before it: its memory, or its place in the log, is free.
    pub(crate) fn settle(&self, header: &SegmentHeader) -> Result<()> {
        let trim = {
            let mut state = self.lock();
            state.unsettled -= 1;
            state.times.pop_front();
            state.waiting_bytes -= header.total_len;
            match state.spilled {
                Some((first, last)) if header.segment >= first => {
                    if header.segment >= last {
                        state.spilled = None;
                    }
                    true
                }
                _ => {
                    state.memory -= header.total_len;
                    false
                }
            }
        };
        if trim { self.log.trim(header.segment) } else { Ok(()) }
    }

    /// No more will be pushed.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// What waits now.
    pub(crate) fn waiting(&self) -> Waiting {
        let held = self.log.held();
        let state = self.lock();
        Waiting {
            segments: state.unsettled,
            bytes: state.waiting_bytes,
            memory: state.memory,
            log: (held.used_bytes, held.ring_bytes),
            times: state.times.front().zip(state.times.back()).map(|(first, last)| (*first, *last)),
        }
    }

    /// Limit of the memory in bytes.
    pub(crate) fn memory_limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::capture::{Chain, ChainEnd};
    use crate::clock::SystemClock;
    use crate::datastore::{EngineKind, EngineOptions, Slab, start};
    use crate::format::{DatastoreId, FrameEncoder, IndexDisk, PointFlags, SegmentBuilder};
    use crate::ids::{DiskId, DomainId, Generation, Name, SegmentRef, Time, VmId, WriterId};
    use crate::log::LogOptions;

    const LIMIT: u64 = 12_000;

    fn backlog(dir: &Path) -> Backlog {
        let engine = start(EngineKind::Threads, Slab::new(4, 1 << 20).unwrap(), EngineOptions::default()).unwrap();
        let mut options = LogOptions::new(DomainId::from_bytes([1; 16]), DatastoreId::of_path(dir), 4 << 20);
        options.largest_segment = 1 << 20;
        let log = ReplicationLog::open(&engine, dir, &Name::new("d").unwrap(), &options).unwrap();
        Backlog::new(LIMIT, Arc::new(log))
    }

    fn chain() -> Chain {
        let end = ChainEnd {
            domain: DomainId::from_bytes([1; 16]),
            generation: Generation::new(1),
            writer: WriterId::random(),
            tip: SegmentRef::default(),
            digest: Default::default(),
        };
        Chain::new(end, None, Arc::new(SystemClock))
    }

    /// The next segment of the chain, of some 4 KiB.
    fn sealed(chain: &Chain, byte: u8) -> Sealed {
        let disk = IndexDisk { id: DiskId::from_bytes([2; 16]), vm: VmId::from_bytes([3; 16]), size: 1 << 20 };
        let mut raw = [0; 4096];
        fastrand::Rng::with_seed(u64::from(byte)).fill(&mut raw);
        let mut builder = SegmentBuilder::new(Vec::new());
        builder.push_data(&disk, 0, &raw, None, &mut FrameEncoder::new(1).unwrap()).unwrap();
        let point = Point::new(Time::from_millis(u64::from(byte)), PointFlags::default(), []);
        let sealed = chain.seal(builder, Some(point.clone())).unwrap();
        let index = Some(sealed.index);
        let cut = Instant::now();
        Sealed { header: sealed.header, index, bytes: sealed.bytes.into(), point, cut, written: 1, raw: 2 }
    }

    #[tokio::test]
    async fn what_does_not_fit_into_memory_goes_through_the_log_in_order_and_comes_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (backlog, chain) = (backlog(dir.path()), chain());
        let mut expected = Vec::new();
        for round in 0..3 {
            for i in 0..10 {
                let one = sealed(&chain, round * 10 + i);
                expected.push((one.header.id(), one.bytes.clone()));
                backlog.push(one).await.unwrap();
            }
            let waiting = backlog.waiting();
            assert_eq!(waiting.segments, 10);
            assert!(waiting.memory > 0 && waiting.memory <= LIMIT && waiting.log.0 > 0, "{waiting:?}");
            for (id, bytes) in expected.drain(..) {
                let entry = backlog.pop().await.unwrap();
                let one = backlog.load(entry).await.unwrap();
                assert!((one.header.id(), &one.bytes) == (id, &bytes), "{id}");
                assert_eq!(one.index.as_ref().unwrap().segment, id);
                backlog.settle(&one.header).unwrap();
            }
            let waiting = backlog.waiting();
            assert_eq!((waiting.segments, waiting.bytes, waiting.memory), (0, 0, 0), "round {round}");
        }
        backlog.close();
        assert!(backlog.pop().await.is_none());
    }

    #[tokio::test]
    async fn once_spilled_all_that_follows_is_until_nothing_of_it_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (backlog, chain) = (backlog(dir.path()), chain());
        for i in 0..4 {
            backlog.push(sealed(&chain, i)).await.unwrap();
        }
        let mut headers = Vec::new();
        for _ in 0..2 {
            let entry = backlog.pop().await.unwrap();
            assert!(matches!(entry, Entry::Memory(_)));
            headers.push(backlog.load(entry).await.unwrap().header);
        }
        headers.iter().for_each(|header| backlog.settle(header).unwrap());
        backlog.push(sealed(&chain, 9)).await.unwrap();
        let mut spilled = 0;
        for _ in 0..3 {
            let entry = backlog.pop().await.unwrap();
            spilled += usize::from(matches!(entry, Entry::Log(_)));
            let one = backlog.load(entry).await.unwrap();
            backlog.settle(&one.header).unwrap();
        }
        assert!(spilled >= 2, "the last one followed a spilled one, though memory was free: {spilled}");
        backlog.push(sealed(&chain, 10)).await.unwrap();
        assert!(matches!(backlog.pop().await.unwrap(), Entry::Memory(_)), "the log has nothing left to wait for");
    }
}
