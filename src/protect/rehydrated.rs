//! A rehydrated datastore whose disks are to be protected: what it proves of them, and the note by which it lets them go.
//!
//! ```text
//! rehydrated: the map has the disks --proved, protection record durable--> let go: the map has no disk
//!                                                                               | a guest may write from now on
//!            <-- rehydrated anew, into new files by --overwrite ----------------+
//! ```
//!
//! Owns the lock of the datastore's state for as long as the disks are protected, so that no rehydration runs beside. A
//! disk is proved where the watermark and the hydration map both name the very segment at which the chain stands, all of
//! it is there, nothing of it is quarantined, and its file looks as it did then. Invariants: no byte of a disk changes
//! before the map that speaks for it is gone, durably; a map without disks proves nothing, and a later rehydration takes
//! the files for what they are then: not its own.

use std::path::{Path, PathBuf};

use super::memory::SiteMemory;
use crate::capture::{DiskSource, VmDefinition, VmSource};
use crate::datastore::{DirLock, Loaded, TwoSlot};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Catalogue, FileStamp, GRANULE, HydrationDisk, HydrationMap, MAX_HYDRATION_LEN, MAX_WATERMARK_LEN, Watermark,
    granules,
};
use crate::ids::{DiskId, DomainId, Name, SegmentRef};
use crate::map::PointMap;
use crate::store::{Domain, StorageSite};

/// See the module.
pub(super) struct Rehydrated {
    dir: PathBuf,
    watermark: Document<Watermark>,
    map: Document<HydrationMap>,
    _lock: DirLock,
}

/// One of its documents, and where it is written anew.
struct Document<T> {
    slots: TwoSlot,
    found: Option<T>,
    /// Why there is none, where there is something.
    lost: Option<String>,
}

impl<T> Document<T> {
    fn of((slots, loaded): (TwoSlot, Loaded<T>)) -> Document<T> {
        match loaded {
            Loaded::Found(found) => Document { slots, found: Some(found), lost: None },
            Loaded::Absent => Document { slots, found: None, lost: None },
            Loaded::Lost(why) => Document { slots, found: None, lost: Some(why) },
        }
    }
}

/// Where the state of a domain's disks in a datastore stands.
fn state_of(datastore: &Path, domain: &Name) -> PathBuf {
    datastore.join(domain.key()).join(".freshet")
}

impl Rehydrated {
    /// Opens the state of `domain`'s disks in `datastore`, and keeps others out of it. Blocks.
    ///
    /// # Errors
    /// `NotFound` where no rehydration was there; `Refused` where one runs or has not come to its end, or another protection
    /// has the disks; `Unsupported` where a newer program wrote it.
    pub(super) fn open(datastore: &Path, domain: &Name) -> Result<Rehydrated> {
        let dir = state_of(datastore, domain);
        if !dir.is_dir() {
            let why = format!("datastore {}: holds no rehydrated disks of domain {domain}", datastore.display());
            let advice = "`freshet rehydrate` brings them there";
            return Err(Error::new(ErrorKind::NotFound, format!("{why}; {advice}")));
        }
        let lock = DirLock::take(&dir).map_err(|e| match e.kind() {
            ErrorKind::Refused => e.while_doing("protect rehydrated disks: end what rehydrates or protects them first"),
            _ => e,
        })?;
        let watermark = |bytes: &[u8]| Watermark::decode(bytes).map(|w| (w.sequence, w));
        let map = |bytes: &[u8]| HydrationMap::decode(bytes).map(|m| (m.sequence, m));
        let watermark = Document::of(TwoSlot::load(&dir, "watermark", MAX_WATERMARK_LEN, watermark)?);
        let map = Document::of(TwoSlot::load(&dir, "hydration", MAX_HYDRATION_LEN, map)?);
        let opened = Rehydrated { dir, watermark, map, _lock: lock };
        opened.check()?;
        Ok(opened)
    }

