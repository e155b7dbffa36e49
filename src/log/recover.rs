//! Reading a log after it was opened: which records count. Changes nothing; see [`super::table`] for the decisions.
//!
//! Headers are read through a window of one buffer, payloads with several reads in flight, all past the page cache.

use std::collections::VecDeque;

use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{DecodeError, Digest, LOG_BLOCK, LOG_RING_START, LogRecord, LogSuperblock, log_record_len};
use crate::ids::{Generation, SegmentNo, SegmentRef};

use super::file::{BLOCK, LogFile, pieces};
use super::ring::{Mark, Record, RecordState};
use super::table::{Action, Finding, Region, decide};

/// What a log holds.
#[derive(Debug)]
pub(super) struct Scan {
    /// Records from the tail on.
    pub(super) records: VecDeque<Record>,
    /// Number of the first one.
    pub(super) first: SegmentNo,
    /// End of the last one.
    pub(super) head: Mark,
    /// End of those that were durable according to the superblock; what follows is to be written again and synced.
    pub(super) durable: u64,
    /// Highest epoch seen.
    pub(super) epoch: u64,
    /// Label of the decision that ended it; `None` when the ring is full to the brim.
    pub(super) ended_by: Option<&'static str>,
}

impl Scan {
    fn push(&mut self, record: Record, id: SegmentRef) {
        if self.records.is_empty() {
            self.first = id.segment;
        }
        self.head = Mark { position: record.position + record.len, last: id };
        self.records.push_back(record);
    }
}

/// Which record should stand somewhere.
struct Expected<'a> {
    superblock: &'a LogSuperblock,
    position: u64,
    /// `None`: any segment may be the first.
    segment: Option<SegmentNo>,
    generation: Generation,
    region: Region,
    epoch: u64,
    /// It must end at or before this position.
    limit: u64,
}

/// What a header block is, compared with the record that should be there. Pure.
fn classify(block: Option<&[u8]>, expected: &Expected<'_>) -> (Finding, Option<LogRecord>) {
    let Some(block) = block else { return (Finding::HeaderBad, None) };
    let record = match LogRecord::open(block) {
        Ok(record) => record,
        Err(DecodeError::Magic { .. }) if block.iter().all(|b| *b == 0) => return (Finding::Blank, None),
        Err(_) => return (Finding::HeaderBad, None),
    };
    let superblock = expected.superblock;
    let finding = if record.log != superblock.log {
        Finding::OtherLog
    } else if record.position < expected.position {
        Finding::Earlier
    } else if record.position > expected.position {
        Finding::Later
    } else {
        let other_epoch = match expected.region {
            Region::Durable => record.epoch > superblock.epoch,
            _ => record.epoch < expected.epoch,
        };
        let fits = record.domain == superblock.domain
            && expected.segment.is_none_or(|s| s == record.segment)
            && record.generation >= expected.generation
            && record.end() <= expected.limit;
        match (other_epoch, fits) {
            (true, _) => Finding::OtherEpoch,
            (false, true) => Finding::Whole,
            (false, false) => Finding::Misfit,
        }
    };
    (finding, Some(record))
}

/// Reads all records of the log that `superblock` describes. With `payloads` false the payloads of the durable region
/// are left to whoever reads them.
///
/// # Errors
/// `Damaged` when the superblock contradicts itself in a way that no crash explains.
pub(super) fn scan(file: &LogFile, superblock: &LogSuperblock, payloads: bool) -> Result<Scan> {
    let before = SegmentNo::new(superblock.first.get().saturating_sub(1));
    let last = match superblock.first == SegmentNo::ZERO {
        true => superblock.last(),
        false => SegmentRef::new(Generation::ZERO, before),
    };
    let mut scan = Scan {
        records: VecDeque::new(),
        first: SegmentNo::ZERO,
        head: Mark { position: superblock.tail, last },
        durable: superblock.tail,
        epoch: superblock.epoch,
        ended_by: None,
    };
    let mut scanner = Scanner { file, superblock, window: Window::new(file), payloads };
    scanner.durable_region(&mut scan)?;
    scan.durable = scan.head.position;
    scanner.end_region(&mut scan)?;
    Ok(scan)
}

