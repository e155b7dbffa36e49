//! The durable hydration map of a domain's disks at this site, and the rules of changing it.
//!
//! Invariants: a bit is set only after the granule's bytes are synced; before a granule is written with anything but the
//! bytes of the target, its bit is durably cleared or the granule is durably marked as touched. So at every moment the
//! map on disk says less than, or exactly, what is true.

use std::collections::BTreeMap;
use std::path::Path;

use roaring::RoaringBitmap;

use crate::datastore::{Loaded, TwoSlot};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{GRANULE, HydrationDisk, HydrationMap, MAX_HYDRATION_LEN, Quarantined, granules};
use crate::ids::{DiskId, DomainId, SegmentRef};

/// Ranges beyond which one that is only in part written anew stays whole, and counts as damaged: bounds the map.
const MOST_PARTS: usize = 65_536;

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
    /// Of disks that have any: quarantined ranges, and their bytes.
    damage: BTreeMap<DiskId, (u64, u64)>,
    /// Quarantined ranges before this position are as they were before the segments that are applied now: nothing is
    /// joined to them.
    sealed: usize,
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
            Loaded::Absent => Ok(Found::Nothing(HydrationState::of(slots, empty))),
            Loaded::Lost(why) => Ok(Found::Lost(HydrationState::of(slots, empty), why)),
            Loaded::Found(map) if map.domain == domain => Ok(Found::Map(HydrationState::of(slots, map))),
            Loaded::Found(map) => {
                let why = format!("{} holds disks of domain {}, not of {domain}", dir.display(), map.domain);
                Err(Error::new(ErrorKind::Refused, format!("{why}: choose another datastore")))
            }
        }
    }

    fn of(slots: TwoSlot, map: HydrationMap) -> HydrationState {
        let mut state = HydrationState { slots, map, damage: BTreeMap::new(), sealed: 0 };
        state.count_damage();
        state
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
        self.count_damage();
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
        self.retry_quarantined();
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
        let (ranges, bytes) = self.damage.entry(range.disk).or_default();
        *bytes = bytes.saturating_add(range.len);
        match self.map.quarantined.get_mut(self.sealed..).and_then(|new| new.last_mut()) {
            Some(last)
                if last.disk == range.disk
                    && last.offset.checked_add(last.len) == Some(range.offset)
                    && last.why == range.why =>
            {
                last.len += range.len;
            }
            _ => {
                *ranges += 1;
                self.map.quarantined.push(range);
            }
        }
    }

    /// Forgets what could not be had: it is tried again. Its granules stay missing.
    pub(super) fn retry_quarantined(&mut self) {
        self.map.quarantined.clear();
        self.count_damage();
    }

    /// What is quarantined now was so before the segments that are applied next: see [`HydrationState::repair`].
    pub(super) fn seal_quarantined(&mut self) {
        self.sealed = self.map.quarantined.len();
    }

    /// Of the ranges that were quarantined when they were sealed, what the segments that were applied since wrote anew is
    /// whole again: by disk, ascending and disjoint. A granule of which no range is left is valid, since beside its
    /// ranges all of it was written, and synced.
    ///
    /// Only for disks of which nothing else is missing: those that were brought to a point before.
    pub(super) fn repair(&mut self, written: &BTreeMap<DiskId, Vec<(u64, u64)>>) {
        let mut later = self.map.quarantined.split_off(self.sealed.min(self.map.quarantined.len()));
        self.sealed = 0;
        let before = std::mem::take(&mut self.map.quarantined);
        let mut mended: BTreeMap<DiskId, RoaringBitmap> = BTreeMap::new();
        for range in before {
            let Some(parts) = written.get(&range.disk).map(|written| rest_of(&range, written)) else {
                self.map.quarantined.push(range);
                continue;
            };
            // Split further, it would cost more than it tells: it counts as damaged on.
            if parts.len() > 1 && self.map.quarantined.len() + parts.len() > MOST_PARTS {
                self.map.quarantined.push(range);
                continue;
            }
            mended.entry(range.disk).or_default().insert_range(granules_of(&range));
            self.map.quarantined.extend(parts);
        }
        self.map.quarantined.append(&mut later);
        for range in &self.map.quarantined {
            if let Some(mended) = mended.get_mut(&range.disk) {
                mended.remove_range(granules_of(range));
            }
        }
        for (disk, mended) in mended {
            if let Some(entry) = self.disk_mut(disk) {
                let all = granules(entry.size).unwrap_or(0);
                entry.valid |= mended.into_iter().filter(|granule| *granule < all).collect::<RoaringBitmap>();
            }
        }
        self.count_damage();
    }

    /// A disk ends at `size`: nothing is missing beyond.
    pub(super) fn cut_quarantined(&mut self, disk: DiskId, size: u64) {
        self.map.quarantined.retain_mut(|q| {
            if q.disk == disk {
                q.len = q.len.min(size.saturating_sub(q.offset));
            }
            q.len > 0
        });
        self.count_damage();
    }

    fn count_damage(&mut self) {
        self.sealed = 0;
        self.damage.clear();
        for q in &self.map.quarantined {
            let (ranges, bytes) = self.damage.entry(q.disk).or_default();
            (*ranges, *bytes) = (*ranges + 1, bytes.saturating_add(q.len));
        }
    }

    /// Of a disk: quarantined ranges, and their bytes.
    pub(super) fn damage_of(&self, disk: DiskId) -> (u64, u64) {
        self.damage.get(&disk).copied().unwrap_or_default()
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

/// The granules that a range touches.
fn granules_of(range: &Quarantined) -> std::ops::Range<u32> {
    let end = range.offset.saturating_add(range.len).div_ceil(GRANULE);
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    number(range.offset / GRANULE)..number(end)
}

/// What of a range lies outside of all of `written`, which is ascending and disjoint.
fn rest_of(range: &Quarantined, written: &[(u64, u64)]) -> Vec<Quarantined> {
    let end = range.offset.saturating_add(range.len);
    let (mut at, mut rest) = (range.offset, Vec::new());
    let first = written.partition_point(|(_, to)| *to <= at);
    let part = |from: u64, to: u64| Quarantined { offset: from, len: to - from, ..range.clone() };
    for &(from, to) in written[first..].iter().take_while(|(from, _)| *from < end) {
        if from > at {
            rest.push(part(at, from));
        }
        at = at.max(to);
    }
    if at < end {
        rest.push(part(at, end));
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskId = DiskId::from_bytes([3; 16]);

    fn state(dir: &tempfile::TempDir) -> HydrationState {
        let Found::Nothing(mut state) = HydrationState::load(dir.path(), DomainId::from_bytes([1; 16])).unwrap() else {
            panic!("there is nothing yet");
        };
        state.add_empty(DISK, 8 * GRANULE, true).unwrap();
        state
    }

    fn damage(state: &mut HydrationState, offset: u64, len: u64) {
        for granule in offset / GRANULE..(offset + len).div_ceil(GRANULE) {
            state.disk_mut(DISK).unwrap().valid.remove(u32::try_from(granule).unwrap());
        }
        state.quarantine(Quarantined { disk: DISK, offset, len, why: "gone".into() });
    }

    fn ranges(state: &HydrationState) -> Vec<(u64, u64)> {
        state.quarantined().iter().map(|q| (q.offset, q.len)).collect()
    }

    #[test]
    fn what_is_written_anew_is_repaired_and_what_failed_meanwhile_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = state(&dir);
        damage(&mut state, GRANULE, 4096);
        damage(&mut state, GRANULE + 4096, 4096);
        damage(&mut state, 3 * GRANULE - 512, 1024);
        assert_eq!(ranges(&state), [(GRANULE, 8192), (3 * GRANULE - 512, 1024)], "neighbours are one");
        assert_eq!(state.damage_of(DISK), (2, 9216));

        state.seal_quarantined();
        // A frame of the new segments cannot be had either, right behind the last range.
        damage(&mut state, 3 * GRANULE + 512, 512);
        let written =
            BTreeMap::from([(DISK, vec![(GRANULE + 1024, GRANULE + 2048), (3 * GRANULE - 512, 3 * GRANULE + 1024)])]);
        state.repair(&written);
        let left = [(GRANULE, 1024), (GRANULE + 2048, 6144), (3 * GRANULE + 512, 512)];
        assert_eq!(ranges(&state), left);
        assert_eq!(state.damage_of(DISK), (3, 7680));
        assert_eq!(state.missing(DISK).iter().collect::<Vec<_>>(), [1, 3], "of granule 2 nothing is missing any more");

        // Nothing is written: nothing is repaired, and what is known is durable.
        state.seal_quarantined();
        state.repair(&BTreeMap::new());
        state.commit().unwrap();
        drop(state);
        let Found::Map(mut state) = HydrationState::load(dir.path(), DomainId::from_bytes([1; 16])).unwrap() else {
            panic!("it was written");
        };
        assert_eq!((ranges(&state), state.damage_of(DISK)), (left.to_vec(), (3, 7680)));
        state.seal_quarantined();
        state.repair(&BTreeMap::from([(DISK, vec![(0, 2 * GRANULE), (2 * GRANULE, 8 * GRANULE)])]));
        assert!(state.quarantined().is_empty() && state.missing(DISK).is_empty());
        assert_eq!(state.damage_of(DISK), (0, 0));
    }

    #[test]
    fn a_range_that_would_be_split_without_end_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = state(&dir);
        damage(&mut state, 0, 2 * GRANULE);
        state.seal_quarantined();
        let all = 2 * GRANULE / 4;
        assert!(all > MOST_PARTS as u64);
        state.repair(&BTreeMap::from([(DISK, (0..all).map(|n| (n * 4, n * 4 + 2)).collect())]));
        assert_eq!(ranges(&state), [(0, 2 * GRANULE)]);
        assert_eq!(state.missing(DISK).len(), 2);
    }

    #[test]
    fn a_disk_that_ends_earlier_lacks_nothing_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = state(&dir);
        damage(&mut state, GRANULE, GRANULE);
        damage(&mut state, 4 * GRANULE, 512);
        state.cut_quarantined(DISK, GRANULE + 4096);
        assert_eq!((ranges(&state), state.damage_of(DISK)), (vec![(GRANULE, 4096)], (1, 4096)));
    }
}
