//! What a protecting site remembers of a domain on its own disk, and what that says of the bitmaps at the next start.
//!
//! Owns the state directory `<state>/<domain>`, its lock, and the protection record in it. Invariant: the record that
//! names a segment is durable before any bit is cleared because that segment was accepted.

use std::path::{Path, PathBuf};

use crate::datastore::{DirLock, Loaded, TwoSlot, sync_dir};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{Catalogue, FileStamp, MAX_PROTECTION_LEN, ProtectionRecord, xxh3_128};
use crate::ids::{DiskId, DomainId, Generation, Name, SegmentRef};
use crate::store::Domain;

/// Time of change in a stamp of a disk that is, or was at an unclean end, open for writing.
const OPEN: (u64, u32) = (0, 0);

/// See the module.
pub(crate) struct SiteMemory {
    dir: PathBuf,
    slots: TwoSlot,
    record: Option<ProtectionRecord>,
    /// What the files of the protected disks look like while they are open.
    open: Vec<FileStamp>,
    boot: Option<[u8; 16]>,
    /// Longest record that was written to both slots.
    room: usize,
    /// Why the record cannot be read, where there is one.
    lost: Option<String>,
    /// What the operator should know of how it was found.
    pub(crate) notes: Vec<String>,
    _lock: DirLock,
}

