//! Cutting one page of a disk into pieces to read and holes to pass over.
//!
//! Pure. A piece is at most [`PIECE_BYTES`] long, begins at a multiple of that, and lists which of its bytes must be
//! read; the others are zero. What lies between pieces is zero as well and is told only where the map has something
//! live there.

use std::ops::Range;
use std::sync::Arc;

use crate::format::Extent;

use super::compare::{Change, zero_gap};

/// Bytes that one buffer holds, and one read asks for at most.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;

/// One page of one disk, ready to be cut.
#[derive(Debug)]
pub(crate) struct Page {
    /// Position of the disk in the call.
    pub(crate) disk: usize,
    /// The bytes of the disk that it covers; begins at a multiple of [`PIECE_BYTES`].
    pub(crate) span: Range<u64>,
    /// Live extents of the map in the span, sorted and disjoint.
    pub(crate) extents: Arc<[Extent]>,
}

/// A piece to read.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Position of the disk in the call.
    pub(crate) disk: usize,
    /// First byte of the disk.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: usize,
    /// Parts of it that may hold data, ascending and disjoint.
    pub(crate) runs: Vec<Range<usize>>,
    /// Extents of its page.
    extents: Arc<[Extent]>,
    /// Which of them overlap the piece.
    within: Range<usize>,
}

impl Piece {
    /// Live extents of the map that overlap it.
    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents[self.within.clone()]
    }

    /// Bytes of it that are read.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.runs.iter().map(|r| (r.end - r.start) as u64).sum()
    }
}

/// What a page is cut into.
#[derive(Debug)]
pub(crate) enum Cut {
    /// To be read and compared.
    Piece(Piece),
    /// A range without data in which something was live.
    Zeros { disk: usize, offset: u64, len: u64 },
}

/// Walks over a page.
#[derive(Debug)]
pub(crate) struct Cutter {
    page: Page,
    data: std::iter::Peekable<std::vec::IntoIter<Range<u64>>>,
    at: u64,
    extent: usize,
}

impl Cutter {
    /// `data` are the parts of the page that may hold data, ascending and disjoint, within its span.
    pub(crate) fn new(page: Page, data: Vec<Range<u64>>) -> Cutter {
        Cutter { at: page.span.start, page, data: data.into_iter().peekable(), extent: 0 }
    }

    /// The next piece or hole.
    pub(crate) fn next(&mut self) -> Option<Cut> {
        while self.at < self.page.span.end {
            let data = self.data.peek().map_or(self.page.span.end, |r| r.start);
            let piece = data / PIECE_BYTES * PIECE_BYTES;
            if piece > self.at || data >= self.page.span.end {
                let hole = self.at..piece.max(self.at).min(self.page.span.end);
                let hole = if data >= self.page.span.end { self.at..self.page.span.end } else { hole };
                self.at = hole.end;
                if let Some(cut) = self.hole(hole) {
                    return Some(cut);
                }
                continue;
            }
            return Some(Cut::Piece(self.piece()));
        }
        None
    }

    fn hole(&mut self, hole: Range<u64>) -> Option<Cut> {
        let within = self.within(&hole);
        let mut extents = self.page.extents[within].iter().map(|e| e.offset..e.end()).peekable();
        let mut changes = Vec::with_capacity(1);
        zero_gap(hole, &mut extents, &mut changes);
        changes.first().map(|change| {
            let (Change::Data { offset, len } | Change::Zeros { offset, len }) = *change;
            Cut::Zeros { disk: self.page.disk, offset, len }
        })
    }

    fn piece(&mut self) -> Piece {
        let span = self.at..(self.at + PIECE_BYTES).min(self.page.span.end);
        self.at = span.end;
        let mut runs = Vec::with_capacity(1);
        while let Some(data) = self.data.peek_mut().filter(|data| data.start < span.end) {
            let end = data.end.min(span.end);
            runs.push((data.start - span.start) as usize..(end - span.start) as usize);
            if data.end > span.end {
                data.start = span.end;
                break;
            }
            self.data.next();
        }
        let within = self.within(&span);
        Piece {
            disk: self.page.disk,
            offset: span.start,
            len: (span.end - span.start) as usize,
            runs,
            extents: Arc::clone(&self.page.extents),
            within,
        }
    }