struct Scanner<'a> {
    file: &'a LogFile,
    superblock: &'a LogSuperblock,
    window: Window,
    payloads: bool,
}

impl<'a> Scanner<'a> {
    fn durable_region(&mut self, scan: &mut Scan) -> Result<()> {
        while scan.head.position < self.superblock.head {
            let expected = self.expected(scan, Region::Durable);
            let position = expected.position;
            let (mut finding, record) = classify(self.window.block(self.file, position), &expected);
            if let (Finding::Whole, Some(record), true) = (finding, &record, self.payloads)
                && !self.payload_is_whole(record)
            {
                finding = Finding::PayloadBad;
            }
            let place = Mark { position, last: SegmentRef::new(Generation::ZERO, scan.head.last.segment.next()) };
            match (decide(Region::Durable, finding, Place(place)).action, record) {
                (Action::Keep, Some(record)) => scan.push(held(&record, RecordState::Whole), record.id()),
                (Action::QuarantineOne, Some(record)) => scan.push(held(&record, RecordState::Damaged), record.id()),
                (Action::ToEnd, _) => return Ok(()),
                _ => self.quarantine_to_next(scan)?,
            }
        }
        match scan.head.position == self.superblock.head && scan.head.last.segment == self.superblock.last_segment {
            true => Ok(()),
            false => Err(self.contradiction(scan)),
        }
    }

    /// Nothing readable stands at the head of `scan`: finds the next record of the durable region, and adds the missing
    /// segments as damaged, the last one with all the space between.
    fn quarantine_to_next(&mut self, scan: &mut Scan) -> Result<()> {
        let (start, missing) = (scan.head.position, scan.head.last.segment.next());
        let (mut at, end, mut next) = (start + LOG_BLOCK, self.superblock.head, self.superblock.last_segment.next());
        while at < end {
            if let Some(record) = self.window.block(self.file, at).and_then(|b| LogRecord::open(b).ok())
                && record.log == self.superblock.log
                && record.domain == self.superblock.domain
                && record.position == at
                && record.segment > missing
                && record.segment <= self.superblock.last_segment
                && record.end() <= end
            {
                next = record.segment;
                break;
            }
            at += LOG_BLOCK;
        }
        let at = at.min(end);
        let count = next.get().saturating_sub(missing.get());
        if count == 0 || count.saturating_mul(log_record_len(1)) > at - start {
            return Err(self.contradiction(scan));
        }
        for n in 1..=count {
            let len = if n == count { at - start } else { 0 };
            let (generation, state) = (Generation::ZERO, RecordState::Damaged);
            let id = SegmentRef::new(scan.head.last.generation, scan.head.last.segment.next());
            scan.push(Record { position: start, len, payload_len: 0, generation, state }, id);
        }
        Ok(())
    }

