//! Reading segments back: verified, and only what is durable.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{LOG_RING_START, LogRecord, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::ids::{SegmentNo, SegmentRef};

use super::file::LogFile;
use super::recover::payload_digest;
use super::ring::Record;
use super::shared::Shared;
use super::{LogIdentity, ReplicationLog};

pub(super) fn read(
    shared: &Shared,
    file: &LogFile,
    identity: &LogIdentity,
    segment: SegmentNo,
    buffer: &mut Vec<u8>,
) -> Result<SegmentHeader> {
    let record = locate(shared, segment)?;
    if record.payload_len == 0 {
        return Err(damaged(shared, segment, "its record cannot be found"));
    }
    let read = read_record(shared, file, identity, segment, &record, buffer);
    if read.is_err() {
        // Meanwhile it may have been trimmed and overwritten: that is no damage.
        locate(shared, segment)?;
    }
    read
}

fn locate(shared: &Shared, segment: SegmentNo) -> Result<Record> {
    let state = shared.lock()?;
    let landed = state.ring.synced().last.segment;
    state.ring.find(segment).filter(|_| segment <= landed).ok_or_else(|| {
        let first = state.ring.first();
        let text = format!("segment {segment} is not in the replication log, which holds {first} to {landed}");
        Error::new(ErrorKind::NotFound, text)
    })
}

fn damaged(shared: &Shared, segment: SegmentNo, why: impl std::fmt::Display) -> Error {
    let path = shared.path();
    let text = format!("replication log {path}: segment {segment}: {why}: fetch it again from the storage site");
    Error::new(ErrorKind::Damaged, text)
}

fn read_record(
    shared: &Shared,
    file: &LogFile,
    identity: &LogIdentity,
    segment: SegmentNo,
    held: &Record,
    buffer: &mut Vec<u8>,
) -> Result<SegmentHeader> {
    let bad = |why: String| damaged(shared, segment, why);
    let block = file.read_block(LOG_RING_START + held.position % file.ring_len())?;
    let record = LogRecord::open(&block).map_err(|e| bad(e.to_string()))?;
    let ours = record.log == identity.log
        && record.domain == identity.domain
        && record.position == held.position
        && record.id() == SegmentRef::new(held.generation, segment)
        && record.payload_len == u64::from(held.payload_len);
    if !ours {
        return Err(bad(format!("another record stands in its place, {} at {}", record.id(), record.position)));
    }
    buffer.clear();
    buffer.reserve(held.payload_len as usize);
    let digest = payload_digest(file, &record, |part| buffer.extend_from_slice(part))?;
    if digest != record.payload_digest {
        buffer.clear();
        return Err(bad("its bytes do not have their digest".into()));
    }
    let head = &buffer[..buffer.len().min(SEGMENT_HEADER_LEN)];
    let header = SegmentHeader::open(head, identity.domain, record.id()).map_err(|e| bad(e.to_string()))?;
    match header.total_len == record.payload_len {
        true => Ok(header),
        false => Err(bad(format!("{} bytes of a segment of {}", record.payload_len, header.total_len))),
    }
}

/// The segments of a log from the first one held to the last one that has landed, one buffer for all of them.
#[derive(Debug)]
pub struct LogCursor<'a> {
    log: &'a ReplicationLog,
    next: SegmentNo,
    buffer: Vec<u8>,
}

impl<'a> LogCursor<'a> {
    pub(super) fn new(log: &'a ReplicationLog, next: SegmentNo) -> LogCursor<'a> {
        LogCursor { log, next, buffer: Vec::new() }
    }

    /// The next segment and its number; `None` after the last one that has landed so far: later it may go on. A damaged
    /// one is an error with its number, and the cursor goes on after it.
    #[expect(clippy::should_implement_trait, reason = "the item borrows the cursor's buffer")]
    pub fn next(&mut self) -> Option<(SegmentNo, Result<&[u8]>)> {
        let held = self.log.held();
        let segment = self.next.max(held.first);
        if segment == SegmentNo::ZERO || segment > held.landed.segment || held.first == SegmentNo::ZERO {
            return None;
        }
        self.next = segment.next();
        let read = self.log.read(segment, &mut self.buffer);
        Some((segment, read.map(|_| self.buffer.as_slice())))
    }
}
