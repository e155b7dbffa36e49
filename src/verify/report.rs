//! What a verification found. Plain data; sizes are bytes, times seconds.

use crate::ids::{DiskId, SegmentRef, Time};

/// Most findings of either kind that are listed; the rest is counted.
pub const MAX_FINDINGS: usize = 10_000;

/// A range of a disk that cannot be recovered at the point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRange {
    /// Name of the VM.
    pub vm: String,
    /// Name of the disk.
    pub disk: String,
    /// Identity of the disk.
    pub disk_id: DiskId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Key of the object at fault.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
}

/// An object of the domain's structure that is missing, damaged or out of its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadObject {
    /// Its key.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// Whether frames were left out by request.
    pub quick: bool,
    /// The newest accepted segment.
    pub tip: SegmentRef,
    /// The point whose data was verified; zero where the domain has none.
    pub point: SegmentRef,
    /// Its time.
    pub point_time: Time,
    /// Whether the point cannot be put together, however whole its frames are.
    pub point_lost: bool,
    /// Segments whose index was proved to continue the chain.
    pub segments: u64,
    /// Manifests that were read.
    pub manifests: u64,
    /// Map pages that were read.
    pub pages: u64,
    /// Live frames that were read and are whole.
    pub frames: u64,
    /// Live bytes of the point that are whole.
    pub live: u64,
    /// Bytes of frames that were fetched.
    pub fetched: u64,
    /// Damaged ranges of disks, at most [`MAX_FINDINGS`].
    pub ranges: Vec<BadRange>,
    /// How many there are.
    pub range_count: u64,
    /// Bytes of disks in them.
    pub bad_bytes: u64,
    /// Damaged objects of the structure, at most [`MAX_FINDINGS`].
    pub objects: Vec<BadObject>,
    /// How many there are.
    pub object_count: u64,
    /// What else to know.
    pub notes: Vec<String>,
    /// Seconds in all.
    pub seconds: f64,
}

impl VerifyReport {
    pub(super) fn new(quick: bool, tip: SegmentRef) -> VerifyReport {
        VerifyReport { quick, tip, ..VerifyReport::default() }
    }

    /// Whether nothing is damaged.
    pub fn is_whole(&self) -> bool {
        self.range_count == 0 && self.object_count == 0 && !self.point_lost
    }

    pub(super) fn bad_object(&mut self, object: String, why: impl Into<String>) {
        self.object_count += 1;
        if self.objects.len() < MAX_FINDINGS {
            self.objects.push(BadObject { object, why: why.into() });
        }
    }

    /// Adds a range; one that continues the last one, for the same reason, is joined to it.
    pub(super) fn bad_range(&mut self, range: BadRange) {
        self.bad_bytes += range.len;
        if let Some(last) = self.ranges.last_mut()
            && (last.disk_id, &last.object) == (range.disk_id, &range.object)
            && (last.offset + last.len, &last.why) == (range.offset, &range.why)
        {
            last.len += range.len;
            return;
        }
        self.range_count += 1;
        if self.ranges.len() < MAX_FINDINGS {
            self.ranges.push(range);
        }
    }
}