    /// The point that its disks equal, as far as it says itself; `None` once it let them go.
    pub(super) fn point(&self) -> Option<SegmentRef> {
        let watermark = self.watermark.found.as_ref().filter(|w| !w.stamps.is_empty())?;
        self.map.found.as_ref().filter(|m| m.domain == watermark.domain && !m.disks.is_empty())?;
        Some(watermark.point)
    }

    /// Whether it says nothing of any disk, as after [`Rehydrated::let_go`].
    pub(super) fn has_let_go(&self) -> bool {
        self.map.lost.is_none() && self.map.found.as_ref().is_none_or(|map| map.disks.is_empty())
    }

    /// Disks that it speaks of.
    pub(super) fn disks(&self) -> Vec<DiskId> {
        self.map.found.iter().flat_map(|map| &map.disks).map(|disk| disk.disk).collect()
    }

    /// Refuses disks that are not whole: protected, what is missing would take the place of what the chain has.
    fn check(&self) -> Result<()> {
        let refuse = |why: String| {
            let why = format!("{}: {why}; let `freshet rehydrate` finish first", self.dir.display());
            Err(Error::new(ErrorKind::Refused, why))
        };
        let Some(map) = &self.map.found else { return Ok(()) };
        for disk in &map.disks {
            let missing = missing_bytes(map, disk);
            if missing > 0 {
                return refuse(format!("{missing} bytes of disk {} have not been rehydrated yet", disk.disk));
            }
            if map.applied != map.target || !disk.touched.is_empty() {
                return refuse(format!("disk {} is between two points, after {}", disk.disk, map.target));
            }
        }
        Ok(())
    }

    /// Proves that the file that looks like `now` holds disk `now.disk` as it is at segment `at` of `domain`.
    ///
    /// # Errors
    /// Why that is in doubt, in words.
    pub(super) fn prove(
        &self,
        domain: DomainId,
        at: SegmentRef,
        size: u64,
        now: &FileStamp,
    ) -> std::result::Result<(), String> {
        let lost = |what: &str, why: Option<&String>| match why {
            Some(why) => format!("the {what} of the datastore is lost ({why})"),
            None => format!("the datastore has no {what}"),
        };
        if self.has_let_go() {
            return Err("the datastore has let its disks go to a protection, whose record does not speak of it".into());
        }
        let map = self.map.found.as_ref().ok_or_else(|| lost("hydration map", self.map.lost.as_ref()))?;
        let watermark = self.watermark.found.as_ref();
        let watermark = watermark.ok_or_else(|| lost("watermark", self.watermark.lost.as_ref()))?;
        if map.domain != domain || watermark.domain != domain {
            return Err("the datastore speaks of another domain".into());
        }
        if watermark.point != at || map.target != at {
            let (point, target) = (watermark.point, map.target);
            return Err(format!("it was rehydrated to {point} (map: {target}), and the chain goes on from {at}"));
        }
        let disk = map.disks.iter().find(|d| d.disk == now.disk);
        let disk = disk.ok_or("the hydration map does not know it")?;
        if disk.size != size {
            return Err(format!("it has {size} bytes, and was rehydrated with {}", disk.size));
        }
        if let Some(range) = map.quarantined.iter().find(|q| q.disk == now.disk) {
            let (from, to) = (range.offset, range.offset.saturating_add(range.len));
            return Err(format!("bytes {from}..{to} of it could not be recovered ({})", range.why));
        }
        match watermark.stamps.iter().find(|then| then.disk == now.disk) {
            None => Err("its rehydration did not come to a clean end".into()),
            Some(then) if then != now => Err("its file was changed since it was rehydrated".into()),
            Some(_) => Ok(()),
        }
    }

