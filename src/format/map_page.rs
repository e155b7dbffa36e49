//! Map pages: where each live extent of one fixed span (1 GiB) of one disk is stored.
//!
//! A page is immutable; a manifest refers to it again as long as nothing in its span changes. What no extent covers is
//! zero. Invariants: extents are sorted and disjoint, lie in the span, and each is a part of one frame, whose identity
//! and checksums it carries, so that a reader needs no segment index.

use crate::ids::{DiskId, DomainId, Generation, SegmentNo, SegmentRef};

use super::checksum::{Digest, xxh3_128};
use super::codec::Codec;
use super::decode_error::{DecodeError, DecodeResult};
use super::frame::{FrameBody, FrameId, check_frame_shape};
use super::layout::layout;
use super::magic;
use super::segment::{MAX_SEGMENT_LEN, SEGMENT_HEADER_LEN};
use super::wire::{Reader, Writer};

/// Bytes of disk that one page describes.
pub const PAGE_SPAN: u64 = 1 << 30;
/// Most bytes of a page: one extent for each 512 bytes of the span, and as many sources.
pub const MAX_PAGE_LEN: u64 = PageHeader::LEN as u64 + (PAGE_SPAN / 512) * (ExtentRow::LEN as u64 + 16);
const WHAT: &str = "map page";

/// Fewest bytes of a page with this many extents.
pub(crate) fn min_page_len(extents: u32) -> u64 {
    PageHeader::LEN as u64 + u64::from(extents) * ExtentRow::LEN as u64
}

layout! { header magic::MAP_PAGE;
    /// First bytes of a map page.
    pub(crate) struct PageHeader: 128 {
        /// Rows in the extent table.
        12 => extent_count: u32,
        /// Domain.
        16 => domain: DomainId,
        /// Disk.
        32 => disk: DiskId,
        /// Number of the page: its first byte of the disk, divided by 1 GiB.
        48 => page: u64,
        /// Generation of the point at which it was cut.
        56 => generation: Generation,
        /// Segment of the point at which it was cut.
        64 => segment: SegmentNo,
        /// Entries in the table of source segments (16 bytes each: generation, segment).
        72 => source_count: u32,
        /// Sum of the lengths of its extents.
        80 => live_bytes: u64,
        /// xxh3-128 of all bytes after this header.
        96 => body_digest: Digest,
    }
}

layout! { row;
    /// One live extent.
    pub(crate) struct ExtentRow: 64 {
        /// First byte, counted from the start of the page's span.
        0 => offset: u32,
        /// Bytes.
        4 => len: u32,
        /// Position in the table of source segments.
        8 => source: u32,
        /// First byte of the extent, counted from the start of the frame's raw bytes.
        12 => frame_offset: u32,
        /// Where the frame's header begins in its segment.
        16 => frame_pos: u64,
        /// Bytes of the frame's payload.
        24 => stored_len: u32,
        /// Bytes of the frame after decoding.
        28 => raw_len: u32,
        /// Codec of the frame.
        32 => codec: u8,
        /// xxh3-64 of the payload.
        40 => stored_sum: u64,
        /// xxh3-128 of the frame's raw bytes.
        48 => raw_digest: Digest,
    }
}

/// A frame and where it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef {
    /// Segment that holds it.
    pub segment: SegmentRef,
    /// Where its header begins in the segment.
    pub pos: u64,
    /// First byte of the disk that the frame covers.
    pub start: u64,
    /// Lengths and checksums.
    pub body: FrameBody,
}

impl FrameRef {
    /// Which frame it is.
    pub fn id(&self, domain: DomainId, disk: DiskId) -> FrameId {
        FrameId { domain, segment: self.segment, disk, offset: self.start }
    }

    /// First byte of the segment after the frame.
    pub fn end_pos(&self) -> u64 {
        self.pos + self.body.len_with_header()
    }
}

/// A live range of a disk and the frame that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte of the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// The frame; the extent begins `offset - frame.start` bytes into it.
    pub frame: FrameRef,
}

