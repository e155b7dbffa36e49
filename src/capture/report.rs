//! What a replication did, for the caller to show. Plain data; sizes are bytes, times seconds.

use std::path::PathBuf;

use crate::ids::{DiskId, DomainId, Name, SegmentRef, Time, VmId};

/// One disk that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicatedDisk {
    /// Identity of its VM.
    pub vm: VmId,
    /// Identity.
    pub disk: DiskId,
    /// `vm/disk`.
    pub label: String,
    /// Its image, symbolic links resolved.
    pub path: PathBuf,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether it joined the domain with this point.
    pub joined: bool,
}

/// What a replication did. Everything in it is accepted: no stale writer can undo it.
#[derive(Debug, Clone, Default)]
pub struct ReplicateReport {
    /// Identity of the domain.
    pub domain: DomainId,
    /// The new point.
    pub point: SegmentRef,
    /// Its time.
    pub point_time: Time,
    /// Whether an image was open for writing or changed while it was read.
    pub fuzzy: bool,
    /// VMs that are consistent together at the point.
    pub covered: Vec<Name>,
    /// The disks.
    pub disks: Vec<ReplicatedDisk>,
    /// Bytes of all disks.
    pub logical: u64,
    /// Of these, not zero now.
    pub live: u64,
    /// Bytes read from the images: what is allocated.
    pub read: u64,
    /// Raw bytes of the frames that were shipped.
    pub shipped: u64,
    /// Bytes that were live and are zero now.
    pub zeroed: u64,
    /// Bytes of the segments that were stored.
    pub stored: u64,
    /// Frames that were shipped.
    pub frames: u64,
    /// Segments that were stored.
    pub segments: u64,
    /// The manifest that was cut at the point, where one was due.
    pub manifest: Option<SegmentRef>,
    /// Map pages that were written for it.
    pub pages: u64,
    /// Where the time went.
    pub seconds: StageSeconds,
    /// What the disk engine is and had to do without.
    pub engine: String,
    /// What else to know.
    pub notes: Vec<String>,
}

/// Seconds of each stage. The first four follow one another; the last two are sums over the threads of `transfer`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StageSeconds {
    /// Until the first byte was read: opening images, looking for other writers, claiming, loading the map.
    pub prepare: f64,
    /// Reading, comparing, compressing and storing, until the last segment was cut.
    pub transfer: f64,
    /// From then until the point was accepted.
    pub point: f64,
    /// Writing map pages and manifest.
    pub checkpoint: f64,
    /// Thread-seconds of finding zeros and comparing with the map.
    pub comparing: f64,
    /// Thread-seconds of compressing.
    pub compressing: f64,
}

impl StageSeconds {
    /// All in all.
    pub fn total(&self) -> f64 {
        self.prepare + self.transfer + self.point + self.checkpoint
    }
}