impl SiteMemory {
    /// Opens or makes the state directory of a domain under `state`, which exists. Blocks.
    ///
    /// # Errors
    /// `Refused` where another process has it; `Unsupported` where a newer program wrote the record; `Io`.
    pub(crate) fn open(state: &Path, domain: &Name) -> Result<SiteMemory> {
        if !state.is_dir() {
            let why = format!("state directory {}: is not there, or no directory; create it first", state.display());
            return Err(Error::new(ErrorKind::NotFound, why));
        }
        let dir = state.join(domain.key());
        match std::fs::create_dir(&dir) {
            Ok(()) => sync_dir(state)?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(format!("make {}", dir.display()), e)),
        }
        let lock = DirLock::take(&dir)?;
        let decode = |bytes: &[u8]| ProtectionRecord::decode(bytes).map(|r| (r.sequence, r));
        let (slots, loaded) = TwoSlot::load(&dir, "protection", MAX_PROTECTION_LEN, decode)?;
        let mut notes = Vec::new();
        let (record, lost) = match loaded {
            Loaded::Found(record) => (Some(record), None),
            Loaded::Absent => (None, None),
            Loaded::Lost(why) => {
                notes.push(format!("the protection record is lost ({why}): all disks are compared"));
                (None, Some(why))
            }
        };
        Ok(SiteMemory { dir, slots, record, open: Vec::new(), boot: boot(), room: 0, lost, notes, _lock: lock })
    }

    /// The domain's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the bitmap of a disk stands.
    pub(crate) fn bitmap(&self, disk: DiskId) -> PathBuf {
        self.dir.join(format!("{disk}.intent"))
    }

    /// What the last run left.
    pub(crate) fn record(&self) -> Option<&ProtectionRecord> {
        self.record.as_ref()
    }

    /// Why what the last run left cannot be read.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// What the last run left, unless its disks were given up to others since.
    pub(crate) fn remembered(&self) -> Option<&ProtectionRecord> {
        self.record.as_ref().filter(|record| !record.catalogue.disks.is_empty())
    }

    /// Gives up the disks, durably, before others write to them: nothing that is remembered speaks of their files any
    /// more. The record first, in both its files, so that damage to one brings back nothing; then bitmaps and log, which
    /// say nothing without it. Done again after a kill in between.
    pub(crate) fn retire(&mut self, domain: DomainId, log: &Path) -> Result<()> {
        if self.record.is_none() || self.remembered().is_some() {
            let last = self.record.as_ref().map_or(0, |record| record.sequence);
            for sequence in [last + 1, last + 2] {
                let record = ProtectionRecord {
                    domain,
                    sequence,
                    relied_on: SegmentRef::default(),
                    own_generation: Generation::ZERO,
                    boot: [0; 16],
                    stamps: Vec::new(),
                    catalogue: Catalogue::default(),
                };
                self.slots.store(&record.encode())?;
                self.record = Some(record);
            }
        }
        self.forget_others(&[])?;
        match std::fs::remove_file(log) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", log.display()), e));
            }
            _ => {}
        }
        sync_dir(&self.dir)
    }

    /// Whether the last run was on this boot of the host, so that its guests may still run.
    pub(crate) fn is_same_boot(&self) -> bool {
        self.boot.is_some() && self.record.as_ref().map(|record| record.boot) == self.boot
    }

    /// Whether clear bits still say the truth for a chain that stands at `base`: it has the segment that they rely on,
    /// and after that only segments of the generation in which this site wrote.
    pub(crate) fn speaks_of(&self, domain: &Domain, base: SegmentRef) -> bool {
        let Some(record) = self.record.as_ref().filter(|record| record.domain == domain.id()) else { return false };
        let relied_on = record.relied_on;
        let there = relied_on == SegmentRef::default() || domain.accepts(relied_on);
        let own = |at: SegmentRef| at.generation == record.own_generation;
        let next = domain.locate(relied_on.segment.next());
        there && (base == relied_on || (base.segment > relied_on.segment && next.is_some_and(own) && own(base)))
    }

    /// Whether the file of a disk may be another one, or hold other bytes, than the last run left: it looks otherwise than
    /// at a clean end, or after another end is not the same file. Writes to a device leave no trace, so that one is
    /// trusted after no clean end.
    pub(crate) fn is_changed(&self, disk: DiskId, now: &FileStamp, is_device: bool) -> bool {
        let Some(record) = &self.record else { return true };
        match record.stamps.iter().find(|then| then.disk == disk) {
            None => true,
            Some(then) if then.changed == OPEN => *then != FileStamp { changed: OPEN, ..*now },
            Some(then) => is_device || then != now,
        }
    }

    /// Gives up the bitmaps of all disks but these: nobody notes what is written to a disk that is not protected.
    pub(crate) fn forget_others(&self, disks: &[DiskId]) -> Result<()> {
        let keep: Vec<PathBuf> = disks.iter().map(|disk| self.bitmap(*disk)).collect();
        let context = || format!("read {}", self.dir.display());
        for entry in std::fs::read_dir(&self.dir).io_context(context)? {
            let path = entry.io_context(context)?.path();
            if path.extension().is_some_and(|e| e == "intent") && !keep.contains(&path) {
                std::fs::remove_file(&path).io_context(|| format!("remove {}", path.display()))?;
            }
        }
        sync_dir(&self.dir)
    }

    /// The disks that are protected from now on, by what their files look like.
    pub(crate) fn set_open(&mut self, stamps: Vec<FileStamp>) {
        self.open = stamps.into_iter().map(|stamp| FileStamp { changed: OPEN, ..stamp }).collect();
    }

    /// Makes durable what clear bits rely on from now on; `clean` is what the disks' files look like at a clean end.
    pub(crate) fn store(
        &mut self,
        domain: DomainId,
        relied_on: SegmentRef,
        own_generation: Generation,
        clean: Option<Vec<FileStamp>>,
        catalogue: Catalogue,
    ) -> Result<()> {
        let stamps = clean.unwrap_or_else(|| self.open.clone());
        let same = self.record.as_ref().is_some_and(|record| {
            record.domain == domain
                && record.relied_on == relied_on
                && record.own_generation == own_generation
                && record.stamps == stamps
                && record.catalogue == catalogue
                && Some(record.boot) == self.boot
        });
        if same {
            return Ok(());
        }
        let sequence = self.record.as_ref().map_or(0, |record| record.sequence) + 1;
        let boot = self.boot.unwrap_or_default();
        let mut record = ProtectionRecord { domain, sequence, relied_on, own_generation, boot, stamps, catalogue };
        let bytes = record.encode();
        self.slots.store(&bytes)?;
        if bytes.len() > self.room {
            // Both slots have room for one of this length from now on, however full the file system becomes.
            record.sequence += 1;
            self.slots.store(&record.encode())?;
            self.room = bytes.len();
        }
        self.record = Some(record);
        Ok(())
    }

    /// What is stored from now on is of no boot of the host: a start opens nothing before it owns the domain.
    pub(crate) fn forget_boot(&mut self) {
        self.boot = None;
    }

    /// Takes [`SiteMemory::forget_boot`] back.
    pub(crate) fn remember_boot(&mut self) {
        self.boot = boot();
    }

    /// The disks may be written to from now on: the last run's clean end is over.
    pub(crate) fn begin_changes(&mut self) -> Result<()> {
        match self.record.take() {
            Some(old) => {
                self.record = Some(old.clone());
                self.store(old.domain, old.relied_on, old.own_generation, None, old.catalogue)
            }
            None => Ok(()),
        }
    }
}

/// This boot of the host, where it can be told.
fn boot() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(xxh3_128(text.trim().as_bytes()).0)
}
