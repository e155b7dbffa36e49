//! What a protection that ended says of its disks, for who follows the domain in place onto the same files.
//!
//! ```text
//! protection record, bitmaps, stamps --+
//! own segments, in the storage site    +--> where both histories part, what is still of there, what differs since
//!   and in the protection's log      --+
//! ```
//!
//! Reads only. A region whose bit is clear holds what the domain had at the segment that the record relies on. Where a
//! take-over cut that segment off, it holds what the domain has where both part, but for what this site's own segments
//! changed after that: their objects stay readable, though nobody accepts them. One that cannot be read puts all of the
//! disks in doubt. Bits of regions that later segments changed are still set, so that those need not be read for it; they
//! are read for when they were made.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

use futures::{StreamExt, TryStreamExt, stream};
use roaring::RoaringBitmap;

use crate::datastore::{EngineKind, EngineOptions, Slab, stamp, start as start_engine};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Catalogue, DatastoreId, DiskInfo, GRANULE, Index, ProtectionRecord, SEGMENT_HEADER_LEN, Segment, SegmentHeader,
    granules,
};
use crate::ids::{DiskId, SegmentNo, SegmentRef, Time};
use crate::intent::{IntentIdentity, look};
use crate::log::{LogOptions, ReplicationLog, log_path};
use crate::protect::{SiteMemory, is_noted_unwatched};
use crate::store::keys::{self, ObjectKey};
use crate::store::{Acceptance, Domain, Ownership};

use super::divergence::{DivergedDisk, Divergence, merged};
use super::places::Places;

/// Indexes read at a time.
const PARALLEL_INDEXES: usize = 16;
/// Most segments whose times and ranges are looked up beyond those that are needed; further ones are counted only.
const MAX_LOOKED_UP: usize = 10_000;
/// Buffers of the log's engine.
const LOG_SLOTS: usize = 4;

/// Where to start from.
pub(super) struct Start {
    /// Up to where both histories are the same: what is valid is of there.
    pub(super) at: SegmentRef,
    pub(super) disks: Vec<StartDisk>,
    pub(super) divergence: Divergence,
}

/// One disk of the protection.
pub(super) struct StartDisk {
    pub(super) disk: DiskId,
    pub(super) size: u64,
    /// Granules that hold what the domain has at the start.
    pub(super) valid: RoaringBitmap,
    /// Nothing of it is believed: all of it is hashed.
    pub(super) in_doubt: bool,
}

/// One of this site's own segments that are not part of the domain.
struct Own {
    created: Time,
    index: Index,
}

/// What the protection that `memory` is of says of its disks, which stand at `places`. `None` where it remembers nothing,
/// as after its disks were taken from it.
///
/// # Errors
/// `Refused` where the site still owns the domain, where its new owner has not said what it goes on from, and for the
/// state of another domain; `NotFound` for a disk that does not stand where it should and was given no place; what the
/// storage site says.
pub(super) async fn look_at(domain: &Domain, memory: &SiteMemory, places: &Places) -> Result<Option<Start>> {
    if let Some(why) = memory.lost() {
        let advice = "its disks can be followed onto only as any other files: --overwrite replaces them";
        return Err(Error::new(ErrorKind::Refused, format!("{}: {why}; {advice}", memory.dir().display())));
    }
    let Some(record) = memory.remembered() else { return Ok(None) };
    refuse_owner(domain, record, memory.dir())?;
    let (at, relied_on) = part(domain, record)?;
    let mut own = Segments::default();
    let mut unread = None;
    if at != relied_on {
        let needed: Option<Vec<SegmentRef>> = (at.segment.get() + 1..=relied_on.segment.get())
            .map(|n| of_history(domain.ownership(), relied_on, SegmentNo::new(n)))
            .collect();
        match needed {
            Some(needed) => unread = own.read_all(domain, needed).await?,
            None => unread = Some(format!("its segments up to {relied_on} are not known any more")),
        }
    }
    let needed = std::mem::take(&mut own.touched);
    own.read_others(domain, record, at).await?;
    own.read_log(domain, memory)?;
    let mut disks = Vec::new();
    let mut diverged = Vec::new();
    for info in &record.catalogue.disks {
        let path = places.of(&record.catalogue, info)?;
        let Some(trusted) = trust(memory, domain, info, &path)? else {
            refuse_unplaced(places, &record.catalogue, info, &path)?;
            // Its file is gone by the operator's word: it holds nothing that could be lost.
            continue;
        };
        let (doubt, hashed) = match (&unread, trusted.doubt) {
            (Some(why), _) => (Some(why.clone()), true),
            (None, doubt) => (doubt.clone(), doubt.is_some() || trusted.leaves_no_trace),
        };
        let mut valid = RoaringBitmap::new();
        if !hashed {
            valid.insert_range(0..granules(info.size).unwrap_or(0));
            let differs = needed.get(&info.id).into_iter().flatten().chain(&trusted.set);
            for range in differs {
                valid.remove_range(granules_of(range));
            }
        }
        disks.push(StartDisk { disk: info.id, size: info.size, valid, in_doubt: hashed });
        let within = |ranges: Vec<Range<u64>>| -> Vec<Range<u64>> {
            merged(ranges.into_iter().map(|r| r.start.min(info.size)..r.end.min(info.size)).collect())
        };
        let unaccepted = [&needed, &own.touched].into_iter().filter_map(|t| t.get(&info.id)).flatten().cloned();
        let unaccepted = within(unaccepted.collect());
        let all = 0..info.size;
        let suspect = within(if doubt.is_some() { vec![all] } else { trusted.set });
        if !unaccepted.is_empty() || !suspect.is_empty() {
            let label = record.catalogue.disk_label(info.id);
            diverged.push(DivergedDisk { disk: info.id, label, path, unaccepted, suspect, in_doubt: doubt });
        }
    }
    let divergence = Divergence {
        domain: domain.name().clone(),
        domain_id: domain.id(),
        parted: at,
        segments: own.count,
        times: own.times,
        disks: diverged,
    };
    Ok(Some(Start { at, disks, divergence }))
}

