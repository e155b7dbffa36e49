//! The durable hydration map of a domain's disks at this site, and the rules of changing it.
//!
//! Invariants: a bit is set only after the granule's bytes are synced; before a granule is written with anything but the
//! bytes of the target, its bit is durably cleared or the granule is durably marked as touched. So at every moment the
//! map on disk says less than, or exactly, what is true.

use std::path::Path;

use roaring::RoaringBitmap;

use crate::datastore::{Loaded, TwoSlot};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{HydrationDisk, HydrationMap, MAX_HYDRATION_LEN, Quarantined, granules};
use crate::ids::{DiskId, DomainId, SegmentRef};

/// What was found in the datastore.
pub(super) enum Found {
    /// Nothing of this domain.
    Nothing(HydrationState),
    /// A hydration map.
    Map(HydrationState),
    /// The map is damaged: everything local is in doubt.
    Lost(HydrationState, String),
}

/// The hydration map and where it is kept.
pub(super) struct HydrationState {
    slots: TwoSlot,
    map: HydrationMap,
}

impl HydrationState {
    /// Loads the map of `domain` from `dir`.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] where the directory belongs to another domain of the same name.
    pub(super) fn load(dir: &Path, domain: DomainId) -> Result<Found> {
        let decode = |bytes: &[u8]| HydrationMap::decode(bytes).map(|m| (m.sequence, m));
        let (slots, loaded) = TwoSlot::load(dir, "hydration", MAX_HYDRATION_LEN, decode)?;
        let empty = HydrationMap {
            domain,
            sequence: 0,
            target: SegmentRef::default(),
            applied: SegmentRef::default(),
            disks: Vec::new(),
            quarantined: Vec::new(),
        };
        match loaded {
            Loaded::Absent => Ok(Found::Nothing(HydrationState { slots, map: empty })),
            Loaded::Lost(why) => Ok(Found::Lost(HydrationState { slots, map: empty }, why)),
            Loaded::Found(map) if map.domain == domain => Ok(Found::Map(HydrationState { slots, map })),
            Loaded::Found(map) => {
                let why = format!("{} holds disks of domain {}, not of {domain}", dir.display(), map.domain);
                Err(Error::new(ErrorKind::Refused, format!("{why}: choose another datastore")))
            }
        }
    }

    /// Makes the map as it stands durable.
    pub(super) fn commit(&mut self) -> Result<()> {
        self.record()?;
        self.sync()
    }

    /// Writes the map as it stands, which is durable after [`HydrationState::sync`]. Only for bits that were set: a bit
    /// that is lost costs another fetch; one that was cleared must not come back.
    pub(super) fn record(&mut self) -> Result<()> {
        self.map.sequence += 1;
        self.slots.write(&self.map.encode())
    }

    /// Makes the map as it was recorded last durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.slots.sync()
    }

    /// The point that valid granules equal.
    pub(super) fn target(&self) -> SegmentRef {
        self.map.target
    }

    /// The last segment that is wholly applied on top of the target.
    pub(super) fn applied(&self) -> SegmentRef {
        self.map.applied
    }

    /// Whether the disks may equal no point: segments beyond the target are applied, or parts of one are.
    pub(super) fn between_points(&self) -> bool {
        self.map.applied != self.map.target || self.map.disks.iter().any(|d| !d.touched.is_empty())
    }

    /// The disks.
    pub(super) fn disks(&self) -> &[HydrationDisk] {
        &self.map.disks
    }

    /// One disk, if it is known.
    pub(super) fn disk_mut(&mut self, id: DiskId) -> Option<&mut HydrationDisk> {
        self.map.disks.iter_mut().find(|d| d.disk == id)
    }

    /// One disk, if it is known.
    pub(super) fn disk(&self, id: DiskId) -> Option<&HydrationDisk> {
        self.map.disks.iter().find(|d| d.disk == id)
    }

    /// Adds a disk whose file was just created empty; all its bytes are holes. `valid` where the target has no live
    /// bytes in it.
    pub(super) fn add_empty(&mut self, id: DiskId, size: u64, valid: bool) -> Result<()> {
        let count = granules(size).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("disk {id} of {size} bytes: larger than 1 PiB"))
        })?;
        let valid = if valid { (0..count).collect() } else { RoaringBitmap::new() };
        self.map.disks.retain(|d| d.disk != id);
        let disk = HydrationDisk { disk: id, size, pristine: true, valid, touched: RoaringBitmap::new() };
        self.map.disks.push(disk);
        Ok(())
    }

    /// Adds a disk whose file holds unknown bytes.
    pub(super) fn add_unknown(&mut self, id: DiskId, size: u64) -> Result<()> {
        self.add_empty(id, size, false)?;
        self.not_pristine(id);
        Ok(())
    }

    /// What is not valid on the disk may be anything.
    pub(super) fn not_pristine(&mut self, id: DiskId) {
        if let Some(disk) = self.disk_mut(id) {
            disk.pristine = false;
        }
    }

    /// Forgets disks that are no longer part of the domain; their files stay.
    pub(super) fn retain(&mut self, keep: impl Fn(DiskId) -> bool) {
        self.map.disks.retain(|d| keep(d.disk));
        self.map.quarantined.retain(|q| keep(q.disk));
    }

    /// The disks are these, and their valid granules equal `at`.
    pub(super) fn start_from(&mut self, at: SegmentRef, disks: Vec<HydrationDisk>) {
        self.map.disks = disks;
        self.set_target(at);
    }

    /// From now on valid granules equal `target`; granules that do not must have been cleared.
    pub(super) fn set_target(&mut self, target: SegmentRef) {
        self.map.target = target;
        self.map.applied = target;
        self.map.disks.iter_mut().for_each(|d| d.touched.clear());
        self.map.quarantined.clear();
    }

    /// Segments up to `applied` are wholly applied; if it is a point, what was touched equals it now.
    pub(super) fn set_applied(&mut self, applied: SegmentRef, is_point: bool) {
        self.map.applied = applied;
        if is_point {
            self.map.target = applied;
            self.map.disks.iter_mut().for_each(|d| d.touched.clear());
        }
    }

    /// Adds a range that could not be had; one that goes on where the last one ends, for the same reason, becomes one
    /// with it.
    pub(super) fn quarantine(&mut self, range: Quarantined) {
        match self.map.quarantined.last_mut() {
            Some(last)
                if last.disk == range.disk
                    && last.offset.checked_add(last.len) == Some(range.offset)
                    && last.why == range.why =>
            {
                last.len += range.len;
            }
            _ => self.map.quarantined.push(range),
        }
    }

    /// Forgets what could not be had: it is tried again. Its granules stay missing.
    pub(super) fn retry_quarantined(&mut self) {
        self.map.quarantined.clear();
    }

    /// Ranges that could not be had.
    pub(super) fn quarantined(&self) -> &[Quarantined] {
        &self.map.quarantined
    }

    /// Granules of `id` that are not valid, ascending.
    pub(super) fn missing(&self, id: DiskId) -> RoaringBitmap {
        let Some(disk) = self.disk(id) else { return RoaringBitmap::new() };
        let mut all = RoaringBitmap::new();
        all.insert_range(0..granules(disk.size).unwrap_or(0));
        all - &disk.valid
    }
}