    fn end_region(&mut self, scan: &mut Scan) -> Result<()> {
        while scan.head.position - self.superblock.tail + log_record_len(1) <= self.file.ring_len() {
            let expected = self.expected(scan, Region::End);
            let position = expected.position;
            let (mut finding, record) = classify(self.window.block(self.file, position), &expected);
            if let (Finding::Whole, Some(record)) = (finding, &record)
                && !self.payload_is_whole(record)
            {
                finding = Finding::PayloadBad;
            }
            let rule = decide(Region::End, finding, Place(scan.head));
            match (rule.action, record) {
                (Action::Keep, Some(record)) => {
                    scan.epoch = scan.epoch.max(record.epoch);
                    scan.push(held(&record, RecordState::Whole), record.id());
                }
                _ => {
                    scan.ended_by = Some(rule.label);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn expected(&self, scan: &Scan, region: Region) -> Expected<'a> {
        let last = scan.head.last;
        Expected {
            superblock: self.superblock,
            position: scan.head.position,
            segment: (last != SegmentRef::default()).then(|| last.segment.next()),
            generation: last.generation,
            region,
            epoch: scan.epoch,
            limit: match region {
                Region::Durable => self.superblock.head,
                _ => self.superblock.tail + self.file.ring_len(),
            },
        }
    }

    fn payload_is_whole(&mut self, record: &LogRecord) -> bool {
        let (start, len) = (record.position + LOG_BLOCK, record.payload_len);
        if let Some(bytes) = self.window.bytes(self.file, start, len) {
            return crate::format::xxh3_128(bytes) == record.payload_digest;
        }
        payload_digest(self.file, record, |_| ()).is_ok_and(|digest| digest == record.payload_digest)
    }

    fn contradiction(&self, scan: &Scan) -> Error {
        let text = format!(
            "replication log {}: the superblock says that {} ends at {}, the records that {} ends at {}: move the log \
             away, and its segments are fetched again",
            self.file.path().display(),
            self.superblock.last(),
            self.superblock.head,
            scan.head.last,
            scan.head.position,
        );
        Error::new(ErrorKind::Damaged, text)
    }
}

/// Reads the payload of `record`, hands it to `sink` in order without the padding, and answers with its digest.
pub(super) fn payload_digest(file: &LogFile, record: &LogRecord, mut sink: impl FnMut(&[u8])) -> Result<Digest> {
    let mut hash = Xxh3::new();
    let mut left = usize::try_from(record.payload_len).unwrap_or(usize::MAX);
    file.read(record.position + LOG_BLOCK, log_record_len(record.payload_len) - LOG_BLOCK, |bytes| {
        let part = &bytes[..bytes.len().min(left)];
        left -= part.len();
        hash.update(part);
        sink(part);
    })?;
    Ok(Digest(hash.digest128().to_le_bytes()))
}

fn held(record: &LogRecord, state: RecordState) -> Record {
    Record {
        position: record.position,
        len: log_record_len(record.payload_len),
        payload_len: u32::try_from(record.payload_len).expect("checked by the decoder"),
        generation: record.generation,
        state,
    }
}

struct Place(Mark);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "position {} (about {})", self.0.position, self.0.last.segment)
    }
}

/// The last part of the ring that was read, so that small records cost one read for many.
struct Window {
    // Not a buffer of the slab: whoever holds one of those must not wait for another, as a read does.
    bytes: Vec<u8>,
    start: u64,
    len: usize,
}

impl Window {
    fn new(file: &LogFile) -> Window {
        Window { bytes: vec![0; file.engine().slab().slot_size()], start: 0, len: 0 }
    }

    /// The block at `position`; `None` when it cannot be read.
    fn block(&mut self, file: &LogFile, position: u64) -> Option<&[u8]> {
        self.bytes(file, position, LOG_BLOCK)
    }

    /// `len` bytes at `position`; `None` when they cannot be read or do not fit the window.
    fn bytes(&mut self, file: &LogFile, position: u64, len: u64) -> Option<&[u8]> {
        let len = usize::try_from(len).ok()?;
        if !self.holds(position, len) {
            let most = self.bytes.len();
            let piece = pieces(file.ring_len(), position, file.ring_len(), most).next()?;
            if piece.len < len {
                return None;
            }
            // One bad sector must not hide its neighbours: fall back to the one block that was asked for.
            let at = piece.offset - LOG_RING_START;
            self.len = 0;
            for want in [piece.len, BLOCK] {
                if self.fill(file, LOG_RING_START + at, want) {
                    (self.start, self.len) = (position, want);
                    break;
                }
            }
        }
        let from = usize::try_from(position.checked_sub(self.start)?).ok()?;
        self.holds(position, len).then(|| &self.bytes[from..from + len])
    }

    fn holds(&self, position: u64, len: usize) -> bool {
        position >= self.start && position - self.start + len as u64 <= self.len as u64
    }

    fn fill(&mut self, file: &LogFile, offset: u64, len: usize) -> bool {
        let read = file.engine().read_blocking(file.id(), offset, &mut self.bytes[..len]);
        read.is_ok_and(|n| n == len)
    }
}