/// A disk that was protected somewhere is not built anew elsewhere only because nobody said where it is.
fn refuse_unplaced(places: &Places, catalogue: &Catalogue, disk: &DiskInfo, path: &Path) -> Result<()> {
    if places.has(catalogue, disk)? {
        return Ok(());
    }
    let why = format!("{} was protected, and is not at {}", catalogue.disk_label(disk.id), path.display());
    Err(Error::new(ErrorKind::NotFound, format!("{why}: name its place with --place, wherever it is to be")))
}

fn refuse_owner(domain: &Domain, record: &ProtectionRecord, dir: &Path) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::Refused, format!("{}: {why}", dir.display())));
    if record.domain != domain.id() {
        return refuse(format!("remembers domain {}, not {} ({})", record.domain, domain.name(), domain.id()));
    }
    let generations = domain.ownership().generations();
    let own = generations.iter().find(|g| g.generation == record.own_generation);
    match (own, domain.ownership().newest()) {
        (Some(own), Some(newest)) if newest.author.site == own.author.site && newest.released.is_none() => {
            let why = format!("site {} owns domain {} and has not released it", newest.author.site, domain.name());
            refuse(format!("{why}: hand it over first, or wait until another site has taken it over"))
        }
        _ => Ok(()),
    }
}

/// Where the histories of the disks and the domain part, and the segment that clear bits rely on.
fn part(domain: &Domain, record: &ProtectionRecord) -> Result<(SegmentRef, SegmentRef)> {
    let relied_on = record.relied_on;
    let at = domain.ownership().common(relied_on).unwrap_or_default();
    if at == SegmentRef::default() || domain.accepts(at) {
        return Ok((at, relied_on));
    }
    let hidden = domain.hidden().unwrap_or_else(|| format!("segment {at} does not count yet"));
    Err(Error::new(ErrorKind::Refused, format!("domain {}: {hidden}; ask again then", domain.name())))
}

/// Segment `n` of the history that ends with `last`, whatever became of that since.
fn of_history(ownership: &Ownership, last: SegmentRef, n: SegmentNo) -> Option<SegmentRef> {
    let mut end = last;
    loop {
        let generation = ownership.generations().iter().find(|g| g.generation == end.generation)?;
        let base = generation.base?.last;
        match n > base.segment {
            true => return (n <= end.segment).then_some(SegmentRef::new(end.generation, n)),
            false if base == SegmentRef::default() => return None,
            false => end = base,
        }
    }
}

/// What of a disk can be believed.
struct Trusted {
    /// Regions that are marked.
    set: Vec<Range<u64>>,
    /// Why nothing can.
    doubt: Option<String>,
    /// Writes to it could not be noticed: it is hashed, though nothing speaks for any.
    leaves_no_trace: bool,
}

