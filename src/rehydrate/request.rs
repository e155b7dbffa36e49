//! What a rehydration is asked to do, and what it reports.

use std::path::PathBuf;

use crate::datastore::EngineKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::MAX_SEGMENT_LEN;
use crate::ids::{DiskId, Name, SegmentNo, SegmentRef, Time};

use super::detached::DetachedDisk;

/// Smallest memory budget in bytes.
pub const MIN_MEMORY: u64 = 64 << 20;
/// Memory budget unless told otherwise, in bytes.
pub const DEFAULT_MEMORY: u64 = 512 << 20;
/// Size of a new replication log unless told otherwise, in bytes.
pub const DEFAULT_LOG_SIZE: u64 = 4 << 30;

/// Which point the disks are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// The newest accepted point.
    #[default]
    Newest,
    /// The point of this number.
    Point(SegmentNo),
    /// The newest point at or before this time.
    At(Time),
}

/// Whether to stop at the target or to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Bring the disks to the target, then end.
    #[default]
    AsNeeded,
    /// Go on with every new point until cancelled, or until the point `until` is applied.
    Continuous {
        /// Ends when this point, or one after it, is applied.
        until: Option<SegmentNo>,
    },
}

/// A disk with a place of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Its VM.
    pub vm: Name,
    /// The disk.
    pub disk: Name,
    /// Its raw image file or block device.
    pub path: PathBuf,
}

/// What to rehydrate, and where to.
#[derive(Debug, Clone)]
pub struct RehydrateRequest {
    /// Domain.
    pub domain: Name,
    /// Directory of the recovered disks: `<domain>/<vm>/<disk>.raw` in it.
    pub datastore: PathBuf,
    /// Directory of the replication log.
    pub log_store: PathBuf,
    /// Size of the replication log in bytes, where it does not exist yet.
    pub log_size: u64,
    /// Point to bring the disks to.
    pub target: Target,
    /// Stop there, or go on.
    pub mode: Mode,
    /// VMs to rehydrate; all where empty.
    pub vms: Vec<Name>,
    /// Budget in bytes for all buffers.
    pub memory: u64,
    /// Replace files at the disks' paths that this domain's rehydration did not make.
    pub overwrite: bool,
    /// Trust nothing local: hash every block against the map and fetch what differs.
    pub check_local: bool,
    /// Disks that stand at places of their own, and not in the datastore.
    pub placements: Vec<Placement>,
    /// State directory of a protection of the domain at this site that has ended: its disks are followed onto in place,
    /// at their placements. What they hold is taken from there.
    pub protected: Option<PathBuf>,
    /// The name of what the disks of that protection hold and the domain does not, which may be overwritten: see
    /// [`Divergence::name`](super::Divergence::name).
    pub discard: Option<String>,
    /// Kept copies of disks that left the domain, which are to be deleted now.
    pub delete_detached: Vec<DiskId>,
    /// Disk engine.
    pub engine: EngineKind,
}

impl RehydrateRequest {
    /// A request with default settings.
    pub fn new(domain: Name, datastore: PathBuf, log_store: PathBuf) -> RehydrateRequest {
        RehydrateRequest {
            domain,
            datastore,
            log_store,
            log_size: DEFAULT_LOG_SIZE,
            target: Target::Newest,
            mode: Mode::AsNeeded,
            vms: Vec::new(),
            memory: DEFAULT_MEMORY,
            overwrite: false,
            check_local: false,
            placements: Vec::new(),
            protected: None,
            discard: None,
            delete_detached: Vec::new(),
            engine: EngineKind::Auto,
        }
    }

    /// Checks the settings against their bounds.
    pub fn validate(&self) -> Result<()> {
        let bad = |why: String| Err(Error::new(ErrorKind::Invalid, why));
        if self.memory < MIN_MEMORY {
            return bad(format!("memory budget of {} bytes: at least {MIN_MEMORY} are needed", self.memory));
        }
        let least_log = MAX_SEGMENT_LEN + (1 << 20);
        if self.log_size < least_log {
            let why = "a log must hold the largest segment";
            return bad(format!("log size of {} bytes: at least {least_log}, {why}", self.log_size));
        }
        for (i, one) in self.placements.iter().enumerate() {
            let before = &self.placements[..i];
            if before.iter().any(|p| (&p.vm, &p.disk) == (&one.vm, &one.disk)) {
                return bad(format!("disk {}/{} has two places: name one", one.vm, one.disk));
            }
            if let Some(other) = before.iter().find(|p| p.path == one.path) {
                let (path, vm, disk) = (one.path.display(), &other.vm, &other.disk);
                return bad(format!("{path} is the place of {vm}/{disk} and of {}/{}", one.vm, one.disk));
            }
        }
        Ok(())
    }
}

/// A range that could not be recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Disk.
    pub disk: DiskId,
    /// `vm/disk`.
    pub label: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Why.
    pub why: String,
    /// Files of the guest that use the range, where that could be told.
    pub files: Vec<String>,
}

/// One disk that was brought to the point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RehydratedDisk {
    /// `vm/disk`.
    pub label: String,
    /// Its file.
    pub path: PathBuf,
    /// Bytes of the disk.
    pub size: u64,
}

/// A VM that the point does not cover: it was being synced, or not all of its disks were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UncoveredVm {
    /// Its name.
    pub name: Name,
    /// The newest point before that covers it, if there is one.
    pub newest: Option<SegmentNo>,
}

/// What a rehydration did. Counts are bytes.
#[derive(Debug, Clone, Default)]
pub struct RehydrateReport {
    /// The point that the disks equal now; with `between_points`, the last one that they did.
    pub point: SegmentRef,
    /// Segments after the point are on the disks, wholly or in part, without the next point: they equal none. Run it
    /// again to reach one.
    pub between_points: bool,
    /// Its time.
    pub point_time: Time,
    /// Whether a disk was open for writing while that point was read.
    pub fuzzy: bool,
    /// VMs whose disks are not of one moment at this point; a guest must not be started on them.
    pub uncovered: Vec<UncoveredVm>,
    /// The disks.
    pub disks: Vec<RehydratedDisk>,
    /// Bytes of all disks.
    pub logical: u64,
    /// Live bytes that the work was about: of the map that the disks were reconciled with, and of what the segments
    /// changed that were applied after it.
    pub planned: u64,
    /// Raw bytes that were written to the disks.
    pub written: u64,
    /// Bytes that were fetched from the storage site for it.
    pub fetched: u64,
    /// Bytes of `planned` that were already there and valid, or were found equal.
    pub kept: u64,
    /// Segments that went through the log.
    pub landed_segments: u64,
    /// What landing took up to the point that was asked for, or with which following began.
    pub landing: super::Landing,
    /// Points that were applied.
    pub applied_points: u64,
    /// Seconds in all.
    pub seconds: f64,
    /// Seconds from opening the datastore until the first bytes of a disk were asked for; 0 where none were.
    pub plan_seconds: f64,
    /// What could not be recovered; empty where all is well.
    pub damage: Vec<Damage>,
    /// Copies of disks that left the domain, which are kept in the datastore.
    pub detached: Vec<DetachedDisk>,
    /// What the disk engine is and had to do without.
    pub engine: String,
    /// What could not be read, or does not count yet, when the point was chosen: each may hide a newer one.
    pub passed_over: Vec<String>,
    /// What else to know.
    pub notes: Vec<String>,
}
