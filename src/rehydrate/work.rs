//! What is to be fetched: frames with the parts of them that are live, coalesced into ranges of one segment. Pure.

use crate::format::{Extent, FrameRef};
use crate::ids::SegmentRef;

/// Most bytes of one range request.
pub const MAX_RANGE: u64 = 4 << 20;
/// Dead bytes between two frames that are fetched along rather than cost a request of their own.
const MAX_GAP: u64 = 64 << 10;

/// A live part of a frame: where it goes on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First byte of the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// A frame to fetch, once, and its live parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFrame {
    /// Position of the disk in the set of disks.
    pub disk: u32,
    /// The frame.
    pub frame: FrameRef,
    /// First live part; mostly the whole frame.
    pub first: Piece,
    /// Further live parts, of a frame that was overwritten in its middle.
    pub rest: Vec<Piece>,
}

impl PlannedFrame {
    /// All live parts.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        std::iter::once(self.first).chain(self.rest.iter().copied())
    }

    /// Whether all of its bytes are live.
    pub fn is_whole(&self) -> bool {
        self.rest.is_empty() && self.first.offset == self.frame.start && self.first.len == self.frame.body.raw_len
    }
}

/// Frames of one segment that one request fetches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeWork {
    /// The segment.
    pub segment: SegmentRef,
    /// First byte of the range.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// The frames, by position.
    pub frames: Vec<PlannedFrame>,
}

/// Puts extents, each with the position of its disk, into store order, and joins the parts of one frame.
pub fn by_frame(mut extents: Vec<(u32, Extent)>) -> Vec<PlannedFrame> {
    extents.sort_unstable_by_key(|(_, e)| (e.frame.segment, e.frame.pos, e.offset));
    let mut frames: Vec<PlannedFrame> = Vec::with_capacity(extents.len());
    for (disk, extent) in extents {
        let piece = Piece { offset: extent.offset, len: extent.len };
        match frames.last_mut() {
            Some(last) if last.frame.segment == extent.frame.segment && last.frame.pos == extent.frame.pos => {
                last.rest.push(piece);
            }
            _ => frames.push(PlannedFrame { disk, frame: extent.frame, first: piece, rest: Vec::new() }),
        }
    }
    frames
}

/// Joins frames in store order into ranges of at most `max_range` bytes (a larger frame stands alone).
pub fn coalesce(frames: Vec<PlannedFrame>, max_range: u64) -> Vec<RangeWork> {
    let mut ranges: Vec<RangeWork> = Vec::new();
    for frame in frames {
        let (segment, start, end) = (frame.frame.segment, frame.frame.pos, frame.frame.end_pos());
        match ranges.last_mut() {
            Some(last)
                if last.segment == segment
                    && start >= last.end
                    && start - last.end <= MAX_GAP
                    && end - last.start <= max_range =>
            {
                last.end = end;
                last.frames.push(frame);
            }
            _ => ranges.push(RangeWork { segment, start, end, frames: vec![frame] }),
        }
    }
    ranges
}

/// Joins frames in store order into one range for each segment: for a source that reads whole segments.
pub(super) fn one_per_segment(frames: Vec<PlannedFrame>) -> Vec<RangeWork> {
    let mut ranges: Vec<RangeWork> = Vec::new();
    for frame in frames {
        let (segment, start, end) = (frame.frame.segment, frame.frame.pos, frame.frame.end_pos());
        match ranges.last_mut() {
            Some(last) if last.segment == segment => {
                last.end = last.end.max(end);
                last.frames.push(frame);
            }
            _ => ranges.push(RangeWork { segment, start, end, frames: vec![frame] }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Codec, Digest, FRAME_HEADER_LEN, FrameBody};
    use crate::ids::{Generation, SegmentNo};

    fn extent(segment: u64, pos: u64, stored_len: u32, offset: u64) -> Extent {
        let body =
            FrameBody { codec: Codec::Zstd, raw_len: 8192, stored_len, stored_sum: 0, raw_digest: Digest::default() };
        let segment = SegmentRef::new(Generation::new(1), SegmentNo::new(segment));
        Extent { offset, len: 8192, frame: FrameRef { segment, pos, start: offset, body } }
    }

    #[test]
    fn every_frame_is_fetched_once_in_store_order_and_no_range_is_too_long() {
        let header = FRAME_HEADER_LEN as u64;
        let mut extents = Vec::new();
        for segment in [2, 1] {
            for i in (0..10_u64).rev() {
                extents.push((0, extent(segment, 256 + i * (1000 + header), 1000, i * 8192)));
            }
        }
        let ranges = coalesce(by_frame(extents), 4 * (1000 + header));
        let total: usize = ranges.iter().map(|r| r.frames.len()).sum();
        assert_eq!(total, 20);
        assert_eq!(ranges.iter().map(|r| r.frames.len()).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2]);
        for pair in ranges.windows(2) {
            assert!((pair[0].segment, pair[0].end) <= (pair[1].segment, pair[1].start));
        }
        for r in &ranges {
            assert_eq!(r.start, r.frames[0].frame.pos);
            assert_eq!(r.end, r.frames.last().unwrap().frame.end_pos());
        }
    }

    #[test]
    fn far_frames_are_separate_requests_and_near_ones_are_not() {
        let near = coalesce(by_frame(vec![(0, extent(1, 256, 100, 0)), (0, extent(1, 60_000, 100, 8192))]), MAX_RANGE);
        assert_eq!(near.len(), 1);
        let far = coalesce(by_frame(vec![(0, extent(1, 256, 100, 0)), (0, extent(1, 70_000, 100, 8192))]), MAX_RANGE);
        assert_eq!(far.len(), 2);
    }

    #[test]
    fn parts_of_one_frame_are_one_fetch() {
        let whole = extent(1, 256, 100, 0);
        let (a, b) = (Extent { len: 512, ..whole }, Extent { offset: 4096, len: 512, ..whole });
        let frames = by_frame(vec![(3, b), (3, a)]);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].pieces().map(|p| p.offset).collect::<Vec<_>>(), [0, 4096]);
        assert!(!frames[0].is_whole());
    }
}