fn trust(memory: &SiteMemory, domain: &Domain, info: &DiskInfo, path: &Path) -> Result<Option<Trusted>> {
    let none = |why: &str| Some(Trusted { set: Vec::new(), doubt: Some(why.to_owned()), leaves_no_trace: false });
    let meta = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        meta => meta.map_err(|e| Error::io(format!("look at {}", path.display()), e))?,
    };
    let is_device = std::os::unix::fs::FileTypeExt::is_block_device(&meta.file_type());
    if is_noted_unwatched(path)? {
        return Ok(none("it was written to while its bitmap could not be"));
    }
    let now = stamp(info.id, path)?;
    if memory.is_changed(info.id, &now, false) {
        return Ok(none("its file was changed, or is another one, since it was protected"));
    }
    let identity = IntentIdentity { domain: domain.id(), disk: info.id, size: info.size };
    let set = look(&memory.bitmap(info.id), &identity)?;
    Ok(Some(Trusted { set, doubt: None, leaves_no_trace: is_device && memory.is_changed(info.id, &now, true) }))
}

/// What own segments say.
#[derive(Default)]
struct Segments {
    seen: HashSet<SegmentRef>,
    count: u64,
    times: Option<(Time, Time)>,
    touched: BTreeMap<DiskId, Vec<Range<u64>>>,
}

impl Segments {
    fn add(&mut self, own: &Own) {
        if !self.seen.insert(own.index.segment) {
            return;
        }
        self.count += 1;
        let (first, last) = self.times.unwrap_or((own.created, own.created));
        self.times = Some((first.min(own.created), last.max(own.created)));
        for entry in &own.index.entries {
            let Some(disk) = own.index.disks.get(entry.disk as usize) else { continue };
            let ranges = self.touched.entry(disk.id).or_default();
            ranges.push(entry.offset..entry.offset.saturating_add(entry.len));
            if ranges.len() > 1 << 16 {
                *ranges = merged(std::mem::take(ranges));
            }
        }
    }