    /// From here on nothing in the datastore speaks for the files of the disks any more, durably. A kill in between leaves
    /// no map, and then what is there is compared.
    ///
    /// # Errors
    /// What the file system says: the disks must not be written to then.
    pub(super) fn let_go(&mut self, domain: DomainId) -> Result<()> {
        // The map goes first: without it the watermark says nothing. One that is lost would have a rehydration take the
        // files for its own.
        if !self.has_let_go() {
            let sequence = self.map.found.as_ref().map_or(0, |old| old.sequence) + 1;
            let none = SegmentRef::default();
            let (disks, quarantined) = (Vec::new(), Vec::new());
            let map = HydrationMap { domain, sequence, target: none, applied: none, disks, quarantined };
            self.map.slots.store(&map.encode())?;
            (self.map.found, self.map.lost) = (Some(map), None);
        }
        if let Some(old) = self.watermark.found.as_ref().filter(|w| !w.stamps.is_empty()) {
            let watermark = Watermark { sequence: old.sequence + 1, stamps: Vec::new(), ..old.clone() };
            self.watermark.slots.store(&watermark.encode())?;
            self.watermark.found = Some(watermark);
        }
        Ok(())
    }
}

/// What a datastore holds of a domain that is to be protected where it stands.
#[derive(Debug, Clone)]
pub struct RehydratedDisks {
    /// The point that the disks equal, as far as the datastore says itself; `None` once a protection has them.
    pub point: Option<SegmentRef>,
    /// Its VMs and disks, for [`ProtectRequest::vms`](super::ProtectRequest::vms).
    pub vms: Vec<VmSource>,
}

/// The disks of `domain` that were rehydrated in `datastore`: all of them, or those that the protection whose state is in
/// `state` took from there.
///
/// # Errors
/// As opening the datastore: `NotFound`, `Refused`; `NotFound` where nothing says any more which disks it holds; what the
/// storage site says.
pub async fn rehydrated_disks(
    site: &StorageSite,
    domain: &Name,
    datastore: &Path,
    state: &Path,
) -> Result<RehydratedDisks> {
    let opened = Rehydrated::open(datastore, domain)?;
    let (point, ids) = (opened.point(), opened.disks());
    let target = opened.map.found.as_ref().map(|map| map.target).unwrap_or_default();
    drop(opened);
    let (catalogue, ids) = if ids.is_empty() {
        let memory = SiteMemory::open(state, domain)?;
        let Some(record) = memory.record() else {
            let why =
                format!("datastore {}: does not say which disks of domain {domain} it holds", datastore.display());
            let advice =
                "name them by --vm and --disk, or the directory where the protection that had them kept its state";
            return Err(Error::new(ErrorKind::NotFound, format!("{why}: {advice}")));
        };
        (record.catalogue.clone(), record.stamps.iter().map(|stamp| stamp.disk).collect())
    } else {
        let mut domain = Domain::open(site, domain).await?;
        domain.tip().await?;
        (PointMap::load(&domain, target).await?.catalogue().clone(), ids)
    };
    Ok(RehydratedDisks { point, vms: sources(&catalogue, &ids, &datastore.join(domain.key())) })
}

/// The disks `ids` at the places where a rehydration puts them, in the order of the catalogue.
fn sources(catalogue: &Catalogue, ids: &[DiskId], root: &Path) -> Vec<VmSource> {
    let vm = |vm: &crate::format::VmInfo| {
        let disks = catalogue.disks_of(vm.id).filter(|disk| ids.contains(&disk.id)).map(|disk| DiskSource {
            name: disk.name.clone(),
            path: root.join(vm.name.key()).join(format!("{}.raw", disk.name.key())),
            size: Some(disk.size),
        });
        let definition =
            VmDefinition { kind: vm.definition_kind.clone(), text: vm.definition.clone(), shape: vm.shape.clone() };
        let definition = (!vm.definition.is_empty()).then_some(definition);
        VmSource { name: vm.name.clone(), disks: disks.collect(), definition }
    };
    catalogue.vms.iter().map(vm).filter(|vm| !vm.disks.is_empty()).collect()
}

