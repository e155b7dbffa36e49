//! One run of a rehydration: what is open, and the state of the disks at this site.
//!
//! It owns the order of things: the lock before anything is touched, the map names a disk before its file is created, the
//! map before bytes change, the watermark last.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::cancel::Cancel;
use crate::datastore::{DirLock, EngineOptions, Loaded, TwoSlot, stamp, start};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Catalogue, DatastoreId, DiskInfo, MAX_WATERMARK_LEN, Watermark, granules};
use crate::ids::{DiskId, SegmentRef, Time};
use crate::log::{LogOptions, ReplicationLog};
use crate::progress::{MemoryUse, Progress};
use crate::protect::SiteMemory;
use crate::store::{Domain, FoundManifest, PointInfo};

use super::budget::Budget;
use super::detached;
use super::disks::{DiskSet, Place, create_dirs_durably};
use super::doubts::Doubts;
use super::indexes::Indexes;
use super::landing::Landing;
use super::pipeline::Pipeline;
use super::recent::Recent;
use super::reconcile::Reconciler;
use super::request::RehydrateRequest;
use super::state::{Found, HydrationState};
use super::steer::Steer;
use super::tracker::Tracker;

/// See the module.
pub(super) struct Session {
    pub(super) request: RehydrateRequest,
    pub(super) reconciler: Reconciler,
    pub(super) log: Arc<ReplicationLog>,
    pub(super) indexes: Indexes,
    pub(super) recent: Arc<Recent>,
    pub(super) progress: Arc<Progress>,
    pub(super) cancel: Cancel,
    pub(super) steer: Steer,
    pub(super) started: Instant,
    pub(super) catalogue: Catalogue,
    /// What may hold other bytes than the hydration map says.
    pub(super) doubts: Doubts,
    pub(super) landed_segments: u64,
    /// Landing up to the point that was asked for, or with which following began.
    pub(super) caught_up: Landing,
    pub(super) applied_points: u64,
    pub(super) point: Option<PointInfo>,
    pub(super) notes: Vec<String>,
    /// What may hide a newer point than the one that was chosen.
    pub(super) passed_over: Vec<String>,
    /// The manifest that was read when the point was chosen, for who goes there next.
    pub(super) base: Option<FoundManifest>,
    /// The hydration map was lost: files at the disks' places are ours, with unknown content.
    map_lost: bool,
    /// What this site protected, while its disks are followed onto: locked.
    pub(super) protection: Option<SiteMemory>,
    watermark: TwoSlot,
    watermark_sequence: u64,
    last_clean: Option<Watermark>,
    _lock: DirLock,
}

impl Session {
    /// Opens datastore, state, engine and log. Nothing is fetched, no disk is touched.
    pub(super) fn open(
        domain: Domain,
        request: RehydrateRequest,
        progress: Arc<Progress>,
        cancel: Cancel,
        steer: Steer,
    ) -> Result<Session> {
        let started = Instant::now();
        check_directory(&request.datastore, "datastore")?;
        check_directory(&request.log_store, "log store")?;
        let own = request.datastore.join(domain.name().key()).join(".freshet");
        create_dirs_durably(&own)?;
        let lock = DirLock::take(&own)?;
        let mut notes = Vec::new();
        for disk in &request.delete_detached {
            let gone = detached::delete_detached(&request.datastore, domain.name(), *disk)?;
            notes.push(format!("deleted {}", gone.display()));
        }
        let (state, map_lost) = match HydrationState::load(&own, domain.id())? {
            Found::Nothing(state) => (state, false),
            Found::Map(state) => (state, false),
            Found::Lost(state, why) => {
                notes.push(format!("the hydration map is lost ({why}): all local blocks are hashed"));
                (state, true)
            }
        };
        let decode = |bytes: &[u8]| Watermark::decode(bytes).map(|w| (w.sequence, w));
        let (watermark, loaded) = TwoSlot::load(&own, "watermark", MAX_WATERMARK_LEN, decode)?;
        let old = match loaded {
            Loaded::Found(old) if old.domain == domain.id() => Some(old),
            _ => None,
        };
        let budget = Budget::of(request.memory);
        let slab = budget.slab()?;
        let slots = Arc::downgrade(&slab);
        let engine = start(request.engine, slab, EngineOptions::default())?;
        let disks = Arc::new(DiskSet::new(Arc::clone(&engine), &request));
        let (its_engine, its_disks) = (Arc::clone(&engine), Arc::clone(&disks));
        let tracker = Tracker::new(state, its_engine, its_disks, Arc::clone(&progress), budget.uncommitted);
        let pipeline = Pipeline::start(domain.id(), &engine, &disks, &tracker, budget.fetch, cancel.clone())?;
        let recent = Arc::new(Recent::new(budget.recent));
        let (fetch, landed) = (pipeline.fetch_memory(), Arc::clone(&recent));
        progress.count_memory(move || {
            let (used, size) = fetch();
            let mut parts =
                vec![MemoryUse::new("fetched", used, size), MemoryUse::new("landed", landed.bytes(), landed.limit())];
            parts.extend(slots.upgrade().map(|slots| {
                let bytes = |count: usize| count as u64 * slots.slot_size() as u64;
                MemoryUse::new("decoded", bytes(slots.in_use()), bytes(slots.slots()))
            }));
            parts
        });
        let canonical = std::fs::canonicalize(&own).map_err(|e| Error::io(format!("look at {}", own.display()), e))?;
        let mut options = LogOptions::new(domain.id(), DatastoreId::of_path(&canonical), request.log_size);
        options.verify_payloads = false;
        let log = ReplicationLog::open(&engine, &request.log_store, domain.name(), &options)?;
        notes.extend(log.recovery().notes.iter().cloned());
        let reconciler = Reconciler {
            domain,
            engine,
            disks,
            tracker,
            pipeline: Arc::new(pipeline),
            progress: Arc::clone(&progress),
            cancel: cancel.clone(),
            plan_bytes: budget.plan,
        };
        Ok(Session {
            doubts: Doubts { all: request.check_local || map_lost, ..Doubts::default() },
            request,
            reconciler,
            log: Arc::new(log),
            indexes: Indexes::default(),
            recent,
            progress,
            cancel,
            steer,
            started,
            catalogue: Catalogue::default(),
            landed_segments: 0,
            caught_up: Landing::default(),
            applied_points: 0,
            point: None,
            notes,
            passed_over: Vec::new(),
            base: None,
            map_lost,
            protection: None,
            watermark,
            watermark_sequence: old.as_ref().map_or(0, |w| w.sequence),
            last_clean: old,
            _lock: lock,
        })
    }

