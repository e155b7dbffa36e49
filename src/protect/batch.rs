//! The open segment: what guests wrote since the last cut, coalesced, in memory.
//!
//! Owns the rule that of overlapping writes the last one wins, so that the ranges of a segment are disjoint. Does no
//! I/O and compresses nothing: that is the packer's, after the cut. Bounded by its arena and by [`MAX_SPANS`].

use std::collections::BTreeMap;
use std::time::Instant;

use super::arena::Arena;
use crate::capture::{GRID, is_zero};
use crate::format::{FrameEncoder, IndexDisk, SegmentBuilder};
#[cfg(test)]
use crate::ids::DiskId;
use crate::ids::SegmentNo;

/// Most ranges of one segment: each costs an entry of its index.
pub(crate) const MAX_SPANS: usize = 1 << 16;

/// One range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    len: u64,
    /// Where its bytes begin in the arena; `None` for zeros.
    at: Option<usize>,
}

#[derive(Debug)]
struct DiskSpans {
    disk: IndexDisk,
    spans: BTreeMap<u64, Span>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Batch {
    number: SegmentNo,
    arena: Option<Arena>,
    disks: Vec<DiskSpans>,
    spans: usize,
    first_write: Option<Instant>,
    written: u64,
}

impl Batch {
    /// An empty batch, which will be segment `number`. Without an arena it takes zeros only.
    pub(crate) fn new(number: SegmentNo, arena: Option<Arena>) -> Batch {
        Batch { number, arena, disks: Vec::new(), spans: 0, first_write: None, written: 0 }
    }

    /// The segment that it will be.
    pub(crate) fn number(&self) -> SegmentNo {
        self.number
    }

    /// When the first write joined it.
    pub(crate) fn first_write(&self) -> Option<Instant> {
        self.first_write
    }

    /// Bytes that guests wrote, each overwritten one counted again.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Bytes of its arena that are used.
    pub(crate) fn used(&self) -> usize {
        self.arena.as_ref().map_or(0, Arena::len)
    }

    /// Whether one more write of `len` bytes fits.
    pub(crate) fn fits(&self, len: usize) -> bool {
        // One write can split a range in two and add itself.
        self.spans + 2 <= MAX_SPANS && self.arena.as_ref().is_some_and(|arena| len <= arena.room())
    }

    /// Whether one more range of zeros fits.
    pub(crate) fn fits_zeros(&self) -> bool {
        self.spans + 2 <= MAX_SPANS
    }

    /// Adds a write, which [`Batch::fits`]: `bytes` at `offset` of the disk.
    pub(crate) fn put(&mut self, disk: &IndexDisk, offset: u64, bytes: &[u8], now: Instant) {
        self.note(bytes.len() as u64, now);
        let Some(arena) = self.arena.as_mut() else { return debug_assert!(false, "a batch without memory") };
        let spans = spans_of(&mut self.disks, disk);
        let end = offset + bytes.len() as u64;
        if let Some((start, span)) = spans.range(..=offset).next_back()
            && let Some(at) = span.at
            && end <= start + span.len
        {
            // Written over once more: the same memory serves.
            let from = at + (offset - start) as usize;
            arena.get_mut(from, bytes.len()).copy_from_slice(bytes);
            return;
        }
        let before = spans.len();
        cut_out(spans, offset, end);
        let at = arena.push(bytes);
        let joined = spans.range_mut(..offset).next_back().filter(|(start, span)| {
            **start + span.len == offset && span.at.is_some_and(|a| a + span.len as usize == at)
        });
        match joined {
            Some((_, span)) => span.len += bytes.len() as u64,
            None => drop(spans.insert(offset, Span { len: bytes.len() as u64, at: Some(at) })),
        }
        self.spans = self.spans + spans.len() - before;
    }

    /// Adds a range that became zero.
    pub(crate) fn put_zeros(&mut self, disk: &IndexDisk, offset: u64, len: u64, now: Instant) {
        self.note(len, now);
        let spans = spans_of(&mut self.disks, disk);
        let before = spans.len();
        cut_out(spans, offset, offset + len);
        spans.insert(offset, Span { len, at: None });
        self.spans = self.spans + spans.len() - before;
    }

    fn note(&mut self, len: u64, now: Instant) {
        self.first_write.get_or_insert(now);
        self.written += len;
    }

    /// Whether nothing was written.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.spans == 0
    }

