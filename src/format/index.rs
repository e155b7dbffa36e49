//! A segment's index: its disks, every frame and zeroed range, the point it ends at, and the catalogue where it changed.
//!
//! Invariants: disks are unique; entries are sorted by disk and offset and are disjoint; the frames fill the space
//! between the segment's header and its index, so that no byte of a segment is without a checksum. The index repeats the parent and its digest, so that the digest of one index covers the whole chain before.

use std::collections::HashSet;

use crate::ids::{DiskId, DomainId, Generation, SegmentNo, SegmentRef, VmId};

use super::catalogue::{Catalogue, MAX_CATALOGUE_LEN};
use super::checksum::{Digest, xxh3_128};
use super::codec::Codec;
use super::decode_error::{DecodeError, DecodeResult};
use super::frame::{FrameBody, FrameId, check_frame_shape};
use super::layout::layout;
use super::magic;
use super::point::Point;
use super::segment::{SEGMENT_HEADER_LEN, SegmentHeader};
use super::wire::{Reader, Writer};

/// Most bytes of an index.
pub const MAX_INDEX_LEN: u32 = 96 << 20;
const WHAT: &str = "segment index";

layout! { header magic::INDEX;
    /// What stands in front of an index.
    pub(crate) struct IndexHeader: 128 {
        /// Rows in the disk table.
        12 => disk_count: u32,
        /// Domain.
        16 => domain: DomainId,
        /// Generation of the segment.
        32 => generation: Generation,
        /// Number of the segment.
        40 => segment: SegmentNo,
        /// Generation of the parent segment; zero for the first.
        48 => parent_generation: Generation,
        /// Number of the parent segment; zero for the first.
        56 => parent_segment: SegmentNo,
        /// Digest of the parent's index; zero for the first.
        64 => parent_digest: Digest,
        /// Rows in the entry table.
        80 => entry_count: u32,
        /// Bytes of the point part; zero where the segment does not end at a point.
        84 => point_len: u32,
        /// Bytes of the catalogue; zero where it did not change.
        88 => catalogue_len: u32,
    }
}

layout! { row;
    /// A disk that entries refer to by position.
    pub(crate) struct DiskRow: 48 {
        /// Identity of the disk.
        0 => disk: DiskId,
        /// VM that it belongs to.
        16 => vm: VmId,
        /// Bytes of the disk.
        32 => size: u64,
    }
}

layout! { row;
    /// A frame, or a range of zeros.
    pub(crate) struct EntryRow: 64 {
        /// Position in the disk table.
        0 => disk: u32,
        /// 0: data, with a frame. 1: zeros, without payload.
        4 => kind: u8,
        /// Codec of the frame; 0 for zeros.
        5 => codec: u8,
        /// First byte of the disk.
        8 => offset: u64,
        /// Bytes of the disk.
        16 => len: u64,
        /// Where the frame's header begins in the segment; 0 for zeros.
        24 => frame_pos: u64,
        /// Bytes of payload; 0 for zeros.
        32 => stored_len: u32,
        /// xxh3-64 of the payload; 0 for zeros.
        40 => stored_sum: u64,
        /// xxh3-128 of the raw bytes; 0 for zeros.
        48 => raw_digest: Digest,
    }
}

const DATA: u8 = 0;
const ZERO: u8 = 1;

/// A disk of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexDisk {
    /// Identity of the disk.
    pub id: DiskId,
    /// VM that it belongs to.
    pub vm: VmId,
    /// Bytes of the disk.
    pub size: u64,
}

/// One entry of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Position in [`Index::disks`].
    pub disk: u32,
    /// First byte of the disk.
    pub offset: u64,
    /// Bytes of the disk.
    pub len: u64,
    /// The frame and where its header begins in the segment; `None` for zeros.
    pub frame: Option<(u64, FrameBody)>,
}

/// A segment's index, decoded and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Domain.
    pub domain: DomainId,
    /// The segment.
    pub segment: SegmentRef,
    /// The segment before it; zero for the first.
    pub parent: SegmentRef,
    /// Digest of the parent's index; zero for the first.
    pub parent_digest: Digest,
    /// Disks that entries refer to.
    pub disks: Vec<IndexDisk>,
    /// Sorted by disk and offset, disjoint.
    pub entries: Vec<IndexEntry>,
    /// The point at which the segment ends.
    pub point: Option<Point>,
    /// The domain's catalogue from this segment on, where it changed.
    pub catalogue: Option<Catalogue>,
}

