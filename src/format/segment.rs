//! Segments: header, frames, index, footer; the unit of upload, landing and atomic apply.
//!
//! A segment is built whole in memory and never changed. Frames are compressed straight into its buffer; their headers,
//! which repeat the segment's number, are filled in when it is sealed, since the number is only then known. A chain of
//! segments can be proved whole: each names its parent and the digest of the parent's index.

use crate::ids::{DiskId, DomainId, Generation, SegmentNo, SegmentRef, Time, VmId, WriterId};

use super::catalogue::Catalogue;
use super::checksum::{Digest, xxh3_128};
use super::decode_error::{DecodeError, DecodeResult};
use super::frame::{FRAME_HEADER_LEN, FrameEncoder, FrameHeader, VerifiedFrame};
use super::index::{Index, IndexDisk, IndexEntry, MAX_INDEX_LEN, check_order};
use super::layout::layout;
use super::magic;
use super::parts::Parts;
use super::point::Point;

/// Most bytes of a segment; a replication log must hold at least one.
pub const MAX_SEGMENT_LEN: u64 = 128 << 20;
/// Bytes of a segment's header.
pub const SEGMENT_HEADER_LEN: usize = SegmentHeader::LEN;
/// Bytes of a segment's footer.
pub const SEGMENT_FOOTER_LEN: usize = SegmentFooter::LEN;

layout! { header magic::SEGMENT;
    /// First bytes of a segment.
    pub struct SegmentHeader: 256 {
        /// Frames in it.
        12 => frame_count: u32,
        /// Domain.
        16 => domain: DomainId,
        /// Generation that wrote it.
        32 => generation: Generation,
        /// Its number.
        40 => segment: SegmentNo,
        /// Generation of the parent segment; zero for the first.
        48 => parent_generation: Generation,
        /// Number of the parent segment; zero for the first.
        56 => parent_segment: SegmentNo,
        /// Digest of the parent's index; zero for the first.
        64 => parent_digest: Digest,
        /// Run of the writer.
        80 => writer: WriterId,
        /// When it was sealed, by the writer's clock.
        96 => created: Time,
        /// Bytes of the whole segment.
        104 => total_len: u64,
        /// Where the index begins.
        112 => index_pos: u64,
        /// Bytes of the index.
        120 => index_len: u32,
        /// Key that encrypts the segment; 0 is none. Reserved.
        124 => key_id: u32,
        /// xxh3-128 of the index.
        128 => index_digest: Digest,
        /// Sum of the raw lengths of its frames.
        144 => raw_bytes: u64,
        /// Nonce of the encryption; zero. Reserved.
        152 => nonce: [u8; 12],
    }
}

layout! { header magic::FOOTER;
    /// Last bytes of a segment: it is there whole.
    pub struct SegmentFooter: 64 {
        /// Bytes of the index.
        12 => index_len: u32,
        /// Generation of the segment.
        16 => generation: Generation,
        /// Number of the segment.
        24 => segment: SegmentNo,
        /// Bytes of the whole segment.
        32 => total_len: u64,
        /// Where the index begins.
        40 => index_pos: u64,
    }
}

impl SegmentHeader {
    /// The segment.
    pub fn id(&self) -> SegmentRef {
        SegmentRef::new(self.generation, self.segment)
    }

    /// The segment before it; zero for the first.
    pub fn parent(&self) -> SegmentRef {
        SegmentRef::new(self.parent_generation, self.parent_segment)
    }

    /// Decodes the header of segment `id` of `domain`, and checks that its lengths add up.
    pub fn open(bytes: &[u8], domain: DomainId, id: SegmentRef) -> DecodeResult<SegmentHeader> {
        let header = SegmentHeader::decode(bytes)?;
        if header.domain != domain || header.id() != id {
            let found = format!("domain {} {}", header.domain, header.id());
            return Err(DecodeError::identity("segment header", found, format!("domain {domain} {id}")));
        }
        header.check()?;
        Ok(header)
    }

    /// Checks that the lengths add up.
    pub fn check(&self) -> DecodeResult<()> {
        let end = self.index_pos.checked_add(u64::from(self.index_len) + SEGMENT_FOOTER_LEN as u64);
        let fits = end == Some(self.total_len)
            && self.total_len <= MAX_SEGMENT_LEN
            && self.index_len <= MAX_INDEX_LEN
            && self.index_pos >= SEGMENT_HEADER_LEN as u64;
        if !fits {
            let why = format!("index {}+{} in {} bytes", self.index_pos, self.index_len, self.total_len);
            return Err(DecodeError::value("segment header", why));
        }
        if self.key_id != 0 || self.nonce != [0; 12] {
            return Err(DecodeError::value("segment header", "encrypted: use a newer freshet"));
        }
        self.check_chain()
    }

