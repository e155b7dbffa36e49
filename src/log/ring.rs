//! Space of the ring: which record stands where, what is written, durable, trimmed, and free again. Pure: no I/O.
//!
//! ```text
//!   freed        tail              synced         ready           head              freed + len
//!     | trimmed,   | held, durable,  | written,     | being         | free              |
//!     | not free   | readable        | not synced   | written       |                   |
//! ```
//!
//! Invariant: `freed <= tail <= synced <= ready <= head <= freed + len`, all of them positions (see
//! [`crate::format::LogRecord`]), so no byte of a record is handed out again before a durable superblock says that the
//! record is gone. Segment numbers of the records held are contiguous.

use std::collections::VecDeque;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{MAX_LOG_POSITION, MAX_SEGMENT_LEN, log_record_len, min_log_len};
use crate::ids::{Generation, SegmentNo, SegmentRef};

/// Most records held at once, whatever their size: bounds the memory that describes them (40 bytes each). A log of
/// more is full.
pub(super) const MAX_RECORDS: usize = 1 << 18;

/// What is known of a record's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordState {
    /// On their way to the disk.
    Writing,
    /// There.
    Whole,
    /// Found damaged by recovery. Without a readable header `payload_len` is zero, and of several such records in a row
    /// the last one has all their space.
    Damaged,
}

/// One record of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// Where it begins.
    pub(super) position: u64,
    /// Bytes with header and padding.
    pub(super) len: u64,
    /// Bytes of the segment; zero when unknown.
    pub(super) payload_len: u32,
    /// Generation of the segment; zero when unknown.
    pub(super) generation: Generation,
    /// What is known of its bytes.
    pub(super) state: RecordState,
}

impl Record {
    fn end(&self) -> u64 {
        self.position + self.len
    }
}

/// A position between two records, and the segment that ends there (zero: none ever).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// The position.
    pub(super) position: u64,
    /// The segment that ends there.
    pub(super) last: SegmentRef,
}

/// The records held, and the five positions.
#[derive(Debug, Clone)]
pub(super) struct Ring {
    len: u64,
    freed: u64,
    tail: Mark,
    synced: Mark,
    ready: Mark,
    head: Mark,
    first: SegmentNo,
    records: VecDeque<Record>,
}

impl Ring {
    /// A ring of `len` bytes that holds `records`, all settled; they begin at `tail` with segment `first` and end at
    /// `head`.
    pub(super) fn new(len: u64, tail: u64, first: SegmentNo, records: VecDeque<Record>, head: Mark) -> Ring {
        let before = SegmentNo::new(first.get().saturating_sub(1));
        let last = match records.is_empty() {
            true => head.last,
            false => SegmentRef::new(Generation::ZERO, before),
        };
        let tail = Mark { position: tail, last };
        Ring { len, freed: tail.position, tail, synced: head, ready: head, head, first, records }
    }

    /// Bytes of the ring.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Begin of the first record held.
    pub(super) fn tail(&self) -> u64 {
        self.tail.position
    }

    /// Number of the first segment held; zero when none is.
    pub(super) fn first(&self) -> SegmentNo {
        if self.records.is_empty() { SegmentNo::ZERO } else { self.first }
    }

    /// End of what is durable.
    pub(super) fn synced(&self) -> Mark {
        self.synced
    }

    /// End of what is written without a gap.
    pub(super) fn ready(&self) -> Mark {
        self.ready
    }

    /// End of what is reserved.
    pub(super) fn head(&self) -> Mark {
        self.head
    }

    /// Bytes that records hold, trimmed ones that are not free yet included.
    pub(super) fn used(&self) -> u64 {
        self.head.position - self.freed
    }

    /// Where `segment` stands, if it is held.
    pub(super) fn find(&self, segment: SegmentNo) -> Option<Record> {
        let index = segment.get().checked_sub(self.first.get())?;
        self.records.get(usize::try_from(index).ok()?).copied()
    }

    /// The records held, with their numbers.
    #[cfg(test)]
    pub(super) fn records(&self) -> impl Iterator<Item = (SegmentNo, &Record)> {
        self.records.iter().enumerate().map(|(n, r)| (SegmentNo::new(self.first.get() + n as u64), r))
    }