impl Index {
    /// Which frame an entry of this index names.
    pub fn frame_id(&self, entry: &IndexEntry) -> FrameId {
        let disk = self.disks[entry.disk as usize].id;
        FrameId { domain: self.domain, segment: self.segment, disk, offset: entry.offset }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let point = self.point.as_ref().map(Point::encode).unwrap_or_default();
        let catalogue = self.catalogue.as_ref().map(Catalogue::encode).unwrap_or_default();
        let bounded = |n: usize| u32::try_from(n).expect("bounded by the segment's length");
        let header = IndexHeader {
            disk_count: bounded(self.disks.len()),
            domain: self.domain,
            generation: self.segment.generation,
            segment: self.segment.segment,
            parent_generation: self.parent.generation,
            parent_segment: self.parent.segment,
            parent_digest: self.parent_digest,
            entry_count: bounded(self.entries.len()),
            point_len: bounded(point.len()),
            catalogue_len: bounded(catalogue.len()),
        };
        let mut out = Writer::new();
        out.raw(&header.encode());
        for disk in &self.disks {
            out.raw(&DiskRow { disk: disk.id, vm: disk.vm, size: disk.size }.encode());
        }
        for entry in &self.entries {
            out.raw(&entry_row(entry).encode());
        }
        out.raw(&point).raw(&catalogue);
        out.finish()
    }