impl Extent {
    /// First byte after it.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }

    /// Whether it is the whole of its frame, so that its bytes can be checked against the frame's digest.
    pub fn is_whole_frame(&self) -> bool {
        self.offset == self.frame.start && self.len == self.frame.body.raw_len
    }
}

/// A map page, decoded and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapPage {
    /// Domain.
    pub domain: DomainId,
    /// Disk.
    pub disk: DiskId,
    /// Number of the page.
    pub page: u64,
    /// Point at which it was cut.
    pub cut: SegmentRef,
    /// Sorted and disjoint.
    pub extents: Vec<Extent>,
}

impl MapPage {
    /// Sum of the lengths of its extents.
    pub fn live_bytes(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.len)).sum()
    }

    /// The object's bytes. Fails where an invariant does not hold.
    pub fn encode(&self) -> DecodeResult<Vec<u8>> {
        self.check()?;
        let mut sources: Vec<SegmentRef> = self.extents.iter().map(|e| e.frame.segment).collect();
        sources.sort_unstable();
        sources.dedup();
        let mut body = Writer::new();
        for source in &sources {
            body.put(&source.generation).put(&source.segment);
        }
        let base = self.page * PAGE_SPAN;
        let low = |n: u64| u32::try_from(n).expect("within the span of a page");
        for e in &self.extents {
            let source = sources.binary_search(&e.frame.segment).expect("every source is in the table");
            let row = ExtentRow {
                offset: low(e.offset - base),
                len: e.len,
                source: low(source as u64),
                frame_offset: low(e.offset - e.frame.start),
                frame_pos: e.frame.pos,
                stored_len: e.frame.body.stored_len,
                raw_len: e.frame.body.raw_len,
                codec: e.frame.body.codec.number(),
                stored_sum: e.frame.body.stored_sum,
                raw_digest: e.frame.body.raw_digest,
            };
            body.raw(&row.encode());
        }
        let body = body.finish();
        let header = PageHeader {
            extent_count: low(self.extents.len() as u64),
            domain: self.domain,
            disk: self.disk,
            page: self.page,
            generation: self.cut.generation,
            segment: self.cut.segment,
            source_count: low(sources.len() as u64),
            live_bytes: self.live_bytes(),
            body_digest: xxh3_128(&body),
        };
        let mut out = header.encode().to_vec();
        out.extend_from_slice(&body);
        match out.len() as u64 <= MAX_PAGE_LEN {
            true => Ok(out),
            false => Err(DecodeError::value(WHAT, format!("{} bytes, at most {MAX_PAGE_LEN}", out.len()))),
        }
    }

    /// Extents in order and in place, and none from a segment after the point at which the page was cut.
    fn check(&self) -> DecodeResult<()> {
        check_extents(self.page, &self.extents)?;
        let late = self.extents.iter().map(|e| e.frame.segment).find(|s| !s.is_within(self.cut));
        match late {
            Some(source) => {
                Err(DecodeError::value(WHAT, format!("extent from {source} in a page cut at {}", self.cut)))
            }
            None => Ok(()),
        }
    }

    /// Decodes whatever page stands there, for offline inspection.
    pub fn decode_any(bytes: &[u8]) -> DecodeResult<MapPage> {
        let head = PageHeader::decode(bytes)?;
        let body = &bytes[PageHeader::LEN..];
        if xxh3_128(body) != head.body_digest {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        let mut from = Reader::new(WHAT, body);
        let need = u64::from(head.source_count) * 16 + u64::from(head.extent_count) * ExtentRow::LEN as u64;
        if need != body.len() as u64 {
            return Err(DecodeError::Short { what: WHAT, need, have: body.len() as u64 });
        }
        check_page_number(head.page)?;
        let mut sources = Vec::with_capacity(head.source_count as usize);
        for _ in 0..head.source_count {
            sources.push(SegmentRef::new(from.take()?, from.take()?));
        }
        let mut used = vec![false; sources.len()];
        let mut extents = Vec::with_capacity(head.extent_count as usize);
        for _ in 0..head.extent_count {
            let row = ExtentRow::decode(from.array()?)?;
            extents.push(extent_from(&row, head.page, &sources)?);
            used[row.source as usize] = true;
        }
        from.finish()?;
        if !sources.is_sorted_by(|a, b| a < b) || used.contains(&false) {
            return Err(DecodeError::value(WHAT, "sources out of order, doubled or without an extent"));
        }
        let cut = SegmentRef::new(head.generation, head.segment);
        let page = MapPage { domain: head.domain, disk: head.disk, page: head.page, cut, extents };
        page.check()?;
        match page.live_bytes() == head.live_bytes {
            true => Ok(page),
            false => Err(DecodeError::value(WHAT, "live bytes disagree with the extents")),
        }
    }

    /// Decodes page number `page` of `disk`, cut at `cut`.
    pub fn decode(bytes: &[u8], domain: DomainId, disk: DiskId, page: u64, cut: SegmentRef) -> DecodeResult<MapPage> {
        let found = MapPage::decode_any(bytes)?;
        if (found.domain, found.disk, found.page, found.cut) != (domain, disk, page, cut) {
            let show = |d: DomainId, k: DiskId, p: u64, c: SegmentRef| format!("domain {d} disk {k} page {p} at {c}");
            let found = show(found.domain, found.disk, found.page, found.cut);
            return Err(DecodeError::identity(WHAT, found, show(domain, disk, page, cut)));
        }
        Ok(found)
    }
}