    pub(super) fn domain(&self) -> &Domain {
        &self.reconciler.domain
    }

    pub(super) fn tracker(&self) -> &Tracker {
        &self.reconciler.tracker
    }

    /// A disk whose file was changed since the last clean end is in doubt.
    fn doubt_if_changed(&mut self, disk: DiskId, path: &Path) -> Result<()> {
        let then = self.last_clean.as_ref().and_then(|w| w.stamps.iter().find(|s| s.disk == disk)).copied();
        if then.is_some_and(|then| stamp(disk, path).is_ok_and(|now| now != then)) {
            self.note(format!("{} was changed by somebody else: all local blocks are hashed", path.display()));
            self.doubts.whole.insert(disk);
        }
        Ok(())
    }

    /// From here on disks change: there is no clean end to compare with until the next one.
    pub(super) fn begin_changes(&mut self) -> Result<()> {
        match self.last_clean.take() {
            Some(old) if !old.stamps.is_empty() => self.store_watermark(old.point, old.point_time, Vec::new()),
            _ => Ok(()),
        }
    }

    pub(super) fn note(&mut self, text: String) {
        self.progress.note(text.clone());
        self.notes.push(text);
    }

    /// Opens the files of all selected disks of a catalogue, creates what is not there, and detaches disks that left.
    pub(super) fn take_catalogue(&mut self, catalogue: &Catalogue, empty_is_valid: bool) -> Result<()> {
        let selected = self.selected(catalogue)?;
        let disks = Arc::clone(&self.reconciler.disks);
        self.refuse_partial(catalogue, &selected)?;
        // Before others take their places.
        for left in disks.all().iter().filter(|d| catalogue.disk(d.id).is_none()) {
            let kept = disks.detach(left.id)?;
            self.note(format!("{} left the domain; its copy is kept at {}", left.label, kept.display()));
        }
        let mut to_open = Vec::new();
        for disk in &selected {
            let Some(position) = disks.position(disk.id) else {
                let known = self.map_lost || self.tracker().state().disk(disk.id).is_some();
                to_open.push((disk, disks.look(catalogue, disk, known, self.request.overwrite)?));
                continue;
            };
            if disks.get(position).size != disk.size {
                disks.resize(position, disk.size)?;
                self.resize_state(disk);
            }
        }
        self.name_new(&to_open)?;
        for (disk, place) in to_open {
            disks.open(catalogue, disk, place)?;
            match place {
                Place::Free => self.tracker().state().add_empty(disk.id, disk.size, empty_is_valid)?,
                Place::Ours => {
                    self.resize_state(disk);
                    self.doubt_if_changed(disk.id, &disks.path(catalogue, disk)?)?;
                }
                Place::Detached => {
                    self.note(format!("{} is back in the domain, and so is its copy", catalogue.disk_label(disk.id)));
                    if empty_is_valid {
                        // It joins here, empty, whatever it held when it left.
                        disks.empty(disk.id)?;
                    } else {
                        self.doubts.whole.insert(disk.id);
                    }
                    self.tracker().state().add_empty(disk.id, disk.size, empty_is_valid)?;
                    self.tracker().state().not_pristine(disk.id);
                }
            }
        }
        self.tracker().state().retain(|id| selected.iter().any(|d| d.id == id));
        let named = selected.iter().filter_map(|d| Some((catalogue.vm(d.vm)?.name.clone(), d.name.clone())));
        self.progress.disks_here(named);
        self.tracker().tell_damage();
        self.catalogue = catalogue.clone();
        Ok(())
    }