    /// Compresses all of it into frames behind a header in `buffer`. Runs of neighbouring ranges become frames of at
    /// most [`GRID`] bytes that do not cross the grid; frames that are zero become zero entries.
    ///
    /// # Errors
    /// Where zstd fails.
    pub(crate) fn pack(
        &self,
        encoder: &mut FrameEncoder,
        scratch: &mut Vec<u8>,
        buffer: Vec<u8>,
    ) -> std::io::Result<SegmentBuilder> {
        let mut builder = SegmentBuilder::new(buffer);
        for part in &self.disks {
            let mut run: Vec<(u64, Span)> = Vec::new();
            for (&start, &span) in &part.spans {
                if span.at.is_none() {
                    builder.push_zeros(&part.disk, start, span.len);
                    continue;
                }
                for (start, span) in on_grid(start, span) {
                    let follows =
                        run.last().is_some_and(|(s, last)| s + last.len == start && !start.is_multiple_of(GRID));
                    if !follows {
                        self.frame(&part.disk, &run, encoder, scratch, &mut builder)?;
                        run.clear();
                    }
                    run.push((start, span));
                }
            }
            self.frame(&part.disk, &run, encoder, scratch, &mut builder)?;
        }
        Ok(builder)
    }

    /// One frame of neighbouring ranges.
    fn frame(
        &self,
        disk: &IndexDisk,
        run: &[(u64, Span)],
        encoder: &mut FrameEncoder,
        scratch: &mut Vec<u8>,
        builder: &mut SegmentBuilder,
    ) -> std::io::Result<()> {
        let (Some(&(offset, first)), Some(arena)) = (run.first(), &self.arena) else { return Ok(()) };
        let bytes_of = |span: &Span| span.at.map_or(&[][..], |at| arena.get(at, span.len as usize));
        let raw = match run {
            [_] => bytes_of(&first),
            _ => {
                scratch.clear();
                run.iter().for_each(|(_, span)| scratch.extend_from_slice(bytes_of(span)));
                scratch
            }
        };
        match is_zero(raw) {
            true => builder.push_zeros(disk, offset, raw.len() as u64),
            false => builder.push_data(disk, offset, raw, None, encoder)?,
        }
        Ok(())
    }

    /// The ranges of a disk, for tests: start, length, whether zeros.
    #[cfg(test)]
    fn ranges(&self, id: DiskId) -> Vec<(u64, u64, bool)> {
        let part = self.disks.iter().find(|d| d.disk.id == id);
        part.map_or(Vec::new(), |p| p.spans.iter().map(|(s, span)| (*s, span.len, span.at.is_none())).collect())
    }
}

fn spans_of<'a>(disks: &'a mut Vec<DiskSpans>, disk: &IndexDisk) -> &'a mut BTreeMap<u64, Span> {
    let at = disks.iter().position(|d| d.disk.id == disk.id).unwrap_or_else(|| {
        disks.push(DiskSpans { disk: *disk, spans: BTreeMap::new() });
        disks.len() - 1
    });
    // A disk that grew meanwhile: the segment tells the larger size.
    disks[at].disk.size = disks[at].disk.size.max(disk.size);
    &mut disks[at].spans
}

/// Takes `from..to` out of the ranges; what reaches into it is shortened or split.
fn cut_out(spans: &mut BTreeMap<u64, Span>, from: u64, to: u64) {
    if let Some((&start, &span)) = spans.range(..from).next_back()
        && start + span.len > from
    {
        spans.insert(start, Span { len: from - start, ..span });
        if start + span.len > to {
            spans.insert(to, tail(start, span, to));
        }
    }
    while let Some((&start, &span)) = spans.range(from..to).next() {
        spans.remove(&start);
        if start + span.len > to {
            spans.insert(to, tail(start, span, to));
        }
    }
}

/// What of a range lies at `to` and after.
fn tail(start: u64, span: Span, to: u64) -> Span {
    Span { len: start + span.len - to, at: span.at.map(|at| at + (to - start) as usize) }
}

