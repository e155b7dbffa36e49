//! What a protected domain looks like at one moment, for `--status`, logs and the control plane. Plain data.
//!
//! Everything in it is counted or measured; a field that is not known is absent.

use serde::{Deserialize, Serialize};

use crate::progress::MemoryUse;

/// A protected domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ProtectStatus {
    /// Its name.
    pub domain: String,
    /// This site.
    pub site: String,
    /// What is done with guests' writes: `starting`, `normal`, `throttled`, `bitmap`, `fenced` or `failed`.
    pub mode: String,
    /// Generation in which this site writes; absent before the domain is claimed.
    pub generation: Option<u64>,
    /// Whether every VM is recoverable at the newest point, some, or none: `Recoverable`, `Partially Recoverable`,
    /// `Initial Sync`, `Resync`, `Fenced`, `Error`, `Initializing`.
    pub status: String,
    /// VMs by name.
    pub vms: Vec<VmStatus>,
    /// Newest segment that was cut, and newest that is part of the domain; each ends at a point.
    pub captured: u64,
    /// See `captured`.
    pub shipped: u64,
    /// Time of the newest point that is part of the domain.
    pub point_time: Option<String>,
    /// What would be lost now of the VM that would lose most, in milliseconds: the largest of the VMs' ages. Absent while
    /// a VM has no point.
    pub rpo_ms: Option<u64>,
    /// Initial sync and resync, while the chain may lack something.
    pub sync: Option<SyncStatus>,
    /// Sealed segments that are not part of the domain yet, and their bytes.
    pub waiting_segments: u64,
    /// See `waiting_segments`.
    pub waiting_bytes: u64,
    /// Bytes of them in memory; the rest is in the log.
    pub waiting_memory: u64,
    /// Bytes of the replication log in use.
    pub log_used: u64,
    /// Bytes of the replication log.
    pub log_size: u64,
    /// How long each write is held now, in microseconds.
    pub hold_us: u64,
    /// Longest time that a write may be held, all in all, in microseconds.
    pub hold_bound_us: u64,
    /// Writes that were held since the start, and the longest time of one in microseconds.
    pub held_writes: u64,
    /// See `held_writes`.
    pub longest_held_us: u64,
    /// Bytes that guests wrote into what was shipped.
    pub written: u64,
    /// Bytes of frames of what was shipped, before compression.
    pub raw: u64,
    /// Bytes of segments that were shipped.
    pub stored: u64,
    /// Segments that were shipped.
    pub segments: u64,
    /// Bytes that initial sync and resync have read back.
    pub sync_read: u64,
    /// Requests to the storage site since the start, by kind.
    pub requests: Requests,
    /// The budget of memory by its parts: `requests`, `open-segments`, `sealed-segments`. A quarter more is for what is not
    /// counted: maps, manifests, what packers and uploads hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<MemoryUse>,
    /// What the disks hold and the domain does not, where another site owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged: Option<DivergedStatus>,
    /// The site that asks for the domain, and since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<String>,
    /// See `asked_by`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<String>,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

/// What a fenced site holds of its own that is not part of the domain: an upper bound, by marked regions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct DivergedStatus {
    /// Segments that were made here since the claim and are not part of the domain.
    pub segments: u64,
    /// Times of the points of the first and the last of them; absent where there is none.
    pub first: Option<String>,
    /// See `first`.
    pub last: Option<String>,
    /// Disks that may hold something; the others are left out.
    pub disks: Vec<DivergedDiskStatus>,
}

/// What one disk may hold that is not part of the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct DivergedDiskStatus {
    /// `vm/disk`.
    pub disk: String,
    /// The image.
    pub path: String,
    /// Bytes that may differ.
    pub bytes: u64,
    /// First byte and length of each range, ascending; at most a thousand.
    pub ranges: Vec<(u64, u64)>,
    /// Further ranges.
    pub more: u64,
}

/// How far initial sync and resync are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct SyncStatus {
    /// Bytes of the disks that are synced.
    pub total: u64,
    /// Bytes of them that are done.
    pub done: u64,
    /// Bytes done in a second lately; absent where nothing got on, as while the storage site is away.
    pub rate: Option<u64>,
    /// Seconds that the rest takes at that rate.
    pub eta_s: Option<u64>,
}

/// Requests to a storage site: users pay for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Requests {
    /// Objects written.
    pub puts: u64,
    /// Objects or ranges read.
    pub gets: u64,
    /// Listings.
    pub lists: u64,
    /// Seconds over which they were counted.
    pub seconds: u64,
}

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// `Recoverable`, `Initial Sync`, `Resync` or `Error`.
    pub status: String,
    /// The newest point of the domain that covers it; absent where none does, or the last one was before what is looked at.
    pub point: Option<u64>,
    /// Time of that point.
    pub point_time: Option<String>,
    /// Age of that point in milliseconds, measured: what would be lost of this VM now.
    pub rpo_ms: Option<u64>,
    /// Its disks.
    pub disks: Vec<DiskStatus>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct DiskStatus {
    /// Its name in the VM.
    pub name: String,
    /// The image that holds it.
    pub path: String,
    /// Its export.
    pub export: String,
    /// Bytes.
    pub size: u64,
    /// What would be lost of it now, in milliseconds: the age of the newest point that covers its VM. Absent where none
    /// does, or it was never whole at a point.
    #[serde(default)]
    pub rpo_ms: Option<u64>,
    /// Bytes in regions that are marked: what a crash now would resync.
    pub dirty: u64,
    /// Bytes in regions that the chain may lack.
    pub unsynced: u64,
    /// Syncs of the bitmap since the start.
    pub bitmap_syncs: u64,
    /// Writes of guests, and their bytes.
    pub writes: u64,
    /// See `writes`.
    pub written: u64,
    /// Reads of guests, and their bytes.
    pub reads: u64,
    /// See `reads`.
    pub read: u64,
    /// Writes that failed on the local disk.
    pub failed: u64,
}

/// How a protection ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ProtectReport {
    /// Everything that was captured is part of the domain.
    pub all_shipped: bool,
    /// The newest point of the domain.
    pub point: u64,
    /// Its time.
    pub point_time: String,
    /// Segments that were shipped, and their bytes.
    pub segments: u64,
    /// See `segments`.
    pub stored: u64,
    /// Bytes that guests wrote into them.
    pub written: u64,
    /// Bytes of their frames, before compression.
    pub raw: u64,
    /// Requests to the storage site, by kind.
    pub requests: Requests,
    /// Syncs of the write-intent bitmaps.
    pub bitmap_syncs: u64,
    /// Manifests that were written.
    pub manifests: u64,
    /// Bytes that were captured and not shipped: the next start reads them back.
    pub left: u64,
    /// Bytes of disks that the next start reads back and compares.
    pub dirty: u64,
    /// What the operator should know.
    pub notes: Vec<String>,
}