/// Bytes of granules that are neither valid nor touched by a quarantined range.
fn missing_bytes(map: &HydrationMap, disk: &HydrationDisk) -> u64 {
    let mut missing = roaring::RoaringBitmap::new();
    missing.insert_range(0..granules(disk.size).unwrap_or(0));
    missing -= &disk.valid;
    for q in map.quarantined.iter().filter(|q| q.disk == disk.disk && q.len > 0) {
        let last = q.offset.saturating_add(q.len - 1) / GRANULE;
        let clamp = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        missing.remove_range(clamp(q.offset / GRANULE)..=clamp(last));
    }
    missing.len() * GRANULE
}

#[cfg(test)]
mod tests {
    use roaring::RoaringBitmap;

    use super::*;
    use crate::format::Quarantined;
    use crate::ids::{Generation, SegmentNo, Time};

    const DOMAIN: DomainId = DomainId::from_bytes([1; 16]);
    const DISK: DiskId = DiskId::from_bytes([2; 16]);
    const SIZE: u64 = 3 * GRANULE + 512;

    fn at(generation: u64, segment: u64) -> SegmentRef {
        SegmentRef::new(Generation::new(generation), SegmentNo::new(segment))
    }

    fn stamp() -> FileStamp {
        FileStamp { disk: DISK, inode: 5, changed: (6, 7), len: SIZE }
    }

    fn map() -> HydrationMap {
        let (valid, touched) = ((0..4).collect(), RoaringBitmap::new());
        let disk = HydrationDisk { disk: DISK, size: SIZE, pristine: true, valid, touched };
        let (target, quarantined) = (at(3, 4), Vec::new());
        HydrationMap { domain: DOMAIN, sequence: 8, target, applied: target, disks: vec![disk], quarantined }
    }

    fn watermark() -> Watermark {
        let (point, point_time) = (at(3, 4), Time::from_millis(9));
        Watermark { domain: DOMAIN, sequence: 2, point, point_time, stamps: vec![stamp()] }
    }

    /// A datastore that holds these; `None` for a file that is not there.
    fn made(map: Option<&HydrationMap>, watermark: Option<&Watermark>) -> (tempfile::TempDir, Name) {
        let (dir, name) = (tempfile::tempdir().unwrap(), Name::new("shop ☃").unwrap());
        let state = state_of(dir.path(), &name);
        std::fs::create_dir_all(&state).unwrap();
        if let Some(map) = map {
            std::fs::write(state.join("hydration.0"), map.encode()).unwrap();
        }
        if let Some(watermark) = watermark {
            std::fs::write(state.join("watermark.1"), watermark.encode()).unwrap();
        }
        (dir, name)
    }

    fn proved(map: &HydrationMap, watermark: &Watermark) -> std::result::Result<(), String> {
        let (dir, name) = made(Some(map), Some(watermark));
        Rehydrated::open(dir.path(), &name).unwrap().prove(DOMAIN, at(3, 4), SIZE, &stamp())
    }

