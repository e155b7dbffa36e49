//! Replication log file: two superblock slots, then a ring of records.
//!
//! ```text
//! 0          4096       8192                                                      file length
//! | slot 0   | slot 1   | ring: record | record | ...                    | (continues at 8192) |
//!                         record = header block 4096 | segment as it came | zeros to a multiple of 4096
//! ```
//!
//! *Positions* count the bytes that were ever put into the ring and only grow; position `p` stands at byte
//! `8192 + p mod ring length` of the file. A header block is never split; a payload that reaches the end of the file
//! goes on at the beginning of the ring, so there is neither a gap nor a marker there. Since a record says its own
//! position, a record of an earlier lap is told from the one that should be there, and a missing one is noticed.
//!
//! The *epoch* grows each time the log is opened or rewound, and the superblock that says so is durable before the
//! first record of the epoch: a record that an earlier recovery dropped can never be taken for a successor of newer ones.

use crate::ids::{DomainId, Generation, SegmentNo, SegmentRef, uuid_id};

use super::checksum::{Digest, xxh3_128};
use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;
use super::segment::MAX_SEGMENT_LEN;

/// Unit of the log in bytes: positions, records and the file are multiples of it.
pub const LOG_BLOCK: u64 = 4096;
/// Bytes before the ring: the two superblock slots.
pub const LOG_RING_START: u64 = 2 * LOG_BLOCK;
/// Longest log file in bytes. Far above any use; keeps every sum of positions and lengths inside a u64.
pub const MAX_LOG_LEN: u64 = 1 << 50;
/// Highest position: a log that writes 10 GB/s gets there after fourteen years, and is then made anew.
pub const MAX_LOG_POSITION: u64 = 1 << 62;

uuid_id!(drawn
    /// Identity of one log file, drawn when it is made and repeated in every record.
    LogId
);
uuid_id!(
    /// Identity of the recovery datastore whose disks a log feeds.
    DatastoreId
);

impl DatastoreId {
    /// The datastore in directory `canonical`, an absolute path without links: the same path is the same datastore.
    pub fn of_path(canonical: &std::path::Path) -> DatastoreId {
        use std::os::unix::ffi::OsStrExt;
        DatastoreId(xxh3_128(canonical.as_os_str().as_bytes()).0)
    }
}

layout! { header magic::LOG_SUPERBLOCK;
    /// One superblock slot. The valid one with the higher sequence counts.
    pub struct LogSuperblock: 4096 {
        /// The log.
        16 => log: LogId,
        /// Domain whose segments it holds.
        32 => domain: DomainId,
        /// Datastore that it feeds.
        48 => datastore: DatastoreId,
        /// Number of this superblock, from 1; it stands in slot `sequence mod 2`.
        64 => sequence: u64,
        /// Bytes of the file.
        72 => file_len: u64,
        /// Epoch of the records that are appended after this superblock.
        80 => epoch: u64,
        /// Position of the first record that is held; what is before may be overwritten.
        88 => tail: u64,
        /// Position after the last record that was durable when this was written.
        96 => head: u64,
        /// Number of the segment at `tail`; zero when none is held.
        104 => first: SegmentNo,
        /// Generation of the segment that ends at `head`; zero when there never was one.
        112 => last_generation: Generation,
        /// Its number, also after it was trimmed; the next one appended follows it. Zero: any may be the first.
        120 => last_segment: SegmentNo,
    }
}

layout! { header magic::LOG_RECORD;
    /// Header block of a record.
    pub struct LogRecord: 4096 {
        /// The log.
        16 => log: LogId,
        /// Domain of the segment.
        32 => domain: DomainId,
        /// Its own position: bytes put into the ring before it. Position / ring length is the lap.
        48 => position: u64,
        /// Epoch in which it was appended.
        56 => epoch: u64,
        /// Generation of the segment.
        64 => generation: Generation,
        /// Number of the segment, one higher than that of the record before.
        72 => segment: SegmentNo,
        /// Bytes of the segment.
        80 => payload_len: u64,
        /// xxh3-128 of the segment's bytes.
        88 => payload_digest: Digest,
    }
}

/// Bytes that a segment of `payload_len` bytes takes in the ring.
pub const fn log_record_len(payload_len: u64) -> u64 {
    LOG_BLOCK + payload_len.next_multiple_of(LOG_BLOCK)
}

/// Bytes of the smallest file that holds a segment of `payload_len` bytes.
pub const fn min_log_len(payload_len: u64) -> u64 {
    LOG_RING_START + log_record_len(payload_len)
}

impl LogSuperblock {
    /// The last segment that was durable when this was written.
    pub fn last(&self) -> SegmentRef {
        SegmentRef::new(self.last_generation, self.last_segment)
    }

    /// Bytes of the ring.
    pub fn ring_len(&self) -> u64 {
        self.file_len - LOG_RING_START
    }

    /// Decodes what stands in slot 0 or 1, and checks that its numbers fit together.
    pub fn open(bytes: &[u8], slot: u64) -> DecodeResult<LogSuperblock> {
        let superblock = LogSuperblock::decode(bytes)?;
        superblock.check(slot).map_err(|why| DecodeError::value(magic::LOG_SUPERBLOCK.what, why))?;
        Ok(superblock)
    }