    /// Reads those that what is valid depends on; why one could not be read.
    async fn read_all(&mut self, domain: &Domain, segments: Vec<SegmentRef>) -> Result<Option<String>> {
        let mut read = stream::iter(segments).map(|at| read(domain, at)).buffered(PARALLEL_INDEXES);
        while let Some(own) = read.next().await {
            match own {
                Ok(own) => self.add(&own),
                Err(e) if e.kind() == ErrorKind::Damaged => {
                    return Ok(Some(format!("what this site wrote cannot be told: {e}")));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// Those of this site's generations since `at` that are in the storage site and do not count.
    async fn read_others(&mut self, domain: &Domain, record: &ProtectionRecord, at: SegmentRef) -> Result<()> {
        let generations = domain.ownership().generations();
        let Some(own) = generations.iter().find(|g| g.generation == record.own_generation) else { return Ok(()) };
        let of_site = generations.iter().filter(|g| g.author.site == own.author.site && g.generation >= at.generation);
        for generation in of_site.filter(|g| g.generation <= record.own_generation) {
            let mut found = Vec::new();
            let prefix = keys::segment_prefix(domain.name(), generation.generation);
            let mut listing = domain.site().list(&prefix, None);
            while let Some(object) = listing.try_next().await? {
                let Some((_, ObjectKey::Segment(segment))) = ObjectKey::parse(&object.key) else { continue };
                let counts = domain.accepts(segment) || domain.ownership().acceptance(segment) != Acceptance::Never;
                if segment.segment > at.segment && !counts && !self.seen.contains(&segment) {
                    found.push(segment);
                }
            }
            let further = found.split_off(found.len().min(MAX_LOOKED_UP));
            self.count += further.len() as u64;
            let mut read = stream::iter(found).map(|at| read(domain, at)).buffered(PARALLEL_INDEXES);
            while let Some(own) = read.next().await {
                match own {
                    Ok(own) => self.add(&own),
                    // What it changed is marked.
                    Err(e) if e.kind() == ErrorKind::Damaged => self.count += 1,
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Those in the protection's log: they never reached the storage site.
    fn read_log(&mut self, domain: &Domain, memory: &SiteMemory) -> Result<()> {
        let path = log_path(memory.dir(), domain.name());
        let Ok(meta) = std::fs::metadata(&path) else { return Ok(()) };
        let canonical = std::fs::canonicalize(memory.dir());
        let canonical = canonical.map_err(|e| Error::io(format!("look at {}", memory.dir().display()), e))?;
        let mut options = LogOptions::new(domain.id(), DatastoreId::of_path(&canonical), meta.len());
        (options.verify_payloads, options.largest_segment) = (false, 1);
        let engine = start_engine(EngineKind::Auto, Slab::new(LOG_SLOTS, 1 << 20)?, EngineOptions::default())?;
        let log = ReplicationLog::open(&engine, memory.dir(), domain.name(), &options)?;
        let held = log.held();
        if held.first == SegmentNo::ZERO {
            return Ok(());
        }
        let mut buffer = Vec::new();
        for n in held.first.get()..=held.landed.segment.get() {
            // What cannot be read is marked, as all of it is.
            let Ok(header) = log.read(SegmentNo::new(n), &mut buffer) else { continue };
            if domain.accepts(header.id()) {
                continue;
            }
            if let Ok(segment) = Segment::open(&buffer, domain.id(), header.id()) {
                self.add(&Own { created: segment.header.created, index: segment.index });
            }
        }
        Ok(())
    }
}

/// Header and index of a segment that does not count, verified.
async fn read(domain: &Domain, at: SegmentRef) -> Result<Own> {
    let key = keys::segment(domain.name(), at);
    let place = || format!("storage site {}: object {key}", domain.site().url());
    let missing = || Error::new(ErrorKind::Damaged, format!("{} is missing", place()));
    let head = domain.site().get_range(&key, 0..SEGMENT_HEADER_LEN as u64).await?.ok_or_else(missing)?;
    let header = SegmentHeader::open(&head.into_bytes(), domain.id(), at).map_err(|e| e.at(place()))?;
    let range = header.index_pos..header.index_pos + u64::from(header.index_len);
    let index = domain.site().get_range(&key, range).await?.ok_or_else(missing)?;
    let index = Index::decode(&index.into_bytes(), &header).map_err(|e| e.at(place()))?;
    Ok(Own { created: header.created, index })
}

fn granules_of(range: &Range<u64>) -> Range<u32> {
    let clamp = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    clamp(range.start / GRANULE)..clamp(range.end.div_ceil(GRANULE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Author, Digest, OwnerKind, OwnerRecord, ProcessIdentity};
    use crate::ids::{DomainId, Generation, Name, WriterId};

    fn at(generation: u64, segment: u64) -> SegmentRef {
        SegmentRef::new(Generation::new(generation), SegmentNo::new(segment))
    }

    /// Generations 1, 2, ... of the sites, each with its base.
    fn ownership(claims: &[(&str, SegmentRef)]) -> Ownership {
        let mut ownership = Ownership::default();
        for (generation, (site, last)) in (1..).zip(claims) {
            let generation = Generation::new(generation);
            let site = Name::new(site).unwrap();
            let author = Author { site, writer: WriterId::random(), process: ProcessIdentity::default() };
            let claim = OwnerKind::Claim { generation, take_over: true };
            for kind in [claim, OwnerKind::Base { generation, last: *last, digest: Digest::default() }] {
                let n = ownership.records() + 1;
                let (domain, at) = (DomainId::from_bytes([1; 16]), Time::default());
                let _ = ownership.apply(&OwnerRecord { n, domain, at, author: author.clone(), nonce: [0; 16], kind });
            }
        }
        ownership
    }

    #[test]
    fn a_history_is_told_whatever_became_of_it() {
        // The first site restarts after 7, the second takes over from 5: 6 and 7 of generation 1, and all of 2, are cut off.
        let ownership = ownership(&[("a", at(0, 0)), ("a", at(1, 7)), ("b", at(1, 5))]);
        assert_eq!(ownership.common(at(2, 9)), Some(at(1, 5)));
        let own = |n| of_history(&ownership, at(2, 9), SegmentNo::new(n));
        assert_eq!([own(6), own(7), own(8), own(9)], [Some(at(1, 6)), Some(at(1, 7)), Some(at(2, 8)), Some(at(2, 9))]);
        assert_eq!((own(10), own(1)), (None, Some(at(1, 1))));
        assert_eq!(of_history(&ownership, at(3, 8), SegmentNo::new(5)), Some(at(1, 5)));
        assert_eq!(of_history(&ownership, at(4, 8), SegmentNo::new(5)), None, "no such generation");
    }

    #[test]
    fn ranges_touch_whole_granules_and_never_overflow() {
        assert_eq!(granules_of(&(0..1)), 0..1);
        assert_eq!(granules_of(&(GRANULE - 1..GRANULE + 1)), 0..2);
        assert_eq!(granules_of(&(0..u64::MAX)), 0..u32::MAX);
    }
}