    /// From the bytes of the index of the segment that `header` begins; checks digest, identity and every invariant.
    pub fn decode(bytes: &[u8], header: &SegmentHeader) -> DecodeResult<Index> {
        if bytes.len() as u64 != u64::from(header.index_len) {
            let need = u64::from(header.index_len);
            return Err(DecodeError::Short { what: WHAT, need, have: bytes.len() as u64 });
        }
        if xxh3_128(bytes) != header.index_digest {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        let index = Index::parse(bytes, header.index_pos)?;
        index.check_sums(header)?;
        let same = index.domain == header.domain
            && index.segment == header.id()
            && index.parent == header.parent()
            && index.parent_digest == header.parent_digest;
        match same {
            true => Ok(index),
            false => Err(DecodeError::identity(WHAT, index.segment, header.id())),
        }
    }

    /// The frames fill the space before the index, and are as many and as long as the header says.
    fn check_sums(&self, header: &SegmentHeader) -> DecodeResult<()> {
        let frames = self.entries.iter().filter_map(|e| e.frame.as_ref().map(|(_, body)| body));
        let (mut count, mut raw, mut stored) = (0_u64, 0_u64, 0_u64);
        for body in frames {
            count += 1;
            raw += u64::from(body.raw_len);
            stored += body.len_with_header();
        }
        if count != u64::from(header.frame_count) || raw != header.raw_bytes {
            let why = format!("header tells of {} frames and {} bytes", header.frame_count, header.raw_bytes);
            return Err(DecodeError::value(WHAT, format!("{count} frames with {raw} raw bytes: {why}")));
        }
        if SEGMENT_HEADER_LEN as u64 + stored != header.index_pos {
            let why = format!("frames of {stored} stored bytes before an index at {}", header.index_pos);
            return Err(DecodeError::value(WHAT, why));
        }
        Ok(())
    }

    fn parse(bytes: &[u8], index_pos: u64) -> DecodeResult<Index> {
        let head = IndexHeader::decode(bytes)?;
        let mut from = Reader::new(WHAT, bytes);
        from.raw(IndexHeader::LEN)?;
        let rows_len =
            u64::from(head.disk_count) * DiskRow::LEN as u64 + u64::from(head.entry_count) * EntryRow::LEN as u64;
        if rows_len > from.remaining() as u64 {
            return Err(DecodeError::Short { what: WHAT, need: rows_len, have: from.remaining() as u64 });
        }
        let mut disks = Vec::with_capacity(head.disk_count as usize);
        for _ in 0..head.disk_count {
            let row = DiskRow::decode(from.array()?)?;
            disks.push(IndexDisk { id: row.disk, vm: row.vm, size: row.size });
        }
        check_disks(&disks)?;
        let mut entries = Vec::with_capacity(head.entry_count as usize);
        for _ in 0..head.entry_count {
            entries.push(entry_from(&EntryRow::decode(from.array()?)?, &disks, index_pos)?);
        }
        check_order(&entries)?;
        let point = from.raw(head.point_len as usize)?;
        let point = if point.is_empty() { None } else { Some(Point::decode(point)?) };
        let catalogue = match head.catalogue_len as usize {
            0 => None,
            n if n > MAX_CATALOGUE_LEN => return Err(DecodeError::value(WHAT, format!("catalogue of {n} bytes"))),
            n => Some(Catalogue::decode(from.raw(n)?)?),
        };
        from.finish()?;
        Ok(Index {
            domain: head.domain,
            segment: SegmentRef::new(head.generation, head.segment),
            parent: SegmentRef::new(head.parent_generation, head.parent_segment),
            parent_digest: head.parent_digest,
            disks,
            entries,
            point,
            catalogue,
        })
    }
}

impl EntryRow {
    fn has_frame_fields(&self) -> bool {
        let numbers = u64::from(self.codec) | self.frame_pos | u64::from(self.stored_len) | self.stored_sum;
        numbers != 0 || self.raw_digest != Digest::default()
    }
}

/// Each disk stands in the table once: otherwise entries of one disk could overlap unseen.
fn check_disks(disks: &[IndexDisk]) -> DecodeResult<()> {
    let mut ids = HashSet::with_capacity(disks.len());
    match disks.iter().find(|d| !ids.insert(d.id)) {
        Some(twice) => Err(DecodeError::value(WHAT, format!("disk {} twice in the table", twice.id))),
        None => Ok(()),
    }
}

fn entry_row(entry: &IndexEntry) -> EntryRow {
    let frame = entry.frame.as_ref();
    EntryRow {
        disk: entry.disk,
        kind: if frame.is_some() { DATA } else { ZERO },
        codec: frame.map_or(0, |(_, b)| b.codec.number()),
        offset: entry.offset,
        len: entry.len,
        frame_pos: frame.map_or(0, |(pos, _)| *pos),
        stored_len: frame.map_or(0, |(_, b)| b.stored_len),
        stored_sum: frame.map_or(0, |(_, b)| b.stored_sum),
        raw_digest: frame.map_or(Digest::default(), |(_, b)| b.raw_digest),
    }
}

fn entry_from(row: &EntryRow, disks: &[IndexDisk], index_pos: u64) -> DecodeResult<IndexEntry> {
    let Some(disk) = disks.get(row.disk as usize) else {
        return Err(DecodeError::value(WHAT, format!("entry of disk {} of {}", row.disk, disks.len())));
    };
    let end = row.offset.checked_add(row.len);
    if row.len == 0 || end.is_none_or(|end| end > disk.size) {
        let why = format!("range {}+{} of a disk of {} bytes", row.offset, row.len, disk.size);
        return Err(DecodeError::value(WHAT, why));
    }
    let frame = match row.kind {
        ZERO if row.has_frame_fields() => return Err(DecodeError::value(WHAT, "zeros with a payload")),
        ZERO => None,
        DATA => {
            let raw_len = u32::try_from(row.len).map_err(|_| DecodeError::value(WHAT, "frame over 4 GiB"))?;
            let body = FrameBody {
                codec: Codec::from_number(row.codec)?,
                raw_len,
                stored_len: row.stored_len,
                stored_sum: row.stored_sum,
                raw_digest: row.raw_digest,
            };
            check_frame_shape(WHAT, row.offset, &body)?;
            let end = row.frame_pos.checked_add(body.len_with_header());
            if row.frame_pos < SEGMENT_HEADER_LEN as u64 || end.is_none_or(|end| end > index_pos) {
                return Err(DecodeError::value(WHAT, format!("frame at {} outside the data", row.frame_pos)));
            }
            Some((row.frame_pos, body))
        }
        kind => return Err(DecodeError::value(WHAT, format!("entry kind {kind}: use a newer freshet"))),
    };
    Ok(IndexEntry { disk: row.disk, offset: row.offset, len: row.len, frame })
}

/// Entries are sorted and disjoint.
pub(crate) fn check_order(entries: &[IndexEntry]) -> DecodeResult<()> {
    for (a, b) in entries.iter().zip(entries.iter().skip(1)) {
        let ordered = a.disk < b.disk || (a.disk == b.disk && a.offset.saturating_add(a.len) <= b.offset);
        if !ordered {
            let why = format!("entries out of order or overlapping at disk {} offset {}", b.disk, b.offset);
            return Err(DecodeError::value(WHAT, why));
        }
    }
    Ok(())
}