    /// Segments are numbered from 1 without gaps, and generations only grow along the chain.
    fn check_chain(&self) -> DecodeResult<()> {
        let follows = self.segment.get().checked_sub(1) == Some(self.parent_segment.get());
        let first = self.parent_segment == SegmentNo::ZERO;
        let from_nothing = self.parent_generation == Generation::ZERO && self.parent_digest == Digest::default();
        let grows = self.generation != Generation::ZERO && self.parent_generation <= self.generation;
        if !follows || !grows || first != (self.parent_generation == Generation::ZERO) || (first && !from_nothing) {
            return Err(DecodeError::value("segment header", format!("{} after {}", self.id(), self.parent())));
        }
        Ok(())
    }
}

/// A whole segment in memory whose header, index and footer are verified.
#[derive(Debug, Clone)]
pub struct Segment<'a> {
    /// Its header.
    pub header: SegmentHeader,
    /// Its index.
    pub index: Index,
    bytes: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Opens segment `id` of `domain`.
    pub fn open(bytes: &'a [u8], domain: DomainId, id: SegmentRef) -> DecodeResult<Segment<'a>> {
        Segment::with_header(bytes, SegmentHeader::open(bytes, domain, id)?)
    }

    /// Opens whatever segment stands there, for offline inspection.
    pub fn open_any(bytes: &'a [u8]) -> DecodeResult<Segment<'a>> {
        let header = SegmentHeader::decode(bytes)?;
        header.check()?;
        Segment::with_header(bytes, header)
    }

    fn with_header(bytes: &'a [u8], header: SegmentHeader) -> DecodeResult<Segment<'a>> {
        if bytes.len() as u64 != header.total_len {
            return Err(DecodeError::Short { what: "segment", need: header.total_len, have: bytes.len() as u64 });
        }
        let index_pos = usize::try_from(header.index_pos).expect("checked against the length");
        let index = open_tail(&bytes[index_pos..], &header)?;
        Ok(Segment { header, index, bytes })
    }

    /// The frame of an entry of its index, verified; `None` for zeros.
    pub fn frame(&self, entry: &IndexEntry) -> DecodeResult<Option<VerifiedFrame<'a>>> {
        let Some((pos, body)) = &entry.frame else { return Ok(None) };
        let foreign = || DecodeError::value("segment", "asked for a frame of another segment");
        let range = usize::try_from(*pos).ok().and_then(|start| {
            let len = FRAME_HEADER_LEN + body.stored_len as usize;
            self.bytes.get(start..start.checked_add(len)?)
        });
        let stored = range.ok_or_else(foreign)?;
        VerifiedFrame::open(stored, &self.index.frame_id(entry), body).map(Some)
    }

    /// Verifies every frame as stored, without decoding; answers with the entries that are damaged.
    pub fn damaged_frames(&self) -> Vec<(IndexEntry, DecodeError)> {
        let check = |e: &IndexEntry| self.frame(e).err().map(|error| (*e, error));
        self.index.entries.iter().filter_map(check).collect()
    }

    /// The same frames and zeros as the segment that `seal` describes; payloads are copied as they are. Fails where a frame
    /// does not verify: what is damaged never gets headers that say it is whole.
    pub fn reseal(&self, seal: Seal) -> DecodeResult<SealedSegment> {
        self.index.entries.iter().try_for_each(|entry| self.frame(entry).map(drop))?;
        let index_pos = usize::try_from(self.header.index_pos).expect("checked against the length");
        let (disks, entries) = (self.index.disks.clone(), self.index.entries.clone());
        let mut bytes = Vec::with_capacity(self.bytes.len());
        bytes.extend_from_slice(&self.bytes[..index_pos]);
        seal_over(bytes, disks, entries, self.header.raw_bytes, seal)
    }
}

/// A segment that was verified as it came; its bytes stay with the caller.
#[derive(Debug, Clone)]
pub struct VerifiedSegment {
    /// Its header.
    pub header: SegmentHeader,
    /// Its index.
    pub index: Index,
    /// Entries whose frames are damaged, each with what is wrong.
    pub damaged: Vec<(IndexEntry, DecodeError)>,
}

/// Verifies a segment as it came from the network, without gathering it: header, footer, index, and every frame's header
/// and payload.
///
/// # Errors
/// Where the segment as a whole cannot be used: it is another one, cut short, or its index is damaged.
pub fn verify_segment(parts: &Parts<'_>, domain: DomainId, id: SegmentRef) -> DecodeResult<VerifiedSegment> {
    let mut scratch = Vec::new();
    let head_len = parts.len().min(SEGMENT_HEADER_LEN as u64);
    let header = SegmentHeader::open(parts.slice(0..head_len, &mut scratch)?, domain, id)?;
    if parts.len() != header.total_len {
        return Err(DecodeError::Short { what: "segment", need: header.total_len, have: parts.len() });
    }
    let tail = parts.slice(header.index_pos..header.total_len, &mut scratch)?;
    let index = open_tail(tail, &header)?;
    let mut damaged = Vec::new();
    let mut scratch = Vec::new();
    for entry in &index.entries {
        let Some((pos, body)) = &entry.frame else { continue };
        let payload_pos = pos + FRAME_HEADER_LEN as u64;
        let check = |scratch: &mut Vec<u8>| {
            FrameHeader::decode(parts.slice(*pos..payload_pos, scratch)?)?.expect(&index.frame_id(entry), body)?;
            match parts.xxh3_64(payload_pos..pos + body.len_with_header())? == body.stored_sum {
                true => Ok(()),
                false => Err(DecodeError::Checksum { what: "frame payload" }),
            }
        };
        if let Err(e) = check(&mut scratch) {
            damaged.push((*entry, e));
        }
    }
    Ok(VerifiedSegment { header, index, damaged })
}

/// Index and footer of the segment that `header` begins, from its bytes after the frames.
fn open_tail(tail: &[u8], header: &SegmentHeader) -> DecodeResult<Index> {
    let index_len = header.index_len as usize;
    let footer = SegmentFooter::decode(tail.get(index_len..).unwrap_or_default())?;
    let agrees = footer.generation == header.generation
        && footer.segment == header.segment
        && footer.total_len == header.total_len
        && footer.index_pos == header.index_pos
        && footer.index_len == header.index_len;
    if !agrees {
        return Err(DecodeError::value("segment footer", "disagrees with the header"));
    }
    Index::decode(&tail[..index_len], header)
}

/// What a segment is told when it is sealed.
#[derive(Debug, Clone)]
pub struct Seal {
    /// Domain.
    pub domain: DomainId,
    /// Its number.
    pub id: SegmentRef,
    /// The segment before it; zero for the first.
    pub parent: SegmentRef,
    /// Digest of the parent's index; zero for the first.
    pub parent_digest: Digest,
    /// Run of the writer.
    pub writer: WriterId,
    /// Now, by the writer's clock.
    pub created: Time,
    /// The point at which it ends.
    pub point: Option<Point>,
    /// The domain's catalogue, where it changed.
    pub catalogue: Option<Catalogue>,
}

/// A sealed segment.
#[derive(Debug, Clone)]
pub struct SealedSegment {
    /// The object's bytes.
    pub bytes: Vec<u8>,
    /// Its header.
    pub header: SegmentHeader,
    /// Its index.
    pub index: Index,
}

/// A segment that is being filled.
#[derive(Debug)]
pub struct SegmentBuilder {
    bytes: Vec<u8>,
    disks: Vec<IndexDisk>,
    entries: Vec<IndexEntry>,
    raw_bytes: u64,
}

impl SegmentBuilder {
    /// An empty segment; `buffer` is cleared and used, so that its memory serves again.
    pub fn new(mut buffer: Vec<u8>) -> SegmentBuilder {
        buffer.clear();
        buffer.resize(SEGMENT_HEADER_LEN, 0);
        SegmentBuilder { bytes: buffer, disks: Vec::new(), entries: Vec::new(), raw_bytes: 0 }
    }

    /// Bytes so far, with what index and footer will add.
    pub fn len(&self) -> usize {
        self.bytes.len() + 128 + self.disks.len() * 48 + self.entries.len() * 64 + SEGMENT_FOOTER_LEN
    }

    /// Whether it holds neither data nor zeros.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of disk that its frames cover.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    fn disk(&mut self, disk: DiskId, vm: VmId, size: u64) -> u32 {
        let at = self.disks.iter().rposition(|d| d.id == disk).unwrap_or_else(|| {
            self.disks.push(IndexDisk { id: disk, vm, size });
            self.disks.len() - 1
        });
        u32::try_from(at).expect("fewer disks than bytes of a segment")
    }

    /// Adds `raw`, which begins at `offset` of the disk, as one frame. `digest` is its xxh3-128 where known.
    pub fn push_data(
        &mut self,
        disk: &IndexDisk,
        offset: u64,
        raw: &[u8],
        digest: Option<Digest>,
        encoder: &mut FrameEncoder,
    ) -> std::io::Result<()> {
        let index = self.disk(disk.id, disk.vm, disk.size);
        let pos = self.bytes.len();
        self.bytes.resize(pos + FRAME_HEADER_LEN, 0);
        let body = match encoder.encode(raw, digest, &mut self.bytes) {
            Ok(body) => body,
            Err(e) => {
                self.bytes.truncate(pos);
                return Err(e);
            }
        };
        self.raw_bytes += u64::from(body.raw_len);
        self.entries.push(IndexEntry {
            disk: index,
            offset,
            len: u64::from(body.raw_len),
            frame: Some((pos as u64, body)),
        });
        Ok(())
    }

    /// Adds a range of zeros.
    pub fn push_zeros(&mut self, disk: &IndexDisk, offset: u64, len: u64) {
        let index = self.disk(disk.id, disk.vm, disk.size);
        self.entries.push(IndexEntry { disk: index, offset, len, frame: None });
    }

    /// Takes over all that `other` holds, after what is here; copies its payloads.
    pub fn absorb(&mut self, other: &SegmentBuilder) {
        let shift = (self.bytes.len() - SEGMENT_HEADER_LEN) as u64;
        self.bytes.extend_from_slice(&other.bytes[SEGMENT_HEADER_LEN..]);
        for entry in &other.entries {
            let disk = other.disks[entry.disk as usize];
            let disk = self.disk(disk.id, disk.vm, disk.size);
            let frame = entry.frame.map(|(pos, body)| (pos + shift, body));
            self.entries.push(IndexEntry { disk, frame, ..*entry });
        }
        self.raw_bytes += other.raw_bytes;
    }

    /// Fills in headers, index and footer. Fails where entries overlap, leave their disk, or the whole is too long.
    pub fn seal(mut self, seal: Seal) -> DecodeResult<SealedSegment> {
        self.entries.sort_unstable_by_key(|e| (e.disk, e.offset));
        check_order(&self.entries)?;
        seal_over(self.bytes, self.disks, self.entries, self.raw_bytes, seal)
    }
}