fn extent_from(row: &ExtentRow, page: u64, sources: &[SegmentRef]) -> DecodeResult<Extent> {
    let Some(segment) = sources.get(row.source as usize) else {
        return Err(DecodeError::value(WHAT, format!("source {} of {}", row.source, sources.len())));
    };
    // Before it is added to the page's start: the last pages end close to where a u64 does.
    if u64::from(row.offset) >= PAGE_SPAN {
        return Err(DecodeError::value(WHAT, format!("extent at {} of the span", row.offset)));
    }
    let offset = page * PAGE_SPAN + u64::from(row.offset);
    let Some(start) = offset.checked_sub(u64::from(row.frame_offset)) else {
        return Err(DecodeError::value(WHAT, format!("extent at {offset} before its frame")));
    };
    let body = FrameBody {
        codec: Codec::from_number(row.codec)?,
        raw_len: row.raw_len,
        stored_len: row.stored_len,
        stored_sum: row.stored_sum,
        raw_digest: row.raw_digest,
    };
    Ok(Extent { offset, len: row.len, frame: FrameRef { segment: *segment, pos: row.frame_pos, start, body } })
}

fn check_page_number(page: u64) -> DecodeResult<()> {
    match page < u64::MAX / PAGE_SPAN {
        true => Ok(()),
        false => Err(DecodeError::value(WHAT, format!("page number {page}"))),
    }
}

fn check_extents(page: u64, extents: &[Extent]) -> DecodeResult<()> {
    check_page_number(page)?;
    let mut at = page * PAGE_SPAN;
    let end_of_span = at + PAGE_SPAN;
    for e in extents {
        check_frame_shape(WHAT, e.frame.start, &e.frame.body)?;
        let frame_end = e.frame.start + u64::from(e.frame.body.raw_len);
        let end = e.offset.checked_add(u64::from(e.len));
        let inside = e.len > 0 && e.offset >= e.frame.start && end.is_some_and(|end| end <= frame_end.min(end_of_span));
        if !inside || e.offset < at {
            return Err(DecodeError::value(WHAT, format!("extent {}+{} out of place", e.offset, e.len)));
        }
        let frame_end_pos = e.frame.pos.checked_add(e.frame.body.len_with_header());
        let in_segment = e.frame.pos >= SEGMENT_HEADER_LEN as u64 && frame_end_pos.is_some_and(|p| p < MAX_SEGMENT_LEN);
        if !in_segment {
            return Err(DecodeError::value(WHAT, format!("frame at {} of its segment", e.frame.pos)));
        }
        at = e.end();
    }
    Ok(())
}
