//! Watermark: the last point that a domain's disks at this site equalled, and what their files looked like then.
//!
//! It is written after the disks are synced, and speaks for the disks only while the hydration map agrees with it. The
//! stamps tell whether a file was changed by somebody else since.

use std::collections::HashSet;

use crate::ids::{DiskId, DomainId, Generation, SegmentNo, SegmentRef, Time};

use super::checksum::{Digest, xxh3_128};
use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;
use super::wire::{Reader, Writer};

/// Most bytes of a watermark.
pub const MAX_WATERMARK_LEN: u64 = WatermarkHeader::LEN as u64 + (StampRow::LEN as u64) * MAX_STAMPS as u64;
pub(crate) const MAX_STAMPS: u32 = 1_000_000;
const WHAT: &str = "watermark";

layout! { header magic::WATERMARK;
    /// First bytes of a watermark.
    pub(crate) struct WatermarkHeader: 96 {
        /// Rows in the table of stamps.
        12 => stamp_count: u32,
        /// Domain.
        16 => domain: DomainId,
        /// Bumped at each commit: the newest of the two files counts.
        32 => sequence: u64,
        /// Generation of the point.
        40 => generation: Generation,
        /// Segment of the point.
        48 => segment: SegmentNo,
        /// Time of the point.
        56 => point_time: Time,
        /// xxh3-128 of the table of stamps.
        64 => body_digest: Digest,
    }
}

layout! { row;
    /// What one disk's file looked like.
    pub(crate) struct StampRow: 48 {
        /// Disk.
        0 => disk: DiskId,
        /// Number of the file's inode.
        16 => inode: u64,
        /// Time of its last change, seconds since the Unix epoch.
        24 => changed_s: u64,
        /// And nanoseconds.
        32 => changed_ns: u32,
        /// Bytes of the file.
        40 => len: u64,
    }
}

/// What one disk's file looked like when the watermark was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    /// Disk.
    pub disk: DiskId,
    /// Number of the file's inode.
    pub inode: u64,
    /// Time of its last change: seconds since the Unix epoch, and nanoseconds.
    pub changed: (u64, u32),
    /// Bytes of the file.
    pub len: u64,
}

/// A watermark, decoded and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// Domain.
    pub domain: DomainId,
    /// Bumped at each commit.
    pub sequence: u64,
    /// The point.
    pub point: SegmentRef,
    /// Its time.
    pub point_time: Time,
    /// The files, each once.
    pub stamps: Vec<FileStamp>,
}

impl Watermark {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let body = encode_stamps(&self.stamps);
        let header = WatermarkHeader {
            stamp_count: u32::try_from(self.stamps.len()).expect("bounded by the domain"),
            domain: self.domain,
            sequence: self.sequence,
            generation: self.point.generation,
            segment: self.point.segment,
            point_time: self.point_time,
            body_digest: xxh3_128(&body),
        };
        let mut out = header.encode().to_vec();
        out.extend_from_slice(&body);
        out
    }

    /// From the file's bytes; what follows it (an older, longer one) is ignored.
    pub fn decode(bytes: &[u8]) -> DecodeResult<Watermark> {
        let head = WatermarkHeader::decode(bytes)?;
        let mut from = Reader::new(WHAT, &bytes[WatermarkHeader::LEN..]);
        if head.stamp_count > MAX_STAMPS {
            return Err(DecodeError::value(WHAT, format!("{} stamps", head.stamp_count)));
        }
        let body = from.raw(head.stamp_count as usize * StampRow::LEN)?;
        if xxh3_128(body) != head.body_digest {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        Ok(Watermark {
            domain: head.domain,
            sequence: head.sequence,
            point: SegmentRef::new(head.generation, head.segment),
            point_time: head.point_time,
            stamps: decode_stamps(body, WHAT)?,
        })
    }
}

/// Bytes of one row of a table of stamps.
pub(crate) const STAMP_LEN: usize = StampRow::LEN;

/// A table of stamps.
pub(crate) fn encode_stamps(stamps: &[FileStamp]) -> Vec<u8> {
    let mut out = Writer::new();
    for s in stamps {
        let row =
            StampRow { disk: s.disk, inode: s.inode, changed_s: s.changed.0, changed_ns: s.changed.1, len: s.len };
        out.raw(&row.encode());
    }
    out.finish()
}

/// A table of stamps from its bytes, which are whole rows; each disk once.
pub(crate) fn decode_stamps(bytes: &[u8], what: &'static str) -> DecodeResult<Vec<FileStamp>> {
    let (rows, _) = bytes.as_chunks::<STAMP_LEN>();
    let mut ids = HashSet::new();
    let stamps = rows.iter().map(|bytes| {
        let row = StampRow::decode(bytes)?;
        if !ids.insert(row.disk) {
            return Err(DecodeError::value(what, format!("disk {} twice", row.disk)));
        }
        Ok(FileStamp { disk: row.disk, inode: row.inode, changed: (row.changed_s, row.changed_ns), len: row.len })
    });
    stamps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_damaged_byte_is_noticed() {
        let stamp = FileStamp { disk: DiskId::from_bytes([4; 16]), inode: 5, changed: (6, 7), len: 8 };
        let watermark = Watermark {
            domain: DomainId::from_bytes([1; 16]),
            sequence: 2,
            point: SegmentRef::new(Generation::new(3), SegmentNo::new(4)),
            point_time: Time::from_millis(5),
            stamps: vec![stamp, FileStamp { disk: DiskId::from_bytes([5; 16]), ..stamp }],
        };
        let bytes = watermark.encode();
        assert_eq!(Watermark::decode(&bytes).unwrap(), watermark);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Watermark::decode(&bad).is_err(), "byte {at}");
            assert!(Watermark::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let twice = Watermark { stamps: vec![stamp; 2], ..watermark };
        assert!(Watermark::decode(&twice.encode()).is_err());
    }
}