    fn check(&self, slot: u64) -> Result<(), String> {
        if self.sequence % 2 != slot || self.sequence == 0 {
            return Err(format!("number {} in slot {slot}", self.sequence));
        }
        let blocks = [self.file_len, self.tail, self.head].iter().all(|n| n.is_multiple_of(LOG_BLOCK));
        if !blocks || !(min_log_len(1)..=MAX_LOG_LEN).contains(&self.file_len) || self.head > MAX_LOG_POSITION {
            return Err(format!("file of {} bytes, positions {} to {}", self.file_len, self.tail, self.head));
        }
        if self.tail > self.head || self.head - self.tail > self.ring_len() {
            let ring = self.ring_len();
            return Err(format!("positions {} to {} in a ring of {ring} bytes", self.tail, self.head));
        }
        let empty = self.tail == self.head;
        let numbers = match empty {
            true => self.first == SegmentNo::ZERO,
            false => self.first != SegmentNo::ZERO && self.first <= self.last_segment,
        };
        match numbers {
            true => Ok(()),
            false => Err(format!("segments {} to {}, empty: {empty}", self.first, self.last_segment)),
        }
    }
}

impl LogRecord {
    /// The segment.
    pub fn id(&self) -> SegmentRef {
        SegmentRef::new(self.generation, self.segment)
    }

    /// Position after it.
    pub fn end(&self) -> u64 {
        self.position + log_record_len(self.payload_len)
    }

    /// Decodes a header block and checks its bounds. Whether it is the record that should be there is up to the caller.
    pub fn open(bytes: &[u8]) -> DecodeResult<LogRecord> {
        let record = LogRecord::decode(bytes)?;
        let fits = (1..=MAX_SEGMENT_LEN).contains(&record.payload_len)
            && record.position.is_multiple_of(LOG_BLOCK)
            && record.position <= MAX_LOG_POSITION
            && record.segment != SegmentNo::ZERO;
        if !fits {
            let why = format!("{} of {} bytes at {}", record.id(), record.payload_len, record.position);
            return Err(DecodeError::value(magic::LOG_RECORD.what, why));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> LogSuperblock {
        LogSuperblock {
            log: LogId::from_bytes([1; 16]),
            domain: DomainId::from_bytes([2; 16]),
            datastore: DatastoreId::from_bytes([3; 16]),
            sequence: 7,
            file_len: 1 << 20,
            epoch: 3,
            tail: 40 << 20,
            head: (40 << 20) + 16384,
            first: SegmentNo::new(9),
            last_generation: Generation::new(2),
            last_segment: SegmentNo::new(10),
        }
    }

    fn record() -> LogRecord {
        LogRecord {
            log: LogId::from_bytes([1; 16]),
            domain: DomainId::from_bytes([2; 16]),
            position: 8192,
            epoch: 3,
            generation: Generation::new(2),
            segment: SegmentNo::new(9),
            payload_len: 5000,
            payload_digest: Digest([4; 16]),
        }
    }

    #[test]
    fn both_blocks_come_back_and_every_flipped_byte_is_noticed() {
        let (s, r) = (superblock().encode(), record().encode());
        assert_eq!(LogSuperblock::open(&s, 1).unwrap(), superblock());
        assert_eq!(LogRecord::open(&r).unwrap(), record());
        for at in 0..s.len() {
            let (mut s, mut r) = (s, r);
            s[at] ^= 1;
            r[at] ^= 1;
            assert!(LogSuperblock::open(&s, 1).is_err() && LogRecord::open(&r).is_err(), "byte {at}");
        }
        for len in [0, 9, 4095] {
            assert!(LogSuperblock::open(&s[..len], 1).is_err() && LogRecord::open(&r[..len]).is_err());
        }
    }

    #[test]
    fn numbers_that_do_not_fit_together_are_refused() {
        let bad: [fn(&mut LogSuperblock); 9] = [
            |s| s.sequence = 8,
            |s| s.file_len = 8192 + 4096,
            |s| s.file_len += 512,
            |s| s.tail += 512,
            |s| s.tail = s.head + 4096,
            |s| s.tail = 0,
            |s| s.tail = s.head,
            |s| s.first = SegmentNo::new(11),
            |s| s.head = u64::MAX - 4095,
        ];
        for (n, change) in bad.iter().enumerate() {
            let mut s = superblock();
            change(&mut s);
            assert!(LogSuperblock::open(&s.encode(), 1).is_err(), "case {n}");
        }
        let bad: [fn(&mut LogRecord); 5] = [
            |r| r.payload_len = 0,
            |r| r.payload_len = MAX_SEGMENT_LEN + 1,
            |r| r.position = u64::MAX - 4095,
            |r| r.position = 100,
            |r| r.segment = SegmentNo::ZERO,
        ];
        for (n, change) in bad.iter().enumerate() {
            let mut r = record();
            change(&mut r);
            assert!(LogRecord::open(&r.encode()).is_err(), "case {n}");
        }
    }

    #[test]
    fn lengths_are_whole_blocks() {
        assert_eq!(log_record_len(1), 8192);
        assert_eq!(log_record_len(4096), 8192);
        assert_eq!(log_record_len(4097), 12288);
        assert_eq!(min_log_len(16 << 20), (16 << 20) + 3 * 4096);
    }
}