    #[test]
    fn a_disk_is_proved_only_where_everything_speaks_for_it() {
        assert_eq!(proved(&map(), &watermark()), Ok(()));
        let with = |change: fn(&mut HydrationMap, &mut Watermark)| {
            let (mut map, mut watermark) = (map(), watermark());
            change(&mut map, &mut watermark);
            proved(&map, &watermark).unwrap_err()
        };
        let quarantined = || Quarantined { disk: DISK, offset: GRANULE, len: 512, why: "gone".into() };
        let cases: [(&str, String); 8] = [
            ("rehydrated to", with(|_, w| w.point = at(3, 5))),
            ("rehydrated to", with(|_, w| w.point = at(2, 4))),
            ("rehydrated to", with(|m, _| (m.target, m.applied) = (at(3, 3), at(3, 3)))),
            ("another domain", with(|m, _| m.domain = DomainId::from_bytes([9; 16]))),
            ("another domain", with(|_, w| w.domain = DomainId::from_bytes([9; 16]))),
            ("does not know it", with(|m, _| m.disks[0].disk = DiskId::from_bytes([9; 16]))),
            ("clean end", with(|_, w| w.stamps.clear())),
            ("was changed", with(|_, w| w.stamps[0].changed.1 += 1)),
        ];
        for (word, why) in cases {
            assert!(why.contains(word), "{word}: {why}");
        }
        let damaged = HydrationMap { quarantined: vec![quarantined()], ..map() };
        assert!(proved(&damaged, &watermark()).unwrap_err().contains("could not be recovered (gone)"));
        let (dir, name) = made(Some(&map()), Some(&watermark()));
        let whole = Rehydrated::open(dir.path(), &name).unwrap();
        assert!(whole.prove(DOMAIN, at(3, 4), SIZE + 1, &stamp()).unwrap_err().contains("bytes"));
        for (map, watermark, word) in
            [(None, Some(watermark()), "let its disks go"), (Some(map()), None, "no watermark")]
        {
            let (dir, name) = made(map.as_ref(), watermark.as_ref());
            let why = Rehydrated::open(dir.path(), &name).unwrap().prove(DOMAIN, at(3, 4), SIZE, &stamp());
            assert!(why.as_ref().unwrap_err().contains(word), "{why:?}");
        }
    }

    #[test]
    fn what_is_not_whole_is_refused_and_what_is_damaged_is_not() {
        let check = |map: HydrationMap| {
            let (dir, name) = made(Some(&map), Some(&watermark()));
            Rehydrated::open(dir.path(), &name).map(drop)
        };
        check(map()).unwrap();
        let refused = |change: fn(&mut HydrationMap)| {
            let mut map = map();
            change(&mut map);
            let error = check(map).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            error.to_string()
        };
        let missing = refused(|m| {
            m.disks[0].valid.remove(1);
        });
        assert!(missing.contains("262144 bytes of disk 0202"), "{missing}");
        assert!(refused(|m| m.applied = at(3, 5)).contains("between two points"));
        assert!(
            refused(|m| {
                m.disks[0].touched.insert(1);
            })
            .contains("between two points")
        );
        let mut damaged = map();
        damaged.disks[0].valid.remove(1);
        let (disk, why) = (DISK, "gone".to_owned());
        damaged.quarantined.push(Quarantined { disk, offset: GRANULE, len: GRANULE, why });
        check(damaged).unwrap();
    }

    #[test]
    fn once_let_go_nothing_in_the_datastore_speaks_for_the_files() {
        for lost in [false, true] {
            let (dir, name) = made(Some(&map()), Some(&watermark()));
            let state = state_of(dir.path(), &name);
            if lost {
                std::fs::write(state.join("hydration.0"), "torn").unwrap();
            }
            let mut datastore = Rehydrated::open(dir.path(), &name).unwrap();
            assert!(!datastore.has_let_go());
            assert_eq!(datastore.point(), (!lost).then_some(at(3, 4)));
            let second = Rehydrated::open(dir.path(), &name).err().unwrap();
            assert_eq!(second.kind(), ErrorKind::Refused, "{second}");
            datastore.let_go(DOMAIN).unwrap();
            drop(datastore);
            let mut datastore = Rehydrated::open(dir.path(), &name).unwrap();
            assert!(datastore.has_let_go() && datastore.point().is_none() && datastore.disks().is_empty());
            assert!(datastore.prove(DOMAIN, at(3, 4), SIZE, &stamp()).is_err());
            datastore.let_go(DOMAIN).unwrap();
        }
        let none = Rehydrated::open(tempfile::tempdir().unwrap().path(), &Name::new("d").unwrap()).err().unwrap();
        assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");
    }
}