/// The segment whose header's room and frames are `bytes`: fills in headers, and appends index and footer.
fn seal_over(
    mut bytes: Vec<u8>,
    disks: Vec<IndexDisk>,
    entries: Vec<IndexEntry>,
    raw_bytes: u64,
    seal: Seal,
) -> DecodeResult<SealedSegment> {
    let index = Index {
        domain: seal.domain,
        segment: seal.id,
        parent: seal.parent,
        parent_digest: seal.parent_digest,
        disks,
        entries,
        point: seal.point,
        catalogue: seal.catalogue,
    };
    let mut frame_count = 0_u32;
    for entry in &index.entries {
        let Some((pos, body)) = &entry.frame else { continue };
        frame_count += 1;
        let at = usize::try_from(*pos).expect("a position in this buffer");
        let header = FrameHeader::new(&index.frame_id(entry), body);
        bytes[at..at + FRAME_HEADER_LEN].copy_from_slice(&header.encode());
    }
    let index_pos = bytes.len() as u64;
    let index_bytes = index.encode();
    let total_len = index_pos + (index_bytes.len() + SEGMENT_FOOTER_LEN) as u64;
    let header = SegmentHeader {
        frame_count,
        domain: seal.domain,
        generation: seal.id.generation,
        segment: seal.id.segment,
        parent_generation: seal.parent.generation,
        parent_segment: seal.parent.segment,
        parent_digest: seal.parent_digest,
        writer: seal.writer,
        created: seal.created,
        total_len,
        index_pos,
        index_len: u32::try_from(index_bytes.len()).unwrap_or(u32::MAX),
        key_id: 0,
        index_digest: xxh3_128(&index_bytes),
        raw_bytes,
        nonce: [0; 12],
    };
    header.check()?;
    Index::decode(&index_bytes, &header)?;
    let footer = SegmentFooter {
        index_len: header.index_len,
        generation: header.generation,
        segment: header.segment,
        total_len,
        index_pos,
    };
    bytes.extend_from_slice(&index_bytes);
    bytes.extend_from_slice(&footer.encode());
    bytes[..SEGMENT_HEADER_LEN].copy_from_slice(&header.encode());
    Ok(SealedSegment { bytes, header, index })
}