    /// Extents that overlap `span`; spans are asked for in ascending order.
    fn within(&mut self, span: &Range<u64>) -> Range<usize> {
        let extents = &self.page.extents;
        while extents.get(self.extent).is_some_and(|e| e.end() <= span.start) {
            self.extent += 1;
        }
        let count = extents[self.extent..].partition_point(|e| e.offset < span.end);
        self.extent..self.extent + count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Codec, Digest, FrameBody, FrameRef};
    use crate::ids::SegmentRef;
    use proptest::prelude::*;

    fn extent(offset: u64, len: u32) -> Extent {
        let body = FrameBody {
            codec: Codec::Plain,
            raw_len: len,
            stored_len: len,
            stored_sum: 0,
            raw_digest: Digest([0; 16]),
        };
        Extent { offset, len, frame: FrameRef { segment: SegmentRef::default(), pos: 0, start: offset, body } }
    }

    fn cut(span: Range<u64>, data: Vec<Range<u64>>, extents: &[Extent]) -> Vec<Cut> {
        let mut cutter = Cutter::new(Page { disk: 3, span, extents: extents.into() }, data);
        std::iter::from_fn(|| cutter.next()).collect()
    }

    proptest! {
        #[test]
        fn every_byte_of_data_is_in_one_run_and_every_live_byte_in_a_piece_or_a_zero_range(
            cuts in prop::collection::btree_set(0..20_000_u64, 0..20),
            lives in prop::collection::btree_set(0..5000_u64, 0..12),
            base in 0..3_u64, len in 1..20_000_u64,
        ) {
            let base = base << 30;
            let span = base..base + len * 512;
            let bounds: Vec<u64> = cuts.iter().map(|c| base + c * 512).filter(|c| *c < span.end).collect();
            let data: Vec<Range<u64>> = bounds.chunks_exact(2).map(|c| c[0]..c[1]).collect();
            let extents: Vec<Extent> =
                lives.iter().map(|n| extent(base + n * 4096, 4096)).filter(|e| e.offset < span.end).collect();
            let (mut read, mut at) = (Vec::new(), base);
            let mut told = vec![0_u8; extents.len()];
            for cut in cut(span.clone(), data.clone(), &extents) {
                let covered = match &cut {
                    Cut::Piece(p) => {
                        prop_assert!(p.offset % PIECE_BYTES == 0 && p.len as u64 <= PIECE_BYTES && !p.runs.is_empty());
                        read.extend(p.runs.iter().map(|r| p.offset + r.start as u64..p.offset + r.end as u64));
                        prop_assert_eq!(p.data_bytes(), p.runs.iter().map(|r| r.len() as u64).sum::<u64>());
                        let inside = |e: &&Extent| e.offset < p.offset + p.len as u64 && e.end() > p.offset;
                        let expected: Vec<Extent> = extents.iter().filter(inside).copied().collect();
                        prop_assert_eq!(p.extents(), expected);
                        p.offset..p.offset + p.len as u64
                    }
                    Cut::Zeros { disk, offset, len } => {
                        prop_assert_eq!(*disk, 3);
                        prop_assert!(data.iter().all(|d| d.end <= *offset || d.start >= offset + len));
                        *offset..offset + len
                    }
                };
                prop_assert!(covered.start >= at && covered.end <= span.end);
                at = covered.end;
                for (e, told) in extents.iter().zip(&mut told) {
                    *told += u8::from(covered.start <= e.offset && e.end().min(span.end) <= covered.end);
                }
            }
            prop_assert!(told.iter().all(|n| *n == 1), "{told:?}");
            // Runs that touch at the edge of a piece are one range of data.
            let mut joined: Vec<Range<u64>> = Vec::new();
            for run in read {
                match joined.last_mut() {
                    Some(last) if last.end == run.start && run.start % PIECE_BYTES == 0 => last.end = run.end,
                    _ => joined.push(run),
                }
            }
            let mut wanted: Vec<Range<u64>> = Vec::new();
            for range in data {
                match wanted.last_mut() {
                    Some(last) if last.end == range.start && range.start % PIECE_BYTES == 0 => last.end = range.end,
                    _ => wanted.push(range),
                }
            }
            prop_assert_eq!(joined, wanted);
        }
    }
}