    /// Reserves space for the next segment; `None` when there is not enough now.
    ///
    /// # Errors
    /// `Invalid` when it is not the next one, and when it can never fit.
    pub(super) fn reserve(&mut self, id: SegmentRef, payload_len: u64) -> Result<Option<u64>> {
        let last = self.head.last;
        let follows = last == SegmentRef::default() || last.segment.next() == id.segment;
        if id.segment == SegmentNo::ZERO || !follows || id.generation < last.generation {
            let text = format!("segment {id} does not follow {last}, the last one in the replication log");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let len = log_record_len(payload_len);
        if payload_len == 0 || payload_len > MAX_SEGMENT_LEN || len > self.len {
            let (have, need) = (min_log_len(0) + self.len - log_record_len(0), min_log_len(payload_len));
            let text = format!("replication log of {have} bytes is smaller than segment {id}, which needs {need}");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        if self.used() + len > self.len || self.records.len() >= MAX_RECORDS {
            return Ok(None);
        }
        let position = self.head.position;
        if position > MAX_LOG_POSITION - len {
            return Err(Error::new(
                ErrorKind::Full,
                "the replication log is worn out: remove its file, and it is made anew",
            ));
        }
        if self.records.is_empty() {
            self.first = id.segment;
        }
        let payload_len = u32::try_from(payload_len).expect("at most MAX_SEGMENT_LEN");
        let (generation, state) = (id.generation, RecordState::Writing);
        self.records.push_back(Record { position, len, payload_len, generation, state });
        self.head = Mark { position: position + len, last: id };
        Ok(Some(position))
    }

    /// The record at `position` is written; true when the end of what is written without a gap moved.
    pub(super) fn written(&mut self, position: u64) -> bool {
        let at = self.records.partition_point(|r| r.end() <= position);
        if let Some(record) = self.records.get_mut(at).filter(|r| r.position == position) {
            record.state = RecordState::Whole;
        }
        let before = self.ready;
        let next = self.records.partition_point(|r| r.end() <= self.ready.position);
        for (n, record) in self.records.iter().enumerate().skip(next) {
            if record.state == RecordState::Writing {
                break;
            }
            let segment = SegmentNo::new(self.first.get() + n as u64);
            self.ready = Mark { position: record.end(), last: SegmentRef::new(record.generation, segment) };
        }
        self.ready != before
    }

    /// What stood before `mark`, a value of [`Ring::ready`], is durable.
    pub(super) fn synced_to(&mut self, mark: Mark) {
        if mark.position > self.synced.position {
            self.synced = mark;
        }
    }

    /// Gives up the segments up to and including `up_to`; their space is free only after [`Ring::free_to`]. True when
    /// there were any.
    ///
    /// # Errors
    /// `Invalid` when `up_to` is not durable.
    pub(super) fn trim(&mut self, up_to: SegmentNo) -> Result<bool> {
        if up_to > self.synced.last.segment {
            let text = format!("cannot trim up to {up_to}: the log is durable up to {}", self.synced.last);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let before = self.tail;
        while self.first <= up_to
            && let Some(record) = self.records.pop_front()
        {
            self.tail = Mark { position: record.end(), last: SegmentRef::new(record.generation, self.first) };
            self.first = self.first.next();
        }
        if self.records.is_empty() {
            self.tail = self.head;
        }
        Ok(self.tail != before)
    }

    /// A superblock that begins at `tail` is durable: what is before is free.
    pub(super) fn free_to(&mut self, tail: u64) {
        self.freed = self.freed.max(tail.min(self.tail.position));
    }

    /// Drops what follows `at`. Everything reserved must be durable.
    ///
    /// # Errors
    /// `Invalid` when `at` is neither held nor the segment before the first one held, and when it is there under
    /// another generation. `Internal` when something is still being written.
    pub(super) fn rewind(&mut self, at: SegmentRef) -> Result<()> {
        self.settled()?;
        let mark = if at.segment == self.head.last.segment && at.segment == self.tail.last.segment {
            Mark { position: self.head.position, last: at }
        } else if at.segment == self.tail.last.segment {
            Mark { position: self.tail.position, last: at }
        } else {
            let record = self.find(at.segment).ok_or_else(|| {
                let (first, last) = (self.first(), self.head.last.segment);
                let text = format!("cannot rewind the log to {at}: it holds {first} to {last}");
                Error::new(ErrorKind::Invalid, text)
            })?;
            if record.generation != Generation::ZERO && record.generation != at.generation {
                let have = SegmentRef::new(record.generation, at.segment);
                let text = format!("cannot rewind the log to {at}: it holds {have}");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            Mark { position: record.end(), last: at }
        };
        let kept = at.segment.get().saturating_add(1).saturating_sub(self.first.get());
        self.records.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        self.set_head(mark);
        Ok(())
    }

    /// Drops everything: the next segment is the one after `last` (any, when `last` is zero).
    ///
    /// # Errors
    /// `Internal` when something is still being written.
    pub(super) fn reset(&mut self, last: SegmentRef) -> Result<()> {
        self.settled()?;
        self.records.clear();
        self.set_head(Mark { position: self.head.position, last });
        Ok(())
    }

    fn settled(&self) -> Result<()> {
        match self.synced.position == self.head.position {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Internal, "rewind of a log that is being written")),
        }
    }

    fn set_head(&mut self, mark: Mark) {
        (self.synced, self.ready, self.head) = (mark, mark, mark);
        if self.records.is_empty() {
            self.tail = mark;
        }
    }
}