/// A range cut where it crosses the grid.
fn on_grid(start: u64, span: Span) -> impl Iterator<Item = (u64, Span)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let offset = start + at;
        let len = (span.len - at).min(GRID - offset % GRID);
        let piece = Span { len, at: span.at.map(|a| a + at as usize) };
        at += len;
        (len > 0).then_some((offset, piece))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::arena::ArenaPool;
    use super::*;
    use crate::format::{FrameDecoder, Seal, Segment};
    use crate::ids::{DomainId, Generation, SegmentRef, VmId, WriterId};

    const SIZE: u64 = 2 << 20;

    fn disk(n: u8) -> IndexDisk {
        IndexDisk { id: DiskId::from_bytes([n; 16]), vm: VmId::from_bytes([9; 16]), size: SIZE }
    }

    fn batch(bytes: usize) -> Batch {
        Batch::new(SegmentNo::new(1), ArenaPool::new(1, bytes).take())
    }

    /// The segment's content laid over zeros of 0xEE, so that untouched bytes are told apart.
    fn unpack(batch: &Batch, n: u8) -> Vec<u8> {
        let mut encoder = FrameEncoder::new(1).unwrap();
        let builder = batch.pack(&mut encoder, &mut Vec::new(), Vec::new()).unwrap();
        let seal = Seal {
            domain: DomainId::from_bytes([1; 16]),
            id: SegmentRef::new(Generation::new(1), SegmentNo::new(1)),
            parent: SegmentRef::default(),
            parent_digest: Default::default(),
            writer: WriterId::random(),
            created: Default::default(),
            point: None,
            catalogue: None,
        };
        let sealed = builder.seal(seal).unwrap();
        let segment = Segment::open_any(&sealed.bytes).unwrap();
        let (mut out, mut decoder) = (vec![0xEE; SIZE as usize], FrameDecoder::new().unwrap());
        for entry in &segment.index.entries {
            if segment.index.disks[entry.disk as usize].id != disk(n).id {
                continue;
            }
            let range = entry.offset as usize..(entry.offset + entry.len) as usize;
            match segment.frame(entry).unwrap() {
                Some(frame) => decoder.decode_into(&frame, &mut out[range]).unwrap(),
                None => out[range].fill(0),
            }
        }
        out
    }

    #[test]
    fn writes_in_a_row_become_one_range_and_overwriting_takes_no_memory() {
        let (mut batch, now) = (batch(1 << 20), Instant::now());
        for i in 0..8 {
            batch.put(&disk(1), i * 4096, &[7; 4096], now);
        }
        batch.put(&disk(1), 4096, &[8; 512], now);
        assert_eq!(batch.ranges(disk(1).id), [(0, 8 * 4096, false)]);
        assert_eq!((batch.used(), batch.written(), batch.spans), (8 * 4096, 8 * 4096 + 512, 1));
        batch.put_zeros(&disk(1), 8192, 4096, now);
        assert_eq!(batch.ranges(disk(1).id), [(0, 8192, false), (8192, 4096, true), (12288, 20480, false)]);
        let out = unpack(&batch, 1);
        assert_eq!((out[4095], out[4096], out[8191], out[8192], out[12287], out[12288]), (7, 8, 7, 0, 0, 7));
    }

    #[test]
    fn full_is_told_before_and_never_overrun() {
        let (mut batch, now) = (batch(8192), Instant::now());
        assert!(batch.fits(8192) && !batch.fits(8193));
        batch.put(&disk(1), 0, &[1; 8192], now);
        assert!(!batch.fits(1) && batch.fits_zeros());
        assert!(!Batch::new(SegmentNo::new(1), None).fits(1));
    }

    proptest! {
        #[test]
        fn equals_a_model_that_paints_byte_by_byte(
            writes in prop::collection::vec((0..2_u8, 0..4000_u64, 1..600_u64, any::<Option<u8>>()), 1..40)
        ) {
            let (mut batch, now) = (batch(16 << 20), Instant::now());
            let mut model = [vec![0xEE_u8; SIZE as usize], vec![0xEE; SIZE as usize]];
            for (n, at, len, fill) in writes {
                let offset = at * 512;
                let len = (len * 512).min(SIZE - offset);
                let range = offset as usize..(offset + len) as usize;
                match fill {
                    Some(byte) => batch.put(&disk(n), offset, &vec![byte; len as usize], now),
                    None => batch.put_zeros(&disk(n), offset, len, now),
                }
                model[n as usize][range].fill(fill.unwrap_or(0));
            }
            prop_assert!(unpack(&batch, 0) == model[0]);
            prop_assert!(unpack(&batch, 1) == model[1]);
        }
    }
}