    /// Detaches disks that left while nobody followed: the map knows them, `old`, which it speaks of, still names them, and
    /// `catalogue` does not.
    pub(super) fn detach_left(&mut self, old: &Catalogue, catalogue: &Catalogue) -> Result<()> {
        let ids: Vec<DiskId> = self.tracker().state().disks().iter().map(|d| d.disk).collect();
        let disks = Arc::clone(&self.reconciler.disks);
        let left = ids.iter().filter(|id| catalogue.disk(**id).is_none() && disks.position(**id).is_none());
        for disk in left.filter_map(|id| old.disk(*id)) {
            if let Some(kept) = disks.detach_closed(old, disk)? {
                self.note(format!(
                    "{} left the domain; its copy is kept at {}",
                    old.disk_label(disk.id),
                    kept.display()
                ));
            }
        }
        Ok(())
    }

    /// Names disks whose files will be created, or that the map lacks, in the map, durably, as holding anything: so that
    /// whenever this run ends their files are known as ours, and nothing that was valid in a former file counts.
    fn name_new(&self, disks: &[(&DiskInfo, Place)]) -> Result<()> {
        let mut state = self.tracker().state();
        let mut any = false;
        for (disk, place) in disks {
            if *place == Place::Free || state.disk(disk.id).is_none() {
                state.add_unknown(disk.id, disk.size)?;
                any = true;
            }
        }
        if any { state.commit() } else { Ok(()) }
    }

    fn resize_state(&self, disk: &DiskInfo) {
        let mut state = self.tracker().state();
        let Some(entry) = state.disk_mut(disk.id) else { return };
        if entry.size != disk.size {
            let end = granules(entry.size.min(disk.size)).unwrap_or(0);
            // The last granule of the old size may be cut or go on with zeros: both are told by comparing maps, or by
            // the segment that changes the size.
            entry.valid.remove_range(end..);
            entry.touched.remove_range(end..);
            entry.size = disk.size;
            entry.pristine = false;
            state.cut_quarantined(disk.id, disk.size);
        }
    }

    /// The disks of the VMs that were asked for.
    fn selected(&self, catalogue: &Catalogue) -> Result<Vec<DiskInfo>> {
        let mut wanted = Vec::new();
        for name in &self.request.vms {
            if catalogue.vm_named(name.as_str()).is_none() && self.catalogue.vm_named(name.as_str()).is_some() {
                // It was there when this run began: it left.
                continue;
            }
            let vm = catalogue.vm_named(name.as_str()).ok_or_else(|| {
                let names: Vec<&str> = catalogue.vms.iter().map(|v| v.name.as_str()).collect();
                let why = format!("domain {} has no VM {name}; it has: {}", self.domain().name(), names.join(", "));
                Error::new(ErrorKind::NotFound, why)
            })?;
            wanted.push(vm.id);
        }
        let all = self.request.vms.is_empty();
        Ok(catalogue.disks.iter().filter(|d| all || wanted.contains(&d.vm)).cloned().collect())
    }

    /// Disks of one domain at two points must not come to be.
    fn refuse_partial(&self, catalogue: &Catalogue, selected: &[DiskInfo]) -> Result<()> {
        let state = self.tracker().state();
        let is_selected = |id: DiskId| selected.iter().any(|s| s.id == id);
        let left_out = state.disks().iter().find(|d| catalogue.disk(d.disk).is_some() && !is_selected(d.disk));
        let Some(left_out) = left_out else { return Ok(()) };
        let label = catalogue.disk_label(left_out.disk);
        let why = format!("this datastore also holds {label}, which would stay at another point");
        let advice = "name all its VMs, none, or choose another datastore";
        Err(Error::new(ErrorKind::Refused, format!("{why}: {advice}")))
    }

    /// Makes the watermark durable. Stamps only at a clean end.
    pub(super) fn store_watermark(
        &mut self,
        point: SegmentRef,
        point_time: Time,
        stamps: Vec<crate::format::FileStamp>,
    ) -> Result<()> {
        self.watermark_sequence += 1;
        let watermark =
            Watermark { domain: self.domain().id(), sequence: self.watermark_sequence, point, point_time, stamps };
        self.watermark.store(&watermark.encode())
    }
}

fn check_directory(dir: &Path, what: &str) -> Result<()> {
    match std::fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::Invalid, format!("{what} {} is not a directory", dir.display()))),
        Err(e) => Err(Error::io(format!("{what} {}: create it first", dir.display()), e)),
    }
}
